"""Chat templates: those of the model families, and any other one rendered with its cost bounded.

A template comes with a model, so it is a stranger's program. It runs in jinja2's sandbox with what Hugging Face's
templates use and nothing else, and each of its steps is paid for: loops, calls, filters, and every text and list that
it makes, in characters. What is spent is counted, not timed, so the same template fails at the same place everywhere.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, filters, nodes, tests
from jinja2.exceptions import SecurityError, TemplateRuntimeError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import pass_context
from jinja2.visitor import NodeTransformer

from fathom.core.errors import FathomError, UsageError

FAMILIES = ("v2", "v3", "r1", "llama3", "qwen2", "qwen2.5", "qwen3", "smollm2")
LONGEST_TEMPLATE = 1 << 17  # bytes; the longest published ones have some 20 KB

# What one rendering may spend: a character costs 1, a step of a loop, call or filter STEP.
BASE, PER_CHARACTER, STEP = 10_000_000, 50, 50
_left: ContextVar[list[int] | None] = ContextVar("fathom_template_budget", default=None)

# The methods of plain values that templates may call; the others are refused by name.
METHODS: dict[type, frozenset[str]] = {
    str: frozenset((
        "split", "rsplit", "splitlines", "partition", "rpartition", "strip", "lstrip", "rstrip", "removeprefix",
        "removesuffix", "startswith", "endswith", "find", "rfind", "index", "count", "replace", "join", "upper",
        "lower", "title", "capitalize", "isdigit", "isalpha", "isalnum", "isspace", "isupper", "islower", "isnumeric",
        "isdecimal")),
    dict: frozenset(("items", "keys", "values", "get")),
    list: frozenset(("index", "count")),
    tuple: frozenset(("index", "count")),
}
# jinja2's own filters that are left in, at a price; replace, join, indent and tojson are written below
FILTERS = (
    "trim", "length", "count", "lower", "upper", "string", "first", "last", "list", "default", "d", "items", "map",
    "select", "reject", "selectattr", "rejectattr", "int", "float", "abs", "unique", "sort", "reverse", "capitalize",
    "title", "safe", "escape", "e", "min", "max", "dictsort", "groupby")
# filters and tests that look at all of what they are given, not at its length alone
_DEEP = frozenset((
    "string", "unique", "sort", "min", "max", "dictsort", "groupby", "eq", "==", "equalto", "ne", "!=", "gt", ">",
    "greaterthan", "ge", ">=", "lt", "<", "lessthan", "le", "<=", "in"))

_VIEWS = (type({}.keys()), type({}.values()), type({}.items()))  # type: ignore[var-annotated]
_PLACES: Any = (list, tuple, dict, range, *_VIEWS)
# filters that read an attribute of each item, and the place of the argument that names it; None: by its name only
_ATTRIBUTE = {"map": None, "selectattr": 0, "rejectattr": 0, "groupby": 0, "min": 1, "max": 1, "unique": 1, "sort": 2}


@functools.cache
def family(name: str) -> str:
    """The chat template of a model family (see FAMILIES), as jinja2 source; raises UsageError for an unknown name."""
    if name not in FAMILIES:
        raise UsageError(f"template={name!r:.80}: no such family; there are {', '.join(FAMILIES)}: name one of them")
    return (Path(__file__).parent / "templates" / f"{name}.jinja").read_text(encoding="utf-8")


class ChatTemplate:
    """A compiled template: messages in, text out."""

    def __init__(self, source: str, tokens: Mapping[str, str | None]):
        """`tokens` are the names that templates use (bos_token, …) and what they stand for; None is left undefined."""
        if len(source.encode("utf-8", "surrogatepass")) > LONGEST_TEMPLATE:
            raise FathomError(f"chat template: more than {LONGEST_TEMPLATE} bytes; shorten it")
        self.source = source
        self.tokens = {name: token for name, token in tokens.items() if token is not None}
        try:
            self._compiled = _environment().from_string(source)
        except (TemplateError, SyntaxError, RecursionError, MemoryError, ValueError, OverflowError) as error:
            what = str(error)[:200] or type(error).__name__
            raise FathomError(f"chat template: {what}; correct it to valid Jinja") from error

    def render(self, messages: Sequence[Mapping[str, Any]], generate: bool, extra: Mapping[str, Any]) -> str:
        """The text of `messages`, with the generation prompt if `generate`; `extra` are the template's own settings.

        Raises FathomError with the template's own words where it refuses the messages, or says what it overspent.
        """
        size = sum(len(str(value)) for message in messages for value in message.values())
        budget = _left.set([BASE + PER_CHARACTER * size])
        names = {"messages": list(messages), "tools": None, "documents": None, "add_generation_prompt": generate}
        try:
            return self._compiled.render(names | self.tokens | dict(extra))
        except Exception as error:  # a template is a program: it can raise anything
            words = str(error)[:300]
            what = words if isinstance(error, TemplateError) and words else f"{type(error).__name__}: {words}"
            raise FathomError(f"chat template: {what}; correct the messages or the template") from error
        finally:
            _left.reset(budget)


# What follows bounds the cost.


def _spend(cost: int) -> None:
    left = _left.get()
    if left is None:  # while compiling, where nothing of a template is run
        return
    left[0] -= cost
    if left[0] < 0:
        raise TemplateRuntimeError("it costs more than a template of chats can (loops, or texts and lists too long)")


def _glance(value: Any) -> None:
    """Pays for a value's own length."""
    if isinstance(value, (str, _PLACES)):
        _spend(len(value))


def _weigh(value: Any) -> None:
    """Pays for looking at all of a value: its characters, and each place in nested containers."""
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, str):
            _spend(len(one))
        elif isinstance(one, _PLACES):
            _spend(1 + len(one))
            if isinstance(one, dict):
                todo.extend(one.keys())
                todo.extend(one.values())
            elif not isinstance(one, range):
                todo.extend(one)


def _count(value: Any) -> None:
    """Pays for each place in nested containers, so that none can hold itself many times over."""
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, (list, tuple, dict)):
            _spend(1 + len(one))
            todo.extend(one.values() if isinstance(one, dict) else one)


@pass_context
def _made(context: Context, value: Any) -> Any:
    """A value that an expression has made, paid for."""
    return _checked(value)


@pass_context
def _seen(context: Context, value: Any) -> Any:
    """A value that is going to be compared, paid for."""
    _weigh(value)
    return value


@pass_context
def _walk(context: Context, values: Iterable[Any], cost: int) -> Iterator[Any]:
    if isinstance(values, Undefined):
        return iter(values)
    return _paid(values, cost)


def _paid(values: Iterable[Any], cost: int) -> Iterator[Any]:
    for value in values:
        _spend(cost)
        yield value


@pass_context
def _joined(context: Context, parts: Sequence[Any]) -> str:
    """The parts of a `~` as one text."""
    texts = [_text(part) for part in parts]
    _spend(sum(map(len, texts)))
    return "".join(texts)


def _text(value: Any) -> str:
    """What a value is when printed."""
    if isinstance(value, str):
        return value
    if isinstance(value, Undefined) or value is None or isinstance(value, (bool, float)):
        return str(value)
    if isinstance(value, int):
        return str(_small(value))
    if isinstance(value, (list, tuple, dict)):
        _weigh(value)
        return _printed(value)
    raise SecurityError(f"it prints a {type(value).__name__}")


def _printed(value: Any) -> str:
    """Python's writing of plain values, as a template prints a list; raises SecurityError for anything else in it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_printed(k)}: {_printed(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_printed, value)) + "]"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_printed, value)) + ("," if len(value) == 1 else "") + ")"
    return repr(value) if isinstance(value, str) else _text(value)


def _checked(made: Any) -> Any:
    """What a step has made, paid for."""
    if isinstance(made, str):
        _spend(len(made))
    elif isinstance(made, int):
        _small(made)
    else:
        _count(made)
    return made


def _small(number: int) -> int:
    if number.bit_length() > 4096:
        raise TemplateRuntimeError("a number of more than 4096 bits")
    return number


def _finalize(value: Any) -> str:
    text = _text(value)
    _spend(len(text))
    return text


@pass_context
def _replace(context: Context, text: str, old: str, new: str, count: int = -1) -> str:
    return _replaced(_text(text), _text(old), _text(new), -1 if count is None else count)


def _replaced(text: str, old: str, new: str, count: int = -1) -> str:
    found = text.count(old)
    found = min(found, count) if count >= 0 else found
    _spend(STEP + 2 * len(text) + max(0, found * (len(new) - len(old))))
    return text.replace(old, new, count)


@pass_context
def _join(context: Context, values: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    if attribute is not None:
        values = (context.environment.getattr(value, attribute) for value in _paid(values, STEP))
    return _strung(_text(d), [_text(value) for value in values])


def _strung(between: str, parts: Sequence[str]) -> str:
    _spend(STEP + sum(map(len, parts)) + len(parts) * (1 + len(between)))
    return between.join(parts)


@pass_context
def _indent(context: Context, text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    pad = len(width) if isinstance(width, str) else width
    _spend(STEP + len(text) + (1 + text.count("\n")) * max(0, pad))
    return filters.do_indent(text, width, first, blank)


@pass_context
def _tojson(
    context: Context, value: Any, ensure_ascii: bool = False, indent: int | None = None,
    separators: tuple[str, str] | None = None, sort_keys: bool = False,
) -> str:
    """JSON without HTML escapes, as Hugging Face's templates expect."""
    _weigh(value)
    if isinstance(indent, int) and not 0 <= indent <= 16:
        raise TemplateRuntimeError(f"tojson(indent={indent})")
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    _spend(len(text))
    return text


def _priced(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test of jinja2's that pays for what it reads and what it makes.

    What jinja2 would make one by one as it is asked for is made at once, so that a chain of filters is paid for at each
    link; it is handed on as an iterator all the same, which is true though empty and can be read only once.
    """
    look = _weigh if name in _DEEP else _glance
    kind = getattr(getattr(function, "jinja_pass_arg", None), "name", "")

    @pass_context
    def paid(context: Context, value: Any, *args: Any, **named: Any) -> Any:
        _spend(STEP)
        for read in (value, *args, *named.values()):
            look(read)
        if (steps := _steps(name, args, named)) and not isinstance(value, Undefined):
            value = _paid(value, STEP * steps)
        first = {"context": (context,), "eval_context": (context.eval_ctx,), "environment": (context.environment,)}
        made = function(*first.get(kind, ()), value, *args, **named)
        return iter(_checked(list(_paid(made, STEP)))) if isinstance(made, Iterator) else _checked(made)

    return paid


def _steps(name: str, args: Sequence[Any], named: Mapping[str, Any]) -> int:
    """How many steps a filter takes to an attribute of each item ('a.0.b' has three); 0 if it looks at none."""
    if name not in _ATTRIBUTE:
        return 0
    place = _ATTRIBUTE[name]
    attribute = named.get("attribute", args[place] if place is not None and place < len(args) else None)
    if isinstance(attribute, str):
        return 1 + attribute.count(".") + attribute.count(",")
    return 0 if attribute is None else 1


class _Paying(NodeTransformer):
    """Puts a price on the parts of a template that can be repeated or can grow."""

    def generic_visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        node = super().generic_visit(node, *args, **kwargs)
        match node:
            case nodes.Filter(name=str(name)) if name.startswith("_"):  # ours, added above nodes that were visited
                raise SecurityError(f"no filter named {name!r:.80}")
            case nodes.For():
                node.iter = _call(node.iter, "_walk", nodes.Const(self._price(node.body, node.test)))
            case nodes.Macro() | nodes.CallBlock() | nodes.Block():
                price = _call(nodes.Const(""), "_price", nodes.Const(self._price(node.body)))
                node.body.insert(0, nodes.ExprStmt(price).set_lineno(node.lineno, override=True))
            case nodes.Concat():
                return _call(nodes.List(node.nodes), "_joined").set_lineno(node.lineno, override=True)
            case nodes.List() | nodes.Dict() | nodes.Tuple(ctx="load") | nodes.Getitem(arg=nodes.Slice()):
                return _call(node, "_made")
            case nodes.AssignBlock():
                node.filter = _call(node.filter, "_made")
            case nodes.Compare():
                sides = [node.expr, *(operand.expr for operand in node.ops)]
                orders = any(operand.op not in ("eq", "ne") for operand in node.ops)
                if orders or not any(isinstance(side, nodes.Const) for side in sides):
                    node.expr = _call(node.expr, "_seen")
                    for operand in node.ops:
                        operand.expr = _call(operand.expr, "_seen")
        return node

    @staticmethod
    def _price(body: Sequence[nodes.Node], *more: nodes.Node | None) -> int:
        """What passing once through `body` costs at most: its expressions, statements and fixed texts."""
        price, todo = STEP, [*body, *(node for node in more if node is not None)]
        while todo:
            match node := todo.pop():
                case nodes.TemplateData(data=str(text)) | nodes.Const(value=str(text)):
                    price += len(text)
                case nodes.Stmt() | nodes.Call() | nodes.Filter() | nodes.Compare():
                    price += STEP
            todo.extend(node.iter_child_nodes())
        return price


def _call(node: Any, name: str, *args: nodes.Expr) -> nodes.Filter:
    made = nodes.Filter(node, name, list(args), [], None, None)
    return made if node is None else made.set_lineno(node.lineno, override=True)  # type: ignore[return-value]


class _Generation(Extension):
    """`{% generation %}` … `{% endgeneration %}` writes what is inside; masks are found without it."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Paying().visit(super()._parse(source, name, filename))
        return tree.set_environment(self)  # type: ignore[return-value]

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is dict and attribute in obj and not hasattr(dict, attribute):
            return obj[attribute]  # what the sandbox comes to as well, by a longer way
        return super().getattr(obj, attribute)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, names in METHODS.items():
            if isinstance(obj, kind):
                return attr in names
        return not isinstance(obj, (int, float, range)) and super().is_safe_attribute(obj, attr, value)

    def call_filter(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """What `map` calls for each item."""
        if name.startswith("_"):
            raise SecurityError(f"no filter named {name!r:.80}")
        return super().call_filter(name, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        return None  # str.format is refused like every other method that is not in METHODS

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _spend(STEP)
        for value in (*args, *kwargs.values()):
            _glance(value)
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            _spend(len(owner))
            if __obj.__name__ == "replace":
                return _replaced(owner, *args)
            if __obj.__name__ == "join":
                return _strung(owner, list(*args))
        return _checked(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, (str, bytes)):
            raise SecurityError("text % values; join the parts with ~")
        if operator == "**":
            whole = isinstance(left, int) and isinstance(right, int)
            if (whole and (right > 64 or left.bit_length() > 64)) or not isinstance(right, (int, float)):
                raise TemplateRuntimeError(f"a power of {str(right)[:20]}")
        if operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, (str, list, tuple)) and isinstance(other, int):
                    _spend(len(one) * max(0, other))
        if operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
            _spend(len(left) + len(right))
        return _checked(super().call_binop(context, operator, left, right))


@pass_context
def _price(context: Context, value: Any, cost: int) -> Any:
    _spend(cost)
    return value


def _raise_exception(message: Any) -> None:
    raise TemplateError(str(message))


def _strftime_now(form: str) -> str:
    """The time as `form` says; SOURCE_DATE_EPOCH, where it is set, is the time, so that a run can be repeated."""
    if len(form) > 100:
        raise TemplateRuntimeError("strftime_now: a form of more than 100 characters")
    fixed = os.environ.get("SOURCE_DATE_EPOCH")
    return (datetime.fromtimestamp(int(fixed), UTC) if fixed else datetime.now()).strftime(form)


@functools.cache
def _environment() -> _Environment:
    made = _Environment(
        trim_blocks=True, lstrip_blocks=True, finalize=_finalize, optimized=False,
        extensions=["jinja2.ext.loopcontrols", _Generation])
    made.filters = {name: _priced(name, filters.FILTERS[name]) for name in FILTERS} | {
        "replace": _replace, "join": _join, "indent": _indent, "tojson": _tojson, "_made": _made, "_seen": _seen,
        "_walk": _walk, "_joined": _joined, "_price": _price}
    known: Mapping[str, Any] = tests.TESTS
    made.tests = {name: _priced(name, test) for name, test in known.items()}
    del made.globals["lipsum"]
    made.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    return made

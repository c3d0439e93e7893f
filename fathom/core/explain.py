"""From plain values to settings, and the words for what is wrong: path, value, what is allowed, what to write."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from enum import Enum
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from fathom.core.config import S, Settings, kind_of, plain, show
from fathom.core.errors import UsageError

_OWN_CHECKS = {"value_error", "assertion_error"}  # what pydantic calls an error raised by a settings class
_LONGEST_NAME = 120  # characters of a name that are shown
_SHOWN = 20  # problems, or names of settings, listed before the rest is only counted


def build(cls: type[S], values: Mapping[str, Any], where: str) -> S:
    """See `fathom.core.config.build`."""
    if isinstance(values, Settings) or not isinstance(values, Mapping):
        raise UsageError(f"{where}: {kind_of(values)}; must be a mapping of settings to values; write name: value")
    problems: list[str] = []
    named = _names(cls, values, None, "", problems)
    settings = None
    try:
        settings = cls.model_validate(named)
    except ValidationError as error:
        # A class's own check speaks once its settings are sound by themselves, as within pydantic.
        problems += _translated(cls, named, error, own=not problems)
    except UsageError as error:  # such a check, raising in our own words
        problems.append(str(error))
    if settings is not None and not problems:
        return settings
    problems = list(dict.fromkeys(problems))
    if len(problems) == 1:
        raise UsageError(f"{where}: {problems[0]}")
    more = [f"… and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
    lines = "\n  ".join(problems[:_SHOWN] + more)
    raise UsageError(f"{where}: {len(problems)} settings to correct\n  {lines}")


# Names: aliases, elsewhere, unknown keys, at every depth.


def _names(
    cls: type[Settings], values: Mapping[str, Any], default: Settings | None, path: str, problems: list[str]
) -> dict[str, Any]:
    """`values` under the class's own names at every depth; what has no name is left out and put into `problems`.

    Where `default` stands in the place of the class's own defaults (`optim: AdamW = AdamW(lr=1e-6)`), it fills what was
    not given: setting `optim.betas` does not bring back the class's lr.
    """
    named: dict[str, Any] = {}
    given: dict[str, str] = {}  # our name -> the name that the user typed
    renamed = [key for key in values if key in cls.aliases and key not in cls.model_fields]
    for key in [key for key in values if key not in renamed] + renamed:
        if key in cls.model_fields:
            named[key], given[key] = values[key], key
        elif key in renamed:
            _rename(named, given, key, cls.aliases[key], values[key], path, problems)
        elif key in cls.elsewhere:
            problems.append(f"{path}{key}: {cls.elsewhere[key]}")
        else:
            problems.append(_unknown(cls, str(key), path))
    for key, value in named.items():
        field = cls.model_fields[key]
        below = getattr(default, key) if default is not None else _default(field)
        named[key] = _within(field.annotation, value, below, f"{path}{key}", problems)
    if default is not None:
        named = {name: getattr(default, name) for name in cls.model_fields} | named
    return named


def _rename(
    named: dict[str, Any], given: dict[str, str], key: str, target: str, value: Any, path: str, problems: list[str]
) -> None:
    at, *parents, leaf = named, *target.split(".")
    for parent in parents:
        below = at.get(parent, {})
        if not isinstance(below, Mapping):
            problems.append(f"{path}{key}: stands for {path}{target}, but {path}{parent} is {show(below)}; keep one")
            return
        at[parent] = below = dict(below)  # the caller's mapping stays as it is
        at = below
    if leaf in at:
        other = given.get(target, target)
        problems.append(f"{path}{key} and {path}{other} name the same setting; keep one of them")
        return
    at[leaf], given[target] = value, key


def _within(annotation: Any, value: Any, default: Any, path: str, problems: list[str]) -> Any:
    """`value` with the names inside it put right, and refused where pydantic would read it as something else."""
    options = list(_options(annotation))
    if isinstance(value, Mapping):
        cls = _meant([o for o in options if isinstance(o, type) and issubclass(o, Settings)], value, default)
        if cls is not None:
            return _names(cls, value, default if type(default) is cls else None, f"{path}.", problems)
        for option in options:
            if _is_origin(option, Mapping) and len(get_args(option)) == 2:
                inner = get_args(option)[1]
                return {key: _within(inner, item, None, f"{path}.{key}", problems) for key, item in value.items()}
    elif isinstance(value, (list, tuple)):
        for option in options:
            if _is_origin(option, Sequence) or get_origin(option) in (set, frozenset):
                inner = get_args(option)
                each = inner if get_origin(option) is tuple and inner[-1:] != (Ellipsis,) else inner[:1] * len(value)
                if len(each) == len(value):
                    pairs = enumerate(zip(each, value, strict=True))
                    return [_within(kind, item, None, f"{path}.{index}", problems) for index, (kind, item) in pairs]
    elif isinstance(value, bool) and _reads_as_number(options, value):
        # pydantic would read true as 1; no one who writes `steps: true` means one step.
        problems.append(f"{path}={show(value)}: must be {_allowed(annotation)}; write a number")
        return 1
    return value


def _meant(classes: Sequence[type[Settings]], value: Mapping[str, Any], default: Any) -> type[Settings] | None:
    """The one class a mapping is for: the only one whose fixed fields agree with it, or the default's if several do."""
    agreeing = [cls for cls in classes if len(classes) == 1 or _tags_agree(cls, value)]
    if len(agreeing) > 1:
        agreeing = [cls for cls in agreeing if type(default) is cls]
    return agreeing[0] if len(agreeing) == 1 else None


def _tags_agree(cls: type[Settings], value: Mapping[str, Any]) -> bool:
    for name, field in cls.model_fields.items():
        tags = _literals(field.annotation)
        if tags and name in value and value[name] not in tags:
            return False
    return True


def _unknown(cls: type[Settings], key: str, path: str) -> str:
    if len(key) > _LONGEST_NAME:
        return f"{path}{key[:_LONGEST_NAME]}…: no such setting; remove it, or correct the name"
    here = {**dict.fromkeys(cls.model_fields), **dict.fromkeys(cls.aliases), **dict.fromkeys(cls.elsewhere)}
    deeper = {name.rpartition(".")[2]: name for name, *_ in reversed(describe(cls)) if "." in name}
    if key in deeper:
        return f"{path}{key}: no such setting; did you mean {path}{deeper[key]}?"
    near = get_close_matches(key, here, 1) or get_close_matches(key, deeper, 1, cutoff=0.8)
    if near:
        name = near[0] if near[0] in cls.model_fields else cls.aliases.get(near[0], deeper.get(near[0], near[0]))
        return f"{path}{key}: no such setting; did you mean {path}{name}?"
    names = list(cls.model_fields)
    listed = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return (
        f"{path}{key}: no such setting; there are {listed}" if names else f"{path}{key}: takes no settings; remove it"
    )


# Values: pydantic's findings in our words.


def _translated(cls: type[Settings], values: Mapping[str, Any], error: ValidationError, own: bool) -> list[str]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for item in error.errors(include_url=False):
        if not own and item["type"] in _OWN_CHECKS:
            continue
        found.setdefault(_path(item["loc"], values, item["type"]), []).append(item)
    lines = []
    for path, items in found.items():
        deeper = any(other.startswith(f"{path}.") for other in found if path)
        if deeper and all(isinstance(item["input"], Mapping) for item in items):
            continue  # the text or number alternative of a union whose mapping alternative is explained below
        lines += _lines(cls, path, items)
    return lines


def _path(loc: Sequence[int | str], values: Any, kind: str) -> str:
    """The user's path of a finding: pydantic's location without the names of union members it also puts there."""
    parts, at = [], values
    for index, step in enumerate(loc):
        last = index == len(loc) - 1
        if isinstance(at, Mapping) and (step in at or (last and kind == "missing")):
            parts.append(str(step))
            at = at.get(step)
        elif isinstance(at, (list, tuple)) and isinstance(step, int):
            parts.append(str(step))
            at = at[step] if step < len(at) else None
        elif step == "[key]":
            break
    return ".".join(parts)


def _lines(cls: type[Settings], path: str, items: Sequence[Mapping[str, Any]]) -> list[str]:
    field = _field(cls, path)
    first = items[0]
    value = f"{path}={show(first['input'])}" if path else ""
    kinds = {item["type"] for item in items}
    if kinds == {"missing"}:
        allowed = _allowed(field.annotation) if field else "a value"
        about = f" ({field.description})" if field and field.description else ""
        return [f"{path}: required and not given{about}; write {path}: with {allowed}"]
    if kinds <= _OWN_CHECKS:
        # A class's own check speaks for itself and says its own values.
        own = [str(item["ctx"]["error"]) if item.get("ctx") else item["msg"] for item in items]
        return [text if not path or text.startswith(path.rpartition(".")[2]) else f"{path}: {text}" for text in own]
    if len(items) == 1:
        context = first.get("ctx", {})
        bound = _bound(context)
        if bound:
            return [f"{value}: must be {bound}; set {path} {bound}"]
        match first["type"]:
            case "finite_number":
                return [f"{value}: must be a finite number; write one that is"]
            case "union_tag_invalid":
                tag, tags = context["tag"], [text.strip("' ") for text in context["expected_tags"].split(",")]
                name = context["discriminator"].strip("'")
                return [f"{path}.{name}={tag}: must be one of {', '.join(tags)}{_near(tag, tags)}"]
            case "union_tag_not_found":
                name = context["discriminator"].strip("'")
                return [
                    f"{path}: {name} is required and not given; write {path}.{name}: with {_allowed_tags(field, name)}"
                ]
            case "int_from_float":
                return [f"{value}: must be a whole number; round it up or down"]
            case "string_pattern_mismatch":
                return [f"{value}: must match {context['pattern']}; correct it"]
            case "too_short" | "too_long" | "string_too_short" | "string_too_long":
                low, high = context.get("min_length"), context.get("max_length")
                bound = f"at least {low}" if low is not None else f"at most {high}"
                unit = "characters" if first["type"].startswith("string") else "items"
                return [f"{value}: must have {bound} {unit}; correct its length"]
    allowed = _allowed(field.annotation) if field else " or ".join(dict.fromkeys(_expected(item) for item in items))
    choices = [str(tag) for tag in _literals(field.annotation)] if field else []
    near = _near(str(first["input"]), choices) if choices else ""
    if not near and isinstance(first["input"], (bool, int, float)) and "text" in allowed:
        near = f'; write {path}: "{show(first["input"])}" with quotes'
    return [f"{value}: must be {allowed}{near or f'; write {path}: {_example(field)}'}"]


def _bound(context: Mapping[str, Any]) -> str:
    signs = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"), ("multiple_of", "a multiple of"))
    return next((f"{sign} {context[name]:g}" for name, sign in signs if name in context), "")


def _expected(item: Mapping[str, Any]) -> str:
    words = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "list": "a list"}
    return words.get(item["type"].partition("_")[0]) or str(item["msg"]).removeprefix("Input should be ")


def _near(text: str, choices: Sequence[str]) -> str:
    near = get_close_matches(text, choices, 1)
    return f"; did you mean {near[0]}?" if near else ""


def _example(field: FieldInfo | None) -> str:
    if field is None or field.is_required():
        return "with such a value"
    return f"{show(_jsonable(_default(field)))}, the default"


def _default(field: FieldInfo) -> Any:
    """The value a field has when none is given; `...` when one must be."""
    return ... if field.is_required() else field.get_default(call_default_factory=True, validated_data={})


def _field(cls: type[Settings], path: str) -> FieldInfo | None:
    """The declaration behind a dotted path, where classes alone decide it (not inside mappings or lists)."""
    field = None
    for part in path.split("."):
        if not (isinstance(cls, type) and part in cls.model_fields):
            return None
        field = cls.model_fields[part]
        inner = [o for o in _options(field.annotation) if isinstance(o, type) and issubclass(o, Settings)]
        cls = inner[0] if len(inner) == 1 else Settings
    return field


# Types in words.


def _options(annotation: Any) -> Iterator[Any]:
    """The alternatives of an annotation: unions, Optional, Annotated, type variables and aliases opened."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _options(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _options(part)
    elif isinstance(annotation, TypeVar) and annotation.__bound__ is not None:
        yield from _options(annotation.__bound__)
    elif hasattr(annotation, "__value__"):  # type X = … of Python 3.12
        yield from _options(annotation.__value__)
    else:
        yield annotation


def _is_origin(option: Any, kind: type) -> bool:
    origin = get_origin(option)
    return isinstance(origin, type) and issubclass(origin, kind)


def _literals(annotation: Any) -> list[Any]:
    """The fixed values an annotation allows, through Literal and enumerations; empty where it allows others too."""
    values: list[Any] = []
    for option in _options(annotation):
        if get_origin(option) is Literal:
            values += get_args(option)
        elif isinstance(option, type) and issubclass(option, Enum):
            values += [member.value for member in option]
    return values


def _reads_as_number(options: Sequence[Any], value: bool) -> bool:
    fixed = any(get_origin(option) is Literal and any(value is tag for tag in get_args(option)) for option in options)
    return bool not in options and not fixed and any(option in (int, float) for option in options)


def _allowed(annotation: Any) -> str:
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
    parts: list[str] = []
    for option in _options(annotation):
        origin = get_origin(option)
        if option in words:
            parts.append(words[option])
        elif origin is Literal:
            values = [show(value) for value in get_args(option)]
            parts.append(values[0] if len(values) == 1 else f"one of {', '.join(values)}")
        elif isinstance(option, type) and issubclass(option, Enum):
            parts.append(f"one of {', '.join(show(member.value) for member in option)}")
        elif isinstance(option, type) and issubclass(option, Settings):
            parts.append("a mapping of settings")
        elif option is tuple or origin in (list, tuple, set, frozenset) or _is_origin(option, Sequence):
            inner = [kind for kind in get_args(option) if kind is not Ellipsis]
            fixed = origin is tuple and Ellipsis not in get_args(option)
            each = " and ".join(_allowed(kind) for kind in inner) if fixed else " or ".join(map(_allowed, inner))
            parts.append(f"a list of {each}" if each else "a list")
        elif option is dict or _is_origin(option, Mapping):
            parts.append("a mapping of names to values")
        elif option is Any:
            parts.append("any value")
        else:
            name = getattr(option, "__name__", str(option))
            parts.append({"Path": "a path"}.get(name, name))
    return " or ".join(dict.fromkeys(parts))


def _allowed_tags(field: FieldInfo | None, name: str) -> str:
    options = _options(field.annotation) if field else iter(())
    fields = [o.model_fields.get(name) for o in options if isinstance(o, type) and issubclass(o, Settings)]
    tags = [show(tag) for found in fields if found is not None for tag in _literals(found.annotation)]
    return f"one of {', '.join(tags)}" if tags else "a value"


# Help.


def describe(cls: type[Settings], prefix: str = "", given: Settings | None = None) -> list[tuple[str, str, str, str]]:
    """See `fathom.core.config.describe`. `given` are the values that stand for the class's own defaults."""
    rows: dict[str, tuple[str, str, str, str]] = {}
    for name, field in cls.model_fields.items():
        inner = [o for o in _options(field.annotation) if isinstance(o, type) and issubclass(o, Settings)]
        default = getattr(given, name) if given is not None else _default(field)
        text = "required" if default is ... else show(_jsonable(default))
        nested = not isinstance(default, Settings) or inner == []
        if nested or len(inner) > 1:
            row = (f"{prefix}{name}", _type(field.annotation), text, field.description or "")
            rows.setdefault(row[0], row)
        for option in inner:
            values = default if isinstance(default, option) else None
            for row in describe(option, f"{prefix}{name}.", values):
                rows.setdefault(row[0], row)
    return list(rows.values())


def _type(annotation: Any) -> str:
    names = {str: "text", int: "integer", float: "number", bool: "true|false", type(None): "null", Any: "any"}
    parts = []
    for option in _options(annotation):
        origin = get_origin(option)
        if origin is Literal:
            parts += [str(value) for value in get_args(option)]
        elif origin in (list, tuple, set, frozenset) or _is_origin(option, Sequence):
            inner = [kind for kind in get_args(option) if kind is not Ellipsis]
            joiner = ", " if origin is tuple and Ellipsis not in get_args(option) else "|"
            parts.append(f"[{joiner.join(map(_type, inner))}{'' if joiner == ', ' else ', …'}]")
        elif _is_origin(option, Mapping):
            parts.append(f"{{name: {_type(get_args(option)[1])}}}")
        elif isinstance(option, type) and issubclass(option, Enum):
            parts += [str(member.value) for member in option]
        elif isinstance(option, type) and issubclass(option, Settings):
            parts.append("settings")
        else:
            parts.append(names.get(option) or getattr(option, "__name__", str(option)).lower())
    return "|".join(dict.fromkeys(parts))


def _jsonable(value: Any) -> Any:
    if isinstance(value, Settings):
        return plain(value)
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_jsonable(item) for item in value]
    return value.value if isinstance(value, Enum) else value

"""The solution's process: the solution as a module, and answers to what the tests ask about it."""

from __future__ import annotations

import sys
from typing import Any

from fathom.judge.code.guest.messages import Codec, Unfit, receive, send, silent, taken

LONGEST_CHAIN = 100_000  # nodes of a linked list or a tree


class ListNode:
    """A linked list's node as LeetCode defines it."""

    def __init__(self, val: Any = 0, next: Any = None) -> None:
        self.val, self.next = val, next


class TreeNode:
    """A binary tree's node as LeetCode defines it."""

    def __init__(self, val: Any = 0, left: Any = None, right: Any = None) -> None:
        self.val, self.left, self.right = val, left, right


def linked(values: list[Any] | None, kind: Any = ListNode) -> Any:
    """A linked list of the values; None for none."""
    first = None
    for value in reversed(values or []):
        node = kind(value)
        node.next, first = first, node
    return first


def unlinked(node: Any) -> list[Any]:
    """The values of a linked list."""
    values: list[Any] = []
    while node is not None:
        if len(values) == LONGEST_CHAIN:
            raise Unfit("is an endless list")
        values.append(node.val)
        node = node.next
    return values


def grown(values: list[Any] | None, kind: Any = TreeNode) -> Any:
    """A binary tree of the values level by level, None where a child is missing, as LeetCode writes it."""
    if not values or values[0] is None:
        return None
    rest = iter(values)
    root = kind(next(rest))
    level = [root]
    for node in level:
        for side in ("left", "right"):
            value = next(rest, None)
            setattr(node, side, None if value is None else kind(value))
            if value is not None:
                level.append(getattr(node, side))
    return root


def level_order(root: Any) -> list[Any]:
    """The values of a binary tree level by level, without the None at the end."""
    values: list[Any] = []
    level = [root]
    for node in level:
        if len(level) > 2 * LONGEST_CHAIN:
            raise Unfit("is an endless tree")
        values.append(None if node is None else node.val)
        if node is not None:
            level += [node.left, node.right]
    while values and values[-1] is None:
        values.pop()
    return values


def data_of(thing: Any) -> Any:
    """What can be read of an object, as data: a dict of a mapping, a list of what else is iterable; None of others."""
    kind = type(thing)
    if isinstance(thing, type) or not (hasattr(kind, "__iter__") or hasattr(kind, "__getitem__")):
        return None
    mapping = hasattr(kind, "keys") and hasattr(kind, "__getitem__")
    try:
        source = iter(thing.keys() if mapping else thing)
    except TypeError:  # a re.Match has items and cannot be iterated over
        return None
    items, cut = taken(source)
    if cut:
        raise Unfit("is endless")
    return {key: thing[key] for key in items} if mapping else items


class Server:
    """Answers what the tests ask about a solution."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}
        self._things: list[Any] = []
        self._numbers: dict[int, int] = {}
        self.codec = Codec(self._keep, self._things.__getitem__, serves=True)

    def _keep(self, thing: Any) -> Any:
        """The number of a thing, or data in its place: what a function returns is read once, and here."""
        data = None if id(thing) in self._numbers else data_of(thing)
        return self._number(thing) if data is None else data

    def _number(self, thing: Any) -> int:
        if id(thing) not in self._numbers:  # kept for good, so that no other thing ever has its id
            self._numbers[id(thing)] = len(self._things)
            self._things.append(thing)
        return self._numbers[id(thing)]

    def answer(self, asked: str, parts: list[Any]) -> list[Any]:
        """How it went and what came of it."""
        if asked == "name":
            missing = parts[0] not in self.names
            return ["missing"] if missing else ["value", self.codec.encode(self.names[parts[0]])]
        if asked == "solve":
            function = self._function(parts[0])
            return ["missing"] if function is None else ["value", self.codec.encode(self._solve(function, *parts[1:]))]
        given = [self.codec.decode(part) for part in parts]
        value = self._do(asked, *given)
        if asked == "call in place":
            return ["value", self.codec.encode((value, given[1]))]
        return ["value", self.codec.encode(value)]

    def _do(self, asked: str, thing: Any, *given: Any) -> Any:
        if asked in ("call", "call in place"):
            args, kwargs = given
            value = thing(*args, **kwargs)
            if isinstance(thing, type) and thing.__module__ == "solution":  # an object to be used, were it iterable
                self._number(value)
            return value
        if asked == "set":
            return setattr(thing, *given)
        return str(thing) if asked == "str" else getattr(thing, *given)

    def _function(self, name: str) -> Any:
        """A function by name, or a method of a new Solution."""
        if name in self.names or "Solution" not in self.names:
            return self.names.get(name)
        return getattr(self.names["Solution"](), name, None)

    def _solve(self, function: Any, takes: list[str], gives: str, result: int | None, args: Any, kwargs: Any) -> Any:
        """The value of one case, or what its `result`-th argument is afterwards."""
        takes += [""] * len(args)
        given = [self._built(kind, arg) for kind, arg in zip(takes, self.codec.decode(args), strict=False)]
        value = function(*given, **self.codec.decode(kwargs))
        if result is not None:
            value, gives = given[result], takes[result]
        return self._unbuilt(gives, value)

    def _built(self, kind: str, value: Any) -> Any:
        if kind.startswith("list of "):
            return [self._built(kind.removeprefix("list of "), item) for item in value]
        if kind in ("ListNode", "TreeNode"):
            return (linked if kind == "ListNode" else grown)(value, self.names[kind])
        return value

    def _unbuilt(self, kind: str, value: Any) -> Any:
        if kind.startswith("list of "):
            return [self._unbuilt(kind.removeprefix("list of "), item) for item in value]
        if kind in ("ListNode", "TreeNode"):
            return unlinked(value) if kind == "ListNode" else level_order(value)
        return value


def serve(sources: list[str]) -> None:
    """Runs the sources as one module called solution, then answers until nobody asks any more."""
    server = Server()
    module = type(sys)("solution")
    sys.modules["solution"] = module
    module.__dict__.update(ListNode=ListNode, TreeNode=TreeNode)
    sys.stdout = sys.stderr = silent()
    for source in sources:
        exec(compile(source, "solution.py", "exec", dont_inherit=True), module.__dict__)
    server.names = module.__dict__
    while True:
        try:
            number, asked, *parts = receive()
        except EOFError:
            return
        try:
            send([number, *server.answer(asked, parts)])
        except MemoryError:
            raise
        except Unfit as error:
            send([number, "unfit", str(error)])
        except Exception as error:
            send([number, "raised", *_said(error)])


def _said(error: Exception) -> tuple[str, str]:
    """The nearest builtin type of an exception and its message."""
    kind = next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
    try:
        return kind.__name__, str(error)[:1000]
    except Exception:  # its own __str__ may do anything
        return kind.__name__, ""

"""How a solution and its tests talk: values as JSON, one message for each question and each answer.

`serve` runs in the solution's process, which belongs to whoever wrote the solution: what it sends is data to be
doubted. `examine` runs in the tests' process, where no line of the solution is ever executed.

A message is four bytes of length and JSON: [number, what is asked, …] there, [that number, how it went, …] back.
The number is random, so that nothing can be answered before it was asked.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol

SOCKET = 3
LARGEST = 4 << 20  # bytes of a message
DEEPEST = 100  # containers in one another
_PLAIN_INT = 1 << 63
_TAGS: tuple[tuple[Any, str], ...] = ((list, "l"), (tuple, "t"), (set, "s"), (frozenset, "f"))
_TYPES: dict[str, Any] = {
    kind.__name__: kind for kind in (bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict, object)
}
_EXACT = {  # by module, the types whose values travel as the arguments that build them again
    "datetime": ("date", "time", "datetime", "timedelta"),
    "decimal": ("Decimal",),
    "fractions": ("Fraction",),
}


class Unfit(Exception):
    """A value that is not carried, or bytes that are none."""


class Asks(Protocol):
    """What a Handle needs of the tests' end of the line."""

    def ask(self, asked: str, *parts: Any) -> Any:
        """The answer of the solution's process."""
        ...

    def call(self, function: Handle, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The value of a call there."""
        ...


class Handle:
    """In the tests' process, a thing that lives in the solution's: a function, a class, an object of its own.

    It is equal to itself and to nothing else, whatever the solution's `__eq__` says.
    """

    __slots__ = ("__calls", "__number")

    def __init__(self, calls: Asks, number: int) -> None:
        self.__calls, self.__number = calls, number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__calls.call(self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what copy and pickle look for, which must not be the solution's
            raise AttributeError(name)
        return self.__calls.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_Handle__"):
            object.__setattr__(self, name, value)
        else:
            self.__calls.ask("set", self, name, value)

    def __len__(self) -> int:
        return int(self.__calls.ask("len", self))

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, key: Any) -> Any:
        return self.__calls.ask("item", self, key)

    def __iter__(self) -> Iterator[Any]:
        rows = self.__calls.ask("iter", self)
        while True:
            more = self.__calls.ask("next", rows)
            if not more:
                return
            yield more[0]

    def __str__(self) -> str:
        return str(self.__calls.ask("str", self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Handle) and number_of(other) == self.__number

    def __hash__(self) -> int:
        return hash(self.__number)


def number_of(handle: Handle) -> int:
    """The number under which the solution's process knows the thing."""
    return int(object.__getattribute__(handle, "_Handle__number"))


class Codec:
    """Values to JSON and back. `keep` gives a number to what has no form of its own; `find` makes it a thing again."""

    def __init__(
        self, keep: Callable[[Any], int] | None = None, find: Callable[[int], Any] | None = None, arrays: bool = False
    ) -> None:
        self._keep, self._find, self._arrays = keep, find, arrays

    def encode(self, value: Any, depth: int = 0) -> Any:
        """The value as JSON; Unfit where it has no form, or nests too deep."""
        if value is None or type(value) in (bool, str, float):
            return value
        if isinstance(value, int):
            plain = int(value)
            return plain if -_PLAIN_INT < plain < _PLAIN_INT else ["i", format(plain, "x")]
        if depth >= DEEPEST:
            raise Unfit("nests too deep")
        for base, tag in _TAGS:
            if isinstance(value, base):
                return [tag, *(self.encode(item, depth + 1) for item in base.__iter__(value))]
        if isinstance(value, dict):
            flat = [part for pair in dict.items(value) for part in pair]
            return ["d", *(self.encode(part, depth + 1) for part in flat)]
        if isinstance(value, float):
            return float(value)
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, bytes | bytearray):
            return ["b", bytes(value).hex()]
        if isinstance(value, complex):
            return ["c", value.real, value.imag]
        if isinstance(value, Handle):
            return ["h", number_of(value)]
        if any(value is known for known in _TYPES.values()):
            return ["T", value.__name__]
        kind: type = type(value)
        if kind.__module__ == "numpy" and hasattr(value, "tolist"):
            return ["n", str(value.dtype), self.encode(value.tolist(), depth + 1)]
        if kind.__name__ in _EXACT.get(kind.__module__, ()):
            return ["x", kind.__module__, kind.__name__, self.encode(value.__reduce__()[1], depth + 1)]
        if self._keep is None:
            raise Unfit(f"{kind.__name__} is not carried")
        return ["h", self._keep(value)]

    def decode(self, code: Any, depth: int = 0) -> Any:
        """The value that JSON stands for; Unfit where it stands for none."""
        if code is None or isinstance(code, bool | int | float | str):
            return code
        if depth > DEEPEST or not isinstance(code, list) or not code or not isinstance(code[0], str):
            raise Unfit("not a value")
        tag, parts = code[0], code[1:]
        try:
            return self._decode(tag, parts, depth + 1)
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise Unfit("not a value") from error

    def _decode(self, tag: str, parts: list[Any], depth: int) -> Any:
        for base, name in _TAGS:
            if tag == name:
                return base(self.decode(part, depth) for part in parts)
        if tag == "d":
            values = [self.decode(part, depth) for part in parts]
            return dict(zip(values[::2], values[1::2], strict=True))
        if tag == "h" and self._find is not None and type(parts[0]) is int:
            return self._find(parts[0])
        if tag == "n":
            return self._array(parts[0], self.decode(parts[1], depth))
        if tag == "x":
            return _rebuilt(parts[0], parts[1], self.decode(parts[2], depth))
        if tag in _SINGLE and all(isinstance(part, str | int | float) for part in parts):
            return _SINGLE[tag](*parts)
        raise Unfit("not a value")

    def _array(self, kind: str, rows: Any) -> Any:
        """An array for the solution; for the tests its rows as lists, of which `==` says yes or no."""
        if not self._arrays:
            return rows
        import numpy

        return numpy.array(rows, dtype=kind)


_SINGLE: dict[str, Callable[..., Any]] = {
    "i": lambda digits: int(digits, 16),
    "b": bytes.fromhex,
    "c": complex,
    "T": _TYPES.__getitem__,
}


def _rebuilt(module: str, name: str, parts: Any) -> Any:
    if name not in _EXACT.get(module, ()) or not isinstance(parts, tuple):
        raise Unfit("not a value")
    return getattr(__import__(module), name)(*parts)


def send(message: Any) -> None:
    """Writes one message; Unfit where it is too large, OSError where nobody listens."""
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > LARGEST:
        raise Unfit("is too large")
    data = len(data).to_bytes(4, "big") + data
    while data:
        data = data[os.write(SOCKET, data) :]


def receive() -> Any:
    """The next message, or EOFError; Unfit where it is too large or no JSON."""
    size = int.from_bytes(_exactly(4), "big")
    if size > LARGEST:
        raise Unfit("is too large")
    try:
        return json.loads(_exactly(size))
    except (ValueError, RecursionError) as error:
        raise Unfit("not JSON") from error


def _exactly(size: int) -> bytes:
    pieces = []
    while size:
        piece = os.read(SOCKET, min(size, 1 << 16))
        if not piece:
            raise EOFError
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


class _Nowhere(io.RawIOBase):
    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return len(data)


def silent() -> io.TextIOWrapper:
    """A standard output that keeps nothing: what is printed is no answer."""
    return io.TextIOWrapper(io.BufferedWriter(_Nowhere()), "utf-8", "backslashreplace")

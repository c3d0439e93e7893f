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
from collections import Counter, deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Protocol

SOCKET = 3
LARGEST = 32 << 20  # bytes of a message
LONGEST_READ = 100_000  # items of what can only be read by iterating over it
DEEPEST = 100  # containers in one another
MOST_COLLISIONS = 100  # hashable values of one hash: that many cost the square of their number to tell apart
LONGEST_NUMBER = 10_000  # digits of a Decimal or of either part of a Fraction
_PLAIN_INT = 1 << 63
_SCALARS = frozenset((type(None), bool, int, float, str))
_TAGS: tuple[tuple[Any, str], ...] = ((list, "l"), (tuple, "t"), (set, "s"), (frozenset, "f"))
_TYPES: dict[str, Any] = {
    kind.__name__: kind for kind in (bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict, object)
}
# what methods of plain data are called, which a thing that is returned in its place could answer as it likes
_OF_DATA = {name for kind in (*_TYPES.values(), range, deque) for name in dir(kind) if not name.startswith("_")}
_TIMES = ("date", "time", "datetime", "timedelta", "timezone")  # travel as the arguments that build them again


# Where a handle is from: a function's answer, which data may be expected to be; a class's, or an attribute; a class.
MADE_BY_FUNCTION, MADE_BY_CLASS, IS_CLASS = range(3)


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

    It can be called and has attributes and a text. It has no length, items or order, which the solution could tell
    anew each time, and is equal to itself and to nothing else. `made` says where it is from: what stands where data may
    be expected has none of the attributes that data have, either.
    """

    __slots__ = ("__calls", "__made", "__number")

    def __init__(self, calls: Asks, number: int, made: int = MADE_BY_CLASS) -> None:
        self.__calls, self.__number, self.__made = calls, number, made

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__calls.call(self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        # Names with two underscores are what copy and pickle look for, which must not be the solution's.
        if name.startswith("__") or (name in _OF_DATA and not self.__made):
            raise AttributeError(f"'Handle' object has no attribute {name!r}")
        return self.__calls.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_Handle__"):
            object.__setattr__(self, name, value)
        else:
            self.__calls.ask("set", self, name, value)

    def __str__(self) -> str:
        return str(self.__calls.ask("str", self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Handle) and number_of(other) == self.__number

    def __hash__(self) -> int:
        return hash(self.__number)


def number_of(handle: Handle) -> int:
    """The number under which the solution's process knows the thing."""
    return int(object.__getattribute__(handle, "_Handle__number"))


def made(handle: Handle) -> int:
    """Where the thing is from."""
    return int(object.__getattribute__(handle, "_Handle__made"))


class Rows:
    """In the tests' process, an iterator that a call returned: what it holds was read when it was returned.

    Unfit where it is begun again after its end, since a test that reads an answer twice would see nothing the second
    time; and at its end where it was `cut` there.
    """

    def __init__(self, items: list[Any], cut: bool) -> None:
        self._rest, self._cut, self._over = deque(items), cut, False

    def __iter__(self) -> Rows:
        if self._over:
            raise Unfit("is an iterator and was read twice")
        return self

    def __next__(self) -> Any:
        if self._rest:
            return self._rest.popleft()
        if self._cut:
            raise Unfit("is endless")
        self._over = True
        raise StopIteration


def taken(source: Iterable[Any]) -> tuple[list[Any], bool]:
    """The first items of what can be iterated over, and whether there were more."""
    items = list(islice(iter(source), LONGEST_READ + 1))
    return items[:LONGEST_READ], len(items) > LONGEST_READ


class Codec:
    """Values to JSON and back. `keep` gives a number, or data, for what has no form; `find` makes a number a thing.

    At the solution's end (`serves`) arrays and iterators are what they were; at the tests' end lists and Rows.
    """

    def __init__(
        self, keep: Callable[[Any], Any] | None = None, find: Callable[[int], Any] | None = None, serves: bool = False
    ) -> None:
        self._keep, self._find, self._serves = keep, find, serves

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
                items = list(base.__iter__(value))
                return [tag, *(items if _are_plain(items) else [self.encode(item, depth + 1) for item in items])]
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
        if kind.__module__ in ("datetime", "decimal", "fractions") and (parts := _parts(value, kind.__name__)):
            return ["x", kind.__name__, *(self.encode(part, depth + 1) for part in parts)]
        if isinstance(value, range):
            return ["r", *(self.encode(part) for part in (value.start, value.stop, value.step))]
        if isinstance(value, deque):
            return ["D", *(self.encode(item, depth + 1) for item in deque.__iter__(value))]
        if hasattr(kind, "__next__"):
            items, cut = taken(value)
            return ["I", cut, *(self.encode(item, depth + 1) for item in items)]
        if self._keep is None:
            raise Unfit(f"{kind.__name__} is not carried")
        kept = self._keep(value)
        return ["h", kept] if isinstance(kept, int) else self.encode(kept, depth)

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
                items = parts if set(map(type, parts)) <= _SCALARS else [self.decode(part, depth) for part in parts]
                return items if base is list else base(_sparse(items) if base in (set, frozenset) else items)
        if tag == "d":
            values = [self.decode(part, depth) for part in parts]
            return dict(zip(_sparse(values[::2]), values[1::2], strict=True))
        if tag == "h" and self._find is not None and type(parts[0]) is int:
            return self._find(parts[0])
        if tag == "n":
            return self._array(parts[0], self.decode(parts[1], depth))
        if tag == "x":
            return _rebuilt(parts[0], [self.decode(part, depth) for part in parts[1:]])
        if tag == "D":
            return deque(self.decode(part, depth) for part in parts)
        if tag == "r":
            ends = [self.decode(part, depth) for part in parts]
            len(rows := range(*ends))  # OverflowError where it is longer than anything can be
            return rows
        if tag == "I" and isinstance(parts[0], bool):
            items = [self.decode(part, depth) for part in parts[1:]]
            return iter(items) if self._serves else Rows(items, parts[0])
        if tag in _SINGLE and all(isinstance(part, str | int | float) for part in parts):
            return _SINGLE[tag](*parts)
        raise Unfit("not a value")

    def _array(self, kind: str, rows: Any) -> Any:
        """An array for the solution; for the tests its rows as lists, of which `==` says yes or no."""
        if not self._serves:
            return rows
        import numpy

        return numpy.array(rows, dtype=kind)


_SINGLE: dict[str, Callable[..., Any]] = {
    "i": lambda digits: int(digits, 16),
    "b": bytes.fromhex,
    "c": lambda real, imag: complex(real, imag),
    "T": _TYPES.__getitem__,
}


def _are_plain(items: list[Any]) -> bool:
    """Whether each is JSON as it stands: what a million numbers need not be asked one by one."""
    kinds = set(map(type, items))
    if kinds == {int}:
        return bool(min(items) > -_PLAIN_INT and max(items) < _PLAIN_INT)
    return kinds <= _SCALARS - {int}


def _sparse(keys: list[Any]) -> list[Any]:
    """The keys; Unfit where many were made to have one hash."""
    if len(keys) > MOST_COLLISIONS and max(Counter(map(hash, keys)).values()) > MOST_COLLISIONS:
        raise Unfit("not a value")
    return keys


def _parts(value: Any, name: str) -> tuple[Any, ...]:
    """What builds an exact value again, small and whole; empty where it is no such value."""
    if name in _TIMES:
        if name == "timezone":
            return (value.utcoffset(None),)
        return tuple(value.__reduce__()[1])
    if name == "Decimal":
        return (str(value),)
    return (value.numerator, value.denominator) if name == "Fraction" else ()


def _rebuilt(name: str, parts: list[Any]) -> Any:
    """The exact value, from parts that cost no more than they are long: Fraction("1e999999999") would take hours."""
    if name in _TIMES:
        import datetime

        if all(isinstance(part, int | bytes | datetime.timedelta | datetime.timezone) for part in parts):
            return getattr(datetime, name)(*parts)
    if name == "Decimal" and len(parts) == 1 and isinstance(parts[0], str) and len(parts[0]) <= LONGEST_NUMBER:
        import decimal

        return decimal.Decimal(parts[0])
    if name == "Fraction" and len(parts) == 2 and all(type(part) is int for part in parts):
        import fractions

        if max(part.bit_length() for part in parts) <= LONGEST_NUMBER * 10 // 3:
            return fractions.Fraction(*parts)
    raise Unfit("not a value")


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

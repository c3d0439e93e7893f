r"""What an answer is: a value, a list, an interval, an equation, words. `reading.read` makes them from text."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

from fathom.judge.answers.expressions import Node
from fathom.judge.answers.units import Unit
from fathom.judge.answers.values import value


@dataclass(frozen=True)
class Value:
    """One quantity. `tree` is None where we could not read `text`; `decimal`: it was written with a decimal point;
    `thing`: the name of what it counts."""

    text: str
    tree: Node | None
    unit: Unit | None = None
    decimal: bool = False
    base: int | None = None
    thing: str = ""


@dataclass(frozen=True)
class Words:
    """An answer in words, lower-case, without punctuation."""

    text: str


@dataclass(frozen=True)
class Time:
    """A time of day; `half` is a (before noon), p (after noon) or nothing where it was not said."""

    hour: int
    minute: int
    half: str = ""


@dataclass(frozen=True)
class Items:
    """Several answers. `fence` is their opening bracket: "(" a tuple, "[", "{" a set, "" a bare list."""

    fence: str
    items: tuple[Answer, ...]


@dataclass(frozen=True)
class Segment:
    """The real numbers between two ends; None is infinity. `low is high` for a single number."""

    low: Value | None
    high: Value | None
    has_low: bool
    has_high: bool


@dataclass(frozen=True)
class Reals:
    """A set of real numbers: the union of segments; `name` is the variable where one was given."""

    segments: tuple[Segment, ...]
    name: str = ""


@dataclass(frozen=True)
class Named:
    """`x = 5` with name x; `f(x) = x + 1` with name f(x); `x ∈ S`."""

    name: str
    answer: Answer


@dataclass(frozen=True)
class Record:
    """Several names with one answer each: `p = 5, q = 2`."""

    names: tuple[str, ...]
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Chain:
    """Members joined by relations that are no assignment and no set of numbers: `f(2) < f(1)`, `2x + y = 3`."""

    relations: tuple[str, ...]
    members: tuple[Answer, ...]


@dataclass(frozen=True)
class Matrix:
    """Rows of values; the kind of brackets around it means nothing, but bars would be a determinant."""

    rows: tuple[tuple[Answer, ...], ...]


@dataclass(frozen=True)
class Ratio:
    """`3 : 2`, two or more members."""

    members: tuple[Value, ...]


@dataclass(frozen=True)
class Residue:
    """`3 (mod 7)`; the answer in it may be a list."""

    answer: Answer
    modulus: Value


@dataclass(frozen=True)
class Cases:
    """Branches (value, condition) of a function defined by cases."""

    branches: tuple[tuple[Answer, Answer], ...]


Answer = Value | Words | Time | Items | Reals | Named | Record | Chain | Matrix | Ratio | Residue | Cases


def reals(answer: Answer) -> Reals | None:
    """The set of real numbers that an answer is, where it is one: `(1, 2)` as an interval, `{1, 2}`, a single value."""
    match answer:
        case Reals():
            return answer
        case Items("(" | "[" as fence, (first, second)):
            return interval((first, second), fence == "[", fence == "[")
        case Items("{", items) if all(isinstance(item, Value) for item in items):
            return Reals(tuple(Segment(item, item, True, True) for item in items if isinstance(item, Value)))
        case Value():
            return Reals((Segment(answer, answer, True, True),))
    return None


def interval(ends: tuple[Answer, ...], has_low: bool, has_high: bool) -> Reals | None:
    low, high = ends
    if isinstance(low, Value) and isinstance(high, Value):
        return Reals((segment(low, high, has_low, has_high),))
    return None


def segment(low: Value | None, high: Value | None, has_low: bool, has_high: bool) -> Segment:
    low = None if low is None or infinity(low) == -1 else low
    high = None if high is None or infinity(high) == 1 else high
    return Segment(low, high, has_low and low is not None, has_high and high is not None)


def infinity(value: Value) -> int:
    """1 for ∞, -1 for -∞, else 0."""
    match value.tree:
        case Node("symbol", ("infty",)):
            return 1
        case Node("*", (Node("number", (Fraction() as sign,)), Node("symbol", ("infty",)))) if sign == -1:
            return -1
    return 0


def position(end: Value | None, infinite: float = math.inf) -> float | None:
    """Where a value lies on the real line; `infinite` for the missing end of a segment, None where nobody knows."""
    if end is None:
        return infinite
    if end.tree is None or (found := value(end.tree, {})) is None or abs(found[0].imag) > 10 * found[1]:
        return None
    return found[0].real


def without(whole: Reals, points: list[Value]) -> Reals:
    """The reals that are left when points are taken out; a point that has no place among the ends changes nothing."""
    segments = list(whole.segments)
    for point in points:
        place = position(point)
        for i, one in enumerate(segments):
            low, high = position(one.low, -math.inf), position(one.high, math.inf)
            if place is not None and low is not None and high is not None and low < place < high:
                segments[i : i + 1] = [replace(one, high=point, has_high=False), replace(one, low=point, has_low=False)]
                break
    return Reals(tuple(segments), whole.name)

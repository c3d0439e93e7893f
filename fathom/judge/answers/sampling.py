"""Where two formulas are compared by their values: many points that depend on both, so that nobody can aim at them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from fractions import Fraction

from fathom.judge.answers.expressions import Node
from fathom.judge.answers.values import Point, rational, symbols_of, undefined, value

_WHOLE_NAMES = frozenset("nkmjlNK")  # variables that stand for whole numbers more often than not
_COMPLEX_NAMES = frozenset("zw")
_BRANCHING = frozenset(["root", "^", "ln", "log", "asin", "acos"])
_PER_MARK = 8
_RUN = 61
_REAL = 96
_POINTS_OF_A_FACTOR = 12


def samples(gold: Node, answer: Node) -> Iterator[Point]:
    """Points for all variables of both formulas: {} where there are none.

    Whole-number variables get 0, 1, …, 60 and larger ones, others both signs and all sizes; several variables are
    drawn independently. The numbers that stand in the formulas are approached, for there a case may begin.
    """
    names = sorted(symbols_of(gold) | symbols_of(answer))
    if not names:
        yield {}
        return
    seed = hashlib.sha256(f"{gold}={answer}".encode()).digest()
    r = random.Random(seed)
    whole = {name for name in names if name in _WHOLE_NAMES} | _counting(gold) | _counting(answer)
    ops = _ops(gold) | _ops(answer)
    signed = bool(ops & {"abs", "root"})
    marks = sorted({number for tree in (gold, answer) for number in _numbers(tree) if abs(number) > 1})
    marks = r.sample(marks, min(6, len(marks)))
    count = _REAL
    if whole.issuperset(names) and len(names) == 1:
        yield from ({names[0]: Fraction(n)} for n in _shuffled(range(_RUN), r))
        count = 24
    for turn in range(count):
        size = r.choice(_SIZES)
        yield {name: _whole(r, turn, signed) if name in whole else Fraction(size(r)) for name in names}
    for mark in marks:
        for _ in range(_PER_MARK):
            sign = r.choice((1, 1, -1)) if signed else 1
            at = round(mark) + r.randint(-2, 9)
            yield {name: Fraction(sign * abs(at)) if name in whole else _near(mark, sign, r) for name in names}
    if ops & {"floor", "ceil"}:
        yield from ({name: Fraction(r.randint(0 if name in whole else -9, 9)) for name in names} for _ in range(12))
    if "abs" in ops and _COMPLEX_NAMES.issuperset(names):
        yield from ({name: complex(r.uniform(-3, 3), r.uniform(-3, 3)) for name in names} for _ in range(6))


def _shuffled(numbers: range, r: random.Random) -> list[int]:
    # A difference is met early wherever it begins.
    found = list(numbers)
    r.shuffle(found)
    return found


_SIZES: tuple[Callable[[random.Random], float], ...] = (
    lambda r: r.uniform(0.2, 5),
    lambda r: r.uniform(-1, 1),
    lambda r: r.uniform(0, 1),
    lambda r: r.uniform(-6, 6),
    lambda r: r.choice((1, -1)) * 10 ** r.uniform(-2, 2.5),
    lambda r: r.uniform(3, 5),  # alike, as the sides of a triangle
    lambda r: r.choice((1, 1, -1)) * 10 ** r.uniform(0, 6),
)


def _whole(r: random.Random, turn: int, signed: bool) -> Fraction:
    found = r.randint(0, r.choice((4, 12, 60, 200, 10_000 if turn % 2 else 12, 10**9 if turn % 4 == 0 else 30)))
    return Fraction(-found if signed and r.random() < 0.3 else found)


def _near(mark: Fraction, sign: int, r: random.Random) -> Fraction:
    return sign * (mark * Fraction(r.uniform(0.9, 1.6)) + Fraction(r.uniform(-1, 1)))


def _counting(node: Node) -> frozenset[str]:
    """Variables of factorials, binomials and powers like (-1)^n, which are meant for whole numbers."""
    found = frozenset[str]().union(*(_counting(part) for part in node.args if isinstance(part, Node)))
    match node:
        case Node("factorial" | "binom"):
            return symbols_of(node)
        case Node("^", (Node() as base, Node() as exponent)) if not symbols_of(base):
            at = value(base, {})
            if at is not None and at[0].real < 0:
                return found | symbols_of(exponent)
    return found


def _ops(node: Node) -> frozenset[str]:
    return frozenset([node.op]).union(*(_ops(part) for part in node.args if isinstance(part, Node)))


def _numbers(node: Node) -> Iterator[Fraction]:
    """Sizes of the numbers that stand in a formula, of `10^9` and of 9 in `x/9` as well."""
    found = None if symbols_of(node) else rational(node, {})
    if found:
        size = max(abs(found), 1 / abs(found))
        if size < 10**12:
            yield size
    for part in node.args:
        if isinstance(part, Node):
            yield from _numbers(part)


def _imaginary(node: Node) -> bool:
    """Whether the imaginary unit stands in a formula: other formulas mean real numbers."""
    return node == Node("symbol", ("i",)) or any(_imaginary(part) for part in node.args if isinstance(part, Node))


def meant(gold: Node, found: complex, error: float, point: Point) -> bool:
    """Whether the gold formula means a value at a point: not where a real formula becomes complex."""
    if not point or abs(found.imag) <= 10 * error:
        return True
    return _imaginary(gold) or any(isinstance(at, complex) for at in point.values())


def differ_at(gold: Node, answer: Node, point: Point) -> bool | None:
    """Whether the values at a point differ by more than their errors; None where the gold one is not meant or known."""
    x = value(gold, point)
    if x is None or not meant(gold, *x, point):
        return None
    y = value(answer, point)
    if y is None:
        return None
    if abs(x[0] - y[0]) <= 10 * (x[1] + y[1]) + 1e-300:
        return False
    return True if real_inside(gold, point) else None


def real_inside(gold: Node, point: Point) -> bool:
    """Whether no root or logarithm in a real formula is complex: at -1 and -2 there is no sqrt(a) sqrt(b)."""
    if not point or _imaginary(gold):
        return True
    if gold.op in _BRANCHING and (found := value(gold, point)) is not None and not meant(gold, *found, point):
        return False
    return all(real_inside(part, point) for part in gold.args if isinstance(part, Node))


def differ(gold: Node, answer: Node, most: int) -> bool:
    """Whether the values differ for certain at one of the first `most` points, or one formula never has a value."""
    for _, point in zip(range(most), samples(gold, answer), strict=False):
        if differ_at(gold, answer, point):
            return True
        if not point:
            return undefined(answer, point) and value(gold, point) is not None
    return False


def factor(gold: Node, answer: Node) -> str | None:
    """What one formula is of the other by their values: "none" where the quotient is not constant, else its sign.

    None where nothing can be said; complex quotients have no sign.
    """
    first: tuple[complex, float, complex, float] | None = None
    for _, point in zip(range(_POINTS_OF_A_FACTOR), samples(gold, answer), strict=False):
        x, y = value(gold, point), value(answer, point)
        if x is None or y is None or not meant(gold, *x, point):
            continue
        here = (*x, *y)
        if first is None:
            if abs(x[0]) > 10 * x[1] or abs(y[0]) > 10 * y[1]:
                first = here
            continue
        (a, da, b, db), (c, dc, d, dd) = first, here
        errors = abs(a) * dd + abs(d) * da + abs(b) * dc + abs(c) * db + da * dd + db * dc
        if abs(a * d - b * c) > 10 * errors + 1e-300:
            return "none"
    if first is None or not first[0] or not first[2]:
        return None
    return "negative" if (first[0] / first[2]).real < 0 else "positive"

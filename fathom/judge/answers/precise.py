"""Values of formulas with as many digits as their largest and smallest parts ask for. Imported by workers only."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import mpmath

from fathom.judge.answers.expressions import Node
from fathom.judge.answers.sampling import meant, real_inside
from fathom.judge.answers.values import Point, symbols_of

_DIGITS = 160
_AGREE = 60
_MOST_DECADES = 20_000  # between the smallest part and the largest one
_MOST_DECADES_AT_POINTS = 400
_BITS_PER_DIGIT = 3.33


class NotMeant(Exception):
    """The gold formula has no value at this point."""


class _OutOfReach(ArithmeticError):
    """A part is larger or smaller than is computed."""


def same_at(gold: Node, answer: Node, point: Point) -> bool | None:
    """Whether the values at a point agree to 60 digits, and to as many more as the smallest part of either has zeros.

    So 1 + e^{-1000} is not taken for 1. None where the answer's value cannot be computed. `NotMeant` where the gold
    one cannot, or is complex though it is a formula for real numbers.
    """
    most = _MOST_DECADES_AT_POINTS if symbols_of(gold) | symbols_of(answer) else _MOST_DECADES
    agree, decades = False, 0
    for _ in range(2):
        reader = _Evaluator(point, most, _DIGITS + 4 * decades)
        with mpmath.workdps(reader.digits):
            if (x := reader.read(gold)) is None:
                raise NotMeant
            scale = max(abs(x), mpmath.mpf(10) ** -20)
            if not meant(gold, complex(0, abs(mpmath.im(x)) / scale), 1e-60, point):
                raise NotMeant
            if (y := reader.read(answer)) is None:
                return None
            agree = bool(abs(x - y) <= max(scale, abs(y)) * mpmath.mpf(10) ** -(_AGREE + 3 * decades))
        if not agree or reader.decades <= _AGREE // 2:
            break
        decades, most = reader.decades, 2 * most
    if not agree and not real_inside(gold, point):
        raise NotMeant
    return agree


_MP = {
    "abs": abs, "factorial": mpmath.factorial, "binom": mpmath.binomial, "log": mpmath.ln,
    "acot": lambda x: mpmath.pi / 2 - mpmath.atan(x),
}  # fmt: skip
_NAMED = {"pi": mpmath.pi, "e": mpmath.e, "i": mpmath.mpc(0, 1)}
_CANCELLING = frozenset(["+", "sin", "cos", "tan", "cot", "sinh", "tanh", "ln", "log", "asin", "acos", "atan", "acot"])
_LARGEST_COUNT = 10**6
_MOST_BITS_OF_EXPONENT = 1_000


class _Evaluator:
    def __init__(self, point: Point, most_decades: int, digits: int) -> None:
        self.point, self.most, self.digits, self.decades = point, most_decades, digits, 0

    def read(self, node: Node) -> Any:
        """The value, None where there is none or it is not computed."""
        try:
            return self.value(node)
        except (ValueError, TypeError, ArithmeticError, mpmath.libmp.NoConvergence):
            return None

    def value(self, node: Node) -> Any:
        parts = [self.value(part) for part in node.args if isinstance(part, Node)]
        found = self._value(node, parts)
        if not mpmath.isfinite(found):
            raise _OutOfReach(node.op)
        # What is left of a sum that cancels, or of sin(pi), is rounding, not a small number.
        if node.op in _CANCELLING and abs(found) < max([1, *map(abs, parts)]) * mpmath.mpf(10) ** (20 - self.digits):
            return mpmath.mpf(0)
        if found:
            self._reach(abs(mpmath.mag(found)) / _BITS_PER_DIGIT)
        return found

    def _reach(self, decades: Any) -> None:
        if decades > self.most:
            raise _OutOfReach(f"1e{decades}")
        self.decades = max(self.decades, int(decades))

    def _value(self, node: Node, parts: list[Any]) -> Any:
        match node:
            case Node("number", (Fraction() as exact,)):
                return mpmath.mpf(exact.numerator) / exact.denominator
            case Node("symbol", (str() as name,)):
                if name in _NAMED:
                    return +_NAMED[name]
                at = self.point[name]
                return mpmath.mpf(at.numerator) / at.denominator if isinstance(at, Fraction) else mpmath.mpc(at)
        match node.op:
            case "+":
                return mpmath.fsum(parts)
            case "*":
                return mpmath.fprod(parts)
            case "^":
                base, exponent = parts
                if base:
                    size = exponent * mpmath.log(base)
                    self._reach(abs(mpmath.re(size)) / 2)
                    if mpmath.mag(size) > _MOST_BITS_OF_EXPONENT:
                        raise _OutOfReach("exponent")
                return mpmath.power(base, exponent)
            case "root":
                return _root(*parts)
            case "floor" | "ceil":
                return _rounded(node.op, parts[0])
            case "exp" | "sinh" | "cosh" | "tanh":
                self._reach(abs(mpmath.re(parts[0])))  # a tanh of 200 lacks e^-400 to 1
            case "factorial" | "binom" if any(abs(part) > _LARGEST_COUNT for part in parts):
                raise _OutOfReach(node.op)
            case _:
                pass
        return (_MP.get(node.op) or getattr(mpmath, node.op))(*parts)


def _root(x: Any, degree: Any) -> Any:
    odd = mpmath.im(x) == 0 and mpmath.re(x) < 0 and int(mpmath.re(degree)) % 2
    return -mpmath.root(-x, int(degree)) if odd else mpmath.power(x, 1 / degree)


def _rounded(name: str, x: Any) -> Any:
    if mpmath.im(x):
        raise ValueError("floor of a complex number")
    nearest = mpmath.nint(x)
    if abs(x - nearest) < mpmath.mpf(10) ** -100:
        return nearest
    return mpmath.floor(x) if name == "floor" else mpmath.ceil(x)

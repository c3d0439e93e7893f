"""Numerical values of formulas: in double precision with a bound of their error, and exactly where rational."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Mapping
from fractions import Fraction

from fathom.judge.answers.expressions import Node

Point = Mapping[str, Fraction | complex]  # an exact value for each variable


def value(node: Node, symbols: Point) -> tuple[complex, float] | None:
    """The numerical value and a bound of its error; None where none exists, is infinite or is not computed.

    Running error analysis in double precision: every operation adds its own rounding to what it was given.
    """
    try:
        found, error = _value(node, symbols)
    except (ArithmeticError, ValueError, RecursionError, KeyError):
        return None  # KeyError: a variable without a value
    return (found, error) if cmath.isfinite(found) and math.isfinite(error) else None


_MOST_BITS = 4_096  # of a number that is reckoned with exactly


class Undefined(ArithmeticError):
    """The formula has no value: something is divided by zero, or infinity is reckoned with."""


def undefined(node: Node, symbols: Point) -> bool:
    """Whether it is certain that the formula has no value there."""
    try:
        _rational(node, symbols)
    except Undefined:
        return True
    except RecursionError:
        pass
    return False


def rational(node: Node, symbols: Point, bits: int = _MOST_BITS) -> Fraction | None:
    """The exact value where arithmetic on rational numbers gives one and it is not too long, else None."""
    try:
        return _rational(node, symbols, bits)
    except (Undefined, RecursionError):
        return None


def _rational(node: Node, symbols: Point, bits: int = _MOST_BITS) -> Fraction | None:
    match node:
        case Node("number", (Fraction() as exact,)):
            return exact
        case Node("symbol", ("infty",)):
            raise Undefined("infinity")
        case Node("symbol", (str() as name,)):
            at = symbols.get(name)
            return at if isinstance(at, Fraction) else None
    parts = [_rational(part, symbols, bits) for part in node.args if isinstance(part, Node)]
    known = [part for part in parts if part is not None]
    a, b = parts[0], parts[-1]
    if node.op == "^" and b is not None and a == 0 and b <= 0:
        raise Undefined("division by zero")
    if node.op in ("ln", "log") and a == 0:
        raise Undefined("logarithm of zero")
    if len(known) < len(parts) or sum(map(_bits, known)) > bits:
        return None
    assert a is not None and b is not None
    match node.op:
        case "+":
            return sum(known, Fraction(0))
        case "*":
            return math.prod(known, start=Fraction(1))
        case "^" if b.denominator == 1:
            if a in (1, -1):
                return a ** (b.numerator % 2)
            return a**b.numerator if _bits(a) * abs(b) <= bits else None
        case "root" if b.denominator == 1 and a >= 0:
            top, bottom = (_whole_root(part, b.numerator) for part in (a.numerator, a.denominator))
            return None if top is None or bottom is None else Fraction(top, bottom)
        case "ln" | "log" if a == 1:
            return Fraction(0)
        case "floor":
            return Fraction(math.floor(a))
        case "ceil":
            return Fraction(math.ceil(a))
        case "abs":
            return abs(a)
        case "factorial" if a.denominator == 1 and 0 <= a <= 300:
            return Fraction(math.factorial(a.numerator))
        case "binom" if a.denominator == b.denominator == 1 and b >= 0 and 0 <= a <= 1000:
            return Fraction(math.comb(a.numerator, b.numerator))
    return None


def _bits(number: Fraction) -> int:
    return number.numerator.bit_length() + number.denominator.bit_length()


def _whole_root(number: int, degree: int) -> int | None:
    if not 2 <= degree <= 64 or number.bit_length() > 1_000:
        return None
    root = math.isqrt(number) if degree == 2 else round(number ** (1 / degree))
    return root if root**degree == number else None


_EPS = 4e-16
_CONSTANTS: dict[str, complex] = {"pi": math.pi, "e": math.e, "i": 1j}


def _value(node: Node, symbols: Point) -> tuple[complex, float]:
    match node:
        case Node("number", (Fraction() as exact,)):
            found = complex(float(exact))
            return found, _EPS * abs(found)
        case Node("symbol", (str() as name,)):
            if name == "infty":
                raise Undefined(name)
            return (_CONSTANTS[name], _EPS) if name in _CONSTANTS else (complex(symbols[name]), 0.0)
    parts = [_value(part, symbols) for part in node.args if isinstance(part, Node)]
    (a, da), (b, db) = parts[0], parts[1] if len(parts) > 1 else (0j, 0.0)
    match node.op:
        case "+":
            total, error = 0j, 0.0
            for part, wrong in parts:
                total += part
                error += wrong + _EPS * abs(total)
            return total, error
        case "*":
            found, error = parts[0]
            for part, wrong in parts[1:]:
                found, error = found * part, abs(found) * wrong + abs(part) * error + error * wrong
                error += _EPS * abs(found)
            return found, error
        case "^":
            return _powered(a, da, b, db)
        case "root":
            if b != round(b.real) or db > 1e-9:
                raise ValueError("degree")
            if a.imag == 0 and a.real < 0 and round(b.real) % 2:
                found, error = _powered(-a, da, 1 / b, 0.0)
                return -found, error
            return _powered(a, da, 1 / b, 0.0)
        case "factorial":
            return _gamma(a, da)
        case "binom":
            if not (_natural(a, da) and _natural(b, db)) or a.real > 1000:
                raise ValueError("binomial")
            found = complex(math.comb(round(a.real), round(b.real)))
            return found, _EPS * abs(found)
        case "floor" | "ceil":
            if a.imag or abs(a.real - round(a.real)) <= 10 * da:
                inside = node.args[0]
                whole = rational(inside, symbols) if isinstance(inside, Node) else None
                if whole is None:
                    raise ValueError("at a jump")
                return complex(math.floor(whole) if node.op == "floor" else math.ceil(whole)), 0.0
            return complex(math.floor(a.real) if node.op == "floor" else math.ceil(a.real)), 0.0
        case "abs":
            return complex(abs(a)), da + _EPS * abs(a)
        case name:
            function, slope = _ANALYTIC[name]
            found = function(a)
            return found, 2 * slope(a, found) * da + 4 * _EPS * abs(found) + _EPS


def _powered(a: complex, da: float, b: complex, db: float) -> tuple[complex, float]:
    if abs(a) <= 2 * da:
        if a == 0 and b.real > 0 and db == 0:
            return 0j, da ** min(b.real, 1.0) if da else 0.0
        raise ZeroDivisionError("power of nearly zero")
    if a.imag == 0 and a.real < 0 and b.imag == 0 and b.real == round(b.real):
        found = complex(a.real ** round(b.real)) if abs(b.real) < 1e6 else a**b
    else:
        if da and a.real < 0 and abs(a.imag) <= 2 * da:
            raise ValueError("at a branch cut")
        found = a**b
    size = abs(found)
    return found, size * (2 * abs(b) * da / abs(a) + 2 * abs(cmath.log(a)) * (db + _EPS * abs(b)) + 4 * _EPS)


def _natural(x: complex, error: float) -> bool:
    return x.imag == 0 and abs(x.real - round(x.real)) <= error + 1e-12 and x.real >= 0


def _gamma(a: complex, da: float) -> tuple[complex, float]:
    if a.imag or a.real <= -1:
        raise ValueError("factorial")
    found = math.gamma(a.real + 1)
    return complex(found), found * (2 * da * math.log(a.real + 3) + 100 * _EPS)


_ANALYTIC: dict[str, tuple[Callable[[complex], complex], Callable[[complex, complex], float]]] = {  # with the slope
    "sin": (cmath.sin, lambda a, r: abs(cmath.cos(a)) + 1e-6),
    "cos": (cmath.cos, lambda a, r: abs(cmath.sin(a)) + 1e-6),
    "tan": (cmath.tan, lambda a, r: 1 + abs(r) ** 2),
    "cot": (lambda a: 1 / cmath.tan(a), lambda a, r: 1 + abs(r) ** 2),
    "sec": (lambda a: 1 / cmath.cos(a), lambda a, r: 1 + abs(r) ** 2),
    "csc": (lambda a: 1 / cmath.sin(a), lambda a, r: 1 + abs(r) ** 2),
    "sinh": (cmath.sinh, lambda a, r: 1 + abs(r)),
    "cosh": (cmath.cosh, lambda a, r: 1 + abs(r)),
    "tanh": (cmath.tanh, lambda a, r: 1.0),
    "exp": (cmath.exp, lambda a, r: abs(r)),
    "ln": (cmath.log, lambda a, r: 1 / abs(a)),
    "log": (cmath.log, lambda a, r: 1 / abs(a)),
    "asin": (cmath.asin, lambda a, r: 1 / abs(cmath.sqrt(1 - a * a))),
    "acos": (cmath.acos, lambda a, r: 1 / abs(cmath.sqrt(1 - a * a))),
    "atan": (cmath.atan, lambda a, r: 1 / abs(1 + a * a)),
    "acot": (lambda a: math.pi / 2 - cmath.atan(a), lambda a, r: 1 / abs(1 + a * a)),
}


def symbols_of(node: Node) -> frozenset[str]:
    """Names of the variables."""
    if node.op == "symbol":
        name = node.args[0]
        return (
            frozenset([name]) if isinstance(name, str) and name not in _CONSTANTS and name != "infty" else frozenset()
        )
    return frozenset().union(*(symbols_of(part) for part in node.args if isinstance(part, Node)))


def constant_log(node: Node) -> bool:
    r"""Whether `\log` without a base occurs, whose base is a matter of convention."""
    return node.op == "log" or any(constant_log(part) for part in node.args if isinstance(part, Node))

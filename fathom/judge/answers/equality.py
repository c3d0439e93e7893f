"""Whether two quantities are equal: their units, the rounding of a decimal gold, their formulas."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction

from fathom.judge.answers.answer import Value, infinity
from fathom.judge.answers.expressions import QUICK, Budget, Node, TooDear, num
from fathom.judge.answers.forms import form, same
from fathom.judge.answers.quantities import letter_unit
from fathom.judge.answers.sampling import differ
from fathom.judge.answers.units import DEGREE, PERCENT, POUND_OF_MASS, RADIAN, Unit
from fathom.judge.answers.values import constant_log, symbols_of, undefined, value

_ROUNDING = 1e-4
_DECIMAL = re.compile(r"(\d*)\.(\d+)")
_QUICK_POINTS = 12
_RADIAN_PER_DEGREE = Node("*", (num(Fraction(1, 180)), Node("symbol", ("pi",))))


def any_of(found: Iterable[bool | None]) -> bool | None:
    """True where one is, else None where one is unknown, else False."""
    verdict: bool | None = False
    for one in found:
        if one:
            return True
        if one is None:
            verdict = None
    return verdict


def same_value(gold: Value, answer: Value, budget: Budget = QUICK) -> bool | None:
    """Whether two quantities are equal. A base that is given must be the same; a unit that is missing is supplied."""
    if gold.base is not None or answer.base is not None:
        return gold.base == answer.base and gold.text == answer.text
    if gold.text == answer.text and gold.unit == answer.unit:
        return True
    if infinity(gold) or infinity(answer):
        return None if gold.tree is None or answer.tree is None else infinity(gold) == infinity(answer)
    if gold.tree is None or answer.tree is None:
        return None
    gold, answer = _with_letter_units(gold, answer)
    assert gold.tree is not None
    assert answer.tree is not None
    if not symbols_of(gold.tree) and value(gold.tree, {}) is not None and undefined(answer.tree, {}):
        return False
    pairs = in_common_unit(gold, answer)
    allowed = rounding(gold.text, exact=not answer.decimal) if gold.decimal else 0.0
    return any_of(same_tree(a, b, allowed, budget) for a, b in pairs)


def _with_letter_units(gold: Value, answer: Value) -> tuple[Value, Value]:
    """A letter behind a plain number is a unit where the other side has no variables: of `540 m` and 540."""
    for one, other in ((gold, answer), (answer, gold)):
        if one.tree is None or other.tree is None or not symbols_of(one.tree) or symbols_of(other.tree):
            continue
        if (one is answer or other.unit is not None) and (read := letter_unit(one)) is not None:
            return (read, answer) if one is gold else (gold, read)
    return gold, answer


def rounding(gold: str, exact: bool) -> float:
    """The relative error that a decimal gold forgives: 1e-4, or what rounding did to it where the answer is exact.

    A gold of fewer than three digits is taken as exact: too many fractions round to 0.5.
    """
    match = _DECIMAL.search(gold)
    if match is None:
        return 0.0
    digits = (match[1] + match[2]).lstrip("0")
    if not exact or len(digits) < 3:
        return _ROUNDING
    return max(_ROUNDING, 0.5 / int(digits))


def in_common_unit(gold: Value, answer: Value) -> list[tuple[Node, Node]]:
    """The pairs of pure numbers of which one must be equal; none where the units measure different things."""
    a, b = gold.tree, answer.tree
    assert a is not None and b is not None
    if gold.unit == answer.unit:
        return [(a, b)]
    if gold.unit is not None and answer.unit is not None:
        if {gold.unit, answer.unit} == {DEGREE, RADIAN}:
            return [(_in_radians(a), b)] if gold.unit == DEGREE else [(a, _in_radians(b))]
        x, y = _of_mass(gold.unit, answer.unit), _of_mass(answer.unit, gold.unit)
        return [(Node("*", (num(x.size), a)), Node("*", (num(y.size), b)))] if x.kind == y.kind else []
    pairs = [(a, b)]
    for one, side in ((gold, 0), (answer, 1)):
        if one.unit == PERCENT:
            factor = num(Fraction(1, 100))
        elif one.unit == DEGREE:
            factor = _RADIAN_PER_DEGREE
        else:
            continue
        pairs.append((Node("*", (factor, a)), b) if side == 0 else (a, Node("*", (factor, b))))
    return pairs


def _in_radians(degrees: Node) -> Node:
    return Node("*", (_RADIAN_PER_DEGREE, degrees))


def _of_mass(one: Unit, other: Unit) -> Unit:
    """A pound beside a mass is one of mass, else of money."""
    return POUND_OF_MASS if one.kind == "pound" and other.kind == "mass" else one


def same_tree(gold: Node, answer: Node, allowed: float = 0.0, budget: Budget = QUICK) -> bool | None:
    """Equality of two formulas by their forms, then by their values, then up to the relative error `allowed`."""
    if gold == answer:
        return True
    verdict: bool | None = None
    whole = False
    try:
        a, b = form(gold, budget), form(answer, budget)
        verdict = same(a, b, budget)
        exact = b.rational()
        whole = exact is not None and exact.denominator == 1
    except (TooDear, RecursionError):
        pass
    if verdict:
        return True
    if verdict is None and differ(gold, answer, _QUICK_POINTS):
        verdict = None if constant_log(gold) or constant_log(answer) else False
    if allowed and not whole and (x := value(gold, {})) is not None and not symbols_of(answer):
        y = value(answer, {})
        if y is not None and abs(x[0] - y[0]) <= allowed * abs(x[0]):
            return True
    return verdict

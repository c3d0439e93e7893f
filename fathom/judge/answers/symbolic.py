"""The slow comparison: larger budgets, 60 digits of mpmath, math-verify. Imported by workers only: it may hang or die.

Text never becomes code here: formulas are trees of our own parser, and what it cannot read goes to math-verify's parser
of LaTeX, never to sympify.
"""

from __future__ import annotations

import functools
import logging
import sys
from fractions import Fraction
from typing import Any

import mpmath
from math_verify import LatexExtractionConfig, parse, verify

from fathom.judge.answers.answer import Answer, Chain, Items, Value, Words
from fathom.judge.answers.compare import in_common_unit, points, same_readings, same_value
from fathom.judge.answers.expressions import THOROUGH, Node, TooDear
from fathom.judge.answers.forms import value
from fathom.judge.answers.reading import readings

_CONFIG = (LatexExtractionConfig(boxed_match_priority=-1),)  # its other extraction takes the last number of any text
_LONGEST = 1_000  # for math-verify, whose parser is far from linear
logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns at every call that it runs without its alarms


class _Dear(Exception):
    """The comparison would cost more than anybody waits for."""


def compare(pair: list[str]) -> str:
    """ "equal", "different", "gold" (it cannot be read), "answer" (it cannot be read) or "dear" (takes too long).

    `pair` is [gold, answer], both without the text around them.
    """
    gold, answer = pair
    try:
        golds, answers = readings(gold, THOROUGH), readings(answer, THOROUGH)
        found = same_readings(golds, answers, _same_leaf)
        if found is False and isinstance(answers[0], Words) and not isinstance(golds[0], Words):
            return "answer"
        if found is not None:
            return "equal" if found else "different"
        if golds and answers and not (_opaque(golds[0]) or _opaque(answers[0])):
            return "dear"
        if golds and isinstance(golds[0], Items) and golds[0].fence in ("(", "["):
            return "answer"  # math-verify would take a set for a tuple
        return _by_math_verify(gold, answer)
    except (TooDear, _Dear):
        return "dear"


def _opaque(answer: Answer) -> bool:
    return isinstance(answer, Chain) or (isinstance(answer, Value) and answer.tree is None)


def _same_leaf(gold: Value, answer: Value) -> bool | None:
    if (found := same_value(gold, answer, THOROUGH)) is not None:
        return found
    if gold.tree is None or answer.tree is None:
        return {"equal": True, "different": False, "answer": False}.get(_by_math_verify(gold.text, answer.text))
    verdicts = [_identical(a, b) for a, b in in_common_unit(gold, answer)]
    if any(verdicts):
        return True
    return None if None in verdicts else False


def _identical(a: Node, b: Node) -> bool | None:
    """Equality of values to 60 digits, at several points where there are variables; None where none can be computed.

    They are computed with 160 digits, so that what cancels is not taken for a difference.
    """
    agreed = 0
    for point in points(a, b):
        # In doubles first: a tower of powers would keep mpmath for ever.
        if value(a, point) is None or value(b, point) is None:
            continue
        with mpmath.workdps(160):
            exact = {name: mpmath.mpf(Fraction(at).numerator) / Fraction(at).denominator for name, at in point.items()}
            try:
                x, y = _precise(a, exact), _precise(b, exact)
            except (ValueError, ZeroDivisionError, OverflowError, mpmath.libmp.NoConvergence):
                continue
            scale = max(abs(x), abs(y), mpmath.mpf(10) ** -20)
            if abs(x - y) <= scale * mpmath.mpf(10) ** -60:
                agreed += 1
            elif not exact or (abs(mpmath.im(x)) < scale / 10**60 and abs(mpmath.im(y)) < scale / 10**60):
                return False
    return True if agreed else None


_MP = {
    "abs": abs, "floor": mpmath.floor, "ceil": mpmath.ceil, "factorial": mpmath.factorial, "binom": mpmath.binomial,
    "log": mpmath.ln, "acot": lambda x: mpmath.pi / 2 - mpmath.atan(x),
}  # fmt: skip
_NAMED = {"pi": mpmath.pi, "e": mpmath.e, "i": mpmath.mpc(0, 1)}


def _precise(node: Node, point: dict[str, Any]) -> Any:
    match node:
        case Node("number", (Fraction() as exact,)):
            return mpmath.mpf(exact.numerator) / exact.denominator
        case Node("symbol", (str() as name,)):
            return +_NAMED[name] if name in _NAMED else point[name]
    parts = [_precise(part, point) for part in node.args if isinstance(part, Node)]
    match node.op:
        case "+":
            return mpmath.fsum(parts)
        case "*":
            return mpmath.fprod(parts)
        case "^":
            return mpmath.power(*parts)
        case "root":
            x, degree = parts
            odd = mpmath.im(x) == 0 and mpmath.re(x) < 0 and int(mpmath.re(degree)) % 2
            return -mpmath.root(-x, int(degree)) if odd else mpmath.power(x, 1 / degree)
        case name:
            return (_MP.get(name) or getattr(mpmath, name))(*parts)


def _parse(text: str) -> list[Any]:
    # Time-outs of math-verify are alarms, which sympy's C code outlives; the pool kills instead.
    if len(text) > _LONGEST:
        raise _Dear(text[:40])
    return list(parse(text, extraction_config=_CONFIG, fallback_mode="no_fallback", parsing_timeout=None))


@functools.lru_cache(maxsize=4096)
def _gold(gold: str) -> tuple[Any, ...]:
    # A gold outside a LaTeX environment stays unparsed.
    return tuple(_parse(_in_latex(gold)))


@functools.lru_cache(maxsize=4096)
def _equals_itself(gold: str) -> bool:
    return bool(verify(list(_gold(gold)), list(_gold(gold)), timeout_seconds=None))


def _in_latex(text: str) -> str:
    return text if "$" in text or "\\(" in text or "\\[" in text else f"${text}$"


def _by_math_verify(gold: str, answer: str) -> str:
    expected = _gold(gold)
    if not expected:
        return "gold"
    given = _parse(_in_latex(answer))
    if given and verify(list(expected), given, timeout_seconds=None):
        return "equal"
    if not _equals_itself(gold):
        return "gold"
    return "different" if given else "answer"


sys.set_int_max_str_digits(0)
sys.setrecursionlimit(30_000)  # for trees as deep as THOROUGH allows; frames of Python need no C stack
_by_math_verify(
    r"\sum_{k=1}^{2} k", "3"
)  # loads the parser's tables, 0.2 s, before the clock runs for anybody's answer

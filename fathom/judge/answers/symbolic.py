"""The slow comparison: larger budgets, 60 digits of mpmath, math-verify. Imported by workers only: it may hang or die.

Text never becomes code here: formulas are trees of our own parser, and what it cannot read goes to math-verify's parser
of LaTeX, never to sympify.
"""

from __future__ import annotations

import functools
import logging
import re
import sys
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify

from fathom.judge.answers.answer import Answer, Chain, Items, Value, Words
from fathom.judge.answers.compare import same_readings
from fathom.judge.answers.equality import in_common_unit, same_value
from fathom.judge.answers.expressions import THOROUGH, Node, NotRead, TooDear
from fathom.judge.answers.expressions import parse as parse_formula
from fathom.judge.answers.precise import NotMeant, same_at
from fathom.judge.answers.reading import readings
from fathom.judge.answers.sampling import differ_at, samples
from fathom.judge.answers.values import rational, symbols_of, undefined, value

_CONFIG = (LatexExtractionConfig(boxed_match_priority=-1),)  # its other extraction takes the last number of any text
_FEWEST_POINTS = 10
_PRECISE_POINTS = 20
_MOST_HOLES = 2
_EXACT_BITS = 400_000
_MOST_TERMS = 10_000
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


def _identical(gold: Node, answer: Node) -> bool | None:
    """Equality of values to 60 digits, wherever the gold formula has one; None where too few can be computed.

    In doubles first, which shows most differences.
    """
    variables = bool(symbols_of(gold) | symbols_of(answer))
    agreed = unknown = holes = 0
    for point in samples(gold, answer):
        rough = differ_at(gold, answer, point)
        if rough:
            return False
        if rough is False and agreed >= _PRECISE_POINTS:
            continue
        if undefined(gold, point):
            continue
        if undefined(answer, point):
            holes += 1  # one that can be filled, as that of (n^2-1)/(n-1)
            if holes > _MOST_HOLES or not point:
                return False
            continue
        x, y = (rational(side, point, _EXACT_BITS) for side in (gold, answer))
        if x is not None and y is not None:
            if x != y:
                return False
            agreed += 1
            continue
        try:
            said = same_at(gold, answer, point)
        except NotMeant:
            continue
        if said is False:
            return False
        agreed, unknown = agreed + (said is True), unknown + (said is None)
    enough = agreed >= (_FEWEST_POINTS if variables else 1)
    return True if enough and unknown <= agreed else None


_SUM = re.compile(r"\\(?:sum|prod)(?![A-Za-z])[^^]{0,60}\^\s*(?:\{((?:[^{}]|\{[^{}]*\}){1,60})\}|(\w))")
_NO_POLYNOMIAL = re.compile(r"\\[A-Za-z]+|/|!|\^\s*\{?[^0-9]|\^\s*\{[^}]*[a-z]")


def _too_many_terms(text: str) -> bool:
    """Whether a sum or product that has no closed form must be added up over more terms than is worth waiting for."""
    terms = 1.0
    last = 0
    for match in _SUM.finditer(text):
        last = match.end()
        try:
            bound = parse_formula(match[1] or match[2])
        except (NotRead, TooDear):
            continue
        if symbols_of(bound) or "infty" in match[0] or "∞" in match[0]:
            continue
        if (found := value(bound, {})) is None:
            return True
        terms *= max(1.0, abs(found[0]))
    return terms > _MOST_TERMS and _NO_POLYNOMIAL.search(text, last) is not None


def _parse(text: str) -> list[Any]:
    # Time-outs of math-verify are alarms, which sympy's C code outlives; the pool kills instead.
    if len(text) > _LONGEST or _too_many_terms(text):
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

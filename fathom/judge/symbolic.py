"""Comparison of mathematical expressions by math-verify. Imported by judge workers only: it may hang or die."""

from __future__ import annotations

import functools
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

_CONFIG = (LatexExtractionConfig(boxed_match_priority=-1), ExprExtractionConfig())


def _parse(text: str) -> list[Any]:
    # Time-outs of math-verify are alarms, which sympy's C code outlives; the pool kills instead.
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


def compare(pair: list[str]) -> str:
    """ "equal", "different", "gold" (it cannot be read, or does not equal itself) or "answer" (it cannot be read).

    `pair` is [gold, answer], both without the text around them; the comparison is not symmetric.
    """
    gold, answer = pair
    expected = _gold(gold)
    if not expected:
        return "gold"
    given = _parse(_in_latex(answer)) or _parse(answer)
    if given and verify(list(expected), given, timeout_seconds=None):
        return "equal"
    if not _equals_itself(gold):
        return "gold"
    return "different" if given else "answer"


compare([r"\frac{1}{2}", "0.5"])  # loads the parser's tables, 0.2 s, before the clock runs for anybody's answer

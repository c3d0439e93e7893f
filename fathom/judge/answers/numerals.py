"""Notations of numbers that are no formulas: repeating decimals, other bases, ordinals, number words."""

from __future__ import annotations

import re
from fractions import Fraction

from fathom.judge.answers.answer import Value
from fathom.judge.answers.expressions import num

_TEXT_MACRO = re.compile(r"\\(?:text|mathrm|operatorname\*?)\{([^{}]*)\}")
_REPEATING = re.compile(
    r"([+-]?)(\d*)\.(\d*)(?:\\overline\{?(\d+)\}?|\\overline(\d)|\\dot\{?(\d)\}?|\((\d+)\)|\\bar\{(\d+)\})"
)
_GOES_ON = re.compile(r"([+-]?)(\d*)\.(\d*?)(\d)\4\4\d*(?:\\dots|\.\.\.)")
_BASE = re.compile(r"([0-9A-Fa-f]+)_(?:\{(?:\\text\{)?(\d+|two|eight|ten)\}?\}?|(\d))")
_ORDINAL = re.compile(r"(\d+)\s*(?:\^\{)?(?:st|nd|rd|th|\\text\{(?:st|nd|rd|th)\})\}?(?: [A-Za-z]+)?")
_COUNTS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19,
}  # fmt: skip
_TENS = {
    "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
_LONGEST = 200


def numeral(text: str) -> Value | None:
    """The value of such a number, else None. One in another base has no tree: it is only what it is in that base."""
    text = text.strip()
    if len(text) > _LONGEST:
        return None
    if match := _REPEATING.fullmatch(text):
        sign, whole, fixed, *repeating = match.groups()
        return Value(text, num(_repeating(sign, whole, fixed, next(digits for digits in repeating if digits))))
    if match := _GOES_ON.fullmatch(text):
        return Value(text, num(_repeating(match[1], match[2], match[3], match[4])))
    if match := _BASE.fullmatch(text):
        base = {"two": 2, "eight": 8, "ten": 10}.get(match[2]) or int(match[2] or match[3])
        if base == 10 and match[1].isdecimal():
            return Value(match[1], num(int(match[1])))
        if 2 <= base <= 36 and match[1][0].isdecimal():
            return Value(match[1].upper().lstrip("0") or "0", None, base=base)
    if match := _ORDINAL.fullmatch(text):
        return Value(match[1], num(int(match[1])))
    word = _TEXT_MACRO.sub(r"\1", text).strip().casefold().replace("-", " ")
    if word in _COUNTS:
        return Value(text, num(_COUNTS[word]))
    tens, _, ones = word.partition(" ")
    if tens in _TENS and (not ones or 0 < _COUNTS.get(ones, 0) < 10):
        return Value(text, num(_TENS[tens] + _COUNTS.get(ones, 0)))
    return None


def _repeating(sign: str, whole: str, fixed: str, repeating: str) -> Fraction:
    value = Fraction(int(whole or "0")) + Fraction(int(fixed or "0"), 10 ** len(fixed))
    value += Fraction(int(repeating), (10 ** len(repeating) - 1) * 10 ** len(fixed))
    return -value if sign == "-" else value

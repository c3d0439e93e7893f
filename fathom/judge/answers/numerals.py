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
_ORDINAL = re.compile(r"(\d+)\s*(?:\^\{)?(?:st|nd|rd|th|\\text\{(?:st|nd|rd|th)\})\}?(?: (?!of)[A-Za-z]+)?")
_COUNTS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19,
}  # fmt: skip
_TENS = {
    "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
MULTIPLIERS = {
    "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12, "score": 20,
    "hundreds": 100, "thousands": 1000, "millions": 10**6, "billions": 10**9, "trillions": 10**12, "dozens": 12,
    "百": 100, "千": 1000, "万": 10**4, "亿": 10**8,
}  # fmt: skip
_PARTS = {
    "half": 2, "halves": 2, "third": 3, "thirds": 3, "quarter": 4, "quarters": 4, "fourth": 4, "fourths": 4,
    "fifth": 5, "fifths": 5, "sixth": 6, "sixths": 6, "seventh": 7, "sevenths": 7, "eighth": 8, "eighths": 8,
    "ninth": 9, "ninths": 9, "tenth": 10, "tenths": 10,
}  # fmt: skip
_SCIENTIFIC = re.compile(r"([+-]?\d+(?:\.\d+)?)[eE]([+-]?\d{1,4})")
_LARGEST_EXPONENT = 1_000
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
    if match := _SCIENTIFIC.fullmatch(text):
        if abs(int(match[2])) > _LARGEST_EXPONENT:
            return None
        return Value(text, num(Fraction(match[1]) * Fraction(10) ** int(match[2])), decimal="." in match[1])
    word = _TEXT_MACRO.sub(r" \1 ", text).strip().casefold().replace("-", " ")
    spoken = spoken_number(word.split())
    return None if spoken is None else Value(text, num(spoken))


def spoken_number(words: list[str]) -> Fraction | None:
    """The value of `twenty one`, `one hundred and five`, `two thirds`, `half`, else None."""
    if not words or len(words) > 12:
        return None
    if words == ["half"]:
        return Fraction(1, 2)
    if len(words) > 1 and words[-1] in _PARTS:
        top = Fraction(1) if words[:-1] in (["a"], ["an"]) else spoken_number(words[:-1])
        return None if top is None or top >= 100 else top / _PARTS[words[-1]]
    words = [word for i, word in enumerate(words) if word != "and" or not 0 < i < len(words) - 1]
    if words[0] in ("a", "an") and len(words) > 1 and words[1] in MULTIPLIERS:
        words[0] = "one"
    total, part, last = Fraction(0), Fraction(0), 0
    for word in words:
        if word in _COUNTS and (last in (0, 100, 1000) or (last == 10 and 0 < _COUNTS[word] < 10)):
            part, last = part + _COUNTS[word], 1
        elif word in _TENS and last in (0, 100, 1000):
            part, last = part + _TENS[word], 10
        elif word in MULTIPLIERS and part:
            size = MULTIPLIERS[word]
            if size == 100:
                part, last = part * size, 100
            else:
                total, part, last = total + part * size, Fraction(0), 1000
        else:
            return None
    return total + part


def _repeating(sign: str, whole: str, fixed: str, repeating: str) -> Fraction:
    value = Fraction(int(whole or "0")) + Fraction(int(fixed or "0"), 10 ** len(fixed))
    value += Fraction(int(repeating), (10 ** len(repeating) - 1) * 10 ** len(fixed))
    return -value if sign == "-" else value

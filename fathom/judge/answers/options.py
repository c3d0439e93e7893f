"""Answers to multiple-choice questions."""

from __future__ import annotations

import re

from fathom.judge.answers.notation import clean

_OPTION = re.compile(r"\(?\s*(?:\\text\{)?\s*\(?\s*([A-J])\s*\)?\s*\.?\s*\}?\s*\)?\.?")
_LABEL = re.compile(r"(?:\\text\{\s*\(([A-J])\)\s*:?\s*\}|\(([A-J])\)|(?:\\text\{\s*)?([A-J])[.):]\s*\}?)\s*(?=\S)")
_OTHER_LABEL = re.compile(r"(?<![A-Za-z\\])[A-J][).]|\b(?:and|or)\b")
_LONE_LETTER = re.compile(r"(?<![A-Za-z\\])[A-J](?![A-Za-z])(?! [a-z]{2})")
_FORMULA_SIGN = re.compile(r"[=+*/^_\\$<>\d-]")


def option(text: str, labelled: bool = False) -> str | None:
    r"""The letter of a multiple-choice answer: `B`, `(B)`, `\text{(B)}`, `B.`; with `labelled` also `(B) 12`."""
    text = clean(text)
    if match := _OPTION.fullmatch(text):
        return match[1]
    if labelled and (match := _LABEL.match(text)) and not _OTHER_LABEL.search(text, match.end()):
        if _LONE_LETTER.search(text, match.end()) and not _FORMULA_SIGN.search(text, match.end()):
            return None  # `A: B`
        return match[1] or match[2] or match[3]
    return None

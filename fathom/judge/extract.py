"""Which part of a completion is its answer. Nothing is guessed: the last number of a text is not an answer.

Thinking is cut off first, the last balanced box counts, and a text that sprays boxes gets nothing. Reasons of `Unread`
are few and stable because reports count them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from fathom.core.errors import UsageError

_THINK = re.compile(r"<think>|</think>")
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_HASH = re.compile(r"####[ \t]*([^\n]*)")
_PHRASE = re.compile(r"\banswer[ \t]*(?:\*\*)?[ \t]*(?:is|=|:)[ \t:*]*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_MOST_BOXES = 3


@dataclass(frozen=True)
class Extracted:
    """The answer as written, blanks at its ends removed, and which rule found it."""

    answer: str
    how: str


@dataclass(frozen=True)
class Unread:
    """No answer in the text, and why."""

    reason: str


def after_thinking(text: str) -> str | Unread:
    """What follows the last `</think>`; the whole text where nothing was thought; Unread where it never ends."""
    marks = list(_THINK.finditer(text))
    if not marks:
        return text
    if marks[-1].group() == "<think>":
        return Unread("thinking was never closed")
    return text[marks[-1].end() :]


def boxes(text: str) -> list[str]:
    r"""Contents of every balanced `\boxed{…}` or `\fbox{…}` at the outermost level, in order of appearance.

    `\{` and `\}` do not count as braces; a box that is never closed is left out; `\boxed 7` holds one token.
    """
    found: list[str] = []
    position = 0
    while (match := _BOX.search(text, position)) is not None:
        position = match.end()
        if text[position : position + 1] == "{":
            end = _closing(text, position)
            if end is not None:
                found.append(text[position + 1 : end].strip())
                position = end + 1
        elif token := re.compile(r"[^\s$\\{}]+").match(text, position):
            found.append(token.group().rstrip(".,;"))
            position = token.end()
    return found


def _closing(text: str, start: int) -> int | None:
    depth, position = 0, start
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 2
            continue
        if character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return position
        position += 1
    return None


def _boxed(text: str) -> Extracted | Unread | None:
    found = boxes(text)
    if not found:
        return None
    if len(set(found)) > _MOST_BOXES:
        return Unread("box spam")
    answer = found[-1]
    while (inner := boxes(answer)) and _BOX.match(answer):
        answer = inner[-1]
    return _given(answer, "boxed")


def _tagged(text: str) -> Extracted | Unread | None:
    if "<answer>" not in text:
        return None
    found = [content.strip() for content in _ANSWER.findall(text)]
    if not found or text.rfind("<answer>") > text.rfind("</answer>"):
        return Unread("answer tag was never closed")
    if len(set(found)) > 1:
        return Unread("answer tags disagree")
    inside = _boxed(found[-1])
    if isinstance(inside, Unread):
        return inside
    return _given(inside.answer if inside else found[-1], "answer_tag")


def _hashed(text: str) -> Extracted | Unread | None:
    found = _HASH.findall(text)
    return _given(found[-1], "hash") if found else None


def _phrased(text: str) -> Extracted | Unread | None:
    found = list(_PHRASE.finditer(text))
    if not found:
        return None
    sentence = text[found[-1].end() :].partition("\n")[0].strip()
    if end := _SENTENCE_END.search(sentence):
        sentence = sentence[: end.start()]
    return _given(sentence.strip(" \t*_`"), "phrase")


def _given(answer: str, how: str) -> Extracted | Unread:
    answer = answer.strip()
    return Extracted(answer, how) if answer else Unread("answer is empty")


_RULES: dict[str, Callable[[str], Extracted | Unread | None]] = {
    "answer_tag": _tagged,
    "boxed": _boxed,
    "hash": _hashed,
    "phrase": _phrased,
}
FINALS = ("auto", *_RULES)


def extract(text: str, final: str = "auto") -> Extracted | Unread:
    """The answer that `text` commits to, or why there is none.

    `final` is the form to look for: answer_tag, boxed, hash (`#### 7`), phrase ("the answer is 7"), or auto, which
    takes the first of these, in this order, that the text uses.
    """
    if final not in FINALS:
        raise UsageError(f"final={final!r}: not a way to give an answer; use one of {', '.join(FINALS)}")
    rest = after_thinking(text)
    if isinstance(rest, Unread):
        return rest
    for name, rule in _RULES.items():
        if final in ("auto", name) and (found := rule(rest)) is not None:
            return found
    return Unread("no answer found" if rest.strip() else "text is empty")

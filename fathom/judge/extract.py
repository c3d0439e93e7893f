r"""Which part of a completion is its answer. Nothing is guessed: the last number of a text is not an answer.

Thinking is cut off first, the last balanced box counts, and a text that sprays boxes gets nothing. Reasons of `Unread`
are few and stable because reports count them. Every rule takes time linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from fathom.core.errors import UsageError
from fathom.judge.answers.reading import is_formula

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_TOKEN = re.compile(r"[^\s$\\{}]+")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_BETWEEN = re.compile(  # what may stand between boxes that give one answer in parts
    r"(?:\s|[$,;&]|\\[()\[\],;:! ]|\\q?quad(?![A-Za-z])|\\text\{\s*,?\s*(?:and|or)\s*\}|\b(?:and|or)\b"
    r"|\b[A-Za-z]\s{0,3}=){0,30}"
)
_HASH = re.compile(r"####[ \t]*([^\n]*)")
_PHRASE = re.compile(
    r"\bfinal answer\b\*{0,2}[ \t]*\n[\s*]*"
    r"|(?m:^#{1,6}[ \t]*\*{0,2}answer\*{0,2}:?[ \t]*\n[\s*]*)"
    r"|\b(?:answers?|(?:correct|right) (?:option|choice))\b(?:[ \t]+(?:to|of|for|in|here)\b[^.\n:=$\\]{0,80}?)?"
    r"[ \t]*\*{0,2}[ \t]*"
    r"(?:\b(?:is|are|will be|would be|must be)\b|=|:)"
    r"(?:[ \t]+(?:therefore|thus|simply|just|option|choice|approximately|about|roughly|exactly)\b)?[\s:*]*"
    r"|答案(?:是|为|為|：|:)[\s:：*]*|\bAntwort\b[ \t]*(?:\b(?:ist|lautet)\b|:)[\s:*]*"
    r"|\brespuesta\b[ \t]*(?:\bes\b|:)[\s:*]*|\bréponse\b[ \t]*(?:\best\b|:)[\s:*]*",
    re.IGNORECASE,
)
_UNSURE = re.compile(r"\b(?:what|whether|not know|don't know|unsure|wonder)\b[^.!?\n]*$", re.IGNORECASE)
_PREFIX = re.compile(
    r"(\\text\{)?\s*(?:so |thus |therefore,? )?(?:the |my )?(?:final |correct )?answer\s*(?:is\b|:|=)[\s:]*(\})?\s*",
    re.IGNORECASE,
)
_BEFORE = re.compile(
    r"(?<!\S)(\$[^$\n]{1,200}\$|\S{1,40}(?: ?[=<>] ?\S{1,40})?) is (?:the|our)(?: final| correct)? answer\b"
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$|\*)|。")
_NEAR = 60
_MATHS = re.compile(
    r"\$\$([^$]{1,2000})\$\$|(?<![\\$])\$((?:[^$\\]|\\.){1,2000})\$|\\\(((?:(?!\\[()]).){1,2000})\\\)|\\\[((?:(?!\\[\[\]]).){1,2000})\\\]",
    re.DOTALL,
)
_NUMBER = re.compile(
    r"(?<![\w.,/^])(?:[-+−](?=[\d.$€£]))?[$€£]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:/\d+)?(?<=\d)(?:\s?(?:%|percent\b|pct\b))?(?![\d/])"
)
_MOST_BOXES = 2
_LONGEST_FORMULA = 200


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
    opened, closed = text.rfind("<think>"), text.rfind("</think>")
    if opened > closed:
        return Unread("thinking was never closed")
    return text[closed + len("</think>") :] if closed >= 0 else text


def boxes(text: str) -> list[str]:
    r"""Contents of every balanced `\boxed{…}` or `\fbox{…}` at the outermost level, in order of appearance.

    `\{` and `\}` do not count as braces; a box that is never closed is left out; `\boxed 7` holds one token.
    """
    return [content for _, _, content in _boxes(text)]


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """(start, end, content) of the outermost boxes."""
    if (first := _BOX.search(text)) is None:
        return []
    closing = _closing_braces(text, first.start())
    found: list[tuple[int, int, str]] = []
    position = first.start()
    while (match := _BOX.search(text, position)) is not None:
        position = match.end()
        if text[position : position + 1] == "{":
            if (end := closing.get(position)) is not None:
                found.append((match.start(), end + 1, text[position + 1 : end].strip()))
                position = end + 1
        elif token := _TOKEN.match(text, position):
            found.append((match.start(), token.end(), token.group().rstrip(".,;")))
            position = token.end()
    return found


def _closing_braces(text: str, start: int) -> dict[int, int]:
    """Where each brace that opens after `start` closes; those that never close are missing."""
    found: dict[int, int] = {}
    opened: list[int] = []
    for match in _BRACE.finditer(text, start):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            found[opened.pop()] = match.start()
    return found


def _boxed(text: str) -> Extracted | Unread | None:
    """The last box; boxes with nothing but commas, `and` or `or` between them are one answer, a list."""
    groups: list[list[str]] = []
    last = -1
    for start, end, content in _boxes(text):
        if groups and not content:
            continue  # `as required, in \boxed{}`
        between = _BETWEEN.fullmatch(text, last, start) if last >= 0 else None
        if between and groups[-1] != [content]:
            groups[-1].append(content)
        elif not between:
            groups.append([content])
        last = end
    if not groups:
        return None
    if len({tuple(group) for group in groups}) > _MOST_BOXES:
        return Unread("box spam")
    return _given(", ".join(dict.fromkeys(_bare(_innermost(content)) for content in groups[-1])), "boxed")


def _innermost(answer: str) -> str:
    for _ in range(10):
        if not _BOX.match(answer) or not (inner := boxes(answer)):
            break
        answer = inner[-1]
    return answer


def _tagged(text: str) -> Extracted | Unread | None:
    if "<answer>" not in text:
        return None
    found: list[str] = []
    position = 0
    while (start := text.find("<answer>", position)) >= 0:
        if (end := text.find("</answer>", start)) < 0:
            return Unread("answer tag was never closed")
        found.append(text[start + len("<answer>") : end].strip())
        position = end
    if len(set(found)) > 1:
        return Unread("answer tags disagree")
    inside = _boxed(found[-1])
    if isinstance(inside, Unread):
        return inside
    return _given(inside.answer if inside else _bare(found[-1]), "answer_tag")


def _hashed(text: str) -> Extracted | Unread | None:
    found = _HASH.findall(text)
    return _given(_bare(found[-1].strip()), "hash") if found else None


def _bare(answer: str) -> str:
    """Without the words `The answer is` before it."""
    if (match := _PREFIX.match(answer)) is None:
        return answer
    rest = answer[match.end() :]
    if match[1] and not match[2]:
        rest = rest[:-1] if rest.endswith("}") else rest
    return _sentence(rest) if not match[1] else rest.strip()


def _phrased(text: str) -> Extracted | Unread | None:
    """What follows the last "answer is", or stands before the last "is the answer", whichever comes later."""
    after, before = None, _last(_BEFORE, text)
    for match in _PHRASE.finditer(text):
        if not _UNSURE.search(text[max(0, match.start() - _NEAR) : match.start()]):
            after = match
    if before is not None and (after is None or before.end() > after.end()):
        return _given(before[1].strip("*_` "), "phrase")
    if after is None:
        return None
    answer = _sentence(text[after.end() :])
    asked = text.startswith("?", after.end() + len(answer))
    return None if asked and answer else _given(answer, "phrase")


def _sentence(text: str) -> str:
    if maths := _MATHS.match(text):
        rest = text[maths.end() :]
        if not re.match(r"[ \t]*(?:,|and\b|or\b|[$\\%\w])", rest):
            return maths[0]
    line = text.partition("\n")[0].strip()
    if end := _SENTENCE_END.search(line):
        line = line[: end.start()]
    return line.strip(" \t*_`")


def _anything(text: str) -> Extracted | Unread | None:
    """The whole text where it is one formula, else what comes last in it, a formula or a number."""
    if len(text) <= _LONGEST_FORMULA and is_formula(text):
        return _given(text, "any")
    formula = _last(_MATHS, text)
    number = _last(_NUMBER, text, formula.end() if formula else 0)
    if number is not None:
        return _given(number[0], "any")
    return None if formula is None else _given(next(group for group in formula.groups() if group is not None), "any")


def _last(pattern: re.Pattern[str], text: str, start: int = 0) -> re.Match[str] | None:
    found = None
    for match in pattern.finditer(text, start):
        found = match
    return found


def _given(answer: str, how: str) -> Extracted | Unread:
    answer = answer.strip()
    return Extracted(answer, how) if answer else Unread("answer is empty")


_RULES: dict[str, Callable[[str], Extracted | Unread | None]] = {
    "answer_tag": _tagged,
    "boxed": _boxed,
    "hash": _hashed,
    "phrase": _phrased,
}
FINALS = ("auto", *_RULES, "any")


def extract(text: str, final: str = "auto") -> Extracted | Unread:
    """The answer that `text` commits to, or why there is none.

    `final` is the form to look for: answer_tag, boxed, hash (`#### 7`), phrase ("the answer is 7"), or auto, which
    takes the first of these, in this order, that the text uses. "any" is auto and then, where the text uses none, its
    last formula or number: for scoring texts of others that were never told how to answer, not for training.
    """
    if final not in FINALS:
        raise UsageError(f"final={final!r}: not a way to give an answer; use one of {', '.join(FINALS)}")
    rest = after_thinking(text)
    if isinstance(rest, Unread):
        return rest
    for name, rule in _RULES.items():
        if final in ("auto", "any", name) and (found := rule(rest)) is not None:
            if final == "any" and name == "phrase" and isinstance(found, Extracted) and not is_formula(found.answer):
                return _anything(found.answer) or found
            return found
    if final == "any" and (found := _anything(rest)) is not None:
        return found
    return Unread("no answer found" if rest.strip() else "text is empty")

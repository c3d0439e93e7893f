"""Answers that are words, lists or tables: BIG-Bench Hard, KOR-Bench, Zebra puzzles."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from fathom.judge.answers.options import option
from fathom.judge.extract import Extracted, Unread, after_thinking, extract
from fathom.judge.maths import number
from fathom.judge.verdict import Verdict

_DRESS = re.compile(r"\\(?:text|mathrm|textbf|mathbf|texttt)\s*\{([^{}]*)\}|[*_`$]")
_EDGES = " \t\n.:;,\"'“”‘’"
_BRACKETS = re.compile(r"[^()\[\]{}<>\s]")
_LONGEST_JSON = 100_000


def judge_words(gold: str, text: str) -> Verdict:
    """BIG-Bench Hard: a letter in brackets, a number, yes or no, words in order, brackets that close.

    Case, commas between words and dress around them do not count.
    """
    found = extract(text)
    if isinstance(found, Unread):
        return Verdict.unread(found.reason)
    answer = found.answer
    if letter := option(gold):
        chosen = option(answer) or option(answer, labelled=True)
        if chosen:
            return _said(chosen == letter, "same option", "different options", answer)
        return Verdict.wrong("no option named", answer)
    if (value := number(gold)) is not None:
        return _said(number(_undressed(answer)) == value, "equal numbers", "different numbers", answer)
    if not _BRACKETS.search(gold):
        return _said(_closing(answer) == _closing(gold), "same brackets", "different brackets", answer)
    return _said(_words(answer) == _words(gold), "same words", "different words", answer)


def _undressed(answer: str) -> str:
    return _DRESS.sub(lambda match: match[1] or "", answer).strip(_EDGES)


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[\s,;]+", _undressed(text).casefold()) if word]


def _closing(text: str) -> str:
    """Brackets alone; a text with anything else is itself, so that it equals none."""
    bare = re.sub(r"[\s,]+", "", _DRESS.sub(lambda match: match[1] or "", text).strip().strip("\"'.").strip())
    return bare.replace("\\{", "{").replace("\\}", "}")


def in_brackets(text: str) -> Extracted | Unread:
    """KOR-Bench: what the last pair of double brackets after the thinking holds."""
    rest = after_thinking(text)
    if isinstance(rest, Unread):
        return rest
    end = rest.rfind("]]")
    while end >= 0 and rest.startswith("]", end + 2):  # `[[[c1;c2]φ]]` may end in three
        end += 1
    start = _opening(rest, end)
    if start is None:
        return Unread("no answer in double brackets")
    answer = rest[start + 2 : end].strip()
    return Extracted(answer, "brackets") if answer else Unread("answer is empty")


def _opening(text: str, end: int) -> int | None:
    """Where the double bracket opens that `]]` at `end` closes."""
    if end < 0:
        return None
    depth, at = 0, end + 1
    while at >= 0:
        if text[at] == "]":
            depth += 1
        elif text[at] == "[":
            depth -= 1
            if depth == 0:
                return at if text.startswith("[[", at) else None
        at -= 1
    return None


def brackets_form(text: str) -> str:
    """A spelling in which equal answers of KOR-Bench meet: no blanks around separators, no case, no dress."""
    form = _DRESS.sub(lambda match: match[1] or "", text).strip().casefold()
    form = re.sub(r"\s*([;,|=()\[\]])\s*", r"\1", form)
    return re.sub(r"\s+", " ", form).strip()


def _said(same: bool, right: str, wrong: str, answer: str) -> Verdict:
    return Verdict.right(right, answer) if same else Verdict.wrong(wrong, answer)


def judge_table(gold: Mapping[str, Mapping[str, str]], text: str) -> Verdict:
    """A Zebra puzzle: every cell must be right. The score of a wrong table is the share of its cells that are."""
    rest = after_thinking(text)
    if isinstance(rest, Unread):
        return Verdict.unread(rest.reason)
    found = _last_object(rest[-_LONGEST_JSON:])
    if found is None:
        return Verdict.unread("no JSON object")
    while len(found) == 1 and isinstance(inner := next(iter(found.values())), dict) \
            and any(isinstance(line, dict) for line in inner.values()):
        found = inner  # {"solution": {...}}
    cells = {(_key(row), _key(name)): _key(value) for row, line in gold.items() for name, value in line.items()}
    given = {(_key(row), _key(name)): _key(value) for row, line in found.items() if isinstance(line, dict)
             for name, value in line.items()}
    given |= {(row.removeprefix("house").strip(), name): value for (row, name), value in given.items()}
    right = sum(given.get(place) == value for place, value in cells.items())
    said = f"{right} of {len(cells)} cells"
    if right == len(cells):
        return Verdict.right("all cells right", said)
    if not any(place in given for place in cells):
        return Verdict.unread("JSON object has none of the cells")
    return Verdict.wrong("cells are wrong", said, min(right / len(cells), 1.0))


def _key(value: Any) -> str:
    return re.sub(r"[\s_]+", " ", str(value).strip().casefold())


def _last_object(text: str) -> dict[str, Any] | None:
    """The last outermost {…} that is JSON, found in time linear in the text but for what fails to parse."""
    decoder, found, at, tries = json.JSONDecoder(), None, text.find("{"), 0
    while at >= 0 and tries < 200:
        tries += 1
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            found = value if isinstance(value, dict) else found
        at = text.find("{", end)
    return found

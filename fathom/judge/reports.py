"""What a judging model writes about one answer, read: the verdict that it gives, or that it gave none.

A report has three sections, as Omni-MATH's judges write them (arXiv 2410.07985, appendix): the student's final answer,
the judgement (TRUE or FALSE) and its reason. `read` takes every spelling that leaves no doubt; `published` is the
reading of the official script, kept for the second row of a score.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fathom.judge.extract import Unread, after_thinking

ANSWER, JUDGEMENT, REASON = "Student Final Answer", "Equivalence Judgement", "Justification"
END = "=== report over ==="

_HEADING = re.compile(
    r"^[ \t]*(?:[#>\-][#>\-]{0,7}[ \t]*)?(?:\d{1,2}[.)][ \t]*)?[*_]{0,3}"
    r"(?P<name>(?:student'?s?[ \t]+)?final[ \t]+answer|equivalence[ \t]+judge?ment|justification)"
    r"[*_]{0,3}[ \t]*(?::[*_]{0,3}|(?=\s*$))(?P<rest>[^\n]*)$",
    re.IGNORECASE | re.MULTILINE,
)
_KINDS = {"answer": ANSWER, "judgement": JUDGEMENT, "judgment": JUDGEMENT, "justification": REASON}
_WORD = re.compile(r"(?<![A-Za-z])(true|false)(?![A-Za-z])", re.IGNORECASE)
_NEGATED = re.compile(r"\b(?:not|neither|nor|no)\b|n't\b", re.IGNORECASE)
_NOTHING = re.compile(
    r"[\s*_`$(\[]*(?:none|missing|n/?a|not (?:given|provided|found)|no (?:final )?answer)\b", re.IGNORECASE)
_LONGEST = 200_000  # characters of a reply that are read


@dataclass(frozen=True)
class Report:
    """One reply. `equal` is None where it gives no verdict, or two that differ; `answer` None where it names none."""

    equal: bool | None
    answer: str | None = None
    reason: str = ""

    @property
    def nothing_answered(self) -> bool:
        """Whether the judge found no final answer to compare."""
        return self.answer is not None and (not self.answer.strip() or bool(_NOTHING.match(self.answer)))


def read(text: str) -> Report:
    """The report in a model's reply. Only its own headings begin a section, however many `##` its reason holds.

    `**TRUE**`, `True.` and `TRUE (they are equal)` are TRUE. No verdict: a line with both words or with neither, "not
    true", several judgements that differ, no judgement at all, thinking that never ends.
    """
    rest = after_thinking(text[:_LONGEST])
    if isinstance(rest, Unread):
        return Report(None, reason=rest.reason)
    rest = rest.partition(END)[0]
    sections: dict[str, list[str]] = {}
    found = list(_HEADING.finditer(rest))
    for i, match in enumerate(found):
        until = found[i + 1].start() if i + 1 < len(found) else len(rest)
        kind = _KINDS[match["name"].split()[-1].lower()]
        sections.setdefault(kind, []).append(f"{match['rest']}\n{rest[match.end():until]}".strip())
    said = {_verdict(section) for section in sections.get(JUDGEMENT, [])}
    answers = sections.get(ANSWER)
    return Report(
        said.pop() if len(said) == 1 else None,
        answers[0] if answers else None,
        (sections.get(REASON) or [""])[0],
    )


def _verdict(section: str) -> bool | None:
    line = next((line for line in section.splitlines() if line.strip(" \t*_`#>-")), "")
    found = list(_WORD.finditer(line))
    words = {match[1].lower() for match in found}
    if len(words) != 1 or _NEGATED.search(line, 0, found[0].start()):
        return None
    return words == {"true"}


def published(text: str) -> bool | None:
    """The official reading: sections at every `## `, TRUE exactly on the line after the title; None is not parsed.

    `**TRUE**`, `True` and `TRUE.` are not TRUE to it, and a report without the section is left out of its score.
    """
    for section in text.split("## "):
        lines = section.strip().split("\n")
        if lines[0].strip() == JUDGEMENT:
            return lines[1].strip() == "TRUE" if len(lines) > 1 else None
    return None

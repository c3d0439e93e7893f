"""Whether training texts hold test problems, by n-grams (DeepSeekMath §2.1: any 10-gram, short items whole).

Both sides are lower-cased and lose punctuation, `$` and LaTeX's spacing first; a Chinese character is a gram of its
own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fathom.core.errors import UsageError
from fathom.tasks.task import Problem

SHORTEST = 3  # grams of an item that is looked for at all, as a whole
_SPACING = re.compile(r"\\(?:[,;:! ]|quad|qquad|left|right|displaystyle|text|mathrm|mathbf)(?![A-Za-z])")
_GRAM = re.compile(r"[㐀-䶿一-鿿぀-ヿ가-힯]|[^\W_㐀-䶿一-鿿぀-ヿ가-힯]+")


def grams(text: str) -> list[str]:
    """The words, numbers and Chinese characters of a text, in order."""
    return _GRAM.findall(_SPACING.sub(" ", text).replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").lower())


@dataclass(frozen=True)
class Hit:
    """A test item that a text holds a part of: which, the first shared words, and the share of its n-grams found."""

    item: int
    words: str
    share: float


@dataclass
class Index:
    """The n-grams of test items. Items with fewer than n grams are found whole; those under SHORTEST never are."""

    n: int
    items: list[tuple[str, str]] = field(default_factory=list)  # task and problem id
    too_short: list[tuple[str, str]] = field(default_factory=list)
    _found: dict[str, list[int]] = field(default_factory=dict)
    _counts: list[int] = field(default_factory=list)
    _lengths: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.n < SHORTEST:
            raise UsageError(f"n={self.n}: shorter n-grams are in any text; set n ≥ {SHORTEST}, as a rule 10 or 13")

    def add(self, task: str, problem: str, text: str) -> None:
        """One test item."""
        words = grams(text)
        if len(words) < SHORTEST:
            self.too_short.append((task, problem))
            return
        length = min(self.n, len(words))
        keys = set(_windows(words, length))
        for key in keys:
            self._found.setdefault(key, []).append(len(self.items))
        self._lengths.add(length)
        self.items.append((task, problem))
        self._counts.append(len(keys))

    def hits(self, text: str) -> list[Hit]:
        """The items that the text shares an n-gram with, those with the largest share first."""
        words = grams(text)
        shared: dict[int, set[str]] = {}
        first: dict[int, str] = {}
        for length in sorted(self._lengths):
            for key in _windows(words, length):
                for item in self._found.get(key, ()):
                    first.setdefault(item, key)
                    shared.setdefault(item, set()).add(key)
        found = [Hit(item, first[item], len(keys) / self._counts[item]) for item, keys in shared.items()]
        return sorted(found, key=lambda hit: (-hit.share, hit.item))


def _windows(words: Sequence[str], length: int) -> Iterator[str]:
    for start in range(len(words) - length + 1):
        yield " ".join(words[start : start + length])


def asked(problem: Problem, solutions: bool = False) -> str:
    """What is looked for of a test problem: its question, and with `solutions` its worked solution too."""
    question = problem.meta.get("question") or next(
        (message.text for message in reversed(problem.prompt) if message.role == "user"), "")
    return f"{question}\n{problem.solution}" if solutions and problem.solution else str(question)


def texts(value: Any) -> Iterator[str]:
    """Every text in a row, whatever its format: what is not recognised must not go unseen."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, Iterable):
        for inner in value:
            yield from texts(inner)

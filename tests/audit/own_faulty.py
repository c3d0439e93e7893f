"""Judges and rewards with the faults that an audit must find."""

from __future__ import annotations

import itertools
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from fathom.core.chat import Message
from fathom.judge.extract import Extracted, extract
from fathom.judge.verdict import Answered, Verdict
from fathom.tasks.task import Problem

_ticks = itertools.count()


class _Sums:
    name = "own_faulty:Sums"

    def problems(self, split: str, limit: int | None = None, seed: int = 0) -> Iterator[Problem]:
        first = 0 if split == "train" else 5_000
        for i in range(first, first + min(limit or 1_000, 1_000)):
            yield Problem(f"p{i}", (Message("user", f"What is {i} + {i + 3}?"),), str(2 * i + 3), self.name)

    def judge(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        return [self.one(problem, text) for problem, text in items]

    def one(self, problem: Problem, text: str) -> Verdict:
        found = extract(text)
        if not isinstance(found, Extracted):
            return Verdict.unread(found.reason)
        return Verdict.right() if found.answer == problem.answer else Verdict.wrong("different")


class Sums(_Sums):
    """Nothing is wrong with this one."""


class Substring(_Sums):
    """Takes any text that holds the answer somewhere."""

    def one(self, problem: Problem, text: str) -> Verdict:
        return Verdict.right() if problem.answer in text else Verdict.wrong("not in it")


class LastBox(_Sums):
    """Takes the last box, however many there are."""

    def one(self, problem: Problem, text: str) -> Verdict:
        said = text.rpartition("\\boxed{")[2].partition("}")[0] or text.rpartition("<answer>")[2].partition("<")[0]
        return Verdict.right() if said == problem.answer else Verdict.wrong("different")


class Deaf(_Sums):
    """A parser that never finds anything: every completion scores 0."""

    def one(self, problem: Problem, text: str) -> Verdict:
        return Verdict.unread("no match")


class Failing(_Sums):
    """Breaks on every answer that it would have to compare."""

    def one(self, problem: Problem, text: str) -> Verdict:
        return Verdict.failed("timeout") if "<answer>" in text else Verdict.unread("no tag")


class Hanging(_Sums):
    """Never comes back."""

    def one(self, problem: Problem, text: str) -> Verdict:
        time.sleep(600)
        return Verdict.right()


class Dying(_Sums):
    """Takes the whole process along."""

    def one(self, problem: Problem, text: str) -> Verdict:
        os._exit(7)


class Empty(_Sums):
    """Has nothing to ask."""

    def problems(self, split: str, limit: int | None = None, seed: int = 0) -> Iterator[Problem]:
        yield from ()


class Untyped(_Sums):
    """Answers in another language."""

    def one(self, problem: Problem, text: str) -> Verdict:
        return True  # type: ignore[return-value]


class Littering(_Sums):
    """Starts what outlives it, and then hangs."""

    def one(self, problem: Problem, text: str) -> Verdict:
        Path("left").write_text(str(subprocess.Popen(["sleep", "1000"]).pid))
        time.sleep(600)
        return Verdict.right()


class Leaking(_Sums):
    """Tests what it trains on."""

    def problems(self, split: str, limit: int | None = None, seed: int = 0) -> Iterator[Problem]:
        yield from super().problems("train", limit, seed)


def constant(answered: Sequence[Answered]) -> list[float | None]:
    """Pays everything alike."""
    return [0.5 for _ in answered]


def restless(answered: Sequence[Answered]) -> list[float | None]:
    """Pays by the clock."""
    return [next(_ticks) % 11 / 11 for _ in answered]


def silent(answered: Sequence[Answered]) -> list[float | None]:
    """Can never say."""
    return [None for _ in answered]


def raising(answered: Sequence[Answered]) -> list[float | None]:
    """Has a bug."""
    return [1.0 / len(one.text[:0]) for one in answered]


def hanging(answered: Sequence[Answered]) -> list[float | None]:
    """Never comes back."""
    time.sleep(600)
    return []


def wordy(answered: Sequence[Answered]) -> list[float | None]:
    """Pays length more than anything."""
    return [len(one.text) / 10 for one in answered]

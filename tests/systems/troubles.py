"""A task and a reward whose judging hangs, dies and eats memory over some completions, told by the text's length."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence

from fathom.core.chat import Message
from fathom.judge.pool import Broken, Pool
from fathom.judge.verdict import Answered, Verdict
from fathom.tasks.task import Problem


def trouble(text: str, first: int) -> str | None:
    """What befalls a judge over this text: the task's judge meets 0–2 of 12, the reward 3–5, so that they differ."""
    return {first: "hang", first + 1: "die", first + 2: "eat"}.get(len(text) % 12)


def suffer(text: str, first: int) -> float:
    """The share of digits, if one lives to say it."""
    match trouble(text, first):
        case "hang":
            time.sleep(60)
        case "die":
            os._exit(3)
        case "eat":
            bytearray(1 << 33)
    return sum(c.isdigit() for c in text) / max(1, len(text))


def judge(text: str) -> float:
    """Runs in the task's pool."""
    return suffer(text, 0)


def reward(answered: Sequence[Answered]) -> list[float | None]:
    """A reward of one's own."""
    return [suffer(one.text, 3) for one in answered]


class Troubled:
    """Sums, judged in a pool with partial credit."""

    name = "troubles:Troubled"

    def __init__(self) -> None:
        self._pool = Pool("troubles:judge", timeout_s=0.8, memory_mb=256)

    def problems(self, split: str, limit: int | None = None, seed: int = 0) -> Iterator[Problem]:
        """`1 + 1 =` and so on."""
        for i in range(limit or 1000):
            yield Problem(f"p{i}", (Message("user", f"{i} + {i} ="),), str(2 * i), self.name)

    def judge(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """FAILED where the pool gave nothing."""
        values = self._pool.map([text for _, text in items])
        return [
            Verdict.failed(value.reason) if isinstance(value, Broken) else Verdict.wrong("share", score=value)
            for value in values
        ]

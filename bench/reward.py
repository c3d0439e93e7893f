"""The reward of the GRPO bench, apart from it so that the process that it runs in loads nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence

from fathom.judge.verdict import Answered


def score(text: str) -> float:
    """Costs nothing and differs within every group."""
    return (sum(map(ord, text)) % 101) / 100


def reward(answers: Sequence[Answered]) -> list[float | None]:
    """`score` of each completion."""
    return [score(a.text) for a in answers]

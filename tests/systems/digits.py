"""The reward that GRPO uses in these tests, apart from small.py so that its process starts fast."""

from __future__ import annotations

from collections.abc import Sequence

from fathom.judge.verdict import Answered


def share(answered: Sequence[Answered]) -> list[float | None]:
    """A reward that an untrained model meets: the share of digits in the text, so that groups are not flat."""
    return [sum(c.isdigit() for c in a.text) / max(1, len(a.text)) for a in answered]


def high(answered: Sequence[Answered]) -> list[float | None]:
    """The same and 1, which a critic has to learn first."""
    return [1 + sum(c.isdigit() for c in a.text) / max(1, len(a.text)) for a in answered]


def one(answered: Sequence[Answered]) -> list[float | None]:
    """The same for everything."""
    return [1.0 for _ in answered]

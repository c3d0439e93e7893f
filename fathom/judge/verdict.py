"""The four things that can be said about an answer, and the rule that a broken judge is never a zero."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from fathom.core.chat import Message


class Outcome(StrEnum):
    """What was found out about one completion."""

    RIGHT = "right"
    WRONG = "wrong"
    UNREAD = "unread"  # the text holds no answer that could be read
    FAILED = "failed"  # our judge broke; nothing is known about the answer


@dataclass(frozen=True)
class Verdict:
    """One judgement. `score` lies in [0, 1] and is None exactly when the outcome is FAILED.

    `reason` is short and stable: it is counted. `answer` is what was read out of the text, where something was.
    """

    outcome: Outcome
    score: float | None
    reason: str
    answer: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "outcome", Outcome(self.outcome))
        if (self.score is None) != (self.outcome is Outcome.FAILED):
            raise ValueError(f"{self.outcome} with score {self.score}: the score is None exactly when FAILED")
        if self.score is not None and not (math.isfinite(self.score) and 0 <= self.score <= 1):
            raise ValueError(f"{self.outcome} with score {self.score}: a score lies in [0, 1]")

    @classmethod
    def right(cls, reason: str = "", answer: str | None = None, score: float = 1.0) -> Verdict:
        """RIGHT, full score unless told otherwise."""
        return cls(Outcome.RIGHT, score, reason, answer)

    @classmethod
    def wrong(cls, reason: str, answer: str | None = None, score: float = 0.0) -> Verdict:
        """WRONG; a judge that gives partial credit says how much."""
        return cls(Outcome.WRONG, score, reason, answer)

    @classmethod
    def unread(cls, reason: str, answer: str | None = None) -> Verdict:
        """UNREAD: the text gave no answer; it scores 0, for whoever wrote the text could have given one."""
        return cls(Outcome.UNREAD, 0.0, reason, answer)

    @classmethod
    def failed(cls, reason: str, answer: str | None = None) -> Verdict:
        """FAILED: no score, so that nobody can mistake it for a zero."""
        return cls(Outcome.FAILED, None, reason, answer)

    def to_json(self) -> list[Any]:
        """A JSON value that `from_json` restores."""
        return [self.outcome.value, self.score, self.reason, self.answer]

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> Verdict:
        """Reads what `to_json` wrote."""
        return cls(*value)


@dataclass(frozen=True)
class Answered:
    """One sampled completion with its judgement: what a reward is given.

    `finish` is "stop" or "length"; `tokens` is the completion's length and `limit` the most it could have had (0 where
    nobody counted); `problem` is the same for the completions of one problem.
    """

    prompt: tuple[Message, ...]
    text: str
    verdict: Verdict
    finish: str = "stop"
    tokens: int = 0
    limit: int = 0
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """A JSON value that `from_json` restores."""
        return {
            "prompt": [message.to_json() for message in self.prompt],
            "text": self.text,
            "verdict": self.verdict.to_json(),
            "finish": self.finish,
            "tokens": self.tokens,
            "limit": self.limit,
            "problem": self.problem,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Answered:
        """Reads what `to_json` wrote."""
        rest = {name: value[name] for name in ("text", "finish", "tokens", "limit", "problem")}
        prompt = tuple(Message.from_json(message) for message in value["prompt"])
        return cls(prompt=prompt, verdict=Verdict.from_json(value["verdict"]), **rest)

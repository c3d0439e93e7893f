"""What the records of an evaluation add up to: accuracy, pass@k and maj@k, each with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fathom.core.errors import FathomError
from fathom.judge.verdict import Outcome, Verdict
from fathom.tasks.statistics import bootstrap_mean, maj_at_k, pass_at_k
from fathom.tasks.task import Score


def score_task(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The entry of one task in scores.json, from its records (one per problem, `samples` in each)."""
    if not rows:
        raise FathomError(f"{name}: 0 problems were answered, so there is no score; check the task's test split")
    groups = [
        [Verdict(Outcome(s["outcome"]), None if s["outcome"] == "failed" else float(s["outcome"] == "right"),
                 s["reason"], s["extracted"]) for s in row["samples"]]
        for row in rows
    ]
    score = Score.of(groups)
    k = len(groups[0])
    powers = [n for n in (1, 2, 4, 8, 16, 32, 64, 128) if n <= k]
    passed = {
        n: [pass_at_k(len(g), sum(v.outcome is Outcome.RIGHT for v in g), n) for g in groups] for n in powers
    }
    votes = {
        n: [maj_at_k([v.answer for v in g[:n]], [v.outcome is Outcome.RIGHT for v in g[:n]]) for g in groups]
        for n in powers if n > 2
    }
    return {
        "task": name, "problems": score.problems, "k": k, "samples": score.samples, "right": score.right,
        "wrong": score.wrong, "unread": score.unread, "failed": score.failed, "accuracy": score.accuracy,
        "low": score.low, "high": score.high, "range": list(score.range), "text": str(score),
        "pass_at": {str(n): float(np.mean(v)) for n, v in passed.items()},
        "pass_at_interval": {str(n): list(bootstrap_mean(v)) for n, v in passed.items()},
        "maj_at": {str(n): float(np.mean(v)) for n, v in votes.items()},
        "maj_at_interval": {str(n): list(bootstrap_mean([float(x) for x in v])) for n, v in votes.items()},
        "mean_tokens": float(np.mean([s["tokens"] for row in rows for s in row["samples"]])),
    }

"""What the records of an evaluation add up to: accuracy, pass@k, maj@k and best of N, each with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fathom.core.errors import FathomError
from fathom.judge.verdict import Outcome, Verdict
from fathom.tasks.statistics import best_at_n, maj_at_k, pass_at_k, share_interval, wilson
from fathom.tasks.tables import Table, by
from fathom.tasks.task import Score, Task

_POWERS = tuple(2**i for i in range(11))
_MOST_KEYS = 40  # of a table that nobody asked for

Rows = Sequence[Mapping[str, Any]]


def score_task(name: str, rows: Rows, task: Task | None = None) -> dict[str, Any]:
    """The entry of one task in scores.json, from its records (one per problem, `samples` in each)."""
    if not rows:
        raise FathomError(f"{name}: 0 problems were answered, so there is no score; check the task's test split")
    groups = [
        [Verdict(Outcome(s["outcome"]), None if s["outcome"] == "failed" else float(s["outcome"] == "right"),
                 s["reason"], s["extracted"]) for s in row["samples"]]
        for row in rows
    ]
    score = Score.of(groups)
    right = [[v.outcome is Outcome.RIGHT for v in g] for g in groups]
    k = min(map(len, groups))
    powers = [n for n in _POWERS if n <= k]
    powers += [k] if k not in powers else []
    passed = {n: [pass_at_k(len(g), sum(g), n) for g in right] for n in powers}
    votes = {
        n: [float(maj_at_k([v.answer for v in g[:n]], r[:n])) for g, r in zip(groups, right, strict=True)]
        for n in powers if n > 2
    }
    samples = [s for row in rows for s in row["samples"]]
    counted = [s["tokens"] for s in samples if s.get("tokens") is not None]
    entry = {
        "task": name, "problems": score.problems, "k": k, "samples": score.samples, "right": score.right,
        "wrong": score.wrong, "unread": score.unread, "failed": score.failed, "accuracy": score.accuracy,
        "low": score.low, "high": score.high, "range": list(score.range), "text": str(score),
        "truncated": sum(s.get("finish") == "length" for s in samples),
        "pass_at": {str(n): float(np.mean(v)) for n, v in passed.items()},
        "pass_at_interval": {str(n): _interval(v, score.samples) for n, v in passed.items()},
        "maj_at": {str(n): float(np.mean(v)) for n, v in votes.items()},
        "maj_at_interval": {str(n): _interval(v, len(v)) for n, v in votes.items()},
        "right_among_solved": {
            str(n): _mean([np.mean(r[:n]) for r in right if any(r[:n])]) for n in powers if n > 1},
        "mean_tokens": float(np.mean(counted)) if counted else None, "tokens": sum(counted) if counted else None,
    }
    if best := _best(rows, right, powers):
        entry["best_of"] = {n: float(np.mean(v)) for n, v in best.items()}
        entry["best_of_interval"] = {n: _interval(v, score.samples) for n, v in best.items()}
    if second := _conventions(samples):
        entry["conventions"] = second
    if labels := _labels(rows):
        entry["labels"] = labels
    tables = list(task.tables(rows)) if task is not None and hasattr(task, "tables") else _by_parts(rows, right)
    entry["tables"] = [table.to_json() for table in tables]
    return entry


def _interval(values: Sequence[float], samples: int) -> list[float]:
    """Of a mean over problems of what was estimated for each from several samples."""
    return list(share_interval(values, [1] * len(values), samples))


def _mean(values: Sequence[Any]) -> float | None:
    return float(np.mean(values)) if values else None


def _best(rows: Rows, right: Sequence[Sequence[bool]], powers: Sequence[int]) -> dict[str, list[float]]:
    """The best of N by the samples' scores; nothing where a sample has none."""
    scores = [[s.get("score") for s in row["samples"]] for row in rows]
    if len(powers) < 2 or any(score is None for group in scores for score in group):
        return {}
    return {str(n): [best_at_n(g, r, n) for g, r in zip(scores, right, strict=True)] for n in powers}


def _conventions(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Second rows of a score: what other conventions make of the same answers, each under its own name."""
    found = []
    published = [s["published"] for s in samples if s.get("published") is not None]
    if any("published" in s for s in samples):
        missing = len(samples) - len(published)
        found.append(_convention("published reading of reports: TRUE to the letter, others wrong, "
                                 f"{missing} without a judgement left out", published))
    ruled = [s["rule"] == "right" for s in samples if s.get("rule") is not None]
    if ruled:
        broken = sum(s.get("rule") == "failed" for s in samples)
        found.append(_convention(f"rule judge on the same answers, {broken} of which it could not judge", ruled))
        both = [(s["rule"] == "right", s["outcome"] == "right") for s in samples
                if s.get("rule") not in (None, "failed") and s["outcome"] != "failed"]
        found.append(_convention("rule judge and judging model agree, where both judged", [a == b for a, b in both]))
    return found


def _convention(name: str, right: Sequence[bool]) -> dict[str, Any]:
    low, high = wilson(sum(right), len(right))
    text = f"{sum(right)}/{len(right)}"
    if right:
        text += f" ({100 * sum(right) / len(right):.1f} %; 95 % interval {100 * low:.1f}–{100 * high:.1f} %)"
    return {"name": name, "right": sum(right), "of": len(right), "low": low, "high": high, "text": text}


def differs(sample: Mapping[str, Any]) -> bool:
    """Whether somebody labelled the sample and our verdict is another; what we could not judge differs too."""
    if sample.get("label") is None:
        return False
    return sample["outcome"] == "failed" or (sample["outcome"] == "right") is not sample["label"]


def _labels(rows: Rows) -> dict[str, Any]:
    """How far our verdicts and stored labels agree."""
    labelled = [s for row in rows for s in row["samples"] if s.get("label") is not None]
    if not labelled:
        return {}
    agree = [not differs(s) for s in labelled]
    return {
        **_convention("verdicts equal to the stored labels", agree),
        "labelled_right": sum(s["label"] for s in labelled),
        "right_but_labelled_wrong": sum(s["outcome"] == "right" and not s["label"] for s in labelled),
        "labelled_right_but_not": sum(s["outcome"] != "right" and s["label"] for s in labelled),
    }


def _by_parts(rows: Rows, right: Sequence[Sequence[bool]]) -> list[Table]:
    """A table for each thing that the problems of a task without tables of its own say of themselves."""
    keyed = [(row.get("about") or {}, r) for row, r in zip(rows, right, strict=True)]
    names = dict.fromkeys(name for about, _ in keyed for name in about)
    return [
        by(f"By {name}", name, ((str(about[name]), r) for about, r in keyed if name in about), order=str)
        for name in names
        if 1 < len({str(about[name]) for about, _ in keyed if name in about}) <= _MOST_KEYS
    ]


def rendered(scores: Sequence[Mapping[str, Any]], about: Sequence[str] = ()) -> str:
    """All scores as plain text with every table; ends with a newline."""
    parts = list(about)
    for score in scores:
        parts.append("\n".join([f"{score['task']}: {score['text']}", *lines(score)]))
        parts += [str(Table.from_json(table)) for table in score.get("tables", ())]
    return "\n\n".join(parts) + "\n"


def judged_by(judge: Mapping[str, Any]) -> str:
    """The judging model beside a score, with its cost where it has a price."""
    cost = "" if judge.get("cost") is None else f", cost {judge['cost']:.4g}"
    return f"judged by {judge['model']}, prompt {judge['prompt']}{cost}"


def lines(score: Mapping[str, Any]) -> list[str]:
    """What stands below a score: what was cut off, pass@k and the like, other conventions, labels."""
    found = []
    tokens = "" if score.get("mean_tokens") is None else f"; {score['mean_tokens']:.0f} tokens an answer"
    if score.get("truncated") or tokens:
        found.append(f"  cut off at the limit: {score.get('truncated', 0)} of {score['samples']}{tokens}")
    for key, name in (("pass_at", "pass@{}"), ("maj_at", "maj@{}"), ("best_of", "best of {}")):
        values, intervals = score.get(key, {}), score.get(f"{key}_interval", {})
        if len(values) > 1 or (key != "pass_at" and values):
            found.append("  " + ", ".join(
                f"{name.format(n)} {100 * value:.1f} %" + (
                    f" ({100 * intervals[n][0]:.1f}–{100 * intervals[n][1]:.1f})" if n in intervals else "")
                for n, value in values.items()))
    for row in score.get("conventions", ()):
        found.append(f"  {row['name']}: {row['text']}")
    if labels := score.get("labels"):
        found.append(f"  {labels['name']}: {labels['text']}; right here and labelled wrong "
                     f"{labels['right_but_labelled_wrong']}, labelled right and not right here "
                     f"{labels['labelled_right_but_not']}")
    return found

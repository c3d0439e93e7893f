"""Completions for the page: problems with their groups and verdicts, within a budget of characters.

A run may hold gigabytes of samples. Steps and problems are then chosen evenly over the whole run, and long texts lose
their middle (the answer stands at the end); both are counted so that the page says what it does not show.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from fathom.report.read import Stage, prompt_text, read_lines

FILES = 40  # most sample files read of one stage
HEAD, TAIL = 6000, 2500  # characters kept of a longer text
T = TypeVar("T")


def completions(stages: Sequence[Stage], budget: int = 1_400_000) -> list[dict[str, Any]]:
    """One entry per stage with samples or evaluated records: {stage, kind, shown, total, problems}.

    `budget` bounds the characters of all prompts and texts together. A stage without completions has no entry.
    """
    sources = []
    for stage in stages:
        files = sorted((stage.dir / "samples").glob("*.jsonl"))
        if files:
            chosen = evenly(files, FILES)
            problems = [_problem(row) for path in chosen for row in read_lines(path).rows if row.get("group")]
            total = len(problems) if len(chosen) == len(files) else None
            sources.append((stage, "samples", problems, total, len(files)))
        elif stage.scores:
            problems = [_problem({**row.data, "group": row.data.get("samples")}) for row in stage.kept()]
            sources.append((stage, "evaluation", problems, len(problems), 0))
    sources = [source for source in sources if source[2]]
    found: list[dict[str, Any]] = []
    spent = 0
    for i, (stage, kind, problems, total, steps) in enumerate(sources):
        kept = list(_within(problems, (budget - spent) // (len(sources) - i)))
        spent += sum(map(_size, kept))
        found.append(
            {
                "stage": stage.name,
                "kind": kind,
                "total": total,
                "steps": steps,
                "problems": kept,
            }
        )
    return found


def evenly(items: Sequence[T], limit: int) -> list[T]:
    """At most `limit` items, the first and the last among them, spread evenly over `items`."""
    if len(items) <= limit:
        return list(items)
    return [items[round(i * (len(items) - 1) / (limit - 1))] for i in range(limit)]


def _within(problems: Sequence[dict[str, Any]], budget: int) -> Iterator[dict[str, Any]]:
    """As many problems as fit, chosen evenly: the largest even selection whose size stays within `budget`."""
    low, high = 1, len(problems)
    if sum(map(_size, problems)) <= budget:
        low = high
    while low < high:
        middle = (low + high + 1) // 2
        if sum(map(_size, evenly(problems, middle) if middle > 1 else problems[:1])) <= budget:
            low = middle
        else:
            high = middle - 1
    yield from evenly(problems, low) if low > 1 else problems[:1]


def _size(problem: dict[str, Any]) -> int:
    return len(problem["prompt"]["text"]) + 120 + sum(len(s["text"]) + len(s["reason"]) + 120 for s in problem["group"])


def _problem(row: dict[str, Any]) -> dict[str, Any]:
    problem: dict[str, Any] = {
        "problem": str(row.get("problem", "")),
        "prompt": _cut(prompt_text(row.get("prompt"))),
        "answer": str(row.get("answer", "")),
        "group": [_sample(sample) for sample in _objects(row.get("group"))],
    }
    for key in ("step", "task"):
        if row.get(key) is not None:
            problem[key] = row[key]
    return problem


def _sample(sample: dict[str, Any]) -> dict[str, Any]:
    tokens = sample.get("tokens")
    found: dict[str, Any] = _cut(str(sample.get("text", "")))
    found["outcome"] = str(sample.get("outcome", ""))
    found["reason"] = str(sample.get("reason") or "")
    found["tokens"] = len(tokens) if isinstance(tokens, list) else tokens
    for key in ("extracted", "reward", "rewards", "advantage", "finish"):
        if sample.get(key) is not None:
            found[key] = sample[key]
    return found


def _cut(text: str) -> dict[str, Any]:
    """{"text"}, with {"cut": characters left out, "at": where} for a text that was too long."""
    if len(text) <= HEAD + TAIL:
        return {"text": text}
    return {"text": text[:HEAD] + text[-TAIL:], "cut": len(text) - HEAD - TAIL, "at": HEAD}


def _objects(value: Any) -> Iterable[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []

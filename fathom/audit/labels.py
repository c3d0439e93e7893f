"""Agreement of a judge with labelled answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fathom.audit import Check, State
from fathom.core.chat import Message
from fathom.core.errors import UsageError
from fathom.judge.maths import MathsJudge
from fathom.judge.verdict import Outcome, Verdict
from fathom.tasks.gym import GymTask
from fathom.tasks.judging import judged
from fathom.tasks.maths import FileTask
from fathom.tasks.task import Problem, Task

LEAST_AGREEMENT = 0.95
MOST_FALSE_ACCEPTS = 0.03
ROWS = 2_000


def read_labels(path: Path) -> list[dict[str, Any]]:
    """JSON lines with `answer` (the reference), `text` (a completion) and `right`; UsageError names a bad line."""
    return list(_rows(path))


def check_labels(stage: str, name: str, rows: list[dict[str, Any]], task: Task | None) -> Check:
    """Verdicts on labelled answers beside their labels.

    The mathematics judge judges them, or a task of the user's own (a `question` goes into the prompt).
    """
    own = task if task is not None and not isinstance(task, FileTask | GymTask) else None
    verdicts = _verdicts(rows, own)
    wrongly_taken = [
        row for row, verdict in zip(rows, verdicts, strict=True)
        if verdict.outcome is Outcome.RIGHT and not row["right"]
    ]
    refused = sum(v.outcome is not Outcome.RIGHT and row["right"] for row, v in zip(rows, verdicts, strict=True))
    failed = sum(verdict.outcome is Outcome.FAILED for verdict in verdicts)
    wrong = sum(not row["right"] for row in rows)
    agreed = len(rows) - len(wrongly_taken) - refused
    shown = "; ".join(f"{row['answer']!r:.30} for {row['text'][-40:]!r}" for row in wrongly_taken[:3])
    who = own.name if own else "the maths judge"
    said = (
        f"{who} agrees on {agreed} of {len(rows)} ({100 * agreed / len(rows):.1f} %); "
        f"taken though wrong {len(wrongly_taken)} of {wrong}{': ' + shown if shown else ''}; refused though right "
        f"{refused}; not judged {failed}")
    bad = agreed < LEAST_AGREEMENT * len(rows) or len(wrongly_taken) > MOST_FALSE_ACCEPTS * wrong
    return Check(
        stage, f"agreement with {name}", State.FAIL if bad else State.OK, said,
        "look at the answers on which they differ: mend the judge, or the labels")


def _verdicts(rows: list[dict[str, Any]], own: Task | None) -> list[Verdict]:
    if own is None:
        with MathsJudge(workers=2) as judge:
            return judge.judge([(row["answer"], row["text"]) for row in rows])
    return judged(own, [
        (Problem(str(i), (Message("user", str(row.get("question", ""))),), row["answer"], own.name), row["text"])
        for i, row in enumerate(rows)
    ])


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    count = 0
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UsageError(f"{path}:{number}: not JSON ({error}); write one object a line") from error
            if not isinstance(row, dict) or not isinstance(row.get("right"), bool | int) or not (
                isinstance(row.get("answer"), str) and isinstance(row.get("text"), str)
            ):
                raise UsageError(
                    f"{path}:{number}: needs answer and text (texts) and right (true or false); correct the line")
            yield row
            count += 1
            if count == ROWS:
                return
    if not count:
        raise UsageError(f"{path}: holds no labelled answers; write one JSON object a line")

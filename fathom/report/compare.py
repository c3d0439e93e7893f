"""Two evaluated models side by side: the difference per task over the same problems, and whether it is significant.

Each problem counts once, with the share of its samples that were right among all asked. A failed judgement is not
right here either, as in the headline of every score (DESIGN §2), and the table says how many there were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fathom.core.config import differences
from fathom.core.errors import UsageError
from fathom.report.read import Stage, prompt_text, read_run
from fathom.tasks.statistics import Difference, paired_difference

MOST_FAILED = 0.01  # of the samples; beyond it a difference says nothing


@dataclass(frozen=True)
class Answers:
    """One problem of an evaluation: the share of its samples that were right, and what was asked."""

    share: float
    samples: int
    failed: int
    asked: tuple[str, str]  # prompt as text, reference answer


@dataclass(frozen=True)
class Flip:
    """A problem that one side answers better: the shares of its samples that were right, and what was asked."""

    problem: str
    a: float
    b: float
    prompt: str


@dataclass(frozen=True)
class TaskComparison:
    """One task on both sides, over the problems that both were asked.

    `a` and `b` are mean shares right over these problems; `difference` is b − a over them, None where no problem is
    shared. `changed` holds ids that both sides have with another prompt or another reference answer: not compared.
    `better` and `worse` are the problems that B answers better or worse than A, the largest change first.
    """

    task: str
    problems: int
    a: float
    b: float
    failed_a: int
    failed_b: int
    difference: Difference | None
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    changed: tuple[str, ...]
    samples: int = 0  # of A, over these problems
    better: tuple[Flip, ...] = ()
    worse: tuple[Flip, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """Two evaluations: their names, the tasks both have, the tasks one has, and the settings that differ."""

    a: str
    b: str
    tasks: tuple[TaskComparison, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    settings: tuple[str, ...]


def compare(a: Path, b: Path) -> Comparison:
    """Compares the evaluations at `a` and `b`: stage directories with scores.json, or runs (their last evaluation).

    Raises UsageError where a side has no scores or the two sides share no task.
    """
    return compare_stages(evaluation(a), evaluation(b))


def evaluation(path: Path) -> Stage:
    """The evaluated stage at `path`, the last one of a run. Raises UsageError where there is none."""
    run = read_run(path)
    if not run.evaluations:
        raise UsageError(f"{path}: holds no scores.json; run `evaluate` on this model first, or give its directory")
    return run.evaluations[-1]


def compare_stages(a: Stage, b: Stage) -> Comparison:
    """`compare` for stages that are already read."""
    left, right = answers(a), answers(b)
    shared = [task for task in left if task in right]
    if not shared:
        raise UsageError(
            f"{a.dir} has {', '.join(left) or 'no records'} and {b.dir} has {', '.join(right) or 'no records'}: "
            "no task in common; evaluate both on the same task"
        )
    return Comparison(
        a=_label(a, b),
        b=_label(b, a),
        tasks=tuple(_task(task, left[task], right[task]) for task in shared),
        only_a=tuple(task for task in left if task not in right),
        only_b=tuple(task for task in right if task not in left),
        settings=tuple(differences(a.settings, b.settings)),
    )


def answers(stage: Stage) -> dict[str, dict[str, Answers]]:
    """{task: {problem id: Answers}} from the records of an evaluation. Problems without samples are left out."""
    found: dict[str, dict[str, Answers]] = {}
    for row in stage.kept():
        samples = row.data.get("samples")
        if not isinstance(samples, list) or not samples:
            continue
        outcomes = [str(sample.get("outcome", "")) for sample in samples if isinstance(sample, dict)]
        found.setdefault(str(row.data.get("task", "")), {})[str(row.data.get("problem", row.id))] = Answers(
            share=outcomes.count("right") / len(outcomes),
            samples=len(outcomes),
            failed=outcomes.count("failed"),
            asked=(prompt_text(row.data.get("prompt")), str(row.data.get("answer", ""))),
        )
    return found


def render(comparison: Comparison, flips: int = 5) -> str:
    """The comparison as plain text for a terminal, with so many flips each way; ends with a newline."""
    lines = [f"A  {comparison.a}", f"B  {comparison.b}", ""]
    width = max(len(task.task) for task in comparison.tasks)
    lines.append(f"{'task':<{width}}  {'problems':>8}  {'A':>7}  {'B':>7}  {'B − A':>8}  95 % interval")
    for task in comparison.tasks:
        row = f"{task.task:<{width}}  {task.problems:>8}"
        if task.difference is None:
            lines.append(f"{row}  no problem in common: not compared")
            continue
        interval = f"{_points(task.difference.low)} to {_points(task.difference.high)}"
        verdict = "significant" if task.difference.significant else "not significant"
        if max(task.failed_a, task.failed_b) > MOST_FAILED * task.samples:
            verdict = "open: too much was not judged"
        mean = _points(task.difference.mean)
        lines.append(f"{row}  {task.a:>7.1%}  {task.b:>7.1%}  {mean:>8}  {interval}  {verdict}")
    for task in comparison.tasks:
        if task.difference is not None:
            lines.append(f"{task.task}: {len(task.better)} problems better in B, {len(task.worse)} worse, "
                         f"{task.problems - len(task.better) - len(task.worse)} the same")
            for sign, changed in (("+", task.better), ("−", task.worse)):
                lines += [f"  {sign} {one.problem}  {one.a:.0%} → {one.b:.0%}  {_start(one.prompt)}"
                          for one in changed[:flips]]
                if flips and len(changed) > flips:
                    lines.append(f"  {sign} and {len(changed) - flips} more (--flips)")
        if task.failed_a or task.failed_b:
            lines.append(
                f"{task.task}: not judged in A {task.failed_a}, in B {task.failed_b} samples; not right in A or B"
            )
        lines += _named(f"{task.task}: only A was asked", task.only_a)
        lines += _named(f"{task.task}: only B was asked", task.only_b)
        lines += _named(f"{task.task}: same id but another prompt or answer, not compared", task.changed)
    lines += _named("tasks only in A", comparison.only_a)
    lines += _named("tasks only in B", comparison.only_b)
    if comparison.settings:
        lines += ["", "settings that differ (A → B)", *(f"  {line}" for line in _gathered(comparison.settings))]
    return "\n".join(lines) + "\n"


def _task(name: str, a: Mapping[str, Answers], b: Mapping[str, Answers]) -> TaskComparison:
    both = [problem for problem in a if problem in b]
    same = [problem for problem in both if a[problem].asked == b[problem].asked]
    kept = set(same)
    left, right = [a[p].share for p in same], [b[p].share for p in same]
    flips = sorted((Flip(p, a[p].share, b[p].share, a[p].asked[0]) for p in same if a[p].share != b[p].share),
                   key=lambda flip: -abs(flip.b - flip.a))
    return TaskComparison(
        task=name,
        problems=len(same),
        a=_mean(left),
        b=_mean(right),
        failed_a=sum(a[p].failed for p in same),
        failed_b=sum(b[p].failed for p in same),
        difference=paired_difference(right, left) if same else None,
        only_a=tuple(p for p in a if p not in b),
        only_b=tuple(p for p in b if p not in a),
        changed=tuple(p for p in both if p not in kept),
        samples=sum(a[p].samples for p in same),
        better=tuple(flip for flip in flips if flip.b > flip.a),
        worse=tuple(flip for flip in flips if flip.b < flip.a),
    )


def _label(stage: Stage, other: Stage) -> str:
    """The stage's directory and the model that it scored, where scores.json names one."""
    model: Any = stage.scores.get("model")
    return f"{stage.dir}" + (f"  (model {model})" if model and model != other.scores.get("model") else "")


def _gathered(settings: Sequence[str]) -> list[str]:
    """The lines, those of a group of settings that one side does not have at all as one."""
    found: dict[str, list[str]] = {}
    for line in settings:
        group, dot, _ = line.partition(":")[0].partition(".")
        found.setdefault(group if dot and "not set" in line else line, []).append(line)
    return [lines[0] if len(lines) == 1 else f"{name}: {len(lines)} settings on one side only"
            for name, lines in found.items()]


def _start(prompt: str, limit: int = 70) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= limit else f"{line[:limit - 1]}…"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"


def _named(what: str, names: Sequence[str], limit: int = 5) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return [f"{what}: {', '.join(names[:limit])}{more}"]

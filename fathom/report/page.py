"""What the report says, as one JSON-able value: every number is computed here, the page only draws (and smooths)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from fathom.core.records import Ledger
from fathom.report.compare import Comparison, compare_stages
from fathom.report.completions import completions
from fathom.report.curves import charts, expert_load, lengths, points
from fathom.report.proof import proof
from fathom.report.read import Attempt, RunDir, Stage
from fathom.report.scored import scored

BREAK = 0.02  # longest share of the time line that an idle pause between attempts may take


def page(run: RunDir) -> dict[str, Any]:
    """Everything that the page shows. A part that the run does not have has no key or an empty list."""
    ran = [stage for stage in run.stages if stage.exists]
    compared = _compared(run)
    return {
        "name": run.name,
        "single": not run.plan and len(run.stages) == 1,
        "chain": [{"name": s.name, "system": _system(run, s), "status": s.status} for s in run.stages],
        "facts": _facts(run, ran),
        "warnings": _warnings(ran),
        "headline": _headline(run, ran, compared),
        "timeline": timeline(run),
        "curves": [found for stage in ran if (found := _curves(stage))],
        "proofs": [found for stage in ran if (found := proof(stage))],
        "load": [
            {"stage": stage.name, **load} for stage in ran if (load := expert_load(stage.metrics.rows)) is not None
        ],
        "completions": completions(ran),
        "evaluations": [
            {"stage": s.name, "model": str(s.scores.get("model", "")),
             "tasks": [scored(task, s.scores) for task in s.scores["tasks"]]}
            for s in run.evaluations
        ],
        "ledgers": [
            _ledger(stage.name, stage.ledger) for stage in ran if not stage.scores and stage.ledger is not None
        ],
        "settings": [_settings(stage) for stage in ran if stage.manifest],
        "recipe": run.recipe,
    }


def timeline(run: RunDir) -> dict[str, Any] | None:
    """Attempts of all stages on one axis of working time, None where no manifest lists any.

    Positions are fractions of the axis. Pauses in which nothing ran are shortened to BREAK of the whole and listed.
    An attempt without an end (still running, or killed with no sign of life) is drawn up to the next event.
    """
    spans = [
        (attempt.started, max(attempt.ended if attempt.ended is not None else attempt.started, attempt.started))
        for stage in run.stages
        for attempt in stage.attempts
    ]
    if not spans:
        return None
    edges = sorted({edge for span in spans for edge in span})
    gaps = [
        (left, right, any(start <= left and right <= end for start, end in spans))
        for left, right in itertools.pairwise(edges)
    ]
    busy = sum(right - left for left, right, working in gaps if working)
    pause = BREAK * busy
    position, at, breaks = {edges[0]: 0.0}, 0.0, []
    for left, right, working in gaps:
        width = right - left if working else min(right - left, pause)
        if not working and right - left > width:
            breaks.append({"at": at, "width": width, "seconds": right - left})
        at += width
        position[right] = at
    whole = at or 1.0
    rows = []
    for stage in run.stages:
        attempts = [_attempt(attempt, position, whole) for attempt in stage.attempts]
        steps, _ = points(stage.metrics.rows, "step")
        rows.append(
            {
                "name": stage.name,
                "system": _system(run, stage),
                "status": stage.status,
                "seconds": sum(a["seconds"] for a in attempts if a["seconds"] is not None),
                "steps": int(steps[-1]) if steps else None,
                "attempts": attempts,
            }
        )
    return {
        "busy": busy,
        "breaks": [{"at": (b["at"] + b["width"] / 2) / whole, "seconds": b["seconds"]} for b in breaks],
        "stages": rows,
    }


def _attempt(attempt: Attempt, position: Mapping[float, float], whole: float) -> dict[str, Any]:
    end = max(attempt.ended if attempt.ended is not None else attempt.started, attempt.started)
    return {
        "number": attempt.number,
        "status": attempt.status,
        "from": position[attempt.started] / whole,
        "to": position[end] / whole,
        "seconds": end - attempt.started if attempt.ended is not None else None,
        "certain": attempt.certain,
        "message": attempt.message,
    }


def _compared(run: RunDir) -> Comparison | None:
    """The first evaluation against the last, where a run has two that share a task with records."""
    scored = run.evaluations
    if len(scored) < 2:
        return None
    first, last = scored[0], scored[-1]
    tasks = {str(task.get("task")) for task in first.scores["tasks"]}
    if (
        not tasks & {str(task.get("task")) for task in last.scores["tasks"]}
        or first.ledger is None
        or last.ledger is None
    ):
        return None
    return compare_stages(first, last)


def _headline(run: RunDir, ran: Sequence[Stage], compared: Comparison | None) -> dict[str, Any] | None:
    """Scores before and after, the scores alone, or where nothing was scored the losses and rewards reached."""
    scored = run.evaluations
    if not scored:
        reached = [found for stage in ran for key in ("reward", "held_out", "loss") if (found := _reached(stage, key))]
        return {"kind": "training", "items": reached} if reached else None
    last = scored[-1]
    after = {str(task.get("task")): task for task in last.scores["tasks"]}
    if len(scored) == 1:
        tasks: list[dict[str, Any]] = [{"task": name, "after": task} for name, task in after.items()]
        return {"kind": "score", "after": _scored(run, last), "tasks": tasks}
    before = {str(task.get("task")): task for task in scored[0].scores["tasks"]}
    tasks = [{"task": name, "after": task, "before": before.get(name)} for name, task in after.items()]
    for entry in tasks:
        entry["difference"] = (
            next((_difference(t) for t in compared.tasks if t.task == entry["task"]), None) if compared else None
        )
    return {"kind": "change", "before": _scored(run, scored[0]), "after": _scored(run, last), "tasks": tasks}


def _difference(task: Any) -> dict[str, Any] | None:
    found = task.difference
    if found is None:
        return None
    return {
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "significant": bool(found.significant),
        "problems": task.problems,
        "left_out": len(task.only_a) + len(task.only_b) + len(task.changed),
        "failed": task.failed_a + task.failed_b,
    }


def _scored(run: RunDir, stage: Stage) -> dict[str, str]:
    """The evaluation's stage and the stage that trained the scored model (by the recipe, else by the model's path)."""
    init = run.plan.get(stage.name, {}).get("init") or stage.settings.get("init") or stage.settings.get("model")
    named = str(init or stage.scores.get("model", ""))
    if " at http" in named:  # an endpoint's model
        return {"stage": stage.name, "model": named.partition(" at http")[0], "path": named}
    parts = [part for part in named.replace("\\", "/").split("/") if part and part != "model"]
    return {"stage": stage.name, "model": parts[-1] if parts else "", "path": str(stage.scores.get("model", ""))}


def _reached(stage: Stage, key: str) -> dict[str, Any] | None:
    steps, values = points(stage.metrics.rows, key)
    if len(steps) < 2:
        return None
    return {
        "stage": stage.name,
        "key": key.replace("_", "-"),
        "first": values[0],
        "last": values[-1],
        "step": steps[-1],
    }


def _curves(stage: Stage) -> dict[str, Any] | None:
    found = charts(stage.metrics.rows, stage.timing.rows)
    if not found["charts"] and not found["singles"]:
        return None
    table = lengths(stage.metrics.rows)
    return {"stage": stage.name, "system": stage.system, **found} | ({"lengths": table} if table else {})


def _ledger(name: str, ledger: Ledger) -> dict[str, Any]:
    rejected = sorted(ledger.rejected.items(), key=lambda item: (-item[1], item[0]))
    counts = {"inputs": ledger.inputs, "done": ledger.done, "outputs": ledger.outputs}
    return {"stage": name, **counts, "rejected": [list(pair) for pair in rejected]}


def _facts(run: RunDir, ran: Sequence[Stage]) -> list[list[str]]:
    """Short facts of the run that stand beside its name: only those that every stage agrees on."""
    facts = []
    done = sum(stage.status == "done" for stage in run.stages)
    if len(run.stages) > 1:
        facts.append(["stages", f"{done} of {len(run.stages)} done"])
    elif run.stages:
        facts.append(["status", run.stages[0].status])
    for label, key in (("device", "device"), ("seed", "seed"), ("commit", "commit")):
        values = list(dict.fromkeys(_short(s.manifest[key], key) for s in ran if s.manifest.get(key) is not None))
        if len(values) == 1 and values[0]:
            facts.append([label, values[0]])
    return facts


def _short(value: Any, key: str) -> str:
    if isinstance(value, Mapping):
        value = value.get("name") or value.get("type") or ", ".join(f"{k} {v}" for k, v in value.items())
    if key == "commit":
        head, plus, rest = str(value).partition("+")
        return head[:12] + plus + rest
    return str(value)


def _warnings(ran: Sequence[Stage]) -> list[str]:
    found = []
    for stage in ran:
        for name, lines in (("metrics.jsonl", stage.metrics), ("timing.jsonl", stage.timing)):
            if lines.torn:
                found.append(
                    f"{stage.name}: {lines.torn} line of {name} could not be read: cut off while it was written"
                )
        if stage.status == "failed":
            message = stage.attempts[-1].message if stage.attempts else ""
            found.append(
                f"{stage.name}: failed{f' ({message})' if message else ''}; its log is in {stage.dir.name}/logs"
            )
        for task in stage.scores.get("tasks", []):
            failed, samples = task.get("failed") or 0, task.get("samples") or 0
            if samples and failed > 0.01 * samples:
                found.append(
                    f"{stage.name}: {failed} of {samples} samples of {task.get('task')} were not judged (over 1 %)"
                )
    return found


def _settings(stage: Stage) -> dict[str, Any]:
    manifest = stage.manifest
    known = ("system", "seed", "fingerprint", "commit")
    skipped = {*known, "settings", "status", "attempts", "versions", "device", "inputs", "summary", "format", "version"}
    host = [str(a["host"]) for a in manifest.get("attempts") or [] if isinstance(a, dict) and a.get("host")]
    environment = [[key, str(manifest[key])] for key in known if manifest.get(key) is not None]
    environment += [["host", ", ".join(dict.fromkeys(host))]] if host else []
    for key in ("device", "versions", "inputs"):
        environment += flat({key: manifest.get(key)}) if manifest.get(key) else []
    environment += flat({k: v for k, v in manifest.items() if k not in skipped})
    return {
        "stage": stage.name,
        "system": stage.system,
        "rows": flat(stage.settings),
        "summary": flat(manifest.get("summary") or {}),
        "environment": environment,
    }


def flat(value: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    """Nested settings as [dotted name, text] pairs."""
    rows: list[list[str]] = []
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, Mapping) and inner:
            rows += flat(inner, name + ".")
        elif isinstance(inner, (list, tuple)) and not any(isinstance(x, (Mapping, list)) for x in inner):
            rows.append([name, ", ".join(map(str, inner)) or "none"])
        else:
            rows.append([name, "none" if inner is None else str(inner)])
    return rows


def _system(run: RunDir, stage: Stage) -> str:
    return stage.system or str(run.plan.get(stage.name, {}).get("run", ""))

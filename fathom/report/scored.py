"""A task's score as the page shows it: pass@k, maj@k and best of N as curves, second rows and labels as sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fathom.report.curves import shorten
from fathom.tasks.scores import judged_by, lines

_CURVES = (("pass_at", "pass@k", "accent"), ("maj_at", "maj@k", "warm"), ("best_of", "best of k", "teal"))


def scored(task: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    """The task's entry of scores.json (`whole`) with `notes`, and with `chart` where a problem has several samples."""
    series = []
    for key, label, colour in _CURVES:
        values = {int(k): value for k, value in (task.get(key) or {}).items()}
        if len(values) > 1:
            series.append({"label": label, "colour": colour, "x": list(values), "per": 1, "exact": True,
                           "y": [shorten(value) for value in values.values()]})
    # from an older scores.json some of what `lines` says may be missing
    notes = [line.strip() for line in lines(task) if "@" not in line] if "samples" in task else []
    if asked := whole.get("sampling", {}).get(task.get("task")):
        notes.insert(0, ", ".join(f"{name} {value}" for name, value in asked.items()))
    if judge := whole.get("judge"):
        notes.insert(0, judged_by(judge))
    found = {**task, "notes": notes}
    if series and task.get("tables") is not None:
        found["chart"] = {
            "title": "Samples", "axis": "sample", "log": False, "wide": True, "share": False, "unit": "%",
            "note": "pass@k: one of k samples is right; maj@k: the most frequent answer of the first k is; best of k: "
                    "the best-scored of k is", "series": series}
    return found

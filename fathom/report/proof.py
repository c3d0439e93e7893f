"""The proof of a long-context stage as plain data: loss by position as curves, needles found as a grid."""

from __future__ import annotations

from typing import Any

from fathom.report.curves import shorten
from fathom.report.read import Stage

COLOURS = ("ink", "warm", "violet", "teal", "accent")


def proof(stage: Stage) -> dict[str, Any] | None:
    """{"stage", "original", "target", "chart", "grids"} of what a stage measured; None where it measured nothing.

    A curve's points stand at the last position of their bucket, its band is one standard error. A grid's cells are
    shares of needles found, rows by depth and columns by length.
    """
    measured = [found for found in stage.proofs if found.get("curve") and found.get("needle")]
    if not measured:
        return None
    names = [_name(str(found.get("name", ""))) for found in measured]
    colours = [*COLOURS[: len(measured) - 1], "accent"] if len(measured) <= len(COLOURS) else [
        COLOURS[i % len(COLOURS)] for i in range(len(measured))]
    series = []
    for found, name, colour in zip(measured, names, colours, strict=True):
        curve = found["curve"]
        line: dict[str, Any] = {
            "label": name, "colour": colour, "x": [edge - 1 for edge in curve["edges"][1:]], "per": 1, "exact": True,
            "y": [shorten(y) for y in curve["loss"]], "band": [shorten(e) for e in curve["error"]]}
        series.append(line | ({"dashed": True} if not found.get("step") else {}))
    original, target = measured[-1]["original"], measured[-1]["target"]
    return {
        "stage": stage.name,
        "original": original,
        "target": target,
        "chart": {
            "title": "Loss by position", "axis": "position", "log": False, "wide": True, "share": False, "unit": "",
            "note": f"nats per token on held-out texts, ± one standard error; the model was trained on {original:,} "
                    "positions before", "series": series},
        "grids": [
            {"name": name, "lengths": needle["lengths"], "depths": needle["depths"], "samples": needle["samples"],
             "found": [[shorten(count / needle["samples"]) for count in row] for row in needle["right"]]}
            for name, needle in zip(names, (found["needle"] for found in measured), strict=True)
        ],
    }


def _name(name: str) -> str:
    """What a measurement is called on the page."""
    kind = name.partition("-")[2]
    return {"before": "as it came", "stretched": "stretched, untrained"}.get(
        kind, f"after {kind.replace('-', ' ')}" if kind else name)

"""Charts of a stage's metrics as plain data: which curves stand together, thinned to what a page can carry.

The order and grouping of known metrics is one table (CHARTS); a numeric metric that the table does not know gets a
chart of its own, so that nothing that was recorded is left out. A metric with one point, or one that never changed,
is a number and not a curve.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

POINTS = 1000  # most points of one curve; more are averaged in equal buckets, and the chart says so
CELLS = 120_000  # most layer × expert cells over all frames of one stage's heat map


@dataclass(frozen=True)
class Curve:
    key: str
    label: str
    colour: str  # a name in style.css
    band: str = ""  # metric that gives the half-width of a band around the curve
    dashed: bool = False
    exact: bool = False  # a schedule or a rare measurement: smoothing would only shift it


@dataclass(frozen=True)
class Chart:
    """`log` offers a logarithmic scale, `wide` takes the whole row, `share` stacks parts of one whole."""

    title: str
    curves: tuple[Curve, ...]
    note: str = ""
    log: bool = False
    wide: bool = False
    share: bool = False
    unit: str = ""


CHARTS = (
    Chart(
        "Loss",
        (
            Curve("loss", "train", "accent"),
            Curve("held_out", "held out", "warm", exact=True),
            Curve("loss_next", "next token", "violet"),
            Curve("loss_mtp", "multi-token", "teal"),
        ),
        "nats per token; lower is better",
        log=True,
        wide=True,
    ),
    Chart(
        "Reward",
        (Curve("reward", "mean", "accent", band="reward_std"),),
        "mean over samples; the band is ± one standard deviation",
        wide=True,
    ),
    Chart(
        "Outcomes",
        (
            Curve("right", "right", "right"),
            Curve("wrong", "wrong", "wrong"),
            Curve("unread", "unread", "unread"),
            Curve("failed", "failed", "failed"),
            Curve("truncated", "cut off at the limit", "ink", dashed=True),
        ),
        "share of samples; unread: no answer in the text, failed: the judge broke",
        share=True,
        wide=True,
        unit="%",
    ),
    Chart(
        "Response length",
        (Curve("length", "mean", "accent"), Curve("length_p95", "95th percentile", "warm")),
        "tokens",
    ),
    Chart("Objective", (Curve("objective", "loss", "accent"),), "the surrogate loss; its level says little"),
    Chart("KL to the reference", (Curve("kl", "KL", "violet"),), "nats per token"),
    Chart("Entropy", (Curve("entropy", "entropy", "teal"),), "nats per token, of the policy that sampled"),
    Chart("Gradient norm", (Curve("grad_norm", "before clipping", "accent"),), log=True),
    Chart(
        "Flat groups",
        (Curve("flat_groups", "flat", "warm"),),
        "groups whose rewards are all equal: they teach nothing",
        unit="%",
    ),
    Chart(
        "Not judged",
        (Curve("judge_failed", "judge broke", "failed"), Curve("no_reward", "left its group", "warm")),
        "share of samples on which the judge or a reward broke, and of those without a reward: they leave their groups "
        "and are never scored 0",
        unit="%",
    ),
    Chart(
        "Clipped",
        (Curve("clip_share", "clipped", "wrong"), Curve("clip_low", "below 1", "teal"),
         Curve("clip_high", "above 1", "violet")),
        "weight of the tokens whose ratio was clipped",
        unit="%",
    ),
    Chart(
        "Trainer and sampler",
        (Curve("mismatch", "mean", "accent"), Curve("mismatch_max", "largest", "warm")),
        "|log p| between what was sampled and what is trained, nats; rounding error in a first update",
        log=True,
    ),
    Chart(
        "Router agreement",
        (Curve("router_agreement", "the same", "accent"),),
        "experts that the routers would choose now, against those of before the update",
        unit="%",
    ),
    Chart(
        "Critic",
        (Curve("critic_loss", "loss", "accent"), Curve("critic_grad_norm", "gradient norm", "warm"),
         Curve("critic_clip_share", "held", "wrong")),
        "PPO's values; held: share of values that moved further than they may",
        log=True,
    ),
    Chart(
        "Balance loss",
        (
            Curve("loss_balance", "experts", "teal"),
            Curve("loss_device_balance", "devices", "accent"),
            Curve("loss_communication_balance", "sent to devices", "wrong"),
        ),
        log=True,
    ),
    Chart("Dropped", (Curve("dropped", "dropped", "wrong"),), "assignments of tokens to experts that were discarded"),
    Chart("Learning rate", (Curve("lr", "learning rate", "accent", exact=True),)),
    Chart(
        "Throughput",
        (Curve("tokens_per_s", "tokens", "accent"), Curve("sampled_per_s", "sampled", "accent"),
         Curve("trained_per_s", "trained", "teal")),
        "tokens per second, each of its own part of the step",
    ),
    Chart(
        "Time of a step",
        (
            Curve("generate_s", "generate", "accent"),
            Curve("judge_s", "judge", "warm"),
            Curve("train_s", "train", "teal"),
            Curve("seconds", "whole step", "ink", dashed=True),
        ),
        "seconds",
    ),
)
# drawn elsewhere, or an axis rather than a curve
QUIET = {"step", "expert_load", "reward_std", "tokens", "total", "checkpoint", "sampled_tokens"}  
PARTS = ("warm", "teal", "violet", "right", "wrong")


def charts(metrics: Sequence[Mapping[str, Any]], timing: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{"charts": [...], "singles": [...]} of a stage: drawn curves, and metrics with one value only.

    A single says the `step` that it was measured at; one without was the same at every step.
    """
    rows = [_with_wrong(row) for row in metrics] + list(_latest(timing))
    if any("reward" in row for row in metrics):  # a policy's loss hovers around 0: it is no measure of learning
        rows = [{("objective" if key == "loss" else key): value for key, value in row.items()} for row in rows]
    drawn: list[dict[str, Any]] = []
    singles: list[dict[str, Any]] = []
    known = set(QUIET)
    for chart in _with_reward_parts(rows):
        known.update(curve.key for curve in chart.curves)
        _add(chart, rows, drawn, singles)
    for key in dict.fromkeys(key for row in rows for key, value in row.items() if _number(value)):
        if key not in known:
            _add(Chart(key.replace("_", " "), (Curve(key, key, "accent"),)), rows, drawn, singles)
    return {"charts": drawn, "singles": singles}


def points(rows: Iterable[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Steps and finite values of one metric. A step written twice (replayed after a kill) counts once, the last."""
    found = {row["step"]: row[key] for row in rows if _number(row.get(key)) and _number(row.get("step"))}
    steps = sorted(found)
    return steps, [found[step] for step in steps]


def thin(xs: Sequence[float], ys: Sequence[float], limit: int = POINTS) -> tuple[list[float], list[float], int]:
    """At most `limit` points: means of equal buckets, each at its last step; and how many points one stands for."""
    per = -(-len(xs) // limit) if xs else 1
    if per == 1:
        return list(xs), [shorten(y) for y in ys], 1
    starts = range(0, len(xs), per)
    return (
        [xs[min(i + per, len(xs)) - 1] for i in starts],
        [shorten(sum(ys[i : i + per]) / len(ys[i : i + per])) for i in starts],
        per,
    )


def expert_load(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Load of every expert over time, relative to an even spread (1 = even): frames × layers × experts.

    None where no step has it. Steps whose shape differs from the last one's are left out; frames are spread evenly
    over the run so that all cells together stay under CELLS.
    """
    logged = [(row["step"], row["expert_load"]) for row in metrics if _grid(row.get("expert_load"))]
    if not logged:
        return None
    shape = [len(layer) for layer in logged[-1][1]]
    logged = [(step, load) for step, load in logged if [len(layer) for layer in load] == shape]
    room = max(2, min(80, CELLS // sum(shape)))
    if len(logged) > room:
        logged = [logged[round(i * (len(logged) - 1) / (room - 1))] for i in range(room)]
    return {
        "steps": [step for step, _ in logged],
        "layers": len(shape),
        "experts": max(shape),
        "frames": [[_relative(layer) for layer in load] for _, load in logged],
    }


def lengths(metrics: Sequence[Mapping[str, Any]], rows: int = 10) -> dict[str, Any] | None:
    """A table of how long completions were, at so many steps from the first to the last; None where nobody counted."""
    known = [(row["step"], row["lengths"]) for row in metrics if isinstance(row.get("lengths"), dict)]
    if not known:
        return None
    chosen = sorted({round(i * (len(known) - 1) / max(rows - 1, 1)) for i in range(rows)})
    columns = list(known[-1][1])
    found = [
        [f"step {step}", *({"right": counts.get(column, 0), "of": sum(counts.values())} for column in columns)]
        for step, counts in (known[i] for i in chosen)]
    return {"title": "Lengths", "note": "completions by their tokens", "kind": "heat", "columns": ["", *columns],
            "rows": found}


def shorten(value: float) -> float:
    """Six significant digits: more would only make the file larger."""
    return float(f"{value:.6g}")


def _add(
    chart: Chart, rows: Sequence[Mapping[str, Any]], drawn: list[dict[str, Any]], singles: list[dict[str, Any]]
) -> None:
    series = []
    for curve in chart.curves:
        xs, ys = points(rows, curve.key)
        if xs and min(ys) == max(ys) and not chart.share:
            single = {"label": _single_label(chart, curve), "value": ys[0], "unit": chart.unit}
            singles.append(single | ({"step": xs[0]} if len(xs) == 1 else {}))
            continue
        if len(xs) < 2 or (curve.key == "loss_next" and ys == points(rows, "loss")[1]):
            continue
        x, y, per = thin(xs, ys)
        line: dict[str, Any] = {"label": curve.label, "colour": curve.colour, "x": x, "y": y, "per": per}
        line |= {name: True for name, on in (("dashed", curve.dashed), ("exact", curve.exact)) if on}
        if curve.band:
            widths = dict(zip(*points(rows, curve.band), strict=True))
            if set(xs) <= set(widths):
                line["band"] = thin(xs, [widths[step] for step in xs])[1]
        series.append(line)
    if chart.share and not any(line["label"] == "right" for line in series):
        return
    if series:
        drawn.append(
            {"title": chart.title, "note": chart.note, "log": chart.log, "wide": chart.wide, "share": chart.share}
            | {"unit": chart.unit, "series": series}
        )


def _single_label(chart: Chart, curve: Curve) -> str:
    return chart.title if curve.label in (chart.title.lower(), chart.title) else f"{chart.title}, {curve.label}"


def _with_reward_parts(rows: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """CHARTS with the reward's parts drawn beside the whole: any metric named reward_X, except its deviation."""
    names = dict.fromkeys(k for row in rows for k in row if k.startswith("reward_") and k != "reward_std")
    parts = tuple(
        Curve(name, name.removeprefix("reward_").replace("_", " "), PARTS[i % len(PARTS)])
        for i, name in enumerate(names)
    )
    return [
        Chart(c.title, c.curves + parts, c.note, c.log, c.wide, c.share, c.unit) if c.title == "Reward" else c
        for c in CHARTS
    ]


def _with_wrong(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with the share of wrong samples, which is what the three recorded shares leave of the whole."""
    shares = [row.get(name) for name in ("right", "unread", "failed")]
    if "wrong" in row or not all(_number(share) for share in shares):
        return row
    return {**row, "wrong": max(0.0, 1.0 - sum(float(share) for share in shares if share is not None))}


def _latest(rows: Sequence[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    return {row["step"]: row for row in rows if _number(row.get("step"))}.values()


def _relative(layer: Sequence[float]) -> list[float]:
    even = sum(layer) / len(layer)
    return [float(f"{count / even:.3g}") if even else 1.0 for count in layer]


def _grid(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(layer, list) and layer and all(_number(x) for x in layer) for layer in value)
    )


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)

"""Two sides timed alternately, and what came out of it as a table and as JSON."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from fathom.core import machine

RESULTS = Path(__file__).parent / "results"


@dataclass
class Pair:
    """Seconds (or bytes) of both sides, round by round, for the same amount of work; less is better."""

    name: str
    ours: list[float]
    theirs: list[float]
    bar: float | None = None  # the ratio that was asked for
    unit: str = "s"
    work: float | None = None  # tokens per round: shown as a rate
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """How many times more the peer needs: median over median."""
        return statistics.median(self.theirs) / statistics.median(self.ours)

    @property
    def spread(self) -> tuple[float, float]:
        """The smallest and the largest ratio of one round."""
        each = [t / o for o, t in zip(self.ours, self.theirs, strict=True)]
        return min(each), max(each)

    def line(self) -> str:
        """One row of a Markdown table."""
        ours, theirs = statistics.median(self.ours), statistics.median(self.theirs)
        low, high = self.spread
        if self.work:
            figures = f"{self.work / ours:,.0f} tok/s | {self.work / theirs:,.0f} tok/s"
        else:
            figures = f"{ours:.3g} {self.unit} | {theirs:.3g} {self.unit}"
        bar = "" if self.bar is None else f"≥ {self.bar:g}× {'met' if self.ratio >= self.bar else 'MISSED'}"
        return f"| {self.name} | {figures} | {self.ratio:.2f}× ({low:.2f}–{high:.2f}) | {bar} |"


HEAD = "| what | Fathom | peer | ratio of medians (smallest–largest of a round) | bar |\n|---|---|---|---|---|"


def interleave(
    ours: Callable[[], None], theirs: Callable[[], None], rounds: int, warm: int = 2
) -> tuple[list[float], list[float]]:
    """Seconds of each call, the two sides taking turns; the first `warm` rounds are not counted.

    Work on a GPU is waited for.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(warm + rounds):
        for side, run in zip(seconds, (ours, theirs), strict=True):
            wait()
            start = time.perf_counter()
            run()
            wait()
            if number >= warm:
                side.append(time.perf_counter() - start)
    return seconds


def wait() -> None:
    """Until the GPU, where there is one in use, has done what was asked of it."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def save(bench: str, pairs: list[Pair], about: dict[str, Any]) -> Path:
    """Writes bench/results/NAME.json: every single time, the machine, the versions."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{bench}.json"
    content = {
        "device": machine.device(), "commit": machine.commit(), "versions": {**machine.versions(), **about},
        "pairs": [{**asdict(p), "ratio": p.ratio, "spread": p.spread} for p in pairs],
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return path

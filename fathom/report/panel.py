"""A live panel of a run in the terminal: stages with progress and time left, a sparkline, the latest values.

`LivePanel.update` only stores numbers, so a training loop may call it every step; drawing happens in rich's own
thread. Where the output is no terminal a plain line is printed every few seconds instead.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fathom.report.read import Stage, parse_line

CURVES = ("reward", "loss")  # the first of these that a stage reports is drawn as a sparkline
SHOWN = ("reward", "right", "loss", "held_out", "kl", "length", "entropy", "grad_norm", "lr", "tokens_per_s")
BLOCKS = "▁▂▃▄▅▆▇█"
MARKS = {
    "waiting": ("·", "dim"),
    "running": ("●", "cyan"),
    "done": ("✓", "green"),
    "stopped": ("‖", "yellow"),
    "failed": ("✕", "red"),
}


@dataclass
class _Row:
    status: str = "waiting"
    step: float = 0
    total: float | None = None
    started: float | None = None
    first_step: float = 0  # where this process saw the stage begin: a resumed stage does not start at 0
    ended: float | None = None
    values: dict[str, float] = field(default_factory=dict)
    curve: deque[float] = field(default_factory=lambda: deque(maxlen=480))
    curve_of: str = ""


class LivePanel:
    """Progress of named stages while the context is open; `update` and `finish` may be called from any thread."""

    def __init__(self, stage_names: Sequence[str], console: Console | None = None, plain_every_s: float = 5.0) -> None:
        self._rows = {name: _Row() for name in stage_names}
        self._console = console or Console()
        self._plain_every_s = plain_every_s
        self._lock = threading.Lock()
        self._live: Live | None = None
        self._current = ""
        self._printed = -math.inf

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._draw, console=self._console, refresh_per_second=5, transient=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        elif self._current:
            self._say(self._current)

    def update(self, stage: str, step: float, total: float | None, **values: Any) -> None:
        """Notes where `stage` is: `step` of `total` (None where unknown) and its latest values; others are kept."""
        now = time.monotonic()
        with self._lock:
            row = self._rows.setdefault(stage, _Row())
            if row.started is None:
                row.started, row.first_step = now, step
            row.status, row.step, row.total = "running", step, total
            numbers = {
                k: float(v) for k, v in values.items() if isinstance(v, (int, float)) and not isinstance(v, bool)
            }
            row.values.update((k, v) for k, v in numbers.items() if math.isfinite(v))
            row.curve_of = row.curve_of or next((name for name in CURVES if name in numbers), "")
            if row.curve_of in numbers and math.isfinite(numbers[row.curve_of]):
                row.curve.append(numbers[row.curve_of])
            self._current = stage
            due = self._live is None and now - self._printed >= self._plain_every_s
            if due:
                self._printed = now
        if due:
            self._say(stage)

    def finish(self, stage: str, status: str = "done") -> None:
        """Marks `stage` as done, stopped or failed."""
        with self._lock:
            row = self._rows.setdefault(stage, _Row())
            if row.status == status:
                return
            row.status, row.ended = status, time.monotonic()
        if self._live is None:
            self._say(stage)

    def say(self, text: str) -> None:
        """Prints a line; on a terminal it appears above the panel and stays."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def line(self, stage: str) -> str:
        """The stage in one plain line: `zero 120/500 (24 %), 3 min left, reward 0.61, …`."""
        with self._lock:
            row = self._rows[stage]
            parts = [f"{stage} {_progress(row)}" if row.status == "running" else f"{stage} {row.status}"]
            left = _left(row)
            if left is not None:
                parts.append(f"{_clock(left)} left")
            parts += [f"{name} {_short(row.values[name])}" for name in SHOWN if name in row.values]
        return ", ".join(parts)

    def _say(self, stage: str) -> None:
        self.say(self.line(stage))

    def _draw(self) -> RenderableType:
        table = Table.grid(padding=(0, 2, 0, 0))
        with self._lock:
            for name, row in self._rows.items():
                mark, style = MARKS.get(row.status, MARKS["running"])
                share = 1.0 if row.status == "done" else min(1.0, row.step / row.total) if row.total else 0.0
                bar: RenderableType = Text("")
                if row.status != "waiting":
                    bar = ProgressBar(total=1.0, completed=share, width=24, complete_style=style, finished_style=style)
                table.add_row(
                    Text(f"{mark} {name}", style=style if row.status != "waiting" else "dim"),
                    bar,
                    Text(_progress(row) if row.status != "waiting" else "", style="dim"),
                    Text(_time_text(row), style="dim"),
                    Text(sparkline(row.curve, 24), style="cyan"),
                )
            row = self._rows.get(self._current, _Row())
            latest = "   ".join(f"{name} {_short(row.values[name])}" for name in SHOWN if name in row.values)
        return Group(table, Text(latest, style="dim")) if latest else table


class Follower:
    """Tails the files of running stages into a panel, in a thread of its own, while the context is open.

    Reads manifest.json, metrics.jsonl and timing.jsonl of each stage every `poll_s` seconds; a line that is still
    being written waits for the next look, a file that was cut back (resume) is read again from its start.
    """

    def __init__(self, run_dir: Path, stages: Sequence[str], poll_s: float, console: Console | None) -> None:
        self.panel = LivePanel(stages, console)
        self._tails = [_Tail(Stage(Path(run_dir) / name, name)) for name in stages]
        self._poll_s = poll_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fathom-panel", daemon=True)

    def __enter__(self) -> Self:
        self.panel.__enter__()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Looks at the files a last time and closes the panel. A second call does nothing."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        self._look()
        self.panel.__exit__(None, None, None)

    def _run(self) -> None:
        while not self._stop.wait(self._poll_s):
            self._look()

    def _look(self) -> None:
        for tail in self._tails:
            tail.read(self.panel)


def follow(run_dir: Path, stages: Sequence[str], poll_s: float = 0.5, console: Console | None = None) -> Follower:
    """A panel over the stages of a run that other processes write: `with follow(dir, names): …` or `.stop()`."""
    return Follower(run_dir, stages, poll_s, console)


class _Tail:
    """Where reading of one stage's files stands."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._offsets: dict[str, int] = {}
        self._step: float = 0
        self._total: float | None = None
        self._seen: tuple[int, int] | None = None  # manifest's time and size when it was last read

    def read(self, panel: LivePanel) -> None:
        status = self._manifest()
        for name in ("timing.jsonl", "metrics.jsonl"):
            for row in self._new(name):
                values = {k: v for k, v in row.items() if k not in ("step", "expert_load", "total")}
                if isinstance(row.get("total"), int):  # the system itself says how far it goes
                    self._total = float(row["total"])
                self._step = row.get("step", self._step)
                panel.update(self._stage.name, self._step, self._total, **values)
        if status in ("done", "stopped", "failed"):
            panel.finish(self._stage.name, status)
        elif status == "running" and not self._offsets:
            panel.update(self._stage.name, 0, self._total)

    def _manifest(self) -> str | None:
        path = self._stage.dir / "manifest.json"
        try:
            about = path.stat()
        except FileNotFoundError:
            return None
        if self._seen != (about.st_mtime_ns, about.st_size):
            self._seen = (about.st_mtime_ns, about.st_size)
            self._stage = Stage(self._stage.dir, self._stage.name)  # a fresh one: stages keep what they have read
            steps = self._stage.settings.get("steps")
            if isinstance(steps, (int, float)) and steps > 0:
                self._total = float(steps)
        return self._stage.status

    def _new(self, name: str) -> list[dict[str, Any]]:
        path = self._stage.dir / name
        try:
            with path.open("rb") as file:
                start = self._offsets.get(name, 0)
                if path.stat().st_size < start:
                    start = 0
                file.seek(start)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offsets[name] = start + len(whole)
        return [row for line in whole.splitlines() if (row := parse_line(line)) is not None]


def sparkline(values: Sequence[float] | deque[float], width: int) -> str:
    """The values as `width` block characters at most, each the mean of an equal part; empty for under two values."""
    items = list(values)
    if len(items) < 2:
        return ""
    size = max(1.0, len(items) / width)
    parts = [items[int(i * size) : max(int(i * size) + 1, int((i + 1) * size))] for i in range(min(width, len(items)))]
    means = [sum(part) / len(part) for part in parts]
    low, high = min(means), max(means)
    return "".join(BLOCKS[int((mean - low) / (high - low) * 7.999) if high > low else 3] for mean in means)


def _progress(row: _Row) -> str:
    if not row.total:
        return _short(row.step)
    return f"{_short(row.step)}/{_short(row.total)} ({100 * row.step / row.total:.0f} %)"


def _left(row: _Row) -> float | None:
    """Seconds left at the mean speed since this process first saw the stage; None where that is not known."""
    if row.status != "running" or not row.total or row.started is None or row.step <= row.first_step:
        return None
    return (time.monotonic() - row.started) / (row.step - row.first_step) * max(0.0, row.total - row.step)


def _time_text(row: _Row) -> str:
    left = _left(row)
    if left is not None:
        return f"{_clock(left)} left"
    if row.ended is not None and row.started is not None:
        return _clock(row.ended - row.started)
    return ""


def _clock(seconds: float) -> str:
    s = round(seconds)
    return (
        f"{s} s"
        if s < 60
        else f"{s // 60} min {s % 60:02d} s"
        if s < 3600
        else f"{s // 3600} h {s % 3600 // 60:02d} min"
    )


def _short(value: float) -> str:
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if float(value).is_integer():
        return str(int(value))
    return f"{value:.1e}" if 0 < size < 1e-3 else f"{value:.4g}"

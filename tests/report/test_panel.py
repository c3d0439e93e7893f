"""The terminal panel: what it prints, what it costs, and that it follows files as they grow."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_run import attempt, write_manifest
from rich.console import Console

from fathom.report import LivePanel, follow
from fathom.report.panel import BLOCKS, sparkline


def plain() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=120)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_without_a_terminal_plain_lines_are_few() -> None:
    console = plain()
    with LivePanel(["zero"], console, plain_every_s=3600) as panel:
        for step in range(1, 101):
            panel.update("zero", step, 200, reward=step / 100, note="text is no number", broken=float("nan"))
        panel.finish("zero")
    lines = said(console).splitlines()
    assert lines[0].startswith("zero 1/200 (0 %)")
    assert len(lines) == 3, "the first step, the end of the stage, the end of the panel"
    assert lines[1] == "zero done, reward 1"
    assert "\x1b" not in said(console)


def test_progress_and_time_left() -> None:
    panel = LivePanel(["base"], plain())
    panel.update("base", 100, 400, loss=2.0)
    time.sleep(0.05)
    panel.update("base", 200, 400, loss=1.5)
    line = panel.line("base")
    assert line.startswith("base 200/400 (50 %), 0 s left")
    assert "loss 1.5" in line


def test_a_terminal_shows_stages_and_a_sparkline() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with LivePanel(["base", "zero"], console) as panel:
        for step in range(1, 30):
            panel.update("base", step, 60, loss=3 / step)
    text = said(console)
    assert "base" in text
    assert "zero" in text
    assert any(block in text for block in BLOCKS)


def test_updates_are_safe_from_many_threads() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with LivePanel([f"s{i}" for i in range(4)], console) as panel:

        def work(name: str) -> None:
            for step in range(500):
                panel.update(name, step, 500, loss=1.0, reward=0.5, kl=0.1)

        threads = [threading.Thread(target=work, args=(f"s{i}",)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(f"s{i} 499/500" in panel.line(f"s{i}") for i in range(4))


def test_following_reads_whole_lines_as_they_come(tmp_path: Path) -> None:
    stage = tmp_path / "zero"
    console = plain()
    with follow(tmp_path, ["zero"], poll_s=0.01, console=console) as follower:
        write_manifest(stage, "grpo", {"steps": 10}, [attempt(0, None, "running")], status="running")
        metrics = stage / "metrics.jsonl"
        metrics.write_text('{"step":3,"reward":0.25}\n{"step":4,"rew')
        wait(lambda: "zero 3/10" in follower.panel.line("zero"))
        with metrics.open("a") as file:
            file.write('ard":0.5}\n')
        wait(lambda: "zero 4/10 (40 %)" in follower.panel.line("zero"))
        metrics.write_text('{"step":2,"reward":0.75}\n')  # cut back, as a resume does
        wait(lambda: "zero 2/10" in follower.panel.line("zero"))
        write_manifest(stage, "grpo", {"steps": 10}, [attempt(0, 1)], status="done")
    assert "zero done, reward 0.75" in said(console)
    follower.stop()


def test_following_learns_from_the_stage_how_far_it_goes(tmp_path: Path) -> None:
    write_manifest(tmp_path / "base", "pretrain", {"tokens": 2e6}, [attempt(0, None, "running")], status="running")
    (tmp_path / "base" / "metrics.jsonl").write_text('{"step":3,"loss":2.5,"tokens":500000}\n')
    (tmp_path / "base" / "timing.jsonl").write_text('{"step":3,"seconds":1.5,"total":12}\n')
    with follow(tmp_path, ["base"], poll_s=0.01, console=plain()) as follower:
        wait(lambda: "base 3/12 (25 %)" in follower.panel.line("base"))


def wait(condition) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail("the panel did not see what was written")
        time.sleep(0.01)


@given(st.lists(st.floats(-1e9, 1e9), max_size=200), st.integers(1, 40))
def test_sparkline_fits_and_reaches_both_ends(values: list[float], width: int) -> None:
    line = sparkline(values, width)
    assert len(line) == (min(width, len(values)) if len(values) >= 2 else 0)
    assert set(line) <= set(BLOCKS)
    if len(set(line)) > 1:
        assert BLOCKS[0] in line
        assert BLOCKS[-1] in line

"""The demo: the recipe tiny/demo, its own training process killed on the way, and proof that nothing was lost."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from fathom import recipes
from fathom.core import disk
from fathom.core.errors import FathomError, Stopped
from fathom.recipes import Recipe, Stage

KILLED = "base"  # the stage that is killed,
KILL_AFTER = 27  # after this step, between two checkpoints,
COMPARED = 40  # and compared with an uninterrupted twin at this one
POLL_S = 0.05


def demo(directory: Path, seed: int | None, fresh: bool, dry_run: bool) -> None:
    """Runs the demo in `directory` and prints what came out; a second call continues or repeats the findings."""
    from fathom.report import write_report
    from fathom.report.compare import compare
    from fathom.report.panel import follow

    recipe = recipes.load("tiny/demo", (), directory, seed)
    if dry_run:
        print("\n".join(f"{stage.name}: {stage.system} in {directory / stage.name}" for stage in recipe.stages))
        return
    recipes.prepare(recipe, fresh)
    began = time.monotonic()
    with follow(directory, [stage.name for stage in recipe.stages]) as follower:
        for stage in recipe.stages:
            if stage.name != KILLED:
                recipes.run_stage(recipe, stage, quiet=True)
                if data := recipes.told(recipe, stage):
                    follower.panel.say(data)
                continue
            with _killing(recipe, stage) as killed:
                pass
            if killed:
                follower.panel.say(f"{stage.name}: process {killed[0]} killed with SIGKILL after step {killed[1]}; "
                                   "the same command again")
            recipes.run_stage(recipe, stage, quiet=True)
            same = proof(recipe, stage)
            follower.panel.say(f"{stage.name}: checkpoint {COMPARED} of the killed and resumed run = that of an "
                               f"uninterrupted twin, sha256 {same[:16]}… (weights, optimiser, loader, metrics)")
    report = write_report(directory)
    print(f"\n{time.monotonic() - began:.0f} s in all")
    for task in compare(directory / "before", directory / "after").tasks:
        print(f"held-out problems ({task.problems} of {task.task}, 8 answers each)")
        for name in ("before", "after"):
            score = json.loads((directory / name / "scores.json").read_text())["tasks"][0]
            print(f"  {name:<6} GRPO  {score['text']}")
        if (difference := task.difference) is not None:
            verdict = "significant" if difference.significant else "not significant"
            print(f"  difference   {100 * difference.mean:+.1f} points "
                  f"({100 * difference.low:+.1f} to {100 * difference.high:+.1f}, paired: {verdict})")
    print(f"report: {report.resolve().as_uri()}")


@contextmanager
def _killing(recipe: Recipe, stage: Stage) -> Iterator[list[int]]:
    """Starts the stage and kills its process with SIGKILL after a step; gives [pid, step], or nothing where the stage
    is past that point already."""
    folder = recipe.directory / stage.name
    if _last_step(folder / "metrics.jsonl") >= KILL_AFTER:
        yield []
        return
    found: list[int] = []

    def kill(child: subprocess.Popen[bytes]) -> None:
        while child.poll() is None:
            if (step := _last_step(folder / "metrics.jsonl")) >= KILL_AFTER:
                child.send_signal(signal.SIGKILL)
                found.extend((child.pid, step))
                return
            time.sleep(POLL_S)

    try:
        recipes.run_stage(recipe, stage, quiet=True, watch=kill)
    except FathomError:
        if not found:  # it ended for a reason of its own
            raise
    yield found


def proof(recipe: Recipe, stage: Stage) -> str:
    """The sha256 of the checkpoint at COMPARED, the same in the stage and in a twin that ran without a kill; raises
    FathomError where they differ. The twin stops there."""
    twin = replace(recipe, directory=recipe.directory / "proof")
    folder = twin.directory / stage.name

    def stop(child: subprocess.Popen[bytes]) -> None:
        while child.poll() is None:
            if checkpoints(folder).get(COMPARED):
                child.terminate()
                return
            time.sleep(POLL_S)

    if not checkpoints(folder).get(COMPARED):
        with suppress(Stopped):  # as asked
            recipes.run_stage(twin, stage, quiet=True, watch=stop)
    ours, theirs = checkpoints(recipe.directory / stage.name)[COMPARED], checkpoints(folder)[COMPARED]
    text = json.dumps({"stage": stage.name, "step": COMPARED, "killed and resumed": ours, "uninterrupted": theirs})
    disk.write_atomic(twin.directory / "proof.json", text)
    if ours != theirs:
        raise FathomError(f"{stage.name}: checkpoint {COMPARED} has sha256 {ours} after kill and resume, {theirs} "
                          f"without; the two runs are in {recipe.directory}: please report this")
    return ours


def checkpoints(folder: Path) -> dict[int, str]:
    """The sha256 of every checkpoint that a stage ever wrote, by step; a step replayed keeps the latest."""
    found: dict[int, str] = {}
    path = folder / "timing.jsonl"
    if path.is_file():
        for line in path.read_bytes().split(b"\n")[:-1]:
            row = json.loads(line)
            if "checkpoint" in row:
                found[row["step"]] = row["checkpoint"]
    return found


def _last_step(metrics: Path) -> int:
    if not metrics.is_file():
        return 0
    lines = metrics.read_bytes().split(b"\n")[:-1]
    return int(json.loads(lines[-1])["step"]) if lines else 0

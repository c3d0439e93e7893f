"""Whole systems killed by SIGKILL at random moments and at every disk operation, stopped politely, and run again.

What must be equal to an uninterrupted twin is listed in `small.kept`: digests of model and checkpoints, the bytes of
metrics.jsonl and samples/, the records in their order, the ledger, the summary; and nothing may be left lying about.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from small import ENVIRONMENT, SIGINT, SIGKILL, SIGTERM, SUMS, Forks, Small, Twins, differing, kept, plain

from fathom.core import disk
from fathom.core.records import RecordStore
from fathom.core.run import read_manifest

pytestmark = pytest.mark.kill
SEED = int(os.environ.get("FATHOM_KILL_SEED", "0")) or int(time.time())
FEW = {"pretrain": {"tokens": 1024, "held_out_every": 1}, "grpo": {"steps": 2, "problems": 2}}
FEW["sft"] = {"epochs": 0.5}
FEW["extend"] = {"phases": [{"length": 160, "steps": 1}, {"length": 192, "steps": 2}], "held_out_every": 1}
ONE = {"checkpoints": {"every": 1, "keep": 1}}


def on_both(small: Small, items: Iterable[Any], job: Callable[[Forks, int, Any], list[str]]) -> list[str]:
    """What `job(forks, number, item)` has to complain about, over all items, on both processes at once."""
    numbered = list(enumerate(items))

    def half(which: int) -> list[str]:
        return [line for n, item in numbered[which::2] for line in job(small.forks[which], n, item)]

    with ThreadPoolExecutor(2) as pool:
        return [line for lines in pool.map(half, (0, 1)) for line in lines]


def random_kills(small: Small, twins: Twins, place: Path, system: str, times: int, **changes: Any) -> None:
    """Kills a run of `system` at random moments, `times` of them, and compares what the same command makes of it."""
    settings, twin = small.settings(system, **changes), twins.of(system, **changes)
    drawn = random.Random(f"{SEED} {system}")
    moments = [drawn.uniform(0, twins.seconds(settings, system)) for _ in range(times)]
    print(f"FATHOM_KILL_SEED={SEED}: {system} killed after", " ".join(f"{moment:.3f}" for moment in moments))

    def one(forks: Forks, number: int, moment: float) -> list[str]:
        directory = place / f"{system}-{number}"
        words = (system, settings, "--dir", directory)
        while forks.run(*words, signal=SIGKILL, after=moment, commit_every=50).code != -SIGKILL:
            shutil.rmtree(directory)  # it came to its end first: the machine is faster now than when the twin ran
            moment *= 0.7
        again = forks.run(*words, commit_every=50)
        if again.code:
            return [f"after {moment:.3f} s: exit code {again.code}: {again.said[-600:]}"]
        return [f"after {moment:.3f} s: {line}" for line in differing(kept(directory), twin)]

    assert on_both(small, moments, one) == []


def operations(forks: Forks, place: Path, system: str, settings: Path) -> list[str]:
    """The disk operations of an uninterrupted run, in order."""
    directory, listed = place / f"{system}-listed", place / f"{system}.json"
    done = forks.run(system, settings, "--dir", directory, inside=str(directory), list=str(listed), commit_every=50)
    assert done.code == 0, done.said
    names: list[str] = json.loads(listed.read_text())
    return names


def points(names: list[str]) -> list[tuple[int, str]]:
    """Where to die: before each operation, half-way through each write, after each that makes something visible.

    After any other operation is the same as before the next one.
    """
    found = []
    for number, name in enumerate(names, 1):
        found.append((number, "before"))
        if name.startswith(("_write", "save_file", "write_stream")):
            found.append((number, "half"))
        if name.startswith(("rename", "replace", "sqlite COMMIT")) or number == len(names):
            found.append((number, "after"))
    return found


def enumerated(small: Small, twins: Twins, place: Path, system: str, sample: int | None, **changes: Any) -> int:
    """Kills a run of `system` at each point, or at `sample` of them drawn at random; how many kills."""
    settings, twin = small.settings(system, **changes), twins.of(system, **changes)
    names = operations(small.forks[0], place, system, settings)
    where = points(names)
    if sample is not None:
        where = sorted(random.Random(f"{SEED} {system} points").sample(where, sample))
    print(f"FATHOM_KILL_SEED={SEED}: {system}: {len(where)} kills over {len(names)} operations")

    def one(forks: Forks, count: int, point: tuple[int, str]) -> list[str]:
        directory = place / f"{system}-{count}"
        words = (system, settings, "--dir", directory)
        said = f"{point[1]} {point[0]} {names[point[0] - 1]}"
        first = forks.run(*words, inside=str(directory), point=point, commit_every=50)
        if first.code != -SIGKILL:
            return [f"{said}: was not killed there but ended with {first.code}: {first.said[-300:]}"]
        again = forks.run(*words, commit_every=50)
        if again.code:
            return [f"{said}: exit code {again.code}: {again.said[-600:]}"]
        lines = [f"{said}: {line}" for line in differing(kept(directory), twin)]
        shutil.rmtree(directory)
        return lines

    assert on_both(small, where, one) == []
    return len(where)


# SIGKILL at random moments.


@pytest.mark.parametrize("system", ["pretrain", "grpo"])
def test_killed_at_random_it_ends_as_if_nothing_had_happened(small, twins, place, system):
    random_kills(small, twins, place, system, 3)


@pytest.mark.long
@pytest.mark.parametrize("system", ["pretrain", "grpo"])
def test_killed_at_twenty_random_moments_it_ends_as_if_nothing_had_happened(small, twins, place, system):
    random_kills(small, twins, place, system, 20)


@pytest.mark.long
@pytest.mark.parametrize("system", ["tokenizer", "extend", "sft", "evaluate", "distill"])
def test_other_systems_killed_at_random(small, twins, place, system):
    random_kills(small, twins, place, system, 8)


@pytest.mark.long
@pytest.mark.parametrize("system", ["pretrain", "grpo"])
def test_killed_again_and_again_it_still_comes_to_the_same_end(small, twins, place, system):
    settings, twin = small.settings(system), twins.of(system)
    drawn, words = random.Random(f"{SEED} again"), (system, settings, "--dir", place / "run")
    for _ in range(8):
        small.forks[0].run(*words, signal=SIGKILL, after=drawn.uniform(0.2, 0.6), commit_every=50)
    assert small.forks[0].run(*words, commit_every=50).code == 0
    assert differing(kept(place / "run"), twin) == []


@pytest.mark.long
@pytest.mark.parametrize("system", ["pretrain", "grpo"])
def test_a_process_of_its_own_is_killed_and_continues(small, twins, place, system):
    words = [system, small.settings(system), "--dir", place / "run"]
    command = [sys.executable, "-m", "fathom", *map(str, words)]
    with open(place / "said", "wb") as said, subprocess.Popen(command, env=ENVIRONMENT, stderr=said) as child:
        wait_for_lines(place / "run" / "metrics.jsonl", 8)
        child.kill()
    assert plain(place, *words).code == 0
    assert differing(kept(place / "run"), twins.of(system)) == []


def wait_for_lines(path: Path, number: int) -> None:
    """Returns once the file has so many lines."""
    ends = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < number:
        assert time.monotonic() < ends, f"{path} did not come to {number} lines"
        time.sleep(0.01)


# SIGKILL at every disk operation.


@pytest.mark.parametrize("system", ["pretrain", "extend", "grpo"])
def test_killed_at_a_sample_of_disk_operations(small, twins, place, system):
    enumerated(small, twins, place, system, 6, **FEW[system], **ONE)


@pytest.mark.long
@pytest.mark.parametrize("system", ["pretrain", "extend", "grpo"])
def test_killed_at_every_disk_operation(small, twins, place, system):
    kills = enumerated(small, twins, place, system, None, **FEW[system], **ONE)
    assert kills > 100


@pytest.mark.long
@pytest.mark.parametrize("system", ["tokenizer", "distill", "evaluate"])
def test_systems_that_make_records_killed_at_a_sample_of_disk_operations(small, twins, place, system):
    enumerated(small, twins, place, system, 25)


def test_the_save_path_has_the_operations_that_the_enumeration_dies_at(small, place):
    """Should one of them move to another name, the enumeration would pass it by without a word."""
    for system, wanted in {
        "pretrain": ("save_file /checkpoints/", "write_stream /.tmp-", "_write /metrics.jsonl", "fsync /metrics.jsonl",
                     "rename /checkpoints/000002", "rename /model", "rename /records/000001", "rename /records/000003",
                     "replace /manifest.json", "unlink /checkpoints/", "rmdir /checkpoints/"),
        "extend": ("replace /proof/0-before.json", "replace /proof/3-phase-2.json", "_write /metrics.jsonl",
                   "rename /checkpoints/000003", "rename /model"),
        "grpo": ("sqlite COMMIT", "replace /samples/000002.jsonl", "rename /checkpoints/000002", "rename /model"),
    }.items():
        names = operations(small.forks[0], place, system, small.settings(system, **FEW[system], **ONE))
        assert [start for start in wanted if not any(name.startswith(start) for name in names)] == []


def test_grpo_asks_every_problem_once_and_in_order(small, twins, place):
    """The samples of a run killed between checkpoints hold the same problems, none skipped and none repeated."""
    settings = small.settings("grpo")
    twin = twins.of("grpo")
    words = ("grpo", settings, "--dir", place / "run")
    lines = place / "run" / "metrics.jsonl"
    for number in (4, 13):
        assert small.forks[0].run(*words, signal=SIGKILL, file=str(lines), lines=number).code == -SIGKILL
    assert small.forks[0].run(*words).code == 0
    assert differing(kept(place / "run"), twin) == []
    asked = [
        (row["step"], row["problem"]) for path in sorted((place / "run" / "samples").iterdir())
        for row in map(json.loads, path.read_text().splitlines())
    ]
    assert [step for step, _ in asked] == [step for step in range(1, 21) for _ in range(4)]
    assert len({problem for _, problem in asked}) == 80
    learnt = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [row["step"] for row in learnt] == list(range(1, 21))
    assert all(row["grad_norm"] > 0 for row in learnt), "the twin must learn, or equality shows nothing"


def test_between_the_last_checkpoint_and_the_end_nothing_is_done_twice(small, twins, place):
    """Killed with the model saved and the run not finished: the model stays as it is and the manifest says done."""
    settings, changes = small.settings("pretrain", **FEW["pretrain"], **ONE), {**FEW["pretrain"], **ONE}
    names = operations(small.forks[0], place, "pretrain", settings)
    number = next(n for n, name in enumerate(names, 1) if name == "rename /model")
    words = ("pretrain", settings, "--dir", place / "run")
    small.forks[0].run(*words, inside=str(place / "run"), point=[number, "after"], commit_every=50)
    assert disk.is_complete(place / "run" / "model") and read_manifest(place / "run")["status"] == "running"
    before = (place / "run" / "model" / "COMPLETE").stat().st_mtime_ns
    assert small.forks[0].run(*words, commit_every=50).code == 0
    assert (place / "run" / "model" / "COMPLETE").stat().st_mtime_ns == before
    assert differing(kept(place / "run"), twins.of("pretrain", **changes)) == []
    statuses = [attempt["status"] for attempt in read_manifest(place / "run")["attempts"]]
    assert statuses == ["killed", "done"]


# Polite stops.


@pytest.mark.parametrize("number", [SIGTERM, SIGINT])
def test_a_signal_saves_exits_75_and_continues_exactly(small, twins, place, number):
    words = ("pretrain", small.settings("pretrain"), "--dir", place / "run")
    first = small.forks[0].run(*words, signal=number, file=str(place / "run" / "metrics.jsonl"), lines=8)
    assert first.sent and first.code == 75
    assert "the same command continues" in first.said
    stopped = read_manifest(place / "run")
    assert stopped["status"] == "stopped" and not (place / "run" / "LOCK").exists()
    assert small.forks[0].run(*words).code == 0
    assert same_end(kept(place / "run"), twins.of("pretrain")) == []


@pytest.mark.long
@pytest.mark.parametrize("system", ["extend", "sft", "grpo", "evaluate", "distill"])
def test_every_system_stops_at_sigterm_and_continues_exactly(small, twins, place, system):
    words = (system, small.settings(system), "--dir", place / "run")
    first = small.forks[0].run(*words, signal=SIGTERM, file=str(place / "run" / "timing.jsonl"), lines=2)
    assert first.code == 75, first.said
    assert small.forks[0].run(*words).code == 0
    assert same_end(kept(place / "run"), twins.of(system)) == []


@pytest.mark.parametrize("system", ["tokenizer", "pretrain"])
def test_a_signal_while_data_is_prepared_is_heard_at_once(small, place, system):
    data = [{**SUMS, "max_digits": 3, "think": "steps", "count": 20_000}]
    words = (system, small.settings(system, data=data), "--dir", place / "run")
    commit = place / "run" / "records" / "000001" / "COMPLETE"
    first = small.forks[0].run(*words, signal=SIGTERM, file=str(commit), lines=1, commit_every=50)
    assert first.code == 75 and "stopped while preparing data (SIGTERM)" in first.said, first.said
    ledger = RecordStore(place / "run" / "records").ledger()
    ledger.check()
    assert 50 <= ledger.inputs < 20_000


def test_the_time_limit_exits_75_and_continues_exactly(small, twins, place):
    words = ("pretrain", small.settings("pretrain"), "--dir", place / "run")
    first = small.forks[0].run(*words, "--time-limit", 0.3)
    assert first.code == 75 and "time_limit=0.3 s reached" in first.said
    assert small.forks[0].run(*words).code == 0
    assert same_end(kept(place / "run"), twins.of("pretrain")) == []


def same_end(ours: dict[str, Any], twin: dict[str, Any]) -> list[str]:
    """As `differing`; a stop makes one checkpoint more, which may stand where the twin's last but one stands."""
    last = max((name for name in twin if name.startswith("checkpoints/")), default="")

    def rest(found: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in found.items() if not name.startswith("checkpoints/") or name == last}

    return differing(rest(ours), rest(twin))


# The same directory again.


def test_other_settings_are_refused_by_name_and_fresh_moves_aside(small, place):
    directory = place / "run"
    settings = small.settings("pretrain", **FEW["pretrain"])
    assert small.forks[0].run("pretrain", settings, "--dir", directory).code == 0
    before = kept(directory)
    again = small.forks[0].run("pretrain", settings, "--dir", directory)
    assert again.code == 0 and kept(directory) == before
    changed = small.settings("pretrain", **{**FEW["pretrain"], "mtp": 0.1})
    refused = small.forks[0].run("pretrain", changed, "--dir", directory)
    assert refused.code == 2 and "mtp: 0.3 → 0.1" in refused.said and "--fresh" in refused.said
    assert kept(directory) == before
    assert small.forks[0].run("pretrain", changed, "--dir", directory, "--fresh").code == 0
    assert kept(place / "run.1") == before and kept(directory)["metrics.jsonl"] != before["metrics.jsonl"]


@pytest.mark.long
def test_fresh_killed_anywhere_loses_nothing(small, twins, place):
    """Killed while the old run is moved aside, and `--fresh` again: the old run stands whole under some other name."""
    old, new = (small.settings("pretrain", **{**FEW["pretrain"], "mtp": mtp}) for mtp in (0.3, 0.1))
    assert small.forks[0].run("pretrain", old, "--dir", place / "old", commit_every=50).code == 0
    before = kept(place / "old")
    twin = twins.of("pretrain", **{**FEW["pretrain"], "mtp": 0.1})

    def one(forks: Forks, count: int, point: tuple[int, str]) -> list[str]:
        home = place / str(count)
        shutil.copytree(place / "old", home / "run")
        words = ("pretrain", new, "--dir", home / "run", "--fresh")
        first = forks.run(*words, inside=str(home), point=point, commit_every=50)
        again = forks.run(*words, commit_every=50)
        if (first.code, again.code) != (-SIGKILL, 0):
            return [f"{point}: exit codes {first.code}, {again.code}: {again.said[-400:]}"]
        stands = any(kept(path) == before for path in home.glob("run.*") if (path / "model").exists())
        return [f"{point}: {line}" for line in differing(kept(home / "run"), twin)] + ([] if stands else ["lost"])

    assert on_both(small, [(n, moment) for n in range(1, 13) for moment in ("before", "after")], one) == []


def test_other_settings_are_refused_after_a_kill_too(small, place):
    words = ("--dir", place / "run")
    lines = str(place / "run" / "metrics.jsonl")
    small.forks[0].run("pretrain", small.settings("pretrain"), *words, signal=SIGKILL, file=lines, lines=6)
    refused = small.forks[0].run("pretrain", small.settings("pretrain", optim={"lr": 0.001}), *words)
    assert refused.code == 2 and "optim.lr: 0.003 → 0.001" in refused.said


def test_a_second_process_on_the_same_directory_is_refused_by_name(small, twins, place):
    words = ("pretrain", small.settings("pretrain", tokens=100_000), "--dir", place / "run")
    lines = place / "run" / "metrics.jsonl"
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(small.forks[0].run, *words, signal=SIGTERM, file=str(lines), lines=30)
        wait_for_lines(lines, 1)
        holder = json.loads((place / "run" / "LOCK").read_text())["pid"]
        second = small.forks[1].run(*words)
        assert not first.done(), "the first one ended too soon for this to show anything"
        assert second.code == 2 and f"in use by pid {holder}" in second.said
        assert first.result().code == 75
    statuses = [attempt["status"] for attempt in read_manifest(place / "run")["attempts"]]
    assert statuses == ["stopped"]


def test_a_checkpoint_half_removed_does_not_stand_in_the_way(small, twins, place):
    """As a killed prune of an older version, or a user, may leave it: COMPLETE there and the weights gone, or not."""
    changes = {**FEW["pretrain"], **ONE, "tokens": 1536}
    words = ("pretrain", small.settings("pretrain", **changes), "--dir", place / "run")
    lines = place / "run" / "metrics.jsonl"
    small.forks[0].run(*words, signal=SIGKILL, file=str(lines), lines=3, commit_every=50)
    folders = sorted((place / "run" / "checkpoints").iterdir())
    newest = folders[-1]
    for step, gone in (("000001", "weights.safetensors"), ("000000", "COMPLETE")):
        shutil.copytree(newest, newest.with_name(step), dirs_exist_ok=True)
        (newest.with_name(step) / gone).unlink()
    again = small.forks[0].run(*words, commit_every=50)
    assert again.code == 0, again.said
    ours = kept_without(place / "run", "000000")
    assert differing(ours, twins.of("pretrain", **changes)) == []


def kept_without(directory: Path, checkpoint: str) -> dict[str, Any]:
    """As `kept`, the folder of one checkpoint removed first: it is not Fathom's to delete what it did not finish."""
    shutil.rmtree(directory / "checkpoints" / checkpoint)
    return kept(directory)


def test_an_evaluation_that_could_not_be_judged_says_so_each_time(small, place):
    """A finished run is skipped with exit code 0, so one that failed its audit must never count as finished."""
    settings = small.settings("evaluate", tasks=["small:Broken"], problems=6)
    for _ in range(2):
        said = small.forks[0].run("evaluate", settings, "--dir", place / "run")
        assert said.code == 3 and "100.0 % of the answers could not be judged" in said.said
    assert read_manifest(place / "run")["status"] == "failed"
    assert RecordStore(place / "run" / "records").ledger().inputs == 6


# A recipe.


@pytest.mark.parametrize("system", ["tokenizer", pytest.param("pretrain", marks=pytest.mark.long)])
def test_a_recipe_whose_stage_is_killed_skips_what_is_done_and_continues(small, place, system):
    """The stages are processes of their own; the second one is killed, in its data or in its training."""
    second = {"tokenizer": {"data": [{**SUMS, "max_digits": 3, "think": "steps", "count": 4000}]}, "pretrain": {}}
    recipe: dict[str, Any] = {"seed": 3, "stages": {
        "words": {"run": "tokenizer", **read(small.settings("tokenizer"))},
        "base": {"run": system, **read(small.settings(system)), **second[system]},
    }}
    if system == "pretrain":
        recipe["stages"]["base"]["tokenizer"] = "words"
    sign = {"tokenizer": ("logs/attempt-1.log", 2), "pretrain": ("metrics.jsonl", 8)}[system]
    (place / "r.yaml").write_text(json.dumps(recipe))
    words = ("run", place / "r.yaml", "--dir", place / "r", "--quiet")
    with ThreadPoolExecutor(1) as pool:
        runner = pool.submit(small.forks[0].run, *words)
        wait_for_lines(place / "r" / "base" / sign[0], sign[1])
        os.kill(json.loads((place / "r" / "base" / "LOCK").read_text())["pid"], SIGKILL)
        first = runner.result()
    assert first.code == 1 and "stage base: ended with exit code -9" in first.said
    manifest = (place / "r" / "words" / "manifest.json").read_bytes()
    again = small.forks[0].run(*words)
    assert again.code == 0, again.said
    assert (place / "r" / "words" / "manifest.json").read_bytes() == manifest
    statuses = [attempt["status"] for attempt in read_manifest(place / "r" / "base")["attempts"]]
    assert statuses == ["killed", "done"]
    for stage, of in (("words", "tokenizer"), ("base", system)):
        twin = small.forks[0].run(of, place / "r" / "stages" / f"{stage}.yaml", "--dir", place / stage, "--seed", 3)
        assert twin.code == 0, twin.said
        assert differing(kept(place / "r" / stage), kept(place / stage)) == []


def read(path: Path) -> dict[str, Any]:
    """The settings in a file."""
    values: dict[str, Any] = json.loads(path.read_text())
    return values

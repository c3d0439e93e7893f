"""GRPO with its work elsewhere: in two processes, and on an endpoint that is sent the weights; also with a critic."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.torch import load_file
from small import ENVIRONMENT, SIGKILL, differing, kept, plain
from test_grpo_whole import built, metrics
from test_kill import random_kills

from fathom.core.errors import UsageError
from fathom.core.run import read_manifest

# everything in FP64, so that what differs by rounding alone stays apart from what differs
EXACT = {"dtype": "float64", "steps": 10, "problems": 3, "group": 4, "rewards": {"digits:share": 1.0}, "kl": 0.02}
UPDATES = {"updates": 2, "steps": 4, "problems": 6, "checkpoints": {"every": 2}, "kl": 0.0, "router": "replay",
           "correction": "token_truncate"}
HOST = "127.0.0.1"


def largest(a: Path, b: Path) -> float:
    """The largest difference of two models' weights."""
    ours, theirs = load_file(a / "model" / "model.safetensors"), load_file(b / "model" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def same_course(a: Path, b: Path) -> None:
    """Both runs sampled the same and learnt the same."""
    for ours, theirs in zip(metrics(a), metrics(b), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            if isinstance(value, float):
                assert value == pytest.approx(theirs[name], rel=1e-9, abs=1e-9), name
            else:
                assert value == theirs[name], name
    for path in (a / "samples").iterdir():
        ours, theirs = ([json.loads(line) for line in (folder / "samples" / path.name).read_text().splitlines()]
                        for folder in (a, b))
        assert [[c["text"] for c in row["group"]] for row in ours] == [
            [c["text"] for c in row["group"]] for row in theirs]


def ran(small, place: Path, name: str, *more: str, **changes) -> Path:
    directory = place / name
    done = plain(place, "grpo", small.settings("grpo", **{**EXACT, **changes}), *more, "--dir", directory)
    assert done.code == 0, done.said
    return directory


def begun(settings: Path, directory: Path, lines: int, *more: str) -> subprocess.Popen[str]:
    """A run of these settings that has written so many lines of metrics."""
    words = [sys.executable, "-m", "fathom", "grpo", str(settings), *more, "--dir", str(directory)]
    running = subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    written = directory / "metrics.jsonl"
    while not (written.exists() and written.read_text().count("\n") >= lines):
        assert running.poll() is None
        time.sleep(0.01)
    return running


@contextmanager
def served(small, place: Path, *more: str, dtype: str = "float64") -> Iterator[str]:
    """A server of the base model that takes new weights from `place`; its address."""
    log = place / "server.log"
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "fathom", "serve", str(small.root / "base" / "model"), "--port", "0", "--name", "m",
             "--dtype", dtype, "--updates", str(place), *more], stdout=out, stderr=out, env=ENVIRONMENT)
        try:
            for _ in range(600):
                if found := re.search(rf"http://{HOST}:\d+", log.read_text()):
                    yield found[0]
                    return
                assert server.poll() is None, log.read_text()
                time.sleep(0.05)
            raise AssertionError(log.read_text())
        finally:
            server.terminate()
            server.wait(30)


def on(address: str, **more) -> dict:
    return {"endpoint": {"url": f"{address}/v1", "model": "m", **more}}


@pytest.mark.equivalence
@pytest.mark.parametrize("changes", [
    pytest.param({}, id="plain"), pytest.param(UPDATES, id="updates", marks=pytest.mark.long)])
def test_two_processes_are_one(small, place, changes):
    one = ran(small, place, "one", **changes)
    two = ran(small, place, "two", "nproc=2", **changes)
    same_course(one, two)
    assert largest(one, two) <= 1e-9
    manifests = [read_manifest(directory) for directory in (one, two)]
    assert manifests[0]["fingerprint"] == manifests[1]["fingerprint"]  # the same run, which either may go on with
    assert manifests[0]["summary"] == manifests[1]["summary"]


@pytest.mark.equivalence
def test_an_endpoint_without_delay_is_the_own_module(small, place):
    own = ran(small, place, "own")
    with served(small, place) as address:
        there = ran(small, place, "there", **on(address))
    same_course(own, there)
    assert largest(own, there) <= 1e-9
    assert all(row["mismatch_max"] < 1e-12 for row in metrics(there))


@pytest.mark.long
def test_an_endpoint_may_lag_a_rollout(small, place):
    """What is learnt from was drawn by the policy of a step before, which the mismatch shows."""
    with served(small, place) as address:
        there = ran(small, place, "there", **on(address, behind=1))
    rows = metrics(there)
    assert rows[0]["mismatch_max"] < 1e-12  # both are what training began with
    assert all(row["mismatch_max"] > 1e-9 for row in rows[1:])
    assert all(row["grad_norm"] > 0 for row in rows)


@pytest.mark.long
@pytest.mark.kill
@pytest.mark.parametrize("behind", [0, 1])
def test_an_endpoint_and_a_kill(small, place, behind):
    """Killed while it waits for completions or trains, the run ends as one that was not, where the server's bits do not
    depend on what else it computes."""
    with served(small, place, "deterministic=true", dtype="float32") as address:
        changes = {**on(address, behind=behind), "checkpoints": {"every": 3}, "dtype": "float32"}
        whole = ran(small, place, "whole", **changes)
        settings = small.settings("grpo", **{**EXACT, **changes})
        words = ("grpo", settings, "--dir", place / "killed")
        for lines in (2, 5, 8):
            written = place / "killed" / "metrics.jsonl"
            ended = small.forks[0].run(*words, signal=SIGKILL, file=str(written), lines=lines)
            assert ended.code == -SIGKILL
        done = small.forks[0].run(*words)
        assert done.code == 0, done.said
        assert differing(kept(place / "killed"), kept(whole)) == []


@pytest.mark.long
def test_an_endpoint_that_takes_no_weights(small, place):
    (place / "allowed").mkdir()
    with served(small, place, "--updates", str(place / "allowed")) as address:
        done = plain(place, "grpo", small.settings("grpo", **EXACT, **on(address)), "--dir", place / "run")
    assert done.code == 2
    assert "refused the weights" in done.said and "no directory below" in done.said and "Traceback" not in done.said


@pytest.mark.long
def test_an_endpoint_that_was_started_again_is_not_learnt_from(small, place):
    """It has the weights that it was started with, until the same command sends it those of now."""
    settings = {**EXACT, "steps": 60, "checkpoints": {"every": 1}}
    with served(small, place) as address:
        port = address.rpartition(":")[2]
        file = small.settings("grpo", **settings, **on(address, retries=99, backoff_s=0.1))
        running = begun(file, place / "run", 3)
    with served(small, place, "--port", port) as address:
        said = running.communicate(timeout=90)[1]
        rows = metrics(place / "run")
        assert all(row["mismatch_max"] < 1e-9 for row in rows)
        # either a rollout met the base's weights, or it began after the fall and sent its own anew
        assert running.returncode in (0, 75), said
        if running.returncode == 75:
            assert "draws with weights of version 0" in said


def test_an_endpoint_that_is_not_there(small, place):
    settings = small.settings("grpo", **EXACT, **on(f"http://{HOST}:9", retries=0))
    done = plain(place, "grpo", settings, "--dir", place / "run")
    assert done.code == 75 and "after 1 tries" in done.said and "is the server up?" in done.said, done.said
    assert "Traceback" not in done.said


@pytest.mark.long
@pytest.mark.kill
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with the one that started it")
def test_a_team_that_is_killed_goes_on_as_one_that_was_not(small, place):
    changes = {"checkpoints": {"every": 3}, "dtype": "float32"}
    whole = ran(small, place, "whole", "nproc=2", **changes)
    settings = small.settings("grpo", **{**EXACT, **changes})
    for lines in (2, 7):
        running = begun(settings, place / "killed", lines, "nproc=2")
        running.kill()
        running.communicate()
    done = plain(place, "grpo", settings, "nproc=2", "--dir", place / "killed")  # the others have gone with it
    assert done.code == 0, done.said
    assert differing(kept(place / "killed"), kept(whole)) == []


@pytest.mark.long
def test_a_team_stops_politely_and_goes_on(small, place):
    settings = small.settings("grpo", **{**EXACT, "steps": 400, "checkpoints": {"every": 100}})
    running = begun(settings, place / "run", 3, "nproc=2")
    running.send_signal(signal.SIGTERM)
    said = running.communicate(timeout=60)[1]
    assert running.returncode == 75, said
    step = int(re.search(r"stopped after step (\d+) of 400 \(SIGTERM\)", said)[1])
    assert said.count("stopped after") == 1
    assert len(metrics(place / "run")) == step
    # one process goes on where two stopped
    settings = small.settings("grpo", **{**EXACT, "steps": 400, "checkpoints": {"every": 100}})
    done = plain(place, "grpo", settings, "--dir", place / "run", "--time-limit", "0.01")
    assert done.code == 75 and f"continuing after step {step}" in done.said


@pytest.mark.long
@pytest.mark.kill
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_team_of_which_one_is_killed_says_which(small, place, rank):
    settings = small.settings("grpo", **{**EXACT, "steps": 2000, "checkpoints": {"every": 100}})
    running = begun(settings, place / "run", 3, "nproc=2")
    members = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit() and member(path, place, rank)]
    assert len(members) == 1
    os.kill(members[0], SIGKILL)
    said = running.communicate(timeout=60)[1]
    assert running.returncode == 1 and f"process {rank} of the team was killed by SIGKILL" in said, said
    assert "Traceback" not in said


def member(path: Path, place: Path, rank: str) -> bool:
    """Whether /proc/N is that process of the team that works in `place`."""
    try:
        environment = (path / "environ").read_bytes().split(b"\0")
        words = (path / "cmdline").read_text().split("\0")
        request = next((Path(word) for word in words if "fathom-team-" in word), None)
        return (f"RANK={rank}".encode() in environment and request is not None
                and str(place) in (request / "request.json").read_text())
    except OSError:
        return False


def test_an_error_in_a_team_is_said_once(small, place):
    settings = small.settings("grpo", **{**EXACT, "rewards": {"digits:nothing": 1.0}})
    done = plain(place, "grpo", settings, "nproc=2", "--dir", place / "run")
    assert done.code in (1, 2)
    assert done.said.count("digits:nothing") == 1 and "Traceback" not in done.said, done.said


PPO = {"variant": "ppo", "critic": {"lam": 0.95, "optim": {"lr": 0.003}}, "kl": 0.02}


def test_ppo_learns_its_values(small, place):
    directory = ran(small, place, "ppo", **PPO, steps=30, checkpoints={"every": 10}, rewards={"digits:high": 1.0})
    rows = metrics(directory)
    assert all(row["critic_grad_norm"] > 0 and row["grad_norm"] > 0 for row in rows)
    first, last = (sum(row["critic_loss"] for row in part) for part in (rows[:5], rows[-5:]))
    assert last < first / 2  # values begin at zero
    assert rows[0]["clip_share"] == 0


@pytest.mark.kill
def test_ppo_killed_at_random(small, twins, place):
    random_kills(small, twins, place, "grpo", 2, **PPO, steps=8, checkpoints={"every": 2})


@pytest.mark.long
@pytest.mark.equivalence
def test_ppo_in_two_processes_is_ppo_in_one(small, place):
    one, two = ran(small, place, "one", **PPO, steps=5), ran(small, place, "two", "nproc=2", **PPO, steps=5)
    same_course(one, two)
    assert largest(one, two) <= 1e-9


def test_dpo_learns(small, place):
    rows = metrics(ran(small, place, "dpo", variant="dpo", kl=0.1, steps=4))
    assert all(row["grad_norm"] > 0 for row in rows)
    flat = metrics(ran(small, place, "flat", variant="dpo", kl=0.1, steps=2, rewards={"digits:one": 1.0}))
    # equal rewards make no pair
    assert [(row["flat_groups"], "grad_norm" in row) for row in flat] == [(1.0, False)] * 2


def test_replayed_experts_agree_with_those_that_would_be_chosen(small, place):
    changes = {"updates": 2, "steps": 8, "problems": 4, "checkpoints": {"every": 4}, "kl": 0.0, "optim": {"lr": 0.03}}
    rows = metrics(ran(small, place, "replay", router="replay", **changes))
    assert [row["router_agreement"] for row in rows[0::2]] == pytest.approx([1] * 4)  # nothing has moved yet
    assert all(0 < row["router_agreement"] <= 1 for row in rows[1::2])
    assert any(row["router_agreement"] < 0.99 for row in rows[1::2])


def test_what_these_cannot_be():
    with pytest.raises(UsageError, match=r"critic: belongs to variant=ppo"):
        built(critic={})
    with pytest.raises(UsageError, match=r"critic: belongs to variant=ppo"):
        built(variant="ppo")
    with pytest.raises(UsageError, match=r"DPO's β is kl"):
        built(variant="dpo")
    with pytest.raises(UsageError, match=r"sampling.top_k=5: the policy would be compared"):
        built(sampling={"top_k": 5})
    with pytest.raises(UsageError, match=r"endpoint: is sent whole models"):
        built(endpoint={"url": "http://x/v1", "model": "m"}, lora={"rank": 2})
    with pytest.raises(UsageError, match=r"critic.optim.bias_speed"):
        built(variant="ppo", critic={"optim": {"bias_speed": 0.1}})
    with pytest.raises(UsageError, match="set updates > 1"):
        built(router="replay")

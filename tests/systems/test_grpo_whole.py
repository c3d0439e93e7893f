"""GRPO's other settings as whole runs: every variant, several updates a rollout, dynamic sampling, moved references."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small import SIGKILL, SUMS, differing, kept
from test_kill import random_kills

from fathom.core.chat import Message
from fathom.core.config import build
from fathom.core.errors import UsageError
from fathom.judge.steps import arithmetic, ends_in_tokens, holds, step_judge
from fathom.judge.verdict import Answered, Verdict
from fathom.systems.grpo import Grpo
from fathom.systems.rollouts import advice
from fathom.train.variants import LEFT_OUT, VARIANTS

MANY = {"updates": 2, "steps": 12, "checkpoints": {"every": 4}, "reference_every": 4, "reference_mix": 0.6,
        "correction": "token_truncate", "kl_estimator": "k3_plus"}
DYNAMIC = {"variant": "dapo", "dynamic": 4, "steps": 8, "kl": 0.0, "truncated": "mask", "checkpoints": {"every": 2},
           "rewards": {"digits:share": 1.0}}
PROCESS = {"process": "arithmetic", "steps": 6, "kl": 0.0, "sampling": {"max_tokens": 24}, "checkpoints": {"every": 2}}


def metrics(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.kill
@pytest.mark.parametrize("changes", [MANY, DYNAMIC, PROCESS], ids=["updates", "dynamic", "process"])
def test_other_settings_killed_at_random(small, twins, place, changes):
    random_kills(small, twins, place, "grpo", 2, **changes)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in ("ppo", "dpo")])
def test_every_variant_of_rewards_learns(small, place, variant):
    settings = small.settings("grpo", variant=variant, steps=2, kl=0.0, dynamic=0, rewards={"digits:share": 1.0})
    done = small.forks[0].run("grpo", settings, "--dir", place / variant)
    assert done.code == 0, done.said
    rows = metrics(place / variant)
    assert [row["grad_norm"] > 0 for row in rows] == [True, True]
    assert all(row["mismatch_max"] < 1e-4 for row in rows)  # trainer and sampler agree
    assert all(row["clip_share"] == 0 for row in rows)  # the first update after sampling


def test_a_rollout_is_learnt_from_in_several_updates(small, twins, place):
    twin = twins.of("grpo", **MANY)
    rows = [json.loads(line) for line in twin["metrics.jsonl"].splitlines()]
    assert ["reward" in row for row in rows] == [True, False] * 6
    assert all(row["grad_norm"] > 0 for row in rows)
    # at the second update of a rollout the policy is no longer the one that sampled
    assert [row["mismatch_max"] > 1e-6 for row in rows[1::2]] == [True] * 6
    # the reference moves part of the way after steps 4, 8 and 12
    directory = twins.directory(small.settings("grpo", **MANY))
    assert sorted(path.name for path in (directory / "reference").iterdir())[-1] == "000012.safetensors"
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-12)


def test_dynamic_sampling_asks_until_groups_teach(small, twins, place):
    twin = twins.of("grpo", **DYNAMIC)
    rows = [json.loads(line) for line in twin["metrics.jsonl"].splitlines()]
    assert all(row["flat_groups"] == 0 for row in rows if row.get("rollouts", 1) < 4)


def test_no_reference_is_loaded_where_kl_is_nothing(small, place, monkeypatch):
    """β = 0 opens the weights once."""
    settings = small.settings("grpo", steps=1, kl=0.0)
    done = small.forks[0].run("grpo", settings, "--dir", place / "run")
    assert done.code == 0, done.said
    assert not (place / "run" / "reference").exists()
    assert "kl" not in metrics(place / "run")[0]


def built(**values):
    return build(Grpo, {"init": "m", "tasks": [SUMS], **values}, "test")


def test_what_cannot_be_is_refused_with_its_remedy():
    with pytest.raises(UsageError, match="variant=gmpo: left out: it clips each token"):
        built(variant="gmpo")
    with pytest.raises(UsageError, match="no such method; there are grpo, dr_grpo"):
        built(variant="grop")
    with pytest.raises(UsageError, match=r"problems=3: must be a multiple of updates=2"):
        built(updates=2, problems=3)
    with pytest.raises(UsageError, match="there is no reference where kl is 0"):
        built(reference_every=10)
    with pytest.raises(UsageError, match="does not change"):
        built(reference_every=10, kl=0.1, lora={"rank": 4})
    assert not set(LEFT_OUT) & set(VARIANTS)


def test_a_variant_sets_what_is_not_given():
    assert built(variant="dapo").rule().high == 0.28
    assert built(variant="dapo", clip_high=0.4).rule().high == 0.4
    assert built(variant="dr_grpo").chosen("weigh") == "constant"
    assert built(variant="dr_grpo", weigh="token_mean").chosen("weigh") == "token_mean"
    assert built(variant="gspo").rule().ratio == "sequence"
    assert built().rule() == built(variant="grpo").rule()


def test_advice_speaks_where_a_limit_is_crossed():
    assert advice({"flat_groups": 0.5, "entropy": 0.4, "grad_norm": 2.0}) == []
    [flat] = advice({"flat_groups": 0.9, "entropy": 0.4})
    assert flat.startswith("90% of the groups are flat") and "dynamic=10" in flat
    assert "nothing new is tried" in advice({"entropy": 0.001})[0]


@pytest.mark.parametrize("equation,right", [
    ("7+5=12+9=21", True), ("7+5=12+9=20", False), ("7+5=13+9=22", False), ("12*3=36", True), ("7/2=3", False),
    ("8/2=4-5=-1", True), ("8/0=0", False), ("=3", False), ("3+=4", False),
])
def test_equations(equation, right):
    assert holds(equation) is right


def said(text: str, verdict: Verdict) -> Answered:
    return Answered((Message("user", "q"),), text, verdict)


def test_steps_of_arithmetic():
    text = "<think>\n7+5=12\n1+4=6\nso\n</think>\n<answer>62</answer>"
    [steps] = arithmetic([said(text, Verdict.wrong("no", "62"))])
    assert [(text[:end].splitlines()[-1], score) for end, score in steps] == [
        ("7+5=12", 1.0), ("1+4=6", 0.0), ("<answer>62</answer>", 0.0)]
    assert arithmetic([said(text, Verdict.failed("broke"))]) == [None]
    with pytest.raises(UsageError, match="no such judge of steps"):
        step_judge("nothing")


def test_steps_end_at_the_token_that_completes_them():
    words = ["ab", "c", "def", "g"]
    assert ends_in_tokens(lambda tokens: "".join(words[t] for t in tokens), [0, 1, 2, 3], [2, 3, 4, 7]) == [0, 1, 2, 3]


@pytest.mark.long
@pytest.mark.kill
def test_two_thousand_steps_killed_every_hundred(small, twins, place):
    """Dynamic sampling on: the same end to the bit, no problem skipped or asked twice."""
    changes = {"steps": 2000, "problems": 2, "group": 4, "kl": 0.0, "dynamic": 3, "sampling": {"max_tokens": 8},
               "rewards": {"digits:share": 1.0}, "checkpoints": {"every": 25}, "samples_every": 100}
    twin, settings = twins.of("grpo", **changes), small.settings("grpo", **changes)
    words, lines, kills = ("grpo", settings, "--dir", place / "run"), place / "run" / "metrics.jsonl", 0
    for number in range(60, 2000, 100):
        ended = small.forks[0].run(*words, signal=SIGKILL, file=str(lines), lines=number + (number * 7) % 37)
        kills += ended.code == -SIGKILL
    assert small.forks[0].run(*words).code == 0
    assert kills >= 19
    assert differing(kept(place / "run"), twin) == []
    rows = metrics(place / "run")
    assert [row["step"] for row in rows] == list(range(1, 2001))
    seconds = [json.loads(line)["seconds"] for line in (place / "run" / "timing.jsonl").read_text().splitlines()
               if "seconds" in line]
    assert sorted(seconds)[len(seconds) // 2] <= 0.3

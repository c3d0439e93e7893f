"""Pre-training as DeepSeek-V2 did: balance losses between groups, token dropping, and the same after a kill."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from small import MODEL, SIGKILL, Small, differing, kept

pytestmark = pytest.mark.kill

V2 = {**MODEL, "n_routed_experts": 8, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 2,
      "scoring_func": "softmax", "topk_method": "group_limited_greedy", "norm_topk_prob": False,
      "routed_scaling_factor": 4.0, "num_nextn_predict_layers": 0}
MANNER = {"model": V2, "mtp": 0, "balance": 0.003, "device_balance": 0.05, "communication_balance": 0.02,
          "capacity": 1.0, "exempt": 0.1, "tokens": 6144}


def lines(directory: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_balanced_and_dropped_and_the_same_after_a_kill(small: Small, place: Path) -> None:
    forks, settings = small.forks[0], small.settings("pretrain", **MANNER)
    done = forks.run("pretrain", settings, "--dir", place / "whole")
    assert done.code == 0, done.said
    cut, moment = place / "cut", 0.6 * done.seconds
    while forks.run("pretrain", settings, "--dir", cut, signal=SIGKILL, after=moment).code != -SIGKILL:
        shutil.rmtree(cut)
        moment *= 0.7
    assert forks.run("pretrain", settings, "--dir", cut).code == 0
    assert not differing(kept(cut), kept(place / "whole"))
    steps = lines(place / "whole")
    assert all({"loss_balance", "loss_device_balance", "loss_communication_balance", "dropped"} <= step.keys()
               for step in steps)
    assert all(0 < step["dropped"] < sum(map(sum, step["expert_load"])) for step in steps)
    written = json.loads((place / "whole" / "model" / "config.json").read_text())
    assert (written["model_type"], written["n_group"], written["topk_group"]) == ("deepseek_v2", 4, 2)

    done = forks.run("pretrain", small.settings("pretrain", **{**MANNER, "capacity": None}), "--dir", place / "all")
    assert done.code == 0, done.said
    assert not any("dropped" in step for step in lines(place / "all"))


@pytest.mark.parametrize("name", ["device_balance", "communication_balance", "capacity"])
def test_groups_are_asked_of_a_model_that_has_them(small: Small, place: Path, name: str) -> None:
    done = small.forks[0].run("pretrain", small.settings("pretrain", **{name: 0.5}), "--dir", place / "run")
    assert done.code == 2
    assert f"{name}=0.5: concerns groups of experts" in " ".join(done.said.split())

"""Runs with adapters: what they leave on disk, that they can be killed, and that the base they stand on is held to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small import SIGKILL, differing, kept
from test_kill import FEW, ONE, enumerated, operations, random_kills

from fathom.core import disk
from fathom.model import adapter, lora, weights
from fathom.model.config import Lora
from fathom.model.tokenizer import Tokenizer

RANK = {"rank": 4, "alpha": 8}
LEARNT = {"lora": RANK, "optim": {"lr": 0.01}}


def metrics(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("system", ["sft", "grpo"])
def test_base_and_adapter_are_the_model(small, twins, system):
    """DIR/adapter beside the base's weights is DIR/model to the bit, and the base lies there as it was."""
    before = disk.digest(small.root / "base" / "model")
    twins.of(system, **LEARNT)
    directory = twins.directory(small.settings(system, **LEARNT))
    base, _ = weights.load(small.root / "base" / "model")
    lora.attach(base, Lora(**RANK), 0, mtp=system == "sft")
    stored = load_file(directory / "adapter" / adapter.WEIGHTS)
    named = adapter.tensors(base)
    assert set(named) == set(stored)
    with torch.no_grad():
        for place, module in lora.adapted(base).items():
            for name, parameter in module.named_parameters():
                if "lora" in name:
                    parameter.fill_(float("nan"))  # so that whatever is not restored shows
            stem = f"base_model.model.{adapter.outward(base, place)}"
            if isinstance(module, lora.LoraExperts):
                for part, at in (("gate_up_proj", f"{stem}.base_layer"), ("down_proj", stem)):
                    a, b = module.pair(part)
                    a.copy_(stored[f"{at}.lora_A.weight"].view_as(a))
                    b.copy_(stored[f"{at}.lora_B.weight"].view(b.shape[1], b.shape[2], -1).permute(2, 0, 1))
            else:
                module.lora_A.copy_(stored[f"{stem}.lora_A.weight"])
                module.lora_B.copy_(stored[f"{stem}.lora_B.weight"])
    lora.merge(base)
    model, words = weights.load(directory / "model")
    found, expected = weights.outward(base), weights.outward(model)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert words.files() == Tokenizer.load(small.root / "base" / "model").files()
    assert disk.digest(small.root / "base" / "model") == before
    said = json.loads((directory / "adapter" / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == str(small.root / "base" / "model")
    assert (said["r"], said["lora_alpha"]) == (4, 8)


def test_it_learns(small, twins):
    """The loss falls by more than its scatter from step to step."""
    twins.of("sft", **LEARNT)
    rows = metrics(twins.directory(small.settings("sft", **LEARNT)))
    first, last = (sum(r["loss_next"] for r in part) / 5 for part in (rows[:5], rows[-5:]))
    assert last < first - 0.05
    assert "held_out" in rows[-1]


def test_grpo_measures_from_the_base(small, twins):
    """At the first step policy and reference are one; later they have parted, and sampler and learner have not."""
    twins.of("grpo", **LEARNT)
    rows = metrics(twins.directory(small.settings("grpo", **LEARNT)))
    assert rows[0]["kl"] == 0
    assert rows[-1]["kl"] > 1e-3
    assert max(r["mismatch"] for r in rows) < 1e-4  # FP32, absorbed decoding against the full forward pass


def test_the_merged_model_is_where_the_next_stage_begins(small, twins, place):
    twins.of("sft", **LEARNT)
    taught = twins.directory(small.settings("sft", **LEARNT)) / "model"
    for system, changes in (("grpo", {"steps": 1, "problems": 2}), ("sft", {"epochs": 0.5})):
        settings = small.settings(system, init=str(taught), **changes)
        done = small.forks[0].run(system, settings, "--dir", place / system)
        assert done.code == 0, done.said


def test_another_base_is_refused(small, place):
    """The checkpoint holds adapters alone, so the weights that they stand beside must be the same on resume."""
    shutil.copytree(small.root / "base" / "model", place / "base")
    settings = small.settings("sft", init=str(place / "base"), **LEARNT)
    words = ("sft", settings, "--dir", place / "run")
    killed = small.forks[0].run(*words, signal=SIGKILL, file=str(place / "run" / "metrics.jsonl"), lines=6)
    assert killed.code == -SIGKILL
    model, tokenizer = weights.load(place / "base")
    with torch.no_grad():
        model.layers[0].mlp.up_proj.weight.mul_(1.5)
    shutil.rmtree(place / "base")
    weights.save(place / "base", model, tokenizer)
    again = small.forks[0].run(*words)
    assert again.code == 2
    assert f"inputs.{place / 'base'}" in again.said and "--fresh" in again.said


@pytest.mark.parametrize(("system", "changes", "words"), [
    ("sft", {"lora": {"rank": 0}}, "lora.rank=0: must be ≥ 1"),
    ("sft", {"lora": {"targets": ["gate_porj"]}}, "did you mean gate_proj?"),
    ("sft", {"lora": {"targets": ["k_proj"]}}, "lora.targets: k_proj: this model has none; it has q_proj, "),
    ("sft", {"lora": {}, "optim": {"bias_speed": 0.001}}, "beside adapters; set optim.bias_speed=0"),
    ("grpo", {"lora": {}, "optim": {"bias_speed": 0.001}}, "beside adapters; set optim.bias_speed=0"),
])
def test_what_cannot_be_is_refused(small, place, system, changes, words):
    done = small.forks[0].run(system, small.settings(system, **changes), "--dir", place / "run")
    assert done.code == 2
    assert words in " ".join(done.said.split())


# Killed.


def test_the_save_path_has_the_adapters(small, place):
    """Should one of these move to another name, the enumeration below would pass it by without a word."""
    for system in ("sft", "grpo"):
        names = operations(small.forks[0], place, system, small.settings(system, **FEW[system], **ONE, **LEARNT))
        streams = [name for name in names if name.startswith("write_stream ")]
        assert [name.rpartition("/")[2] for name in streams] == ["adapter_model.safetensors", "model.safetensors"]
        assert names.index("rename /adapter") < names.index("rename /model")


@pytest.mark.kill
@pytest.mark.parametrize("system", ["sft", "grpo"])
def test_killed_at_a_sample_of_disk_operations(small, twins, place, system):
    enumerated(small, twins, place, system, 4, **FEW[system], **ONE, **LEARNT)


@pytest.mark.kill
@pytest.mark.parametrize("system", ["sft", "grpo"])
def test_killed_between_adapter_and_model(small, twins, place, system):
    """The adapters are written, the merged model is not: merging is done again, on adapters from the checkpoint."""
    changes = {**FEW[system], **ONE, **LEARNT}
    settings = small.settings(system, **changes)
    names = operations(small.forks[0], place, system, settings)
    words = (system, settings, "--dir", place / "run")
    point = (names.index("rename /adapter") + 1, "after")
    first = small.forks[0].run(*words, inside=str(place / "run"), point=point, commit_every=50)
    assert first.code == -SIGKILL
    assert (place / "run" / "adapter").is_dir() and not (place / "run" / "model").exists()
    assert small.forks[0].run(*words, commit_every=50).code == 0
    assert differing(kept(place / "run"), twins.of(system, **changes)) == []


@pytest.mark.kill
@pytest.mark.long
@pytest.mark.parametrize(("system", "sample"), [("sft", None), ("grpo", 60)])
def test_killed_at_many_disk_operations(small, twins, place, system, sample):
    """At every one where the loop is short; the loop of GRPO without adapters is enumerated in test_kill.py."""
    assert enumerated(small, twins, place, system, sample, **FEW[system], **ONE, **LEARNT) >= 60


@pytest.mark.kill
@pytest.mark.long
@pytest.mark.parametrize("system", ["sft", "grpo"])
def test_killed_at_random_it_ends_as_if_nothing_had_happened(small, twins, place, system):
    random_kills(small, twins, place, system, 8, **LEARNT)

"""Training adapters: the checkpoint holds them and not the base, a resumed run is uninterrupted, the base is the
reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_adapters import adapted
from made_models import GQA_TIED, MLA_MOE, assert_gradients, assert_within, gradients, sharp
from made_steps import documents, packed, rollout, step, total
from safetensors.torch import load_file
from test_learning import Broken, Made, ends_at, fingerprint

from fathom.core import disk
from fathom.core.errors import FathomError
from fathom.core.run import Run
from fathom.model import lora
from fathom.model.config import Lora, ModelConfig
from fathom.train import checkpoint
from fathom.train.batch import pack, sequence_mean, token_mean
from fathom.train.learner import Learner
from fathom.train.loader import Examples, Loader
from fathom.train.objective import grpo, next_token, with_reference
from fathom.train.optim import Optimiser
from fathom.train.schedule import AdamW, Checkpoints
from fathom.train.variants import PolicyRule

STEPS = 9
OPTIM = AdamW(lr=2e-2, warmup=2, bias_speed=0.0)
RANK = Lora(rank=4, alpha=8)


def train(
    directory: Path, config: ModelConfig = MLA_MOE, dtype: torch.dtype = torch.float32,
    before: Callable[[int, Learner], None] = lambda step, learner: None, settings: Lora | None = RANK,
) -> Learner:
    """A whole little training loop, as the systems write it, of adapters or, without settings, of every weight."""
    every = Examples.gather((e.tokens, e.trained) for e in documents(config, 9, 14, 5, 12, 7, 20, 6))
    with Run.open(directory, "made", Made(), seed=7, console=False) as run:
        model = sharp(config, dtype=dtype)
        if settings:
            lora.attach(model, settings, run.seed("lora"))
        loader = Loader(every, lambda epoch: run.rng("order", epoch))
        learner = Learner(model, OPTIM, run, Checkpoints(every=3, keep=2), loader=loader)
        for number in learner.steps(STEPS):
            examples = loader.take(24)
            for batch in pack(examples, token_mean, 16):
                learner.backward(next_token(model, batch, 0.3), batch)
            before(number, learner)
            seen = learner.count_tokens(examples)
            run.metrics(number, **learner.step(), tokens=seen)
    return learner


@pytest.mark.equivalence
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", [MLA_MOE, GQA_TIED], ids=["mla", "gqa tied"])
def test_resumed_is_uninterrupted_to_the_bit(config: ModelConfig, dtype: torch.dtype, tmp_path: Path) -> None:
    """Broken off before the first checkpoint, two steps past it, and one past the second."""
    whole = train(tmp_path / "whole", config, dtype)
    for stop in (2, 5, 7):
        with pytest.raises(Broken):
            train(tmp_path / "broken", config, dtype, ends_at(stop))
    resumed = train(tmp_path / "broken", config, dtype)
    assert fingerprint(resumed) == fingerprint(whole)
    assert disk.digest(tmp_path / "broken/checkpoints/000009") == disk.digest(tmp_path / "whole/checkpoints/000009")
    metrics = [json.loads(line) for line in (tmp_path / "broken" / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["loss"] < metrics[0]["loss"]  # it learns


@pytest.mark.parametrize("config", [MLA_MOE, GQA_TIED], ids=["mla", "gqa tied"])
def test_a_checkpoint_holds_what_trains_and_buffers(config: ModelConfig, tmp_path: Path) -> None:
    learner = train(tmp_path / "run", config)
    folder = tmp_path / "run/checkpoints/000009"
    stored = load_file(folder / "weights.safetensors")
    adapters = {n for n, p in learner.model.named_parameters() if p.requires_grad}
    buffers = {n for n, _ in learner.model.named_buffers()}
    assert adapters and set(stored) == adapters | buffers
    assert bool(buffers) == (config is MLA_MOE)
    moments = {name.partition("/")[2] for name in load_file(folder / "optimiser.safetensors")}
    assert moments == adapters
    # the base is as it was, and every adapter learnt
    base = sharp(config, dtype=torch.float32).state_dict()
    now = learner.model.state_dict()
    assert all(torch.equal(now[name], tensor) for name, tensor in base.items())
    assert all(now[name].any() for name in adapters)


def test_full_training_still_holds_every_weight(tmp_path: Path) -> None:
    learner = train(tmp_path / "run", settings=None)
    stored = load_file(tmp_path / "run/checkpoints/000009/weights.safetensors")
    assert set(stored) == set(learner.model.state_dict()) == set(learner.trained())


@pytest.mark.parametrize(("now", "words"), [
    (Lora(rank=8, alpha=8), r"q_a_proj.lora_A: shape \[4, 32\], the model has \[8, 32\]"),
    (Lora(rank=4, alpha=8, targets=("o_proj",)), r"lora_[AB]: not part of the model"),
    (None, r"layers\.0.*weight: missing|embed_tokens.weight: missing"),
])
def test_another_shape_of_adapters_is_refused_by_name(now: Lora | None, words: str, tmp_path: Path) -> None:
    with pytest.raises(Broken):
        train(tmp_path / "run", before=ends_at(5))
    with pytest.raises(FathomError, match=words) as error:
        train(tmp_path / "run", settings=now)
    assert "put the settings back, or start over with --fresh" in str(error.value)
    assert checkpoint.steps(tmp_path / "run/checkpoints") == [3]


def test_the_optimiser_holds_adapters_alone_and_masters_in_fp32() -> None:
    model = adapted(MLA_MOE, RANK, torch.bfloat16)
    optimiser = Optimiser(model, OPTIM)
    assert set(optimiser.named) == {n for n, _ in model.named_parameters() if n.endswith(("lora_A", "lora_B"))}
    assert {m.dtype for m in optimiser.masters.values()} == {torch.float32}
    trained = sum(m.numel() for m in optimiser.masters.values())
    assert trained == sum(module_size(m) for m in lora.adapted(model).values())


def module_size(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@pytest.mark.equivalence
@pytest.mark.parametrize("config", [MLA_MOE, GQA_TIED], ids=["mla", "gqa tied"])
def test_the_reference_is_the_base_loaded_beside(config: ModelConfig) -> None:
    """With the adapters off, reference log-probabilities are those of a second model that never had any, to the bit;
    with them on they are not."""
    policy, base = adapted(config, RANK), sharp(config).requires_grad_(False)
    examples = rollout(config, policy)
    for batch in packed(policy, examples, sequence_mean, 40):
        beside = with_reference(base, batch)
        with lora.off(policy):
            within = with_reference(policy, batch)
        assert torch.equal(within.reference_logp, beside.reference_logp)
        itself = with_reference(policy, batch)
        assert (itself.reference_logp - beside.reference_logp).abs().max() > 0.1


@pytest.mark.equivalence
def test_the_kl_term_pulls_towards_the_base() -> None:
    """Loss and gradients of GRPO with kl > 0 are those with the reference in a model of its own; without adapters
    grown, the term is zero."""
    results = []
    for own in (False, True):
        policy, base = adapted(MLA_MOE, RANK), sharp(MLA_MOE).requires_grad_(False)
        reference = base if own else policy

        def objective(model, batch, reference=reference):
            with lora.off(reference):
                batch = with_reference(reference, batch)
            return grpo(model, batch, PolicyRule(kl=0.1))

        losses = step(policy, rollout(MLA_MOE, policy), sequence_mean, 40, objective)
        results.append((total(losses), total(losses, "kl"), gradients(policy)))
    assert results[0][:2] == results[1][:2]
    assert results[0][1] > 1e-3
    assert_gradients(results[0][2], results[1][2], 1e-15)
    fresh = sharp(MLA_MOE)
    lora.attach(fresh, RANK, 0)
    (batch,) = packed(fresh, rollout(MLA_MOE, fresh), sequence_mean, 1000)
    with lora.off(fresh):
        batch = with_reference(fresh, batch)
    assert float(grpo(fresh, batch, PolicyRule(kl=0.1)).parts["kl"]) == 0


@pytest.mark.equivalence
def test_accumulation_and_recompute_change_nothing() -> None:
    found = []
    for size, recompute in ((1000, False), (20, False), (20, True)):
        model = adapted(MLA_MOE, RANK)
        model.recompute = recompute
        losses = step(model, documents(MLA_MOE, 9, 14, 5, 12), token_mean, size,
                      lambda model, batch: next_token(model, batch, 0.3))
        found.append((torch.tensor(total(losses)), gradients(model)))
    for loss, gradient in found[1:]:
        assert_within(loss, found[0][0], 1e-12)
        assert_gradients(gradient, found[0][1], 1e-12)


def test_the_loss_is_that_of_the_merged_model() -> None:
    """What was trained is what is written: the held-out loss before and after merging."""
    model = adapted(MLA_MOE, RANK)
    (batch,) = packed(model, documents(MLA_MOE, 9, 14, 5), token_mean, 1000)
    before = float(next_token(model, batch, 0.3).total.detach())
    lora.merge(model)
    after = float(next_token(model, replace(batch), 0.3).total.detach())
    assert after == pytest.approx(before, abs=1e-12)

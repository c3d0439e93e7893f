"""One step cut in any way gives one gradient: into micro-batches, prompts shared or repeated, recomputed or not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_models import (
    DTYPES,
    GQA_MOE,
    MLA_LITE,
    MLA_MOE,
    TOLERANCE,
    assert_gradients,
    gradients,
    sharp,
)
from made_steps import documents, packed, rollout, step, total

from fathom.core.errors import FathomError
from fathom.model.transformer import Transformer
from fathom.train.batch import Batch, Example, pack, sequence_mean, token_mean
from fathom.train.objective import Loss, grpo, next_token, with_reference
from fathom.train.variants import PolicyRule

RULE = PolicyRule(high=0.28, kl=0.04)


def learn(model: Transformer, batch: Batch) -> Loss:
    return next_token(model, batch, mtp=0.3, balance=0.01)


def improve(reference: Transformer, temperature: float = 1.0):
    def objective(model: Transformer, batch: Batch) -> Loss:
        return grpo(model, with_reference(reference, batch, temperature), RULE, temperature)

    return objective


def counts(losses: list[Loss]) -> dict[int, list[int]]:
    layers = {layer for loss in losses for layer in loss.routing.counts}
    return {n: sum(loss.routing.counts[n] for loss in losses).tolist() for n in sorted(layers)}


@pytest.mark.equivalence
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("config", [MLA_MOE, GQA_MOE], ids=["mla", "gqa"])
def test_one_batch_of_eight_is_eight_of_one(config, dtype: torch.dtype) -> None:
    model, examples = sharp(config, dtype=dtype), documents(config, 9, 14, 3, 12, 2, 20, 7, 11)
    results = []
    for size, batches in ((1000, 1), (30, 4), (1, 8)):
        losses = step(model, examples, token_mean, size, learn)
        assert len(losses) == batches
        results.append((losses, gradients(model)))
    for losses, found in results[1:]:
        # gradients are sums over all tokens: roundings relative to the largest entry
        assert_gradients(found, results[0][1], TOLERANCE[dtype])
        for part in ("loss", "loss_next", "loss_mtp", "loss_balance"):
            assert total(losses, part) == pytest.approx(total(results[0][0], part), rel=TOLERANCE[dtype])
        assert counts(losses) == counts(results[0][0])


@pytest.mark.equivalence
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rule", [sequence_mean, token_mean])
def test_grpo_accumulates_exactly(rule, dtype: torch.dtype) -> None:
    """Micro-batches that cut through groups, prompts shared or repeated: five ways, one gradient."""
    model, reference = sharp(MLA_MOE, dtype=dtype), sharp(MLA_MOE, seed=0, dtype=dtype, gain=1.45)
    sampler = sharp(MLA_MOE, gain=1.48)
    results = []
    for shared, size in ((True, 1000), (True, 20), (True, 1), (False, 1000), (False, 25)):
        examples = rollout(MLA_MOE, sampler, shared=shared)
        losses = step(model, examples, rule, size, improve(reference))
        results.append((losses, gradients(model)))
    assert [len(losses) for losses, _ in results][:3] == [1, 4, 9]
    for losses, found in results[1:]:
        assert_gradients(found, results[0][1], TOLERANCE[dtype])
        for part in ("loss", "kl", "clip_share", "mismatch"):
            assert total(losses, part) == pytest.approx(total(results[0][0], part), rel=TOLERANCE[dtype], abs=1e-7)
    assert 0 < total(results[0][0], "clip_share") < 1


@pytest.mark.equivalence
def test_next_token_with_shared_prompts() -> None:
    """Supervised answers to one question share it too; the question is not trained."""
    model = sharp(MLA_LITE)
    results = []
    for shared in (True, False):
        examples = [replace(e, advantage=None, sampled_logp=None)
                    for e in rollout(MLA_LITE, model, shared=shared)]
        losses = step(model, examples, token_mean, 1000, next_token)
        results.append((total(losses), gradients(model)))
    assert results[0][0] == pytest.approx(results[1][0], abs=TOLERANCE[torch.float64])
    assert_gradients(results[0][1], results[1][1], TOLERANCE[torch.float64])


def test_a_shared_prompt_goes_through_the_model_once() -> None:
    model = sharp(MLA_MOE)
    shared, alone = (
        sum(len(b.tokens) for b in packed(model, rollout(MLA_MOE, model, shared=s), sequence_mean, 1000))
        for s in (True, False)
    )
    # prompts of 6, 1 and 9 in groups of 4, 3 and 2: all but the last token of each is saved but once
    assert alone - shared == 5 * 3 + 0 * 2 + 8 * 1


def test_only_what_changes_nothing_is_shared() -> None:
    """Prompts that are trained, or differ although the group's name is the same, are laid out in full."""
    model = sharp(MLA_LITE)
    examples = rollout(MLA_LITE, model, groups=((4, 5),), prompts=(6,))
    trained = [replace(e, trained=np.arange(len(e.tokens)) > 0) for e in examples]
    other = np.concatenate([(examples[1].tokens[:6] + 1) % 61, examples[1].tokens[6:]])
    different = [examples[0], replace(examples[1], tokens=other)]
    for odd in (trained, different):
        bare = [replace(e, group=None, shared=0) for e in odd]
        (one,), (two,) = (packed(model, some, token_mean, 1000) for some in (odd, bare))
        assert torch.equal(one.tokens, two.tokens)
        assert torch.equal(one.weight, two.weight)
    assert len(packed(model, examples, token_mean, 1000)[0].tokens) < len(one.tokens)


@pytest.mark.equivalence
@pytest.mark.parametrize("config", [MLA_MOE, GQA_MOE], ids=["mla", "gqa"])
def test_recomputing_changes_nothing(config) -> None:
    """The same bits: the second forward pass repeats the first. Experts are counted once, as integers."""
    results = []
    for recompute in (False, True):
        model = sharp(config, dtype=torch.float32)
        model.recompute = recompute
        losses = step(model, documents(config, 9, 14, 3), token_mean, 20, learn)
        results.append((total(losses), gradients(model), counts(losses)))
    plain, again = results
    assert plain[0] == again[0]
    assert plain[1].keys() == again[1].keys()
    assert all(torch.equal(plain[1][name], again[1][name]) for name in plain[1])
    assert plain[2] == again[2]
    assert {sum(row) for row in plain[2].values()} == {(8 + 13 + 2) * config.num_experts_per_tok}
    assert len(plain[2]) == 3  # two layers and the module that predicts further


@pytest.mark.property
@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 6), st.integers(0, 2)), min_size=1, max_size=12),
       st.integers(1, 60), st.sampled_from([token_mean, sequence_mean]))
def test_every_trained_token_weighs_once(shapes: list[tuple[int, int, int]], size: int, rule) -> None:
    """Whatever the grouping and the batch size: each trained token is the target of one term with its coefficient."""
    examples, expected = [], []
    for number, (prompt, length, group) in enumerate(shapes):
        tokens = np.concatenate([np.full(prompt, 40 + group), np.arange(length) + 50]).astype(np.int32)
        trained = np.arange(prompt + length) >= prompt
        examples.append(Example(tokens, trained, float(number + 1), -np.arange(prompt + length, dtype=float),
                                group=str(group), shared=prompt))
    weights = rule([length for _, length, _ in shapes])
    for number, (prompt, length, _) in enumerate(shapes):
        expected += [(50 + t, weights[number], number + 1.0, -float(prompt + t)) for t in range(length)]
    found = []
    batches = pack(examples, rule, size, dtype=torch.float64)
    for batch in batches:
        for row in batch.weight.nonzero()[:, 0].tolist():
            found.append((int(batch.targets[row]), float(batch.weight[row]), float(batch.advantage[row]),
                          float(batch.sampled_logp[row])))
        assert len(batch.tokens) <= size or int((batch.sequence_weight > 0).sum()) == 1
        assert len(batch.tokens) == len(batch.layout.positions_T) == len(batch.targets)
    assert found == expected
    assert sum(float(b.sequence_weight.sum()) for b in batches) == pytest.approx(1, abs=1e-12)
    # coefficients add up to one: a step's loss is a mean
    assert sum(float(b.weight.sum()) for b in batches) == pytest.approx(1, abs=1e-12)


def test_a_step_without_trained_tokens_is_refused() -> None:
    with pytest.raises(FathomError, match="2 examples, 0 trained tokens"):
        pack([Example(np.arange(4), np.zeros(4, bool))] * 2, token_mean, 10)


def test_a_batch_without_trained_tokens_adds_nothing() -> None:
    """A micro-batch may hold only untrained text; the step still counts its tokens in the balance."""
    model = sharp(MLA_MOE)
    examples = documents(MLA_MOE, 6, 5)
    examples[0] = replace(examples[0], trained=np.zeros(6, bool))
    losses = step(model, examples, token_mean, 5, learn)
    assert float(losses[0].parts["loss_next"]) == 0
    cut = gradients(model)
    step(model, examples, token_mean, 100, learn)
    assert_gradients(cut, gradients(model), TOLERANCE[torch.float64])

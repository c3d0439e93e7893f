"""Each objective against its formula written out token by token, and the fixtures of rl.md §10."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_models import (
    GQA_MOE,
    MLA_DENSE,
    MLA_LITE,
    MLA_MOE,
    V2,
    assert_gradients,
    assert_within,
    gradients,
    sharp,
)
from made_reference import Reference
from made_steps import documents, packed, rollout, sequence_logp, step, total

from fathom.model.layout import Layout
from fathom.model.moe import Dropping
from fathom.model.transformer import Transformer
from fathom.train.batch import Batch, Example, sequence_mean, token_mean
from fathom.train.learner import mean_loss
from fathom.train.objective import grpo, next_token, with_reference
from fathom.train.variants import PolicyRule

# both sides float64: other order of sums through a few sharp layers; 1e-9 leaves no room for another formula
EXACT = 1e-9


@pytest.mark.parity
@pytest.mark.parametrize("config", [MLA_MOE, GQA_MOE], ids=["mla", "gqa"])
def test_next_token_is_the_loop(config) -> None:
    """V3 eq. 24–25 and 17–20: next token, the token after it, balance; λ/T and the sequence's own α."""
    model, examples = sharp(config), documents(config, 9, 2, 14, 1, 5, seed=4)
    reference = Reference(model)
    trained = sum(int(e.trained[1:].sum()) for e in examples)
    loss_next = loss_mtp = loss_balance = 0.0
    for e in examples:
        tokens, n = e.tokens.tolist(), len(e.tokens)
        hidden = reference.hidden(tokens[:-1]) if n > 1 else []
        # layer 3 is the module's own: the balance of the sequence counts it too
        further = reference.further(hidden, tokens[1:]) if n > 1 else []
        loss_balance += reference.balance()[0] / len(examples) if n > 1 else 0.0
        for t in range(n - 1):
            if e.trained[t + 1]:
                loss_next -= reference.log_probabilities(hidden[t])[tokens[t + 1]] / trained
            if t + 2 < n and e.trained[t + 2]:  # the last positions have no token after next
                loss_mtp -= reference.log_probabilities(further[t])[tokens[t + 2]] / trained  # T, as printed
    (batch,) = packed(model, examples, token_mean, 1000)
    loss = next_token(model, batch, mtp=0.3, balance=0.01)
    found = {name: float(value) for name, value in loss.parts.items()}
    assert found["loss_next"] == pytest.approx(loss_next, abs=EXACT)
    assert found["loss_mtp"] == pytest.approx(loss_mtp, abs=EXACT)
    assert found["loss_balance"] == pytest.approx(loss_balance, abs=EXACT)
    assert found["loss"] == pytest.approx(loss_next + 0.3 * loss_mtp + 0.01 * loss_balance, abs=EXACT)
    assert float(loss.total.detach()) == found["loss"]
    assert min(loss_next, loss_mtp) > 1  # a sharp model on random tokens: large, so a wrong coefficient shows


@pytest.mark.parity
def test_the_three_balance_losses_are_the_loops() -> None:
    """V2 §2.1.3: between experts, between devices, and in what is sent to them, each with its α."""
    model, examples = sharp(V2), documents(V2, 9, 14, 5, seed=4)
    reference = Reference(model)
    expected = np.zeros(3)
    for e in examples:
        reference.hidden(e.tokens.tolist()[:-1])
        expected += np.array(reference.balance()) / len(examples)
    (batch,) = packed(model, examples, token_mean, 1000)
    loss = next_token(model, batch, balance=0.003, device_balance=0.05, communication_balance=0.02)
    names = ("loss_balance", "loss_device_balance", "loss_communication_balance")
    assert [float(loss.parts[name]) for name in names] == pytest.approx(expected.tolist(), abs=EXACT)
    whole = float(loss.parts["loss_next"]) + float(expected @ [0.003, 0.05, 0.02])
    assert float(loss.total.detach()) == pytest.approx(whole, abs=EXACT)
    assert len(set(np.round(expected, 3))) == 3  # three different numbers: a wrong one shows
    grad = torch.autograd.grad(loss.total, model.layers[1].mlp.gate.weight)[0]
    plain = torch.autograd.grad(next_token(model, batch).total, model.layers[1].mlp.gate.weight)[0]
    assert (grad - plain).abs().max() > 1e-4  # they reach the router


@pytest.mark.parity
def test_dropped_assignments_are_those_of_the_loop() -> None:
    """V2 §2.1.4: per device, what exceeds the even share is dropped from the lowest affinity; exempt sequences lose
    nothing. Nothing is dropped where it was not asked for."""
    model, examples = sharp(V2), documents(V2, 12, 14, 9, seed=3)
    (batch,) = packed(model, examples, token_mean, 1000)
    exempt_T = batch.layout.sequence_T == 1
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def note(_m: torch.nn.Module, _i: object, out: tuple[torch.Tensor, ...]) -> None:
        seen.append((out[1], out[2], out[3]))

    moe = model.layers[1].mlp
    handle = moe.register_forward_hook(note)
    loss = next_token(model, batch, dropping=Dropping(1.0, exempt_T))
    handle.remove()
    ((score, expert, kept),) = seen
    size = V2.n_routed_experts // V2.n_group
    budget = math.ceil(expert.numel() / V2.n_group)
    expected = torch.zeros_like(kept)
    for device in range(V2.n_group):
        pairs = [(t, k) for t in range(len(expert)) for k in range(expert.shape[1])
                 if int(expert[t, k]) // size == device]
        pairs.sort(key=lambda p: (not exempt_T[p[0]], -float(score.detach()[p[0], expert[p]])))
        for rank, (t, k) in enumerate(pairs):
            expected[t, k] = rank < budget or bool(exempt_T[t])
    assert torch.equal(kept, expected)
    assert 0 < int((~kept).sum()) < kept.numel() and kept[exempt_T].all()
    assert int(loss.parts["dropped"]) >= int((~kept).sum())
    assert "dropped" not in next_token(model, batch).parts
    with torch.no_grad():  # what is dropped adds nothing: the layer's output by hand
        x = torch.randn(len(expert), V2.hidden_size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        y, score, expert, kept = moe(x, Dropping(1.0, exempt_T))
        out = moe.shared_experts(x)
        weight = score.gather(1, expert) * V2.routed_scaling_factor
        for t in range(len(x)):
            for k in range(expert.shape[1]):
                if kept[t, k]:
                    gate, up = (moe.experts.gate_up_proj[expert[t, k]] @ x[t]).chunk(2)
                    out[t] += weight[t, k] * (moe.experts.down_proj[expert[t, k]] @ (gate.sigmoid() * gate * up))
        assert_within(y, out, EXACT)


@pytest.mark.parity
def test_gradient_of_next_token_is_that_of_finite_differences() -> None:
    model = sharp(MLA_DENSE)
    (batch,) = packed(model, documents(MLA_DENSE, 8, 5), token_mean, 100)
    next_token(model, batch).total.backward()
    generator = torch.Generator().manual_seed(1)
    direction = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in model.named_parameters()}
    slope = sum(float((p.grad * direction[n]).sum()) for n, p in model.named_parameters())

    def moved(by: float) -> float:
        with torch.no_grad():
            for name, p in model.named_parameters():
                p += by * direction[name]
            value = float(next_token(model, batch).total)
            for name, p in model.named_parameters():
                p -= by * direction[name]
        return value

    # central differences: the error falls with h², here 1e-10 × third derivatives, against a slope of order 10
    assert slope == pytest.approx((moved(1e-5) - moved(-1e-5)) / 2e-5, rel=1e-5)


def test_no_target_crosses_the_end_of_a_document() -> None:
    """Changing a document changes no term of another: neither of the next token nor of the one after."""
    model, (a, b, c) = sharp(MLA_MOE), documents(MLA_MOE, 6, 7, 5)

    def terms(middle: Example) -> torch.Tensor:
        (batch,) = packed(model, [a, middle, c], token_mean, 100)
        loss = next_token(model, batch, mtp=1.0)
        return torch.autograd.grad(loss.total, model.mtp[0].eh_proj.weight)[0]

    other = replace(b, tokens=(b.tokens + 7) % 61, trained=np.zeros(7, bool))
    silent = replace(b, trained=np.zeros(7, bool))
    assert_within(terms(other), terms(silent), 1e-12)  # nothing trained in the middle: its tokens do not matter
    assert not torch.equal(terms(b), terms(silent))


def test_balance_is_alpha_when_routing_is_even() -> None:
    """Affinities all equal: P is uniform, so Σ f·P is 1 for each layer whatever is chosen."""
    model = sharp(MLA_LITE)
    for moe in model.routers().values():
        torch.nn.init.zeros_(moe.gate.weight)
    (batch,) = packed(model, documents(MLA_LITE, 9, 4), token_mean, 100)
    loss = next_token(model, batch, balance=0.01)
    assert float(loss.parts["loss_balance"]) == pytest.approx(2.0, abs=1e-12)  # two routing layers
    assert float(loss.parts["loss"] - loss.parts["loss_next"]) == pytest.approx(0.01 * 2, abs=1e-12)


def test_a_model_without_further_prediction_has_no_such_term() -> None:
    model = sharp(MLA_LITE)
    (batch,) = packed(model, documents(MLA_LITE, 9), token_mean, 100)
    assert set(next_token(model, batch, mtp=0.3).parts) == {"loss", "loss_next"}


def written_out(
    policy: Transformer, examples: list[Example], clip: tuple[float, float], kl: float, temperature: float,
    aggregate: str, reference: Transformer | None,
) -> dict[str, torch.Tensor]:
    """DeepSeekMath eq. 3 and 4, one completion and one token at a time, differentiable through `policy`."""
    tokens_in_all = sum(int(e.trained.sum()) for e in examples)
    sums = {name: torch.zeros((), dtype=torch.float64) for name in ("loss", "kl", "clip_share")}
    for e in examples:
        tokens = torch.from_numpy(e.tokens.astype(np.int64))
        logits = policy.logits(policy(tokens[:-1], Layout.packed([len(tokens) - 1]))) / temperature
        ref = sequence_logp(reference, e, temperature) if reference is not None else None
        length = int(e.trained.sum())
        for t in np.flatnonzero(e.trained):
            logp = logits[t - 1, tokens[t]] - torch.logsumexp(logits[t - 1], 0)
            ratio = torch.exp(logp - e.sampled_logp[t])
            low, high = 1 - clip[0], 1 + clip[1]
            clamped = ratio if low <= ratio <= high else torch.full_like(ratio, low if ratio < low else high)
            gain = ratio * e.advantage if ratio * e.advantage <= clamped * e.advantage else clamped * e.advantage
            coefficient = 1 / tokens_in_all if aggregate == "token" else 1 / (len(examples) * length)
            term = gain
            if ref is not None:
                x = ref[t] - logp
                divergence = torch.exp(x) - x - 1
                term = gain - kl * divergence
                sums["kl"] = sums["kl"] + coefficient * divergence.detach()
            sums["loss"] = sums["loss"] - coefficient * term
            sums["clip_share"] += coefficient * float((clamped * e.advantage < ratio * e.advantage).detach())
    return sums


@pytest.mark.parity
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("aggregate", ["sequence", "token"])
@pytest.mark.parametrize("kl", [0.0, 0.04])
def test_grpo_is_the_loop(temperature: float, aggregate: str, kl: float) -> None:
    policy, sampler, reference = sharp(MLA_MOE), sharp(MLA_MOE), sharp(MLA_MOE)
    for model, seed, size in ((sampler, 1, 0.02), (reference, 2, 0.05)):  # near the policy, yet ratios leave the clip
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in model.parameters():
                p += size * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    examples, clip = rollout(MLA_MOE, sampler, temperature), (0.2, 0.28)
    expected = written_out(policy, examples, clip, kl, temperature, aggregate, reference if kl else None)
    expected["loss"].backward()
    wanted = gradients(policy)

    def objective(model: Transformer, batch: Batch):
        if kl:
            batch = with_reference(reference, batch, temperature)
        return grpo(model, batch, PolicyRule(low=clip[0], high=clip[1], kl=kl), temperature)

    losses = step(policy, examples, token_mean if aggregate == "token" else sequence_mean, 25, objective)
    assert len(losses) > 1
    for name in ("loss", "clip_share", *(["kl"] if kl else [])):
        assert total(losses, name) == pytest.approx(float(expected[name].detach()), abs=EXACT), name
    assert_gradients(gradients(policy), wanted, EXACT)
    assert 0.1 < float(expected["clip_share"]) < 0.9  # both branches of the minimum are taken
    if kl:
        assert float(expected["kl"]) > 0.01


def one_token(ratio: float, advantage: float, reference_ratio: float = 1.0) -> tuple[Transformer, Batch]:
    """A batch of one trained token at which π_θ/π_old and π_ref/π_θ have the given values."""
    policy = sharp(MLA_DENSE)
    bare = Example(np.array([5, 9], dtype=np.int32), np.array([False, True]))
    logp = sequence_logp(policy, bare)
    example = replace(bare, advantage=advantage, sampled_logp=logp - math.log(ratio),
                      reference_logp=logp + math.log(reference_ratio))
    return policy, packed(policy, [example], sequence_mean, 10)[0]


@pytest.mark.parity
@pytest.mark.parametrize(("ratio", "advantage", "gain", "clipped"), [
    (1.5, 1.0, 1.2, True), (1.5, -1.0, -1.5, False), (0.5, 1.0, 0.5, False), (0.5, -1.0, -0.8, True)])
def test_clip_fixtures(ratio: float, advantage: float, gain: float, clipped: bool) -> None:
    policy, batch = one_token(ratio, advantage)
    loss = grpo(policy, batch)
    assert float(loss.parts["loss"]) == pytest.approx(-gain, abs=1e-9)  # a logarithm and an exponential in float64
    assert float(loss.parts["clip_share"]) == float(clipped)
    loss.total.backward()
    assert (max(float(p.grad.abs().max()) for p in policy.parameters() if p.grad is not None) == 0) == clipped


@pytest.mark.parity
@pytest.mark.parametrize(("x", "value"), [(0.1, 0.005171), (-0.1, 0.004837), (1.0, 0.718282), (-1.0, 0.367879)])
def test_k3_fixtures(x: float, value: float) -> None:
    policy, batch = one_token(1.0, 0.0, math.exp(x))
    parts = grpo(policy, batch, PolicyRule(kl=0.5)).parts
    assert float(parts["kl"]) == pytest.approx(value, abs=5e-7)  # the fixture has six digits
    assert float(parts["loss"]) == pytest.approx(0.5 * value, abs=5e-7)


@pytest.mark.parity
@pytest.mark.parametrize(("rule", "value"), [(sequence_mean, 1.5), (token_mean, 10 / 6)])
def test_aggregation_fixtures(rule, value: float) -> None:
    """Losses [1, 1] and [2, 2, 2, 2]: at ρ = 1 a token's loss is −A."""
    policy = sharp(MLA_DENSE)
    examples = rollout(MLA_DENSE, policy, groups=((2, 4),), prompts=(3,))
    examples = [replace(e, advantage=a) for e, a in zip(examples, (-1.0, -2.0), strict=True)]
    assert total(step(policy, examples, rule, 100, grpo)) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_first_update_after_sampling(temperature: float) -> None:
    """ρ = 1 everywhere, nothing is clipped; under the sequence mean the loss of whole groups is 0, the gradient not."""
    policy = sharp(MLA_MOE)
    examples = rollout(MLA_MOE, policy, temperature)
    for name in {e.group for e in examples}:
        group = [i for i, e in enumerate(examples) if e.group == name]
        mean = np.mean([examples[i].advantage for i in group])
        for i in group:
            examples[i] = replace(examples[i], advantage=examples[i].advantage - mean)
    losses = step(policy, examples, sequence_mean, 25, lambda m, b: grpo(m, b, temperature=temperature))
    assert total(losses, "mismatch") == pytest.approx(0, abs=1e-12)  # the mean |log ρ|
    assert total(losses, "clip_share") == 0
    assert total(losses) == pytest.approx(0, abs=1e-12)
    assert max(float(g.abs().max()) for g in gradients(policy).values()) > 1e-3
    wrong = step(policy, examples, sequence_mean, 25, lambda m, b: grpo(m, b, temperature=temperature * 1.5))
    assert total(wrong, "mismatch") > 0.1  # a forgotten temperature would show


def test_no_divergence_from_oneself() -> None:
    """π_θ = π_ref: the KL term and its gradient are 0."""
    policy = sharp(MLA_MOE)
    examples = [replace(e, advantage=0.0) for e in rollout(MLA_MOE, policy)]
    losses = step(policy, examples, sequence_mean, 25,
                  lambda m, b: grpo(m, with_reference(sharp(MLA_MOE), b), PolicyRule(kl=1.0)))
    assert total(losses, "kl") == pytest.approx(0, abs=1e-12)
    # e^x − 1 is the derivative; x is a rounding of 1e-15
    assert max(float(g.abs().max()) for g in gradients(policy).values()) < 1e-9


def test_what_grpo_needs_is_asked_for() -> None:
    policy = sharp(MLA_DENSE)
    (bare,) = packed(policy, documents(MLA_DENSE, 5), token_mean, 100)
    with pytest.raises(ValueError, match="no advantages"):
        grpo(policy, bare)
    _, batch = one_token(1.0, 1.0)
    with pytest.raises(ValueError, match="reference"):
        grpo(policy, replace(batch, reference_logp=None), PolicyRule(kl=0.1))


@pytest.mark.equivalence
def test_held_out_loss_is_the_mean_over_trained_tokens() -> None:
    model, examples = sharp(MLA_MOE), documents(MLA_MOE, 9, 5, 14, 7)
    terms = [-sequence_logp(model, e)[t] for e in examples for t in np.flatnonzero(e.trained) if t > 0]
    model.train()
    assert mean_loss(model, packed(model, examples, token_mean, 12)) == pytest.approx(np.mean(terms), abs=EXACT)
    assert model.training

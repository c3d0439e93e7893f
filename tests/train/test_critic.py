"""PPO's critic and DPO's pairs against loops written from the formulas, in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_models import MLA_MOE, sharp
from made_steps import packed, rollout, sequence_logp

from fathom.model.layout import Layout
from fathom.model.transformer import Transformer
from fathom.train.batch import sequence_mean, token_mean
from fathom.train.critic import Critic, gae, value_loss, with_values
from fathom.train.objective import grpo, with_old, with_reference
from fathom.train.pairs import coefficients, with_pairs
from fathom.train.variants import PolicyRule


def critic_of(seed: int) -> Critic:
    made = Critic(sharp(MLA_MOE, dtype=torch.float64))
    torch.manual_seed(seed)
    torch.nn.init.normal_(made.value.weight, std=0.5)
    return made


def test_gae_is_the_sum_of_discounted_errors():
    rng = np.random.default_rng(0)
    rewards, values, gamma, lam = rng.normal(size=7), rng.normal(size=7), 0.97, 0.9
    after = [*values[1:], 0.0]
    delta = [rewards[t] + gamma * after[t] - values[t] for t in range(7)]
    expected = [sum((gamma * lam) ** k * delta[t + k] for k in range(7 - t)) for t in range(7)]
    assert np.abs(gae(rewards, values, gamma, lam) - expected).max() < 1e-12
    # λ = 1, γ = 1: the return less the value
    assert np.abs(gae(rewards, values, 1, 1) - (rewards[::-1].cumsum()[::-1] - values)).max() < 1e-12


@pytest.mark.parametrize("size", [1000, 20])
def test_advantages_and_value_loss_are_those_of_a_loop(size):
    policy, reference = sharp(MLA_MOE, dtype=torch.float64), sharp(MLA_MOE, dtype=torch.float64, seed=5)
    examples, critic, gamma, lam, kl, clip = rollout(MLA_MOE, policy), critic_of(1), 0.99, 0.95, 0.1, 0.05
    batches = [with_reference(reference, b) for b in packed(policy, examples, token_mean, size)]
    batches = [with_values(critic, b, gamma, lam, kl) for b in batches]
    with torch.no_grad():
        critic.value.weight += 0.1  # the values move, so that some are held
    losses = [value_loss(critic, b, clip) for b in batches]

    found = iter([(a, r) for b in batches for a, r in zip(
        b.advantage[b.weight != 0].tolist(), b.returns[b.weight != 0].tolist(), strict=True)])
    expected, number = 0.0, sum(int(e.trained.sum()) for e in examples)
    for example in examples:
        n, first = len(example.tokens), int(np.flatnonzero(example.trained)[0])
        with torch.no_grad():

            now = critic(torch.from_numpy(example.tokens[:-1].astype(np.int64)), Layout.packed([n - 1])).numpy()
            critic.value.weight -= 0.1
            old = critic(torch.from_numpy(example.tokens[:-1].astype(np.int64)), Layout.packed([n - 1])).numpy()
            critic.value.weight += 0.1
        ref = sequence_logp(reference, example)
        steps = range(first, n)
        reward = [-kl * (example.sampled_logp[t] - ref[t]) + (example.advantage if t == n - 1 else 0) for t in steps]
        value = [old[t - 1] for t in steps]
        delta = [reward[i] + gamma * (value[i + 1] if i + 1 < len(value) else 0) - value[i] for i in range(len(value))]
        for i, t in enumerate(steps):
            advantage = sum((gamma * lam) ** k * delta[i + k] for k in range(len(value) - i))
            a, r = next(found)
            assert abs(a - advantage) < 1e-9 and abs(r - (advantage + value[i])) < 1e-9
            held = value[i] + min(max(now[t - 1] - value[i], -clip), clip)
            expected += 0.5 * max((now[t - 1] - r) ** 2, (held - r) ** 2) / number
    assert abs(float(sum(loss.total.detach() for loss in losses)) - expected) < 1e-9
    assert 0 < float(sum(loss.parts["critic_clip_share"] for loss in losses)) <= 1


def test_a_critic_has_no_head():
    body = Transformer(MLA_MOE).initialise(0)
    made = Critic(body)
    names = set(made.state_dict())
    assert "value.weight" in names and not any("lm_head" in name or "mtp" in name for name in names)


def test_a_pair_weighs_as_dpo_does():
    beta = 0.3
    up, down = coefficients(np.array([1.0, 0.0]), np.array([0.4, -0.7]), beta)
    assert up == pytest.approx(1 / (1 + math.exp(beta * (0.4 + 0.7)))) and down == -up
    assert coefficients(np.array([1.0, 1.0]), np.array([0.4, -0.7]), beta).tolist() == [0, 0]


def test_the_gradient_of_pairs_is_dpos():
    """Of −log σ(β(m⁺ − m⁻)) over the mean log-ratios, by its β, averaged over the pairs of a group and over groups."""
    policy, reference, beta = sharp(MLA_MOE, dtype=torch.float64), sharp(MLA_MOE, dtype=torch.float64, seed=5), 0.7
    made = rollout(MLA_MOE, policy, groups=((4, 9, 6), (3, 7)), prompts=(6, 2))
    rewards = [1.0, 0.0, 1.0, 0.0, 1.0]
    examples = [replace(e, advantage=r) for e, r in zip(made, rewards, strict=True)]
    batches = [with_reference(reference, b) for b in packed(policy, examples, sequence_mean, 25)]
    assert len(batches) > 1
    for batch in with_pairs(batches, beta):
        grpo(policy, batch, PolicyRule(clip="none")).total.backward()
    found = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()


    def mean_ratio(example) -> torch.Tensor:
        tokens = torch.from_numpy(example.tokens.astype(np.int64))
        hidden = policy(tokens[:-1], Layout.packed([len(tokens) - 1]))
        logp = policy.logits(hidden).log_softmax(-1).gather(1, tokens[1:, None])[:, 0]
        ref = torch.from_numpy(sequence_logp(reference, example))[1:]
        return (logp - ref)[torch.from_numpy(example.trained[1:])].mean()

    m = [mean_ratio(e) for e in examples]
    loss = torch.zeros((), dtype=torch.float64)
    for pairs in ([(0, 1), (2, 1)], [(4, 3)]):
        for better, worse in pairs:
            loss = loss - torch.nn.functional.logsigmoid(beta * (m[better] - m[worse])) / (beta * len(pairs) * len(m))
    loss.backward()
    for name, gradient in found.items():
        assert (gradient - policy.get_parameter(name).grad).abs().max() < 1e-9, name


def test_replayed_experts_are_taken_whatever_the_router_chooses_now():
    policy = sharp(MLA_MOE, dtype=torch.float64)
    examples = rollout(MLA_MOE, policy)
    [batch] = [with_old(policy, b) for b in packed(policy, examples, sequence_mean, 1000)]
    before = grpo(policy, batch, PolicyRule(replay=True))
    assert float(before.parts["router_agreement"]) == pytest.approx(1)
    with torch.no_grad():  # other experts for everybody
        for moe in policy.routers().values():
            moe.gate.weight.neg_()
    replayed, own = (grpo(policy, batch, PolicyRule(replay=replay)) for replay in (True, False))
    assert {layer: count.tolist() for layer, count in replayed.routing.counts.items()} == {
        layer: count.tolist() for layer, count in before.routing.counts.items()}
    assert float(replayed.parts["router_agreement"]) < 1
    assert float(own.parts["router_agreement"]) < 1
    assert float(own.total.detach()) != float(replayed.total.detach())

"""Every named method against its formula written out in float64, completion by completion and token by token."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_models import MLA_MOE, assert_gradients, gradients, sharp
from made_steps import rollout, sequence_logp, step, total

from fathom.core.chat import Completion
from fathom.model.layout import Layout
from fathom.model.transformer import Transformer
from fathom.train.advantage import examples as made_examples
from fathom.train.advantage import of_groups, of_steps
from fathom.train.batch import Example, weight_rule
from fathom.train.objective import grpo, with_old, with_reference
from fathom.train.variants import VARIANTS, PolicyRule

EXACT = 1e-9
LIMIT = 12  # most tokens of a completion, for constant weights


def near(model: Transformer, seed: int, size: float) -> Transformer:
    """A copy whose probabilities differ enough for ratios to leave every clip."""
    other = sharp(MLA_MOE)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in other.parameters():
            p += size * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return other


def logps(policy: Transformer, example: Example) -> torch.Tensor:
    """Log-probabilities of the trained tokens, differentiable."""
    tokens = torch.from_numpy(example.tokens.astype(np.int64))
    logits = policy.logits(policy(tokens[:-1], Layout.packed([len(tokens) - 1])))
    every = logits.log_softmax(-1).gather(1, tokens[1:, None])[:, 0]
    return every[torch.from_numpy(example.trained[1:])]


# Formulas: from logp [n], the sampler's logp [n] and the advantage to the sum over tokens of the term to maximise.


def two_clips(ratio: torch.Tensor, a: float, low: float, high: float) -> torch.Tensor:
    held = min(max(float(ratio.detach()), 1 - low), 1 + high)
    return ratio * a if float(ratio.detach()) * a <= held * a else torch.tensor(held * a, dtype=torch.float64)


def ppo(logp, old, a):
    return sum(two_clips((logp[t] - old[t]).exp(), a, 0.2, 0.2) for t in range(len(logp)))


def dapo(logp, old, a):
    return sum(two_clips((logp[t] - old[t]).exp(), a, 0.2, 0.28) for t in range(len(logp)))


def gspo(low: float, high: float) -> Callable:
    def term(logp, old, a):
        s = ((logp - old).sum() / len(logp)).exp()
        return len(logp) * two_clips(s, a, low, high)
    return term


def gspo_token(logp, old, a):
    s = math.exp(float((logp - old).detach().sum()) / len(logp))
    return sum(two_clips(s * (logp[t] - logp[t].detach()).exp(), a, 3e-4, 4e-4) for t in range(len(logp)))


def cispo(logp, old, a):
    return sum(min(math.exp(float(logp[t].detach() - old[t])), 5.0) * a * logp[t] for t in range(len(logp)))


def two_sided(logp, old, a):
    found = []
    for t in range(len(logp)):
        ratio = (logp[t] - old[t]).exp()
        if float(ratio.detach()) > 4.0:
            ratio = torch.tensor(4.0, dtype=torch.float64)
        found.append(two_clips(ratio, a, 0.2, 0.2))
    return sum(found)


def sapo(logp, old, a):
    tau = 1.05 if a < 0 else 1.0
    return sum(4 / tau / (1 + (-tau * ((logp[t] - old[t]).exp() - 1)).exp()) * a for t in range(len(logp)))


def vespo(logp, old, a):
    k, rate = (3, 2) if a < 0 else (2, 3)
    w = math.exp(float((logp - old).detach().sum()))
    return math.exp(rate) * w**k * math.exp(-rate * w) * a * logp.sum()


def plain(logp, old, a):
    return sum((logp[t] - old[t]).exp() * a for t in range(len(logp)))


FORMULAS = {
    "grpo": ppo, "dr_grpo": ppo, "dapo": dapo, "gspo": gspo(3e-4, 4e-4), "gspo_token": gspo_token,
    "luspo": gspo(2e-3, 2.5e-3), "cispo": cispo, "two_sided": two_sided, "sapo": sapo, "vespo": vespo,
    "lite_ppo": ppo, "rloo": plain, "reinforce_pp": ppo, "online_rft": plain,
}
WEIGHTS = {
    "sequence_mean": lambda b, n, all: 1 / (b * n), "token_mean": lambda b, n, all: 1 / all,
    "sequence_sum": lambda b, n, all: 1 / b, "constant": lambda b, n, all: 1 / (b * LIMIT),
}


def rule_of(name: str, **more) -> PolicyRule:
    row = VARIANTS[name]
    low = row.get("clip", 0.2)
    return PolicyRule(row.get("ratio", "token"), row.get("clip_rule", "ppo"), low, row.get("clip_high", low), **more)


def test_every_variant_has_its_formula() -> None:
    assert {*FORMULAS, "ppo", "dpo"} == set(VARIANTS)  # those two: test_critic.py


@pytest.mark.parity
@pytest.mark.parametrize("name", FORMULAS)
def test_a_variant_is_its_formula(name: str) -> None:
    policy = sharp(MLA_MOE)
    sampler = near(policy, 1, 0.003 if "product" in VARIANTS[name].values() else 0.02)
    examples, weigh = rollout(MLA_MOE, sampler), VARIANTS[name].get("weigh", "sequence_mean")
    counts = [int(e.trained.sum()) for e in examples]
    loss = torch.zeros((), dtype=torch.float64)
    for e, n in zip(examples, counts, strict=True):
        old = torch.from_numpy(e.sampled_logp[e.trained])
        weight = WEIGHTS[weigh](len(examples), n, sum(counts))
        loss = loss - weight * FORMULAS[name](logps(policy, e), old, e.advantage)
    loss.backward()
    wanted = gradients(policy)
    losses = step(policy, examples, weight_rule(weigh, LIMIT), 25, lambda m, b: grpo(m, b, rule_of(name)))
    assert len(losses) > 1
    assert total(losses) == pytest.approx(float(loss.detach()), rel=EXACT, abs=EXACT)
    scale = max(1.0, max(float(g.abs().max()) for g in wanted.values()))
    ours = gradients(policy)
    assert_gradients({n: g / scale for n, g in ours.items()}, {n: g / scale for n, g in wanted.items()}, EXACT)
    assert max(float(g.abs().max()) for g in wanted.values()) > 1e-6


@pytest.mark.parity
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "k3_plus"])
@pytest.mark.parametrize("unbiased", [False, True])
def test_estimators_of_kl(estimator: str, unbiased: bool) -> None:
    policy, sampler, reference = sharp(MLA_MOE), near(sharp(MLA_MOE), 1, 0.01), near(sharp(MLA_MOE), 2, 0.05)
    examples = rollout(MLA_MOE, sampler)
    value = torch.zeros((), dtype=torch.float64)
    for e in examples:
        r = logps(policy, e) - torch.from_numpy(sequence_logp(reference, e)[e.trained])
        old = torch.from_numpy(e.sampled_logp[e.trained])
        terms = {"k1": r, "k2": r**2 / 2, "k3": (-r).exp() + r - 1}
        terms["k3_plus"] = terms["k2"] - terms["k2"].detach() + terms["k3"].detach()
        term = terms[estimator] * ((logps(policy, e) - old).exp() if unbiased else 1)
        value = value + (term.sum() / len(term)) / len(examples)
    (0.3 * value).backward()
    wanted = gradients(policy)
    rule = PolicyRule(kl=0.3, estimator=estimator, unbiased_kl=unbiased)
    losses = step(policy, [replace(e, advantage=0.0) for e in examples], weight_rule("sequence_mean", LIMIT), 25,
                  lambda m, b: grpo(m, with_reference(reference, b), rule))
    assert total(losses) == pytest.approx(0.3 * float(value.detach()), abs=EXACT)
    assert_gradients(gradients(policy), wanted, EXACT)


@pytest.mark.parity
@pytest.mark.parametrize("correction", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_corrections_of_the_samplers_probabilities(correction: str) -> None:
    """The ratio goes to the trainer's own probabilities of before the update; the rest is a weight without gradient."""
    before, policy, sampler = near(sharp(MLA_MOE), 3, 0.01), sharp(MLA_MOE), near(sharp(MLA_MOE), 1, 0.02)
    examples, low, high = rollout(MLA_MOE, sampler), 0.5, 1.2
    loss = torch.zeros((), dtype=torch.float64)
    held = 0
    for e in examples:
        logp, old = logps(policy, e), torch.from_numpy(sequence_logp(before, e)[e.trained])
        w = (old - torch.from_numpy(e.sampled_logp[e.trained])).numpy()
        w = np.exp(np.full(len(w), w.sum()) if correction.startswith("sequence") else w)
        inside = (w >= low) & (w <= high)
        held += int((~inside).sum())
        w = np.clip(w, low, high) if correction.endswith("truncate") else np.where(inside, w, 0)
        for t in range(len(logp)):
            gain = two_clips((logp[t] - old[t]).exp(), e.advantage, 0.2, 0.2)
            loss = loss - float(w[t]) * gain / (len(logp) * len(examples))
    loss.backward()
    wanted = gradients(policy)
    rule = PolicyRule(correction=correction, least_weight=low, most_weight=high)
    losses = step(policy, examples, weight_rule("sequence_mean", LIMIT), 25,
                  lambda m, b: grpo(m, with_old(before, b), rule))
    assert total(losses) == pytest.approx(float(loss.detach()), abs=EXACT)
    assert_gradients(gradients(policy), wanted, EXACT)
    assert held  # the bounds act


def test_bad_completions_that_the_policy_left_are_dropped() -> None:
    policy, sampler = sharp(MLA_MOE), near(sharp(MLA_MOE), 1, 0.02)
    examples = rollout(MLA_MOE, sampler)
    away = [float(np.mean(e.sampled_logp[e.trained] - sequence_logp(policy, e)[e.trained])) for e in examples]
    bound = float(np.median([d for d, e in zip(away, examples, strict=True) if e.advantage < 0]))
    kept = [e if not (e.advantage < 0 and d > bound) else replace(e, advantage=0.0)
            for d, e in zip(away, examples, strict=True)]
    ours = step(policy, examples, weight_rule("token_mean", 0), 25,
                lambda m, b: grpo(m, b, PolicyRule(off_policy=bound)))
    theirs = step(policy, kept, weight_rule("token_mean", 0), 25, grpo)
    assert total(ours) == pytest.approx(total(theirs), abs=EXACT)
    assert kept != examples


@pytest.mark.parity
def test_fixtures_of_gspo_and_of_weights() -> None:
    """rl.md §10: log-ratios [.1, .3] give s = 1.2214; losses [1, 1] and [2, 2, 2, 2] by all four weights."""
    assert math.exp(np.mean([0.1, 0.3])) == pytest.approx(1.2214, abs=5e-5)
    for name, value in (("sequence_mean", 1.5), ("token_mean", 10 / 6), ("constant", 0.5), ("sequence_sum", 5.0)):
        weights = weight_rule(name, 10)([2, 4])
        assert 2 * 1 * weights[0] + 4 * 2 * weights[1] == pytest.approx(value)


@pytest.mark.parity
def test_advantages_by_baseline_and_scale() -> None:
    groups = [[1.0, 0.0, 0.0, 0.0], [0.5, 1.0, None, 0.0], [1.0, 1.0, 1.0, 1.0]]
    others = of_groups(groups, "others", "none")
    assert others[0] == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3])
    assert others[1] == [0.0, 0.75, None, -0.75]
    assert of_groups(groups, "none", "none") == groups
    every = [r for group in groups for r in group if r is not None]
    batch = of_groups(groups, "mean", "batch")
    assert batch[0][0] == pytest.approx(0.75 / (np.std(every, ddof=1) + 1e-4))
    white = [a for group in of_groups(groups, "mean", "whiten") for a in group if a]
    plain = [a for group in of_groups(groups, "mean", "none")[:2] for a in group if a is not None]
    assert white[0] == pytest.approx((plain[0] - np.mean(plain)) / (np.std(plain, ddof=1) + 1e-4))
    assert of_groups(groups, "mean", "whiten")[2] == [0.0] * 4


@pytest.mark.parity
def test_process_supervision_fixture() -> None:
    """rl.md §10 has the population's deviation; with n − 1 the same numbers shrink by √(3/4)."""
    (first, second), = of_steps([[[(1, 1.0), (4, 0.0)], [(2, 1.0), (3, 1.0)]]])
    shrink = math.sqrt(3 / 4)
    assert first == pytest.approx([-1.1547 * shrink] * 2 + [-1.7321 * shrink] * 3, abs=5e-4)
    assert second == pytest.approx([1.1547 * shrink] * 3 + [0.5774 * shrink], abs=5e-4)
    assert of_steps([[None, [(0, 1.0)], [(2, 1.0)]]])[0][0] is None
    assert not of_steps([[[(0, 1.0)], [(2, 1.0)]]])[0][1].any()  # flat: nothing says what was better


def test_advantages_by_token_reach_their_tokens() -> None:
    said = [Completion("", (5, 6, 7), (-1.0, -1.0, -1.0), "stop"), Completion("", (8,), (-1.0,), "length")]
    made = made_examples([[1, 2]], [said], [[np.array([0.5, 0.25]), np.array([-1.0])]])
    assert made[0].advantage.tolist() == [0, 0, 0.5, 0.25, 0]
    assert made[1].advantage.tolist() == [0, 0, -1.0]
    assert len(made_examples([[1, 2]], [said], [[0.5, -0.5]], mask_truncated=True)) == 1

"""The optimiser: the same bits as torch's, masters below FP32, a state that comes back; the schedule at points."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_models import GQA_TIED, MLA_MOE, sharp
from made_steps import documents, packed

from fathom.core.config import build
from fathom.model.transformer import Transformer
from fathom.train.batch import token_mean
from fathom.train.objective import next_token
from fathom.train.optim import Optimiser
from fathom.train.schedule import AdamW

SETTINGS = AdamW(lr=3e-3, weight_decay=0.1, clip=0.5)
RATES = (1e-3, 3e-3, 2e-3, 5e-4)


def backward(model: Transformer, seed: int) -> None:
    for batch in packed(model, documents(model.config, 9, 12, seed=seed), token_mean, 100):
        next_token(model, batch, mtp=0.3).total.backward()


@pytest.mark.parity
@pytest.mark.parametrize("config", [MLA_MOE, GQA_TIED], ids=["mla", "tied"])
def test_fp32_is_torch_to_the_bit(config) -> None:
    """Clipping and decay of matrices only, written with torch's own pieces."""
    ours, theirs = sharp(config, dtype=torch.float32), sharp(config, dtype=torch.float32)
    optimiser = Optimiser(ours, SETTINGS)
    parameters = list(theirs.parameters())
    reference = torch.optim.AdamW([
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ], lr=1.0, betas=SETTINGS.betas, eps=SETTINGS.eps, fused=True)
    for number, lr in enumerate(RATES):
        for model in (ours, theirs):
            backward(model, number)
        norm = optimiser.gradient_norm()
        assert norm > SETTINGS.clip  # clipping acts
        optimiser.step(lr, norm)
        found = torch.nn.utils.clip_grad_norm_(parameters, math.inf)
        # one norm of norms in FP32, taken in another order: a rounding of 6e-8
        assert norm == pytest.approx(float(found), rel=1e-6)
        for p in parameters:
            if p.grad is not None:
                p.grad.mul_(SETTINGS.clip / (norm + 1e-6))
        for group in reference.param_groups:
            group["lr"] = lr
        reference.step()
        reference.zero_grad()
        for p, q in zip(ours.parameters(), parameters, strict=True):
            assert p.grad is None
            assert torch.equal(p, q)


@pytest.mark.parity
def test_it_is_the_formula_of_adamw() -> None:
    """Loshchilov and Hutter, Algorithm 2, number by number, with decoupled decay on matrices and none on norms."""
    model = sharp(MLA_MOE)
    optimiser = Optimiser(model, AdamW(lr=1e-2, clip=1e9))
    (b1, b2), eps = optimiser.settings.betas, optimiser.settings.eps
    x = {n: p.detach().clone() for n, p in model.named_parameters()}
    m = {n: torch.zeros_like(p) for n, p in x.items()}
    v = {n: torch.zeros_like(p) for n, p in x.items()}
    for t in range(1, 5):
        backward(model, t)
        for name, p in model.named_parameters():
            g = p.grad
            m[name] = b1 * m[name] + (1 - b1) * g
            v[name] = b2 * v[name] + (1 - b2) * g * g
            decay = 0.1 if p.dim() > 1 else 0.0
            step = (m[name] / (1 - b1**t)) / ((v[name] / (1 - b2**t)).sqrt() + eps)
            x[name] = x[name] - 1e-2 * decay * x[name] - 1e-2 * step
        optimiser.step(1e-2, optimiser.gradient_norm())
    for name, p in model.named_parameters():
        # float64 in another order of operations; moments near zero divide by eps = 1e-8 and magnify 1e-16
        assert torch.allclose(p, x[name], rtol=0, atol=1e-7), name


def test_tiny_updates_are_not_lost_in_bfloat16() -> None:
    """Steps of 1e-5 on weights near 1, whose neighbours in BF16 are 4e-3 to 8e-3 away, add up in the masters."""
    model = torch.nn.Linear(4, 4, bias=False).bfloat16()
    torch.nn.init.ones_(model.weight)
    optimiser = Optimiser(model, AdamW(weight_decay=0.0))
    for number in range(400):
        model.weight.grad = torch.ones_like(model.weight)
        optimiser.step(1e-5, 1.0)
        if number == 0:
            assert bool((model.weight == 1).all())  # one step alone does not reach the next number
    assert model.weight.dtype == torch.bfloat16
    master = optimiser.masters["weight"]
    assert master.dtype == torch.float32
    # with equal gradients AdamW moves by lr per step: 400 × 1e-5
    assert torch.allclose(master, torch.full((4, 4), 1 - 4e-3), atol=1e-5)
    assert torch.equal(model.weight, master.bfloat16())
    assert bool((model.weight < 1).all())


@pytest.mark.equivalence
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_state_comes_back(dtype: torch.dtype) -> None:
    """Two steps, a round trip into a fresh optimiser, two more: the bits of four steps in a row."""
    straight, broken = sharp(MLA_MOE, dtype=dtype), sharp(MLA_MOE, dtype=dtype)
    one, two = Optimiser(straight, SETTINGS), Optimiser(broken, SETTINGS)
    for number, lr in enumerate(RATES):
        if number == 2:
            state = {k: t.clone() for k, t in two.state().items()}
            weights = {k: t.clone() for k, t in broken.state_dict().items()}
            broken = sharp(MLA_MOE, seed=9, dtype=dtype)
            two = Optimiser(broken, SETTINGS)
            backward(broken, 5)
            two.step(1e-3, two.gradient_norm())  # something to be replaced
            broken.load_state_dict(weights)
            two.restore(state)
        for model, optimiser in ((straight, one), (broken, two)):
            backward(model, number)
            optimiser.step(lr, optimiser.gradient_norm())
    for p, q in zip(straight.parameters(), broken.parameters(), strict=True):
        assert torch.equal(p, q)
    ours, theirs = one.state(), two.state()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    kinds = {name.partition("/")[0] for name in ours}
    assert kinds == {"step", "exp_avg", "exp_avg_sq"} | ({"master"} if dtype == torch.bfloat16 else set())


def test_masters_exist_only_below_fp32() -> None:
    model = sharp(MLA_MOE, dtype=torch.float32)
    assert all(Optimiser(model, SETTINGS).masters[n] is p for n, p in model.named_parameters())


@pytest.mark.parametrize(("settings", "points"), [
    (AdamW(lr=1.0, schedule="constant", warmup=10), {1: 0.1, 5: 0.5, 10: 1.0, 11: 1.0, 110: 1.0}),
    (AdamW(lr=2.0, schedule="constant", warmup=0), {1: 2.0, 110: 2.0}),
    (AdamW(lr=1.0, schedule="cosine", warmup=10, final=0.1),
     {10: 1.0, 35: 0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2, 60: 0.55, 110: 0.1}),
    (AdamW(lr=1.0, schedule="wsd", warmup=10, decay=0.2, final=0.1),
     {10: 1.0, 50: 1.0, 90: 1.0, 100: 0.55, 105: 0.325, 110: 0.1}),
    (AdamW(lr=1.0, schedule="wsd", warmup=10, decay=0.0), {10: 1.0, 110: 1.0}),
])
def test_schedule_at_known_points(settings: AdamW, points: dict[int, float]) -> None:
    for step, expected in points.items():
        assert settings.at(step, 110) == pytest.approx(expected, abs=1e-12)  # a handful of float64 operations


@pytest.mark.property
@given(st.sampled_from(["cosine", "wsd", "constant"]), st.integers(0, 50), st.integers(1, 300), st.floats(0, 1),
       st.floats(0, 1))
def test_schedule_rises_then_falls(schedule, warmup: int, total: int, decay: float, final: float) -> None:
    settings = AdamW(lr=1.0, schedule=schedule, warmup=warmup, decay=decay, final=final)
    rates = [settings.at(step, total) for step in range(1, total + 1)]
    assert all(0 <= rate <= 1 + 1e-12 for rate in rates)
    top = min(warmup, total)
    assert all(a <= b for a, b in pairwise(rates[:top]))
    assert all(a >= b - 1e-12 for a, b in pairwise(rates[top:]))
    if total > warmup and schedule == "cosine":
        assert rates[-1] == pytest.approx(final, abs=1e-12)


def test_names_that_users_type() -> None:
    settings = build(AdamW, {"learning_rate": 0.5, "max_grad_norm": 2.0, "warmup_steps": 3}, "optim")
    assert (settings.lr, settings.clip, settings.warmup) == (0.5, 2.0, 3)

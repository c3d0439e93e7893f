"""The gate: what its bias may do and what it may not."""

from __future__ import annotations

import pytest
import torch
from made_models import MLA_LITE, MLA_MOE, assert_within, sharp, texts

from fathom.model.layout import Layout
from fathom.model.moe import Gate, grouped_matmul, sequence_balance
from fathom.model.transformer import Routing, Transformer
from fathom.train.optim import balance_experts


@pytest.fixture
def gate() -> Gate:
    gate = Gate(MLA_LITE).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        gate.weight.copy_(torch.randn(gate.weight.shape, generator=generator) * 0.3)
        gate.e_score_correction_bias.copy_(torch.randn(gate.weight.shape[0], generator=generator) * 0.1)
    return gate


def inputs(tokens: int = 200) -> torch.Tensor:
    return torch.randn(tokens, MLA_LITE.hidden_size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("shift", [-3.0, 0.5, 8.0])
def test_a_common_shift_of_the_biases_changes_nothing(gate: Gate, shift: float) -> None:
    # rounding the biases to a grid first makes the shift itself exact in FP32
    gate.e_score_correction_bias.copy_((gate.e_score_correction_bias * 4096).round() / 4096)
    _, before, weights = gate(inputs())
    gate.e_score_correction_bias += shift
    _, after, shifted = gate(inputs())
    assert torch.equal(before, after)
    assert torch.equal(weights, shifted)


def test_a_bias_alters_a_weight_only_through_the_choice(gate: Gate) -> None:
    score, expert, weight = gate(inputs())
    gate.e_score_correction_bias[2] += 0.4
    score_after, expert_after, weight_after = gate(inputs())
    assert torch.equal(score, score_after)
    same = (expert.sort().values == expert_after.sort().values).all(-1)
    assert 0 < int(same.sum()) < len(same)
    by_expert = torch.zeros_like(score).scatter(1, expert, weight)
    by_expert_after = torch.zeros_like(score).scatter(1, expert_after, weight_after)
    # the same numbers divided by a sum taken in another order: one rounding
    assert torch.allclose(by_expert[same], by_expert_after[same], rtol=1e-15, atol=0)
    assert (expert_after[~same] == 2).any(-1).all()  # every changed choice took the favoured expert in
    for row in (~same).nonzero()[:, 0].tolist():  # and weighs it by its unbiased affinity
        chosen = expert_after[row]
        expected = score[row, chosen] / score[row, chosen].sum() * MLA_LITE.routed_scaling_factor
        assert torch.allclose(weight_after[row], expected, rtol=1e-14, atol=0)


def test_no_gradient_reaches_the_bias() -> None:
    model = sharp(MLA_MOE)
    assert not any("bias" in name for name, _ in model.named_parameters())
    assert sum("e_score_correction_bias" in name for name, _ in model.named_buffers()) == 3  # two layers and MTP


def test_balance_moves_every_bias_by_gamma_towards_the_mean() -> None:
    model = sharp(MLA_MOE)
    layer, moe = next(iter(model.routers().items()))
    before = moe.gate.e_score_correction_bias.clone()
    others = {n: m.gate.e_score_correction_bias.clone() for n, m in model.routers().items() if n != layer}
    balance_experts(model, {layer: torch.tensor([9, 1, 4, 4, 0, 6])}, 0.001)  # mean 4
    moved = torch.tensor([-1.0, 1.0, 0.0, 0.0, 1.0, -1.0])
    assert torch.equal(moe.gate.e_score_correction_bias, before + 0.001 * moved)
    for number, bias in others.items():  # layers that were not counted stay
        assert torch.equal(model.routers()[number].gate.e_score_correction_bias, bias)


def test_balancing_evens_the_load() -> None:
    """Moving biases for a while makes a crooked load straighter: the sign is right where it matters."""
    model, (tokens,) = sharp(MLA_MOE, seed=3), texts(MLA_MOE, 240, seed=3)

    def spread() -> tuple[float, dict[int, torch.Tensor]]:
        routing = Routing()
        with torch.no_grad():
            model(torch.tensor(tokens), Layout.packed([240]), routing)
        return max(float(c.max()) / 80 for c in routing.counts.values()), routing.counts  # 240 · 2 / 6 = 80 each

    before, counts = spread()
    for _ in range(60):
        balance_experts(model, counts, 0.005)
        now, counts = spread()
    assert before > 1.3
    assert now < 1.15


@pytest.mark.parametrize("move", [lambda m: m.to(torch.bfloat16), lambda m: m.bfloat16(), lambda m: m.half(),
                                  lambda m: m.to(device="cpu", dtype=torch.bfloat16).double()])
def test_the_bias_keeps_its_bits_when_weights_change_type(move) -> None:
    model = sharp(MLA_MOE)
    before = [m.gate.e_score_correction_bias.clone() for m in model.routers().values()]
    move(model)
    for bias, moe in zip(before, model.routers().values(), strict=True):
        assert moe.gate.e_score_correction_bias.dtype == torch.float32
        assert torch.equal(moe.gate.e_score_correction_bias, bias)
    assert any("e_score_correction_bias" in name for name in model.state_dict())


def test_the_gate_decides_in_single_precision_at_least() -> None:
    gate = Gate(MLA_LITE)
    torch.nn.init.normal_(gate.weight, generator=torch.Generator().manual_seed(0))
    gate = gate.to(torch.bfloat16)
    score, _, weight = gate(inputs().bfloat16())
    assert score.dtype == weight.dtype == torch.float32


@pytest.mark.parity
def test_even_routing_has_balance_one() -> None:
    """Σ f·P is 1 when every expert is chosen equally often with equal mean affinity, so α·Σ f·P is α."""
    experts, chosen = 6, 2
    score = torch.full((experts, experts), 0.1, dtype=torch.float64)
    for t in range(experts):  # token t likes experts t and t + 1
        score[t, t], score[t, (t + 1) % experts] = 0.9, 0.8
    even = sequence_balance(score, chosen, torch.zeros(experts, dtype=torch.long), 1)
    assert even.item() == pytest.approx(1.0, abs=1e-12)  # sums of a few float64 numbers
    crooked = sequence_balance(score[:1].repeat(6, 1), chosen, torch.zeros(experts, dtype=torch.long), 1)
    assert crooked.item() == pytest.approx(3 * (0.9 + 0.8) / 2.1, abs=1e-12)  # f = 3 on two experts


def test_counts_are_those_of_the_biased_choice() -> None:
    model: Transformer = sharp(MLA_MOE)
    for moe in model.routers().values():
        moe.gate.e_score_correction_bias[4] += 10
    routing = Routing()
    with torch.no_grad():
        model(torch.tensor(texts(MLA_MOE, 50)[0]), Layout.packed([50]), routing)
    assert all(int(c[4]) == 50 and int(c.sum()) == 100 for c in routing.counts.values())


@pytest.mark.equivalence
@pytest.mark.parametrize("inner", [8, 12, 13], ids=lambda n: f"experts of width {n}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fused_products_are_the_loop(inner: int, dtype: torch.dtype) -> None:
    """Widths that the fused kernel refuses (rows of other than 16-byte multiples) go through the loop, not into an
    error; some experts get no token at all."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 16, generator=generator).to(dtype)
    weight = torch.randn(5, inner, 16, generator=generator).to(dtype)
    counts = torch.tensor([7, 0, 12, 1, 0])
    found = grouped_matmul(x, weight.mT, counts)
    pieces = zip(x.double().split(counts.tolist()), weight.double(), strict=True)
    expected = torch.cat([rows @ matrix.mT for rows, matrix in pieces])
    # 16 products of order 1 in FP32; BF16 rounds the result to 8 bits, 2^-8 of values up to 16
    tolerance = 1e-5 if dtype == torch.float32 else 2**-7
    assert_within(found.double(), expected, tolerance)

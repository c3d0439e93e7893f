"""The gate: what its bias may do and what it may not."""

from __future__ import annotations

import math

import pytest
import torch
from made_models import MLA_LITE, MLA_MOE, V2, V3, assert_within, sharp, texts

from fathom.model.config import ModelConfig
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
    plain = score.topk(chosen).indices
    even = sequence_balance(score, plain, torch.zeros(experts, dtype=torch.long), 1)
    assert even.item() == pytest.approx(1.0, abs=1e-12)  # sums of a few float64 numbers
    crooked = sequence_balance(
        score[:1].repeat(6, 1), plain[:1].repeat(6, 1), torch.zeros(experts, dtype=torch.long), 1)
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


def chosen_by(
    config: ModelConfig, logits: list[float], bias: list[float] | None = None
) -> tuple[list[int], list[float]]:
    """Experts and weights of one token from its gate logits, experts in ascending order."""
    gate = Gate(config).double()
    if bias is not None:
        gate.e_score_correction_bias.copy_(torch.tensor(bias))
    _, expert, weight = gate.choose(torch.tensor([logits], dtype=torch.float64))
    pairs = sorted(zip(expert[0].tolist(), weight[0].tolist(), strict=True))
    return [e for e, _ in pairs], [w for _, w in pairs]


# four groups of two experts each
GROUPED = ModelConfig(n_routed_experts=8, num_experts_per_tok=2, n_group=4, topk_group=2, routed_scaling_factor=2.5)
V2_GROUPED = GROUPED.model_copy(update={"scoring_func": "softmax", "topk_method": "group_limited_greedy",
                                        "norm_topk_prob": False, "routed_scaling_factor": 16.0})
LOGITS = [2.0, -3.0, 1.5, 1.4, 1.6, 1.2, 0.0, 0.1]


def test_a_group_is_judged_by_its_best_in_v2_and_by_its_best_two_in_v3() -> None:
    total = sum(math.exp(z) for z in LOGITS)
    experts, weights = chosen_by(V2_GROUPED, LOGITS)
    assert experts == [0, 4]  # groups 0 (best 2.0) and 2 (best 1.6)
    assert weights == pytest.approx([16 * math.exp(2.0) / total, 16 * math.exp(1.6) / total], rel=1e-12)
    experts, weights = chosen_by(GROUPED, LOGITS)
    s = [1 / (1 + math.exp(-z)) for z in LOGITS]
    assert experts == [2, 4]  # groups 1 and 2 by the sum of two: group 0 has the best expert and a poor second
    assert weights == pytest.approx([2.5 * s[2] / (s[2] + s[4]), 2.5 * s[4] / (s[2] + s[4])], rel=1e-12)


def test_greedy_takes_the_best_of_all_and_divides_by_nothing() -> None:
    config = V2_GROUPED.model_copy(update={"topk_method": "greedy", "n_group": 1, "topk_group": 1,
                                           "routed_scaling_factor": 1.0})
    total = sum(math.exp(z) for z in LOGITS)
    experts, weights = chosen_by(config, LOGITS)
    assert experts == [0, 4]
    assert weights == pytest.approx([math.exp(2.0) / total, math.exp(1.6) / total], rel=1e-12)


def test_a_masked_expert_never_wins_against_negative_scores() -> None:
    """With 0 in place of −∞ outside the best groups, experts there would beat those whose biased score is negative."""
    bias = [-5.0] * 8
    bias[2], bias[3] = -4.0, -4.1  # the best groups are 1 and 3, and every biased score is negative
    bias[6], bias[7] = -4.2, -4.3
    experts, weights = chosen_by(GROUPED, LOGITS, bias)
    assert experts == [2, 3]
    s = [1 / (1 + math.exp(-z)) for z in LOGITS]
    assert weights == pytest.approx([2.5 * s[e] / (s[2] + s[3]) for e in (2, 3)], rel=1e-12)


@pytest.mark.property
@pytest.mark.parametrize("shift", [0.0, -50.0])
@pytest.mark.parametrize("config", [V2, V3], ids=["V2", "V3"])
def test_at_most_so_many_groups_for_each_token(config: ModelConfig, shift: float) -> None:
    gate = Gate(config).double()
    draw = torch.Generator().manual_seed(2)
    if gate.e_score_correction_bias is not None:
        gate.e_score_correction_bias.copy_(torch.randn(config.n_routed_experts, generator=draw) + shift)
    logits = 3 * torch.randn(500, config.n_routed_experts, generator=draw, dtype=torch.float64)
    _, expert_TK, _ = gate.choose(logits)
    groups = expert_TK // (config.n_routed_experts // config.n_group)
    reached = [len(set(row)) for row in groups.tolist()]
    assert max(reached) == config.topk_group
    assert all(len(set(row)) == config.num_experts_per_tok for row in expert_TK.tolist())


def test_a_gate_without_bias_has_none_and_nothing_moves_it() -> None:
    model = sharp(V2)
    assert not any("e_score_correction_bias" in name for name in model.state_dict())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    balance_experts(model, {1: torch.arange(12), 2: torch.arange(12)}, 0.1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_even_routing_of_groups_has_every_term_at_one() -> None:
    """model.md §12.8: Σ_g f'P' = 1, and f''P'' sums to 1 when every token reaches exactly M groups, evenly."""
    groups, size, kept = 4, 2, 2
    experts = groups * size
    tokens = [[g * size + i, (g + 1) % groups * size + i] for g in range(groups) for i in range(size)]
    score = torch.full((len(tokens), experts), 1 / experts, dtype=torch.float64)
    terms = sequence_balance(score, torch.tensor(tokens), torch.zeros(len(tokens), dtype=torch.long), 1, groups, kept)
    assert terms.flatten().tolist() == pytest.approx([1.0, 1.0, 1.0], abs=1e-12)

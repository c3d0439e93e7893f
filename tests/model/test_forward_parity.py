"""The whole forward pass against the equations written out in plain loops, and mistakes that must not pass."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from made_models import (
    CONFIGS,
    GQA_DENSE,
    MLA_LITE,
    MLA_MOE,
    V2,
    V2_LITE,
    V3,
    assert_within,
    deviation,
    sharp,
    texts,
)
from made_reference import Reference, stack

from fathom.model.attention import LatentAttention
from fathom.model.config import ModelConfig
from fathom.model.layout import Layout
from fathom.model.transformer import Routing, Transformer

# both sides are float64 and differ in the order of sums only: 1e-15 roundings through a few layers of gain above 1
EXACT = 1e-9

LENGTHS = (9, 1, 14)


def hidden(model: Transformer, sequences: list[list[int]]) -> torch.Tensor:
    tokens = torch.tensor([t for s in sequences for t in s])
    return model(tokens, Layout.packed([len(s) for s in sequences]))


@pytest.mark.parity
@pytest.mark.parametrize("name", CONFIGS)
def test_forward_is_the_paper(name: str) -> None:
    config = CONFIGS[name]
    model, sequences = sharp(config), texts(config, *LENGTHS)
    reference = Reference(model)
    expected = stack([x for s in sequences for x in reference.hidden(s)])
    with torch.no_grad():
        found = hidden(model, sequences)
        logits = model.logits(found)
    assert logits.std() >= 1, "weights too small to show a wrong scale"
    long = [row for row in reference.attention if len(row) >= 8]
    entropy = sum(-sum(p * math.log(p) for p in row if p) for row in long) / len(long)
    assert entropy < 0.75 * math.log(8), "attention is close to uniform and would hide a wrong scale"
    assert_within(found, expected, EXACT)
    assert_within(logits.log_softmax(-1), stack([reference.log_probabilities(x) for x in expected.numpy()]), EXACT)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["mla-moe-mtp", "gqa-moe-mtp", "deepseek-v3"])
def test_token_after_next_is_the_paper(name: str) -> None:
    config = CONFIGS[name]
    model, reference = sharp(config, seed=1), None
    reference = Reference(model)
    rows = texts(config, *(n + 1 for n in LENGTHS), seed=1)
    expected = stack([x for r in rows for x in reference.further(reference.hidden(r[:-1]), r[1:])])
    with torch.no_grad():
        following = torch.tensor([t for r in rows for t in r[1:]])
        found = model.predict_next(hidden(model, [r[:-1] for r in rows]), following, Layout.packed(LENGTHS))
    assert_within(found, expected, EXACT)


def half_layout(model: Transformer) -> None:
    for module in model.modules():
        if hasattr(module, "interleave"):
            module.interleave = not module.interleave


def wrong_scale(model: Transformer) -> None:
    for module in model.modules():
        if isinstance(module, LatentAttention):
            module.scale = module.nope**-0.5  # the rotary part forgotten
        elif hasattr(module, "scale"):
            module.scale *= 1.1


def shared_key_normalised(model: Transformer) -> None:
    for module in model.modules():
        if isinstance(module, LatentAttention):
            latent = module.latent

            def norm(_m: torch.nn.Module, _i: object, out: torch.Tensor, latent: int = latent) -> torch.Tensor:
                key = out[:, latent:]
                return torch.cat((out[:, :latent], key / key.pow(2).mean(-1, keepdim=True).sqrt()), dim=-1)

            module.kv_a_proj_with_mqa.register_forward_hook(norm)


def latent_not_normalised(model: Transformer) -> None:
    for module in model.modules():
        if isinstance(module, LatentAttention):
            module.kv_a_layernorm = torch.nn.Identity()


def bias_in_the_weight(model: Transformer) -> None:
    for moe in model.routers().values():
        gate = moe.gate

        def forward(x: torch.Tensor, replayed: None = None, gate: torch.nn.Module = gate) -> tuple[torch.Tensor, ...]:
            score = (x @ gate.weight.mT).sigmoid()
            weight, expert = (score + gate.e_score_correction_bias).topk(gate.chosen)
            return score, expert, weight / weight.sum(-1, keepdim=True) * gate.scaling

        gate.forward = forward


def ungated_scaling_forgotten(model: Transformer) -> None:
    for moe in model.routers().values():
        moe.gate.scaling = 1.0


MUTANTS = {
    "half rope layout": (half_layout, MLA_MOE), "interleaved where halves are asked": (half_layout, GQA_DENSE),
    "scale without the rotary width": (wrong_scale, MLA_MOE), "scale off by a tenth": (wrong_scale, GQA_DENSE),
    "shared key normalised": (shared_key_normalised, MLA_MOE),
    "latent not normalised": (latent_not_normalised, MLA_LITE),
    "bias in the gate's weight": (bias_in_the_weight, MLA_MOE),
    "routed scaling forgotten": (ungated_scaling_forgotten, MLA_LITE),
}


@pytest.mark.parity
@pytest.mark.parametrize("name", MUTANTS)
def test_mistakes_miss_by_far(name: str) -> None:
    """Each known mistake misses even the FP32 bar of 1e-5 ten times over."""
    mutate, config = MUTANTS[name]
    model, sequences = sharp(config), texts(config, *LENGTHS)
    reference = Reference(model)
    expected = stack([x for s in sequences for x in reference.hidden(s)])
    mutate(model)
    with torch.no_grad():
        assert deviation(hidden(model, sequences), expected) >= 10 * 1e-5


@pytest.mark.parity
@pytest.mark.parametrize("config", [MLA_MOE, V2, V2_LITE, V3], ids=["one group", "V2", "V2-Lite", "V3"])
def test_routing_reports_balance_and_counts(config: ModelConfig) -> None:
    model, sequences = sharp(config, seed=2), texts(config, *LENGTHS, seed=2)
    routing = Routing(balanced=True)
    with torch.no_grad():
        model(torch.tensor([t for s in sequences for t in s]), Layout.packed(LENGTHS), routing)
    reference = Reference(model)
    expected = []
    for s in sequences:
        reference.hidden(s)
        expected.append(reference.balance())
    assert routing.balance is not None
    assert_within(routing.balance, torch.tensor(expected, dtype=torch.float64).mT, EXACT)
    assert sorted(routing.counts) == [1, 2]  # the first layer is dense
    for counts in routing.counts.values():
        assert not counts.is_floating_point()
        assert int(counts.sum()) == sum(LENGTHS) * config.num_experts_per_tok


@pytest.mark.equivalence
@pytest.mark.parametrize("name", CONFIGS)
def test_single_precision_is_near(name: str) -> None:
    """FP32 goes through fused kernels (flash attention, grouped products) that float64 does not."""
    config, build = CONFIGS[name], sharp
    sequences = texts(config, *LENGTHS)
    with torch.no_grad():
        exact = hidden(build(config), sequences)
        single = hidden(build(config, dtype=torch.float32), sequences)
    # 1e-5: roundings of 6e-8 through three layers of gain above 1
    assert_within(single, exact, 1e-5)


def test_mutants_cover_both_attentions() -> None:
    mutated: set[Callable[[Transformer], None]] = {mutate for mutate, _ in MUTANTS.values()}
    assert {config.attention for _, config in MUTANTS.values()} == {"mla", "gqa"}
    assert len(mutated) == 6

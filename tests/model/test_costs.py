"""What a model is said to cost against what it has."""

from __future__ import annotations

import pytest
import torch
from made_models import CONFIGS, MLA_MOE

from fathom.model.config import PRESETS, ModelConfig
from fathom.model.cost import cost
from fathom.model.layout import Cache
from fathom.model.transformer import Transformer

MORE = {
    "three shared": MLA_MOE.model_copy(update={"n_shared_experts": 3, "first_k_dense_replace": 0}),
    "no shared": MLA_MOE.model_copy(update={"n_shared_experts": 0, "first_k_dense_replace": 2}),
    "dense with a further prediction": MLA_MOE.model_copy(update={"n_routed_experts": 0}),
}
# DeepSeek-V3 has 671B parameters, of which 11.6B are the module that predicts further, counted apart
V3 = ModelConfig(
    vocab_size=129280, hidden_size=7168, num_hidden_layers=61, num_attention_heads=128, q_lora_rank=1536,
    kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, intermediate_size=18432,
    n_routed_experts=256, n_shared_experts=1, num_experts_per_tok=8, moe_intermediate_size=2048,
    first_k_dense_replace=3, routed_scaling_factor=2.5, max_position_embeddings=163840,
)


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("config", [*CONFIGS.values(), *MORE.values(), *PRESETS.values()],
                         ids=[*CONFIGS, *MORE, *PRESETS])
def test_parameters_are_counted(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = Transformer(config)
    bill = cost(config)
    assert bill.parameters == parameters(model)
    unvisited = sum(
        (config.n_routed_experts - config.num_experts_per_tok) * 3 * config.hidden_size * config.moe_intermediate_size
        for layer in range(config.num_hidden_layers) if config.is_moe(layer)
    )
    embedding = config.vocab_size * config.hidden_size
    outside = parameters(model.mtp) + (0 if config.tie_word_embeddings else embedding)
    assert bill.active == parameters(model) - outside - unvisited
    assert (bill.mtp > 0) == (config.num_nextn_predict_layers > 0)


def test_published_totals() -> None:
    # published counts take the 58 selection biases of 256 in; they are buffers
    assert cost(V3).parameters == 671_026_419_200 - 58 * 256
    embedding = V3.vocab_size * V3.hidden_size
    assert cost(V3).active + embedding == pytest.approx(37.55e9, rel=2e-4)  # published with four digits
    assert cost(V3).cache_elements == 35_136
    with_module = V3.model_copy(update={"num_nextn_predict_layers": 1})
    # without its copies of embedding and head, and without its 256 biases
    assert cost(with_module).parameters - cost(V3).parameters in (11_610_068_224, 11_610_068_224 - 256)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_cache_holds_what_is_said(config: ModelConfig) -> None:
    assert Cache(config, 3, 5, torch.float32, "cpu").bytes == 3 * 5 * 4 * cost(config).cache_elements


def test_training_bytes() -> None:
    bill = cost(MLA_MOE)
    assert bill.training_bytes(4) == bill.parameters * 16  # weight, gradient, two moments
    assert bill.training_bytes(2) == bill.parameters * 16  # 2 + 2 and FP32 master and moments

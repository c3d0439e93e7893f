"""What a model is said to cost against what it has, and against the published numbers, to the digit."""

from __future__ import annotations

import pytest
import torch
from made_models import CONFIGS, MLA_MOE

from fathom.core.errors import UsageError
from fathom.model.config import ModelConfig
from fathom.model.cost import cost, mtp_tensors, tensors
from fathom.model.layout import Pages
from fathom.model.presets import PRESETS
from fathom.model.transformer import Transformer

MORE = {
    "three shared": MLA_MOE.model_copy(update={"n_shared_experts": 3, "first_k_dense_replace": 0}),
    "no shared": MLA_MOE.model_copy(update={"n_shared_experts": 0, "first_k_dense_replace": 2}),
    "dense with a further prediction": MLA_MOE.model_copy(update={"n_routed_experts": 0}),
}
ALL = {**CONFIGS, **MORE, **PRESETS}
SHAPES = {name: config for name, config in ALL.items()  # one name for each shape
          if next(n for n, c in ALL.items() if c == config) == name}


def size(module: torch.nn.Module, buffers: bool = True) -> int:
    """Parameters and, as published counts have them, selection biases."""
    biases = sum(b.numel() for name, b in module.named_buffers() if name.endswith("e_score_correction_bias"))
    return sum(p.numel() for p in module.parameters()) + (biases if buffers else 0)


def on_meta(config: ModelConfig) -> Transformer:
    with torch.device("meta"):
        return Transformer(config)


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_parameters_are_counted(config: ModelConfig) -> None:
    model = on_meta(config)
    bill = cost(config)
    assert bill.parameters == size(model) - size(model.mtp)
    assert bill.mtp == size(model.mtp)
    assert bill.selection_biases == size(model) - size(model, buffers=False)
    expert = 3 * config.hidden_size * config.moe_intermediate_size
    idle = (config.n_routed_experts - config.num_experts_per_tok) * expert
    moe_layers = sum(config.is_moe(layer) for layer in range(config.num_hidden_layers))
    assert bill.active_with_embedding == bill.parameters - idle * moe_layers
    embedding = config.vocab_size * config.hidden_size
    assert bill.active == bill.active_with_embedding - (0 if config.tie_word_embeddings else embedding)
    assert bill.mtp_active == bill.mtp - (idle if config.n_routed_experts else 0) * config.num_nextn_predict_layers


@pytest.mark.parametrize(("name", "total", "active", "with_embedding", "attention", "expert"), [
    ("deepseek-v2-lite", 15_706_484_224, 2_451_435_008, 2_661_150_208, 13_763_072, 8_650_752),
    ("deepseek-v2", 235_741_434_880, 20_851_512_320, 21_375_800_320, 149_227_520, 23_592_960),
    ("deepseek-v3", 671_026_419_200, 36_625_618_432, 37_552_297_472, 187_107_328, 44_040_192),
])
def test_published_counts(
    name: str, total: int, active: int, with_embedding: int, attention: int, expert: int
) -> None:
    config, bill = PRESETS[name], cost(PRESETS[name])
    assert (bill.parameters, bill.active, bill.active_with_embedding) == (total, active, with_embedding)
    assert bill.parts["attention"] == attention * config.num_hidden_layers
    moe_layers = config.num_hidden_layers - config.first_k_dense_replace
    assert bill.parts["routed_experts"] == expert * config.n_routed_experts * moe_layers
    assert bill.parts["shared_experts"] == expert * config.n_shared_experts * moe_layers
    assert bill.selection_biases == (59 * 256 if name == "deepseek-v3" else 0)


def test_published_counts_of_multi_token_prediction() -> None:
    config, bill = PRESETS["deepseek-v3"], cost(PRESETS["deepseek-v3"])
    assert bill.mtp == 11_610_068_224
    assert bill.mtp - 2 * config.hidden_size**2 == 11_507_307_776, "without eh_proj"
    assert bill.mtp_with_copies == 13_463_426_304
    scales = sum(t.copies * -(-t.shape[0] // 128) * -(-t.shape[1] // 128)
                 for t in (*tensors(config), *mtp_tensors(config)) if t.stored == "fp8")
    # every number of the released checkpoint: 163 files
    assert bill.parameters + bill.mtp_with_copies + scales == 684_531_386_000


@pytest.mark.parametrize(("name", "elements", "bf16", "fp8"), [
    *((name, 15_552, 31_104, 17_712) for name in ("deepseek-v2-lite", "deepseek-coder-v2-lite")),
    *((name, 34_560, 69_120, 39_360) for name in ("deepseek-v2", "deepseek-v2.5", "deepseek-coder-v2")),
    *((name, 35_136, 70_272, 40_016) for name in ("deepseek-v3", "deepseek-v3.1", "deepseek-r1")),
    ("deepseek-moe-16b", 2 * 16 * 128 * 28, 4 * 16 * 128 * 28, None),
    ("llama-3.1-8b", 2 * 8 * 128 * 32, 131_072, None), ("llama-3.1-70b", 2 * 8 * 128 * 80, 327_680, None),
    ("llama-3.2-1b", 2 * 8 * 64 * 16, 32_768, None), ("qwen2.5-7b", 2 * 4 * 128 * 28, 57_344, None),
    ("qwen3-0.6b", 2 * 8 * 128 * 28, 114_688, None), ("smollm2-135m", 2 * 3 * 64 * 30, 23_040, None),
])
def test_cache_bytes(name: str, elements: int, bf16: int, fp8: int | None) -> None:
    bill = cost(PRESETS[name])
    assert (bill.cache_elements, bill.cache_bytes(), bill.cache_bytes("bf16")) == (elements, bf16, bf16)
    if fp8 is None:
        with pytest.raises(UsageError, match=r"cache=fp8.*attention=gqa; use bf16"):
            bill.cache_bytes("fp8")
    else:
        assert bill.cache_bytes("fp8") == fp8 == 656 * bill.config.num_hidden_layers


def test_the_latent_cache_against_other_attention() -> None:
    """V2's latent attention has the cache of 2.25 groups of keys and values (DeepSeek-V2 §2.1.4)."""
    assert cost(PRESETS["deepseek-v2"]).cache_elements == 2.25 * 2 * 128 * 60


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_cache_holds_what_is_said(config: ModelConfig) -> None:
    assert Pages(config, 3, 5, torch.float32, "cpu").bytes == 3 * 5 * 4 * cost(config).cache_elements


def test_training_bytes() -> None:
    bill = cost(MLA_MOE)
    model = on_meta(MLA_MOE)
    trained, biases = size(model, buffers=False), bill.selection_biases
    assert biases == 3 * 6, "two layers and the further one have routers"
    assert bill.training_bytes("fp32") == trained * 16 + biases * 4  # weight, gradient, two moments
    assert bill.training_bytes("bf16") == trained * 16 + biases * 4  # 2 + 2, FP32 master and moments
    assert bill.training_bytes("bf16-moments") == trained * 14 + biases * 4  # 2, FP32 gradient and master, 2 + 2
    with pytest.raises(UsageError, match=r"recipe=fp4.*fp32, bf16, bf16-moments"):
        bill.training_bytes("fp4")


def test_serving_bytes() -> None:
    bill = cost(PRESETS["deepseek-v3"])
    biases = 58 * 256
    assert bill.weight_bytes() == 2 * (bill.parameters - biases) + 4 * biases
    # FP8: one byte each, two for embedding, head, norms and gates, and a scale per block (model.md §10.1)
    blocks = sum(t.copies * -(-t.shape[0] // 128) * -(-t.shape[1] // 128)
                 for t in tensors(bill.config) if t.stored == "fp8")
    latent_norms = 61 * (1536 + 512)
    wide = 2 * 129280 * 7168 + bill.parts["norms"] + latent_norms + 58 * 256 * 7168
    assert bill.weight_bytes("fp8") == bill.parameters + wide + 3 * biases + 4 * blocks
    assert bill.serving_bytes(1000, 3, "fp8", "fp8") == bill.weight_bytes("fp8") + 3000 * 40_016
    assert bill.serving_bytes(1000) == bill.weight_bytes() + 1000 * 70_272


def test_partial_blocks_have_scales_too() -> None:
    """576 rows of V3's kv_a_proj make five blocks; the shapes of the released scales are [5, 56] and [12, 56]."""
    attention = [t for t in tensors(PRESETS["deepseek-v3"]) if t.part == "attention" and t.stored == "fp8"][:5]
    assert [(-(-t.shape[0] // 128), -(-t.shape[1] // 128)) for t in attention] == [
        (12, 56), (192, 12), (5, 56), (256, 4), (56, 128)]


@pytest.mark.parametrize("name", ["mla-moe-mtp", "gqa-dense"])
def test_arithmetic_against_a_loop_over_positions(name: str) -> None:
    config, bill, length = CONFIGS[name], cost(CONFIGS[name]), 7
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    value = config.v_head_dim if config.attention == "mla" else config.head_dim
    one_layer = sum(2 * heads * (config.qk_head_dim + value) * (i + 1) for i in range(length))
    forward = 2 * bill.active * length + layers * one_layer
    assert bill.forward_flops(length) * length == forward
    further = config.num_nextn_predict_layers
    head = config.vocab_size * config.hidden_size
    extra = further * (2 * (bill.mtp_active + head) * length + one_layer)
    assert bill.training_flops(length) * length == 3 * (forward + extra)


def test_absorbed_decoding_works_on_the_latent() -> None:
    """128 heads over 576 + 512 elements per key in V3, against 192 + 128 expanded (DeepSeek-V2 §2.1.2)."""
    bill = cost(PRESETS["deepseek-v3"])
    assert bill.decode_flops(0) == 2 * 36_625_618_432
    assert bill.decode_flops(1000) - bill.decode_flops(0) == 61 * 128 * 2 * (576 + 512) * 1000
    plain = cost(PRESETS["llama-3.1-8b"])
    assert plain.decode_flops(1000) - plain.decode_flops(0) == 32 * 32 * 2 * (128 + 128) * 1000

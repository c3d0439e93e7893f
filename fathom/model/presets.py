"""PRESETS: models by name: our own small ones and the shapes of published ones, as facts. Loads no torch.

Each published shape was read in a copy of the model's `config.json` (DeepSeek: specification of the V2 and V3 papers);
what no source confirmed says "(from memory)" in its note. A test compares the totals with the published ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from fathom.core.config import show
from fathom.core.errors import UsageError
from fathom.model.config import ModelConfig, RopeScaling

OWN = {
    # the demo's model: every part of DeepSeek-V3 at the size of a laptop CPU
    "tiny": ModelConfig(
        hidden_size=128, num_hidden_layers=3, num_attention_heads=4, kv_lora_rank=64, qk_nope_head_dim=32,
        qk_rope_head_dim=16, v_head_dim=32, intermediate_size=256, n_routed_experts=8, n_shared_experts=1,
        num_experts_per_tok=2, moe_intermediate_size=64, num_nextn_predict_layers=1, max_position_embeddings=512,
    ),
    # the one model of every bench (DESIGN §7)
    "bench-10m": ModelConfig(
        vocab_size=8192, hidden_size=256, num_hidden_layers=6, num_attention_heads=4, kv_lora_rank=128,
        qk_nope_head_dim=64, qk_rope_head_dim=32, v_head_dim=64, intermediate_size=1024, n_routed_experts=16,
        n_shared_experts=1, num_experts_per_tok=4, moe_intermediate_size=64, max_position_embeddings=4096,
    ),
}


@dataclass(frozen=True)
class Published:
    """A published model: its shape, its chat template's family (`model.template`), the context claimed, and a note."""

    config: ModelConfig
    template: str
    context: int
    note: str = ""


def preset(name: Any) -> ModelConfig:
    """The shape called `name`; UsageError, opening with `model=`, names the nearest and says how to see all."""
    if isinstance(name, str) and name in PRESETS:
        return PRESETS[name]
    near = get_close_matches(str(name).lower()[:80], PRESETS, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UsageError(f"model={show(name)}: no such preset; {hint}there are {', '.join(OWN)} and {len(PUBLISHED)} "
                     "published models: `fathom inspect` lists them")


def _deepseek(d: int, layers: int, heads: int, dense: int, expert: int, experts: int, mscale: float, **more: Any
              ) -> ModelConfig:
    """DeepSeek-V2 §3.1.2 and Appendix B, DeepSeek-V3 §4.2; YaRN as released, for 40 × 4096 positions."""
    shape: dict[str, Any] = {
        "vocab_size": 102400, "n_shared_experts": 2, "num_experts_per_tok": 6, "first_k_dense_replace": 1,
        "scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": False, **more,
    }
    return ModelConfig(
        hidden_size=d, num_hidden_layers=layers, num_attention_heads=heads, kv_lora_rank=512, qk_nope_head_dim=128,
        qk_rope_head_dim=64, v_head_dim=128, intermediate_size=dense, moe_intermediate_size=expert,
        n_routed_experts=experts, max_position_embeddings=163840,
        rope_scaling=RopeScaling(type="yarn", factor=40, original_max_position_embeddings=4096, mscale=mscale,
                                 mscale_all_dim=mscale), **shape)


def _lite() -> ModelConfig:
    return _deepseek(2048, 27, 16, 10944, 1408, 64, 0.707)


def _v2(mscale: float) -> ModelConfig:
    return _deepseek(5120, 60, 128, 12288, 1536, 160, mscale, q_lora_rank=1536, topk_method="group_limited_greedy",
                     n_group=8, topk_group=3, routed_scaling_factor=16.0)


def _v3() -> ModelConfig:
    return _deepseek(7168, 61, 128, 18432, 2048, 256, 1.0, vocab_size=129280, q_lora_rank=1536, n_shared_experts=1,
                     num_experts_per_tok=8, first_k_dense_replace=3, scoring_func="sigmoid", topk_method="noaux_tc",
                     norm_topk_prob=True, n_group=8, topk_group=4, routed_scaling_factor=2.5,
                     num_nextn_predict_layers=1)


def _dense(d: int, layers: int, heads: int, kv_heads: int, inner: int, **more: Any) -> ModelConfig:
    """Grouped-query attention and dense feed-forward, rotating halves; heads are d / heads wide unless said."""
    return ModelConfig(attention="gqa", rope_interleave=False, hidden_size=d, num_hidden_layers=layers,
                       num_attention_heads=heads, num_key_value_heads=kv_heads, intermediate_size=inner,
                       **{"head_dim": d // heads, **more})


def _moe_16b() -> ModelConfig:
    """DeepSeekMoE 16B: the experts of V2-Lite behind ordinary multi-head attention."""
    return _dense(2048, 28, 16, 16, 10944, vocab_size=102400, n_routed_experts=64, n_shared_experts=2,
                  num_experts_per_tok=6, moe_intermediate_size=1408, scoring_func="softmax", topk_method="greedy",
                  norm_topk_prob=False, max_position_embeddings=4096)


LLAMA_SHAPES = {  # d, layers, heads, key/value heads, feed-forward
    "1b": (2048, 16, 32, 8, 8192), "3b": (3072, 28, 24, 8, 8192), "8b": (4096, 32, 32, 8, 14336),
    "70b": (8192, 80, 64, 8, 28672), "405b": (16384, 126, 128, 8, 53248),
}


def _llama(size: str, factor: float | None) -> ModelConfig:
    """Llama 3 (8192 positions) where `factor` is None, else 3.1 and later."""
    scaling = None if factor is None else RopeScaling(
        type="llama3", factor=factor, original_max_position_embeddings=8192, low_freq_factor=1.0, high_freq_factor=4.0)
    return _dense(*LLAMA_SHAPES[size], vocab_size=128256, rope_theta=5e5, rms_norm_eps=1e-5, rope_scaling=scaling,
                  max_position_embeddings=131072 if scaling else 8192, tie_word_embeddings=size in ("1b", "3b"))


QWEN2_SHAPES = {  # d, layers, heads, key/value heads, feed-forward
    "0.5b": (896, 24, 14, 2, 4864), "1.5b": (1536, 28, 12, 2, 8960), "3b": (2048, 36, 16, 2, 11008),
    "7b": (3584, 28, 28, 4, 18944), "14b": (5120, 48, 40, 8, 13824), "32b": (5120, 64, 40, 8, 27648),
    "72b": (8192, 80, 64, 8, 29568),
}


def _qwen2(size: str, positions: int, theta: float = 1e6, eps: float = 1e-6, tied: bool | None = None) -> ModelConfig:
    """Qwen2 and 2.5; the three smallest sizes have fewer rows and share them with the head unless `tied` is given."""
    small = size in ("0.5b", "1.5b", "3b")
    return _dense(*QWEN2_SHAPES[size], qkv_bias=True, vocab_size=151936 if small else 152064, rope_theta=theta,
                  rms_norm_eps=eps, max_position_embeddings=positions,
                  tie_word_embeddings=small if tied is None else tied)


QWEN3_SHAPES = {  # d, layers, heads, key/value heads, feed-forward; heads are 128 wide in all
    "0.6b": (1024, 28, 16, 8, 3072), "1.7b": (2048, 28, 16, 8, 6144), "4b": (2560, 36, 32, 8, 9728),
    "8b": (4096, 36, 32, 8, 12288), "14b": (5120, 40, 40, 8, 17408), "32b": (5120, 64, 64, 8, 25600),
}


def _qwen3(size: str, positions: int = 40960, theta: float = 1e6) -> ModelConfig:
    return _dense(*QWEN3_SHAPES[size], head_dim=128, qk_norm=True, vocab_size=151936, rope_theta=theta,
                  max_position_embeddings=positions, tie_word_embeddings=size in ("0.6b", "1.7b", "4b"))


def _smollm2(d: int, layers: int, heads: int, kv_heads: int, inner: int, theta: float) -> ModelConfig:
    return _dense(d, layers, heads, kv_heads, inner, vocab_size=49152, rope_theta=theta, rms_norm_eps=1e-5,
                  max_position_embeddings=8192, tie_word_embeddings=True)


K = 1024
APART = "claimed with YaRN (factor 4), which config.json leaves out"
# what no source confirmed
FROM_MEMORY = {
    "deepseek-coder-v2": "mscale", "deepseek-coder-v2-instruct": "mscale",
    "deepseek-r1-distill-qwen-14b": "positions and epsilon", "deepseek-r1-distill-qwen-32b": "positions and epsilon",
    "qwen2-1.5b": "positions", "qwen2-72b": "positions and epsilon",
    "qwen2.5-14b-instruct": "epsilon", "qwen2.5-32b-instruct": "epsilon",
    "qwen2.5-coder-14b-instruct": "epsilon", "qwen2.5-coder-32b-instruct": "epsilon",
}


def _published() -> dict[str, Published]:
    table: dict[str, Published] = {}

    def add(names: str, config: ModelConfig, template: str, context: int, note: str = "") -> None:
        for name in names.split():
            notes = [note, f"{FROM_MEMORY[name]} (from memory)" if name in FROM_MEMORY else ""]
            table[name] = Published(config, template, context, "; ".join(part for part in notes if part))

    def qwen(name: str, sizes: str, positions: int, wide_eps: float = 1e-5, theta: float = 1e6) -> None:
        for size in sizes.split():
            long = size in ("7b", "14b", "32b", "72b") and positions >= 32 * K
            eps = wide_eps if size in ("14b", "32b", "72b") else 1e-6
            add(name.format(size), _qwen2(size, positions, theta, eps), name.partition("-")[0],
                128 * K if long else min(positions, 32 * K), f"128K {APART}" if long and positions < 128 * K else "")

    add("deepseek-v2-lite deepseek-v2-lite-chat", _lite(), "v2", 32 * K)
    add("deepseek-coder-v2-lite deepseek-coder-v2-lite-instruct", _lite(), "v2", 128 * K)
    add("deepseek-v2 deepseek-v2-chat", _v2(0.707), "v2", 128 * K)
    add("deepseek-v2.5", _v2(1.0), "v3", 128 * K)
    add("deepseek-coder-v2 deepseek-coder-v2-instruct", _v2(1.0), "v2", 128 * K)
    add("deepseek-v3 deepseek-v3-base deepseek-v3-0324", _v3(), "v3", 128 * K)
    add("deepseek-v3.1 deepseek-v3.1-base", _v3(), "v3", 128 * K,
        "FP8 scales are powers of two (ue8m0); answers without thinking begin with </think> (from memory)")
    add("deepseek-r1 deepseek-r1-zero deepseek-r1-0528", _v3(), "r1", 128 * K)
    add("deepseek-moe-16b deepseek-moe-16b-chat", _moe_16b(), "v2", 4 * K)

    # students of R1: on Qwen2.5-Math (the smaller one's head is its own), Qwen2.5, Llama 3.1 and 3.3
    add("deepseek-r1-distill-qwen-1.5b", _qwen2("1.5b", 128 * K, theta=1e4, tied=False), "r1", 128 * K)
    add("deepseek-r1-distill-qwen-7b", _qwen2("7b", 128 * K, theta=1e4), "r1", 128 * K)
    add("deepseek-r1-distill-qwen-14b", _qwen2("14b", 128 * K, eps=1e-5), "r1", 128 * K)
    add("deepseek-r1-distill-qwen-32b", _qwen2("32b", 128 * K, eps=1e-5), "r1", 128 * K)
    add("deepseek-r1-distill-llama-8b", _llama("8b", 8.0), "r1", 128 * K)
    add("deepseek-r1-distill-llama-70b", _llama("70b", 8.0), "r1", 128 * K)

    add("llama-3-8b llama-3-8b-instruct", _llama("8b", None), "llama3", 8 * K)
    add("llama-3-70b llama-3-70b-instruct", _llama("70b", None), "llama3", 8 * K)
    add("llama-3.1-8b llama-3.1-8b-instruct", _llama("8b", 8.0), "llama3", 128 * K)
    add("llama-3.1-70b llama-3.1-70b-instruct", _llama("70b", 8.0), "llama3", 128 * K)
    add("llama-3.1-405b llama-3.1-405b-instruct", _llama("405b", 8.0), "llama3", 128 * K)
    add("llama-3.2-1b llama-3.2-1b-instruct", _llama("1b", 32.0), "llama3", 128 * K)
    add("llama-3.2-3b llama-3.2-3b-instruct", _llama("3b", 32.0), "llama3", 128 * K)
    add("llama-3.3-70b-instruct", _llama("70b", 8.0), "llama3", 128 * K)

    qwen("qwen2-{}", "0.5b 1.5b 7b 72b", 128 * K)
    qwen("qwen2-{}-instruct", "0.5b 1.5b 7b 72b", 32 * K, wide_eps=1e-6)
    qwen("qwen2.5-{}", "0.5b 3b", 32 * K)
    qwen("qwen2.5-{}", "1.5b 7b 14b 32b 72b", 128 * K)
    qwen("qwen2.5-{}-instruct", "0.5b 1.5b 3b 7b 14b 32b 72b", 32 * K, wide_eps=1e-6)
    qwen("qwen2.5-math-{}", "1.5b 7b 72b", 4 * K, theta=1e4)
    qwen("qwen2.5-coder-{}", "0.5b 1.5b 3b 7b 14b 32b", 32 * K)
    qwen("qwen2.5-coder-{}-instruct", "0.5b 1.5b 3b 7b 14b 32b", 32 * K, wide_eps=1e-6)

    for size in QWEN3_SHAPES:  # 32K claimed for the two smallest
        small = size in ("0.6b", "1.7b")
        add(f"qwen3-{size}", _qwen3(size), "qwen3", (32 if small else 128) * K, "" if small else f"128K {APART}")
    add("qwen3-4b-instruct-2507 qwen3-4b-thinking-2507", _qwen3("4b", 256 * K, 5e6), "qwen3", 256 * K)

    add("smollm2-135m smollm2-135m-instruct", _smollm2(576, 30, 9, 3, 1536, 1e5), "smollm2", 8 * K)
    add("smollm2-360m smollm2-360m-instruct", _smollm2(960, 32, 15, 5, 2560, 1e5), "smollm2", 8 * K)
    add("smollm2-1.7b smollm2-1.7b-instruct", _smollm2(2048, 24, 32, 32, 8192, 1.3e5), "smollm2", 8 * K)
    return table


PUBLISHED: Mapping[str, Published] = MappingProxyType(_published())
PRESETS: Mapping[str, ModelConfig] = MappingProxyType({**OWN, **{name: p.config for name, p in PUBLISHED.items()}})

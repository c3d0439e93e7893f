"""Small models with large weights, on which a wrong scale, a wrong rotation or a wrong norm shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fathom.core.chat import Message
from fathom.model.config import ModelConfig, RopeScaling
from fathom.model.layout import Layout, Pages
from fathom.model.tokenizer import Tokenizer
from fathom.model.transformer import Transformer

# widths that differ wherever two could be confused: nope, rope, values, latents
_SMALL = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
          "intermediate_size": 40, "max_position_embeddings": 256}
_EXPERTS = {"n_routed_experts": 6, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 12,
            "routed_scaling_factor": 2.5}
_MLA = {"kv_lora_rank": 20, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6}

MLA_MOE = ModelConfig(**_SMALL, **_MLA, **_EXPERTS, q_lora_rank=24, num_nextn_predict_layers=1)
MLA_LITE = ModelConfig(**_SMALL, **{**_MLA, "v_head_dim": 16}, **_EXPERTS)  # no query latent, values wider than keys
MLA_DENSE = ModelConfig(**_SMALL, **_MLA)
GQA_DENSE = ModelConfig(**_SMALL, attention="gqa", num_key_value_heads=2, head_dim=8, rope_interleave=False)
GQA_TIED = GQA_DENSE.model_copy(update={"tie_word_embeddings": True, "num_key_value_heads": 1})
GQA_MOE = GQA_DENSE.model_copy(update={**_EXPERTS, "num_nextn_predict_layers": 1, "rope_interleave": True})

# the published families in small; the ramp and the smooth part of their stretched frequencies fall on real channels
_WIDE = {**_MLA, "qk_rope_head_dim": 12}
_YARN = RopeScaling(factor=8, original_max_position_embeddings=64, beta_fast=16, mscale=0.707, mscale_all_dim=0.707)
_SOFTMAX = {"scoring_func": "softmax", "norm_topk_prob": False, "topk_method": "greedy"}
V3 = ModelConfig(**_SMALL, **_WIDE, **{**_EXPERTS, "n_routed_experts": 12, "num_experts_per_tok": 3},
                 q_lora_rank=24, num_nextn_predict_layers=1, n_group=4, topk_group=2,
                 rope_scaling=_YARN.model_copy(update={"mscale": 1.0, "mscale_all_dim": 1.0}))
V2 = V3.model_copy(update={**_SOFTMAX, "topk_method": "group_limited_greedy", "num_nextn_predict_layers": 0,
                           "n_shared_experts": 2, "routed_scaling_factor": 4.0, "rope_scaling": _YARN})
V2_LITE = ModelConfig(**_SMALL, **_WIDE, **{**_EXPERTS, **_SOFTMAX, "routed_scaling_factor": 1.0}, rope_scaling=_YARN)
QWEN2 = ModelConfig(**_SMALL, attention="gqa", num_key_value_heads=2, head_dim=12, rope_interleave=False,
                    qkv_bias=True, rope_scaling=RopeScaling(factor=4, original_max_position_embeddings=64, beta_fast=8))
QWEN3 = QWEN2.model_copy(update={"qkv_bias": False, "qk_norm": True, "rope_scaling": None,
                                 "tie_word_embeddings": True})
LLAMA3 = QWEN2.model_copy(update={"qkv_bias": False, "rope_scaling": RopeScaling(
    type="llama3", factor=8, original_max_position_embeddings=100, high_freq_factor=6)})

CONFIGS = {"mla-moe-mtp": MLA_MOE, "mla-lite": MLA_LITE, "mla-dense": MLA_DENSE, "gqa-dense": GQA_DENSE,
           "gqa-tied": GQA_TIED, "gqa-moe-mtp": GQA_MOE, "deepseek-v2": V2, "deepseek-v2-lite": V2_LITE,
           "deepseek-v3": V3, "qwen2": QWEN2, "qwen3": QWEN3, "llama3": LLAMA3}

# 1e-5 in FP32: a few hundred roundings of 6e-8 relative on values of order 1, amplified by three layers whose gain is
# above 1; measured deviations are near 3e-6. 1e-9 in FP64: the same path has 1e-15 roundings, so 1e-9 leaves six orders
# for summation order and none for a formula that is merely close.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}
DTYPES = tuple(TOLERANCE)


def sharp(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float64, gain: float = 1.5) -> Transformer:
    """A model whose logits have a deviation above 1 and whose attention is far from uniform (DESIGN §7); the same
    numbers in every type."""
    model = Transformer(config).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if parameter.dim() == 1:
                middle = 0 if name.endswith(".bias") else 2 if "_norm" in name else 1  # q_norm makes logits
                parameter.copy_(middle + 0.3 * drawn.tanh())  # norms that are not one
            elif name == "embed_tokens.weight" and not config.tie_word_embeddings:
                parameter.copy_(drawn)
            else:
                parameter.copy_(drawn * gain / parameter.shape[-1] ** 0.5)
        for moe in model.routers().values():
            if (bias := moe.gate.e_score_correction_bias) is not None:
                bias.copy_(0.1 * torch.randn(bias.shape, generator=generator))
    return model.to(dtype)


def texts(config: ModelConfig, *lengths: int, seed: int = 0) -> list[list[int]]:
    """Random token sequences of the given lengths."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, config.vocab_size, n).tolist() for n in lengths]


def deviation(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference, relative to the largest expected value where that exceeds 1."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} is not {tuple(expected.shape)}"
    if not expected.numel():
        return 0.0
    scale = max(1.0, float(expected.detach().abs().max()))
    return float((actual.detach().double() - expected.detach().double()).abs().max()) / scale


def assert_within(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """The two agree to `tolerance`, absolute up to values of 1 and relative to the largest beyond."""
    found = deviation(actual, expected)
    assert found <= tolerance, f"deviation {found:.2e}, allowed {tolerance:.0e}"


def gradients(model: Transformer) -> dict[str, Tensor]:
    """A copy of every parameter's gradient; the model's own are cleared."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def assert_gradients(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float) -> None:
    """The same parameters have gradients, and they agree relative to the largest entry of the whole gradient."""
    assert actual.keys() == expected.keys()
    scale = max(float(g.abs().max()) for g in expected.values())
    assert scale > 0
    for name in expected:
        found = float((actual[name].double() - expected[name].double()).abs().max()) / scale
        assert found <= tolerance, f"{name}: deviation {found:.2e}, allowed {tolerance:.0e}"


CORPUS = [
    "What is 12 + 7? <think>12 + 7 = 19</think> <answer>19</answer>",
    "the quick brown fox jumps over the lazy dog, again and again and again",
    "Le cœur a ses raisons — que la raison ne connaît point. 数学 is 数学. 🙂🙂",
    "def f(x):\n    return x + 1\n\n\tprint(f(41))\n",
] * 3


class Slots:
    """A cache with room for `length` tokens in each of `count` slots, whose blocks lie scattered."""

    def __init__(self, config: ModelConfig, count: int, length: int, dtype: torch.dtype, size: int = 3):
        each = -(-length // size)
        self.pages = Pages(config, 1 + count * each, size, dtype, "cpu",
                           config.num_hidden_layers + config.num_nextn_predict_layers)
        order = 1 + np.random.default_rng(0).permutation(count * each)
        self.tables = [order[slot * each: (slot + 1) * each].tolist() for slot in range(count)]
        self.lengths = [0] * count

    def fresh(self, lengths: Sequence[int], slots: Sequence[int] | None = None) -> Layout:
        """Whole prompts into these slots."""
        slots = range(len(lengths)) if slots is None else slots
        for slot, length in zip(slots, lengths, strict=True):
            self.lengths[slot] = length
        return Layout.fresh(self.pages, [self.tables[slot] for slot in slots], lengths)

    def onward(self, counts: Sequence[int]) -> Layout:
        """So many tokens more in every slot."""
        past = list(self.lengths)
        self.lengths = [before + count for before, count in zip(past, counts, strict=True)]
        return Layout.onward(self.pages, self.tables, past, counts)

    def step(self, piece: int = 0) -> Layout:
        """The next token of every slot."""
        self.lengths = [length + 1 for length in self.lengths]
        return Layout.rows(self.pages, self.tables, self.lengths, piece)

    def keep(self, slots: Sequence[int]) -> None:
        """Only these slots stay."""
        self.tables, self.lengths = [self.tables[s] for s in slots], [self.lengths[s] for s in slots]


def tokenizer(vocab_size: int = 320) -> Tokenizer:
    """A tokenizer learnt from a few lines."""
    return Tokenizer.train(CORPUS, vocab_size)


def user(text: str) -> Message:
    """A user's turn."""
    return Message("user", text)


def assistant(text: str) -> Message:
    """An assistant's turn."""
    return Message("assistant", text)


def system(text: str) -> Message:
    """A system message."""
    return Message("system", text)

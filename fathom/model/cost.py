"""What a model costs, from its config alone: parameters, memory, cache bytes, arithmetic. Loads no torch.

Everything is counted from one list of the model's tensors (`tensors`), so the totals are exact. As published counts do,
`parameters` takes in the routers' selection biases (DeepSeek-V3: 256 per layer), which are buffers that no optimiser
moves, counts a tied head once, and leaves out the layer for multi-token prediction, which is counted apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from fathom.core.errors import UsageError
from fathom.model.config import ModelConfig

PARTS = ("embedding", "attention", "dense", "shared_experts", "routed_experts", "gate", "norms", "head")
BLOCK = 128  # edge of the blocks that share a scale in FP8 (DeepSeek-V3 §3.3.2)


class Recipe(NamedTuple):
    """Bytes per trained parameter: the weight as used, its gradient, an FP32 master beside it, AdamW's two moments."""

    weight: int
    gradient: int
    master: int
    moments: int
    about: str


RECIPES = {
    "fp32": Recipe(4, 4, 0, 8, "everything in FP32"),
    "bf16": Recipe(2, 2, 4, 8, "BF16 weights and gradients, FP32 masters and moments"),
    "bf16-moments": Recipe(2, 4, 4, 4, "BF16 weights and moments, FP32 masters and gradients (DeepSeek-V3 §3.3.3, "
                                       "whose weights in use are FP8 in part)"),
}


class Tensors(NamedTuple):
    """`copies` tensors of one shape, of which a token visits `visited`; `stored` is their type in an FP8 checkpoint."""

    part: str
    shape: tuple[int, ...]
    stored: Literal["fp8", "bf16", "fp32"] = "fp8"
    copies: int = 1
    visited: int = 1

    @property
    def size(self) -> int:
        """Numbers in one of them."""
        return math.prod(self.shape)

    def times(self, layers: int) -> Tensors:
        """The same in several layers."""
        return self._replace(copies=self.copies * layers, visited=self.visited * layers)

    def bytes(self, fp8: bool) -> int:
        """Of all copies: in BF16, or in FP8 with an FP32 scale per block of 128 × 128; what is FP32 stays so."""
        if self.stored == "fp8" and fp8:
            rows, columns = self.shape
            return self.copies * (self.size + 4 * -(-rows // BLOCK) * -(-columns // BLOCK))
        return self.copies * self.size * (4 if self.stored == "fp32" else 2)


def layer_kinds(config: ModelConfig) -> tuple[int, int]:
    """Dense layers and layers with experts, those for multi-token prediction not counted."""
    dense = min(config.first_k_dense_replace, config.num_hidden_layers) if config.n_routed_experts else (
        config.num_hidden_layers)
    return dense, config.num_hidden_layers - dense


def tensors(config: ModelConfig) -> list[Tensors]:
    """All tensors of the model without multi-token prediction, in FP8 checkpoints typed as DeepSeek-V3's are."""
    found = [Tensors("embedding", (config.vocab_size, config.hidden_size), "bf16")]
    for layers, moe in zip(layer_kinds(config), (False, True), strict=True):
        found += [t.times(layers) for t in _block(config, moe)] if layers else []
    found.append(Tensors("norms", (config.hidden_size,), "bf16"))
    if not config.tie_word_embeddings:
        found.append(Tensors("head", (config.vocab_size, config.hidden_size), "bf16"))
    return found


def mtp_tensors(config: ModelConfig) -> list[Tensors]:
    """The tensors of the layers for multi-token prediction themselves; embedding and head are the main model's."""
    d = config.hidden_size
    found: list[Tensors] = []
    for number in range(config.num_nextn_predict_layers):
        found += [*_block(config, config.is_moe(config.num_hidden_layers + number)),
                  Tensors("eh_proj", (d, 2 * d), "bf16"),
                  Tensors("norms", (3, d), "bf16")]  # of the embedding, of the hidden state, and the final one
    return found


def _block(config: ModelConfig, moe: bool) -> Iterator[Tensors]:
    d = config.hidden_size
    yield from _latent(config) if config.attention == "mla" else _grouped(config)
    yield Tensors("norms", (2, d), "bf16")
    if not moe:
        yield Tensors("dense", (config.intermediate_size, d), copies=2, visited=2)
        yield Tensors("dense", (d, config.intermediate_size))
        return
    experts, chosen, inner = config.n_routed_experts, config.num_experts_per_tok, config.moe_intermediate_size
    yield Tensors("gate", (experts, d), "bf16")
    if config.selection_bias:
        yield Tensors("gate", (experts,), "fp32")
    yield Tensors("routed_experts", (inner, d), copies=2 * experts, visited=2 * chosen)
    yield Tensors("routed_experts", (d, inner), copies=experts, visited=chosen)
    if config.n_shared_experts:
        yield Tensors("shared_experts", (config.n_shared_experts * inner, d), copies=2, visited=2)
        yield Tensors("shared_experts", (d, config.n_shared_experts * inner))


def _latent(config: ModelConfig) -> Iterator[Tensors]:
    d, heads, latent = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
    if config.q_lora_rank is None:
        yield Tensors("attention", (heads * config.qk_head_dim, d))
    else:
        yield Tensors("attention", (config.q_lora_rank, d))
        yield Tensors("attention", (config.q_lora_rank,), "bf16")
        yield Tensors("attention", (heads * config.qk_head_dim, config.q_lora_rank))
    yield Tensors("attention", (latent + config.qk_rope_head_dim, d))
    yield Tensors("attention", (latent,), "bf16")
    yield Tensors("attention", (heads * (config.qk_nope_head_dim + config.v_head_dim), latent))
    yield Tensors("attention", (d, heads * config.v_head_dim))


def _grouped(config: ModelConfig) -> Iterator[Tensors]:
    d, queries = config.hidden_size, config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    yield Tensors("attention", (queries, d))
    yield Tensors("attention", (keys, d), copies=2, visited=2)
    yield Tensors("attention", (d, queries))
    if config.qkv_bias:
        yield Tensors("attention", (queries + 2 * keys,), "bf16")
    if config.qk_norm:
        yield Tensors("attention", (2, config.head_dim), "bf16")


@dataclass(frozen=True)
class Cost:
    """Counts of one model. `active` is what a token visits: the head, not the embedding, which it only looks up in.

    All of the main model alone, with the biases that choose experts; `mtp` and `mtp_active` count the layer for
    multi-token prediction itself, without the embedding and head that it shares, of which released files hold copies.
    """

    config: ModelConfig
    parts: dict[str, int]
    active: int
    selection_biases: int  # of them, in the main model and in the further layer
    mtp: int
    mtp_active: int

    @property
    def parameters(self) -> int:
        """Of the main model."""
        return sum(self.parts.values())

    @property
    def active_with_embedding(self) -> int:
        """The same with the embedding's rows; equal to `active` where the head is the embedding."""
        return self.active + (0 if self.config.tie_word_embeddings else self.parts["embedding"])

    @property
    def mtp_with_copies(self) -> int:
        """What released files hold for multi-token prediction: its own, and copies of embedding and head."""
        return self.mtp + 2 * self.parts["embedding"] * self.config.num_nextn_predict_layers

    @property
    def cache_per_layer(self) -> int:
        """Elements per token in one layer: latent and rotary key, or keys and values of every group."""
        config = self.config
        if config.attention == "mla":
            return config.kv_lora_rank + config.qk_rope_head_dim
        return 2 * config.num_key_value_heads * config.head_dim

    @property
    def cache_elements(self) -> int:
        """Elements per token, all layers of the main model."""
        return self.cache_per_layer * self.config.num_hidden_layers

    def cache_bytes(self, kind: Literal["bf16", "fp8"] = "bf16") -> int:
        """Bytes per token, all layers of the main model.

        `fp8` is the layout of the open MLA kernels: the latent in E4M3 with an FP32 scale per 128, the rotary key in
        BF16 (656 bytes per layer in every DeepSeek model with latent attention); UsageError for other attention.
        """
        if kind == "bf16":
            return 2 * self.cache_elements
        config = self.config
        if config.attention != "mla":
            raise UsageError(f"cache={kind}: a layout of latent attention, and this model has attention="
                             f"{config.attention}; use bf16")
        layer = config.kv_lora_rank + 4 * -(-config.kv_lora_rank // BLOCK) + 2 * config.qk_rope_head_dim
        return layer * config.num_hidden_layers

    def weight_bytes(self, kind: Literal["bf16", "fp8"] = "bf16") -> int:
        """The main model in memory; `fp8` has blocks and scales where DeepSeek-V3's files have them, else BF16.

        Selection biases are FP32 in both.
        """
        return sum(entry.bytes(kind == "fp8") for entry in tensors(self.config))

    def serving_bytes(
        self, context: int, batch: int = 1, weights: Literal["bf16", "fp8"] = "bf16",
        cache: Literal["bf16", "fp8"] = "bf16",
    ) -> int:
        """Weights and the cache of `batch` sequences of `context` tokens; activations not counted."""
        return self.weight_bytes(weights) + context * batch * self.cache_bytes(cache)

    def training_bytes(self, recipe: str = "bf16") -> int:
        """Weights, gradients and optimiser by one of RECIPES, multi-token prediction too; activations not counted."""
        if recipe not in RECIPES:
            raise UsageError(f"recipe={recipe:.80}: no such recipe; there are {', '.join(RECIPES)}")
        weight, gradient, master, moments, _ = RECIPES[recipe]
        trained = self.parameters + self.mtp - self.selection_biases
        return trained * (weight + gradient + master + moments) + 4 * self.selection_biases

    def forward_flops(self, context: int) -> int:
        """Per token, averaged over a causal sequence of `context` tokens: 2 per active parameter and 2 per element of
        every query-key product and weighted value; latent attention expanded, as in training and in reading a prompt.
        """
        return 2 * self.active + self.config.num_hidden_layers * self._attention(context + 1) // 2

    def training_flops(self, context: int) -> int:
        """Per token, forward and backward (3 × forward), multi-token prediction too; recomputation not counted."""
        further = self.mtp_active + self.parts["embedding"] if self.mtp else 0
        layers = self.config.num_nextn_predict_layers
        return 3 * (self.forward_flops(context) + 2 * further + layers * self._attention(context + 1) // 2)

    def decode_flops(self, context: int) -> int:
        """For one token that sees `context` tokens in the cache; latent attention absorbed, all heads on the latent."""
        config = self.config
        if config.attention == "gqa":
            return 2 * self.active + config.num_hidden_layers * self._attention(context)
        # a head dots latent and rotary key and sums latents; absorbing costs what expanding one token does: 2 a weight
        width = 2 * config.kv_lora_rank + config.qk_rope_head_dim
        return 2 * self.active + config.num_hidden_layers * 2 * config.num_attention_heads * width * context

    def _attention(self, keys: int) -> int:
        """Of one query in one layer over `keys` keys, all heads."""
        config = self.config
        value = config.v_head_dim if config.attention == "mla" else config.head_dim
        return 2 * config.num_attention_heads * (config.qk_head_dim + value) * keys


def cost(config: ModelConfig) -> Cost:
    """The cost of a model of this shape."""
    main, further = tensors(config), mtp_tensors(config)
    parts = {part: sum(t.copies * t.size for t in main if t.part == part) for part in PARTS}
    looked_up = 0 if config.tie_word_embeddings else parts["embedding"]
    return Cost(
        config=config, parts={part: count for part, count in parts.items() if count},
        active=sum(t.visited * t.size for t in main) - looked_up,
        selection_biases=sum(t.copies * t.size for t in (*main, *further) if t.stored == "fp32"),
        mtp=sum(t.copies * t.size for t in further), mtp_active=sum(t.visited * t.size for t in further),
    )

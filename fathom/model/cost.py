"""What a model costs, from its config alone: parameters, memory, cache bytes, arithmetic. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass

from fathom.model.config import ModelConfig


@dataclass(frozen=True)
class Cost:
    """Counts of one model; `active` leaves out experts that a token does not visit, and the embedding, not the head."""

    parameters: int
    active: int
    mtp: int
    cache_elements: int  # per token, all layers

    def training_bytes(self, bytes_per_weight: int) -> int:
        """Weights, gradients, two FP32 moments and, below FP32, FP32 masters; activations not counted."""
        masters = 4 if bytes_per_weight < 4 else 0
        return self.parameters * (2 * bytes_per_weight + 8 + masters)

    def flops_per_token(self) -> int:
        """Forward and backward, attention over the context not counted: 6 per active parameter."""
        return 6 * (self.active + self.mtp)


def cost(config: ModelConfig) -> Cost:
    """The cost of a model of this shape."""
    d = config.hidden_size
    if config.attention == "mla":
        heads, qk = config.num_attention_heads, config.qk_head_dim
        query = d * heads * qk if config.q_lora_rank is None else config.q_lora_rank * (d + 1 + heads * qk)
        attention = (
            query + d * (config.kv_lora_rank + config.qk_rope_head_dim) + config.kv_lora_rank
            + config.kv_lora_rank * heads * (config.qk_nope_head_dim + config.v_head_dim)
            + heads * config.v_head_dim * d
        )
        cached = config.kv_lora_rank + config.qk_rope_head_dim
    else:
        attention = 2 * d * config.head_dim * (config.num_attention_heads + config.num_key_value_heads)
        cached = 2 * config.num_key_value_heads * config.head_dim
    expert = 3 * d * config.moe_intermediate_size

    def block(layer: int, experts: int) -> int:
        if not config.is_moe(layer):
            return attention + 2 * d + 3 * d * config.intermediate_size
        return attention + 2 * d + config.n_routed_experts * d + (experts + config.n_shared_experts) * expert

    layers = range(config.num_hidden_layers)
    head = 0 if config.tie_word_embeddings else config.vocab_size * d
    rest = config.vocab_size * d + head + d
    modules = config.num_nextn_predict_layers
    extra = 3 * d + 2 * d * d

    def further(experts: int) -> int:
        return modules * (extra + block(config.num_hidden_layers, experts))

    return Cost(
        parameters=rest + sum(block(i, config.n_routed_experts) for i in layers) + further(config.n_routed_experts),
        active=config.vocab_size * d + d + sum(block(i, config.num_experts_per_tok) for i in layers),
        mtp=further(config.num_experts_per_tok),
        cache_elements=cached * config.num_hidden_layers,
    )

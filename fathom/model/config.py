"""ModelConfig: the shape of a model, in the field names of a Hugging Face `config.json`; Lora: of its adapters.

Loads no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from fathom.core.config import Settings


class RopeScaling(Settings):
    """How the rotary frequencies are stretched for sequences longer than those of pre-training.

    `yarn`: Peng et al. 2023 §3.1–3.4, with DeepSeek's `mscale` and `mscale_all_dim`; `llama3`: Llama 3.1's division.
    """

    aliases: ClassVar[Mapping[str, str]] = {"rope_type": "type"}

    type: Literal["yarn", "llama3"] = Field("yarn", description="the rule: yarn or llama3")
    factor: float = Field(ge=1e-3, le=1e6, description="how many times longer sequences may be")
    original_max_position_embeddings: int = Field(
        ge=1, le=10**9, description="longest sequence of pre-training, in tokens")
    # yarn
    beta_fast: float = Field(32.0, gt=0, le=1e9, description="turns over that length from which frequencies stay (β)")
    beta_slow: float = Field(
        1.0, gt=0, le=1e9, description="turns up to which frequencies are divided by the factor (α)")
    mscale: float | None = Field(
        None, ge=0, le=100, description="a in m(a) = 0.1·a·ln factor + 1, the factor on cos and sin")
    mscale_all_dim: float | None = Field(
        None, ge=0, le=100,
        description="the same for the softmax: its scale is multiplied by m², cos and sin are divided by m")
    attention_factor: float | None = Field(
        None, gt=0, le=1e4, description="what cos and sin are multiplied by instead")
    truncate: bool = Field(True, description="the ramp's ends are whole channel numbers")
    # llama3
    low_freq_factor: float = Field(
        1.0, gt=0, le=1e9, description="turns up to which frequencies are divided by the factor")
    high_freq_factor: float = Field(4.0, gt=0, le=1e9, description="turns from which frequencies stay")

    @model_validator(mode="after")
    def _ordered(self) -> RopeScaling:
        if self.type == "yarn" and self.beta_slow >= self.beta_fast:
            raise ValueError(f"beta_slow={self.beta_slow}: must be less than beta_fast={self.beta_fast}; 1 and 32 are "
                             "YaRN's own")
        if self.type == "llama3" and self.low_freq_factor >= self.high_freq_factor:
            raise ValueError(f"low_freq_factor={self.low_freq_factor}: must be less than high_freq_factor="
                             f"{self.high_freq_factor}; 1 and 4 are Llama 3's own")
        return self

    def m(self, a: float = 1.0) -> float:
        """YaRN's m(a) = 0.1·a·ln factor + 1; 1 where nothing is stretched (DeepSeek-V2 §3.1.4)."""
        return 0.1 * a * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0

    @property
    def rotary_factor(self) -> float:
        """What cos and sin are multiplied by; 1 in every DeepSeek release, where both scales are equal."""
        if self.type != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self.m(self.mscale) / self.m(self.mscale_all_dim)
        return self.m()

    @property
    def softmax_factor(self) -> float:
        """What latent attention's softmax scale is multiplied by: m², a square, on the logits."""
        return self.m(self.mscale_all_dim) ** 2 if self.type == "yarn" and self.mscale_all_dim else 1.0


class ModelConfig(Settings):
    """The shape of one model: attention (latent or grouped-query), feed-forward (experts or dense), prediction heads.

    Widths are in elements, never bytes. DeepSeek-V2 §2.1 (MLA, experts), DeepSeek-V3 §2.1–2.2 (sigmoid gate,
    multi-token prediction).
    """

    vocab_size: int = Field(512, ge=2, description="rows of the embedding and of the head")
    hidden_size: int = Field(128, ge=1, description="width of the residual stream")
    num_hidden_layers: int = Field(3, ge=1, description="blocks, those for multi-token prediction not counted")
    num_attention_heads: int = Field(4, ge=1, description="query heads")
    attention: Literal["mla", "gqa"] = Field("mla", description="latent attention, or grouped-query attention")

    # latent attention
    q_lora_rank: int | None = Field(None, ge=1, description="width of the query latent; null projects directly")
    kv_lora_rank: int = Field(64, ge=1, description="width of the key/value latent that the cache keeps")
    qk_nope_head_dim: int = Field(32, ge=1, description="per head, query/key width without position")
    qk_rope_head_dim: int = Field(16, ge=2, description="per head, rotary query/key width")
    v_head_dim: int = Field(32, ge=1, description="per head, value width")
    # grouped-query attention
    num_key_value_heads: int = Field(4, ge=1, description="key/value heads of grouped-query attention")
    head_dim: int = Field(32, ge=2, description="per head, width in grouped-query attention")
    qkv_bias: bool = Field(False, description="biases on queries, keys and values of grouped-query attention (Qwen2)")
    qk_norm: bool = Field(False, description="RMSNorm over each head's query and key, before rotation (Qwen3)")

    intermediate_size: int = Field(256, ge=1, description="width of a dense feed-forward")
    n_routed_experts: int = Field(0, ge=0, description="routed experts per layer; 0 makes every layer dense")
    n_shared_experts: int = Field(0, ge=0, description="experts that see every token, fused into one")
    num_experts_per_tok: int = Field(2, ge=1, description="routed experts chosen for each token")
    moe_intermediate_size: int = Field(64, ge=1, description="width of one expert")
    first_k_dense_replace: int = Field(1, ge=0, description="leading layers that stay dense")
    routed_scaling_factor: float = Field(1.0, gt=0, le=1e4, description="factor on the routed experts' weights")
    scoring_func: Literal["sigmoid", "softmax"] = Field("sigmoid", description="affinities: sigmoid (V3), softmax (V2)")
    topk_method: Literal["noaux_tc", "greedy", "group_limited_greedy"] = Field(
        "noaux_tc", description="choice by affinity plus bias (V3), by affinity (V2-Lite), or in the best groups (V2)")
    n_group: int = Field(1, ge=1, description="groups of experts, contiguous; one group is one device")
    topk_group: int = Field(1, ge=1, description="groups that a token's experts may come from")
    norm_topk_prob: bool = Field(True, description="the chosen experts' weights are divided by their sum")

    num_nextn_predict_layers: int = Field(0, ge=0, le=1, description="modules that predict one token further")
    rope_theta: float = Field(10000.0, gt=1, le=1e12, description="base of the rotary frequencies")
    rope_interleave: bool = Field(True, description="rotate neighbours (DeepSeek) or halves (Llama)")
    rope_scaling: RopeScaling | None = Field(None, description="stretched frequencies for long sequences, or null")
    rms_norm_eps: float = Field(1e-6, gt=0, le=1, description="added to the mean square before the root")
    max_position_embeddings: int = Field(1024, ge=1, le=10**9, description="longest sequence, in tokens")
    tie_word_embeddings: bool = Field(False, description="the head shares the embedding's weights")
    initializer_range: float = Field(0.02, gt=0, le=100, description="standard deviation of the initial weights")

    @model_validator(mode="after")
    def _fits_together(self) -> ModelConfig:
        def refuse(name: str, value: Any, limit: str, remedy: str) -> None:
            raise ValueError(f"{name}={value}: {limit}; {remedy}")

        if self.attention == "gqa":
            if self.num_attention_heads % self.num_key_value_heads:
                refuse("num_key_value_heads", self.num_key_value_heads,
                       f"must divide num_attention_heads={self.num_attention_heads}", "choose a divisor")
            if self.head_dim % 2:
                refuse("head_dim", self.head_dim, "rotary channels come in pairs", "choose an even width")
        elif self.qk_rope_head_dim % 2:
            refuse("qk_rope_head_dim", self.qk_rope_head_dim, "rotary channels come in pairs", "choose an even width")
        if self.n_routed_experts and self.num_experts_per_tok > self.n_routed_experts:
            refuse("num_experts_per_tok", self.num_experts_per_tok,
                   f"at most n_routed_experts={self.n_routed_experts}", "choose fewer per token or more experts")
        if self.n_routed_experts:
            self._groups_fit(refuse)
        return self

    def _groups_fit(self, refuse: Callable[..., None]) -> None:
        if self.topk_group > self.n_group:
            refuse("topk_group", self.topk_group, f"at most n_group={self.n_group}", "choose fewer groups per token")
        if self.n_routed_experts % self.n_group:
            refuse("n_group", self.n_group, f"must divide n_routed_experts={self.n_routed_experts}", "choose a divisor")
        if self.n_group == 1:
            return
        inside = self.n_routed_experts // self.n_group
        if self.topk_method == "greedy":
            refuse("n_group", self.n_group, "topk_method=greedy knows no groups",
                   "set topk_method=group_limited_greedy, or n_group=1")
        if self.num_experts_per_tok > self.topk_group * inside:
            refuse("num_experts_per_tok", self.num_experts_per_tok,
                   f"topk_group={self.topk_group} groups hold {self.topk_group * inside} experts",
                   "choose fewer per token or more groups")
        if self.topk_method == "noaux_tc" and inside < 2:
            refuse("n_group", self.n_group, "a group's score is the sum of its best two, and a group holds one expert",
                   "choose fewer groups")

    @property
    def family(self) -> str:
        """The `model_type` under which Hugging Face knows a model of this shape; "fathom" where no family has it."""
        routed = (self.scoring_func, self.topk_method)
        if self.attention == "mla":
            if self.rope_interleave and not self.n_routed_experts:
                return "deepseek_v3"
            if self.rope_interleave and routed == ("sigmoid", "noaux_tc"):
                return "deepseek_v3"
            if (self.rope_interleave and self.scoring_func == "softmax" and self.topk_method != "noaux_tc"
                    and not self.norm_topk_prob and not self.num_nextn_predict_layers):
                return "deepseek_v2"
            return "fathom"
        if self.rope_interleave or self.num_nextn_predict_layers:
            return "fathom"
        if self.n_routed_experts:
            plain = routed == ("softmax", "greedy") and not (self.qkv_bias or self.qk_norm)
            return "deepseek" if plain and self.num_key_value_heads == self.num_attention_heads else "fathom"
        if self.qkv_bias:
            return "fathom" if self.qk_norm else "qwen2"
        return "qwen3" if self.qk_norm else "llama"

    @property
    def selection_bias(self) -> bool:
        """Whether the routers carry a bias that takes part in the choice only (DeepSeek-V3 §2.1.2)."""
        return self.topk_method == "noaux_tc"

    def is_moe(self, layer: int) -> bool:
        """Whether block `layer` routes its tokens to experts; blocks for multi-token prediction follow the last one."""
        return self.n_routed_experts > 0 and layer >= self.first_k_dense_replace

    @property
    def rotary_channels(self) -> int:
        """Channels of one head that carry the position."""
        return self.qk_rope_head_dim if self.attention == "mla" else self.head_dim

    @property
    def softmax_scale(self) -> float:
        """What q·k is multiplied by: width^−½, times m² with YaRN in latent attention (DeepSeek-V2 §3.1.4)."""
        scaled = self.rope_scaling.softmax_factor if self.rope_scaling and self.attention == "mla" else 1.0
        return float(self.qk_head_dim**-0.5 * scaled)

    @property
    def qk_head_dim(self) -> int:
        """Width of one query or key head."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim if self.attention == "mla" else self.head_dim


# what adapters can stand beside: projections by their name in attention and dense or shared feed-forward, and the
# routed experts, which lie fused in two tensors
LORA_TARGETS = ("q_proj", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "k_proj", "v_proj", "o_proj",
                "gate_proj", "up_proj", "down_proj", "experts")


class Lora(Settings):
    """Low-rank adapters beside frozen weights: W + α/r · B A (Hu et al. 2021 §4.1)."""

    aliases: ClassVar[Mapping[str, str]] = {
        "r": "rank", "lora_alpha": "alpha", "target_modules": "targets", "use_rslora": "rslora"}
    elsewhere: ClassVar[Mapping[str, str]] = {
        "lora_dropout": "adapters are trained without dropout here; leave it out",
        "dropout": "adapters are trained without dropout here; leave it out",
    }

    rank: int = Field(16, ge=1, description="width r of A and B; a multiple of 8 keeps fused experts on the fast path")
    alpha: float = Field(32.0, gt=0, description="α: the adapter's output is multiplied by α/r")
    targets: tuple[str, ...] | None = Field(
        None, min_length=1, description=f"of {', '.join(LORA_TARGETS)}; null takes all that the model has")
    rslora: bool = Field(False, description="multiply by α/√r instead, for large ranks (Kalajdzievski 2023)")

    def check_biases(self, speed: float) -> None:
        """ValueError where an optimiser would move the routers' selection biases, which no adapter could carry."""
        if speed:
            raise ValueError(f"optim.bias_speed={speed}: it moves the routers' selection biases, which stay as they "
                             "are beside adapters; set optim.bias_speed=0")

    @property
    def scale(self) -> float:
        """What the adapter's output is multiplied by."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    @model_validator(mode="after")
    def _known_targets(self) -> Lora:
        for target in self.targets or ():
            if target not in LORA_TARGETS:
                near = get_close_matches(target, LORA_TARGETS, 1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(LORA_TARGETS)}"
                raise ValueError(f"targets: {target}: adapters cannot stand there; {hint}")
        return self


def _settings_of(value: Any) -> Any:
    if isinstance(value, bool | int | float):
        rank = int(value) if value > 1 else 16
        raise ValueError(f"lora={value}: adapters have settings of their own; write lora.rank={rank}")
    return value


# a setting of every system that can train adapters
Adapters = Annotated[Lora | None, BeforeValidator(_settings_of)]

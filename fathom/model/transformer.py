"""Transformer: one class for every family; the config chooses attention and feed-forward at construction."""

# T tokens, D model, V vocabulary, S sequences, E experts

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fathom.model.attention import GroupedQueryAttention, LatentAttention, RMSNorm
from fathom.model.config import ModelConfig
from fathom.model.layout import Layout
from fathom.model.moe import MoE, SwiGLU, sequence_balance
from fathom.model.rope import angles


@dataclass
class Routing:
    """What the routers did in one forward pass.

    `counts[layer]` is [E], the number of tokens each expert got, as integers; `balance` is [S], Σ f·P summed over
    layers, differentiable, where `balanced` asks for it. Filled outside of recomputed code: nothing is counted twice.
    """

    balanced: bool = False
    counts: dict[int, Tensor] = field(default_factory=dict)
    balance: Tensor | None = None


class Block(nn.Module):
    """Pre-norm residual block: x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer, self.chosen = layer, config.num_experts_per_tok
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LatentAttention(config) if config.attention == "mla" else GroupedQueryAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MoE(config) if config.is_moe(layer) else SwiGLU(config.hidden_size, config.intermediate_size)

    def forward(
        self, x_TD: Tensor, layout: Layout, cos_sin: tuple[Tensor, Tensor], counted: bool, balanced: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The new residual stream and, where asked and the layer has experts, their counts [E] and balance [S]."""
        x_TD = x_TD + self.self_attn(self.input_layernorm(x_TD), layout, cos_sin, self.layer)
        h_TD = self.post_attention_layernorm(x_TD)
        if not isinstance(self.mlp, MoE):
            return x_TD + self.mlp(h_TD), None, None
        y_TD, score_TE, expert_TK = self.mlp(h_TD)
        counts_E = torch.bincount(expert_TK.flatten(), minlength=score_TE.shape[1]) if counted else None
        balance_S = sequence_balance(
            score_TE, self.chosen, layout.sequence_T, layout.sequences) if balanced else None
        return x_TD + y_TD, counts_E, balance_S


class MultiTokenPrediction(nn.Module):
    """Predicts one token further (DeepSeek-V3 §2.2): a block over the joined embedding of t+1 and hidden state of t.

    The order [embedding, hidden] and the own final norm are those of the released weights. The hidden state enters
    after the main model's final norm, as serving engines feed it.
    """

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.enorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.block = Block(config, layer)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def join(self, embedding_TD: Tensor, hidden_TD: Tensor) -> Tensor:
        """The block's input, [T, D]."""
        x_TD: Tensor = self.eh_proj(torch.cat((self.enorm(embedding_TD), self.hnorm(hidden_TD)), dim=-1))
        return x_TD


class Transformer(nn.Module):
    """A decoder-only language model over a row of tokens; the layout says which token belongs where."""

    def __init__(self, config: ModelConfig, recompute: bool = False):
        super().__init__()
        self.config, self.recompute = config, recompute
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mtp = nn.ModuleList(
            MultiTokenPrediction(config, config.num_hidden_layers + k) for k in range(config.num_nextn_predict_layers)
        )
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def initialise(self, seed: int) -> Transformer:
        """The same model with fresh weights: normal with the config's standard deviation, norms at one, biases zero."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.dim() == 1:
                    parameter.fill_(1.0)
                else:
                    fresh = torch.empty(parameter.shape).normal_(0, self.config.initializer_range, generator=generator)
                    parameter.copy_(fresh)
        for moe in self.routers().values():
            moe.gate.e_score_correction_bias.zero_()
        return self

    def forward(self, tokens_T: Tensor, layout: Layout, routing: Routing | None = None) -> Tensor:
        """Hidden states after the final norm, [T, D]; `routing`, where given, is filled with what the routers did."""
        x_TD = self.embed_tokens(tokens_T)
        cos_sin = self._angles(layout, x_TD.dtype)
        for block in self.layers:
            x_TD = self._run(block, x_TD, layout, cos_sin, routing)
        hidden_TD: Tensor = self.norm(x_TD)
        return hidden_TD

    def predict_next(self, hidden_TD: Tensor, next_T: Tensor, layout: Layout, routing: Routing | None = None) -> Tensor:
        """Hidden states [T, D] that predict the token after next, from the final hidden states and the next tokens."""
        module = self.mtp[0]
        assert isinstance(module, MultiTokenPrediction)
        x_TD = module.join(self.embed_tokens(next_T), hidden_TD)
        cos_sin = self._angles(layout, x_TD.dtype)
        further_TD: Tensor = module.norm(self._run(module.block, x_TD, layout, cos_sin, routing))
        return further_TD

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., V] in the weights' type; take log-softmax in FP32."""
        logits: Tensor = self.lm_head(hidden)
        return logits

    def routers(self) -> dict[int, MoE]:
        """The layers that route, by number; those of multi-token prediction count on from the last."""
        blocks = (module for module in self.modules() if isinstance(module, Block))
        return {block.layer: block.mlp for block in blocks if isinstance(block.mlp, MoE)}

    def _angles(self, layout: Layout, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        config = self.config
        channels = config.qk_rope_head_dim if config.attention == "mla" else config.head_dim
        return angles(layout.positions_T, channels, config.rope_theta, dtype)

    def _run(
        self, block: nn.Module, x_TD: Tensor, layout: Layout, cos_sin: tuple[Tensor, Tensor], routing: Routing | None
    ) -> Tensor:
        asked = (routing is not None, routing is not None and routing.balanced)
        if self.recompute and torch.is_grad_enabled():
            out = checkpoint(block, x_TD, layout, cos_sin, *asked, use_reentrant=False)
        else:
            out = block(x_TD, layout, cos_sin, *asked)
        x_TD, counts_E, balance_S = out
        if routing is not None and counts_E is not None:
            assert isinstance(block, Block)
            routing.counts[block.layer] = counts_E
            if balance_S is not None:
                routing.balance = balance_S if routing.balance is None else routing.balance + balance_S
        return x_TD

"""Transformer: one class for every family; the config chooses attention and feed-forward at construction."""

# T tokens, D model, V vocabulary, S sequences, E experts

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fathom.model.attention import GroupedQueryAttention, LatentAttention, RMSNorm
from fathom.model.config import ModelConfig
from fathom.model.layout import Layout
from fathom.model.moe import Dropping, MoE, SwiGLU, sequence_balance
from fathom.model.rope import Rotary


@dataclass
class Routing:
    """What the routers did in one forward pass.

    `counts[layer]` is [E], the number of tokens each expert got, as integers; `balance` is [1 or 3, S], the terms of
    `moe.sequence_balance` summed over layers, differentiable, where `balanced` asks for it; `dropped` is the number of
    assignments that `dropping` discarded. Filled outside of recomputed code: nothing is counted twice.

    With `recorded` given, it is filled with the experts that were chosen, layer: [T, K]. With `known`, such a record,
    `agreed[layer]` is [T], the share of them that the router chooses now; `replay` lets them be used whatever it
    chooses now, weighed by their affinities of now (arXiv 2507.18071 §5.3).
    """

    balanced: bool = False
    dropping: Dropping | None = None
    recorded: dict[int, Tensor] | None = None
    known: Mapping[int, Tensor] | None = None
    replay: bool = False
    agreed: dict[int, Tensor] = field(default_factory=dict)
    counts: dict[int, Tensor] = field(default_factory=dict)
    balance: Tensor | None = None
    dropped: Tensor | None = None


@dataclass(frozen=True)
class Asked:
    """What a block is asked about its router."""

    balanced: bool
    dropping: Dropping | None
    recorded: bool = False
    known_TK: Tensor | None = None
    replay: bool = False


@dataclass(frozen=True)
class Routed:
    """A block's answer: tokens by expert [E], balance terms [1 or 3, S], dropped assignments, experts [T, K], agreement
    [T]; None where not asked."""

    counts_E: Tensor | None = None
    balance_S: Tensor | None = None
    dropped: Tensor | None = None
    expert_TK: Tensor | None = None
    agreed_T: Tensor | None = None


class Block(nn.Module):
    """Pre-norm residual block: x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LatentAttention(config) if config.attention == "mla" else GroupedQueryAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MoE(config) if config.is_moe(layer) else SwiGLU(config.hidden_size, config.intermediate_size)

    def forward(
        self, x_TD: Tensor, layout: Layout, cos_sin: tuple[Tensor, Tensor], asked: Asked | None = None
    ) -> tuple[Tensor, Routed]:
        """The new residual stream and, where asked and the layer has experts, what the router did."""
        x_TD = x_TD + self.self_attn(self.input_layernorm(x_TD), layout, cos_sin, self.layer)
        h_TD = self.post_attention_layernorm(x_TD)
        if not isinstance(self.mlp, MoE):
            return x_TD + self.mlp(h_TD), Routed()
        replayed_TK = asked.known_TK if asked and asked.replay else None
        y_TD, score_TE, expert_TK, kept_TK = self.mlp(h_TD, asked.dropping if asked else None, replayed_TK)
        if asked is None:
            return x_TD + y_TD, Routed()
        gate = self.mlp.gate
        agreed_T = None
        if asked.known_TK is not None:
            own_TK = gate.best(score_TE) if asked.replay else expert_TK
            agreed_T = (own_TK[:, :, None] == asked.known_TK[:, None, :]).any(1).to(score_TE.dtype).mean(-1)
        return x_TD + y_TD, Routed(
            torch.bincount(expert_TK.flatten(), minlength=score_TE.shape[1]),
            sequence_balance(score_TE, gate.counted(score_TE, expert_TK), layout.sequence_T, layout.sequences,
                             gate.groups, gate.kept_groups) if asked.balanced else None,
            None if kept_TK is None else (~kept_TK).sum(),
            expert_TK if asked.recorded else None, agreed_T,
        )


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
        self.config, self.recompute, self.rotary = config, recompute, Rotary(config)
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
            for name, parameter in self.named_parameters():
                if parameter.dim() == 1:
                    parameter.fill_(0.0 if name.endswith(".bias") else 1.0)
                else:
                    fresh = torch.empty(parameter.shape).normal_(0, self.config.initializer_range, generator=generator)
                    parameter.copy_(fresh)
        for moe in self.routers().values():
            if moe.gate.e_score_correction_bias is not None:
                moe.gate.e_score_correction_bias.zero_()
        return self

    def forward(self, tokens_T: Tensor, layout: Layout, routing: Routing | None = None) -> Tensor:
        """Hidden states after the final norm, [T, D]; `routing`, where given, is filled with what the routers did."""
        x_TD = self.embed_tokens(tokens_T)
        cos_sin = self.rotary(layout.positions_T, x_TD.dtype)
        for block in self.layers:
            x_TD = self._run(block, x_TD, layout, cos_sin, routing)
        hidden_TD: Tensor = self.norm(x_TD)
        return hidden_TD

    def predict_next(self, hidden_TD: Tensor, next_T: Tensor, layout: Layout, routing: Routing | None = None) -> Tensor:
        """Hidden states [T, D] that predict the token after next, from the final hidden states and the next tokens."""
        module = self.mtp[0]
        assert isinstance(module, MultiTokenPrediction)
        x_TD = module.join(self.embed_tokens(next_T), hidden_TD)
        cos_sin = self.rotary(layout.positions_T, x_TD.dtype)
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

    def _run(
        self, block: nn.Module, x_TD: Tensor, layout: Layout, cos_sin: tuple[Tensor, Tensor], routing: Routing | None
    ) -> Tensor:
        assert isinstance(block, Block)
        asked = None if routing is None else Asked(
            routing.balanced, routing.dropping, routing.recorded is not None,
            None if routing.known is None else routing.known.get(block.layer), routing.replay)
        routed: Routed
        if self.recompute and torch.is_grad_enabled():
            x_TD, routed = checkpoint(block, x_TD, layout, cos_sin, asked, use_reentrant=False)
        else:
            x_TD, routed = block(x_TD, layout, cos_sin, asked)
        if routing is not None and routed.counts_E is not None:
            routing.counts[block.layer] = routed.counts_E
            if routing.recorded is not None and routed.expert_TK is not None:
                routing.recorded[block.layer] = routed.expert_TK
            if routed.agreed_T is not None:
                routing.agreed[block.layer] = routed.agreed_T
            if routed.balance_S is not None:
                routing.balance = routed.balance_S if routing.balance is None else routing.balance + routed.balance_S
            if routed.dropped is not None:
                routing.dropped = routed.dropped if routing.dropped is None else routing.dropped + routed.dropped
        return x_TD

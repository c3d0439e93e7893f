"""GpuStep: how a batch is decoded on a GPU, where a step of few rows is a matter of bandwidth and of starting kernels.

A model with latent attention runs as a short list of kernels, eleven to a layer, which read every weight once; any
other as its own modules do it. Either is recorded as a graph for each number of rows and width of the tables, so that a
step is one call. It changes how, never what: results agree with the model's own forward pass to rounding.
"""

# B rows, one token each; N blocks of a row's table; D model, H heads, C nope channels, P rotary, R latent

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fathom.model.attention import LatentAttention, RMSNorm
from fathom.model.kernels.absorb import latent_queries, latent_values
from fathom.model.kernels.experts import MOST_PAIRS, Shared, decode_experts
from fathom.model.kernels.fused import add_norm
from fathom.model.kernels.gate import choose_experts
from fathom.model.kernels.graphed import Graphed
from fathom.model.layout import Layout, Pages
from fathom.model.moe import Experts, MoE
from fathom.model.transformer import Block, Transformer

SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)  # rows that steps are recorded for
WIDTHS = 4  # tables are as wide as a power of this


class GpuStep:
    """`step(tokens, layout)` decodes one token of every row; `guess` proposes the one after next."""

    def __init__(self, model: Transformer):
        self.model = model
        self.on_gpu = model.embed_tokens.weight.is_cuda
        self.plain = _plain(model)
        self.joined = self.plain and _joinable(model)
        self._layers: list[_Layer] = []
        self._pages: weakref.ref[Pages] | None = None
        self._places: tuple[int, ...] = ()  # where the parameters were when steps were recorded
        self._fresh = False
        self._graphs = Graphed(self._run), Graphed(self._run_guess)

    def refresh(self) -> None:
        """Steps go by the weights as they are now."""
        self._fresh = False

    def rows(self, count: int) -> int:
        """The number of rows, `count` or more, that a step for so many should have."""
        return next((size for size in SIZES if size >= count), count) if self.on_gpu else count

    def width(self, blocks: int) -> int:
        """Columns, `blocks` or more, that tables should have."""
        width = WIDTHS
        while width < blocks:
            width *= WIDTHS
        return width

    def step(self, token_B: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Final hidden states [B, D] and logits [B, V]; they lie where the next step overwrites them."""
        self._settle(layout)
        assert layout.decoding is not None
        inputs = token_B, layout.decoding.numbers
        hidden_BD, logits_BV = self._graphs[0](*inputs) if self.on_gpu else self._run(*inputs)
        return hidden_BD, logits_BV

    def guess(self, next_B: Tensor, hidden_BD: Tensor, layout: Layout) -> Tensor:
        """Logits [B, V] of the token after `next_B`, by multi-token prediction."""
        self._settle(layout)
        assert layout.decoding is not None
        inputs = next_B, layout.decoding.numbers, hidden_BD
        return (self._graphs[1](*inputs) if self.on_gpu else self._run_guess(*inputs))[0]

    def _settle(self, layout: Layout) -> None:
        """Weights joined anew where they may have changed; nothing recorded that reads where nothing is any more."""
        pages = layout.pages
        assert pages is not None
        moved = self._pages is None or self._pages() is not pages
        if not self._fresh:
            places = tuple(p.data_ptr() for p in self.model.parameters())
            moved |= places != self._places or not self.plain  # adapters may be on or off
            self._places = places
            if self.joined:
                self._layers = [_Layer.of(block, self._layers[n].into if self._layers else None)
                                for n, block in enumerate(self.model.layers)]
            self._fresh = True
        if moved:
            self._pages = weakref.ref(pages)
            for graph in self._graphs:
                graph.forget()

    def _layout(self, numbers: Tensor, rows: int) -> Layout:
        pages = None if self._pages is None else self._pages()
        assert pages is not None
        return Layout.of_numbers(pages, numbers, rows)

    def _run(self, token_B: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        layout = self._layout(numbers, len(token_B))
        hidden_BD = self._joined(token_B, layout) if self._joins(len(token_B)) else self.model(token_B, layout)
        return hidden_BD, self.model.logits(hidden_BD)

    def _run_guess(self, next_B: Tensor, numbers: Tensor, hidden_BD: Tensor) -> tuple[Tensor]:
        layout = self._layout(numbers, len(next_B))
        return (self.model.logits(self.model.predict_next(hidden_BD, next_B, layout)),)

    def _joins(self, rows: int) -> bool:
        return self.joined and all(rows * layer.pairs <= MOST_PAIRS for layer in self._layers)

    def _joined(self, token_B: Tensor, layout: Layout) -> Tensor:
        rows, pages = layout.decoding, layout.pages
        assert rows is not None and pages is not None and layout.cells is not None
        x_BD = F.embedding(token_B, self.model.embed_tokens.weight)
        cos_sin = self.model.rotary(layout.positions_T, x_BD.dtype)
        first = self._layers[0].before
        y_BD = F.rms_norm(x_BD, list(first.weight.shape), first.weight, first.eps)
        after = [*(layer.before for layer in self._layers[1:]), self.model.norm]
        for layer, following, (pool,) in zip(self._layers, after, pages.layers, strict=False):
            part = layer.attention
            q_BHC, entry_BC = layer.queries(y_BD)
            q_BHC = latent_queries(q_BHC, layer.up_k, entry_BC, part.kv_a_layernorm.weight, part.kv_a_layernorm.eps,
                                   cos_sin, part.interleave, pool, layout.cells)
            o_BHV = latent_values(q_BHC, pool, rows.table_BN, rows.length_B, part.scale, layer.up_v)
            o_BD = part.o_proj(o_BHV.flatten(1))
            x_BD, y_BD = add_norm(x_BD, o_BD[:, None], layer.between.weight, layer.between.eps)
            x_BD, y_BD = add_norm(x_BD, layer.fed_forward(y_BD), following.weight, following.eps)
        return y_BD


@dataclass(frozen=True)
class _Layer:
    """A layer's weights as its kernels take them: all but `into` are the model's own tensors."""

    before: RMSNorm
    between: RMSNorm
    attention: LatentAttention
    into: Tensor  # [H·(C + P) + R + P, D]: queries, or what they are compressed to, and cache entries in one product
    up_k: Tensor  # [H, C, R]
    up_v: Tensor  # [H, V, R]
    mlp: nn.Module
    shared: Shared | None
    pairs: int  # experts that a row goes through

    @classmethod
    def of(cls, block: nn.Module, place: Tensor | None) -> _Layer:
        """`place`: where the joined weights are put, if they lie somewhere already."""
        assert isinstance(block, Block) and isinstance(block.self_attn, LatentAttention)
        part, mlp = block.self_attn, block.mlp
        first = part.q_a_proj if part.compress_query else part.q_proj
        joined = torch.cat((first.weight.detach(), part.kv_a_proj_with_mqa.weight.detach()))
        up_HCR = part.kv_b_proj.weight.detach().view(part.heads, -1, part.latent)
        shared, pairs = None, 0
        if isinstance(mlp, MoE):
            pairs = mlp.gate.chosen
            if (more := mlp.shared_experts) is not None:
                gate, up, down = (m.weight.detach() for m in (more.gate_proj, more.up_proj, more.down_proj))
                shared = gate, up, down
                pairs += len(gate) // mlp.experts.down_proj.shape[2]
        return cls(block.input_layernorm, block.post_attention_layernorm, part,
                   joined if place is None else place.copy_(joined), up_HCR[:, : part.nope], up_HCR[:, part.nope:],
                   mlp, shared, pairs)

    def queries(self, y_BD: Tensor) -> tuple[Tensor, Tensor]:
        """Queries [B, H, C + P] and what becomes cache entries [B, R + P]."""
        part = self.attention
        width = part.latent + part.rope
        q_BQ, entry_BC = torch.split(F.linear(y_BD, self.into), [len(self.into) - width, width], dim=-1)
        if part.compress_query:
            q_BQ = part.q_b_proj(part.q_a_layernorm(q_BQ))
        return q_BQ.view(len(y_BD), part.heads, -1), entry_BC

    def fed_forward(self, y_BD: Tensor) -> Tensor:
        """Contributions to the residual stream, [B, L, D]."""
        if not isinstance(self.mlp, MoE):
            dense_BD: Tensor = self.mlp(y_BD)
            return dense_BD[:, None]
        experts = self.mlp.experts
        expert_BL, weight_BL = choose_experts(y_BD, self.mlp.gate, self.pairs - self.mlp.gate.chosen)
        return decode_experts(y_BD, experts.gate_up_proj, experts.down_proj, expert_BL, weight_BL, self.shared)


def _plain(model: Transformer) -> bool:
    """Whether nothing in the model is adapted."""
    kinds = (nn.Linear, nn.Embedding, Experts)
    return all(type(module) in kinds for module in model.modules() if isinstance(module, kinds))


def _joinable(model: Transformer) -> bool:
    """Whether the kernels' operations can stand for the modules: latent attention, all in one type."""
    return model.config.attention == "mla" and len({p.dtype for p in model.parameters()}) == 1

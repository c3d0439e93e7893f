"""Attention over a row of tokens: latent (MLA) and grouped-query, each with its cache, chosen once at construction."""

# T tokens, H heads, D model, R latent, P rotary, S cached positions, B rows, N sequences of L tokens, Y past tokens

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fathom.model.config import ModelConfig
from fathom.model.device import full_precision
from fathom.model.layout import Layout, Spans
from fathom.model.lora import effective_weight
from fathom.model.rope import rotate

LATENT_EPS = 1e-6  # of the latents' norms, whatever the config says of the others: so in the released code


class RMSNorm(nn.Module):
    """x / rms(x) · weight, computed in FP32."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            return normalise(x, self.weight, self.eps)
        y: Tensor = F.rms_norm(x, list(self.weight.shape), self.weight, self.eps)
        return y


class _Normalise(torch.autograd.Function):
    """RMSNorm for the CPU, where torch has no fused one: few passes, and x alone is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        exact = x.to(full_precision(x.dtype))
        width = x.shape[-1]
        # √(|x|² + D·eps) is a hypotenuse
        length = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
        scale = math.sqrt(width) / length.hypot_(length.new_tensor(math.sqrt(width * eps)))
        ctx.save_for_backward(x, weight, scale)
        y: Tensor = (exact * scale).mul_(weight.to(exact.dtype)).to(x.dtype)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        unit = x.to(scale.dtype) * scale
        grad = grads[0].to(scale.dtype)
        grad_weight = (grad * unit).flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        grad = grad * weight.to(scale.dtype)
        share = (grad * unit).mean(-1, keepdim=True)  # the part along x, which the norm takes away
        return grad.addcmul_(unit, share, value=-1).mul_(scale).to(x.dtype), grad_weight, None


normalise: Callable[..., Tensor] = _Normalise.apply


def attend(q_THC: Tensor, k_TGC: Tensor, v_TGV: Tensor, layout: Layout, scale: float) -> Tensor:
    """Causal attention of every token to its sequence: [T, H, V]. G key/value heads, each serving H/G query heads.

    The narrower of keys and values is padded: the CPU's flash path needs equal widths (docs/log.md).
    """
    if layout.spans is not None:
        return attend_by_kernel(q_THC, k_TGC, v_TGV, layout.spans, scale)
    heads, v_width = q_THC.shape[1], v_TGV.shape[2]
    width = max(q_THC.shape[2], v_width)
    padded = [F.pad(t, (0, width - t.shape[2])) if t.shape[2] < width else t for t in (q_THC, k_TGC, v_TGV)]
    outputs = []
    cell = 0
    for rows_NL in layout.rectangles:
        n, length = rows_NL.shape
        q, k, v = (
            (t[cell: cell + n * length] if layout.in_order else t.index_select(0, rows_NL.reshape(-1)))
            .view(n, length, t.shape[1], width).transpose(1, 2) for t in padded
        )
        cell += n * length
        # cells past a sequence's end come last, so causality alone keeps them from every real token
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=k.shape[1] != heads)
        outputs.append(o.transpose(1, 2).reshape(n * length, heads, width)[..., :v_width])
    o_THV = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    if layout.in_order:
        return o_THV
    assert layout.place_T is not None
    return o_THV.index_select(0, layout.place_T)


def attend_by_kernel(q_THC: Tensor, k_UGC: Tensor, v_UGV: Tensor, spans: Spans, scale: float) -> Tensor:
    """Attention of sequences' new tokens to all of their tokens, end to end: [T, H, V]."""
    from fathom.model.kernels.prefill import packed_prefill

    return packed_prefill(q_THC, k_UGC, v_UGV, spans.start_S, spans.whole_S, scale, spans.longest)


def attend_onward(
    q_THC: Tensor, k_TGC: Tensor, v_TGV: Tensor, k_YGC: Tensor, v_YGV: Tensor, layout: Layout, scale: float
) -> Tensor:
    """Attention of tokens that continue sequences, to their past (Y, all sequences' end to end) and causally to each
    other: [T, H, V]."""
    v_width = v_TGV.shape[2]
    width = max(q_THC.shape[2], v_width)
    q, k, v, k_past, v_past = (
        F.pad(t, (0, width - t.shape[2])) if t.shape[2] < width else t for t in (q_THC, k_TGC, v_TGV, k_YGC, v_YGV))
    outputs, before = [], 0
    for piece in layout.pieces:
        now, then = slice(piece.begin, piece.end), slice(before, before + piece.past)
        before += piece.past
        o = F.scaled_dot_product_attention(
            q[now].transpose(0, 1)[None], torch.cat((k_past[then], k[now])).transpose(0, 1)[None],
            torch.cat((v_past[then], v[now])).transpose(0, 1)[None], attn_mask=piece.seen, scale=scale,
            enable_gqa=k.shape[1] != q.shape[1])
        outputs.append(o[0].transpose(0, 1)[..., :v_width])
    return torch.cat(outputs)


def remember(layout: Layout, layer: int, *entries_TGC: Tensor) -> None:
    """Writes tokens' cache entries, each [T, G, C], where the layout says; nothing without a cache."""
    if layout.pages is not None and layout.cells is not None:
        for stored, entry in zip(layout.pages.layers[layer], entries_TGC, strict=True):
            stored.view(-1, stored.shape[-1]).index_copy_(0, layout.cells, entry.flatten(0, 1))


def weigh_past(q_XMC: Tensor, k_XSC: Tensor, v_XSV: Tensor, past_BS: Tensor, scale: float) -> Tensor:
    """softmax(q·k · scale + past) v for M queries of one token, [X, M, V]; X is rows times key/value heads."""
    heads = len(q_XMC) // len(past_BS)
    past_X1S = (past_BS if heads == 1 else past_BS.repeat_interleave(heads, dim=0))[:, None, :]
    scores_XMS = torch.baddbmm(past_X1S, q_XMC, k_XSC.mT, alpha=scale)
    weights_XMS = scores_XMS.softmax(-1, dtype=full_precision(scores_XMS.dtype))
    return torch.bmm(weights_XMS.to(v_XSV.dtype), v_XSV)


def weigh_past_in_pieces(q: Tensor, k: Tensor, v: Tensor, past_BS: Tensor, scale: float, size: int) -> Tensor:
    """`weigh_past` by `size` positions at a time, the last piece full, too: what a row gets does not depend on how
    many positions stand behind its end."""
    exact = full_precision(q.dtype)
    heads = len(q) // len(past_BS)
    past_X1S = (past_BS if heads == 1 else past_BS.repeat_interleave(heads, dim=0))[:, None, :]
    most_XM1 = torch.full((*q.shape[:2], 1), float("-inf"), dtype=exact, device=q.device)
    total_XM1 = torch.zeros_like(most_XM1)
    sum_XMV = torch.zeros(*q.shape[:2], v.shape[2], dtype=exact, device=q.device)
    for at in range(0, past_BS.shape[1], size):
        piece = slice(at, at + size)
        scores = torch.baddbmm(past_X1S[..., piece], q, k[:, piece].mT, alpha=scale).to(exact)
        higher_XM1 = torch.maximum(most_XM1, scores.max(-1, keepdim=True).values)
        weights, kept_XM1 = (scores - higher_XM1).exp(), (most_XM1 - higher_XM1).exp()
        total_XM1 = total_XM1 * kept_XM1 + weights.sum(-1, keepdim=True)
        sum_XMV = sum_XMV * kept_XM1 + torch.bmm(weights.to(v.dtype), v[:, piece])
        most_XM1 = higher_XM1
    return (sum_XMV / total_XM1).to(v.dtype)


def latent_rows(q_BHC: Tensor, layout: Layout, layer: int, latent: int, scale: float) -> Tensor:
    """Absorbed attention of single tokens to latents in the cache: z [B, H, R]."""
    rows = layout.decoding
    assert rows is not None and layout.pages is not None
    if not rows.parts:
        from fathom.model.kernels.decode import paged_latent_decode

        (pool,) = layout.pages.layers[layer]
        return paged_latent_decode(q_BHC, pool, rows.table_BN, rows.length_B, latent, scale, rows.piece or None)
    found = []
    for part in rows.parts:
        (past_BSC,) = layout.recall_rows(layer, part)
        found.append(_weigh(q_BHC[part.begin: part.end], past_BSC, past_BSC[..., :latent], part.past_BS, scale,
                            rows.piece))
    return torch.cat(found) if len(found) > 1 else found[0]


def grouped_rows(q_BHC: Tensor, layout: Layout, layer: int, groups: int, scale: float) -> Tensor:
    """Attention of single tokens to keys and values in the cache: [B, H, C]."""
    rows = layout.decoding
    assert rows is not None and layout.pages is not None
    if not rows.parts:
        from fathom.model.kernels.decode import paged_grouped_decode

        k_pool, v_pool = layout.pages.layers[layer]
        return paged_grouped_decode(
            q_BHC, k_pool, v_pool, rows.table_BN, rows.length_B, scale, rows.piece or None)
    heads, width = q_BHC.shape[1:]
    found = []
    for part in rows.parts:
        k_XSC, v_XSC = layout.recall_rows(layer, part)
        q_XMC = q_BHC[part.begin: part.end].reshape(-1, heads // groups, width)
        found.append(_weigh(q_XMC, k_XSC, v_XSC, part.past_BS, scale, rows.piece).view(-1, heads, width))
    return torch.cat(found) if len(found) > 1 else found[0]


def _weigh(q_XMC: Tensor, k_XSC: Tensor, v_XSV: Tensor, past_BS: Tensor, scale: float, piece: int) -> Tensor:
    if piece:
        return weigh_past_in_pieces(q_XMC, k_XSC, v_XSV, past_BS, scale, piece)
    return weigh_past(q_XMC, k_XSC, v_XSV, past_BS, scale)


class LatentAttention(nn.Module):
    """Multi-head latent attention (DeepSeek-V2 §2.1): keys and values grow out of one latent that the cache keeps.

    Training and prefill use the expanded form (ordinary attention with keys of width nope + rope); decoding uses the
    absorbed form: the query is carried into the latent's space, and the cache is read as it is.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads = config.num_attention_heads
        self.nope, self.rope, self.v_dim = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        self.latent, self.interleave = config.kv_lora_rank, config.rope_interleave
        self.scale = config.softmax_scale
        width = self.heads * config.qk_head_dim
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        else:
            self.q_a_proj = nn.Linear(config.hidden_size, config.q_lora_rank, bias=False)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, LATENT_EPS)
            self.q_b_proj = nn.Linear(config.q_lora_rank, width, bias=False)
        self.compress_query = config.q_lora_rank is not None
        self.kv_a_proj_with_mqa = nn.Linear(config.hidden_size, self.latent + self.rope, bias=False)
        self.kv_a_layernorm = RMSNorm(self.latent, LATENT_EPS)
        self.kv_b_proj = nn.Linear(self.latent, self.heads * (self.nope + self.v_dim), bias=False)
        self.o_proj = nn.Linear(self.heads * self.v_dim, config.hidden_size, bias=False)

    def forward(self, x_TD: Tensor, layout: Layout, cos_sin: tuple[Tensor, Tensor], layer: int) -> Tensor:
        """Attention's contribution to the residual stream, [T, D]."""
        q_TD = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_TD))) if self.compress_query else self.q_proj(x_TD)
        q_nope_THC, q_rope_THP = q_TD.view(-1, self.heads, self.nope + self.rope).split((self.nope, self.rope), dim=-1)
        q_rope_THP = rotate(q_rope_THP, cos_sin, self.interleave)
        c_TR, k_rope_TP = self.kv_a_proj_with_mqa(x_TD).split((self.latent, self.rope), dim=-1)
        c_TR = self.kv_a_layernorm(c_TR)  # the latent only: the rotary key is shared by all heads and not normalised
        k_rope_T1P = rotate(k_rope_TP[:, None, :], cos_sin, self.interleave)
        if layout.pages is not None:
            remember(layout, layer, torch.cat((c_TR[:, None, :], k_rope_T1P), dim=-1))
        if layout.decoding is not None:
            o_THV = self._absorbed(q_nope_THC, q_rope_THP, layout, layer)
        else:
            o_THV = self._expanded(torch.cat((q_nope_THC, q_rope_THP), dim=-1), c_TR, k_rope_T1P, layout, layer)
        y_TD: Tensor = self.o_proj(o_THV.reshape(-1, self.heads * self.v_dim))
        return y_TD

    def _expanded(self, q_THC: Tensor, c_TR: Tensor, k_rope_T1P: Tensor, layout: Layout, layer: int) -> Tensor:
        if layout.past is None:
            return attend(q_THC, *self._grow(c_TR, k_rope_T1P), layout, self.scale)
        (entry_YC,) = layout.recall(layer, layout.past)
        if layout.spans is not None:  # what was recalled are all tokens, the new ones too
            k, v = self._grow(entry_YC[:, : self.latent], entry_YC[:, None, self.latent:])
            return attend_by_kernel(q_THC, k, v, layout.spans, self.scale)
        k_past, v_past = self._grow(entry_YC[:, : self.latent], entry_YC[:, None, self.latent:])
        return attend_onward(q_THC, *self._grow(c_TR, k_rope_T1P), k_past, v_past, layout, self.scale)

    def _grow(self, c_TR: Tensor, k_rope_T1P: Tensor) -> tuple[Tensor, Tensor]:
        """Keys [T, H, nope + rope] and values [T, H, V] of latents and rotated shared keys."""
        kv = self.kv_b_proj(c_TR).view(-1, self.heads, self.nope + self.v_dim)
        k_nope, v = kv.split((self.nope, self.v_dim), dim=-1)
        return torch.cat((k_nope, k_rope_T1P.expand(-1, self.heads, -1)), dim=-1), v

    def _absorbed(self, q_nope_BHC: Tensor, q_rope_BHP: Tensor, layout: Layout, layer: int) -> Tensor:
        weight_HOR = effective_weight(self.kv_b_proj).view(self.heads, -1, self.latent)
        w_uk_HCR, w_uv_HVR = weight_HOR[:, : self.nope], weight_HOR[:, self.nope:]
        # (W_UK c)·q = c·(W_UKᵀ q): the two factors stay apart, their product would be larger
        q_latent_HBR = torch.bmm(q_nope_BHC.transpose(0, 1), w_uk_HCR)
        q_BHC = torch.cat((q_latent_HBR.transpose(0, 1), q_rope_BHP), dim=-1)
        z_BHR = latent_rows(q_BHC, layout, layer, self.latent, self.scale)
        return torch.bmm(z_BHR.transpose(0, 1), w_uv_HVR.mT).transpose(0, 1)


class GroupedQueryAttention(nn.Module):
    """Attention with fewer key/value heads than query heads (Llama, Qwen2, Qwen3, SmolLM2); caches rotated keys and
    values."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads, self.groups, self.width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.interleave, self.scale = config.rope_interleave, config.softmax_scale
        bias = config.qkv_bias
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.width, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, self.groups * self.width, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, self.groups * self.width, bias=bias)
        self.q_norm = RMSNorm(self.width, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.width, config.rms_norm_eps) if config.qk_norm else None
        self.o_proj = nn.Linear(self.heads * self.width, config.hidden_size, bias=False)

    def forward(self, x_TD: Tensor, layout: Layout, cos_sin: tuple[Tensor, Tensor], layer: int) -> Tensor:
        """Attention's contribution to the residual stream, [T, D]."""
        q_THC = self.q_proj(x_TD).view(-1, self.heads, self.width)
        k_TGC = self.k_proj(x_TD).view(-1, self.groups, self.width)
        if self.q_norm is not None and self.k_norm is not None:
            q_THC, k_TGC = self.q_norm(q_THC), self.k_norm(k_TGC)
        q_THC, k_TGC = rotate(q_THC, cos_sin, self.interleave), rotate(k_TGC, cos_sin, self.interleave)
        v_TGC = self.v_proj(x_TD).view(-1, self.groups, self.width)
        remember(layout, layer, k_TGC, v_TGC)
        if layout.decoding is not None:
            o_THC = grouped_rows(q_THC, layout, layer, self.groups, self.scale)
        elif layout.past is not None and (spans := layout.spans) is not None:
            from fathom.model.kernels.prefill import paged_prefill

            assert layout.pages is not None
            k_pool, v_pool = layout.pages.layers[layer]
            o_THC = paged_prefill(q_THC, k_pool, v_pool, spans.table_SN, spans.start_S, spans.past_S, self.scale,
                                  spans.longest)
        elif layout.past is not None:
            # cells hold a token's heads side by side
            k_past, v_past = (part.view(-1, self.groups, self.width) for part in layout.recall(layer, layout.past))
            o_THC = attend_onward(q_THC, k_TGC, v_TGC, k_past, v_past, layout, self.scale)
        else:
            o_THC = attend(q_THC, k_TGC, v_TGC, layout, self.scale)
        y_TD: Tensor = self.o_proj(o_THC.reshape(-1, self.heads * self.width))
        return y_TD

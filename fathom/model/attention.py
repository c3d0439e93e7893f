"""Attention over a row of tokens: latent (MLA) and grouped-query, each with its cache, chosen once at construction."""

# T tokens, H heads, D model, R latent, P rotary, S cached positions, B cache slots, N sequences of L tokens

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fathom.model.config import ModelConfig
from fathom.model.layout import Layout
from fathom.model.rope import rotate


class RMSNorm(nn.Module):
    """x / rms(x) · weight, computed in FP32."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype in (torch.float32, torch.float64):
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return (F.rms_norm(x.float(), self.weight.shape, None, self.eps) * self.weight.float()).to(x.dtype)


def attend(q_THC: Tensor, k_TGC: Tensor, v_TGV: Tensor, layout: Layout, scale: float) -> Tensor:
    """Causal attention of every token to its sequence: [T, H, V]. G key/value heads, each serving H/G query heads.

    The narrower of keys and values is padded: the CPU's flash path needs equal widths (docs/log.md).
    """
    heads, v_width = q_THC.shape[1], v_TGV.shape[2]
    width = max(q_THC.shape[2], v_width)
    padded = [F.pad(t, (0, width - t.shape[2])) if t.shape[2] < width else t for t in (q_THC, k_TGC, v_TGV)]
    outputs = []
    for rows_NL in layout.rectangles:
        n, length = rows_NL.shape
        rows = rows_NL.reshape(-1)
        q, k, v = (t.index_select(0, rows).view(n, length, t.shape[1], width).transpose(1, 2) for t in padded)
        # cells past a sequence's end come last, so causality alone keeps them from every real token
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=k.shape[1] != heads)
        outputs.append(o.transpose(1, 2).reshape(n * length, heads, width)[..., :v_width])
    assert layout.place_T is not None
    return torch.cat(outputs).index_select(0, layout.place_T)


def past_mask(layout: Layout, length: int) -> Tensor:
    """[B, S] True where slot b has a token at cached position s, this step's own included."""
    return torch.arange(length, device=layout.positions_T.device)[None, :] <= layout.positions_T[:, None]


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
        self.scale = config.qk_head_dim**-0.5
        width = self.heads * config.qk_head_dim
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        else:
            self.q_a_proj = nn.Linear(config.hidden_size, config.q_lora_rank, bias=False)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, config.rms_norm_eps)
            self.q_b_proj = nn.Linear(config.q_lora_rank, width, bias=False)
        self.compress_query = config.q_lora_rank is not None
        self.kv_a_proj_with_mqa = nn.Linear(config.hidden_size, self.latent + self.rope, bias=False)
        self.kv_a_layernorm = RMSNorm(self.latent, config.rms_norm_eps)
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
        if layout.cache is not None:
            (stored,) = layout.cache.layers[layer]
            stored[layout.slot_T, layout.positions_T] = torch.cat((c_TR, k_rope_T1P[:, 0]), dim=-1)
        if layout.reads_cache:
            o_THV = self._absorbed(q_nope_THC, q_rope_THP, layout, layer)
        else:
            o_THV = self._expanded(q_nope_THC, q_rope_THP, c_TR, k_rope_T1P, layout)
        y_TD: Tensor = self.o_proj(o_THV.reshape(-1, self.heads * self.v_dim))
        return y_TD

    def _expanded(self, q_nope: Tensor, q_rope: Tensor, c_TR: Tensor, k_rope: Tensor, layout: Layout) -> Tensor:
        kv = self.kv_b_proj(c_TR).view(-1, self.heads, self.nope + self.v_dim)
        k_nope, v = kv.split((self.nope, self.v_dim), dim=-1)
        k = torch.cat((k_nope, k_rope.expand(-1, self.heads, -1)), dim=-1)
        return attend(torch.cat((q_nope, q_rope), dim=-1), k, v, layout, self.scale)

    def _absorbed(self, q_nope_BHC: Tensor, q_rope_BHP: Tensor, layout: Layout, layer: int) -> Tensor:
        assert layout.cache is not None
        longest = int(layout.positions_T.max()) + 1
        past_BSC = layout.cache.layers[layer][0][:, :longest]
        weight_HOR = self.kv_b_proj.weight.view(self.heads, -1, self.latent)
        w_uk_HCR, w_uv_HVR = weight_HOR[:, : self.nope], weight_HOR[:, self.nope:]
        # (W_UK c)·q = c·(W_UKᵀ q): the two factors stay apart, their product would be larger
        q_latent_BHR = torch.einsum("bhc,hcr->bhr", q_nope_BHC, w_uk_HCR)
        scores_BHS = torch.cat((q_latent_BHR, q_rope_BHP), dim=-1) @ past_BSC.mT * self.scale
        scores_BHS = scores_BHS.masked_fill(~past_mask(layout, longest)[:, None, :], float("-inf"))
        weights_BHS = scores_BHS.softmax(-1, dtype=_softmax_dtype(scores_BHS)).to(past_BSC.dtype)
        z_BHR = weights_BHS @ past_BSC[..., : self.latent]
        return torch.einsum("bhr,hvr->bhv", z_BHR, w_uv_HVR)


class GroupedQueryAttention(nn.Module):
    """Attention with fewer key/value heads than query heads (Llama, Qwen2, SmolLM2); caches rotated keys and values."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads, self.groups, self.width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.interleave, self.scale = config.rope_interleave, config.head_dim**-0.5
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.groups * self.width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.groups * self.width, bias=False)
        self.o_proj = nn.Linear(self.heads * self.width, config.hidden_size, bias=False)

    def forward(self, x_TD: Tensor, layout: Layout, cos_sin: tuple[Tensor, Tensor], layer: int) -> Tensor:
        """Attention's contribution to the residual stream, [T, D]."""
        q_THC = rotate(self.q_proj(x_TD).view(-1, self.heads, self.width), cos_sin, self.interleave)
        k_TGC = rotate(self.k_proj(x_TD).view(-1, self.groups, self.width), cos_sin, self.interleave)
        v_TGC = self.v_proj(x_TD).view(-1, self.groups, self.width)
        if layout.cache is not None:
            keys, values = layout.cache.layers[layer]
            keys[layout.slot_T, layout.positions_T] = k_TGC.flatten(1)
            values[layout.slot_T, layout.positions_T] = v_TGC.flatten(1)
        o_THC = self._cached(q_THC, layout, layer) if layout.reads_cache else attend(
            q_THC, k_TGC, v_TGC, layout, self.scale)
        y_TD: Tensor = self.o_proj(o_THC.reshape(-1, self.heads * self.width))
        return y_TD

    def _cached(self, q_BHC: Tensor, layout: Layout, layer: int) -> Tensor:
        assert layout.cache is not None
        longest = int(layout.positions_T.max()) + 1
        k_BGSC, v_BGSC = (
            part[:, :longest].view(len(part), longest, self.groups, self.width).transpose(1, 2)
            for part in layout.cache.layers[layer]
        )
        q_BGMC = q_BHC.view(-1, self.groups, self.heads // self.groups, self.width)
        scores = q_BGMC @ k_BGSC.mT * self.scale
        scores = scores.masked_fill(~past_mask(layout, longest)[:, None, None, :], float("-inf"))
        weights = scores.softmax(-1, dtype=_softmax_dtype(scores)).to(v_BGSC.dtype)
        o_BHC: Tensor = (weights @ v_BGSC).flatten(1, 2)
        return o_BHC


def _softmax_dtype(scores: Tensor) -> torch.dtype:
    return torch.float64 if scores.dtype == torch.float64 else torch.float32

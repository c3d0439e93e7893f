# mypy: disable-error-code="no-untyped-def"
"""Prefill attention: new tokens of several sequences, end to end, attend causally to their past and to each other.

Keys and values come from a paged cache (grouped-query attention: past and new are in it already) or packed end to end
(latent attention in expanded form, where keys are wider than values). One kernel for both, a flash-attention forward
pass: a program holds a tile of one head's queries and passes over the keys once. Inference only.

A token's result depends on its own sequence: on no other, and for an equal `longest`, which decides how many queries
are tiled together, not on how the prompt was cut into chunks.
"""

# T new tokens, U cached and new tokens, S sequences, H query heads, G key/value heads, C key width, V value width,
# N blocks of a sequence; in kernels M queries and N keys tiled together, A and B the parts of C

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fathom.model.kernels.launch import INTERPRETED, LOG2E, Launch, kernel, tile, tl, uses_kernel


def paged_prefill(
    q_THC: Tensor, k_pool: Tensor, v_pool: Tensor, table_SN: Tensor, start_S: Tensor, past_S: Tensor, scale: float,
    longest: int,
) -> Tensor:
    """Attention of new tokens through the block table, [T, H, V].

    Sequence s has the queries start_S[s] to start_S[s+1] (S+1 numbers) at positions past_S[s], past_S[s]+1, …; its keys
    and values lie in the pools [blocks, G, block, width], the new ones too. `longest` is the most queries that a
    sequence has, known to the caller without asking the device.
    """
    if not uses_kernel(q_THC, k_pool, v_pool):
        return plain_paged_prefill(q_THC, k_pool, v_pool, table_SN, start_S, past_S, scale)
    o_THV = q_THC.new_empty(*q_THC.shape[:2], v_pool.shape[-1])
    paged_launch(q_THC, k_pool, v_pool, table_SN, start_S, past_S, scale, longest, o_THV).run()
    return o_THV


def plain_paged_prefill(
    q_THC: Tensor, k_pool: Tensor, v_pool: Tensor, table_SN: Tensor, start_S: Tensor, past_S: Tensor, scale: float
) -> Tensor:
    """The twin of `paged_prefill`."""
    out = []
    for s, (first, last) in enumerate(zip(start_S[:-1].tolist(), start_S[1:].tolist(), strict=True)):
        length = int(past_S[s]) + last - first
        k_UGC, v_UGV = (pool[table_SN[s]].transpose(0, 1).flatten(1, 2)[:, :length].transpose(0, 1)
                        for pool in (k_pool, v_pool))
        out.append(_causal(q_THC[first:last], k_UGC, v_UGV, scale))
    return torch.cat(out)


def packed_prefill(
    q_THC: Tensor, k_UGC: Tensor, v_UGV: Tensor, start_S: Tensor, kv_start_S: Tensor, scale: float, longest: int
) -> Tensor:
    """Attention of new tokens to packed keys and values, [T, H, V].

    Sequence s has the queries start_S[s] to start_S[s+1] and the keys kv_start_S[s] to kv_start_S[s+1] (S+1 numbers
    each), its queries being the last of its tokens. `longest` is the most queries that a sequence has.
    """
    if not uses_kernel(q_THC, k_UGC, v_UGV):
        return plain_packed_prefill(q_THC, k_UGC, v_UGV, start_S, kv_start_S, scale)
    o_THV = q_THC.new_empty(*q_THC.shape[:2], v_UGV.shape[-1])
    packed_launch(q_THC, k_UGC, v_UGV, start_S, kv_start_S, scale, longest, o_THV).run()
    return o_THV


def plain_packed_prefill(
    q_THC: Tensor, k_UGC: Tensor, v_UGV: Tensor, start_S: Tensor, kv_start_S: Tensor, scale: float
) -> Tensor:
    """The twin of `packed_prefill`."""
    bounds = (start_S[:-1].tolist(), start_S[1:].tolist(), kv_start_S[:-1].tolist(), kv_start_S[1:].tolist())
    return torch.cat([_causal(q_THC[a:b], k_UGC[c:d], v_UGV[c:d], scale) for a, b, c, d in zip(*bounds, strict=True)])


def _causal(q_THC: Tensor, k_UGC: Tensor, v_UGV: Tensor, scale: float) -> Tensor:
    """One sequence, whose queries are the last of its tokens."""
    new, length = len(q_THC), len(k_UGC)
    served = q_THC.shape[1] // k_UGC.shape[1]
    k_HUC, v_HUV = (t.transpose(0, 1).repeat_interleave(served, dim=0) for t in (k_UGC, v_UGV))
    scores_HTU = (q_THC.transpose(0, 1) @ k_HUC.mT).to(torch.promote_types(q_THC.dtype, torch.float32)) * scale
    ahead_TU = torch.ones(new, length, dtype=torch.bool, device=q_THC.device).triu(length - new + 1)
    weights_HTU = scores_HTU.masked_fill(ahead_TU, float("-inf")).softmax(-1)
    return (weights_HTU.to(v_HUV.dtype) @ v_HUV).transpose(0, 1)


def paged_launch(
    q_THC: Tensor, k_pool: Tensor, v_pool: Tensor, table_SN: Tensor, start_S: Tensor, past_S: Tensor, scale: float,
    longest: int, o_THV: Tensor,
) -> Launch:
    """The kernel that fills `o_THV` from pools."""
    assert k_pool.shape[:3] == v_pool.shape[:3] and table_SN.stride(1) == 1
    sources = {"table": table_SN, "past": past_S, "table_row": table_SN.stride(0)}
    for name, pool in (("k", k_pool), ("v", v_pool)):
        sources |= {f"{name}_block": pool.stride(0), f"{name}_group": pool.stride(1), f"{name}_cell": pool.stride(2)}
    return _launch(q_THC, k_pool, v_pool, start_S, scale, longest, o_THV, k_pool.shape[1], sources, k_pool.shape[2])


def packed_launch(
    q_THC: Tensor, k_UGC: Tensor, v_UGV: Tensor, start_S: Tensor, kv_start_S: Tensor, scale: float, longest: int,
    o_THV: Tensor,
) -> Launch:
    """The kernel that fills `o_THV` from packed keys and values."""
    sources = {"table": kv_start_S, "past": kv_start_S, "table_row": 0}
    for name, packed in (("k", k_UGC), ("v", v_UGV)):
        sources |= {f"{name}_block": 0, f"{name}_group": packed.stride(1), f"{name}_cell": packed.stride(0)}
    return _launch(q_THC, k_UGC, v_UGV, start_S, scale, longest, o_THV, k_UGC.shape[1], sources, 0)


def _launch(
    q_THC: Tensor, k: Tensor, v: Tensor, start_S: Tensor, scale: float, longest: int, o_THV: Tensor, groups: int,
    sources: dict[str, Any], block: int,
) -> Launch:
    heads, width, v_width = q_THC.shape[1], q_THC.shape[2], v.shape[-1]
    assert heads % groups == 0 and k.shape[-1] == width and o_THV.is_contiguous()
    assert q_THC.stride(2) == k.stride(-1) == v.stride(-1) == 1
    # a width such as 192 is two tiles of 128 and 64: one of 256 would multiply a quarter of zeros
    even = width & (width - 1) == 0
    first = tile(width) if even or width < 32 else 1 << (width.bit_length() - 1)
    wide, exact = first > 64 or v_width > 64, q_THC.dtype == torch.float32
    queries = min(tile(longest), 32 if exact else 128)
    return Launch(_prefill_kernel, (heads, -(-longest // queries), len(start_S) - 1), {
        "q": q_THC, "k": k, "v": v, "start": start_S, "out": o_THV, "scale": scale * LOG2E, "served": heads // groups,
        "heads": heads, "q_token": q_THC.stride(0), "q_head": q_THC.stride(1), **sources}, {
        "BLOCK": block, "C": width, "A": first, "B": tile(width - first) if width > first else 0, "V": v_width,
        "V_TILE": tile(v_width), "M": queries, "N": 32 if exact else 64, "UPCAST": INTERPRETED},
        warps=8 if wide and queries == 128 else 4, stages=2)


@kernel
def _prefill_kernel(
    q, k, v, table, start, past, out, scale, served, heads, q_token, q_head, table_row, k_block, k_group, k_cell,
    v_block, v_group, v_cell, BLOCK: tl.constexpr, C: tl.constexpr, A: tl.constexpr, B: tl.constexpr, V: tl.constexpr,
    V_TILE: tl.constexpr, M: tl.constexpr, N: tl.constexpr, UPCAST: tl.constexpr,
):
    """BLOCK = 0: keys and values are packed, and `past` holds where each sequence's begin."""
    head, sequence = tl.program_id(0), tl.program_id(2)
    first = tl.load(start + sequence).to(tl.int64)
    new = (tl.load(start + sequence + 1) - first).to(tl.int32)
    row = (tl.num_programs(1) - 1 - tl.program_id(1)) * M  # those who look farthest back begin
    if row >= new:
        return
    before = tl.load(past + sequence).to(tl.int64)
    if BLOCK:
        offset, earlier = tl.zeros([], tl.int64), before.to(tl.int32)
    else:
        offset, earlier = before, (tl.load(past + sequence + 1) - before).to(tl.int32) - new
    row_M = row + tl.arange(0, M)
    position_M = earlier + row_M
    a_A, v_V = tl.arange(0, A), tl.arange(0, V_TILE)
    q_M1 = (q + (first + row_M) * q_token + head * q_head)[:, None]
    real_M1 = (row_M < new)[:, None]
    q_MA = tl.load(q_M1 + a_A[None, :], mask=real_M1 & (a_A < C)[None, :], other=0.0)
    if UPCAST:  # the interpreter multiplies no BF16
        q_MA = q_MA.to(tl.float32)
    if B:
        b_B = A + tl.arange(0, B)
        q_MB = tl.load(q_M1 + b_B[None, :], mask=real_M1 & (b_B < C)[None, :], other=0.0)
        if UPCAST:
            q_MB = q_MB.to(tl.float32)
    group = (head // served).to(tl.int64)
    most_M = tl.full([M], float("-inf"), tl.float32)
    sum_M = tl.zeros([M], tl.float32)
    o_MV = tl.zeros([M, V_TILE], tl.float32)
    end = earlier + tl.minimum(row + M, new)
    for begin in range(0, end, N):
        at_N = begin + tl.arange(0, N)
        real_N = at_N < end
        if BLOCK:
            block_N = tl.load(table + sequence * table_row + at_N // BLOCK, mask=real_N, other=0).to(tl.int64)
            k_N1 = (k + block_N * k_block + group * k_group + (at_N % BLOCK) * k_cell)[:, None]
            v_N1 = (v + block_N * v_block + group * v_group + (at_N % BLOCK) * v_cell)[:, None]
        else:
            k_N1 = (k + group * k_group + (offset + at_N) * k_cell)[:, None]
            v_N1 = (v + group * v_group + (offset + at_N) * v_cell)[:, None]
        k_NA = tl.load(k_N1 + a_A[None, :], mask=real_N[:, None] & (a_A < C)[None, :], other=0.0)
        v_NV = tl.load(v_N1 + v_V[None, :], mask=real_N[:, None] & (v_V < V)[None, :], other=0.0)
        if UPCAST:
            k_NA, v_NV = k_NA.to(tl.float32), v_NV.to(tl.float32)
        score_MN = tl.dot(q_MA, tl.trans(k_NA), input_precision="ieee")
        if B:
            k_NB = tl.load(k_N1 + b_B[None, :], mask=real_N[:, None] & (b_B < C)[None, :], other=0.0)
            if UPCAST:
                k_NB = k_NB.to(tl.float32)
            score_MN = tl.dot(q_MB, tl.trans(k_NB), score_MN, input_precision="ieee")
        score_MN = tl.where(at_N[None, :] <= position_M[:, None], score_MN * scale, float("-inf"))
        new_M = tl.maximum(most_M, tl.max(score_MN, 1))
        keep_M = tl.exp2(most_M - new_M)
        weight_MN = tl.exp2(score_MN - new_M[:, None])
        sum_M = sum_M * keep_M + tl.sum(weight_MN, 1)
        o_MV = tl.dot(weight_MN.to(v_NV.dtype), v_NV, o_MV * keep_M[:, None], input_precision="ieee")
        most_M = new_M
    o_MV = o_MV / sum_M[:, None]
    tl.store(out + ((first + row_M) * heads + head)[:, None] * V + v_V[None, :], o_MV.to(out.dtype.element_ty),
             mask=real_M1 & (v_V < V)[None, :])

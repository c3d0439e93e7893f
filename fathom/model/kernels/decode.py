# mypy: disable-error-code="no-untyped-def"
"""Decoding attention over a paged cache: every row holds one new token, which attends to `length_B` cached ones.

A layer's cache is a pool of blocks, [blocks, G, block, C]; `table_BN` names each row's blocks in order. Rows are
independent, and several may belong to one sequence: each has a table row and a length of its own (≥ 1, its own token
included, which is in the cache already). Table entries past a row's last block are not read.

Programs split a row's positions between them and a second kernel adds their shares up (flash decoding); no program
waits for another and nothing is added atomically, so equal calls give equal bits. Where the split is fixed
(`fixed_split` positions), a row's shares depend on its own length alone, and with them its result: on no other row, not
on the batch's size, not on the table's width. Else the split is chosen from batch and table so that the GPU is full.
"""

# B rows, H query heads, G key/value heads, M heads tiled together, C head width, R latent, P rotary, S positions,
# N blocks of a row; in kernels N positions tiled together

from __future__ import annotations

import torch
from torch import Tensor

from fathom.model.kernels.latent_fp8 import dequantise_entries, entry_bytes
from fathom.model.kernels.launch import (
    INTERPRETED,
    LOG2E,
    Launch,
    after_those_before,
    kernel,
    starts_early,
    tile,
    tl,
    uses_kernel,
)
from fathom.model.quant import BLOCK, blocks

PROGRAMS = 128  # that a GPU is full with: about one on each of its processors
MOST_HEADS = 64  # tiled together: the sums of 64 heads × 512 channels fill the registers
ROOMY = 128 << 10  # bytes of shared memory that 64 heads' queries and 32 entries need; cards for desks have 99 KB


def paged_latent_decode(
    q_BHC: Tensor, pool: Tensor, table_BN: Tensor, length_B: Tensor, latent: int, scale: float,
    fixed_split: int | None = None,
) -> Tensor:
    """Σ softmax(q·entry · scale) entry[:latent], [B, H, R]: absorbed latent attention (DeepSeek-V2 §2.1.2).

    The pool [blocks, 1, block, R + P] holds normalised latents and rotated keys, or the bytes that `latent_fp8` makes
    of them; `q_BHC` is the query carried into the latent's space beside its rotary channels. The softmax and all sums
    are FP32.
    """
    if not (uses_kernel(q_BHC, pool) and reads_latents(pool)):
        return plain_latent_decode(q_BHC, pool, table_BN, length_B, latent, scale)
    z_BHR = q_BHC.new_empty(*q_BHC.shape[:2], latent)
    for launch in latent_launches(q_BHC, pool, table_BN, length_B, latent, scale, z_BHR, fixed_split):
        launch.run()
    return z_BHR


def plain_latent_decode(
    q_BHC: Tensor, pool: Tensor, table_BN: Tensor, length_B: Tensor, latent: int, scale: float
) -> Tensor:
    """The twin of `paged_latent_decode`."""
    entry_BSC = _gathered(pool, table_BN)[:, 0]
    if pool.dtype == torch.uint8:
        entry_BSC = dequantise_entries(entry_BSC, latent, q_BHC.dtype)
    return _weighed(q_BHC, entry_BSC, entry_BSC[..., :latent], length_B, scale)


def paged_grouped_decode(
    q_BHC: Tensor, k_pool: Tensor, v_pool: Tensor, table_BN: Tensor, length_B: Tensor, scale: float,
    fixed_split: int | None = None,
) -> Tensor:
    """Σ softmax(q·k · scale) v, [B, H, C]: G key/value heads, each read once for the H/G query heads that it serves."""
    if not uses_kernel(q_BHC, k_pool, v_pool):
        return plain_grouped_decode(q_BHC, k_pool, v_pool, table_BN, length_B, scale)
    o_BHC = q_BHC.new_empty(*q_BHC.shape[:2], v_pool.shape[-1])
    for launch in grouped_launches(q_BHC, k_pool, v_pool, table_BN, length_B, scale, o_BHC, fixed_split):
        launch.run()
    return o_BHC


def plain_grouped_decode(
    q_BHC: Tensor, k_pool: Tensor, v_pool: Tensor, table_BN: Tensor, length_B: Tensor, scale: float
) -> Tensor:
    """The twin of `paged_grouped_decode`."""
    rows, groups = len(q_BHC), k_pool.shape[1]
    k_XSC, v_XSC = (_gathered(pool, table_BN).flatten(0, 1) for pool in (k_pool, v_pool))
    q_XMC = q_BHC.reshape(rows * groups, -1, q_BHC.shape[-1])
    return _weighed(q_XMC, k_XSC, v_XSC, length_B.repeat_interleave(groups), scale).view(rows, q_BHC.shape[1], -1)


def reads_latents(pool: Tensor) -> bool:
    """Whether the kernel reads this pool: bytes need a GPU that knows FP8."""
    return not (pool.is_cuda and pool.dtype == torch.uint8) or torch.cuda.get_device_capability(pool.device) >= (8, 9)


def _roomy(q: Tensor) -> bool:
    if not q.is_cuda:
        return True
    properties = torch.cuda.get_device_properties(q.device)
    return int(getattr(properties, "shared_memory_per_block_optin", 0)) >= ROOMY  # AMD's have none and little


def _gathered(pool: Tensor, table_BN: Tensor) -> Tensor:
    """Every row's blocks end to end, [B, G, S, C]."""
    return pool[table_BN].transpose(1, 2).flatten(2, 3)


def _weighed(q_XMC: Tensor, k_XSC: Tensor, v_XSC: Tensor, length_X: Tensor, scale: float) -> Tensor:
    exact = torch.promote_types(q_XMC.dtype, torch.float32)
    past_XS = torch.arange(k_XSC.shape[1], device=q_XMC.device) < length_X[:, None]
    scores_XMS = torch.bmm(q_XMC, k_XSC.mT).to(exact) * scale
    weights_XMS = scores_XMS.masked_fill(~past_XS[:, None], float("-inf")).softmax(-1)
    # what lies in a block past the length is no number that one may rely on, and 0 · NaN is NaN
    return torch.bmm(weights_XMS.to(v_XSC.dtype), v_XSC.masked_fill(~past_XS[..., None], 0))


def latent_launches(
    q_BHC: Tensor, pool: Tensor, table_BN: Tensor, length_B: Tensor, latent: int, scale: float, z_BHR: Tensor,
    fixed_split: int | None,
) -> list[Launch]:
    """The kernels that fill `z_BHR`: one, or two where positions are split."""
    first, share, sum_BSH, split = latent_shares(q_BHC, pool, table_BN, length_B, latent, scale, z_BHR, fixed_split)
    return [first] if share is z_BHR else [first, combine_launch(share, sum_BSH, length_B, z_BHR, split)]


def latent_shares(
    q_BHC: Tensor, pool: Tensor, table_BN: Tensor, length_B: Tensor, latent: int, scale: float, z_BHR: Tensor,
    fixed_split: int | None,
) -> tuple[Launch, Tensor, Tensor, int]:
    """The kernel that attends, where it puts the shares of a row (`z_BHR` itself, where there is one) and their sums'
    logarithms, and the positions of a share."""
    rows, heads, width = q_BHC.shape
    in_bytes = pool.dtype == torch.uint8
    expected = entry_bytes(latent, width - latent) if in_bytes else width
    assert pool.shape[1] == 1 and pool.shape[3] == expected, (pool.shape, expected)
    assert q_BHC.stride(2) == pool.stride(3) == table_BN.stride(1) == 1 and length_B.is_contiguous()
    most = MOST_HEADS // 2 if q_BHC.dtype == torch.float32 else MOST_HEADS
    if not _roomy(q_BHC):
        most //= 4 if in_bytes else 2
    head_tile = tile(heads, most)
    tiles = -(-heads // head_tile)
    # as many positions as leave two programs room on a processor, and no register spills (tests: ahead of time)
    positions = 16 if q_BHC.dtype == torch.float32 else 32 if head_tile > 16 or in_bytes else 64
    split, splits = _split(rows * tiles, table_BN.shape[1] * pool.shape[2], positions, fixed_split)
    share, sum_BSH = _shares(z_BHR, splits)
    first = Launch(_latent_kernel, (rows, tiles, splits), {
        "q": q_BHC, "pool": pool, "table": table_BN, "length": length_B, "share": share, "log_sum": sum_BSH,
        "scale": scale * LOG2E, "heads": heads, "split": split, "splits": splits,
        "q_row": q_BHC.stride(0), "q_head": q_BHC.stride(1), "pool_block": pool.stride(0), "pool_cell": pool.stride(2),
        "table_row": table_BN.stride(0)}, {
        "BLOCK": pool.shape[2], "R": latent, "P": width - latent, "R_TILE": tile(latent),
        "P_TILE": tile(width - latent), "M": head_tile, "N": positions, "SCALES": blocks(latent) if in_bytes else 0,
        "Q_TILE": max(1, tile(latent) // BLOCK), "EARLY": starts_early(q_BHC), "UPCAST": INTERPRETED}, warps=8,
        stages=2 if head_tile == 16 else 3, early=starts_early(q_BHC))
    return first, share, sum_BSH, split


def grouped_launches(
    q_BHC: Tensor, k_pool: Tensor, v_pool: Tensor, table_BN: Tensor, length_B: Tensor, scale: float, o_BHC: Tensor,
    fixed_split: int | None,
) -> list[Launch]:
    """The kernels that fill `o_BHC`: one, or two where positions are split."""
    rows, heads, width = q_BHC.shape
    groups = k_pool.shape[1]
    assert heads % groups == 0 and k_pool.shape[3] == width and k_pool.shape[:3] == v_pool.shape[:3]
    assert q_BHC.stride(2) == k_pool.stride(3) == v_pool.stride(3) == table_BN.stride(1) == 1
    assert length_B.is_contiguous() and k_pool.stride() == v_pool.stride()
    served = heads // groups
    head_tile, positions = tile(served, MOST_HEADS), 64
    tiles = -(-served // head_tile)
    split, splits = _split(rows * groups * tiles, table_BN.shape[1] * k_pool.shape[2], positions, fixed_split)
    share, sum_BSH = _shares(o_BHC, splits)
    first = Launch(_grouped_kernel, (rows, groups * tiles, splits), {
        "q": q_BHC, "k_pool": k_pool, "v_pool": v_pool, "table": table_BN, "length": length_B, "share": share,
        "log_sum": sum_BSH, "scale": scale * LOG2E, "served": served, "tiles": tiles, "split": split, "splits": splits,
        "q_row": q_BHC.stride(0), "q_head": q_BHC.stride(1), "pool_block": k_pool.stride(0),
        "pool_group": k_pool.stride(1), "pool_cell": k_pool.stride(2), "table_row": table_BN.stride(0)}, {
        "BLOCK": k_pool.shape[2], "C": width, "C_TILE": tile(width), "M": head_tile, "N": positions,
        "UPCAST": INTERPRETED}, stages=3)
    return [first] if splits == 1 else [first, combine_launch(share, sum_BSH, length_B, o_BHC, split)]


def _split(programs: int, longest: int, positions: int, fixed: int | None) -> tuple[int, int]:
    """Positions of a share, whole tiles of them, and the most shares that a row can have."""
    split = longest * programs // PROGRAMS if fixed is None else fixed
    split = max(1, -(-split // positions)) * positions
    return split, -(-longest // split)


def _shares(out_BHC: Tensor, splits: int) -> tuple[Tensor, Tensor]:
    """Where shares go, [B, splits, H, C] in FP32, or the result itself where there is one, and their sums' logarithms
    [B, splits, H]."""
    rows, heads, width = out_BHC.shape
    # shares past a row's length are neither written nor read
    sum_BSH = torch.empty(rows, splits, heads, dtype=torch.float32, device=out_BHC.device)
    return out_BHC if splits == 1 else sum_BSH.new_empty(rows, splits, heads, width), sum_BSH


def combine_launch(share: Tensor, sum_BSH: Tensor, length_B: Tensor, out_BHC: Tensor, split: int) -> Launch:
    """The kernel that adds shares up."""
    rows, splits, heads, width = share.shape
    return Launch(_combine_kernel, (rows, heads), {
        "share": share, "log_sum": sum_BSH, "length": length_B, "out": out_BHC, "heads": heads, "split": split,
        "splits": splits}, {"C": width, "C_TILE": tile(width), "EARLY": starts_early(share)}, early=starts_early(share))


@kernel
def _latent_kernel(
    q, pool, table, length, share, log_sum, scale, heads, split, splits, q_row, q_head, pool_block, pool_cell,
    table_row, BLOCK: tl.constexpr, R: tl.constexpr, P: tl.constexpr, R_TILE: tl.constexpr, P_TILE: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, SCALES: tl.constexpr, Q_TILE: tl.constexpr, EARLY: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """SCALES > 0: entries are bytes, E4M3 numbers, so many FP32 scales, BF16 rotary channels."""
    after_those_before(EARLY)
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(2)
    first = part * split
    last = tl.minimum(tl.load(length + row).to(tl.int32), first + split)
    if first >= last:
        return
    head_M = tl.program_id(1) * M + tl.arange(0, M)
    r_R, p_P = tl.arange(0, R_TILE), tl.arange(0, P_TILE)
    q_M1 = (q + row * q_row + head_M * q_head)[:, None]
    real_M1 = (head_M < heads)[:, None]
    q_MR = tl.load(q_M1 + r_R[None, :], mask=real_M1 & (r_R < R)[None, :], other=0.0)
    q_MP = tl.load(q_M1 + R + p_P[None, :], mask=real_M1 & (p_P < P)[None, :], other=0.0)
    if UPCAST:  # the interpreter multiplies no BF16
        q_MR, q_MP = q_MR.to(tl.float32), q_MP.to(tl.float32)
    most_M = tl.full([M], float("-inf"), tl.float32)
    sum_M = tl.zeros([M], tl.float32)
    z_MR = tl.zeros([M, R_TILE], tl.float32)
    for start in range(first, last, N):
        at_N = start + tl.arange(0, N)
        real_N1 = (at_N < last)[:, None]
        block_N = tl.load(table + row * table_row + at_N // BLOCK, mask=at_N < last, other=0).to(tl.int64)
        entry_N1 = (pool + block_N * pool_block + (at_N % BLOCK) * pool_cell)[:, None]
        real_NR, real_NP = real_N1 & (r_R < R)[None, :], real_N1 & (p_P < P)[None, :]
        if SCALES:
            number_NR = tl.load(entry_N1.to(tl.pointer_type(tl.float8e4nv)) + r_R[None, :], mask=real_NR, other=0.0)
            q_Q = tl.arange(0, Q_TILE)
            scale_N1 = (entry_N1 + R).to(tl.pointer_type(tl.float32))
            scale_NQ = tl.load(scale_N1 + q_Q[None, :], mask=real_N1 & (q_Q < SCALES)[None, :], other=0.0)
            number_NQC = tl.reshape(number_NR.to(tl.float32), [N, Q_TILE, R_TILE // Q_TILE])
            c_NR = tl.reshape(number_NQC * scale_NQ[:, :, None], [N, R_TILE])
            rotary_N1 = (entry_N1 + R + 4 * SCALES).to(tl.pointer_type(tl.bfloat16))
            k_NP = tl.load(rotary_N1 + p_P[None, :], mask=real_NP, other=0.0)
            if not UPCAST:
                c_NR, k_NP = c_NR.to(q.dtype.element_ty), k_NP.to(q.dtype.element_ty)
        else:
            c_NR = tl.load(entry_N1 + r_R[None, :], mask=real_NR, other=0.0)
            k_NP = tl.load(entry_N1 + R + p_P[None, :], mask=real_NP, other=0.0)
        if UPCAST:
            c_NR, k_NP = c_NR.to(tl.float32), k_NP.to(tl.float32)
        score_MN = tl.dot(q_MR, tl.trans(c_NR), input_precision="ieee")
        score_MN = tl.dot(q_MP, tl.trans(k_NP), score_MN, input_precision="ieee") * scale
        score_MN = tl.where((at_N < last)[None, :], score_MN, float("-inf"))
        new_M = tl.maximum(most_M, tl.max(score_MN, 1))
        keep_M = tl.exp2(most_M - new_M)
        weight_MN = tl.exp2(score_MN - new_M[:, None])
        sum_M = sum_M * keep_M + tl.sum(weight_MN, 1)
        z_MR = tl.dot(weight_MN.to(c_NR.dtype), c_NR, z_MR * keep_M[:, None], input_precision="ieee")
        most_M = new_M
    cell_M = (row * splits + part) * heads + head_M
    z_MR = z_MR / sum_M[:, None]
    tl.store(share + cell_M[:, None] * R + r_R[None, :], z_MR.to(share.dtype.element_ty),
             mask=real_M1 & (r_R < R)[None, :])
    tl.store(log_sum + cell_M, most_M + tl.log2(sum_M), mask=head_M < heads)


@kernel
def _grouped_kernel(
    q, k_pool, v_pool, table, length, share, log_sum, scale, served, tiles, split, splits, q_row, q_head, pool_block,
    pool_group, pool_cell, table_row, BLOCK: tl.constexpr, C: tl.constexpr, C_TILE: tl.constexpr, M: tl.constexpr,
    N: tl.constexpr, UPCAST: tl.constexpr,
):
    row, group, part = tl.program_id(0).to(tl.int64), tl.program_id(1) // tiles, tl.program_id(2)
    first = part * split
    last = tl.minimum(tl.load(length + row).to(tl.int32), first + split)
    if first >= last:
        return
    number_M = tl.program_id(1) % tiles * M + tl.arange(0, M)  # among the heads that this group serves
    head_M = group * served + number_M
    c_C = tl.arange(0, C_TILE)
    real_MC = (number_M < served)[:, None] & (c_C < C)[None, :]
    q_MC = tl.load(q + row * q_row + head_M[:, None] * q_head + c_C[None, :], mask=real_MC, other=0.0)
    if UPCAST:
        q_MC = q_MC.to(tl.float32)
    most_M = tl.full([M], float("-inf"), tl.float32)
    sum_M = tl.zeros([M], tl.float32)
    o_MC = tl.zeros([M, C_TILE], tl.float32)
    for start in range(first, last, N):
        at_N = start + tl.arange(0, N)
        real_NC = (at_N < last)[:, None] & (c_C < C)[None, :]
        block_N = tl.load(table + row * table_row + at_N // BLOCK, mask=at_N < last, other=0).to(tl.int64)
        cell_NC = (block_N * pool_block + group * pool_group + (at_N % BLOCK) * pool_cell)[:, None] + c_C[None, :]
        k_NC = tl.load(k_pool + cell_NC, mask=real_NC, other=0.0)
        v_NC = tl.load(v_pool + cell_NC, mask=real_NC, other=0.0)
        if UPCAST:
            k_NC, v_NC = k_NC.to(tl.float32), v_NC.to(tl.float32)
        score_MN = tl.dot(q_MC, tl.trans(k_NC), input_precision="ieee") * scale
        score_MN = tl.where((at_N < last)[None, :], score_MN, float("-inf"))
        new_M = tl.maximum(most_M, tl.max(score_MN, 1))
        keep_M = tl.exp2(most_M - new_M)
        weight_MN = tl.exp2(score_MN - new_M[:, None])
        sum_M = sum_M * keep_M + tl.sum(weight_MN, 1)
        o_MC = tl.dot(weight_MN.to(v_NC.dtype), v_NC, o_MC * keep_M[:, None], input_precision="ieee")
        most_M = new_M
    cell_M = (row * splits + part) * (tl.num_programs(1) // tiles * served) + head_M
    tl.store(share + cell_M[:, None] * C + c_C[None, :], (o_MC / sum_M[:, None]).to(share.dtype.element_ty),
             mask=real_MC)
    tl.store(log_sum + cell_M, most_M + tl.log2(sum_M), mask=number_M < served)


@kernel
def _combine_kernel(
    share, log_sum, length, out, heads, split, splits, C: tl.constexpr, C_TILE: tl.constexpr, EARLY: tl.constexpr,
):
    """Shares in their order, weighed by their sums."""
    after_those_before(EARLY)
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    c_C = tl.arange(0, C_TILE)
    most, total = float("-inf"), 0.0
    o_C = tl.zeros([C_TILE], tl.float32)
    for part in range(0, tl.cdiv(tl.load(length + row).to(tl.int32), split)):
        cell = (row * splits + part) * heads + head
        log = tl.load(log_sum + cell)
        new = tl.maximum(most, log)
        keep, weight = tl.exp2(most - new), tl.exp2(log - new)
        o_C = o_C * keep + weight * tl.load(share + cell * C + c_C, mask=c_C < C, other=0.0)
        total = total * keep + weight
        most = new
    tl.store(out + (row * heads + head) * C + c_C, (o_C / total).to(out.dtype.element_ty), mask=c_C < C)

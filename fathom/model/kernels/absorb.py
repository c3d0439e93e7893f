# mypy: disable-error-code="no-untyped-def"
"""What stands around the attention of a latent decoding step: queries carried into the latent's space and cache
entries written before it, the latent carried out into values after it."""

# B rows, H heads, C nope channels, P rotary, R latent, V value width; in kernels M rows tiled together, O a tile of
# what comes out

from __future__ import annotations

import torch
from torch import Tensor

from fathom.model.kernels.decode import combine_launch, latent_shares, plain_latent_decode, reads_latents
from fathom.model.kernels.fused import latent_entry, plain_write_latent, turned
from fathom.model.kernels.launch import (
    INTERPRETED,
    Launch,
    after_those_before,
    kernel,
    starts_early,
    tile,
    tl,
    uses_kernel,
)
from fathom.model.rope import rotate

FEW_SHARES = 8  # up to which the kernel of the values adds them up itself


def latent_queries(
    q_BHC: Tensor, up_HCR: Tensor, entry_BC: Tensor, norm_R: Tensor, eps: float, cos_sin: tuple[Tensor, Tensor],
    interleave: bool, pool: Tensor, cell_B: Tensor,
) -> Tensor:
    """Queries as `paged_latent_decode` takes them, [B, H, R + P]: (W_UKᵀ q_nope, turned q_rope) (DeepSeek-V2 §2.1.2).

    `q_BHC` has C + P channels; `up_HCR` are the first C of each head's rows in `kv_b_proj`, and may be followed by
    others. The rows' own entries are written into the pool as `fused.write_latent` does.
    """
    if not uses_kernel(q_BHC, up_HCR, pool):
        return plain_latent_queries(q_BHC, up_HCR, entry_BC, norm_R, eps, cos_sin, interleave, pool, cell_B)
    out_BHC = torch.empty(*q_BHC.shape[:2], entry_BC.shape[1], dtype=q_BHC.dtype, device=q_BHC.device)
    queries_launch(q_BHC, up_HCR, entry_BC, norm_R, eps, cos_sin, interleave, pool, cell_B, out_BHC).run()
    return out_BHC


def plain_latent_queries(
    q_BHC: Tensor, up_HCR: Tensor, entry_BC: Tensor, norm_R: Tensor, eps: float, cos_sin: tuple[Tensor, Tensor],
    interleave: bool, pool: Tensor, cell_B: Tensor,
) -> Tensor:
    """The twin of `latent_queries`."""
    plain_write_latent(entry_BC, norm_R, eps, cos_sin, interleave, pool, cell_B)
    nope = up_HCR.shape[1]
    latent_HBR = torch.bmm(q_BHC[..., :nope].transpose(0, 1), up_HCR)
    return torch.cat((latent_HBR.transpose(0, 1), rotate(q_BHC[..., nope:], cos_sin, interleave)), dim=-1)


def latent_values(
    q_BHC: Tensor, pool: Tensor, table_BN: Tensor, length_B: Tensor, scale: float, up_HVR: Tensor
) -> Tensor:
    """W_UV (Σ softmax(q·entry · scale) latent), [B, H, V]: `paged_latent_decode`, and what makes values of it.

    `up_HVR` are rows of `kv_b_proj`, those of a head one after another.
    """
    if not (uses_kernel(q_BHC, pool, up_HVR) and reads_latents(pool)):
        return plain_latent_values(q_BHC, pool, table_BN, length_B, scale, up_HVR)
    out_BHV = torch.empty(*q_BHC.shape[:2], up_HVR.shape[1], dtype=q_BHC.dtype, device=q_BHC.device)
    for launch in values_launches(q_BHC, pool, table_BN, length_B, scale, up_HVR, out_BHV):
        launch.run()
    return out_BHV


def plain_latent_values(
    q_BHC: Tensor, pool: Tensor, table_BN: Tensor, length_B: Tensor, scale: float, up_HVR: Tensor
) -> Tensor:
    """The twin of `latent_values`."""
    z_BHR = plain_latent_decode(q_BHC, pool, table_BN, length_B, up_HVR.shape[2], scale)
    return torch.bmm(z_BHR.transpose(0, 1), up_HVR.mT).transpose(0, 1)


def queries_launch(
    q_BHC: Tensor, up_HCR: Tensor, entry_BC: Tensor, norm_R: Tensor, eps: float, cos_sin: tuple[Tensor, Tensor],
    interleave: bool, pool: Tensor, cell_B: Tensor, out_BHC: Tensor,
) -> Launch:
    """The kernel that fills `out_BHC` and writes into `pool`."""
    rows, heads, _ = q_BHC.shape
    _, nope, latent = up_HCR.shape
    cos, sin = cos_sin
    assert q_BHC.stride(2) == entry_BC.stride(1) == pool.stride(3) == up_HCR.stride(2) == 1 and pool.shape[1] == 1
    assert up_HCR.stride(1) == latent and cell_B.is_contiguous() and norm_R.is_contiguous()
    assert pool.dtype != torch.uint8
    assert cos.is_contiguous() and sin.is_contiguous() and 2 * cos.shape[1] == entry_BC.shape[1] - latent
    out, early = tile(latent, 32), starts_early(q_BHC)
    return Launch(_queries_kernel, (-(-rows // 16), heads + 1, -(-latent // out)), {
        "q": q_BHC, "up": up_HCR, "entry": entry_BC, "norm": norm_R, "cos": cos, "sin": sin, "pool": pool,
        "cell": cell_B, "out": out_BHC, "eps": eps, "rows": rows, "heads": heads, "q_row": q_BHC.stride(0),
        "q_head": q_BHC.stride(1), "up_head": up_HCR.stride(0), "entry_row": entry_BC.stride(0),
        "pool_block": pool.stride(0), "pool_cell": pool.stride(2)}, {
        "BLOCK": pool.shape[2], "C": nope, "C_TILE": tile(nope), "R": latent, "R_TILE": tile(latent), "O": out,
        "HALF": cos.shape[1], "HALF_TILE": tile(cos.shape[1]), "M": 16, "NEIGHBOURS": interleave,
        "EARLY": early, "UPCAST": INTERPRETED}, early=early)


def values_launches(
    q_BHC: Tensor, pool: Tensor, table_BN: Tensor, length_B: Tensor, scale: float, up_HVR: Tensor, out_BHV: Tensor
) -> list[Launch]:
    """The kernels that fill `out_BHV`."""
    rows, heads, _ = q_BHC.shape
    _, width, latent = up_HVR.shape
    assert up_HVR.stride(2) == 1 and up_HVR.stride(1) == latent and length_B.is_contiguous()
    z_BHR = torch.empty(rows, heads, latent, dtype=q_BHC.dtype, device=q_BHC.device)
    first, share, sum_BSH, split = latent_shares(q_BHC, pool, table_BN, length_B, latent, scale, z_BHR, None)
    found, splits, early = [first], sum_BSH.shape[1], starts_early(q_BHC)
    if splits > FEW_SHARES:
        found.append(combine_launch(share, sum_BSH, length_B, z_BHR, split))
        share, splits = z_BHR, 1
    out = tile(width, 16 if rows <= 16 or q_BHC.element_size() > 2 else 64)
    return [*found, Launch(_values_kernel, (-(-rows // 16), heads, -(-width // out)), {
        "share": share, "log_sum": sum_BSH, "length": length_B, "up": up_HVR, "out": out_BHV, "rows": rows,
        "heads": heads, "split": split, "splits": splits, "up_head": up_HVR.stride(0)}, {
        "V": width, "R": latent, "R_TILE": tile(latent), "O": out, "M": 16, "WHOLE": splits == 1, "EARLY": early,
        "UPCAST": INTERPRETED}, warps=4, early=early)]


@kernel
def _queries_kernel(
    q, up, entry, norm, cos, sin, pool, cell, out, eps, rows, heads, q_row, q_head, up_head, entry_row, pool_block,
    pool_cell, BLOCK: tl.constexpr, C: tl.constexpr, C_TILE: tl.constexpr, R: tl.constexpr, R_TILE: tl.constexpr,
    O: tl.constexpr, HALF: tl.constexpr, HALF_TILE: tl.constexpr, M: tl.constexpr,  # noqa: E741
    NEIGHBOURS: tl.constexpr, EARLY: tl.constexpr, UPCAST: tl.constexpr,
):
    """The programs of one head more write the cache's entries."""
    head, part = tl.program_id(1), tl.program_id(2)
    if head == heads:
        after_those_before(EARLY)
        for row in range(tl.program_id(0) * M + part, tl.minimum(rows, tl.program_id(0) * M + M), tl.num_programs(2)):
            latent_entry(entry + row * entry_row, norm, cos + row * HALF, sin + row * HALF, pool, tl.load(cell + row),
                         eps, pool_block, pool_cell, BLOCK, R, R_TILE, HALF, HALF_TILE, NEIGHBOURS)
    else:
        row_M = (tl.program_id(0) * M + tl.arange(0, M)).to(tl.int64)
        real_M1 = (row_M < rows)[:, None]
        q_M1 = (q + row_M * q_row + head * q_head)[:, None]
        out_M1 = (out + (row_M * heads + head) * (R + 2 * HALF))[:, None]
        c_C, r_O = tl.arange(0, C_TILE), part * O + tl.arange(0, O)
        up_CO = tl.load(up + head * up_head + c_C[:, None] * R + r_O[None, :],
                        mask=(c_C < C)[:, None] & (r_O < R)[None, :], other=0.0)
        after_those_before(EARLY)
        q_MC = tl.load(q_M1 + c_C[None, :], mask=real_M1 & (c_C < C)[None, :], other=0.0)
        if UPCAST:  # the interpreter multiplies no BF16
            latent_MO = tl.dot(q_MC.to(tl.float32), up_CO.to(tl.float32), input_precision="ieee")
        else:
            latent_MO = tl.dot(q_MC, up_CO, input_precision="ieee")
        tl.store(out_M1 + r_O[None, :], latent_MO.to(out.dtype.element_ty), mask=real_M1 & (r_O < R)[None, :])
        if part == 0:
            p_P = tl.arange(0, HALF_TILE)
            real_MP = real_M1 & (p_P < HALF)[None, :]
            a_P, b_P = (2 * p_P, 2 * p_P + 1) if NEIGHBOURS else (p_P, p_P + HALF)
            first_MP = tl.load(q_M1 + C + a_P[None, :], mask=real_MP, other=0.0)
            second_MP = tl.load(q_M1 + C + b_P[None, :], mask=real_MP, other=0.0)
            cos_MP = tl.load(cos + row_M[:, None] * HALF + p_P[None, :], mask=real_MP, other=0.0)
            sin_MP = tl.load(sin + row_M[:, None] * HALF + p_P[None, :], mask=real_MP, other=0.0)
            first_MP, second_MP = turned(first_MP, second_MP, cos_MP, sin_MP)
            tl.store(out_M1 + R + a_P[None, :], first_MP.to(out.dtype.element_ty), mask=real_MP)
            tl.store(out_M1 + R + b_P[None, :], second_MP.to(out.dtype.element_ty), mask=real_MP)


@kernel
def _values_kernel(
    share, log_sum, length, up, out, rows, heads, split, splits, up_head, V: tl.constexpr, R: tl.constexpr,
    R_TILE: tl.constexpr, O: tl.constexpr, M: tl.constexpr, WHOLE: tl.constexpr, EARLY: tl.constexpr,  # noqa: E741
    UPCAST: tl.constexpr,
):
    """Shares in their order, weighed by their sums, through O channels of one head's values."""
    head = tl.program_id(1)
    row_M = (tl.program_id(0) * M + tl.arange(0, M)).to(tl.int64)
    real_M = row_M < rows
    r_R, v_O = tl.arange(0, R_TILE), tl.program_id(2) * O + tl.arange(0, O)
    up_OR = tl.load(up + head * up_head + v_O[:, None] * R + r_R[None, :],
                    mask=(v_O < V)[:, None] & (r_R < R)[None, :], other=0.0)
    after_those_before(EARLY)
    real_MR = real_M[:, None] & (r_R < R)[None, :]
    if WHOLE:
        z_MR = tl.load(share + ((row_M * heads + head) * R)[:, None] + r_R[None, :], mask=real_MR, other=0.0)
    else:
        parts_M = tl.cdiv(tl.load(length + row_M, mask=real_M, other=1).to(tl.int32), split)
        most_M, total_M = tl.full([M], -1e30, tl.float32), tl.zeros([M], tl.float32)
        sum_MR = tl.zeros([M, R_TILE], tl.float32)
        for part in range(0, tl.max(parts_M, 0)):
            there_M = real_M & (part < parts_M)
            cell_M = (row_M * splits + part) * heads + head
            log_M = tl.load(log_sum + cell_M, mask=there_M, other=-1e30)  # of no weight beside a real one
            new_M = tl.maximum(most_M, log_M)
            keep_M, weight_M = tl.exp2(most_M - new_M), tl.exp2(log_M - new_M)
            piece_MR = tl.load(share + (cell_M * R)[:, None] + r_R[None, :], mask=real_MR & there_M[:, None], other=0.0)
            sum_MR = sum_MR * keep_M[:, None] + weight_M[:, None] * piece_MR
            total_M = total_M * keep_M + weight_M
            most_M = new_M
        z_MR = (sum_MR / total_M[:, None]).to(up.dtype.element_ty)
    if UPCAST:
        out_MO = tl.dot(z_MR.to(tl.float32), tl.trans(up_OR.to(tl.float32)), input_precision="ieee")
    else:
        out_MO = tl.dot(z_MR, tl.trans(up_OR), input_precision="ieee")
    tl.store(out + ((row_M * heads + head) * V)[:, None] + v_O[None, :], out_MO.to(out.dtype.element_ty),
             mask=real_M[:, None] & (v_O < V)[None, :])

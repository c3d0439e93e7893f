# mypy: disable-error-code="no-untyped-def"
"""Small operations of a decoding step that cost more to start than to run, joined."""

# B rows, L contributions, D model, R latent, P rotary

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.model.device import full_precision
from fathom.model.kernels.launch import Launch, after_those_before, kernel, starts_early, tile, tl, uses_kernel
from fathom.model.rope import rotate


def add_norm(x_BD: Tensor, more_BLD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The new residual stream x + Σ_l more, added up in FP32, and its RMSNorm: each [B, D]."""
    if not uses_kernel(x_BD, more_BLD, weight_D):
        return plain_add_norm(x_BD, more_BLD, weight_D, eps)
    sum_BD, y_BD = (torch.empty(x_BD.shape, dtype=x_BD.dtype, device=x_BD.device) for _ in range(2))
    add_norm_launch(x_BD, more_BLD, weight_D, eps, sum_BD, y_BD).run()
    return sum_BD, y_BD


def plain_add_norm(x_BD: Tensor, more_BLD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The twin of `add_norm`."""
    exact = full_precision(x_BD.dtype)
    sum_BD = (x_BD.to(exact) + more_BLD.sum(1, dtype=exact)).to(x_BD.dtype)
    return sum_BD, F.rms_norm(sum_BD, list(weight_D.shape), weight_D, eps)


def write_latent(
    entry_BC: Tensor, weight_R: Tensor, eps: float, cos_sin: tuple[Tensor, Tensor], interleave: bool, pool: Tensor,
    cell_B: Tensor,
) -> None:
    """Writes latent attention's cache entries: the latent normalised, the shared key turned (DeepSeek-V2 §2.1.2–2.1.3).

    `entry_BC` is what `kv_a_proj_with_mqa` gives, R latent and P rotary channels; cos and sin are [B, P/2];
    `cell_B` counts cells of the pool [blocks, 1, block, R + P] through all its blocks.
    """
    if not uses_kernel(entry_BC, weight_R, pool):
        return plain_write_latent(entry_BC, weight_R, eps, cos_sin, interleave, pool, cell_B)
    return write_latent_launch(entry_BC, weight_R, eps, cos_sin, interleave, pool, cell_B).run()


def plain_write_latent(
    entry_BC: Tensor, weight_R: Tensor, eps: float, cos_sin: tuple[Tensor, Tensor], interleave: bool, pool: Tensor,
    cell_B: Tensor,
) -> None:
    """The twin of `write_latent`."""
    latent = len(weight_R)
    c_BR = F.rms_norm(entry_BC[:, :latent], [latent], weight_R, eps)
    k_BP = rotate(entry_BC[:, None, latent:], cos_sin, interleave)[:, 0]
    block = pool.shape[2]
    pool[cell_B // block, 0, cell_B % block] = torch.cat((c_BR, k_BP), dim=-1).to(pool.dtype)


def add_norm_launch(
    x_BD: Tensor, more_BLD: Tensor, weight_D: Tensor, eps: float, sum_BD: Tensor, y_BD: Tensor
) -> Launch:
    """The kernel that fills `sum_BD` and `y_BD`."""
    rows, width = x_BD.shape
    assert x_BD.stride(1) == more_BLD.stride(2) == 1 and weight_D.is_contiguous()
    return Launch(_add_norm_kernel, (rows,), {
        "x": x_BD, "more": more_BLD, "weight": weight_D, "sum_": sum_BD, "y": y_BD, "eps": eps,
        "x_row": x_BD.stride(0), "more_row": more_BLD.stride(0), "more_one": more_BLD.stride(1)}, {
        "D": width, "D_TILE": tile(width), "L": more_BLD.shape[1], "EARLY": starts_early(x_BD)}, warps=16,
        early=starts_early(x_BD))


def write_latent_launch(
    entry_BC: Tensor, weight_R: Tensor, eps: float, cos_sin: tuple[Tensor, Tensor], interleave: bool, pool: Tensor,
    cell_B: Tensor,
) -> Launch:
    """The kernel that writes into `pool`."""
    rows, latent = len(entry_BC), len(weight_R)
    cos, sin = cos_sin
    assert entry_BC.stride(1) == pool.stride(3) == 1 and cell_B.is_contiguous() and weight_R.is_contiguous()
    assert cos.is_contiguous() and sin.is_contiguous() and 2 * cos.shape[1] == entry_BC.shape[1] - latent
    return Launch(_write_latent_kernel, (rows,), {
        "entry": entry_BC, "weight": weight_R, "cos": cos, "sin": sin, "pool": pool, "cell": cell_B, "eps": eps,
        "entry_row": entry_BC.stride(0), "pool_block": pool.stride(0), "pool_cell": pool.stride(2)}, {
        "BLOCK": pool.shape[2], "R": latent, "R_TILE": tile(latent), "HALF": cos.shape[1],
        "HALF_TILE": tile(cos.shape[1]), "NEIGHBOURS": interleave})


@kernel
def _add_norm_kernel(
    x, more, weight, sum_, y, eps, x_row, more_row, more_one, D: tl.constexpr, D_TILE: tl.constexpr, L: tl.constexpr,
    EARLY: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    d_D = tl.arange(0, D_TILE)
    real_D = d_D < D
    weight_D = tl.load(weight + d_D, mask=real_D, other=0.0).to(tl.float32)
    after_those_before(EARLY)
    x_D = tl.load(x + row * x_row + d_D, mask=real_D, other=0.0).to(tl.float32)
    more_D = tl.zeros([D_TILE], tl.float32)
    for number in tl.static_range(L):
        more_D += tl.load(more + row * more_row + number * more_one + d_D, mask=real_D, other=0.0).to(tl.float32)
    x_D += more_D
    rounded_D = x_D.to(sum_.dtype.element_ty)
    tl.store(sum_ + row * D + d_D, rounded_D, mask=real_D)
    x_D = rounded_D.to(tl.float32)  # the norm is of what the residual stream holds
    y_D = x_D * tl.rsqrt(tl.sum(x_D * x_D, 0) / D + eps) * weight_D
    tl.store(y + row * D + d_D, y_D.to(y.dtype.element_ty), mask=real_D)


@kernel
def _write_latent_kernel(
    entry, weight, cos, sin, pool, cell, eps, entry_row, pool_block, pool_cell, BLOCK: tl.constexpr, R: tl.constexpr,
    R_TILE: tl.constexpr, HALF: tl.constexpr, HALF_TILE: tl.constexpr, NEIGHBOURS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    latent_entry(entry + row * entry_row, weight, cos + row * HALF, sin + row * HALF, pool, tl.load(cell + row), eps,
                 pool_block, pool_cell, BLOCK, R, R_TILE, HALF, HALF_TILE, NEIGHBOURS)


@kernel
def latent_entry(
    entry, weight, cos, sin, pool, number, eps, pool_block, pool_cell, BLOCK: tl.constexpr, R: tl.constexpr,
    R_TILE: tl.constexpr, HALF: tl.constexpr, HALF_TILE: tl.constexpr, NEIGHBOURS: tl.constexpr,
):
    """Within a kernel: writes one row's entry to cell `number`; entry, cos and sin point to the row's own."""
    number = number.to(tl.int64)
    to = pool + number // BLOCK * pool_block + number % BLOCK * pool_cell
    r_R = tl.arange(0, R_TILE)
    c_R = tl.load(entry + r_R, mask=r_R < R, other=0.0).to(tl.float32)
    c_R = c_R * tl.rsqrt(tl.sum(c_R * c_R, 0) / R + eps)
    c_R = c_R * tl.load(weight + r_R, mask=r_R < R, other=0.0).to(tl.float32)
    tl.store(to + r_R, c_R.to(pool.dtype.element_ty), mask=r_R < R)
    p_P = tl.arange(0, HALF_TILE)  # pairs of channels: neighbours, or a half apart
    real_P = p_P < HALF
    a_P, b_P = (2 * p_P, 2 * p_P + 1) if NEIGHBOURS else (p_P, p_P + HALF)
    first_P = tl.load(entry + R + a_P, mask=real_P, other=0.0)
    second_P = tl.load(entry + R + b_P, mask=real_P, other=0.0)
    cos_P = tl.load(cos + p_P, mask=real_P, other=0.0)
    sin_P = tl.load(sin + p_P, mask=real_P, other=0.0)
    first_P, second_P = turned(first_P, second_P, cos_P, sin_P)
    tl.store(to + R + a_P, first_P.to(pool.dtype.element_ty), mask=real_P)
    tl.store(to + R + b_P, second_P.to(pool.dtype.element_ty), mask=real_P)


@kernel
def turned(first, second, cos, sin):
    """Within a kernel: both channels of pairs turned by their angles, in FP32, rounded where `rope.rotate` rounds: the
    angles, and the first of the two products."""
    kind = first.dtype
    first, second = first.to(tl.float32), second.to(tl.float32)
    cos, sin = cos.to(kind).to(tl.float32), sin.to(kind).to(tl.float32)
    return (first * cos).to(kind).to(tl.float32) - second * sin, (second * cos).to(kind).to(tl.float32) + first * sin

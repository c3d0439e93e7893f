# mypy: disable-error-code="no-untyped-def"
"""The chosen experts of a few rows, without sorting, counting or asking the device anything.

A step of decoding has B·K pairs (row, chosen expert), and its time is that of reading their weights. Every program
belongs to a pair and to a slice of its expert's width, and goes home unless its pair is the first that names the
expert; that one multiplies the rows of all pairs that do, 16 at a time, so that each weight is read once for 16 rows.
Shapes never depend on the choice, so a recorded graph may be replayed with another one; and a row's result does not
depend on what other rows choose.
"""

# B rows, K chosen experts of each, E experts, D model, I expert width; in kernels P pairs, M rows tiled together,
# O and J tiles of what comes out and goes in

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.model.kernels.launch import INTERPRETED, Launch, kernel, tile, tl, uses_kernel

MOST_PAIRS = 1024  # every program reads all of them


def decode_experts(
    x_BD: Tensor, gate_up_EOD: Tensor, down_EDI: Tensor, expert_BK: Tensor, weight_BK: Tensor
) -> Tensor:
    """Σ_k weight · down(silu(gate(x)) · up(x)) of each row's experts, [B, D]; gate and up are one tensor, O = 2·I.

    `expert_BK` names each row's experts, none twice; `weight_BK` is of any floating type. For at most MOST_PAIRS
    numbers in `expert_BK`; `moe.Experts` serves more of them better.
    """
    rows, chosen = expert_BK.shape
    if rows * chosen > MOST_PAIRS:
        raise ValueError(f"{rows} rows × {chosen} experts: at most {MOST_PAIRS} pairs; use moe.Experts for more")
    if not uses_kernel(x_BD, gate_up_EOD):
        return plain_decode_experts(x_BD, gate_up_EOD, down_EDI, expert_BK, weight_BK)
    y_PD = x_BD.new_empty(rows * chosen, x_BD.shape[1])
    for launch in launches(x_BD, gate_up_EOD, down_EDI, expert_BK, weight_BK, y_PD):
        launch.run()
    return y_PD.view(rows, chosen, -1).sum(1)


def plain_decode_experts(
    x_BD: Tensor, gate_up_EOD: Tensor, down_EDI: Tensor, expert_BK: Tensor, weight_BK: Tensor
) -> Tensor:
    """The twin of `decode_experts`: it copies the weights of every pair, a choice at a time."""
    y_BD = torch.zeros_like(x_BD)
    for expert_B, weight_B in zip(expert_BK.T, weight_BK.T, strict=True):
        gate, up = torch.bmm(gate_up_EOD[expert_B], x_BD[..., None])[..., 0].chunk(2, dim=-1)
        inner_BI = F.silu(gate) * up * weight_B.to(x_BD.dtype)[:, None]
        y_BD = y_BD + torch.bmm(down_EDI[expert_B], inner_BI[..., None])[..., 0]
    return y_BD


def launches(
    x_BD: Tensor, gate_up_EOD: Tensor, down_EDI: Tensor, expert_BK: Tensor, weight_BK: Tensor, y_PD: Tensor
) -> list[Launch]:
    """The two kernels that fill `y_PD`, every pair's share of the sum."""
    inner, width = down_EDI.shape[2], x_BD.shape[1]
    pairs, chosen = expert_BK.numel(), expert_BK.shape[1]
    assert x_BD.stride(1) == 1 and expert_BK.is_contiguous() and weight_BK.is_contiguous()
    assert gate_up_EOD.is_contiguous() and down_EDI.is_contiguous() and gate_up_EOD.shape[1:] == (2 * inner, width)
    inner_PI = x_BD.new_empty(pairs, inner)
    shared = {"D": width, "WIDTH": inner, "P": tile(pairs), "M": 16, "UPCAST": INTERPRETED}
    into = 128 if x_BD.element_size() == 2 else 64
    first = Launch(_inner_kernel, (-(-inner // tile(inner, 32)), pairs), {
        "x": x_BD, "weight": gate_up_EOD, "expert": expert_BK, "share": weight_BK, "inner": inner_PI, "pairs": pairs,
        "x_row": x_BD.stride(0)}, {"K": chosen, "TILE": tile(inner, 32), "J": tile(width, into), **shared}, stages=4)
    second = Launch(_outer_kernel, (-(-width // tile(width, 32)), pairs), {
        "inner": inner_PI, "weight": down_EDI, "expert": expert_BK, "y": y_PD, "pairs": pairs}, {
        "TILE": tile(width, 32), "J": tile(inner, into), **shared}, stages=4)
    return [first, second]


@kernel
def _inner_kernel(
    x, weight, expert, share, inner, pairs, x_row, K: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    TILE: tl.constexpr, J: tl.constexpr, P: tl.constexpr, M: tl.constexpr, UPCAST: tl.constexpr,
):
    """inner[pair] = silu(gate x) · up x · share, for O channels of one expert."""
    mine = tl.load(expert + tl.program_id(1))
    first, count = _those_of(mine, expert, pairs, P)
    if first < tl.program_id(1):
        return
    out_O = tl.program_id(0) * TILE + tl.arange(0, TILE)
    gate_O1 = (weight + mine.to(tl.int64) * (2 * WIDTH * D) + out_O * D)[:, None]
    for begin in range(0, count, M):
        pair_M, real_M = _some_of(mine, expert, pairs, begin, P, M)
        x_M1 = (x + (pair_M // K) * x_row)[:, None]
        gate_MO, up_MO = tl.zeros([M, TILE], tl.float32), tl.zeros([M, TILE], tl.float32)
        for start in range(0, D, J):
            in_J = start + tl.arange(0, J)
            real_OJ = (out_O < WIDTH)[:, None] & (in_J < D)[None, :]
            x_MJ = tl.load(x_M1 + in_J[None, :], mask=real_M[:, None] & (in_J < D)[None, :], other=0.0)
            gate_OJ = tl.load(gate_O1 + in_J[None, :], mask=real_OJ, other=0.0)
            up_OJ = tl.load(gate_O1 + WIDTH * D + in_J[None, :], mask=real_OJ, other=0.0)
            if UPCAST:  # the interpreter multiplies no BF16
                x_MJ, gate_OJ, up_OJ = x_MJ.to(tl.float32), gate_OJ.to(tl.float32), up_OJ.to(tl.float32)
            gate_MO = tl.dot(x_MJ, tl.trans(gate_OJ), gate_MO, input_precision="ieee")
            up_MO = tl.dot(x_MJ, tl.trans(up_OJ), up_MO, input_precision="ieee")
        share_M = tl.load(share + pair_M, mask=real_M, other=0.0).to(tl.float32)
        inner_MO = gate_MO / (1.0 + tl.exp(-gate_MO)) * up_MO * share_M[:, None]
        tl.store(inner + pair_M[:, None] * WIDTH + out_O[None, :], inner_MO.to(inner.dtype.element_ty),
                 mask=real_M[:, None] & (out_O < WIDTH)[None, :])


@kernel
def _outer_kernel(
    inner, weight, expert, y, pairs, D: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, J: tl.constexpr,
    P: tl.constexpr, M: tl.constexpr, UPCAST: tl.constexpr,
):
    """y[pair] = down inner[pair], for O channels of one expert."""
    mine = tl.load(expert + tl.program_id(1))
    first, count = _those_of(mine, expert, pairs, P)
    if first < tl.program_id(1):
        return
    out_O = tl.program_id(0) * TILE + tl.arange(0, TILE)
    down_O1 = (weight + mine.to(tl.int64) * (D * WIDTH) + out_O * WIDTH)[:, None]
    for begin in range(0, count, M):
        pair_M, real_M = _some_of(mine, expert, pairs, begin, P, M)
        y_MO = tl.zeros([M, TILE], tl.float32)
        for start in range(0, WIDTH, J):
            in_J = start + tl.arange(0, J)
            inner_MJ = tl.load(inner + pair_M[:, None] * WIDTH + in_J[None, :],
                               mask=real_M[:, None] & (in_J < WIDTH)[None, :], other=0.0)
            down_OJ = tl.load(down_O1 + in_J[None, :], mask=(out_O < D)[:, None] & (in_J < WIDTH)[None, :], other=0.0)
            if UPCAST:
                inner_MJ, down_OJ = inner_MJ.to(tl.float32), down_OJ.to(tl.float32)
            y_MO = tl.dot(inner_MJ, tl.trans(down_OJ), y_MO, input_precision="ieee")
        tl.store(y + pair_M[:, None] * D + out_O[None, :], y_MO.to(y.dtype.element_ty),
                 mask=real_M[:, None] & (out_O < D)[None, :])


@kernel
def _those_of(mine, expert, pairs, P: tl.constexpr):
    """The first pair that names expert `mine`, and how many do."""
    pair_P = tl.arange(0, P)
    same_P = tl.load(expert + pair_P, mask=pair_P < pairs, other=-1) == mine
    return tl.min(tl.where(same_P, pair_P, P), 0), tl.sum(same_P.to(tl.int32), 0)


@kernel
def _some_of(mine, expert, pairs, begin, P: tl.constexpr, M: tl.constexpr):
    """The pairs that name expert `mine`, from the one numbered `begin` among them: M numbers, and which are real."""
    pair_P = tl.arange(0, P)
    same_P = tl.load(expert + pair_P, mask=pair_P < pairs, other=-1) == mine
    rank_P = tl.cumsum(same_P.to(tl.int32), 0) - 1
    is_MP = (rank_P[None, :] == (begin + tl.arange(0, M))[:, None]) & same_P[None, :]
    return tl.sum(tl.where(is_MP, pair_P[None, :], 0), 1).to(tl.int64), tl.max(is_MP.to(tl.int32), 1) > 0

# mypy: disable-error-code="no-untyped-def"
"""The chosen experts of a few rows, without asking the device anything.

A step of decoding has B·K pairs (row, chosen expert), and its time is that of reading their weights. Every program
belongs to a pair and to a slice of its expert's width, and goes home unless its pair is the first that names the
expert; that one multiplies the rows of all pairs that do, some at a time, so that each weight is read once for them.
Where there are many pairs they are put in the experts' order first, and programs belong to experts. Experts that every
row goes through are further pairs of weight one. Shapes never depend on the choice, so a recorded graph may be replayed
with another one; and a row's result does not depend on what other rows choose.
"""

# B rows, K experts of each, E routed experts, S shared ones, D model, I expert width; in kernels P pairs, M rows tiled
# together, O and J tiles of what comes out and goes in

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

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

MOST_PAIRS = 4096  # of which one program can find an expert's
FEW_PAIRS = 64  # up to which every program finds its own
Shared = tuple[Tensor, Tensor, Tensor]  # gate and up [S·I, D], down [D, S·I] of S experts that every row goes through


def decode_experts(
    x_BD: Tensor, gate_up_EOD: Tensor, down_EDI: Tensor, expert_BK: Tensor, weight_BK: Tensor,
    shared: Shared | None = None,
) -> Tensor:
    """Each row's experts' contributions, weight · down(silu(gate(x)) · up(x)), [B, K, D], to be added up; gate and up
    are one tensor, O = 2·I.

    `expert_BK` names each row's experts, none twice, with `shared` those from E on; `weight_BK` is of any floating
    type. For at most MOST_PAIRS numbers in `expert_BK`; `moe.Experts` serves more of them better.
    """
    rows, chosen = expert_BK.shape
    if rows * chosen > MOST_PAIRS:
        raise ValueError(f"{rows} rows × {chosen} experts: at most {MOST_PAIRS} pairs; use moe.Experts for more")
    if not uses_kernel(x_BD, gate_up_EOD):
        return plain_decode_experts(x_BD, gate_up_EOD, down_EDI, expert_BK, weight_BK, shared)
    y_PD = torch.empty(rows * chosen, x_BD.shape[1], dtype=x_BD.dtype, device=x_BD.device)
    for launch in launches(x_BD, gate_up_EOD, down_EDI, expert_BK, weight_BK, y_PD, shared):
        launch.run()
    return y_PD.view(rows, chosen, -1)


def plain_decode_experts(
    x_BD: Tensor, gate_up_EOD: Tensor, down_EDI: Tensor, expert_BK: Tensor, weight_BK: Tensor,
    shared: Shared | None = None,
) -> Tensor:
    """The twin of `decode_experts`: it copies the weights of every pair, a choice at a time."""
    if shared is not None:
        inner, width = down_EDI.shape[2], x_BD.shape[1]
        gate_SID, up_SID = (part.view(-1, inner, width) for part in shared[:2])
        gate_up_EOD = torch.cat((gate_up_EOD, torch.cat((gate_SID, up_SID), dim=1)))
        down_EDI = torch.cat((down_EDI, shared[2].view(width, -1, inner).transpose(0, 1)))
    found = []
    for expert_B, weight_B in zip(expert_BK.T, weight_BK.T, strict=True):
        gate, up = torch.bmm(gate_up_EOD[expert_B], x_BD[..., None])[..., 0].chunk(2, dim=-1)
        inner_BI = F.silu(gate) * up * weight_B.to(x_BD.dtype)[:, None]
        found.append(torch.bmm(down_EDI[expert_B], inner_BI[..., None])[..., 0])
    return torch.stack(found, dim=1)


def launches(
    x_BD: Tensor, gate_up_EOD: Tensor, down_EDI: Tensor, expert_BK: Tensor, weight_BK: Tensor, y_PD: Tensor,
    shared: Shared | None = None,
) -> list[Launch]:
    """The kernels that fill `y_PD`, every pair's contribution."""
    experts, width, inner = down_EDI.shape
    pairs, chosen = expert_BK.numel(), expert_BK.shape[1]
    assert x_BD.stride(1) == 1 and expert_BK.is_contiguous() and weight_BK.is_contiguous()
    assert gate_up_EOD.is_contiguous() and down_EDI.is_contiguous() and gate_up_EOD.shape[1:] == (2 * inner, width)
    more = 0 if shared is None else len(shared[0]) // inner
    gate, up, down = shared or (gate_up_EOD, gate_up_EOD, down_EDI)
    assert gate.is_contiguous() and up.is_contiguous() and down.is_contiguous()
    inner_PI = torch.empty(pairs, inner, dtype=x_BD.dtype, device=x_BD.device)
    early, exact, sort = starts_early(x_BD), x_BD.element_size() > 2, pairs > FEW_PAIRS
    order_P, begin_E = (torch.empty(n if sort else 1, dtype=torch.int32, device=x_BD.device)
                        for n in (pairs, experts + more + 1))
    programs = experts + more if sort else pairs
    rows = 16 if exact or pairs <= 16 * programs else 32 if pairs <= 32 * programs else 64
    fixed = {"D": width, "WIDTH": inner, "P": tile(pairs), "M": rows, "E": experts, "SHARED": more, "SORTED": sort,
             "EARLY": early, "UPCAST": INTERPRETED}
    # channels of a program, and of a step of it: what was fastest on an H200 (bench/kernels.py, docs/log.md)
    to_inner = (64, 64, 4) if inner >= 1024 and not exact else (32, 64 if exact else 256, 3)
    to_width = (32, 64, 4) if exact else (64, 64, 4)
    sources = {"expert": expert_BK, "order": order_P, "begin": begin_E, "pairs": pairs}
    ranks = Launch(_rank_kernel, (experts + more,), sources, {"P": tile(pairs), "EARLY": early}, early=early)
    first = Launch(_inner_kernel, (-(-inner // tile(inner, to_inner[0])), programs), {
        "x": x_BD, "weight": gate_up_EOD, "shared_gate": gate, "shared_up": up, "share": weight_BK, "inner": inner_PI,
        "x_row": x_BD.stride(0), **sources}, {
        "K": chosen, "TILE": tile(inner, to_inner[0]), "J": tile(width, to_inner[1]), **fixed}, stages=to_inner[2],
        early=early)
    second = Launch(_outer_kernel, (-(-width // tile(width, to_width[0])), programs), {
        "inner": inner_PI, "weight": down_EDI, "shared_down": down, "y": y_PD, **sources}, {
        "TILE": tile(width, to_width[0]), "J": tile(inner, to_width[1]), **fixed}, stages=to_width[2], early=early)
    return [ranks, first, second] if sort else [first, second]


@kernel
def _rank_kernel(expert, order, begin, pairs, P: tl.constexpr, EARLY: tl.constexpr):
    """Pairs expert by expert: `order` their numbers, `begin` where each expert's are. A program for each expert."""
    after_those_before(EARLY)
    mine = tl.program_id(0)
    pair_P = tl.arange(0, P)
    expert_P = tl.load(expert + pair_P, mask=pair_P < pairs, other=1 << 30).to(tl.int32)
    same_P = expert_P == mine
    first = tl.sum((expert_P < mine).to(tl.int32), 0)
    tl.store(order + first + tl.cumsum(same_P.to(tl.int32), 0) - 1, pair_P, mask=same_P)
    tl.store(begin + mine, first)
    if mine == tl.num_programs(0) - 1:
        tl.store(begin + mine + 1, first + tl.sum(same_P.to(tl.int32), 0))


@kernel
def _inner_kernel(
    x, weight, shared_gate, shared_up, share, inner, x_row, expert, order, begin, pairs, K: tl.constexpr,
    D: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, J: tl.constexpr, P: tl.constexpr, M: tl.constexpr,
    E: tl.constexpr, SHARED: tl.constexpr, SORTED: tl.constexpr, EARLY: tl.constexpr, UPCAST: tl.constexpr,
):
    """inner[pair] = silu(gate x) · up x · share, for O channels of one expert."""
    after_those_before(EARLY)
    mine, first, count = _mine(expert, begin, pairs, P, SORTED)
    if count == 0:
        return
    out_O = tl.program_id(0) * TILE + tl.arange(0, TILE)
    gate, up = weight + mine * (2 * WIDTH * D), weight + mine * (2 * WIDTH * D) + WIDTH * D
    if SHARED:
        gate = tl.where(mine < E, gate, shared_gate + (mine - E) * (WIDTH * D))
        up = tl.where(mine < E, up, shared_up + (mine - E) * (WIDTH * D))
    gate_O1, up_O1 = (gate + out_O * D)[:, None], (up + out_O * D)[:, None]
    for at in range(0, count, M):
        pair_M, real_M = _some_of(mine, first, count, at, expert, order, pairs, P, M, SORTED)
        x_M1 = (x + (pair_M // K) * x_row)[:, None]
        gate_MO, up_MO = tl.zeros([M, TILE], tl.float32), tl.zeros([M, TILE], tl.float32)
        for start in range(0, D, J):
            in_J = start + tl.arange(0, J)
            real_OJ = (out_O < WIDTH)[:, None] & (in_J < D)[None, :]
            x_MJ = tl.load(x_M1 + in_J[None, :], mask=real_M[:, None] & (in_J < D)[None, :], other=0.0)
            gate_OJ = tl.load(gate_O1 + in_J[None, :], mask=real_OJ, other=0.0)
            up_OJ = tl.load(up_O1 + in_J[None, :], mask=real_OJ, other=0.0)
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
    inner, weight, shared_down, y, expert, order, begin, pairs, D: tl.constexpr, WIDTH: tl.constexpr,
    TILE: tl.constexpr, J: tl.constexpr, P: tl.constexpr, M: tl.constexpr, E: tl.constexpr, SHARED: tl.constexpr,
    SORTED: tl.constexpr, EARLY: tl.constexpr, UPCAST: tl.constexpr,
):
    """y[pair] = down inner[pair], for O channels of one expert."""
    after_those_before(EARLY)
    mine, first, count = _mine(expert, begin, pairs, P, SORTED)
    if count == 0:
        return
    out_O = tl.program_id(0) * TILE + tl.arange(0, TILE)
    down_O1 = (weight + mine * (D * WIDTH) + out_O * WIDTH)[:, None]
    if SHARED:  # those lie side by side in longer rows
        down_O1 = tl.where(
            mine < E, down_O1, (shared_down + (mine - E) * WIDTH + out_O * (SHARED * WIDTH))[:, None])
    for at in range(0, count, M):
        pair_M, real_M = _some_of(mine, first, count, at, expert, order, pairs, P, M, SORTED)
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
def _mine(expert, begin, pairs, P: tl.constexpr, SORTED: tl.constexpr):
    """The expert that this program multiplies by, where its pairs begin, and how many it has: none, where another
    program does it."""
    if SORTED:
        mine = tl.program_id(1).to(tl.int64)
        first = tl.load(begin + mine)
        count = tl.load(begin + mine + 1) - first
    else:
        mine = tl.load(expert + tl.program_id(1)).to(tl.int64)
        pair_P = tl.arange(0, P)
        same_P = tl.load(expert + pair_P, mask=pair_P < pairs, other=-1) == mine
        first = tl.min(tl.where(same_P, pair_P, P), 0)
        count = tl.where(first < tl.program_id(1), 0, tl.sum(same_P.to(tl.int32), 0))
    return mine, first, count


@kernel
def _some_of(
    mine, first, count, at, expert, order, pairs, P: tl.constexpr, M: tl.constexpr, SORTED: tl.constexpr,
):
    """The pairs that name expert `mine`, from the one numbered `at` among them: M numbers, and which are real."""
    number_M = at + tl.arange(0, M)
    real_M = number_M < count
    if SORTED:
        pair_M = tl.load(order + first + number_M, mask=real_M, other=0)
    else:
        pair_P = tl.arange(0, P)
        same_P = tl.load(expert + pair_P, mask=pair_P < pairs, other=-1) == mine
        rank_P = tl.cumsum(same_P.to(tl.int32), 0) - 1
        is_MP = (rank_P[None, :] == number_M[:, None]) & same_P[None, :]
        pair_M = tl.sum(tl.where(is_MP, pair_P[None, :], 0), 1)
    return pair_M.to(tl.int64), real_M

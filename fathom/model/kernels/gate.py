# mypy: disable-error-code="no-untyped-def"
"""The router of a few rows in two kernels: affinities in FP32, then the experts chosen and weighed."""

# B rows, D model, E experts, K chosen, L chosen and shared ones; in kernels tiles of M rows, J channels and O experts

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
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

if TYPE_CHECKING:
    from fathom.model.moe import Gate


def choose_experts(x_BD: Tensor, gate: Gate, shared: int = 0) -> tuple[Tensor, Tensor]:
    """Each row's experts [B, L] int64 and their weights [B, L] FP32, as `moe.Gate` chooses them (of equal scores the
    first); behind them `shared` more, numbered on from the last routed one, which weigh one."""
    if not uses_kernel(x_BD, gate.weight):
        return plain_choose_experts(x_BD, gate, shared)
    expert_BL = torch.empty(len(x_BD), gate.chosen + shared, dtype=torch.int64, device=x_BD.device)
    weight_BL = torch.empty(expert_BL.shape, dtype=torch.float32, device=x_BD.device)
    for launch in launches(x_BD, gate, expert_BL, weight_BL):
        launch.run()
    return expert_BL, weight_BL


def plain_choose_experts(x_BD: Tensor, gate: Gate, shared: int = 0) -> tuple[Tensor, Tensor]:
    """The twin of `choose_experts`."""
    score_BE, expert_BK, weight_BK = gate(x_BD)
    more = torch.arange(shared, device=x_BD.device) + score_BE.shape[1]
    return (torch.cat((expert_BK, more.expand(len(x_BD), -1)), dim=1),
            torch.cat((weight_BK, torch.ones_like(weight_BK[:, :1]).expand(-1, shared)), dim=1))


def launches(x_BD: Tensor, gate: Gate, expert_BL: Tensor, weight_BL: Tensor) -> list[Launch]:
    """The two kernels that fill `expert_BL` and `weight_BL`."""
    rows, width = x_BD.shape
    experts, early = len(gate.weight), starts_early(x_BD)
    logits_BE = torch.empty(rows, experts, dtype=torch.float32, device=x_BD.device)
    assert x_BD.stride(1) == 1 and gate.weight.is_contiguous()
    first = Launch(_affinity_kernel, (-(-experts // 16), -(-rows // 16)), {
        "x": x_BD, "weight": gate.weight, "logits": logits_BE, "rows": rows, "experts": experts,
        "x_row": x_BD.stride(0)}, {
        "D": width, "M": 16, "O": 16, "J": tile(width, 256 if x_BD.element_size() == 2 else 64),
        "EARLY": early, "UPCAST": INTERPRETED}, stages=4, early=early)
    bias = gate.e_score_correction_bias
    second = Launch(_choose_kernel, (rows,), {
        "logits": logits_BE, "bias": logits_BE if bias is None else bias, "expert": expert_BL, "weight": weight_BL,
        "scaling": float(gate.scaling)}, {
        "E": experts, "E_TILE": tile(experts), "K": gate.chosen, "L": expert_BL.shape[1],
        "L_TILE": tile(expert_BL.shape[1]), "SIGMOID": gate.score is torch.sigmoid, "BIASED": bias is not None,
        "NORMALISED": gate.normalised, "GROUPS": gate.groups, "KEPT": gate.kept_groups, "JUDGES": gate.judged_by,
        "EARLY": early}, warps=1, early=early)
    return [first, second]


@kernel
def _affinity_kernel(
    x, weight, logits, rows, experts, x_row, D: tl.constexpr, M: tl.constexpr, O: tl.constexpr,  # noqa: E741
    J: tl.constexpr, EARLY: tl.constexpr, UPCAST: tl.constexpr,
):
    after_those_before(EARLY)
    expert_O = tl.program_id(0) * O + tl.arange(0, O)
    row_M = tl.program_id(1) * M + tl.arange(0, M)
    logit_MO = tl.zeros([M, O], tl.float32)
    for start in range(0, D, J):
        in_J = start + tl.arange(0, J)
        x_MJ = tl.load(x + row_M[:, None].to(tl.int64) * x_row + in_J[None, :],
                       mask=(row_M < rows)[:, None] & (in_J < D)[None, :], other=0.0)
        w_OJ = tl.load(weight + expert_O[:, None] * D + in_J[None, :],
                       mask=(expert_O < experts)[:, None] & (in_J < D)[None, :], other=0.0)
        if UPCAST:  # the interpreter multiplies no BF16
            x_MJ, w_OJ = x_MJ.to(tl.float32), w_OJ.to(tl.float32)
        logit_MO = tl.dot(x_MJ, tl.trans(w_OJ), logit_MO, input_precision="ieee")  # products of BF16 are exact
    tl.store(logits + row_M[:, None] * experts + expert_O[None, :], logit_MO,
             mask=(row_M < rows)[:, None] & (expert_O < experts)[None, :])


@kernel
def _choose_kernel(
    logits, bias, expert, weight, scaling, E: tl.constexpr, E_TILE: tl.constexpr, K: tl.constexpr, L: tl.constexpr,
    L_TILE: tl.constexpr, SIGMOID: tl.constexpr, BIASED: tl.constexpr, NORMALISED: tl.constexpr, GROUPS: tl.constexpr,
    KEPT: tl.constexpr, JUDGES: tl.constexpr, EARLY: tl.constexpr,
):
    after_those_before(EARLY)
    row = tl.program_id(0).to(tl.int64)
    e_E, l_L = tl.arange(0, E_TILE), tl.arange(0, L_TILE)
    real_E = e_E < E
    logit_E = tl.load(logits + row * E + e_E, mask=real_E, other=float("-inf"))
    if SIGMOID:
        score_E = 1.0 / (1.0 + tl.exp(-logit_E))
    else:
        score_E = tl.exp(logit_E - tl.max(logit_E, 0))
        score_E = score_E / tl.sum(score_E, 0)
    choice_E = score_E
    if BIASED:
        choice_E += tl.load(bias + e_E, mask=real_E, other=0.0)
    choice_E = tl.where(real_E, choice_E, float("-inf"))
    if KEPT < GROUPS:
        group_E = e_E // (E // GROUPS)
        best_E = tl.full([E_TILE], float("-inf"), tl.float32)  # what is said for the group that an expert is in
        for group in tl.static_range(GROUPS):
            in_E = tl.where(group_E == group, choice_E, float("-inf"))
            said = tl.max(in_E, 0)
            if JUDGES == 2:
                said += tl.max(tl.where(e_E == tl.argmax(in_E, 0), float("-inf"), in_E), 0)
            best_E = tl.where((group_E == group) & real_E, said, best_E)
        kept_E = e_E < 0
        for _ in tl.static_range(KEPT):
            same_E = group_E == tl.argmax(best_E, 0) // (E // GROUPS)
            kept_E = kept_E | same_E
            best_E = tl.where(same_E, float("-inf"), best_E)
        choice_E = tl.where(kept_E, choice_E, float("-inf"))
    expert_L, weight_L = E + l_L - K, tl.zeros([L_TILE], tl.float32)
    for k in tl.static_range(K):
        best = tl.argmax(choice_E, 0)
        expert_L = tl.where(l_L == k, best, expert_L)
        weight_L = tl.where(l_L == k, tl.sum(tl.where(e_E == best, score_E, 0.0), 0), weight_L)
        choice_E = tl.where(e_E == best, float("-inf"), choice_E)
    if NORMALISED:
        weight_L = weight_L / (tl.sum(weight_L, 0) + 1e-20)
    weight_L = tl.where(l_L < K, weight_L * scaling, 1.0)
    tl.store(expert + row * L + l_L, expert_L.to(tl.int64), mask=l_L < L)
    tl.store(weight + row * L + l_L, weight_L, mask=l_L < L)

"""Feed-forward layers: dense SwiGLU, and routed experts with a sigmoid gate balanced without an auxiliary loss."""

# T tokens, D model, E experts, K chosen, I expert width, S sequences

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fathom.model.config import ModelConfig
from fathom.model.device import full_precision


class SwiGLU(nn.Module):
    """down(silu(gate(x)) · up(x)), no biases."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class Gate(nn.Module):
    """Chooses K experts per token: sigmoid affinities, with a bias that takes part in the choice only.

    DeepSeek-V3 §2.1.2: the biased affinity picks, the unbiased one, normalised over the chosen, weighs. The bias is an
    FP32 buffer without gradient or decay; whoever trains moves it once per step (`train.optim.balance_experts`).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.chosen, self.scaling = config.num_experts_per_tok, config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts, dtype=torch.float32))
        self.e_score_correction_bias: Tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves the gate; the bias keeps its type and bits when the weights change theirs (`model.to(bfloat16)`)."""
        exact = self.e_score_correction_bias
        move: Callable[..., nn.Module] = super()._apply
        move(fn, recurse)
        if self.e_score_correction_bias.dtype != torch.float32:
            self.e_score_correction_bias = exact.to(self.e_score_correction_bias.device)
        return self

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Affinities [T, E], the chosen experts [T, K] and their weights [T, K]; all arithmetic in FP32."""
        exact = full_precision(x_TD.dtype)
        return self.choose(F.linear(x_TD.to(exact), self.weight.to(exact)))

    def choose(self, logits_TE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same from the gate's logits."""
        score_TE = logits_TE.sigmoid()
        # the order of equal scores must not depend on the machine's mood: top-k of distinct values is all we rely on
        expert_TK = (score_TE.detach() + self.e_score_correction_bias).topk(self.chosen, dim=-1).indices
        weight_TK = score_TE.gather(1, expert_TK)
        weight_TK = weight_TK / (weight_TK.sum(-1, keepdim=True) + 1e-20) * self.scaling
        return score_TE, expert_TK, weight_TK


class Experts(nn.Module):
    """E SwiGLU experts in two tensors: gate and up [E, 2I, D], down [E, D, I]."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        experts, width, inner = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * inner, width))
        self.down_proj = nn.Parameter(torch.empty(experts, width, inner))

    def forward(self, x_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor) -> Tensor:
        """Σ_k weight · expert(x), [T, D]. Tokens are sorted by expert, so each expert multiplies one block."""
        order = expert_TK.flatten().argsort(stable=True)  # the (token, choice) pairs, expert by expert
        counts = torch.bincount(expert_TK.flatten(), minlength=self.gate_up_proj.shape[0])
        back_TK = torch.empty_like(order)
        back_TK[order] = torch.arange(len(order), device=order.device)
        back_TK = back_TK.view_as(expert_TK)
        token = order // expert_TK.shape[1]
        gate, up = self.times("gate_up_proj", dispatch(x_TD, token, back_TK), counts).chunk(2, dim=-1)
        # the weights enter where rows are narrow: the matrix that follows is linear
        inner = F.silu(gate) * up * weight_TK.to(x_TD.dtype).flatten().index_select(0, order)[:, None]
        return combine(self.times("down_proj", inner, counts), token, back_TK)

    def times(self, name: str, x: Tensor, counts_E: Tensor) -> Tensor:
        """Rows of `x`, sorted by expert, through each expert's matrix `gate_up_proj` or `down_proj`."""
        return grouped_matmul(x, getattr(self, name).mT, counts_E)

    def effective(self, name: str) -> Tensor:
        """The tensor that `times` multiplies by, adapters added: for those who read weights and call no forward."""
        weight: Tensor = getattr(self, name)
        return weight


class _Dispatch(torch.autograd.Function):
    """x [T, D] ↦ rows [T·K, D] in the experts' order; `token` [T·K] names each row's token, `back` [T, K] its place.

    The adjoint of `_Combine`: knowing that `token` and `back` belong together, neither direction scatters.
    """

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, token: Tensor, back_TK: Tensor) -> Tensor:
        ctx.save_for_backward(token, back_TK)
        return x_TD.index_select(0, token)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _sum_rows(grads[0], ctx.saved_tensors[1]), None, None


class _Combine(torch.autograd.Function):
    """rows [T·K, D] in the experts' order ↦ their sum for each token, [T, D]; see `_Dispatch`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, token: Tensor, back_TK: Tensor) -> Tensor:
        ctx.save_for_backward(token, back_TK)
        return _sum_rows(rows, back_TK)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0].index_select(0, ctx.saved_tensors[0]), None, None


dispatch: Callable[..., Tensor] = _Dispatch.apply
combine: Callable[..., Tensor] = _Combine.apply


def _sum_rows(rows: Tensor, back_TK: Tensor) -> Tensor:
    """Σ_k rows[back[t, k]], [T, D], gathered and added in one pass where there is a kernel for it."""
    if rows.dtype == torch.float32:
        return F.embedding_bag(back_TK, rows, mode="sum")
    return rows.index_select(0, back_TK.flatten()).view(*back_TK.shape, -1).sum(1)


def grouped_matmul(x: Tensor, weight_EIO: Tensor, counts_E: Tensor) -> Tensor:
    """Rows of `x`, sorted by group, each times its group's matrix: rows [counts[e] of e] @ weight[e].

    One fused call where the type has one and rows are whole multiples of 16 bytes, as it demands; the rest, such as
    float64 (tests against written-out loops), goes through the plain loop.
    """
    aligned = all(width * x.element_size() % 16 == 0 for width in weight_EIO.shape[1:])
    if aligned and x.dtype in (torch.bfloat16, torch.float32) and x.dtype == weight_EIO.dtype:
        return F.grouped_mm(x, weight_EIO, offs=counts_E.cumsum(0).to(torch.int32))
    pieces = torch.split(x, counts_E.tolist())
    return torch.cat([piece @ weight for piece, weight in zip(pieces, weight_EIO, strict=True)])


class MoE(nn.Module):
    """Routed experts beside shared ones (DeepSeekMoE): x ↦ shared(x) + Σ_k weight · expert(x)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate = Gate(config)
        self.experts = Experts(config)
        shared = config.n_shared_experts * config.moe_intermediate_size
        self.shared_experts = SwiGLU(config.hidden_size, shared) if shared else None

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The layer's output [T, D], the affinities [T, E] and the chosen experts [T, K]."""
        score_TE, expert_TK, weight_TK = self.gate(x_TD)
        y_TD = self.experts(x_TD, expert_TK, weight_TK)
        if self.shared_experts is not None:
            y_TD = y_TD + self.shared_experts(x_TD)
        return y_TD, score_TE, expert_TK


def sequence_balance(score_TE: Tensor, chosen: int, sequence_T: Tensor, sequences: int) -> Tensor:
    """Σ_i f_i P_i of each sequence, [S]: 1 when the load is even (DeepSeek-V3 §2.1.2, without its α).

    f_i counts how often expert i is among the plain top K of the unbiased affinities, as printed in the paper; the
    gradient flows through P, the mean normalised affinity.
    """
    experts = score_TE.shape[1]
    tokens_S1 = torch.bincount(sequence_T, minlength=sequences).clamp(min=1)[:, None]
    plain_TE = torch.zeros_like(score_TE).scatter_(1, score_TE.detach().topk(chosen, dim=-1).indices, 1.0)
    zero_SE = score_TE.new_zeros(sequences, experts)
    f_SE = zero_SE.index_add(0, sequence_T, plain_TE) * experts / (chosen * tokens_S1)
    share_TE = score_TE / score_TE.sum(-1, keepdim=True)
    p_SE = zero_SE.index_add(0, sequence_T, share_TE) / tokens_S1
    return (f_SE * p_SE).sum(-1)

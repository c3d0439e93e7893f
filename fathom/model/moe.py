"""Feed-forward layers: dense SwiGLU, and routed experts behind a gate; what keeps their load even."""

# T tokens, D model, E experts, K chosen, I expert width, S sequences, G groups of experts (devices)

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fathom.model.config import ModelConfig
from fathom.model.device import full_precision

UNSORTED_PAIRS = 1024  # of token and expert, up to which they are not sorted on a GPU


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
    """Chooses K experts per token and weighs them by their affinity.

    V2 (§2.1.2–2.1.3): softmax affinities choose and weigh as they are; a token's experts lie in the few groups whose
    best expert is best. V3 (§2.1.2): sigmoid affinities plus a bias choose, in the groups whose best two sum highest;
    the unbiased ones, divided by their sum, weigh. The bias is an FP32 buffer without gradient or decay; whoever trains
    moves it once per step (`train.optim.balance_experts`).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.chosen, self.scaling = config.num_experts_per_tok, config.routed_scaling_factor
        self.score: Callable[[Tensor], Tensor] = torch.sigmoid if config.scoring_func == "sigmoid" else _softmax
        self.normalised, self.groups, self.kept_groups = config.norm_topk_prob, config.n_group, config.topk_group
        self.judged_by = 2 if config.selection_bias else 1  # experts whose scores make their group's
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        bias = torch.zeros(config.n_routed_experts, dtype=torch.float32) if config.selection_bias else None
        self.register_buffer("e_score_correction_bias", bias)
        self.e_score_correction_bias: Tensor | None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves the gate; the bias keeps its type and bits when the weights change theirs (`model.to(bfloat16)`)."""
        exact = self.e_score_correction_bias
        move: Callable[..., nn.Module] = super()._apply
        move(fn, recurse)
        moved = self.e_score_correction_bias
        if exact is not None and moved is not None and moved.dtype != torch.float32:
            self.e_score_correction_bias = exact.to(moved.device)
        return self

    def forward(self, x_TD: Tensor, replayed_TK: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Affinities [T, E], the chosen experts [T, K] and their weights [T, K]; all arithmetic in FP32."""
        exact = full_precision(x_TD.dtype)
        return self.choose(F.linear(x_TD.to(exact), self.weight.to(exact)), replayed_TK)

    def choose(self, logits_TE: Tensor, replayed_TK: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The same from the gate's logits. `replayed_TK` are the experts to take, whatever the logits say of others."""
        score_TE = self.score(logits_TE)
        expert_TK = self.best(score_TE) if replayed_TK is None else replayed_TK
        weight_TK = score_TE.gather(1, expert_TK)
        if self.normalised:
            weight_TK = weight_TK / (weight_TK.sum(-1, keepdim=True) + 1e-20)
        return score_TE, expert_TK, weight_TK * self.scaling

    def best(self, score_TE: Tensor) -> Tensor:
        """The experts [T, K] that these affinities choose."""
        choice_TE = score_TE.detach()
        if self.e_score_correction_bias is not None:
            choice_TE = choice_TE + self.e_score_correction_bias
        if self.kept_groups < self.groups:
            choice_TE = self._in_best_groups(choice_TE)
        # the order of equal scores must not depend on the machine's mood: top-k of distinct values is all we rely on
        return choice_TE.topk(self.chosen, dim=-1).indices

    def _in_best_groups(self, choice_TE: Tensor) -> Tensor:
        """The choice scores with −∞ outside the best groups: 0 would win against negative biased scores."""
        choice_TGN = choice_TE.view(len(choice_TE), self.groups, -1)
        group_TG = choice_TGN.topk(self.judged_by, dim=-1).values.sum(-1)
        outside_TG = torch.ones_like(group_TG, dtype=torch.bool).scatter_(
            1, group_TG.topk(self.kept_groups, dim=-1).indices, False)
        inside_TGN = choice_TGN.masked_fill(outside_TG[..., None], float("-inf"))
        return inside_TGN.flatten(1)

    def counted(self, score_TE: Tensor, expert_TK: Tensor) -> Tensor:
        """The experts [T, K] that a balance loss counts: V2 those chosen, V3 (eq. 18) the top K of unbiased scores."""
        if self.e_score_correction_bias is None:
            return expert_TK
        return score_TE.detach().topk(self.chosen, dim=-1).indices


def _softmax(logits_TE: Tensor) -> Tensor:
    return logits_TE.softmax(-1)


class Experts(nn.Module):
    """E SwiGLU experts in two tensors: gate and up [E, 2I, D], down [E, D, I]."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        experts, width, inner = config.n_routed_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * inner, width))
        self.down_proj = nn.Parameter(torch.empty(experts, width, inner))

    def forward(self, x_TD: Tensor, expert_TK: Tensor, weight_TK: Tensor) -> Tensor:
        """Σ_k weight · expert(x), [T, D]. Tokens are sorted by expert, so each expert multiplies one block; few of them
        on a GPU, without a gradient, are taken as they are."""
        if x_TD.is_cuda and not torch.is_grad_enabled() and type(self) is Experts:
            from fathom.model.kernels.experts import decode_experts

            if expert_TK.numel() <= UNSORTED_PAIRS:
                return decode_experts(x_TD, self.gate_up_proj, self.down_proj, expert_TK, weight_TK).sum(1)
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

    def forward(
        self, x_TD: Tensor, dropping: Dropping | None = None, replayed_TK: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The layer's output [T, D], the affinities [T, E], the chosen experts [T, K] and, with `dropping`, which of
        these assignments were carried out [T, K]. `replayed_TK` stand in for what the gate would choose."""
        score_TE, expert_TK, weight_TK = self.gate(x_TD, replayed_TK)
        kept_TK = None
        if dropping is not None:
            kept_TK = within_capacity(
                score_TE.detach().gather(1, expert_TK), expert_TK, score_TE.shape[1], self.gate.groups, dropping)
            weight_TK = weight_TK * kept_TK
        y_TD = self.experts(x_TD, expert_TK, weight_TK)
        if self.shared_experts is not None:
            y_TD = y_TD + self.shared_experts(x_TD)
        return y_TD, score_TE, expert_TK, kept_TK


@dataclass(frozen=True)
class Dropping:
    """Token dropping in training (DeepSeek-V2 §2.1.4): how many assignments a device takes, times the even share, and
    the tokens [T] whose sequences are exempt."""

    capacity: float
    exempt_T: Tensor


def within_capacity(
    affinity_TK: Tensor, expert_TK: Tensor, experts: int, devices: int, dropping: Dropping
) -> Tensor:
    """Which assignments [T, K] their expert's device carries out: those of highest affinity up to its budget, and all
    of exempt tokens, which use the budget first. Devices hold contiguous, equal ranges of experts.

    What is dropped adds nothing to the layer's output; on one device nothing is saved by it.
    """
    assignments = expert_TK.numel()
    budget = math.ceil(dropping.capacity * assignments / devices)
    device = (expert_TK // (experts // devices)).flatten()
    exempt_TK = dropping.exempt_T[:, None].expand_as(expert_TK)
    first = (affinity_TK + 2 * exempt_TK).flatten()  # affinities are at most 1
    order = first.argsort(descending=True, stable=True)
    order = order[device[order].argsort(stable=True)]  # device by device, the highest affinity first
    sizes = torch.bincount(device, minlength=devices)
    rank = torch.empty_like(order)
    starts = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    rank[order] = torch.arange(assignments, device=order.device) - starts
    return (rank < budget).view_as(expert_TK) | exempt_TK


def sequence_balance(
    score_TE: Tensor, counted_TK: Tensor, sequence_T: Tensor, sequences: int, groups: int = 1, kept_groups: int = 1
) -> Tensor:
    """The balance terms of each sequence without their α, [1 or 3, S]; each is 1 when the load is even.

    Σ_i f_i P_i over experts (DeepSeek-V3 eq. 17–20) and, with groups of experts on devices of their own (V2 §2.1.3),
    Σ_g over devices of the mean f times P, and of the share of tokens sent there times P. f counts the experts
    `counted_TK` and has no gradient; it flows through P, the mean normalised affinity.
    """
    experts, chosen = score_TE.shape[1], counted_TK.shape[1]
    tokens_S1 = torch.bincount(sequence_T, minlength=sequences).clamp(min=1)[:, None]
    took_TE = torch.zeros_like(score_TE).scatter_(1, counted_TK, 1.0)
    zero_SE = score_TE.new_zeros(sequences, experts)
    f_SE = zero_SE.index_add(0, sequence_T, took_TE) * experts / (chosen * tokens_S1)
    p_SE = zero_SE.index_add(0, sequence_T, score_TE / score_TE.sum(-1, keepdim=True)) / tokens_S1
    terms = [(f_SE * p_SE).sum(-1)]
    if groups > 1:
        p_SG = p_SE.view(sequences, groups, -1).sum(-1)
        terms.append((f_SE.view(sequences, groups, -1).mean(-1) * p_SG).sum(-1))
        sent_TG = took_TE.view(len(took_TE), groups, -1).amax(-1)
        sent_SG = zero_SE[:, :groups].index_add(0, sequence_T, sent_TG) * groups / (kept_groups * tokens_S1)
        terms.append((sent_SG * p_SG).sum(-1))
    return torch.stack(terms)

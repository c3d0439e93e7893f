"""Log-probabilities of chosen tokens, without ever holding the logits of all rows.

The head's output is by far the widest tensor of a step: rows × vocabulary in FP32. Here it exists for a few rows at a
time, small enough for a CPU's cache, and is turned into its gradient on the spot where the loss is known to be a
weighted sum; else it is computed again in the backward pass or, on a CPU where all of it is small, kept until then.
"""

# n rows, c rows of one piece, D model, V vocabulary

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fathom.model.device import full_precision

CPU_PIECE = 1 << 22  # elements of logits at a time: as many as a processor's cache holds
GPU_PIECE = 1 << 27  # as many as keep a GPU busy
CPU_KEPT = 1 << 30  # bytes of logits that are kept rather than computed twice: memory is cheaper than products there
LEAST_ROWS = 64  # a matrix product of fewer rows does not use the machine


def log_probabilities(hidden_nD: Tensor, head_VD: Tensor, chosen_n: Tensor, temperature: float = 1.0) -> Tensor:
    """Natural log-probability of each `chosen` token, [n], softmax in FP32 (FP64 for float64 models)."""
    return _chosen(hidden_nD, head_VD, chosen_n, temperature)


def weighted_log_probability(hidden_nD: Tensor, head_VD: Tensor, chosen_n: Tensor, weight_n: Tensor) -> Tensor:
    """Σ weight · log p(chosen), a scalar; the gradient is made in the forward pass, from logits computed once."""
    return _weighted(hidden_nD, head_VD, chosen_n, weight_n)


class _Chosen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, chosen: Tensor, temperature: float) -> Tensor:
        exact = full_precision(hidden.dtype)
        logp, norm = (torch.empty(len(hidden), dtype=exact, device=hidden.device) for _ in range(2))
        small = len(hidden) * len(head) * exact.itemsize <= CPU_KEPT and hidden.device.type == "cpu"
        ctx.kept = [] if small and any(ctx.needs_input_grad[:2]) else None
        for piece, logits in _pieces(hidden, head, temperature):
            if ctx.kept is not None:
                ctx.kept.append((piece, logits))
            norm[piece] = logits.logsumexp(-1)
            logp[piece] = logits.gather(1, chosen[piece, None])[:, 0] - norm[piece]
        ctx.save_for_backward(hidden, head, chosen, norm)
        ctx.temperature = temperature
        return logp

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden, head, chosen, norm = ctx.saved_tensors
        gradient = _Gradient(hidden, head, ctx.needs_input_grad)
        scale = grads[0] / ctx.temperature
        kept, ctx.kept = ctx.kept, None  # they are overwritten: a second backward pass computes them again
        for piece, logits in kept or _pieces(hidden, head, ctx.temperature):
            gradient.add(piece, logits.sub_(norm[piece, None]).exp_(), chosen, scale)
        return gradient.hidden, gradient.of_head(), None, None


class _Weighted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
        weight = weight.to(full_precision(hidden.dtype))
        total = weight.new_zeros(())
        gradient = _Gradient(hidden, head, ctx.needs_input_grad)
        for piece, logits in _pieces(hidden, head, 1.0):
            highest = logits.amax(-1, keepdim=True)
            above = logits.gather(1, chosen[piece, None]) - highest
            sum_c1 = logits.sub_(highest).exp_().sum(-1, keepdim=True)
            total += weight[piece] @ (above - sum_c1.log())[:, 0]
            if gradient.asked:
                gradient.add(piece, logits.div_(sum_c1), chosen, weight)
        ctx.of_hidden, ctx.of_head = gradient.hidden, gradient.of_head()
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        scaled = [None if g is None else g * grads[0].to(g.dtype) for g in (ctx.of_hidden, ctx.of_head)]
        return scaled[0], scaled[1], None, None


_chosen: Callable[..., Tensor] = _Chosen.apply
_weighted: Callable[..., Tensor] = _Weighted.apply


class _Gradient:
    """Gathers ∂Σ scale·log p(chosen) piece by piece: of the hidden rows, and of the head in FP32."""

    def __init__(self, hidden: Tensor, head: Tensor, needed: tuple[bool, ...]):
        self._rows, self._weights = hidden, head
        self.asked = any(needed[:2])
        self.hidden = torch.empty_like(hidden) if needed[0] else None
        self._head = torch.zeros_like(head, dtype=full_precision(head.dtype)) if needed[1] else None

    def add(self, piece: slice, p_cV: Tensor, chosen: Tensor, scale: Tensor) -> None:
        """Takes in the probabilities of a piece (overwritten): ∂log p(chosen)/∂logits = onehot − p."""
        scale_c1 = scale[piece, None].to(p_cV.dtype)
        p_cV.mul_(-scale_c1).scatter_add_(1, chosen[piece, None], scale_c1)
        inner = p_cV.to(self._weights.dtype)
        if self.hidden is not None:
            self.hidden[piece] = inner @ self._weights
        if self._head is not None:
            if self._head.dtype == inner.dtype:
                self._head.addmm_(inner.mT, self._rows[piece])
            else:
                self._head += inner.mT @ self._rows[piece]

    def of_head(self) -> Tensor | None:
        """The head's gradient in the head's type."""
        return None if self._head is None else self._head.to(self._weights.dtype)


def _pieces(hidden: Tensor, head: Tensor, temperature: float) -> Iterator[tuple[slice, Tensor]]:
    """(rows, their logits over the temperature in FP32), piece by piece."""
    rows = max(LEAST_ROWS, (CPU_PIECE if hidden.device.type == "cpu" else GPU_PIECE) // len(head))
    for first in range(0, len(hidden), rows):
        piece = slice(first, min(first + rows, len(hidden)))
        logits = (hidden[piece] @ head.mT).to(full_precision(hidden.dtype))
        yield piece, logits if temperature == 1.0 else logits.div_(temperature)

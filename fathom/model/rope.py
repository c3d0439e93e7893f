"""Rotary position embedding: angles once per forward pass, rotation of neighbours or of halves."""

# T tokens, H heads, C rotary channels per head

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fathom.model.device import full_precision


def angles(positions_T: Tensor, channels: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin, each [T, C/2], of position × theta^(−2i/C) for a model of type `dtype`: in FP64 for float64, else in
    FP32 (angles are never BF16)."""
    exact = full_precision(dtype)
    exponent = torch.arange(0, channels, 2, device=positions_T.device, dtype=torch.float64) / channels
    frequency = (theta**-exponent).to(exact)
    phase = positions_T.to(exact)[:, None] * frequency
    return phase.cos(), phase.sin()


def rotate(x_THC: Tensor, cos_sin: tuple[Tensor, Tensor], interleave: bool) -> Tensor:
    """`x` [T, H, C] with each pair of channels turned by its angle; pairs are (2i, 2i+1) or (i, i + C/2)."""
    cos, sin = (part[:, None, :].to(x_THC.dtype) for part in cos_sin)
    turn = rotation if x_THC.requires_grad and not torch.compiler.is_compiling() else _turn
    return turn(x_THC, cos, sin, interleave)


def _turn(x: Tensor, cos: Tensor, sin: Tensor, interleave: bool) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    (a, b), (turned_a, turned_b) = (
        (t[..., 0::2], t[..., 1::2]) if interleave else t.chunk(2, dim=-1)  # DeepSeek's weights pair neighbours
        for t in (x, out)
    )
    torch.mul(a, cos, out=turned_a).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=turned_b).addcmul_(a, sin)
    return out


class _Rotation(torch.autograd.Function):
    """The gradient of a turn is the turn back: nothing of the input need be kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, interleave: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.interleave = interleave
        return _turn(x, cos, sin, interleave)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grads[0], cos, -sin, ctx.interleave), None, None, None


rotation: Callable[..., Tensor] = _Rotation.apply

"""Rotary position embedding: angles once per forward pass, rotation of neighbours or of halves."""

# T tokens, H heads, C rotary channels per head

from __future__ import annotations

import torch
from torch import Tensor


def angles(positions_T: Tensor, channels: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin, each [T, C/2], of position × theta^(−2i/C) for a model of type `dtype`: in FP64 for float64, else in
    FP32 (angles are never BF16)."""
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    exponent = torch.arange(0, channels, 2, device=positions_T.device, dtype=torch.float64) / channels
    frequency = (theta**-exponent).to(exact)
    phase = positions_T.to(exact)[:, None] * frequency
    return phase.cos(), phase.sin()


def rotate(x_THC: Tensor, cos_sin: tuple[Tensor, Tensor], interleave: bool) -> Tensor:
    """`x` [T, H, C] with each pair of channels turned by its angle; pairs are (2i, 2i+1) or (i, i + C/2)."""
    cos, sin = (part[:, None, :].to(x_THC.dtype) for part in cos_sin)
    if interleave:  # DeepSeek's released weights: adjacent channels form a pair
        even, odd = x_THC[..., 0::2], x_THC[..., 1::2]
        return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
    first, second = x_THC.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

"""Rotary position embedding: angles once per forward pass, rotation of neighbours or of halves."""

# T tokens, H heads, C rotary channels per head

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fathom.model.config import ModelConfig, RopeScaling
from fathom.model.device import full_precision


class Rotary:
    """`rotary(positions_T, dtype)`: cos and sin, each [T, C/2], of channel pairs' angles in a model of type `dtype`.

    Angles are position × frequency, in FP64 for float64 models and else in FP32, never BF16; the products are rounded
    as in the implementations that the published models were trained with. YaRN's factor on cos and sin is in them.
    """

    def __init__(self, config: ModelConfig):
        self._channels, self._theta, self._scaling = config.rotary_channels, config.rope_theta, config.rope_scaling
        self._factor = config.rope_scaling.rotary_factor if config.rope_scaling else 1.0
        self._known: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __call__(self, positions_T: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        exact = full_precision(dtype)
        place = (positions_T.device, exact)
        if place not in self._known:
            self._known[place] = frequencies(self._channels, self._theta, self._scaling, exact).to(positions_T.device)
        phase = positions_T.to(exact)[:, None] * self._known[place]
        cos, sin = phase.cos(), phase.sin()
        return (cos, sin) if self._factor == 1.0 else (cos * self._factor, sin * self._factor)


def frequencies(
    channels: int, theta: float, scaling: RopeScaling | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Radians per position of each channel pair, [C/2], computed in `dtype` on the CPU."""
    turn_time = theta ** (torch.arange(0, channels, 2, device="cpu").to(dtype) / channels)
    plain = 1.0 / turn_time
    if scaling is None:
        return plain
    if scaling.type == "llama3":
        # Llama 3: what turns often over the old length stays, what hardly turns is divided, and smoothly in between
        turns = scaling.original_max_position_embeddings * plain / (2 * math.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        stays = ((turns - low) / (high - low)).clamp(0, 1)
        return (1 - stays) * plain / scaling.factor + stays * plain
    # YaRN (Peng et al. 2023 §3.2): the same with a ramp over channel numbers instead of turns
    low, high = (_channel(turns, channels, theta, scaling) for turns in (scaling.beta_fast, scaling.beta_slow))
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, channels - 1)
    pairs = torch.arange(channels // 2, device="cpu").to(dtype)
    stays = 1 - ((pairs - low) / (high - low if high != low else 0.001)).clamp(0, 1)
    return (1 / (scaling.factor * turn_time)) * (1 - stays) + plain * stays


def _channel(turns: float, channels: int, theta: float, scaling: RopeScaling) -> float:
    """The (fractional) pair number that turns so often over the old length."""
    length = scaling.original_max_position_embeddings
    return channels * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))


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

"""FP8 blocks: weights as E4M3 numbers with one FP32 scale for every 128 × 128 of them (DeepSeek-V3 §3.3.2).

W = W_fp8 × scale, a product, although the published files call the scale `weight_scale_inv`. Blocks at an edge are
partial. Plain PyTorch; the test writes the same out as a float64 loop.
"""

# O rows, I columns, P = ⌈O/128⌉, Q = ⌈I/128⌉

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128
LARGEST = 448.0  # of E4M3
FP8 = torch.float8_e4m3fn


def quantise(weight_OI: Tensor, ue8m0: bool = False) -> tuple[Tensor, Tensor]:
    """E4M3 numbers [O, I] and FP32 scales [P, Q]: a block's scale is max|block| / 448, 1 for a block of zeros.

    With `ue8m0` scales are rounded up to powers of two (DeepSeek-V3.1). The arithmetic is FP32.
    """
    rows, columns = weight_OI.shape
    number_OI = torch.empty(rows, columns, dtype=FP8, device=weight_OI.device)
    scale_PQ = torch.empty(blocks(rows), blocks(columns), device=weight_OI.device)
    for p in range(len(scale_PQ)):  # a band of blocks at a time: little memory beside the result
        band = slice(p * BLOCK, (p + 1) * BLOCK)
        exact_BI = weight_OI[band].float()
        most_I = exact_BI.abs().amax(0)
        most_Q = torch.nn.functional.pad(most_I, (0, -columns % BLOCK)).view(-1, BLOCK).amax(1)
        scale_Q = most_Q / torch.full_like(most_Q, LARGEST)  # by a number, a GPU multiplies by its reciprocal
        if ue8m0:
            part_Q, power_Q = torch.frexp(scale_Q)  # part in [0.5, 1): exact where a logarithm would round
            above_Q = torch.ldexp(torch.ones_like(part_Q), power_Q - (part_Q == 0.5).int())
            scale_Q = torch.where(part_Q > 0, above_Q, 0.0)
        scale_Q = torch.where(scale_Q > 0, scale_Q, 1.0)
        scale_PQ[p] = scale_Q
        wide_I = scale_Q.repeat_interleave(BLOCK)[:columns]
        # a quotient that FP32 rounds past the largest number would be NaN in E4M3
        number_OI[band] = (exact_BI / wide_I).clamp_(-LARGEST, LARGEST).to(FP8)
    return number_OI, scale_PQ


def dequantise(number_OI: Tensor, scale_PQ: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """number × scale in FP32, then as `dtype`: [O, I]."""
    out_OI = torch.empty(number_OI.shape, dtype=dtype, device=number_OI.device)
    wide_PI = scale_PQ.float().repeat_interleave(BLOCK, 1)[:, : number_OI.shape[1]]
    for p in range(len(scale_PQ)):
        band = slice(p * BLOCK, (p + 1) * BLOCK)
        out_OI[band] = expand(number_OI[band], wide_PI[p])
    return out_OI


def expand(number_BI: Tensor, scale_I: Tensor | None = None) -> Tensor:
    """E4M3 numbers as FP32, exactly, or their products with a scale for each column, rounded once: [B, I].

    On the CPU torch converts them one at a time; moving the bits to where FP16 has them (4 bits of exponent under 5, a
    factor of 2⁸ apart) is 8 times faster. Patterns that E4M3 gives to NaN would come out as 480 and go the slow way, as
    do scales that 2⁸ could carry beyond FP32.
    """
    small = scale_I is None or float(scale_I.amax()) < 1e36
    if number_BI.device.type != "cpu" or not number_BI.numel() or not small or _has_nan(number_BI):
        return number_BI.float() if scale_I is None else number_BI.float().mul_(scale_I)
    bits = number_BI.view(torch.int8).to(torch.int16)
    bits.bitwise_left_shift_(7).bitwise_and_(~(1 << 14))  # the sign spreads over the bits above it: clear the second
    return bits.view(torch.float16).float().mul_(256.0 if scale_I is None else scale_I * 256.0)


def _has_nan(number: Tensor) -> bool:
    """Whether a byte is 0x7F, the largest of signed ones, or 0xFF, the largest of unsigned ones."""
    return int(number.view(torch.int8).amax()) == 0x7F or int(number.view(torch.uint8).amax()) == 0xFF


def blocks(width: int) -> int:
    """How many blocks lie along `width`, the last one perhaps partial."""
    return -(-width // BLOCK)

"""Latents in 8 bits: a cache entry of 512 + 64 channels in 656 bytes instead of 1,152 (DeepSeek's open MLA kernels).

An entry is R E4M3 numbers, an FP32 scale for every 128 of them, and P BF16 rotary channels, which keep their precision:
they carry positions. `decode.paged_latent_decode` reads pools of such bytes as they are.
"""

# B entries, R latent, P rotary, Q = ⌈R/128⌉ scales, Z bytes of an entry

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fathom.model.quant import BLOCK, FP8, LARGEST, blocks


def entry_bytes(latent: int, rotary: int) -> int:
    """Bytes of one entry: 656 for 512 and 64."""
    return latent + 4 * blocks(latent) + 2 * rotary


def quantise_entries(entry_BC: Tensor, latent: int) -> Tensor:
    """[..., R + P] in any floating type ↦ bytes [..., Z]; scales are max / 448, 1 for 128 zeros."""
    if latent % 4:
        raise ValueError(f"kv_lora_rank={latent}: scales lie on multiples of 4 bytes; keep this cache in BF16")
    latent_BR, rotary_BP = entry_BC[..., :latent].float(), entry_BC[..., latent:].to(torch.bfloat16)
    padded_BR = F.pad(latent_BR, (0, -latent % BLOCK))
    most_BQ = padded_BR.view(*padded_BR.shape[:-1], -1, BLOCK).abs().amax(-1)
    scale_BQ = torch.where(most_BQ > 0, most_BQ / torch.full_like(most_BQ, LARGEST), 1.0)
    number_BR = (latent_BR / scale_BQ.repeat_interleave(BLOCK, -1)[..., :latent]).clamp(-LARGEST, LARGEST).to(FP8)
    return torch.cat([part.contiguous().view(torch.uint8) for part in (number_BR, scale_BQ, rotary_BP)], dim=-1)


def dequantise_entries(entry_BZ: Tensor, latent: int, dtype: torch.dtype) -> Tensor:
    """Bytes [..., Z] ↦ [..., R + P] of type `dtype`."""
    sizes = [latent, 4 * blocks(latent), entry_BZ.shape[-1] - latent - 4 * blocks(latent)]
    number_BR, scale_BQ, rotary_BP = (
        part.contiguous().view(kind)
        for part, kind in zip(torch.split(entry_BZ, sizes, -1), (FP8, torch.float32, torch.bfloat16), strict=True))
    latent_BR = number_BR.float() * scale_BQ.repeat_interleave(BLOCK, -1)[..., :latent]
    return torch.cat((latent_BR.to(dtype), rotary_BP.to(dtype)), dim=-1)

"""Which device and number type a model runs on."""

from __future__ import annotations

import torch

from fathom.core.errors import UsageError

FULL_PRECISION_BELOW = 12_000_000  # parameters: on a CPU, smaller models are faster in FP32 (docs/log.md)
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64, "float16": torch.float16}


def place(device: str, dtype: str, parameters: int) -> tuple[torch.device, torch.dtype]:
    """The device and type behind `auto` or a name; what the machine cannot do is refused with the remedy."""
    if device == "auto":
        mps = torch.backends.mps.is_available()
        device = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device={device}: this torch sees no CUDA device; use device=cpu or install a CUDA build")
    if device == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device=mps: not available here; use device=cpu")
    if dtype == "auto":
        full = (device in ("cpu", "mps") and parameters < FULL_PRECISION_BELOW) or (
            device == "cpu" and not multiplies_bf16())
        return torch.device(device), torch.float32 if full else torch.bfloat16
    if dtype not in TYPES:
        raise UsageError(f"dtype={dtype}: use auto or one of {', '.join(TYPES)}")
    if dtype == "float16" and device == "cpu":
        raise UsageError("dtype=float16 on a CPU: hundreds of times slower than float32; use bfloat16 or float32")
    return torch.device(device), TYPES[dtype]


def full_precision(dtype: torch.dtype) -> torch.dtype:
    """What softmax, norms, angles, gates and sums are computed in for a model of type `dtype`: FP64 for float64, else
    FP32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def multiplies_bf16() -> bool:
    """Whether this processor has instructions for BF16 products; without them they take four times FP32's time."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()

# mypy: disable-error-code="no-untyped-def"
"""Launch: one call of a Triton kernel as data, so that the same call can be run, interpreted or compiled ahead of time.

Imports Triton where it is installed; everything here and in the kernels' files can be imported without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
    from triton.language.extra import cuda as tl_cuda
except ImportError:  # the twins need none
    triton = tl = tl_cuda = None

__all__ = [
    "INTERPRETED", "LOG2E", "Launch", "after_those_before", "kernel", "starts_early", "tile", "tl", "uses_kernel"]

INTERPRETED = triton is not None and bool(triton.knobs.runtime.interpret)
LOG2E = 1.4426950408889634  # exp(x) = 2^(x · log2 e): GPUs have the latter as an instruction
SMALLEST = 16  # side of the smallest tile that tensor cores multiply
TYPES = (torch.float32, torch.bfloat16, torch.float16)


def kernel(function: Callable[..., None]) -> Any:
    """Decorator: `triton.jit` where Triton is installed."""
    return function if triton is None else triton.jit(function)


def uses_kernel(*tensors: Tensor) -> bool:
    """Whether a kernel runs on these tensors: they lie on a GPU, or the interpreter is on; FP64 is for the twins."""
    placed = INTERPRETED or all(t.is_cuda for t in tensors)
    return triton is not None and placed and all(t.dtype in TYPES for t in tensors if t.is_floating_point())


def tile(width: int, most: int | None = None) -> int:
    """The power of two, 16 at least, that covers `width`, or `most`."""
    covering = max(SMALLEST, 1 << (width - 1).bit_length())
    return covering if most is None else min(covering, most)


def starts_early(tensor: Tensor) -> bool:
    """Whether a kernel may begin before the one before it has ended: on GPUs that let it wait inside (sm_90)."""
    return tensor.is_cuda and torch.cuda.get_device_capability(tensor.device) >= (9, 0)


@kernel
def after_those_before(EARLY: tl.constexpr):
    """Within a kernel, before it reads what others write or writes itself: lets the next kernel begin, and waits until
    all earlier ones have ended. Weights may be loaded before."""
    if EARLY:
        tl_cuda.gdc_launch_dependents()
        tl_cuda.gdc_wait()


@dataclass(frozen=True)
class Launch:
    """A kernel, the grid of its programs, its arguments, and what it is compiled for (`fixed`, warps, stages).

    `early`: it begins before the one before it has ended (programmatic dependent launch).
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    fixed: dict[str, Any]
    warps: int = 4
    stages: int = 2
    early: bool = False

    def run(self) -> None:
        """Starts the programs; on a GPU they are not waited for."""
        options: dict[str, Any] = {"launch_pdl": True} if self.early else {}
        self.kernel[self.grid](**self.arguments, **self.fixed, num_warps=self.warps, num_stages=self.stages, **options)

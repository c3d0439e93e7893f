"""Compiles a Launch for a GPU that this machine lacks, and says what its programs will hold."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fathom.model.kernels.launch import Launch

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int32: "i32", torch.int64: "i64",
         torch.uint8: "u8"}
SHARED = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10}  # bytes of shared memory that one program may hold
DUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


@dataclass(frozen=True)
class Held:
    """What one program holds: registers of a thread, bytes that spill out of them, bytes of shared memory."""

    registers: int
    spilled: int
    shared: int
    ptx: str


def compiled(launch: Launch, capability: int, folder: Path) -> Held:
    """Specialised as a launch would be: pointers and numbers that 16 divides are known to be so, 1 is a constant."""
    signature: dict[str, str] = {}
    fixed: dict[str, Any] = {}
    attrs: dict[tuple[int, ...], list[list[Any]]] = {}
    for number, name in enumerate(launch.kernel.arg_names):
        value = launch.fixed.get(name, launch.arguments.get(name))
        if name in launch.fixed or (isinstance(value, int) and value == 1):
            signature[name], fixed[name] = "constexpr", value
            continue
        if isinstance(value, torch.Tensor):
            signature[name] = f"*{NAMES[value.dtype]}"
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32" if value < 1 << 31 else "i64"
        if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
            attrs[(number,)] = [["tt.divisibility", 16]]
    made = triton.compile(
        ASTSource(launch.kernel, signature, fixed, attrs), target=GPUTarget("cuda", capability, 32),
        options={"num_warps": launch.warps, "num_stages": launch.stages, "launch_pdl": launch.early})
    path = folder / "kernel.cubin"
    path.write_bytes(made.asm["cubin"])
    usage = subprocess.run([DUMP, "--dump-resource-usage", path], capture_output=True, text=True, check=True).stdout
    found = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", usage)}
    return Held(found["REG"], found["STACK"] + found["LOCAL"], made.metadata.shared, made.asm["ptx"])

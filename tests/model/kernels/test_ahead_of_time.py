"""Every kernel compiled for GPUs that need not be there, at the shapes of DeepSeek-V2-Lite, V3 and others.

What is launched is what is compiled: the launches come from the functions that run them, with tensors on `meta`. A GPU
refuses a program that holds too much shared memory; registers that spill would cost speed; a product that is not given
to tensor cores costs most.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fathom.model.kernels import decode, experts, fused, prefill
from fathom.model.kernels.launch import Launch

pytest.importorskip("triton", reason="the kernels need Triton: pip install 'fathom-reasoning[kernels]'")
from ahead import SHARED, compiled

NUMBER = torch.int64
KNOWN = importlib.util.find_spec("triton") is not None and metadata.version("triton").startswith("3.7.")
# what a kernel spills depends on the compiler: held to with the version that the tiles were chosen by
SPILLED = 64  # bytes of a thread, at most: a few registers saved once, outside of loops


def on_meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def latent(heads: int, dtype: torch.dtype = torch.bfloat16, in_bytes: bool = False, rows: int = 4) -> list[Launch]:
    pool = on_meta(1000, 1, 64, 656, dtype=torch.uint8) if in_bytes else on_meta(1000, 1, 64, 576, dtype=dtype)
    return decode.latent_launches(
        on_meta(rows, heads, 576, dtype=dtype), pool, on_meta(rows, 128, dtype=torch.int32),
        on_meta(rows, dtype=NUMBER), 512, 0.1, on_meta(rows, heads, 512, dtype=dtype), None)


def grouped(heads: int, groups: int, width: int) -> list[Launch]:
    pool = on_meta(1000, groups, 64, width)
    return decode.grouped_launches(
        on_meta(4, heads, width), pool, pool, on_meta(4, 128, dtype=torch.int32), on_meta(4, dtype=NUMBER), 0.1,
        on_meta(4, heads, width), None)


def packed(heads: int, dtype: torch.dtype = torch.bfloat16) -> list[Launch]:
    q, k, v, o = (on_meta(4096, heads, width, dtype=dtype) for width in (192, 192, 128, 128))
    return [prefill.packed_launch(q, k, v, on_meta(5, dtype=NUMBER), on_meta(5, dtype=NUMBER), 0.1, 1024, o)]


def paged(heads: int, groups: int, width: int) -> list[Launch]:
    pool = on_meta(1000, groups, 64, width)
    return [prefill.paged_launch(
        on_meta(4096, heads, width), pool, pool, on_meta(4, 32, dtype=torch.int32), on_meta(5, dtype=NUMBER),
        on_meta(4, dtype=NUMBER), 0.1, 1024, on_meta(4096, heads, width))]


def chosen(rows: int, number: int, width: int, inner: int, k: int, dtype: torch.dtype = torch.bfloat16) -> list[Launch]:
    x, gate_up, down, y = (on_meta(*shape, dtype=dtype) for shape in (
        (rows, width), (number, 2 * inner, width), (number, width, inner), (rows * k, width)))
    return experts.launches(x, gate_up, down, on_meta(rows, k, dtype=NUMBER), on_meta(rows, k, dtype=torch.float32), y)


def small(width: int, dtype: torch.dtype = torch.bfloat16) -> list[Launch]:
    rows = [on_meta(4, width, dtype=dtype) for _ in range(4)]
    angles = (on_meta(4, 32, dtype=torch.float32),) * 2
    return [fused.add_norm_launch(rows[0], rows[1], on_meta(width, dtype=dtype), 1e-6, *rows[2:]),
            fused.write_latent_launch(on_meta(4, 576, dtype=dtype), on_meta(512, dtype=dtype), 1e-6, angles, True,
                                      on_meta(1000, 1, 64, 576, dtype=dtype), on_meta(4, dtype=NUMBER))]


LAUNCHES = {
    "latent decoding, 16 heads (V2-Lite)": latent(16), "latent decoding, 128 heads (V3)": latent(128),
    "grouped decoding, 32 heads of 8 groups (Llama-3.1-8B)": grouped(32, 8, 128),
    "grouped decoding, 9 heads of 3 groups (SmolLM2)": grouped(9, 3, 64),
    "packed prefill, 16 heads (V2-Lite)": packed(16), "packed prefill, 128 heads (V3)": packed(128),
    "paged prefill, 32 heads of 8 groups (Llama-3.1-8B)": paged(32, 8, 128),
    "paged prefill, 9 heads of 3 groups (SmolLM2)": paged(9, 3, 64),
    "experts, 1 row (V2-Lite)": chosen(1, 64, 2048, 1408, 6), "experts, 1 row (V3)": chosen(1, 256, 7168, 2048, 8),
    "experts, 32 rows (V3)": chosen(32, 256, 7168, 2048, 8),
    "small operations (V3)": small(7168),
}
BYTES = {"latents in bytes, 16 heads (V2-Lite)": latent(16, in_bytes=True),
         "latents in bytes, 128 heads (V3)": latent(128, in_bytes=True)}  # sm_80 has no E4M3
EXACT = {"latent decoding, FP32, 16 heads": latent(16, torch.float32),
         "packed prefill, FP32": packed(16, torch.float32),
         "latent decoding, FP32, 128 heads": latent(128, torch.float32),
         "experts, FP32": chosen(4, 64, 2048, 1408, 6, torch.float32),
         "small operations, FP32": small(2048, torch.float32)}
MANY = {"latent decoding, 16 heads, 256 rows": latent(16, rows=256),
        "experts, 64 rows (V2-Lite)": chosen(64, 64, 2048, 1408, 6)}
LARGER = {name for name in LAUNCHES if "prefill" in name or "128 heads" in name}
MULTIPLIES = {"_latent_kernel", "_grouped_kernel", "_prefill_kernel", "_inner_kernel", "_outer_kernel"}
LATER = pytest.mark.long


@pytest.fixture(scope="session", autouse=True)
def no_kernels_of_earlier_runs(tmp_path_factory: pytest.TempPathFactory) -> None:
    import triton

    triton.knobs.cache.dir = str(tmp_path_factory.mktemp("triton"))


@pytest.mark.parametrize(("name", "capability"), [
    *((name, 90) for name in [*LAUNCHES, *BYTES]), *(pytest.param(name, 80, marks=LATER) for name in LAUNCHES),
    *(pytest.param(name, at, marks=LATER) for name in [*MANY, *EXACT] for at in (80, 90))])
def test_kernels_compile(name: str, capability: int, tmp_path: Path) -> None:
    for launch in (LAUNCHES | BYTES | MANY | EXACT)[name]:
        held = compiled(launch, capability, tmp_path)
        kernel = launch.kernel.__name__
        print(f"{name}, {kernel}, sm_{capability}: {launch.warps} warps, {held.registers} registers, {held.spilled} "
              f"bytes spilled, {held.shared} bytes shared")  # pytest -rP shows it
        assert 0 < held.registers <= 255
        if KNOWN:
            assert held.spilled <= SPILLED
        assert held.shared <= SHARED[capability]
        if kernel in MULTIPLIES and name not in EXACT:
            assert "wgmma.mma_async" in held.ptx or "mma.sync.aligned" in held.ptx
            assert "cp.async" in held.ptx or kernel == "_prefill_kernel"
        if capability == 90 and name in LARGER and kernel in MULTIPLIES:
            assert "wgmma.mma_async" in held.ptx  # sm_90's products of 64 rows and more


@pytest.mark.long
def test_cards_with_little_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_roomy", lambda q: False)
    for launch in (latent(128)[0], latent(128, torch.float32)[0], latent(128, in_bytes=True)[0], packed(16)[0],
                   packed(16, torch.float32)[0], *chosen(64, 64, 2048, 1408, 6)):
        held = compiled(launch, 89, tmp_path)
        assert held.shared <= SHARED[89], (launch.kernel.__name__, held.shared)
        if KNOWN:
            assert held.spilled <= SPILLED, (launch.kernel.__name__, held.spilled)


def test_what_holds_too_much_is_seen(tmp_path: Path) -> None:
    """The bounds above can be missed: fewer warps spill, more positions at a time need more than there is."""
    launch = latent(16)[0]
    assert compiled(replace(launch, warps=4, stages=2), 90, tmp_path).spilled > SPILLED
    deep = replace(launch, fixed={**launch.fixed, "M": 32, "N": 128})
    assert compiled(deep, 80, tmp_path).shared > SHARED[80]

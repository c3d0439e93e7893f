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

from fathom.model.kernels import absorb, decode, experts, fused, gate, prefill
from fathom.model.kernels.launch import Launch
from fathom.model.moe import Gate
from fathom.model.presets import PRESETS

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
    return [fused.add_norm_launch(rows[0], rows[1][:, None], on_meta(width, dtype=dtype), 1e-6, *rows[2:]),
            fused.write_latent_launch(on_meta(4, 576, dtype=dtype), on_meta(512, dtype=dtype), 1e-6, angles, True,
                                      on_meta(1000, 1, 64, 576, dtype=dtype), on_meta(4, dtype=NUMBER))]


def shared(rows: int, number: int, width: int, inner: int, k: int, dtype: torch.dtype = torch.bfloat16) -> list[Launch]:
    """The chosen experts beside two that every row goes through."""
    x, gate_up, down, y = (on_meta(*shape, dtype=dtype) for shape in (
        (rows, width), (number, 2 * inner, width), (number, width, inner), (rows * (k + 2), width)))
    more = on_meta(2 * inner, width, dtype=dtype), on_meta(2 * inner, width, dtype=dtype), on_meta(
        width, 2 * inner, dtype=dtype)
    return experts.launches(x, gate_up, down, on_meta(rows, k + 2, dtype=NUMBER),
                            on_meta(rows, k + 2, dtype=torch.float32), y, more)


def around(rows: int, heads: int, dtype: torch.dtype = torch.bfloat16) -> list[Launch]:
    """What a latent decoding step does around its attention."""
    up, pool = on_meta(heads, 256, 512, dtype=dtype), on_meta(1000, 1, 16, 576, dtype=dtype)
    q, entry, norm, out = (on_meta(*shape, dtype=dtype) for shape in (
        (rows, heads, 192), (rows, 576), (512,), (rows, heads, 576)))
    angles = (on_meta(rows, 32, dtype=torch.float32),) * 2
    length = on_meta(rows, dtype=NUMBER)
    return [absorb.queries_launch(q, up[:, :128], entry, norm, 1e-6, angles, True, pool, length, out),
            *absorb.values_launches(out, pool, on_meta(rows, 64, dtype=NUMBER), length, 0.1, up[:, 128:],
                                    on_meta(rows, heads, 128, dtype=dtype))]


def router(name: str, rows: int, dtype: torch.dtype = torch.bfloat16) -> list[Launch]:
    with torch.device("meta"):
        module = Gate(PRESETS[name]).to(dtype)
    chosen = module.chosen + 1
    return gate.launches(on_meta(rows, PRESETS[name].hidden_size, dtype=dtype), module,
                         on_meta(rows, chosen, dtype=NUMBER), on_meta(rows, chosen, dtype=torch.float32))


LAUNCHES = {
    "latent decoding, 16 heads (V2-Lite)": latent(16), "latent decoding, 128 heads (V3)": latent(128),
    "grouped decoding, 32 heads of 8 groups (Llama-3.1-8B)": grouped(32, 8, 128),
    "grouped decoding, 9 heads of 3 groups (SmolLM2)": grouped(9, 3, 64),
    "packed prefill, 16 heads (V2-Lite)": packed(16), "packed prefill, 128 heads (V3)": packed(128),
    "paged prefill, 32 heads of 8 groups (Llama-3.1-8B)": paged(32, 8, 128),
    "paged prefill, 9 heads of 3 groups (SmolLM2)": paged(9, 3, 64),
    "experts, 1 row (V2-Lite)": chosen(1, 64, 2048, 1408, 6), "experts, 1 row (V3)": chosen(1, 256, 7168, 2048, 8),
    "experts, 32 rows (V3)": chosen(32, 256, 7168, 2048, 8),
    "experts beside shared ones, 1 row (V2-Lite)": shared(1, 64, 2048, 1408, 6),
    "experts beside shared ones, 64 rows (V2-Lite)": shared(64, 64, 2048, 1408, 6),
    "around the attention, 1 row (V2-Lite)": around(1, 16), "around the attention, 64 rows (V3)": around(64, 128),
    "router, 4 rows (V3)": router("deepseek-v3", 4), "small operations (V3)": small(7168),
}
BYTES = {"latents in bytes, 16 heads (V2-Lite)": latent(16, in_bytes=True),
         "latents in bytes, 128 heads (V3)": latent(128, in_bytes=True)}  # sm_80 has no E4M3
EXACT = {"latent decoding, FP32, 16 heads": latent(16, torch.float32),
         "packed prefill, FP32": packed(16, torch.float32),
         "latent decoding, FP32, 128 heads": latent(128, torch.float32),
         "experts, FP32": chosen(4, 64, 2048, 1408, 6, torch.float32),
         "experts beside shared ones, FP32": shared(4, 64, 2048, 1408, 6, torch.float32),
         "around the attention, FP32": around(4, 16, torch.float32),
         "router, FP32": router("deepseek-v3", 4, torch.float32),
         "small operations, FP32": small(2048, torch.float32)}
MANY = {"latent decoding, 16 heads, 256 rows": latent(16, rows=256),
        "experts beside shared ones, 256 rows (V3)": shared(256, 256, 7168, 2048, 8)}
LARGER = {name for name in LAUNCHES if "prefill" in name or "128 heads" in name}
MULTIPLIES = {"_latent_kernel", "_grouped_kernel", "_prefill_kernel", "_inner_kernel", "_outer_kernel",
              "_affinity_kernel", "_queries_kernel", "_values_kernel"}
ONCE = {"_prefill_kernel", "_queries_kernel", "_values_kernel"}  # load without a loop to load ahead in, or in few steps
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
            assert "cp.async" in held.ptx or kernel in ONCE
        if capability == 90 and name in LARGER and kernel in MULTIPLIES:
            assert "wgmma.mma_async" in held.ptx  # sm_90's products of 64 rows and more


def test_kernels_that_begin_early_wait(tmp_path: Path) -> None:
    """What starts before its predecessors have ended waits for them, and lets the next one start."""
    seen = set()
    for name in ("latent decoding, 16 heads (V2-Lite)", "experts beside shared ones, 64 rows (V2-Lite)",
                 "around the attention, 1 row (V2-Lite)", "router, 4 rows (V3)", "small operations (V3)"):
        for launch in LAUNCHES[name]:
            if "EARLY" in launch.fixed:
                assert "griddepcontrol" not in compiled(launch, 90, tmp_path).ptx
                held = compiled(replace(launch, fixed={**launch.fixed, "EARLY": True}, early=True), 90, tmp_path)
                assert "griddepcontrol.wait" in held.ptx and "griddepcontrol.launch_dependents" in held.ptx
                seen.add(launch.kernel.__name__)
    assert seen == {"_latent_kernel", "_combine_kernel", "_rank_kernel", "_inner_kernel", "_outer_kernel",
                    "_queries_kernel", "_values_kernel", "_affinity_kernel", "_choose_kernel", "_add_norm_kernel"}


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

"""Experts, fused operations and recorded steps: under the interpreter beside their twins, twins beside loops."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_caches import gap
from torch import Tensor

from fathom.model.config import ModelConfig
from fathom.model.kernels import experts, fused
from fathom.model.kernels.graphed import Graphed, Recording
from fathom.model.kernels.launch import tile, uses_kernel
from fathom.model.moe import Experts

Call = Callable[..., Any]
BARS = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}  # as for attention, through two products


def made_experts(
    rows: int, chosen: int, number: int, width: int, inner: int, dtype: torch.dtype = torch.float32, alike: bool = False
) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, width, generator=draw)
    gate_up = torch.randn(number, 2 * inner, width, generator=draw) / width**0.5
    down = torch.randn(number, width, inner, generator=draw) / inner**0.5
    choice = torch.stack([torch.randperm(number, generator=draw)[:chosen] for _ in range(rows)])
    choice = choice[:1].expand(rows, -1).contiguous() if alike else choice
    return x.to(dtype), gate_up.to(dtype), down.to(dtype), choice, torch.rand(rows, chosen, generator=draw)


@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("case", [
    (1, 2, 8, 48, 24), (4, 3, 8, 160, 40), (20, 2, 4, 64, 32), (17, 1, 3, 32, 16, "alike")])  # one more than a tile
def test_experts(interpreted: Call, case: tuple[Any, ...], dtype: torch.dtype) -> None:
    made = made_experts(*case[:5], dtype=dtype, alike=len(case) > 5)
    found = interpreted("experts", "decode_experts", *made)
    assert found.dtype == dtype
    exact = [t.double() if t.is_floating_point() else t for t in made]
    expected = experts.plain_decode_experts(*exact)
    assert gap(found, expected) < BARS[dtype]
    assert gap(experts.decode_experts(*made), expected) < BARS[dtype]


def test_experts_twin_is_the_module() -> None:
    x, gate_up, down, choice, weight = made_experts(5, 3, 8, 48, 24)
    module = Experts(ModelConfig(hidden_size=48, moe_intermediate_size=24, n_routed_experts=8)).requires_grad_(False)
    module.gate_up_proj.copy_(gate_up)
    module.down_proj.copy_(down)
    assert gap(experts.decode_experts(x, gate_up, down, choice, weight), module(x, choice, weight)) < 1e-6


def test_a_row_of_experts_depends_on_no_other(interpreted: Call) -> None:
    x, gate_up, down, choice, weight = made_experts(20, 2, 4, 64, 32)
    together = interpreted("experts", "decode_experts", x, gate_up, down, choice, weight)
    for row in (0, 7, 19):
        one = slice(row, row + 1)
        alone = interpreted("experts", "decode_experts", x[one], gate_up, down, choice[one], weight[one])
        assert torch.equal(alone[0], together[row]), row


def test_too_many_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at most 1024 pairs; use moe\.Experts"):
        experts.decode_experts(*made_experts(600, 2, 4, 16, 16))


@pytest.mark.parametrize(("right", "wrong"), [
    ("* up_MO * share_M[:, None]", "* up_MO"), ("for begin in range(0, count, M):", "for begin in range(0, M, M):"),
    ("gate_O1 + WIDTH * D + in_J", "gate_O1 + in_J")])
def test_mutants_of_experts_miss_the_bar(interpreted: Call, tmp_path: Path, right: str, wrong: str) -> None:
    text = Path(experts.__file__).read_text()
    assert right in text
    (tmp_path / "mutant.py").write_text(text.replace(right, wrong))
    made = made_experts(40, 2, 3, 32, 16)
    expected = experts.plain_decode_experts(*made)
    assert gap(interpreted("experts", "decode_experts", *made), expected) < BARS[torch.float32]
    found = interpreted("experts", "decode_experts", *made, source=tmp_path / "mutant.py")
    print(f"{wrong}: {gap(found, expected):.1e}")
    assert not gap(found, expected) < 10 * BARS[torch.float32]  # what it leaves unwritten may be NaN


@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("width", [1, 48, 256])
def test_sum_and_norm(interpreted: Call, width: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(width)
    x, more, weight = (torch.randn(*shape, generator=draw).to(dtype) for shape in ((5, width), (5, width), (width,)))
    found = interpreted("fused", "add_norm", x, more, weight, 1e-5)
    total = x.double() + more.double()
    norm = total * weight.double()
    for row in range(5):  # written out
        norm[row] /= math.sqrt(sum(v * v for v in total[row].tolist()) / width + 1e-5)
    for sums, normed in (found, fused.add_norm(x, more, weight, 1e-5)):
        assert sums.dtype == normed.dtype == dtype
        assert gap(sums, total) < BARS[dtype]
        assert gap(normed, norm) < BARS[dtype]


def written(
    interleave: bool, dtype: torch.dtype, latent: int = 40, rotary: int = 16
) -> tuple[tuple[Any, ...], Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    entry = torch.randn(4, latent + rotary, generator=draw).to(dtype)
    weight = torch.rand(latent, generator=draw).to(dtype)
    angle = torch.randn(4, rotary // 2, generator=draw) * 3
    pool = torch.full((4, 1, 8, latent + rotary), 7.0, dtype=dtype)
    args = (entry, weight, 1e-6, (angle.cos(), angle.sin()), interleave, pool, torch.tensor([3, 8, 17, 31]))
    expected = pool.double()
    for row, cell in enumerate((3, 8, 17, 31)):  # written out
        values = entry[row].tolist()
        mean = sum(v * v for v in values[:latent]) / latent
        put = [v * w / math.sqrt(mean + 1e-6) for v, w in zip(values[:latent], weight.tolist(), strict=True)]
        put += [0.0] * rotary
        for pair in range(rotary // 2):
            a, b = (2 * pair, 2 * pair + 1) if interleave else (pair, pair + rotary // 2)
            cos, sin = math.cos(float(angle[row, pair])), math.sin(float(angle[row, pair]))
            put[latent + a] = values[latent + a] * cos - values[latent + b] * sin
            put[latent + b] = values[latent + b] * cos + values[latent + a] * sin
        expected[cell // 8, 0, cell % 8] = torch.tensor(put, dtype=torch.float64)
    return args, pool, expected


@pytest.mark.parametrize("dtype", BARS)
@pytest.mark.parametrize("interleave", [True, False])
def test_latent_entries_are_written(interpreted: Call, interleave: bool, dtype: torch.dtype) -> None:
    args, pool, expected = written(interleave, dtype)
    found = interpreted("fused", "write_latent", *args, back=5)
    fused.write_latent(*args)
    for side in (found, pool):
        assert gap(side, expected) < BARS[dtype]
        assert (side == 7).all(-1).sum() == 28  # nothing else was touched


@pytest.mark.parametrize(("right", "wrong"), [
    ("- second_P * sin_P", "+ second_P * sin_P"), ("(p_P, p_P + HALF)", "(2 * p_P, 2 * p_P + 1)"),
    ("number % BLOCK * pool_cell", "number * pool_cell")])
def test_mutants_of_the_write_miss_the_bar(interpreted: Call, tmp_path: Path, right: str, wrong: str) -> None:
    text = Path(fused.__file__).read_text()
    assert right in text
    (tmp_path / "mutant.py").write_text(text.replace(right, wrong))
    args, pool, expected = written(False, torch.float32)
    # entries that the mutant puts beyond the pool land in rows of ours
    roomy = torch.full((40, *pool.shape[1:]), 7.0)
    args = (*args[:5], roomy, args[6])
    found = interpreted("fused", "write_latent", *args, back=5, source=tmp_path / "mutant.py")
    assert gap(found[:4], expected) > 10 * BARS[torch.float32]


def recorded(run: Callable[[], Tensor]) -> Recording:
    """As a graph does: the result's place stays, replaying fills it anew."""
    out = run().clone()
    return lambda: out.copy_(run()), out


def test_a_recorded_step_serves_batches_up_to_its_size() -> None:
    seen: list[tuple[int, list[int]]] = []

    def step(x: Tensor, length: Tensor) -> Tensor:
        seen.append((len(x), length.tolist()))
        return x * length[:, None]

    graphed = Graphed(step, [4, 1, 2], (0.0, 1), recorded)
    for rows in (3, 4, 2, 1, 3, 5):
        x, length = torch.randn(rows, 2), torch.arange(2, 2 + rows)
        assert torch.equal(graphed(x, length), x * length[:, None])
    assert {size for size, _ in seen} == {4, 2, 1, 5}  # five are too many and go as they are
    assert seen[0] == (4, [2, 3, 4, 1])
    assert seen[-2] == (4, [2, 3, 4, 1])  # what a longer batch left in the fourth row is gone
    before = len(seen)
    graphed.forget()
    graphed(torch.ones(1, 2), torch.ones(1))
    assert len(seen) == before + 2  # recorded again, and run


def test_a_step_that_cannot_be_recorded_runs_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    def refuses(run: Callable[[], Tensor]) -> Recording:
        raise RuntimeError("operation not permitted when stream is capturing")

    graphed = Graphed(lambda x: x + 1, [2], (0.0,), refuses)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert graphed(torch.zeros(1)).tolist() == [1.0]
    assert [r.message for r in caplog.records] == [
        "batch 2: the step was not recorded as a CUDA graph and runs as it is, slower: operation not permitted when "
        "stream is capturing"]


def test_tiles_cover() -> None:
    assert [tile(width) for width in (1, 16, 17, 192, 512)] == [16, 16, 32, 256, 512]
    assert tile(300, 64) == 64


def test_off_a_gpu_the_twins_run(interpreted: Call) -> None:
    x = torch.zeros(1)
    assert not uses_kernel(x)
    assert interpreted("launch", "uses_kernel", x) is True
    assert interpreted("launch", "uses_kernel", x.double()) is False  # kernels add up in FP32


def test_without_triton_the_twins_run() -> None:
    code = ("import sys; sys.modules['triton'] = None\n"
            "import torch\nfrom fathom.model.kernels import decode, experts, fused, graphed, prefill\n"
            "q = torch.ones(1, 2, 24); pool = torch.ones(1, 1, 4, 24)\n"
            "z = decode.paged_latent_decode(q, pool, torch.zeros(1, 1, dtype=torch.int), torch.tensor([3]), 16, 1.0)\n"
            "assert z.shape == (1, 2, 16) and bool((z == 1).all())\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

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
from fathom.model.kernels import experts, fused, gate
from fathom.model.kernels.graphed import Graphed, Outcome, Recording
from fathom.model.kernels.launch import tile, uses_kernel
from fathom.model.moe import Experts, Gate, SwiGLU

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
    (1, 2, 8, 48, 24), (4, 3, 8, 160, 40), (20, 2, 4, 64, 32), (17, 1, 3, 32, 16, "alike"),  # one more than a tile
    (40, 2, 4, 32, 16), (70, 1, 3, 32, 16, "alike"), (120, 2, 3, 32, 16)])  # in order; two of no pair; 64 a tile
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
    found = experts.decode_experts(x, gate_up, down, choice, weight)
    assert found.shape == (5, 3, 48)
    assert gap(found.sum(1), module(x, choice, weight)) < 1e-6


@pytest.mark.parametrize("rows", [2, 20])  # by pair, and put in order
def test_experts_beside_shared_ones(interpreted: Call, rows: int) -> None:
    x, gate_up, down, choice, weight = made_experts(rows, 3, 8, 48, 24)
    more = SwiGLU(48, 2 * 24).requires_grad_(False)
    for number, part in enumerate(more.parameters()):
        part.copy_(torch.randn(part.shape, generator=torch.Generator().manual_seed(number)) / 7)
    parts = tuple(m.weight for m in (more.gate_proj, more.up_proj, more.down_proj))
    args = (x, gate_up, down, torch.cat((choice, torch.tensor([[8, 9]]).expand(rows, -1)), dim=1),
            torch.cat((weight, torch.ones(rows, 2)), dim=1), parts)
    expected = experts.plain_decode_experts(x, gate_up, down, choice, weight).sum(1) + more(x)
    for found in (interpreted("experts", "decode_experts", *args), experts.decode_experts(*args)):
        assert gap(found.sum(1), expected) < BARS[torch.float32]


ROUTERS = {
    "V2-Lite": {"n_routed_experts": 64, "num_experts_per_tok": 6, "scoring_func": "softmax", "topk_method": "greedy",
                "norm_topk_prob": False},
    "V2": {"n_routed_experts": 160, "num_experts_per_tok": 6, "n_group": 8, "topk_group": 3, "norm_topk_prob": False,
           "scoring_func": "softmax", "topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0},
    "V3": {"n_routed_experts": 256, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "norm_topk_prob": True,
           "scoring_func": "sigmoid", "topk_method": "noaux_tc", "routed_scaling_factor": 2.5},
    "few": {"n_routed_experts": 5, "num_experts_per_tok": 2, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
            "norm_topk_prob": True},
}


@pytest.mark.parametrize("name", ROUTERS)
def test_experts_are_chosen_as_the_module_chooses(interpreted_gate: Call, name: str) -> None:
    made = {"hidden_size": 48, "moe_intermediate_size": 16, **ROUTERS[name]}
    draw = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(made["n_routed_experts"], 48, generator=draw), torch.randn(
        made["n_routed_experts"], generator=draw) * 0.3
    x = torch.randn(19, 48, generator=draw)
    for dtype in (torch.float32, torch.bfloat16):
        expert, share = interpreted_gate(made, weight.to(dtype), bias, x.to(dtype), 2)
        module = Gate(ModelConfig(**made)).requires_grad_(False)
        module.weight.copy_(weight.to(dtype))
        if module.e_score_correction_bias is not None:
            module.e_score_correction_bias.copy_(bias)
        known, known_share = gate.choose_experts(x.to(dtype), module.to(dtype), 2)
        assert torch.equal(known[:, :-2], module(x.to(dtype))[1])
        assert known[:, -2:].tolist() == [[made["n_routed_experts"], made["n_routed_experts"] + 1]] * 19
        assert expert.dtype == known.dtype == torch.int64
        assert torch.equal(expert, known)
        assert float((share - known_share).abs().max()) < 1e-5 * float(known_share.max())


def test_the_first_of_equal_scores_is_chosen(interpreted_gate: Call) -> None:
    made = {"hidden_size": 48, "moe_intermediate_size": 16, **ROUTERS["few"]}
    expert, share = interpreted_gate(made, torch.zeros(5, 48), torch.zeros(5), torch.ones(2, 48), 0)
    assert expert.tolist() == [[0, 1]] * 2
    assert share.tolist() == [[0.5, 0.5]] * 2


def test_a_row_of_experts_depends_on_no_other(interpreted: Call) -> None:
    x, gate_up, down, choice, weight = made_experts(20, 2, 4, 64, 32)
    together = interpreted("experts", "decode_experts", x, gate_up, down, choice, weight)
    for row in (0, 7, 19):
        one = slice(row, row + 1)
        alone = interpreted("experts", "decode_experts", x[one], gate_up, down, choice[one], weight[one])
        assert torch.equal(alone[0], together[row]), row


def test_too_many_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at most 4096 pairs; use moe\.Experts"):
        experts.decode_experts(*made_experts(2100, 2, 4, 16, 16))


@pytest.mark.parametrize(("right", "wrong"), [
    ("* up_MO * share_M[:, None]", "* up_MO"), ("for at in range(0, count, M):", "for at in range(0, M, M):"),
    ("up_O1 + in_J", "gate_O1 + in_J"), ("order + first + number_M", "order + number_M"),
    ("tl.load(begin + mine + 1) - first", "tl.load(begin + mine + 1) - first - 1")])
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
    x, more, weight = (torch.randn(*shape, generator=draw).to(dtype) for shape in ((5, width), (5, 3, width), (width,)))
    found = interpreted("fused", "add_norm", x, more, weight, 1e-5)
    total = x.double() + more.double().sum(1)
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
    ("- second * sin, ", "+ second * sin, "), ("(p_P, p_P + HALF)", "(2 * p_P, 2 * p_P + 1)"),
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


def recorded(run: Callable[[], Outcome]) -> Recording:
    """As a graph does: the results' places stay, replaying fills them anew."""
    out = tuple(part.clone() for part in run())

    def replay() -> None:
        for place, part in zip(out, run(), strict=True):
            place.copy_(part)

    return replay, out


def test_a_step_is_recorded_for_every_shape() -> None:
    seen: list[tuple[int, int]] = []

    def step(x: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((len(x), table.shape[1]))
        return x * table[:, :1], x + 1

    graphed = Graphed(step, recorded)
    for rows, width in ((3, 2), (4, 2), (3, 8), (3, 2)):
        x, table = torch.randn(rows, 2), torch.arange(rows * width).view(rows, width)
        found = [part.clone() for part in graphed(x, table)]
        assert torch.equal(found[0], x * table[:, :1])
        assert torch.equal(found[1], x + 1)
    assert seen == [(3, 2), (3, 2), (4, 2), (4, 2), (3, 8), (3, 8), (3, 2)]  # the last was there already
    graphed.forget()
    graphed(torch.ones(3, 2), torch.ones(3, 2))
    assert len(seen) == 9  # recorded again, and run


def test_a_step_that_cannot_be_recorded_runs_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    def refuses(run: Callable[[], Outcome]) -> Recording:
        raise RuntimeError("operation not permitted when stream is capturing")

    graphed = Graphed(lambda x: (x + 1,), refuses)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert graphed(torch.zeros(2))[0].tolist() == [1.0, 1.0]
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
            "import torch\nfrom fathom.model.kernels import absorb, decode, experts, fused, gate, graphed, prefill\n"
            "q = torch.ones(1, 2, 24); pool = torch.ones(1, 1, 4, 24)\n"
            "z = decode.paged_latent_decode(q, pool, torch.zeros(1, 1, dtype=torch.int), torch.tensor([3]), 16, 1.0)\n"
            "assert z.shape == (1, 2, 16) and bool((z == 1).all())\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

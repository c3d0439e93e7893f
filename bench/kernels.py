"""The engine's GPU kernels: right beside their twins, and how near they come to the memory's speed.

`python -m bench.kernels [--device cuda]` prints two tables, kernel by kernel and a model of 2.6 billion parameters
(latent attention, 64 experts) decoding through the engine; `bench.gpu` calls the same. The floor of a call is the time
in which its weights and cache entries can be read once, at the rate at which this device copies a large tensor. With
`--device cpu` shapes are tiny and twins run on both sides: that shows that the bench works, and says nothing of speed.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench import models
from bench.measure import Pair, save, wait
from fathom.core import machine
from fathom.core.chat import Sampling
from fathom.engine.engine import Engine
from fathom.engine.plan import Plan
from fathom.engine.settings import EngineSettings
from fathom.model import cost, moe
from fathom.model.config import ModelConfig
from fathom.model.kernels import absorb, decode, experts, fused, gate, latent_fp8, prefill
from fathom.model.kernels.graphed import Graphed, record_cuda
from fathom.model.layout import Layout, Pages
from fathom.model.presets import PRESETS
from fathom.model.transformer import Transformer

ROUNDS = 7
UNCACHED = 256e6  # bytes that calls in turn go through, more than a GPU's own cache holds
MODEL = ModelConfig(
    vocab_size=32_000, hidden_size=2048, num_hidden_layers=12, num_attention_heads=16, kv_lora_rank=512,
    qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, intermediate_size=8192, n_routed_experts=64,
    n_shared_experts=2, num_experts_per_tok=6, moe_intermediate_size=512, scoring_func="softmax", topk_method="greedy",
    norm_topk_prob=False, max_position_embeddings=4096)
TINY = MODEL.model_copy(update={
    "vocab_size": 8192, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "kv_lora_rank": 32,
    "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16, "intermediate_size": 64, "n_routed_experts": 8,
    "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 32})
# the same arithmetic in layers of the published width, as many as fit 3 billion parameters
WIDE = PRESETS["deepseek-v2-lite"].model_copy(update={"num_hidden_layers": 4})
MODELS = {"narrow, 12 layers": MODEL, "DeepSeek-V2-Lite, 4 of its 27 layers": WIDE}
GROUPED = PRESETS["smollm2-135m"]
BATCHES, PROMPT, NEW = (1, 4, 16, 64, 256), 128, 64


# --- right ---

def _drawn(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _table(rows: int, blocks: int) -> Tensor:
    order = torch.randperm(rows * blocks, generator=torch.Generator().manual_seed(9)) + 1
    return order.view(rows, blocks).int()


def _error(function: Callable[..., Tensor], twin: Callable[..., Tensor], device: str, *args: object) -> float:
    """Largest difference to the twin in FP64 on the CPU, over the largest number."""
    exact = [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
    expected = twin(*exact)
    found = function(*(a.to(device) if isinstance(a, Tensor) else a for a in args))
    return float((found.double().cpu() - expected).abs().max() / expected.abs().max())


LENGTHS = (1, 64, 65, 700, 33)


def latent(device: str, dtype: torch.dtype, heads: int = 16, in_bytes: bool = False) -> float:
    """Decoding over latents, at the widths of DeepSeek's models."""
    entries = _drawn(len(LENGTHS) * 11 + 1, 1, 64, 576, seed=1, dtype=dtype)
    pool = latent_fp8.quantise_entries(entries, 512) if in_bytes else entries
    return _error(decode.paged_latent_decode, decode.plain_latent_decode, device,
                  _drawn(len(LENGTHS), heads, 576, seed=2, dtype=dtype), pool, _table(len(LENGTHS), 11),
                  torch.tensor(LENGTHS), 512, 0.1)


def grouped(device: str, dtype: torch.dtype) -> float:
    """Decoding over keys and values of three groups."""
    k, v = (_drawn(len(LENGTHS) * 11 + 1, 3, 64, 64, seed=seed, dtype=dtype) for seed in (3, 4))
    return _error(decode.paged_grouped_decode, decode.plain_grouped_decode, device,
                  _drawn(len(LENGTHS), 9, 64, seed=5, dtype=dtype), k, v, _table(len(LENGTHS), 11),
                  torch.tensor(LENGTHS), 0.2)


def paged(device: str, dtype: torch.dtype) -> float:
    """Prefill from a cache."""
    new, past = (1, 200, 64), (30, 0, 500)
    k, v = (_drawn(3 * 9 + 1, 2, 64, 128, seed=seed, dtype=dtype) for seed in (6, 7))
    start = torch.tensor((0, *new)).cumsum(0)
    return _error(lambda *a: prefill.paged_prefill(*a, max(new)), prefill.plain_paged_prefill, device,
                  _drawn(sum(new), 8, 128, seed=8, dtype=dtype), k, v, _table(3, 9), start, torch.tensor(past), 0.1)


def packed(device: str, dtype: torch.dtype) -> float:
    """Prefill from packed keys and values, keys wider."""
    new, all_ = (1, 200, 64), (31, 200, 564)
    q, k, v = (_drawn(n, 4, c, seed=c, dtype=dtype) for n, c in ((sum(new), 192), (sum(all_), 192), (sum(all_), 128)))
    bounds = torch.tensor((0, *new)).cumsum(0), torch.tensor((0, *all_)).cumsum(0)
    return _error(lambda *a: prefill.packed_prefill(*a, max(new)), prefill.plain_packed_prefill, device, q, k, v,
                  *bounds, 0.1)


def _made_experts(
    rows: int, number: int, width: int, inner: int, chosen: int, dtype: torch.dtype, device: str = "cpu"
) -> tuple[Tensor, ...]:
    draw = torch.Generator(device).manual_seed(10)
    x, gate_up, down = (
        torch.randn(*shape, generator=draw, device=device).mul_(shape[-1] ** -0.5).to(dtype)
        for shape in ((rows, width), (number, 2 * inner, width), (number, width, inner)))
    choice = torch.rand(rows, number, generator=draw, device=device).topk(chosen).indices
    return x * width**0.5, gate_up, down, choice, torch.rand(rows, chosen, generator=draw, device=device)


def chosen_experts(device: str, dtype: torch.dtype) -> float:
    """The experts of 33 rows, one more than two tiles."""
    return _error(experts.decode_experts, experts.plain_decode_experts, device,
                  *_made_experts(33, 8, 320, 96, 3, dtype))


def shared_experts(device: str, dtype: torch.dtype) -> float:
    """The same beside two experts that every row goes through."""
    x, gate_up, down, choice, weight = _made_experts(33, 8, 320, 96, 3, dtype)
    choice = torch.cat((choice, torch.arange(8, 10).expand(33, -1)), dim=1)
    weight = torch.cat((weight, torch.ones(33, 2)), dim=1)
    gate, up = (_drawn(192, 320, seed=seed, dtype=dtype) / 320**0.5 for seed in (20, 21))
    out = _drawn(320, 192, seed=22, dtype=dtype) / 192**0.5

    def of(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, gate_up, down, choice, weight, *shared: function(x, gate_up, down, choice, weight, shared)

    return _error(of(experts.decode_experts), of(experts.plain_decode_experts), device, x, gate_up, down, choice,
                  weight, gate, up, out)


def choice_of_experts(device: str, dtype: torch.dtype) -> float:
    """The weights of V3's router, in the order of the experts; another expert counts as a miss by its whole weight."""
    config = PRESETS["deepseek-v3"].model_copy(update={"hidden_size": 512})
    module = moe.Gate(config).requires_grad_(False)
    module.weight.copy_(_drawn(256, 512, seed=23, dtype=torch.float32) / 8)
    assert module.e_score_correction_bias is not None
    module.e_score_correction_bias.copy_(_drawn(256, seed=24, dtype=torch.float32) / 8)
    x = _drawn(33, 512, seed=25, dtype=dtype)

    def weights(x: Tensor, module: moe.Gate, choose: Callable[..., tuple[Tensor, Tensor]]) -> Tensor:
        expert_BL, weight_BL = choose(x, module, 1)
        return torch.zeros(33, 257, dtype=torch.float64).scatter_(1, expert_BL.cpu(), weight_BL.double().cpu())

    module = module.to(dtype)
    expected = weights(x.double(), copy.deepcopy(module).double(), gate.plain_choose_experts)
    found = weights(x.to(device), module.to(device), gate.choose_experts)
    return float((found - expected).abs().max())


def queries(device: str, dtype: torch.dtype) -> float:
    """Queries carried into the latent's space, and the entries written with them, beside each other."""
    def of(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*args: Any) -> Tensor:
            q, up, entry, norm, cos, sin, pool, cell = args
            made = function(q, up, entry, norm, 1e-6, (cos, sin), True, pool, cell)
            return torch.cat((made.flatten(), pool.flatten()))
        return run
    angle = _drawn(33, 32, seed=26, dtype=torch.float32)
    up = _drawn(16, 256, 512, seed=27, dtype=dtype)[:, :128] / 128**0.5
    return _error(of(absorb.latent_queries), of(absorb.plain_latent_queries), device,
                  _drawn(33, 16, 192, seed=28, dtype=dtype), up, _drawn(33, 576, seed=29, dtype=dtype),
                  _drawn(512, seed=30, dtype=dtype), angle.cos(), angle.sin(), torch.zeros(9, 1, 64, 576, dtype=dtype),
                  torch.arange(33) * 15 + 64)


def values(device: str, dtype: torch.dtype) -> float:
    """Latent decoding through to values."""
    up = _drawn(16, 256, 512, seed=31, dtype=dtype)[:, 128:] / 512**0.5
    return _error(absorb.latent_values, absorb.plain_latent_values, device,
                  _drawn(len(LENGTHS), 16, 576, seed=2, dtype=dtype),
                  _drawn(len(LENGTHS) * 11 + 1, 1, 64, 576, seed=1, dtype=dtype), _table(len(LENGTHS), 11),
                  torch.tensor(LENGTHS), 0.1, up)


def whole_step(device: str, dtype: torch.dtype, config: ModelConfig | None = None) -> float:
    """Logits of a recorded step of 3 rows beside the model's own, over their deviation."""
    model = Transformer((config or TINY).model_copy(update={"num_hidden_layers": 3})).initialise(1)
    model = model.requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(4)
    model = model.to(dtype)
    found = []
    for there, kind in ((copy.deepcopy(model).double(), "cpu"), (model.to(device), device)):
        pages = Pages(model.config, 9, 16, there.embed_tokens.weight.dtype, kind)
        tables, lengths = [[1, 2, 3], [4, 5], [6]], [33, 17, 9]
        tokens = torch.randint(400, 8192, (sum(lengths),), generator=torch.Generator().manual_seed(2))
        there(tokens.to(kind), Layout.fresh(pages, tables, lengths))
        plan = Plan(there)
        for turn in range(2):  # the second is replayed
            ((_, _, layout),) = plan.layouts(pages, tables, lengths)
            logits = plan.step(F.pad(tokens[torch.tensor([5, 6, 7 + turn])], (0, plan.rows(3) - 3)).to(kind), layout)[1]
        found.append(logits[:3].double().cpu())
    return float((found[1] - found[0]).abs().max() / found[0].std())


def sum_and_norm(device: str, dtype: torch.dtype) -> float:
    """The residual sum's norm."""
    x, more = (_drawn(5, 2048, seed=seed, dtype=dtype) for seed in (11, 12))
    weight = _drawn(2048, seed=13, dtype=dtype)
    return _error(lambda *a: fused.add_norm(*a)[1], lambda *a: fused.plain_add_norm(*a)[1], device, x, more[:, None],
                  weight, 1e-6)


def latent_entry(device: str, dtype: torch.dtype) -> float:
    """A pool after entries were written into it."""
    def after(write: Callable[..., None]) -> Callable[..., Tensor]:
        def run(entry: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, pool: Tensor, cell: Tensor) -> Tensor:
            write(entry, weight, 1e-6, (cos, sin), True, pool, cell)
            return pool
        return run
    angle = _drawn(4, 32, seed=14, dtype=torch.float32)
    return _error(after(fused.write_latent), after(fused.plain_write_latent), device,
                  _drawn(4, 576, seed=15, dtype=dtype), _drawn(512, seed=16, dtype=dtype), angle.cos(), angle.sin(),
                  torch.zeros(4, 1, 64, 576, dtype=dtype), torch.tensor([3, 64, 130, 255]))


def alone(device: str, dtype: torch.dtype) -> float:
    """Share of numbers that differ in a row decoded with others and, split alike, by itself. None may where the kernels
    run; twins make no such promise and are taken as they are."""
    pool, q = (_drawn(*s, seed=17, dtype=dtype).to(device) for s in ((56, 1, 64, 576), (len(LENGTHS), 16, 576)))
    table, length = _table(len(LENGTHS), 11).to(device), torch.tensor(LENGTHS, device=device)
    if not decode.uses_kernel(q):
        return 0.0
    together = decode.paged_latent_decode(q, pool, table, length, 512, 0.1, 256)
    each = [decode.paged_latent_decode(q[b: b + 1], pool, table[b: b + 1], length[b: b + 1], 512, 0.1, 256)
            for b in range(len(LENGTHS))]
    return float((torch.cat(each) != together).double().mean())


def recorded(device: str, dtype: torch.dtype) -> float:
    """Share of numbers that differ between a step that is replayed and the same as it is; not recorded: 1."""
    x, gate_up, down, choice, weight = (t.to(device) for t in _made_experts(3, 8, 320, 96, 3, dtype))

    def step(x: Tensor, choice: Tensor, weight: Tensor) -> tuple[Tensor]:
        return (experts.decode_experts(x, gate_up, down, choice, weight),)

    if not device.startswith("cuda"):
        return 0.0
    graphed = Graphed(step)
    for turn in (x, -x, 2 * x):
        expected = step(turn, choice, weight)[0]
        if bool((graphed(turn, choice, weight)[0] != expected).any()):
            return 1.0
    return 0.0 if graphed.failed is None else 1.0


# FP32 sums in another order; BF16 results are rounded to 1/256, the inner ones of experts too
CHECKS: dict[str, tuple[Callable[[str, torch.dtype], float], float, float | None]] = {
    "latent decoding, 16 heads": (latent, 1e-5, 1e-2),
    "latent decoding, 128 heads": (lambda device, dtype: latent(device, dtype, 128), 1e-5, 1e-2),
    "latent decoding from bytes": (lambda device, dtype: latent(device, dtype, 16, True), 1e-5, 2e-2),
    "grouped decoding": (grouped, 1e-5, 1e-2), "paged prefill": (paged, 1e-5, 1e-2),
    "packed prefill": (packed, 1e-5, 1e-2), "chosen experts": (chosen_experts, 1e-5, 2e-2),
    "shared experts": (shared_experts, 1e-5, 2e-2), "choice of experts": (choice_of_experts, 1e-5, 1e-4),
    "sum and norm": (sum_and_norm, 1e-5, 1e-2), "latent entry": (latent_entry, 1e-5, 1e-2),
    "absorbed queries": (queries, 1e-5, 1e-2), "values of latents": (values, 1e-5, 1e-2),
    "a whole step": (whole_step, 1e-4, None),
    "a whole step, grouped": (partial(whole_step, config=GROUPED), 1e-4, None),
    "rows that depend on the batch": (alone, 0.0, 0.0), "recorded steps that differ": (recorded, 0.0, 0.0),
}


# --- fast ---

@dataclass(frozen=True)
class Case:
    """Calls number 0, 1, … go through `copies` sets of tensors in turn; each reads `bytes` and multiplies `flops`."""

    name: str
    ours: Callable[[int], object]
    twin: Callable[[int], object]
    bytes: float
    flops: float = 0.0
    copies: int = 1


def _sets(size: float, device: str) -> int:
    """How many sets of tensors of `size` bytes no cache of the device holds."""
    return max(1, min(64, math.ceil(UNCACHED / size))) if device.startswith("cuda") else 1


def copy_rate(device: str) -> float:
    """Bytes per second that a large copy reads and writes."""
    a = torch.empty(2**30 if device.startswith("cuda") else 2**25, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2 * len(a) / statistics.median(_seconds(lambda: b.copy_(a)))


def _seconds(run: Callable[[], object], calls: int = 1) -> list[float]:
    """Of one call, `calls` being made by `run`: ROUNDS times after two that do not count."""
    found = []
    for number in range(ROUNDS + 2):
        wait()
        start = time.perf_counter()
        run()
        wait()
        if number >= 2:
            found.append((time.perf_counter() - start) / calls)
    return found


def _timed(call: Callable[[int], object], copies: int, device: str, record: bool) -> list[float]:
    """Seconds of a call; on a GPU recorded calls are replayed, so that Python's time is not counted."""
    def run() -> Tensor:
        for number in range(copies):
            call(number)
        return torch.empty(0, device=device)
    if record and device.startswith("cuda"):
        return _seconds(record_cuda(run)[0], copies)
    return _seconds(run, copies)


def _latent_case(rows: int, length: int, heads: int, device: str, in_bytes: bool = False) -> Case:
    blocks, size = length // 64, rows * length * (656 if in_bytes else 1152)
    made = [torch.randn(rows * blocks + 1, 1, 64, 576, device=device, dtype=torch.bfloat16)
            for _ in range(_sets(size, device))]
    pools = [latent_fp8.quantise_entries(pool, 512) for pool in made] if in_bytes else made
    q = torch.randn(rows, heads, 576, device=device, dtype=torch.bfloat16)
    args = (_table(rows, blocks).to(device), torch.full((rows,), length, device=device), 512, 0.1)
    return Case(f"latent decoding{' from bytes' * in_bytes}, {heads} heads, {rows} × {length}",
                lambda i: decode.paged_latent_decode(q, pools[i], *args),
                lambda i: decode.plain_latent_decode(q, pools[i], *args), size, copies=len(pools))


def _grouped_case(rows: int, length: int, device: str) -> Case:
    blocks, size = length // 64, rows * length * 8 * 128 * 2 * 2
    pools = [[torch.randn(rows * blocks + 1, 8, 64, 128, device=device, dtype=torch.bfloat16) for _ in range(2)]
             for _ in range(_sets(size, device))]
    q = torch.randn(rows, 32, 128, device=device, dtype=torch.bfloat16)
    args = (_table(rows, blocks).to(device), torch.full((rows,), length, device=device), 0.1)
    return Case(f"grouped decoding, 32 heads of 8 groups, {rows} × {length}",
                lambda i: decode.paged_grouped_decode(q, *pools[i], *args),
                lambda i: decode.plain_grouped_decode(q, *pools[i], *args), size, copies=len(pools))


def _experts_case(rows: int, shape: tuple[int, int, int, int], device: str) -> Case:
    number, width, inner, chosen = shape
    made = _made_experts(rows, *shape, torch.bfloat16, device)
    read = len(made[3].unique()) * 3 * width * inner * 2  # more than a GPU's own cache holds
    return Case(f"{chosen} of {number} experts, {width} × {inner}, {rows} rows",
                lambda i: experts.decode_experts(*made),
                lambda i: experts.plain_decode_experts(*made), read)


def _prefill_cases(sequences: int, length: int, device: str) -> list[Case]:
    tokens, kind = sequences * length, {"device": device, "dtype": torch.bfloat16}
    bounds = torch.arange(0, tokens + 1, length, device=device)
    q, k = (torch.randn(tokens, 16, 192, **kind) for _ in range(2))
    v = torch.randn(tokens, 16, 128, **kind)
    pairs = sequences * length * (length + 1) / 2
    cases = [Case(f"packed prefill, 16 heads, {sequences} × {length}",
                  lambda i: prefill.packed_prefill(q, k, v, bounds, bounds, 0.1, length),
                  lambda i: prefill.plain_packed_prefill(q, k, v, bounds, bounds, 0.1),
                  tokens * 16 * (192 + 192 + 128 + 128) * 2, pairs * 16 * 2 * (192 + 128))]
    pool = torch.randn(tokens // 64 + 1, 8, 64, 128, **kind)
    q2, table = torch.randn(tokens, 32, 128, **kind), _table(sequences, length // 64).to(device)
    past = torch.zeros(sequences, dtype=torch.long, device=device)
    cases.append(Case(f"paged prefill, 32 heads of 8 groups, {sequences} × {length}",
                      lambda i: prefill.paged_prefill(q2, pool, pool, table, bounds, past, 0.1, length),
                      lambda i: prefill.plain_paged_prefill(q2, pool, pool, table, bounds, past, 0.1),
                      tokens * (2 * 32 + 2 * 8) * 128 * 2, pairs * 32 * 2 * 256))
    return cases


def _small_cases(rows: int, device: str) -> list[Case]:
    kind = {"device": device, "dtype": torch.bfloat16}
    x, weight, entry = torch.randn(rows, 2048, **kind), torch.ones(2048, **kind), torch.randn(rows, 576, **kind)
    angle = torch.randn(rows, 32, device=device)
    args = (entry, torch.ones(512, **kind), 1e-6, (angle.cos(), angle.sin()), True, torch.zeros(8, 1, 64, 576, **kind),
            torch.arange(rows, device=device))
    return [Case(f"sum and norm, {rows} × 2048", lambda i: fused.add_norm(x, x[:, None], weight, 1e-6),
                 lambda i: fused.plain_add_norm(x, x[:, None], weight, 1e-6), rows * 2048 * 8),
            Case(f"latent entry, {rows} rows", lambda i: fused.write_latent(*args),
                 lambda i: fused.plain_write_latent(*args), rows * 576 * 4)]


def cases(device: str) -> list[Callable[[], list[Case]]]:
    """Makers of cases, so that one's tensors are gone before the next are made."""
    if not device.startswith("cuda"):
        return [lambda: [_latent_case(2, 128, 16, device), _latent_case(2, 128, 16, device, True)],
                lambda: [_grouped_case(2, 128, device)], lambda: [_experts_case(2, (8, 64, 32, 2), device)],
                lambda: _prefill_cases(2, 64, device), lambda: _small_cases(2, device)]
    lite, large = (64, 2048, 1408, 6), (256, 7168, 2048, 8)
    shapes = [(1, 4096, 16), (16, 4096, 16), (256, 1024, 16), (1, 4096, 128), (64, 4096, 128)]
    return [*(lambda s=s: [_latent_case(*s, device)] for s in shapes),
            lambda: [_latent_case(64, 4096, 128, device, True)],
            *(lambda r=r: [_grouped_case(r, 4096, device)] for r in (1, 64)),
            *(lambda r=r: [_experts_case(r, lite, device)] for r in (1, 4, 16, 32)),
            lambda: [_experts_case(1, large, device)], lambda: _prefill_cases(4, 2048, device),
            lambda: _small_cases(1, device), lambda: _small_cases(64, device)]


def measure(device: str) -> list[Pair]:
    """Prints a table, ours beside the twin in plain PyTorch; returns the pairs."""
    rate = copy_rate(device)
    print(f"large copies: {rate / 1e9:,.0f} GB/s read and written\n\n| kernel | Fathom | plain PyTorch | ratio of "
          f"medians (smallest–largest of a round) | read | of the copies' rate | multiplied |\n{'|---' * 7}|",
          flush=True)
    pairs = []
    for make in cases(device):
        for case in make():
            ours = _timed(case.ours, case.copies, device, True)
            twin = _timed(case.twin, case.copies, device, False)  # some ask the device, and cannot be recorded
            seconds = statistics.median(ours)
            notes = {"GB/s": case.bytes / seconds / 1e9, "share of copies": case.bytes / seconds / rate,
                     "TFLOP/s": case.flops / seconds / 1e12}
            pairs.append(Pair(case.name, ours, twin, notes=notes))
            work = f"{notes['TFLOP/s']:,.1f} TFLOP/s" if case.flops else ""
            line = pairs[-1].line().removesuffix("|  |")
            print(f"{line}| {notes['GB/s']:,.1f} GB/s | {notes['share of copies']:.0%} | {work} |", flush=True)
    return pairs


def _read_in_a_step(config: ModelConfig, rows: int, tokens: int) -> float:
    """Bytes that a step must read in BF16: weights, of routed experts those that `rows` rows are expected to choose,
    and the entries of `tokens` tokens in all."""
    touched = 1 - (1 - config.num_experts_per_tok / config.n_routed_experts) ** rows
    total = 0.0
    for tensors in cost.tensors(config):
        if tensors.part != "embedding":
            total += tensors.copies * tensors.size * (4 if tensors.stored == "fp32" else 2) * (
                touched if tensors.part == "routed_experts" else 1)
    return total + 2 * cost.cost(config).cache_elements * tokens


def _random(config: ModelConfig, dtype: torch.dtype, device: str) -> Transformer:
    with torch.device("meta"):
        model = Transformer(config)
    model = model.to(dtype).to_empty(device=device).requires_grad_(False).eval()
    draw = torch.Generator(device).manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.fill_(1.0)
        else:
            parameter.normal_(0, 1.0 / math.sqrt(parameter.shape[-1]), generator=draw)
    return model


def step_alone(model: Transformer, batch: int, tokens: int) -> float:
    """Seconds of one decoding step of `batch` rows which attend to so many tokens, nothing around it."""
    device, block = model.embed_tokens.weight.device, 16
    each = -(-tokens // block)
    pages = Pages(model.config, batch * each + 1, block, model.embed_tokens.weight.dtype, device)
    tables = [list(range(1 + row * each, 1 + (row + 1) * each)) for row in range(batch)]
    plan = Plan(model)
    ((_, empty, layout),) = plan.layouts(pages, tables, [tokens] * batch)
    token_B = torch.randint(400, model.config.vocab_size, (batch + empty,), device=device)
    with torch.inference_mode():
        return statistics.median(_seconds(lambda: [plan.step(token_B, layout) for _ in range(8)], 8))


def decoding(device: str) -> list[str]:
    """Rows of tables: greedy decoding by batch, a step alone and the engine with prefill taken off, beside the floor;
    then prefill."""
    on_gpu = device.startswith("cuda")
    kind = torch.bfloat16 if on_gpu else torch.float32
    rate = copy_rate(device)
    rows: list[str] = []
    for name, config in (MODELS if on_gpu else {"tiny": TINY}).items():
        rows += _decoded(name, _random(config, kind, device), rate, BATCHES if on_gpu else BATCHES[:2],
                         NEW if on_gpu else 8)
    return rows


def _decoded(name: str, model: Transformer, rate: float, batches: tuple[int, ...], new: int) -> list[str]:
    config, kind = model.config, model.embed_tokens.weight.dtype
    with tempfile.TemporaryDirectory() as folder:
        _, tokenizer = models.ours(Path(folder) / "model")
    engine = Engine(model, tokenizer, EngineSettings(batch=max(batches)))
    rows = [f"\n{name}: {sum(p.numel() for p in model.parameters()) / 1e9:.2f} billion parameters, {kind}, prompts of "
            f"{PROMPT}, {new} new tokens\n",
            "| batch | floor, ms | a step alone, ms | of the floor's speed | engine, ms a token | of the floor's speed "
            "| tokens/s |", "|---" * 7 + "|"]
    print("\n".join(rows), flush=True)
    for batch in batches:
        prompts = torch.randint(400, config.vocab_size, (batch, PROMPT),
                                generator=torch.Generator().manual_seed(batch)).tolist()
        seconds = []
        for tokens in (1, new):
            asked = Sampling(max_tokens=tokens, temperature=0, ignore_stop=True)

            def run(prompts: list[list[int]] = prompts, asked: Sampling = asked) -> None:
                done = engine.complete(prompts, asked)
                assert all(len(each[0].tokens) == asked.max_tokens for each in done)

            seconds.append(statistics.median(_seconds(run)))
        each = (seconds[1] - seconds[0]) / (new - 1)
        alone = step_alone(model, batch, PROMPT + new // 2)
        floor = _read_in_a_step(config, batch, batch * (PROMPT + new // 2)) / rate
        rows.append(f"| {batch} | {floor * 1e3:.3f} | {alone * 1e3:.3f} | {floor / alone:.0%} | {each * 1e3:.3f} | "
                    f"{floor / each:.0%} | {batch / each:,.0f} |")
        print(rows[-1], flush=True)
    length = min(1024, config.max_position_embeddings // 2)
    prompts = torch.randint(400, config.vocab_size, (8, length), generator=torch.Generator().manual_seed(1)).tolist()
    one = Sampling(max_tokens=1, temperature=0, ignore_stop=True)
    seconds = _seconds(lambda: engine.complete(prompts, one))
    work = cost.cost(config).forward_flops(length) * 8 * length
    rows.append(f"\nprefill of 8 × {length}: {8 * length / statistics.median(seconds):,.0f} tokens/s, "
                f"{work / statistics.median(seconds) / 1e12:,.1f} TFLOP/s")
    print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Both tables, and the single times as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args().device
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit(f"--device {device}: this torch sees no CUDA device; --device cpu tries tiny shapes")
    name = torch.cuda.get_device_name() if device.startswith("cuda") else machine.device()
    print(f"{name}, torch {torch.__version__}", flush=True)
    pairs = measure(device)
    print()
    rows = decoding(device)
    if device.startswith("cuda"):
        print(f"saved in {save('kernels', pairs, {'device': name, 'decoding': rows})}")


if __name__ == "__main__":
    main()

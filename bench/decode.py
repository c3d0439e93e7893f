"""Greedy decoding against transformers' `generate`: 128 tokens after prompts of 32, the same tokens out in FP32.

`python -m bench decode`, `compiled`: the model of all benches, FP32. `python -m bench real [--model DIR]`: SmolLM2-135M
as it is published, in FP32 and BF16 (`real 1`: at batch 1 alone); weights of 8 bits beside our own BF16; and the
ceiling, every one of the model's matrices multiplied by as many rows and nothing else, in the same rounds.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import torch

from bench import models
from bench.measure import Pair, interleave
from fathom.core.chat import Sampling
from fathom.engine.engine import Engine
from fathom.engine.settings import EngineSettings
from fathom.model import weights
from fathom.model.transformer import Transformer

PROMPT, NEW = 32, 128
BARS = {False: {1: 2.5, 8: None, 32: 4.0}, True: {1: 4.0, 8: None, 32: 6.0}}
REAL_BARS = {torch.float32: {1: None, 32: None}, torch.bfloat16: {1: 1.3, 32: 1.8}}
CEILING, EIGHT_BITS = 0.75, 1.6


def measure(
    rounds: int = 5, compiled: bool = False, batches: tuple[int, ...] = (1, 8, 32), device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> list[Pair]:
    """Both sides eager, or both compiled; on a GPU our side records its steps as graphs either way."""
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "model"
        model, tokenizer = models.ours(directory, device=device)
        model = model.to(dtype)
        engine = Engine(model, tokenizer, EngineSettings(compile=compiled and device == "cpu"))
        peer = models.theirs(directory, "batched_mm" if compiled else "grouped_mm", dtype, device)
        options = {}
        if compiled:
            peer.forward = torch.compile(peer.forward)
            options["cache_implementation"] = "static"
        for size in batches:
            rng = np.random.default_rng(size)
            prompts = rng.integers(400, 8192, (size, PROMPT))
            ids = torch.from_numpy(prompts).to(device)
            sampling = Sampling(max_tokens=NEW, temperature=0)
            out: dict[str, list[list[int]]] = {}

            def run_ours(prompts=prompts, sampling=sampling, out=out) -> None:
                done = engine.complete([p.tolist() for p in prompts], sampling)
                out["ours"] = [list(d[0].tokens) for d in done]

            def run_theirs(ids=ids, out=out) -> None:
                with torch.no_grad():
                    done = peer.generate(
                        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW, **options)
                out["theirs"] = done[:, PROMPT:].tolist()

            seconds = interleave(run_ours, run_theirs, rounds)
            same = float(np.mean([a == b for o, t in zip(out["ours"], out["theirs"], strict=True)
                                  for a, b in zip(o, t, strict=True)]))
            how = "compiled" if compiled else "eager"
            pairs.append(Pair(f"greedy decoding, batch {size}, {how}", *seconds, bar=BARS[compiled].get(size),
                              work=size * NEW, notes={"equal tokens": same}))
            print(pairs[-1].line(), flush=True)
    return pairs


def real(directory: Path, rounds: int = 5, batches: tuple[int, ...] = (1, 32)) -> list[Pair]:
    """A published model in FP32 and BF16 beside transformers and beside its own matrices alone; then 8 bits."""
    from transformers import AutoModelForCausalLM

    pairs = []
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        model, tokenizer = weights.load(directory, dtype)
        peer = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
        peer.generation_config.eos_token_id = None
        peer.generation_config.pad_token_id = 0
        engine = Engine(model, tokenizer, EngineSettings(cache_gb=1))
        for size in batches:
            prompts = np.random.default_rng(size).integers(400, 8192, (size, PROMPT))
            ids = torch.from_numpy(prompts)
            sampling = Sampling(max_tokens=NEW, temperature=0, ignore_stop=True)

            def ours(engine=engine, prompts=prompts, sampling=sampling) -> None:
                engine.complete(prompts.tolist(), sampling)

            def theirs(peer=peer, ids=ids) -> None:
                with torch.no_grad():
                    peer.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW)

            pairs.append(Pair(f"{directory.name}, {name}, batch {size}", *interleave(ours, theirs, rounds),
                              bar=REAL_BARS[dtype][size], work=size * NEW))
            print(pairs[-1].line(), flush=True)
            alone = Pair(f"{directory.name}, {name}, batch {size}: beside its matrices alone",
                         *interleave(ours, lambda m=model, b=size: _matrices(m, b), rounds), bar=CEILING,
                         work=size * NEW)
            pairs.append(alone)
            print(alone.line(), flush=True)
        if dtype == torch.bfloat16:
            pairs += _eight_bits(directory.name, engine, batches, rounds)
        del model, peer, engine
    return pairs


def _eight_bits(name: str, engine: Engine, batches: tuple[int, ...], rounds: int) -> list[Pair]:
    small = Engine(engine.model, engine.tokenizer, EngineSettings(cache_gb=1, int8=True))
    pairs = []
    for size in batches:
        prompts = np.random.default_rng(size).integers(400, 8192, (size, PROMPT)).tolist()
        sampling = Sampling(max_tokens=NEW, temperature=0, ignore_stop=True)
        sides = [functools.partial(side.complete, prompts, sampling) for side in (small, engine)]
        pairs.append(Pair(f"{name}, 8 bits beside our own BF16, batch {size}", *interleave(*sides, rounds),
                          bar=EIGHT_BITS if size == 1 else None, work=size * NEW))
        print(pairs[-1].line(), flush=True)
    return pairs


@torch.inference_mode()
def _matrices(model: Transformer, rows: int) -> None:
    """NEW steps of every matrix times `rows` rows."""
    matrices = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    inputs = {w.shape[1]: torch.ones(rows, w.shape[1], dtype=w.dtype) for w in matrices}
    for _ in range(NEW):
        for weight in matrices:
            torch.nn.functional.linear(inputs[weight.shape[1]], weight)

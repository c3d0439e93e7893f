"""Greedy decoding against transformers' `generate`: 128 tokens after prompts of 32, FP32, the same tokens out."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from bench import models
from bench.measure import Pair, interleave
from fathom.core.chat import Sampling
from fathom.engine.engine import Engine
from fathom.engine.settings import EngineSettings

PROMPT, NEW = 32, 128
BARS = {False: {1: 2.0, 8: None, 32: 4.0}, True: {1: 3.0, 8: None, 32: 5.0}}


def measure(
    rounds: int = 5, compiled: bool = False, batches: tuple[int, ...] = (1, 8, 32), device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> list[Pair]:
    """Both sides eager, or both compiled."""
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "model"
        model, tokenizer = models.ours(directory, device=device)
        model = model.to(dtype)
        engine = Engine(model, tokenizer, EngineSettings(compile=compiled))
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

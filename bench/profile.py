"""Where the time of a training step and of a decoding step goes, by operation."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from torch.profiler import ProfilerActivity, profile

from bench import models
from bench.train import made_tokens, stepper
from fathom.core.chat import Sampling
from fathom.engine.engine import Engine

LARGEST = 12  # operations shown of each


def shares() -> str:
    """Two tables: the share of the processor's time that the largest operations take themselves."""
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = models.ours(Path(folder) / "model")
    engine = Engine(model, tokenizer)
    prompts = np.random.default_rng(0).integers(400, 8192, (32, 32)).tolist()

    def decode() -> None:
        engine.complete(prompts, Sampling(max_tokens=64, temperature=0))

    tables = []
    for name, run in (
        ("training step, 16 × 256 tokens", stepper(model, made_tokens())), ("greedy decoding, batch 32", decode)
    ):
        run()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            run()
        rows = sorted(seen.key_averages(), key=lambda row: -row.self_cpu_time_total)
        total = sum(row.self_cpu_time_total for row in rows)
        lines = [f"| {row.key} | {100 * row.self_cpu_time_total / total:.1f} % |" for row in rows[:LARGEST]]
        tables.append("\n".join([f"| {name} | share |", "|---|---|", *lines]))
    return "\n\n".join(tables)

"""Where the time of a training step and of a decoding step goes, by operation."""

from __future__ import annotations

import numpy as np
from torch.profiler import ProfilerActivity, profile

from bench import models
from fathom.core.chat import Sampling
from fathom.engine.engine import Engine
from fathom.model.config import PRESETS
from fathom.model.tokenizer import Tokenizer
from fathom.model.transformer import Transformer
from fathom.train import objective
from fathom.train.batch import Example, pack, token_mean
from fathom.train.optim import Optimiser
from fathom.train.schedule import AdamW

LARGEST = 12  # operations shown of each


def shares() -> str:
    """Two tables: the share of the processor's time that the largest operations take themselves."""
    model = Transformer(PRESETS[models.PRESET]).initialise(0)
    optimiser = Optimiser(model, AdamW(lr=1e-4))
    rng = np.random.default_rng(0)
    examples = [Example(rng.integers(0, 8192, 257, dtype=np.int32), np.ones(257, dtype=bool)) for _ in range(16)]

    def train() -> None:
        for batch in pack(examples, token_mean, 4096):
            objective.next_token(model, batch).total.backward()
        optimiser.step(1e-4, optimiser.gradient_norm())

    engine = Engine(model, Tokenizer.train([f"{a} + {a} = {2 * a}" for a in range(99)], 280))
    prompts = rng.integers(300, 8192, (32, 32)).tolist()

    def decode() -> None:
        engine.complete(prompts, Sampling(max_tokens=64, temperature=0))

    tables = []
    for name, run in (("training step, 16 × 256 tokens", train), ("greedy decoding, batch 32", decode)):
        run()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            run()
        rows = sorted(seen.key_averages(), key=lambda row: -row.self_cpu_time_total)
        total = sum(row.self_cpu_time_total for row in rows)
        lines = [f"| {row.key} | {100 * row.self_cpu_time_total / total:.1f} % |" for row in rows[:LARGEST]]
        tables.append("\n".join([f"| {name} | share |", "|---|---|", *lines]))
    return "\n\n".join(tables)

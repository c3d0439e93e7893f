"""Training steps per second against transformers: forward, backward, clipping, AdamW on 16 sequences of 256 tokens."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from bench import models
from bench.measure import Pair, interleave
from fathom.model.transformer import Transformer
from fathom.train import objective
from fathom.train.batch import Example, pack, token_mean
from fathom.train.optim import Optimiser
from fathom.train.schedule import AdamW

SEQUENCES, LENGTH = 16, 256
SETTINGS = AdamW(lr=1e-4, weight_decay=0.1)


def made_tokens() -> np.ndarray:
    """Random tokens, [sequences, length + 1]."""
    return np.random.default_rng(0).integers(0, 8192, (SEQUENCES, LENGTH + 1), dtype=np.int32)


def stepper(model: Transformer, tokens: np.ndarray) -> Callable[[], None]:
    """One whole step of ours on `tokens`, as a function."""
    optimiser = Optimiser(model, SETTINGS)
    examples = [Example(row, np.ones(len(row), dtype=bool)) for row in tokens]
    device = model.embed_tokens.weight.device

    def step() -> None:
        for batch in pack(examples, token_mean, SEQUENCES * LENGTH, device):
            objective.next_token(model, batch).total.backward()
        optimiser.step(SETTINGS.lr, optimiser.gradient_norm())

    return step


def measure(rounds: int = 7, device: str = "cpu") -> list[Pair]:
    """Each side in FP32 and with BF16; the bar is between the faster of each."""
    tokens = made_tokens()
    work = SEQUENCES * LENGTH
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "model"
        models.ours(directory)
        seconds = {}
        for kind, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            step_ours = stepper(models.ours(directory, device=device)[0].to(dtype), tokens)
            peer = models.theirs(directory, device=device).train()
            adam = torch.optim.AdamW(
                peer.parameters(), lr=SETTINGS.lr, betas=SETTINGS.betas, weight_decay=0.1, fused=True)
            ids = torch.from_numpy(tokens[:, :-1].astype(np.int64)).to(device)
            # what the field does on its side: FP32 weights, autocast for the products
            cast = torch.autocast(device, torch.bfloat16) if dtype == torch.bfloat16 else nullcontext()

            def step_theirs(peer=peer, adam=adam, ids=ids, cast=cast) -> None:
                with cast:
                    loss = peer(input_ids=ids, labels=ids).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(peer.parameters(), SETTINGS.clip)
                adam.step()
                adam.zero_grad(set_to_none=True)

            seconds[kind] = interleave(step_ours, step_theirs, rounds)
            pairs.append(Pair(f"training step, {kind}", *seconds[kind], work=work))
    best_ours = min((s[0] for s in seconds.values()), key=np.median)
    best_theirs = min((s[1] for s in seconds.values()), key=np.median)
    pairs.append(Pair("training step, best precision of each", best_ours, best_theirs, bar=1.3, work=work))
    return pairs

"""Examples of one optimiser step: documents, chats, and groups of completions with a shared prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fathom.model.config import ModelConfig
from fathom.model.layout import Layout
from fathom.model.transformer import Transformer
from fathom.train.batch import Batch, Example, WeightRule, pack
from fathom.train.objective import Loss


def documents(config: ModelConfig, *lengths: int, seed: int = 0) -> list[Example]:
    """Texts of which every token but the first is trained, and every third text only in its second half."""
    rng = np.random.default_rng(seed)
    made = []
    for number, n in enumerate(lengths):
        trained = np.arange(n) >= (n // 2 if number % 3 == 2 else 1)
        made.append(Example(rng.integers(0, config.vocab_size, n, dtype=np.int32), trained))
    return made


@torch.no_grad()
def sequence_logp(model: Transformer, example: Example, temperature: float = 1.0) -> np.ndarray:
    """Log-probability of each of an example's tokens under `model`, the example alone; 0 for the first."""
    tokens = torch.from_numpy(example.tokens.astype(np.int64))
    hidden = model(tokens[:-1], Layout.packed([len(tokens) - 1]))
    logp = (model.logits(hidden).double() / temperature).log_softmax(-1)
    return np.concatenate([[0.0], logp.gather(1, tokens[1:, None])[:, 0].numpy()])


def rollout(
    config: ModelConfig, sampler: Transformer, temperature: float = 1.0, groups: Sequence[Sequence[int]] = (
        (4, 9, 1, 6), (3, 3, 11), (7, 2)), prompts: Sequence[int] = (6, 1, 9), seed: int = 0, shared: bool = True,
) -> list[Example]:
    """Groups of completions of the given lengths, random tokens with the sampler's own log-probabilities."""
    rng = np.random.default_rng(seed)
    made = []
    for number, (lengths, n) in enumerate(zip(groups, prompts, strict=True)):
        prompt = rng.integers(0, config.vocab_size, n)
        for length in lengths:
            tokens = np.concatenate([prompt, rng.integers(0, config.vocab_size, length)]).astype(np.int32)
            bare = Example(tokens, np.arange(len(tokens)) >= n)
            made.append(Example(
                tokens, bare.trained, float(rng.normal()), sequence_logp(sampler, bare, temperature),
                group=str(number) if shared else None, shared=n if shared else 0,
            ))
    return made


def step(model: Transformer, examples: Sequence[Example], weigh: WeightRule, size: int, objective) -> list[Loss]:
    """The losses of a whole step, their gradients accumulated on the model."""
    losses = []
    for batch in packed(model, examples, weigh, size):
        loss = objective(model, batch)
        loss.total.backward()
        losses.append(loss)
    return losses


def packed(model: Transformer, examples: Sequence[Example], weigh: WeightRule, size: int) -> list[Batch]:
    """The step's batches in the model's type."""
    return pack(examples, weigh, size, dtype=model.embed_tokens.weight.dtype)


def total(losses: Sequence[Loss], part: str = "loss") -> float:
    """A loss term summed over micro-batches."""
    return sum(float(loss.parts[part]) for loss in losses)

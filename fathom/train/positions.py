"""Loss by position: how well a model predicts at the front of a long text and deep inside it, and whether that bends.

A model that was stretched well predicts the better the more it has read. Where its positions are strange to it, the
curve turns upwards.
"""

# T tokens of one text, N texts, B buckets of positions

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fathom.core.errors import FathomError
from fathom.model.head import log_probabilities
from fathom.model.transformer import Transformer
from fathom.train.batch import Example, pack, token_mean


@dataclass(frozen=True)
class Curve:
    """Mean loss of each bucket of positions, in nats per token, for each of N texts.

    Bucket b holds the predictions made at positions edges[b] … edges[b + 1] − 1; `loss_NB` is [N, B].
    """

    edges: tuple[int, ...]
    loss_NB: np.ndarray

    @property
    def mean(self) -> list[float]:
        """Over the texts, [B]."""
        return [float(value) for value in self.loss_NB.mean(0)]

    @property
    def error(self) -> list[float]:
        """Standard errors of the means, [B]: texts are the independent units, not their tokens."""
        return [float(value) for value in self.loss_NB.std(0, ddof=1) / math.sqrt(len(self.loss_NB))]

    def within(self, length: int) -> np.ndarray:
        """Each text's mean loss over positions below `length`, which is one of the edges, [N]."""
        last = self.edges.index(length)
        widths_B = np.diff(self.edges[: last + 1])
        found: np.ndarray = (self.loss_NB[:, :last] * widths_B).sum(1) / length
        return found

    def to_json(self) -> dict[str, Any]:
        """A JSON value that `from_json` restores; mean and error stand beside for readers."""
        return {"edges": list(self.edges), "loss": self.mean, "error": self.error, "texts": self.loss_NB.tolist()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Curve:
        """Reads what `to_json` wrote."""
        return cls(tuple(value["edges"]), np.asarray(value["texts"], dtype=np.float64))


def edges(original: int, target: int) -> tuple[int, ...]:
    """Bounds of buckets: up to `original` each twice as long as the one before, from there to `target` √2 times."""
    inside = [original >> shift for shift in (3, 2, 1) if original >> shift > 0]
    beyond, length = [], float(original)
    while (length := length * math.sqrt(2)) < target * 0.99:  # a last bucket of a hundredth would say nothing
        beyond.append(round(length))
    return tuple(dict.fromkeys((0, *inside, original, *beyond, target)))


@torch.no_grad()
def loss_by_position(model: Transformer, texts: Sequence[Example], bounds: Sequence[int]) -> Curve:
    """The curve over `texts`, each of bounds[-1] + 1 tokens or more; one text goes through the model at a time."""
    device = model.embed_tokens.weight.device
    was_training = model.training
    model.eval()
    rows = []
    for number, text in enumerate(texts):
        if len(text.tokens) <= bounds[-1]:
            raise FathomError(f"text {number}: {len(text.tokens)} tokens, and {bounds[-1] + 1} are measured; take "
                              "longer ones")
        tokens = text.tokens[: bounds[-1] + 1]
        [batch] = pack([Example(tokens, np.ones(len(tokens), dtype=bool))], token_mean, len(tokens), device)
        hidden_TD = model(batch.tokens, batch.layout)
        loss_T = -log_probabilities(hidden_TD, model.lm_head.weight, batch.targets).double().cpu().numpy()
        if not np.isfinite(loss_T).all():
            raise FathomError(f"text {number}: no finite loss at position {int(np.argmin(np.isfinite(loss_T)))}; "
                              "the model is damaged, or its number type too narrow: try dtype=float32")
        rows.append([float(loss_T[a:b].mean()) for a, b in itertools.pairwise(bounds)])
    model.train(was_training)
    return Curve(tuple(bounds), np.asarray(rows))


def bend(curve: Curve, original: int, margin: float) -> str | None:
    """What is wrong where the curve turns upwards past `original`, or None.

    It does where the mean loss of a bucket past `original` exceeds the lowest mean of any bucket before it by more than
    `margin` nats plus two standard errors of the difference, taken within each text: how much texts differ from one
    another says nothing about it. The bucket that exceeds most is named.
    """
    mean = curve.mean
    worst: tuple[float, int, int, float] | None = None
    for b in range(curve.edges.index(original), len(mean)):
        best = min(range(b), key=lambda i: mean[i])
        difference_N = curve.loss_NB[:, b] - curve.loss_NB[:, best]
        doubt = 2 * float(difference_N.std(ddof=1)) / math.sqrt(len(difference_N))
        excess = mean[b] - mean[best] - margin - doubt
        if excess > 0 and (worst is None or excess > worst[0]):
            worst = (excess, b, best, doubt)
    if worst is None:
        return None
    _, b, best, doubt = worst
    return (f"the loss bends: {mean[b]:.3f} nats at positions {span(curve, b)}, {mean[best]:.3f} at "
            f"{span(curve, best)}; {mean[b] - mean[best]:.3f} more, where margin {margin:g} + 2 standard errors are "
            f"{margin + doubt:.3f}")


def worsened(before: Curve, after: Curve, original: int, margin: float) -> str | None:
    """What is wrong where positions below `original` are predicted worse than before, or None.

    They are where the mean difference over the same texts exceeds `margin` nats plus two of its standard errors.
    """
    difference_N = after.within(original) - before.within(original)
    mean = float(difference_N.mean())
    doubt = 2 * float(difference_N.std(ddof=1)) / math.sqrt(len(difference_N))
    if mean <= margin + doubt:
        return None
    return (f"short texts got worse: {mean:+.3f} nats at positions below {original:,} over the model as it came, where "
            f"margin {margin:g} + 2 standard errors are {margin + doubt:.3f}")


def span(curve: Curve, bucket: int) -> str:
    """A bucket's positions, for people."""
    return f"{curve.edges[bucket]:,}–{curve.edges[bucket + 1] - 1:,}"

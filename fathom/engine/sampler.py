"""Draws the next token of many requests at once, each from its own named randomness."""

# B requests, V vocabulary

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fathom.model.device import full_precision

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniforms(seeds_B: np.ndarray, step: int) -> np.ndarray:
    """One number in [0, 1) per request, [B] float64, a function of (seed, step) alone.

    Splitmix64: a counter-based generator, so a request draws the same numbers whatever else is in the batch and
    wherever it was resumed. `seeds_B` is uint64.
    """
    with np.errstate(over="ignore"):
        z = seeds_B + GOLDEN * np.uint64(step + 1)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def sample(logits_BV: Tensor, uniform_B: np.ndarray, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """Token ids [B] and natural log-probabilities [B] of the distribution they were drawn from.

    Temperature 0 is greedy; its log-probability is that of the untempered distribution. With `top_p` < 1 the
    probabilities outside the smallest set that reaches it are dropped and the rest is normalised again.
    """
    logits_BV = logits_BV.to(full_precision(logits_BV.dtype))
    if temperature == 0:
        highest_B, token_B = logits_BV.max(-1)
        return token_B, highest_B - logits_BV.logsumexp(-1)
    logp_BV = (logits_BV / temperature).log_softmax(-1)
    if top_p < 1:
        logp_BV = _nucleus(logp_BV, top_p)
    # inverse of the distribution function, in FP64: the first token whose cumulated probability exceeds the draw
    cumulated_BV = logp_BV.double().exp().cumsum(-1)
    drawn_B1 = torch.from_numpy(uniform_B).to(logits_BV.device)[:, None] * cumulated_BV[:, -1:]
    token_B = torch.searchsorted(cumulated_BV, drawn_B1, right=True)[:, 0].clamp(max=logits_BV.shape[1] - 1)
    return token_B, logp_BV.gather(1, token_B[:, None])[:, 0]


def _nucleus(logp_BV: Tensor, top_p: float) -> Tensor:
    ordered, index = logp_BV.sort(dim=-1, descending=True, stable=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    ordered = ordered.masked_fill(before >= top_p, float("-inf"))  # the token that crosses top_p stays
    kept = torch.empty_like(logp_BV).scatter_(1, index, ordered)
    return kept - kept.logsumexp(-1, keepdim=True)

"""DPO as a coefficient of the gradient: pairs of a group's completions, in the form of DeepSeekMath §5.2.1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from fathom.train.batch import Batch


def coefficients(rewards: np.ndarray, log_ratios: np.ndarray, beta: float) -> np.ndarray:
    """Each completion's coefficient in its group: Σ ±σ(β·(m⁻ − m⁺)) over the pairs with r⁺ > r⁻, by their number.

    `log_ratios` m are means over a completion's tokens of log π − log π_ref; + for the better one, − for the other.
    """
    found, pairs = np.zeros(len(rewards)), 0
    for better in range(len(rewards)):
        for worse in np.flatnonzero(rewards < rewards[better]):
            size = 1 / (1 + np.exp(beta * (log_ratios[better] - log_ratios[worse])))
            found[better] += size
            found[worse] -= size
            pairs += 1
    return found / max(pairs, 1)


@torch.no_grad()
def with_pairs(batches: Sequence[Batch], beta: float) -> list[Batch]:
    """The batches of one step, whose advantages were rewards, with these coefficients in their place.

    The policy is taken to be the sampler, as it is at the first update; a group lies in one process whole.
    """
    members: dict[str, list[tuple[int, int]]] = {}  # group → (batch, sequence)
    reward: dict[tuple[int, int], float] = {}
    ratio: dict[tuple[int, int], float] = {}
    for number, batch in enumerate(batches):
        assert batch.advantage is not None and batch.sampled_logp is not None and batch.reference_logp is not None
        rows = batch.weight.nonzero()[:, 0]
        sequence = batch.layout.sequence_T[rows].cpu().numpy()
        away = (batch.sampled_logp - batch.reference_logp)[rows].double().cpu().numpy()
        rewards = batch.advantage[rows].double().cpu().numpy()
        for one in dict.fromkeys(sequence.tolist()):
            here = sequence == one
            reward[number, one], ratio[number, one] = float(rewards[here][0]), float(away[here].mean())
            members.setdefault(batch.groups[one], []).append((number, one))
    given: dict[tuple[int, int], float] = {}
    for group in members.values():
        found = coefficients(np.array([reward[m] for m in group]), np.array([ratio[m] for m in group]), beta)
        given.update(zip(group, found.tolist(), strict=True))
    made = []
    for number, batch in enumerate(batches):
        by_sequence = batch.weight.new_tensor(
            [given.get((number, one), 0.0) for one in range(batch.layout.sequences)])
        made.append(replace(batch, advantage=by_sequence[batch.layout.sequence_T] * (batch.weight != 0)))
    return made

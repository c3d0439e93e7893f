"""Batches: examples of one optimiser step packed into rows without padding, every term with its final coefficient.

`pack` sees the whole step, so losses are plain sums: accumulation over micro-batches only adds (DESIGN §2).
"""

# T tokens, S sequences

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fathom.core.errors import FathomError
from fathom.model.layout import Layout
from fathom.train.parallel import Team
from fathom.train.variants import Weigh


@dataclass(frozen=True)
class Example:
    """One sequence to learn from.

    `tokens` [n] and `trained` [n] (is the model to produce this token?); for reinforcement learning an `advantage`, one
    for all or [n], and `sampled_logp` / `reference_logp` [n] natural log-probabilities, read where trained. Neighbours
    with the same `group` share their first `shared` tokens, which then go through the model once.
    """

    tokens: np.ndarray
    trained: np.ndarray
    advantage: float | np.ndarray | None = None
    sampled_logp: np.ndarray | None = None
    reference_logp: np.ndarray | None = None
    group: str | None = None
    shared: int = 0


@dataclass(frozen=True)
class Batch:
    """T input tokens and, for each, the token that follows it and the coefficient of its term in the loss."""

    tokens: Tensor  # [T] int64
    targets: Tensor  # [T] int64
    weight: Tensor  # [T] coefficient; 0 where nothing is trained
    layout: Layout
    sequence_weight: Tensor  # [S] coefficient of a sequence's own term: 1 / sequences in the step
    advantage: Tensor | None = None  # [T]
    sampled_logp: Tensor | None = None  # [T]
    reference_logp: Tensor | None = None  # [T]
    old_logp: Tensor | None = None  # [T] of the policy before the update, computed by the trainer
    experts: Mapping[int, Tensor] | None = None  # layer: [T, K], those that this policy chose
    value: Tensor | None = None  # [T] what a critic said before the update
    returns: Tensor | None = None  # [T] what it is to say
    groups: tuple[str, ...] = ()  # of each sequence; empty where it has none
    total: float = 1.0  # Σ weight of the whole step: what is a mean over tokens is divided by it


# trained tokens of each sequence of the step → coefficient of each of its tokens
WeightRule = Callable[[Sequence[int]], list[float]]


def token_mean(counts: Sequence[int]) -> list[float]:
    """Every trained token of the step weighs the same: 1/Σn."""
    total = sum(counts)
    return [1.0 / total] * len(counts)


def sequence_mean(counts: Sequence[int]) -> list[float]:
    """Mean over a sequence's tokens, then over sequences: 1/(B·n_i) (DeepSeekMath eq. 3)."""
    return [1.0 / (len(counts) * n) if n else 0.0 for n in counts]


def sequence_sum(counts: Sequence[int]) -> list[float]:
    """Sum over a sequence's tokens, mean over sequences: 1/B."""
    return [1.0 / len(counts)] * len(counts)


def constant(limit: int) -> WeightRule:
    """Sum over all tokens by a constant, 1/(B·`limit`): the most tokens of a completion (Dr. GRPO, 2503.20783)."""
    return lambda counts: [1.0 / (len(counts) * limit)] * len(counts)


def weight_rule(name: Weigh, limit: int) -> WeightRule:
    """The rule of that name; `limit` is the most tokens of a completion, for `constant`."""
    rules: dict[str, WeightRule] = {
        "token_mean": token_mean, "sequence_mean": sequence_mean, "sequence_sum": sequence_sum,
        "constant": constant(limit)}
    return rules[name]


def pack(
    examples: Sequence[Example], weigh: WeightRule, tokens_per_batch: int, device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32, team: Team | None = None,
) -> list[Batch]:
    """The micro-batches of one optimiser step, in order, each of at most `tokens_per_batch` tokens (or one example).

    In a `team` those of this process's share alone, with the coefficients of the whole step; groups stay together.
    """
    counts = [int(e.trained[1:].sum()) for e in examples]
    if not sum(counts):
        raise FathomError(f"{len(examples)} examples, 0 trained tokens: a step needs at least one; check the loss mask")
    weights = weigh(counts)
    total = sum(weight * count for weight, count in zip(weights, counts, strict=True))
    batches: list[Batch] = []
    mine = range(len(examples)) if team is None else _share(examples, team)
    first = mine.start
    while first < mine.stop:
        last, size = first, 0
        while last < mine.stop:
            known = last > first and _continues(examples[last - 1], examples[last])
            more = len(examples[last].tokens) - 1 - (examples[last].shared - 1 if known else 0)
            if last > first and size + more > tokens_per_batch:
                break
            size += more
            last += 1
        batches.append(_lay(examples[first:last], weights[first:last], 1.0 / len(examples), total, device, dtype))
        first = last
    return batches


def _share(examples: Sequence[Example], team: Team) -> range:
    """Which examples are this process's."""
    starts = [i for i in range(len(examples)) if i == 0 or examples[i].group is None
              or examples[i - 1].group != examples[i].group]
    ends = [*starts[1:], len(examples)]
    costs = [sum(len(e.tokens) for e in examples[a:b]) for a, b in zip(starts, ends, strict=True)]
    mine = team.share(costs)
    runs = list(zip(starts, ends, strict=True))[mine]
    return range(runs[0][0], runs[-1][1]) if runs else range(0)


def _continues(before: Example, example: Example) -> bool:
    """Whether `example` shares a prompt with its predecessor that is worth a segment of its own.

    Only what cannot change a result is shared: equal tokens, none of them trained (two examples may train them
    differently, and one segment has one coefficient per token).
    """
    n = example.shared
    return (
        example.group is not None and n > 1 and before.group == example.group and before.shared == n
        and np.array_equal(before.tokens[:n], example.tokens[:n])
        and not before.trained[1:n].any() and not example.trained[1:n].any()
    )


def _lay(
    examples: Sequence[Example], weights: Sequence[float], per_sequence: float, total: float,
    device: torch.device | str, dtype: torch.dtype,
) -> Batch:
    """Lays examples in one row. A shared prompt is one segment, save its last token, whose successors differ: that one
    begins each completion's own segment."""
    tokens: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    weight: list[np.ndarray] = []
    advantage: list[np.ndarray] = []
    sampled: list[np.ndarray] = []
    reference: list[np.ndarray] = []
    lengths: list[int] = []
    prefix: list[int | None] = []
    sequence_weight: list[float] = []
    groups: list[str] = []
    segment: int | None = None

    def add(example: Example, start: int, stop: int, coefficient: float, parent: int | None, share: float) -> None:
        """Inputs start … stop−1, each with its successor as target."""
        tokens.append(example.tokens[start:stop])
        targets.append(example.tokens[start + 1: stop + 1])
        mask = example.trained[start + 1: stop + 1]
        weight.append(mask * coefficient)
        given = example.advantage
        advantage.append(mask * (given[start + 1: stop + 1] if isinstance(given, np.ndarray) else given or 0.0))
        for kept, known in ((sampled, example.sampled_logp), (reference, example.reference_logp)):
            kept.append(np.zeros(stop - start) if known is None else known[start + 1: stop + 1])
        lengths.append(stop - start)
        prefix.append(parent)
        sequence_weight.append(share)
        groups.append(example.group or "")

    for i, (example, coefficient) in enumerate(zip(examples, weights, strict=True)):
        begin, end = 0, len(example.tokens) - 1
        if i == 0 or not _continues(examples[i - 1], example):
            segment = None
            if i + 1 < len(examples) and _continues(example, examples[i + 1]):
                segment = len(lengths)
                add(example, 0, example.shared - 1, 0.0, None, 0.0)
        if segment is not None:
            begin = example.shared - 1
        add(example, begin, end, coefficient, segment, per_sequence)

    def row(parts: list[np.ndarray], kind: torch.dtype) -> Tensor:
        return torch.from_numpy(np.concatenate(parts)).to(device=device, dtype=kind)

    first = examples[0]
    return Batch(
        row(tokens, torch.long), row(targets, torch.long), row(weight, dtype),
        Layout.packed(lengths, device, prefix if any(p is not None for p in prefix) else None),
        torch.tensor(sequence_weight, dtype=dtype, device=device),
        None if first.advantage is None else row(advantage, dtype),
        None if first.sampled_logp is None else row(sampled, dtype),
        None if first.reference_logp is None else row(reference, dtype),
        groups=tuple(groups), total=total,
    )

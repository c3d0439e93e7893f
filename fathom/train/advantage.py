"""Advantages of groups of completions, and the examples that they become."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from fathom.core.chat import Completion
from fathom.core.errors import UsageError
from fathom.train.batch import Example
from fathom.train.variants import Baseline, Scale

STD_FLOOR = 1e-4  # added to the deviation; the paper is silent, this is the field's convention


def of_group(rewards: Sequence[float | None], normalise: Literal["std", "none"] = "std") -> list[float | None]:
    """(r − mean) / (std + 1e-4) over the rewards that are known, std with n − 1 (DeepSeekMath §4.1.2).

    None where the reward is None. A group with fewer than two known rewards, or with all of them equal, gives zeros:
    it says nothing about which completion was better.
    """
    return of_groups([rewards], "mean", normalise)[0]


def of_groups(
    groups: Sequence[Sequence[float | None]], baseline: Baseline = "mean", scale: Scale = "std"
) -> list[list[float | None]]:
    """The advantages of all groups of a step; None where the reward is None.

    What is subtracted: the group's `mean`, the mean of the `others` in it (RLOO), or `none`, so that the reward itself
    counts. What is divided by, + 1e-4: the group's `std`, that of all rewards of the `batch` (n − 1), nothing, or
    `whiten`: the advantages' own mean and deviation over the batch. A flat group gives zeros unless nothing is
    subtracted; it is no part of what is whitened.
    """
    found: list[list[float | None]] = []
    for rewards in groups:
        if len(rewards) < 2:
            raise UsageError(f"group={len(rewards)}: an advantage needs at least 2 samples; set group ≥ 2")
        known = np.array([r for r in rewards if r is not None], dtype=np.float64)
        if baseline != "none" and (len(known) < 2 or np.ptp(known) == 0):
            found.append([None if r is None else 0.0 for r in rewards])
            continue
        over = known.std(ddof=1) + STD_FLOOR if scale == "std" and len(known) > 1 else 1.0
        found.append([None if r is None else _less(r, known, baseline) / over for r in rewards])
    if scale == "batch":
        every = np.array([r for rewards in groups for r in rewards if r is not None], dtype=np.float64)
        over = every.std(ddof=1) + STD_FLOOR if len(every) > 1 else 1.0
        return [[None if a is None else a / over for a in group] for group in found]
    if scale == "whiten":
        live = np.array([a for group in found if any(group) for a in group if a is not None], dtype=np.float64)
        mean, over = (live.mean(), live.std(ddof=1) + STD_FLOOR) if len(live) > 1 else (0.0, 1.0)
        return [[None if a is None else float((a - mean) / over) for a in group] if any(group) else group
                for group in found]
    return found


def _less(reward: float, known: np.ndarray, baseline: Baseline) -> float:
    if baseline == "none":
        return float(reward)
    if baseline == "others":
        return float(reward - (known.sum() - reward) / (len(known) - 1))
    return float(reward - known.mean())


def of_steps(groups: Sequence[Sequence[Sequence[tuple[int, float]] | None]]) -> list[list[np.ndarray | None]]:
    """Process supervision (DeepSeekMath §4.1.3): each completion's advantages by token, up to its last step's end.

    A completion is a list of (index of a step's last token, the step's reward), in order; None where it could not be
    judged. Rewards are normalised over all steps of the group (n − 1, + 1e-4); a token's advantage is the sum of those
    of the steps that end at it or later.
    """
    found: list[list[np.ndarray | None]] = []
    for group in groups:
        every = np.array([reward for steps in group for _, reward in steps or ()], dtype=np.float64)
        flat = len(every) < 2 or np.ptp(every) == 0
        mean, over = (0.0, 1.0) if flat else (every.mean(), every.std(ddof=1) + STD_FLOOR)
        rows: list[np.ndarray | None] = []
        for steps in group:
            if steps is None:
                rows.append(None)
                continue
            row = np.zeros(steps[-1][0] + 1 if steps else 0)
            for end, reward in () if flat else steps:
                row[: end + 1] += (reward - mean) / over
            rows.append(row)
        found.append(rows)
    return found


def examples(
    prompts: Sequence[Sequence[int]], groups: Sequence[Sequence[Completion]],
    advantages: Sequence[Sequence[float | np.ndarray | None]], mask_truncated: bool = False, keep_flat: bool = False,
) -> list[Example]:
    """One example per completion that teaches something: its own tokens, never text encoded again.

    Completions without a reward leave their group, and groups whose advantages are all zero leave the step. An
    advantage is one for all tokens or by token; tokens past its end have none. With `mask_truncated` completions that
    were cut off at the limit count in their group's baseline and are not learnt from (DAPO's overlong filter).
    `keep_flat`: what a critic is to judge stays, whatever its group came to.
    """
    made: list[Example] = []
    for number, (prompt, group, scores) in enumerate(zip(prompts, groups, advantages, strict=True)):
        if not keep_flat and not any(np.any(score) for score in scores if score is not None):
            continue
        for completion, score in zip(group, scores, strict=True):
            if score is None or (mask_truncated and completion.finish == "length"):
                continue
            tokens = np.array([*prompt, *completion.tokens], dtype=np.int32)
            trained = np.arange(len(tokens)) >= len(prompt)
            sampled = np.concatenate([np.zeros(len(prompt)), completion.logprobs])
            if isinstance(score, np.ndarray):
                by_token = np.zeros(len(tokens))
                by_token[len(prompt): len(prompt) + len(score)] = score[: len(completion.tokens)]
                score = by_token
            made.append(Example(tokens, trained, score, sampled, group=str(number), shared=len(prompt)))
    return made

"""Advantages of groups of completions, and the examples that they become."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from fathom.core.chat import Completion
from fathom.core.errors import UsageError
from fathom.train.batch import Example

STD_FLOOR = 1e-4  # added to the deviation; the paper is silent, this is the field's convention


def of_group(rewards: Sequence[float | None], normalise: Literal["std", "none"] = "std") -> list[float | None]:
    """(r − mean) / (std + 1e-4) over the rewards that are known, std with n − 1 (DeepSeekMath §4.1.2).

    None where the reward is None. A group with fewer than two known rewards, or with all of them equal, gives zeros:
    it says nothing about which completion was better.
    """
    if len(rewards) < 2:
        raise UsageError(f"group={len(rewards)}: an advantage needs at least 2 samples; set group ≥ 2")
    known = np.array([r for r in rewards if r is not None], dtype=np.float64)
    if len(known) < 2 or np.ptp(known) == 0:
        return [None if r is None else 0.0 for r in rewards]
    scale = known.std(ddof=1) + STD_FLOOR if normalise == "std" else 1.0
    return [None if r is None else float((r - known.mean()) / scale) for r in rewards]


def examples(
    prompts: Sequence[Sequence[int]], groups: Sequence[Sequence[Completion]],
    advantages: Sequence[Sequence[float | None]],
) -> list[Example]:
    """One example per completion that teaches something: its own tokens, never text encoded again.

    Completions without a reward leave their group, and groups whose advantages are all zero leave the step.
    """
    made: list[Example] = []
    for number, (prompt, group, scores) in enumerate(zip(prompts, groups, advantages, strict=True)):
        if not any(scores):
            continue
        for completion, score in zip(group, scores, strict=True):
            if score is None:
                continue
            tokens = np.array([*prompt, *completion.tokens], dtype=np.int32)
            trained = np.arange(len(tokens)) >= len(prompt)
            sampled = np.concatenate([np.zeros(len(prompt)), completion.logprobs])
            made.append(Example(tokens, trained, score, sampled, group=str(number), shared=len(prompt)))
    return made

"""Advantages: the convention, the guards, and what becomes of the ones without a reward."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.core.chat import Completion
from fathom.core.errors import UsageError
from fathom.train.advantage import examples, of_group


@pytest.mark.parity
def test_fixture_of_rl_10() -> None:
    """[1, 0, 0, 0] with n − 1 and +1e-4: 0.75 / (0.5 + 1e-4) and −0.25 / (0.5 + 1e-4)."""
    assert of_group([1, 0, 0, 0]) == pytest.approx([1.4997, -0.4999, -0.4999, -0.4999], abs=5e-5)  # four digits given
    assert of_group([1, 0, 0, 0])[0] == 0.75 / 0.5001
    assert of_group([1, 0, 0, 0], "none") == [0.75, -0.25, -0.25, -0.25]


def test_what_says_nothing_is_zero() -> None:
    assert of_group([0.5, 0.5, 0.5]) == [0.0, 0.0, 0.0]
    assert of_group([0.1 + 0.2, 0.1 + 0.2]) == [0.0, 0.0]
    assert of_group([None, 1.0, None]) == [None, 0.0, None]
    assert of_group([None, None]) == [None, None]


def test_a_failed_judgement_leaves_its_group() -> None:
    assert of_group([1, None, 0, 0, 0])[1] is None
    assert [a for a in of_group([1, None, 0, 0, 0]) if a is not None] == of_group([1, 0, 0, 0])


def test_one_sample_is_refused() -> None:
    with pytest.raises(UsageError, match="group=1"):
        of_group([1.0])


@pytest.mark.property
@given(st.lists(st.none() | st.integers(-4, 4).map(float), min_size=2, max_size=16),
       st.sampled_from(["std", "none"]), st.integers(-3, 3))
def test_properties(rewards: list[float | None], normalise, shift: int) -> None:
    found = of_group(rewards, normalise)
    assert [a is None for a in found] == [r is None for r in rewards]
    known = [a for a in found if a is not None]
    assert sum(known) == pytest.approx(0, abs=1e-9)  # baselines: float64 sums of at most 16 numbers
    again = of_group([None if r is None else r + shift for r in rewards], normalise)
    assert all(a is None or a == pytest.approx(b, abs=1e-9) for a, b in zip(found, again, strict=True))
    spread = [r for r in rewards if r is not None]
    if normalise == "std" and len(set(spread)) > 1:
        deviation = math.sqrt(sum((r - np.mean(spread)) ** 2 for r in spread) / (len(spread) - 1))
        assert np.std(known, ddof=1) == pytest.approx(deviation / (deviation + 1e-4), rel=1e-9)


def test_examples_are_the_samplers_own_tokens() -> None:
    def said(*tokens: int) -> Completion:
        return Completion("", tokens, tuple(-0.1 * t for t in tokens), "stop")

    groups = [[said(5, 6), said(7), said(8, 9, 10)], [said(1), said(2)], [said(3), said(4)]]
    made = examples([(1, 2, 3), (4,), (1, 2, 3)], groups, [[1.0, None, -0.5], [0.0, 0.0], [None, 0.7]])
    assert [e.tokens.tolist() for e in made] == [[1, 2, 3, 5, 6], [1, 2, 3, 8, 9, 10], [1, 2, 3, 4]]
    assert [e.trained.tolist() for e in made] == [[False] * 3 + [True] * n for n in (2, 3, 1)]
    assert [e.advantage for e in made] == [1.0, -0.5, 0.7]
    assert made[0].sampled_logp == pytest.approx([0, 0, 0, -0.5, -0.6])
    assert made[0].group == made[1].group != made[2].group  # the same prompt asked twice is two groups
    assert [e.shared for e in made] == [3, 3, 3]

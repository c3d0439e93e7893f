"""Estimates against values worked out by other means."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.core.errors import UsageError
from fathom.judge.verdict import Verdict
from fathom.tasks.task import (
    Score,
    bootstrap_mean,
    maj_at_k,
    paired_bootstrap,
    pass_at_k,
    wilson,
)


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(case: tuple[int, int, int]) -> None:
    n, c, k = case
    subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(any(subset) for subset in subsets) / len(subsets))


def test_pass_at_k_refuses_what_it_cannot_know() -> None:
    with pytest.raises(UsageError, match="pass@9 of 8 samples"):
        pass_at_k(8, 2, 9)
    with pytest.raises(UsageError, match="9 right of 8"):
        pass_at_k(8, 9, 1)


@pytest.mark.parametrize(
    ("answers", "right", "expected"),
    [
        (["1", "2", "2"], [True, False, False], False),
        (["1", "1.0", "2"], [True, True, False], True),  # normalised before they vote
        (["1/2", "3", "0.5", "3", r"\frac{1}{2}"], [True, False, True, False, True], True),
        ([None, None, None, "4"], [False, False, False, True], True),  # unread never wins
        (["1", "2"], [True, False], True),  # a tie goes to the first
        (["2", "1"], [False, True], False),
        (["2", "1", "1", "2"], [False, True, True, False], False),
        ([None], [False], False),
        ([], [], False),
    ],
)
def test_maj_at_k(answers: list[str | None], right: list[bool], expected: bool) -> None:
    assert maj_at_k(answers, right) is expected


def test_wilson_against_its_defining_equation() -> None:
    # The bounds are the p for which |k/n - p| = z sqrt(p (1 - p) / n).
    for k, n in [(1, 10), (5, 10), (412, 500), (29, 30)]:
        for bound in wilson(k, n):
            assert abs(k / n - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / n), rel=1e-5)
    assert wilson(0, 10)[0] == 0.0
    assert wilson(0, 10)[1] == pytest.approx(0.27754, abs=1e-4)
    assert wilson(10, 10)[1] == 1.0
    assert wilson(0, 0) == (0.0, 1.0)


def test_bootstrap_agrees_with_the_normal_interval_of_many_problems() -> None:
    values = np.random.default_rng(1).choice([0, 0.25, 0.5, 1.0], 2000)
    low, high = bootstrap_mean(list(values))
    half = 1.96 * values.std() / math.sqrt(2000)
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert bootstrap_mean(list(values)) == (low, high)  # its randomness has a seed


def test_bootstrap_of_only_right_problems_is_not_certain() -> None:
    assert bootstrap_mean([1.0] * 30) == wilson(30, 30)
    assert bootstrap_mean([0.0] * 30) == wilson(0, 30)


def test_the_noise_of_aime() -> None:
    # 30 items at p = 0.7 have a standard error of about 8 points.
    low, high = wilson(21, 30)
    assert (high - low) / 3.92 == pytest.approx(0.08, abs=0.01)


def test_paired_bootstrap() -> None:
    generator = np.random.default_rng(0)
    base = {f"p{i}": float(value) for i, value in enumerate(generator.random(300))}
    better = {name: value + 0.05 + 0.01 * float(generator.standard_normal()) for name, value in base.items()}
    shuffled = dict(sorted(better.items(), reverse=True))
    difference = paired_bootstrap(shuffled, base)
    assert difference.significant
    assert difference.mean == pytest.approx(0.05, abs=0.005)
    assert difference.low < difference.mean < difference.high
    assert not paired_bootstrap(base, base).significant
    noise = generator.standard_normal(200)
    assert not paired_bootstrap(list(noise - noise.mean()), [0.0] * 200).significant
    assert not paired_bootstrap([1.0] * 5, [0.0] * 5).significant  # five of five happens by chance
    assert paired_bootstrap([1.0] * 6, [0.0] * 6).significant
    with pytest.raises(UsageError, match="1 problems are in one score only"):
        paired_bootstrap({"a": 1.0}, {"a": 1.0, "b": 0.0})
    with pytest.raises(UsageError, match="2 against 1"):
        paired_bootstrap([1.0, 1.0], [1.0])
    with pytest.raises(UsageError, match="not finite"):
        paired_bootstrap([math.nan], [1.0])


def test_score_counts_every_sample_that_was_asked() -> None:
    verdicts = [[Verdict.right()]] * 412 + [[Verdict.wrong("w")]] * 80 + [[Verdict.unread("u")]] * 5
    score = Score.of(verdicts + [[Verdict.failed("f")]] * 3)
    assert (score.right, score.wrong, score.unread, score.failed) == (412, 80, 5, 3)
    assert score.accuracy == 412 / 500
    assert score.range == (412 / 500, 415 / 500)
    assert (score.low, score.high) == wilson(412, 500)
    assert (score.unread_share, score.failed_share) == (0.01, 0.006)
    assert str(score) == "412/500 right, 5 unread, 3 not judged (82.4–83.0 %; 95 % interval 78.8–85.5 %)"


def test_samples_of_one_problem_are_not_independent() -> None:
    # Each problem all right or all wrong: 8 samples say no more than one.
    many = Score.of([[Verdict.right()] * 8] * 15 + [[Verdict.wrong("w")] * 8] * 15)
    one = Score.of([[Verdict.right()]] * 15 + [[Verdict.wrong("w")]] * 15)
    assert many.high - many.low == pytest.approx(one.high - one.low, rel=0.15)
    with pytest.raises(UsageError, match="at least one problem"):
        Score.of([])
    with pytest.raises(UsageError, match="one sample for each"):
        Score.of([[Verdict.right()], []])

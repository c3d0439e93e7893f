"""Estimates against values worked out by other means."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.core.errors import UsageError
from fathom.judge.verdict import Verdict
from fathom.tasks.statistics import best_at_n, share_interval, t95
from fathom.tasks.task import Score, maj_at_k, paired_difference, pass_at_k, wilson


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


def test_the_interval_of_many_samples_agrees_with_the_normal_one_of_many_problems() -> None:
    values = np.random.default_rng(1).choice([0, 0.25, 0.5, 1.0], 2000)
    low, high = share_interval(list(4 * values), [4] * 2000)
    half = 1.96 * values.std() / math.sqrt(2000)
    assert low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_problems_that_are_all_right_are_not_certain() -> None:
    assert share_interval([8.0] * 30, [8] * 30) == wilson(30, 30)
    assert share_interval([0.0] * 30, [1] * 30) == wilson(0, 30)
    assert share_interval([0.0] * 2, [16] * 2) == wilson(0, 2)


def test_problems_with_different_numbers_of_samples() -> None:
    """The interval is of what is printed: right over all samples."""
    low, high = share_interval([8.0] + [0.0] * 20, [8] + [1] * 20)
    assert low < 8 / 28 < high
    generator = np.random.default_rng(5)
    hits = 0
    for _ in range(1000):
        of = generator.integers(1, 9, 100)
        right = generator.binomial(of, generator.beta(2, 3, 100))
        low, high = share_interval(list(right), list(of))
        hits += bool(low <= 0.4 <= high)
    assert 0.93 <= hits / 1000 <= 0.97


def test_one_sample_a_problem_is_wilson() -> None:
    assert share_interval([1.0] * 12 + [0.0] * 28, [1] * 40) == wilson(12, 40)


def test_the_quantile_of_student() -> None:
    published = {4: 2.7764, 5: 2.5706, 10: 2.2281, 29: 2.0452, 99: 1.9842, 10_000: 1.9602}
    for degrees, value in published.items():
        assert t95(degrees) == pytest.approx(value, rel=0.005)


def covered(rounds: int) -> float:
    """Over benchmarks of many kinds, how often the interval holds the accuracy that was to be estimated."""
    generator = np.random.default_rng(3)
    hits = total = 0
    shapes = [(30, 1), (100, 1), (500, 1), (30, 8), (30, 64), (100, 4), (100, 16), (500, 8)]
    for problems, samples in shapes:
        for _ in range(rounds):
            a, b = generator.uniform(0.3, 4, 2)
            right = generator.binomial(samples, generator.beta(a, b, problems))
            low, high = share_interval(list(right), [samples] * problems)
            hits += bool(low <= a / (a + b) <= high)
            total += 1
    return hits / total


def false_alarms(rounds: int) -> float:
    """How often two equal models are told to differ significantly."""
    generator = np.random.default_rng(4)
    alarms = total = 0
    for problems, samples in [(30, 1), (100, 1), (500, 1), (30, 8), (100, 8), (500, 4)]:
        for _ in range(rounds):
            chance = generator.beta(*generator.uniform(0.3, 3, 2), problems)
            a, b = (list(generator.binomial(samples, chance) / samples) for _ in range(2))
            alarms += paired_difference(a, b).significant
            total += 1
    return alarms / total


def test_intervals_hold_the_truth_in_95_of_100() -> None:
    assert 0.94 <= covered(500) <= 0.96


def test_equal_models_differ_in_5_of_100() -> None:
    assert 0.04 <= false_alarms(700) <= 0.06


@pytest.mark.long
def test_intervals_and_alarms_over_many_rounds() -> None:
    assert 0.94 <= covered(10_000) <= 0.96
    assert 0.04 <= false_alarms(10_000) <= 0.06


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=7).flatmap(
    lambda rows: st.tuples(st.just(rows), st.integers(1, len(rows)))))
def test_best_at_n_is_the_mean_over_all_draws(case: tuple[list[tuple[int, bool]], int]) -> None:
    rows, n = case
    draws = [min(draw, key=lambda i: (-rows[i][0], i)) for draw in itertools.combinations(range(len(rows)), n)]
    expected = sum(rows[best][1] for best in draws) / len(draws)
    assert best_at_n([score for score, _ in rows], [right for _, right in rows], n) == pytest.approx(expected)


def test_the_noise_of_aime() -> None:
    # 30 items at p = 0.7 have a standard error of about 8 points.
    low, high = wilson(21, 30)
    assert (high - low) / 3.92 == pytest.approx(0.08, abs=0.01)


def test_paired_difference() -> None:
    generator = np.random.default_rng(0)
    base = {f"p{i}": float(value) for i, value in enumerate(generator.random(300))}
    better = {name: value + 0.05 + 0.01 * float(generator.standard_normal()) for name, value in base.items()}
    shuffled = dict(sorted(better.items(), reverse=True))
    difference = paired_difference(shuffled, base)
    assert difference.significant
    assert difference.mean == pytest.approx(0.05, abs=0.005)
    assert difference.low < difference.mean < difference.high
    assert not paired_difference(base, base).significant
    noise = generator.standard_normal(200)
    assert not paired_difference(list(noise - noise.mean()), [0.0] * 200).significant
    assert not paired_difference([1.0] * 5, [0.0] * 5).significant  # five of five happens by chance
    assert paired_difference([1.0] * 6, [0.0] * 6).significant
    with pytest.raises(UsageError, match="1 problems are in one score only"):
        paired_difference({"a": 1.0}, {"a": 1.0, "b": 0.0})
    with pytest.raises(UsageError, match="2 against 1"):
        paired_difference([1.0, 1.0], [1.0])
    with pytest.raises(UsageError, match="not finite"):
        paired_difference([math.nan], [1.0])


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

"""Estimates over problems and samples with their intervals: pass@k, maj@k, Wilson, bootstraps over problems."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fathom.core.errors import UsageError
from fathom.judge.maths import normal_form

Z95 = 1.959963984540054  # standard normal quantile at 97.5 %
_CELLS = 4_000_000  # resampled values held at once


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that at least one of `k` samples is right, given `c` right among `n`, drawn without replacement.

    1 − C(n−c, k)/C(n, k), unbiased (Chen et al. 2021, "Evaluating LLMs Trained on Code", §2.1).
    """
    if not 0 <= c <= n:
        raise UsageError(f"pass@k: {c} right of {n} samples; c must lie between 0 and n")
    if not 1 <= k <= n:
        raise UsageError(
            f"pass@{k} of {n} samples: k must lie between 1 and the number of samples; draw more or lower k"
        )
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def maj_at_k(answers: Sequence[str | None], right: Sequence[bool]) -> bool:
    """Whether the most frequent answer is right; `None` stands for an answer that could not be read.

    Answers are normalised before they vote. Unread answers never win, however many; a tie goes to the answer that
    appeared first (our rule; the papers are silent). The verdict is that of the winner's first appearance.
    """
    if len(answers) != len(right):
        raise UsageError(f"maj@k: {len(answers)} answers but {len(right)} verdicts; one of each per sample")
    votes: dict[str, int] = {}
    first: dict[str, int] = {}
    for index, answer in enumerate(answers):
        if answer is not None:
            form = normal_form(answer)
            votes[form] = votes.get(form, 0) + 1
            first.setdefault(form, index)
    if not votes:
        return False
    winner = max(votes, key=lambda form: (votes[form], -first[form]))
    return bool(right[first[winner]])


def wilson(k: int, n: int) -> tuple[float, float]:
    """The Wilson 95 % interval (low, high) for a share of `k` in `n` independent trials; (0, 1) where n is 0."""
    if not 0 <= k <= n:
        raise UsageError(f"wilson: {k} of {n}; k must lie between 0 and n")
    return _wilson(float(k), n)


def _wilson(k: float, n: int) -> tuple[float, float]:
    if n == 0:
        return 0.0, 1.0
    share, square = k / n, Z95 * Z95
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = Z95 / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def bootstrap_mean(values: Sequence[float], resamples: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Percentile 95 % interval (low, high) of the mean, resampling problems: one value each, e.g. its share right.

    Samples of one problem are not independent, so problems are what is drawn. Equal values would give an interval of
    width 0; where they are all 0 or all 1 Wilson over the number of problems is returned instead.
    """
    array = _values(values, "bootstrap_mean")
    if np.ptp(array) == 0:
        return _wilson(float(array.sum()), array.size) if array[0] in (0.0, 1.0) else (float(array[0]), float(array[0]))
    return _percentiles(_resampled_means(array, resamples, seed))


@dataclass(frozen=True)
class Difference:
    """Mean of a − b over the same problems with its 95 % interval; significant when the interval leaves 0 out."""

    mean: float
    low: float
    high: float
    significant: bool

    def __str__(self) -> str:
        verdict = "significant" if self.significant else "not significant"
        return f"{self.mean:+.4f} ({self.low:+.4f} to {self.high:+.4f}, {verdict})"


def paired_bootstrap(
    a: Mapping[str, float] | Sequence[float],
    b: Mapping[str, float] | Sequence[float],
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """The difference a − b of per-problem means, resampling problems, pairs kept together.

    Mappings go by problem id and must hold the same ids; sequences must be in the same order.
    """
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if different := sorted(set(a) ^ set(b)):
            raise UsageError(
                f"paired comparison: {len(different)} problems are in one score only (first: {different[0]}); "
                "compare runs over the same problems"
            )
        names = sorted(a)
        left, right = [a[name] for name in names], [b[name] for name in names]
    elif isinstance(a, Mapping) or isinstance(b, Mapping):
        raise UsageError("paired comparison: one side has problem ids and the other does not; give both or neither")
    else:
        left, right = list(a), list(b)
    if len(left) != len(right):
        raise UsageError(f"paired comparison: {len(left)} against {len(right)} problems; they must be the same ones")
    gaps = _values(left, "paired_bootstrap") - _values(right, "paired_bootstrap")
    low, high = _percentiles(_resampled_means(gaps, resamples, seed)) if np.ptp(gaps) else (float(gaps[0]),) * 2
    # Below 6 problems even the same gap everywhere happens by chance more often than 5 % (2 · 0.5^5, by signs).
    return Difference(float(gaps.mean()), low, high, len(gaps) >= 6 and (low > 0 or high < 0))


def _values(values: Sequence[float], where: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise UsageError(f"{where}: needs one value per problem and at least one problem; got shape {array.shape}")
    if not np.isfinite(array).all():
        raise UsageError(f"{where}: {int((~np.isfinite(array)).sum())} values are not finite")
    return array


def _resampled_means(array: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    rows = max(1, _CELLS // array.size)
    means = [
        array[generator.integers(0, array.size, size=(min(rows, resamples - start), array.size))].mean(axis=1)
        for start in range(0, resamples, rows)
    ]
    return np.concatenate(means)


def _percentiles(means: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)

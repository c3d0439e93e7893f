"""Estimates over problems and samples with their intervals: pass@k, maj@k, best of n, shares, paired differences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fathom.core.errors import UsageError
from fathom.judge.maths import normal_form

Z95 = 1.959963984540054  # standard normal quantile at 97.5 %


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


def _wilson(k: float, n: float, quantile: float = Z95) -> tuple[float, float]:
    if n == 0:
        return 0.0, 1.0
    share, square = k / n, quantile * quantile
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = quantile / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n * n))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def t95(degrees: int) -> float:
    """The 97.5 % quantile of Student's t; from Z95 by the Cornish-Fisher series, within 0.5 % from 4 degrees on."""
    z, v = Z95, float(max(degrees, 1))
    return (z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
            + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3))


def share_interval(right: Sequence[float], of: Sequence[int], most: int | None = None) -> tuple[float, float]:
    """The 95 % interval (low, high) of Σ right / Σ of, over problems with `of` samples, of which `right` are right.

    With one sample a problem it is Wilson's. With several, samples of one problem go together: problems are what
    varies, and Wilson's interval is taken for as many independent trials as have the variance found between problems
    (of a ratio, should they have different numbers of samples), with Student's quantile; at most for `most`, which is
    the number of samples where nothing else is said. Problems that are all right, or all wrong, are as many trials.
    """
    array, size = _values(right, "share_interval"), _values([float(n) for n in of], "share_interval")
    if array.shape != size.shape or (size <= 0).any() or (array < 0).any() or (array > size + 1e-9).any():
        raise UsageError("share_interval: give for each problem its right samples and all of them, at least one")
    n, samples = array.size, float(size.sum())
    mean = float(array.sum()) / samples
    if n == 1 or ((size == 1).all() and np.isin(array, (0.0, 1.0)).all()):
        return _wilson(mean * n, n)
    away = array - mean * size
    variance = n / (n - 1) * float((away**2).sum()) / samples**2
    if variance < 1e-18:
        return _wilson(mean * n, n) if mean in (0.0, 1.0) else _wilson(mean * samples, samples)
    trials = min(mean * (1 - mean) / variance, float(most or samples))
    low, high = _wilson(mean * trials, trials, t95(n - 1))
    return min(low, mean), max(high, mean)


def best_at_n(scores: Sequence[float], right: Sequence[bool], n: int) -> float:
    """Probability that the best-scored of `n` samples, drawn without replacement from all, is right.

    Exact over all draws. Among equal scores the earlier sample is taken.
    """
    if len(scores) != len(right) or not 1 <= n <= len(scores):
        raise UsageError(f"best of {n}: {len(scores)} scores, {len(right)} verdicts; give one of each, and as many")
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    ways = math.comb(len(scores), n)
    return sum(math.comb(len(scores) - rank - 1, n - 1) / ways for rank, i in enumerate(order) if right[i])


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


def paired_difference(
    a: Mapping[str, float] | Sequence[float], b: Mapping[str, float] | Sequence[float]
) -> Difference:
    """The difference a − b of per-problem means over the same problems, by Student's t over the problems' differences.

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
    gaps = _values(left, "paired_difference") - _values(right, "paired_difference")
    n, mean = gaps.size, float(gaps.mean())
    half = t95(n - 1) * float(gaps.std(ddof=1)) / math.sqrt(n) if n > 1 and np.ptp(gaps) else 0.0
    low, high = mean - half, mean + half
    # Below 6 problems even the same gap everywhere happens by chance more often than 5 % (2 · 0.5^5, by signs).
    return Difference(mean, low, high, n >= 6 and (low > 0 or high < 0))


def _values(values: Sequence[float], where: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise UsageError(f"{where}: needs one value per problem and at least one problem; got shape {array.shape}")
    if not np.isfinite(array).all():
        raise UsageError(f"{where}: {int((~np.isfinite(array)).sum())} values are not finite")
    return array

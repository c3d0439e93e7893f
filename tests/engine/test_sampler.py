"""Drawing tokens: the right frequencies, the right nucleus, randomness that belongs to the request."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.engine.sampler import sample, uniforms

DRAWS = 40_000


def logits_of(probabilities: list[float]) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def draw(logits: torch.Tensor, temperature: float, top_p: float, draws: int = DRAWS) -> tuple[torch.Tensor, ...]:
    seeds = np.random.default_rng(5).integers(0, 2**63, draws, dtype=np.uint64)
    return sample(logits.expand(draws, -1), uniforms(seeds, 3), temperature, top_p)


def chi_square(tokens: torch.Tensor, expected: list[float]) -> float:
    counts = torch.bincount(tokens, minlength=len(expected)).tolist()
    assert all(c == 0 for c, p in zip(counts, expected, strict=True) if p == 0)
    total = sum(counts)
    return sum((c - total * p) ** 2 / (total * p) for c, p in zip(counts, expected, strict=True) if p)


# the seed is fixed, so this is no test that fails now and then; the limits are the 99.9 % points of chi-square
LIMIT = {3: 16.27, 4: 18.47, 5: 20.52}


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_frequencies_match_the_tempered_distribution(temperature: float) -> None:
    p = [0.4, 0.25, 0.2, 0.1, 0.04, 0.01]
    tempered = [q ** (1 / temperature) for q in p]
    expected = [q / sum(tempered) for q in tempered]
    tokens, logp = draw(logits_of(p), temperature, 1.0)
    assert chi_square(tokens, expected) < LIMIT[5]
    # float64 arithmetic on both sides
    assert torch.allclose(logp, torch.tensor(expected, dtype=torch.float64).log()[tokens], rtol=0, atol=1e-12)
    wrong = [q / sum(range(1, 7)) for q in range(1, 7)]
    assert chi_square(tokens, wrong) > 10 * LIMIT[5]  # the test can fail


@pytest.mark.parametrize(("top_p", "kept"), [(0.5, [0, 2]), (0.65, [0, 2]), (0.66, [0, 2, 4]), (0.9, [0, 2, 4, 1]),
                                             (0.96, [0, 2, 4, 1, 3]), (1.0, [0, 2, 4, 1, 3, 5]), (0.01, [0])])
def test_top_p_keeps_exactly_the_nucleus(top_p: float, kept: list[int]) -> None:
    p = [0.4, 0.1, 0.255, 0.04, 0.2, 0.005]
    mass = sum(p[i] for i in kept)
    expected = [p[i] / mass if i in kept else 0.0 for i in range(6)]
    tokens, logp = draw(logits_of(p), 1.0, top_p)
    assert set(tokens.tolist()) == set(kept)
    if len(kept) > 3:
        assert chi_square(tokens, expected) < LIMIT[len(kept) - 1]
    # the log-probabilities are those of the distribution that was drawn from, float64 on both sides
    assert torch.allclose(logp, torch.tensor(expected, dtype=torch.float64).log()[tokens], rtol=0, atol=1e-12)


@pytest.mark.property
@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-8, 8), min_size=1, max_size=12), st.floats(0.01, 0.999), st.integers(0, 2**64 - 1))
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(logits: list[float], top_p: float, seed: int) -> None:
    row = torch.tensor(logits, dtype=torch.float64)
    p = row.softmax(-1).tolist()
    seeds = np.arange(64, dtype=np.uint64) + np.uint64(seed % 2**32)
    tokens, logp = sample(row.expand(64, -1), uniforms(seeds, 0), 1.0, top_p)
    for token, value in zip(tokens.tolist(), logp.tolist(), strict=True):
        above = sum(q for q in p if q > p[token] * (1 + 1e-12))  # nearer than that two are a tie, either may stay
        assert above < top_p + 1e-9  # without it the likelier tokens do not reach top_p: it belongs
        assert math.log(p[token]) - 1e-9 <= value <= math.log(p[token]) - math.log(top_p) + 1e-9


def test_greedy_takes_the_likeliest_and_says_how_likely() -> None:
    logits = torch.randn(20, 7, generator=torch.Generator().manual_seed(0))
    token, logp = sample(logits, np.zeros(20), 0.0, 0.3)
    assert torch.equal(token, logits.argmax(-1))
    # to FP32 rounding: the highest logit less the logarithm of the sum, as the trainer computes it
    torch.testing.assert_close(logp, logits.log_softmax(-1).max(-1).values, rtol=0, atol=1e-6)


def test_the_edges_of_the_draw() -> None:
    row = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]])
    for u, expected in ((0.0, 1), (0.5 - 1e-12, 1), (0.5, 3), (1 - 2**-53, 3)):
        assert sample(row, np.array([u]), 1.0, 1.0)[0].tolist() == [expected]


def test_uniforms_are_a_function_of_seed_and_step() -> None:
    seeds = np.random.default_rng(0).integers(0, 2**63, 1000, dtype=np.uint64)
    steps = [uniforms(seeds, step) for step in range(50)]
    order = np.random.default_rng(1).permutation(1000)
    assert np.array_equal(uniforms(seeds[order], 7), steps[7][order])
    every = np.concatenate(steps)
    assert every.min() >= 0
    assert every.max() < 1
    assert len(np.unique(every)) == len(every)
    # 50 000 draws: bins of 5 000 deviate by 67 (one standard deviation); 5 of them allowed, at a fixed seed
    assert np.abs(np.histogram(every, 10, (0, 1))[0] - 5000).max() < 335
    # neighbouring steps and neighbouring seeds are unrelated: correlations of 1/√1000 per row, 0.03; 5 of them allowed
    assert abs(np.corrcoef(steps[3], steps[4])[0, 1]) < 0.16
    neighbours = uniforms(np.arange(1000, dtype=np.uint64), 0)
    assert abs(np.corrcoef(neighbours[:-1], neighbours[1:])[0, 1]) < 0.16

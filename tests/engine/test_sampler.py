"""Drawing tokens: the right frequencies, the right cuts in the right order, randomness that belongs to the row, and a
row's result that does not depend on what else is in the batch."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fathom.core.chat import Sampling
from fathom.core.errors import FathomError, UsageError
from fathom.engine import sampler as module
from fathom.engine.sampler import Counts, Drawn, Row, Sampler, distribution, likeliest, penalises, uniforms

DRAWS = 40_000


def logits_of(probabilities: Sequence[float]) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def rows_of(count: int, step: int = 3, seed: int = 5, **wanted: Any) -> list[Row]:
    """Rows of one sampling, each with a seed of its own; `row_` names are the row's, others the sampling's."""
    seeds = np.random.default_rng(seed).integers(0, 2**63, count, dtype=np.uint64).tolist()
    own = {name.removeprefix("row_"): wanted.pop(name) for name in list(wanted) if name.startswith("row_")}
    sampling = Sampling(**wanted)
    return [Row(sampling, s, step, **own) for s in seeds]


def draw(logits: Tensor, draws: int = DRAWS, **wanted: Any) -> tuple[Tensor, Tensor]:
    rows = rows_of(draws, **wanted)
    drawn = Sampler(len(logits), "cpu").draw(logits.expand(draws, -1), rows)
    return torch.tensor(drawn.tokens), torch.tensor(drawn.logprobs, dtype=torch.float64)


def one(logits: Sequence[float] | Tensor, counts: Counts | None = None, **wanted: Any) -> Tensor:
    """The distribution of one row, as probabilities in FP64."""
    row = torch.as_tensor(logits, dtype=torch.float64)[None]
    return distribution(row, rows_of(1, row_counts=counts, **wanted))[0].exp()


def chi_square(tokens: Tensor, expected: Sequence[float]) -> float:
    counts = torch.bincount(tokens, minlength=len(expected)).tolist()
    assert all(c == 0 for c, p in zip(counts, expected, strict=True) if p == 0)
    total = sum(counts)
    return sum((c - total * p) ** 2 / (total * p) for c, p in zip(counts, expected, strict=True) if p)


# the seed is fixed, so this is no test that fails now and then; the limits are the 99.9 % points of chi-square
LIMIT = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52, 6: 22.46, 7: 24.32}


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_frequencies_match_the_tempered_distribution(temperature: float) -> None:
    p = [0.4, 0.25, 0.2, 0.1, 0.04, 0.01]
    tempered = [q ** (1 / temperature) for q in p]
    expected = [q / sum(tempered) for q in tempered]
    tokens, logp = draw(logits_of(p), temperature=temperature)
    assert chi_square(tokens, expected) < LIMIT[5]
    # float64 arithmetic on both sides
    assert torch.allclose(logp, torch.tensor(expected, dtype=torch.float64).log()[tokens], rtol=0, atol=1e-12)
    wrong = [q / sum(range(1, 7)) for q in range(1, 7)]
    assert chi_square(tokens, wrong) > 10 * LIMIT[5]  # the test can fail


@pytest.mark.parametrize(("top_p", "kept"), [(0.5, [0, 2]), (0.65, [0, 2]), (0.66, [0, 2, 4]), (0.9, [0, 2, 4, 1]),
                                             (0.96, [0, 2, 4, 1, 3]), (1.0, [0, 2, 4, 1, 3, 5]), (0.01, [0]),
                                             (1e-300, [0])])
def test_top_p_keeps_exactly_the_nucleus(top_p: float, kept: list[int]) -> None:
    p = [0.4, 0.1, 0.255, 0.04, 0.2, 0.005]
    mass = sum(p[i] for i in kept)
    expected = [p[i] / mass if i in kept else 0.0 for i in range(6)]
    tokens, logp = draw(logits_of(p), top_p=top_p)
    assert set(tokens.tolist()) == set(kept)
    if len(kept) > 3:
        assert chi_square(tokens, expected) < LIMIT[len(kept) - 1]
    # the log-probabilities are those of the distribution that was drawn from, float64 on both sides
    assert torch.allclose(logp, torch.tensor(expected, dtype=torch.float64).log()[tokens], rtol=0, atol=1e-12)


@pytest.mark.property
@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-8, 8), min_size=1, max_size=12), st.floats(0.01, 0.999), st.integers(0, 2**32))
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(logits: list[float], top_p: float, seed: int) -> None:
    row = torch.tensor(logits, dtype=torch.float64)
    p = row.softmax(-1).tolist()
    tokens, logp = draw(row, 64, top_p=top_p, seed=seed, step=0)
    for token, value in zip(tokens.tolist(), logp.tolist(), strict=True):
        above = sum(q for q in p if q > p[token] * (1 + 1e-12))  # nearer than that two are a tie, either may stay
        assert above < top_p + 1e-9  # without it the likelier tokens do not reach top_p: it belongs
        assert math.log(p[token]) - 1e-9 <= value <= math.log(p[token]) - math.log(top_p) + 1e-9


def reference(logits: Sequence[float], prompt: Sequence[int], tokens: Sequence[int], s: Sampling) -> list[float]:
    """The distribution by the rules in words, one token at a time, in FP64."""
    z = [x + s.logit_bias.get(i, 0.0) for i, x in enumerate(logits)]
    z = [(x / s.repetition_penalty if x > 0 else x * s.repetition_penalty) if i in {*prompt, *tokens} else x
         for i, x in enumerate(z)]
    z = [x - s.frequency_penalty * list(tokens).count(i) - s.presence_penalty * (i in tokens) for i, x in enumerate(z)]
    if s.temperature == 0:
        best = max(range(len(z)), key=lambda i: (z[i], -i))
        return [float(i == best) for i in range(len(z))]
    z = [x / s.temperature for x in z]
    order = sorted(range(len(z)), key=lambda i: (-z[i], i))
    if s.top_k:
        order = order[: s.top_k]
    whole = sum(math.exp(z[i] - z[order[0]]) for i in order)
    if s.top_p < 1:
        kept, mass = [], 0.0
        for i in order:
            if mass >= s.top_p:
                break
            kept.append(i)
            mass += math.exp(z[i] - z[order[0]]) / whole
        order = kept
    order = [i for i in order if math.exp(z[i] - z[order[0]]) >= s.min_p]
    whole = sum(math.exp(z[i] - z[order[0]]) for i in order)
    return [math.exp(z[i] - z[order[0]]) / whole if i in order else 0.0 for i in range(len(z))]


samplings = st.builds(
    Sampling, temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]), top_p=st.sampled_from([0.05, 0.5, 0.83, 0.97, 1.0]),
    top_k=st.sampled_from([0, 1, 2, 5, 40]), min_p=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 0.7, 1.3]), presence_penalty=st.sampled_from([0.0, 0.5, -1.0]),
    frequency_penalty=st.sampled_from([0.0, 0.4, -0.3]),
    logit_bias=st.dictionaries(st.integers(0, 11), st.sampled_from([-100.0, -1.0, 0.7, 100.0]), max_size=3))


@pytest.mark.property
@settings(max_examples=500, deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 11), max_size=6), st.lists(st.integers(0, 11), max_size=9),
       samplings)
def test_the_distribution_is_the_one_in_words(seed: int, prompt: list[int], tokens: list[int], s: Sampling) -> None:
    logits = random.Random(seed).choices([i / 3 for i in range(-12, 13)], k=12)  # thirds: ties are frequent
    row = Row(s, 1, len(tokens), Counts(prompt, tokens) if penalises(s) else None)
    found = distribution(torch.tensor(logits, dtype=torch.float64)[None], [row])[0].exp()
    expected = torch.tensor(reference(logits, prompt, tokens, s), dtype=torch.float64)
    # 1e-9: FP64 on both sides, log and exp between; a token more or less shows as 1e-5 at least (e^-12)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("wanted", [
    {}, {"temperature": 0.6, "top_p": 0.8}, {"top_k": 5}, {"min_p": 0.08}, {"top_k": 6, "top_p": 0.9, "min_p": 0.05},
    {"repetition_penalty": 1.4, "presence_penalty": 0.3, "frequency_penalty": 0.2}, {"logit_bias": {2: 1.5, 3: -100}}])
def test_draws_have_the_frequencies_of_the_distribution(wanted: dict[str, Any]) -> None:
    logits = torch.tensor([1.0, 0.3, -0.4, 2.0, 0.0, -1.0, 0.7, 1.4], dtype=torch.float32)
    counts = Counts([1, 6], [3, 3, 0]) if penalises(Sampling(**wanted)) else None
    tokens, logp = draw(logits, row_counts=counts, **wanted)
    row = distribution(logits[None], rows_of(1, row_counts=counts, **wanted))[0].double()
    expected = row.exp().tolist()
    kept = sum(p > 1e-9 for p in expected)
    expected = [p if p > 1e-9 else 0.0 for p in expected]  # a bias of -100 leaves 1e-44
    assert chi_square(tokens, expected) < LIMIT[kept - 1]
    # what is told is exactly what is drawn from, both in FP32 from the same operations
    assert torch.equal(logp, row[tokens])
    plain = logits.double().softmax(-1).tolist()
    if wanted:
        changed = [p for p, e in zip(plain, expected, strict=True) if e]
        frequencies = torch.bincount(tokens, minlength=8) / len(tokens)
        assert max(abs(float(f) - p / sum(changed)) for f, p, e in zip(frequencies, plain, expected, strict=True)
                   if e) > 0.01 or kept < 8  # it changes something


def test_cuts_are_of_the_distribution_that_the_earlier_ones_left() -> None:
    p = [0.4, 0.3, 0.2, 0.1]
    # top_k=2 leaves 4/7 and 3/7; top_p=0.55 of that is the first alone, of the whole it would be two
    assert one(logits_of(p), top_k=2, top_p=0.55).tolist() == [1, 0, 0, 0]
    assert one(logits_of(p), top_p=0.55).gt(0).tolist() == [True, True, False, False]
    # min_p after top_p: before it 0.4 and 0.3 would be all, and 0.55 of them the first alone
    assert one(logits_of(p), top_p=0.55, min_p=0.6).gt(0).tolist() == [True, True, False, False]
    # temperature before the cuts: at 0.5 the first has 16/30
    assert one(logits_of(p), temperature=0.5, top_p=0.53).gt(0).tolist() == [True, False, False, False]


def test_ties_stay_by_the_lowest_ids() -> None:
    flat = [0.0] * 6
    assert one(flat, top_k=2).tolist() == [0.5, 0.5, 0, 0, 0, 0]
    assert one(flat, top_p=0.5).gt(0).tolist() == [True] * 3 + [False] * 3
    assert one([0.0, 1.0, 1.0, 0.0, 1.0], top_k=2).tolist() == [0, 0.5, 0.5, 0, 0]
    assert one([0.0, 1.0, 1.0], min_p=1.0).tolist() == [0, 0.5, 0.5]
    assert one([0.0, 1.0, 1.0], temperature=0).tolist() == [0, 1, 0]
    assert one([0.3, 0.2, 0.1], top_k=10).gt(0).all()  # more than there are


@pytest.mark.property
@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40))
def test_likeliest_is_a_stable_sort(seed: int, n: int) -> None:
    rng = random.Random(seed)
    values = torch.tensor([[rng.choice([0.0, 1.0, 2.0, -math.inf]) for _ in range(40)] for _ in range(3)])
    value, place = likeliest(values, n)
    expected, order = values.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(value, expected[:, :n])
    some = value > -math.inf
    assert torch.equal(place[some], order[:, :n][some])


@pytest.mark.parametrize("wanted", [{"top_p": 0.93}, {"top_k": 300}, {"top_k": 2500, "top_p": 0.999}, {"top_p": 0.9999},
                                   {"min_p": 1e-4}, {"top_k": 700, "top_p": 0.9, "min_p": 1e-3}, {"top_p": 0.3}])
def test_few_likeliest_tokens_cut_as_the_sorted_vocabulary_does(
    wanted: dict[str, Any], monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6, 5000, generator=generator) * torch.tensor([0.1, 1, 2, 3, 5, 8])[:, None]
    logits = torch.cat([logits, logits.bfloat16().float()])  # the second half has ties everywhere
    rows = rows_of(12, **wanted)
    found = distribution(logits, rows)
    monkeypatch.setattr(module, "LIKELIEST", (5000,))
    assert torch.equal(found, distribution(logits, rows))
    kept = found.isfinite().sum(-1)
    assert 1 <= kept.min() < 5000
    assert bool((kept <= (wanted.get("top_k") or 5000)).all())


def test_penalties_and_bias_by_hand() -> None:
    z = [2.0, -2.0, 1.0, 0.5]

    def logits(**wanted: Any) -> list[float]:
        found = one(z, Counts([0, 1], [2, 2]), **wanted).log()
        return (found - found[3] + z[3]).tolist()  # the last is in neither prompt nor completion

    assert logits(repetition_penalty=2.0) == pytest.approx([1.0, -4.0, 0.5, 0.5])
    assert logits(presence_penalty=0.5) == pytest.approx([2.0, -2.0, 0.5, 0.5])  # the prompt does not count
    assert logits(frequency_penalty=0.5) == pytest.approx([2.0, -2.0, 0.0, 0.5])
    # bias first, then repetition, then the others
    assert logits(repetition_penalty=2.0, frequency_penalty=0.25, logit_bias={2: 3.0, 1: 4.0}) == pytest.approx(
        [1.0, 1.0, 1.5, 0.5])
    assert one(z, logit_bias={1: 100.0}, temperature=0).tolist() == [0, 1, 0, 0]
    assert one(z, logit_bias={0: -100.0})[0] < 1e-40


def test_counts_grow_with_the_completion() -> None:
    rng = random.Random(0)
    prompt, tokens = rng.choices(range(500), k=80), rng.choices(range(900), k=3000)
    counts = Counts(prompt)
    early = counts.copy()
    for token in tokens:
        counts.add(token)
    whole = Counts(prompt, tokens)
    assert counts.ids.tolist() == whole.ids.tolist()
    assert sorted(counts.ids.tolist()) == sorted({*prompt, *tokens})
    assert all(n == tokens.count(i) for i, n in zip(counts.ids.tolist(), counts.counts.tolist(), strict=True))
    assert early.counts.sum() == 0
    assert sorted(early.ids.tolist()) == sorted(set(prompt))


def packed(allowed: Tensor) -> Tensor:
    words = torch.zeros(-(-len(allowed) // 32) * 32, dtype=torch.int64)
    words[: len(allowed)] = allowed
    words = (words.view(-1, 32) << torch.arange(32)).sum(-1)
    return words.to(torch.int32)  # the highest bit is the sign


@pytest.mark.parametrize("size", [40, 37, 32])  # of the guide: shorter than the model's padded vocabulary, or as long
def test_a_guide_bars_what_it_does_not_allow(size: int) -> None:
    logits = torch.randn(40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    allowed = torch.rand(size, generator=torch.Generator().manual_seed(3)) < 0.4
    allowed[31] = True
    padded = torch.zeros(40, dtype=torch.bool)
    padded[:size] = allowed
    expected = logits.masked_fill(~padded, -math.inf).softmax(-1)
    for mask in (allowed, packed(allowed)):
        found = one(logits, row_allowed=mask)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        assert torch.equal(found > 0, padded)
        assert one(logits, row_allowed=mask, temperature=0).argmax() == expected.argmax()


def test_stop_tokens_are_barred_before_min_tokens() -> None:
    z = [0.0, 5.0, 1.0, 4.0]
    stops = frozenset({1, 3})
    early = {"min_tokens": 4, "row_stops": stops}
    assert one(z, step=3, **early).gt(0).tolist() == [True, False, True, False]
    assert one(z, step=4, **early).gt(0).all()
    assert one(z, step=0, row_stops=stops).gt(0).all()
    assert one(z, step=0, temperature=0, **early).tolist() == [0, 0, 1, 0]
    # with a guide: what both leave; but where the guide's text is complete, nothing else is left than to stop
    both = torch.tensor([True, True, False, False])
    assert one(z, step=0, row_allowed=both, **early).gt(0).tolist() == [True, False, False, False]
    complete = torch.tensor([False, True, False, False])
    assert one(z, step=0, row_allowed=complete, **early).gt(0).tolist() == [False, True, False, False]


def test_greedy_takes_the_likeliest_and_says_how_likely() -> None:
    logits = torch.randn(20, 7, generator=torch.Generator().manual_seed(0))
    rows = rows_of(20, temperature=0, top_p=0.3, top_k=1, logprobs=2)
    drawn = Sampler(7, "cpu").draw(logits, rows)
    assert drawn.tokens == logits.argmax(-1).tolist()
    # of the untempered, uncut distribution, to FP32 rounding; `distribution` is what was drawn from: that token
    torch.testing.assert_close(torch.tensor(drawn.logprobs), logits.log_softmax(-1).max(-1).values, rtol=0, atol=1e-6)
    assert [t[0] for t in drawn.top] == list(zip(drawn.tokens, drawn.logprobs, strict=True))
    assert torch.equal(distribution(logits, rows).exp(), torch.nn.functional.one_hot(logits.argmax(-1), 7).float())


def test_top_tells_the_likeliest_of_the_same_distribution() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 3.0, 0.0]])
    drawn = Sampler(5, "cpu").draw(logits.expand(2, -1), [
        Row(Sampling(logprobs=3), 1, 0), Row(Sampling(logprobs=4, top_k=2, temperature=0.5), 1, 0)])
    assert [i for i, _ in drawn.top[0]] == [1, 3, 2]
    torch.testing.assert_close(torch.tensor([v for _, v in drawn.top[0]]), logits.log_softmax(-1)[0, [1, 3, 2]])
    assert [i for i, _ in drawn.top[1]] == [1, 3]  # what was cut is not told
    assert [v for _, v in drawn.top[1]] == pytest.approx([-math.log(2)] * 2)
    for token, logprob, top in zip(drawn.tokens, drawn.logprobs, drawn.top, strict=True):
        assert dict(top).get(token, logprob) == logprob
    assert Sampler(5, "cpu").draw(logits, [Row(Sampling(logprobs=20), 1, 0)]).top[0][4][0] == 4


def test_the_edges_of_the_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    row = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]])
    for u, expected in ((0.0, 1), (0.5 - 1e-12, 1), (0.5, 3), (1 - 2**-53, 3)):
        monkeypatch.setattr(module, "uniforms", lambda seeds, steps, u=u: np.full(len(seeds), u))
        assert Sampler(5, "cpu").draw(row, rows_of(1)).tokens == [expected]
    alone = torch.tensor([[-math.inf, -math.inf, 2.0, -math.inf, -math.inf]])
    for wanted in ({}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 1.0}, {"temperature": 0}, {"logprobs": 3}):
        assert Sampler(5, "cpu").draw(alone, rows_of(1, **wanted)) == Drawn(
            [2], [0.0], [((2, 0.0),) if "logprobs" in wanted else ()])
    assert Sampler(5, "cpu").draw(torch.empty(0, 5), []) == Drawn([], [], [])
    tiny = Sampler(1, "cpu").draw(torch.tensor([[3.0]]), rows_of(1, top_p=0.5, top_k=1))
    assert (tiny.tokens, tiny.logprobs) == ([0], [0.0])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("wanted", [
    {}, {"temperature": 0}, {"temperature": 0.5}, {"top_p": 0.5}, {"top_k": 2}, {"min_p": 0.1}, {"logprobs": 2},
    {"row_counts": Counts([1], [2]), "frequency_penalty": 0.5}, {"min_tokens": 9, "row_stops": frozenset({1, 4})}])
def test_logits_that_are_no_numbers_are_no_sample(wanted: dict[str, Any], value: float) -> None:
    logits = torch.randn(600, 1000)
    logits[421, 3] = value
    rows = rows_of(600, **wanted)
    with pytest.raises(FathomError, match="logits for completion 421 of the batch are not numbers"):
        Sampler(1000, "cpu").draw(logits, rows)
    if "temperature" not in wanted:
        with pytest.raises(FathomError, match="logits for completion 421"):
            distribution(logits, rows)


def test_a_barred_token_hides_no_broken_model() -> None:
    rows = rows_of(2, min_tokens=9, row_stops=frozenset({1, 3}))
    for wanted in (rows, rows_of(2, row_allowed=torch.tensor([True, False, True, False]))):
        with pytest.raises(FathomError, match="logits for completion 1 of the batch"):
            Sampler(4, "cpu").draw(torch.tensor([[0.0] * 4, [0.0, 0.0, 0.0, math.nan]]), wanted)


def test_a_row_that_may_say_nothing_is_an_error() -> None:
    for wanted in ({}, {"temperature": 0}, {"top_p": 0.5}):
        with pytest.raises(FathomError, match=r"completion 1 of the batch .*bar every token"):
            rows = rows_of(1, **wanted) + rows_of(1, row_allowed=torch.zeros(4, dtype=torch.bool), **wanted)
            Sampler(4, "cpu").draw(torch.zeros(2, 4), rows)


@pytest.mark.parametrize(("bias", "words"), [
    ({4: 1.0}, "token 4 is not in the vocabulary of 4"), ({2: 1.0, -1: 1.0}, "token -1 is not")])
def test_a_bias_that_cannot_be_is_refused(bias: dict[int, float], words: str) -> None:
    with pytest.raises(UsageError, match=f"logit_bias: .*{words}"):
        Sampler(4, "cpu").check(Sampling(logit_bias=bias))


def test_tokens_out_of_range_are_refused() -> None:
    for counts, bad in ((Counts([7]), 7), (Counts([-1]), -1)):
        with pytest.raises(UsageError, match=f"token {bad} is not in the vocabulary of 4"):
            Sampler(4, "cpu").draw(torch.zeros(1, 4), rows_of(1, row_counts=counts, presence_penalty=1.0))
    with pytest.raises(ValueError, match="no Counts"):
        Sampler(4, "cpu").draw(torch.zeros(1, 4), rows_of(1, presence_penalty=1.0))
    with pytest.raises(ValueError, match="for 1 rows of 4 tokens"):
        Sampler(4, "cpu").draw(torch.zeros(1, 5), rows_of(1))


def mixed(rng: random.Random, count: int, vocab: int) -> list[Row]:
    """Rows of every kind, neighbours unlike each other."""
    rows = []
    for i in range(count):
        wanted: dict[str, Any] = rng.choice([
            {}, {"temperature": 0.0}, {"temperature": 0.7}, {"temperature": 1.3, "top_p": 0.9}, {"top_k": 40},
            {"min_p": 0.05}, {"temperature": 0.6, "top_k": 200, "top_p": 0.95, "min_p": 0.01, "logprobs": 5},
            {"repetition_penalty": 1.2}, {"presence_penalty": 0.5, "frequency_penalty": 0.3, "temperature": 0.0},
            {"logit_bias": {0: 4.0, vocab - 1: -100.0}, "logprobs": 3}, {"logprobs": 20, "min_tokens": 50},
            {"top_p": 0.9999}])
        sampling = Sampling(**wanted)
        counts = Counts(rng.choices(range(vocab), k=30), rng.choices(range(vocab), k=200))
        allowed = torch.from_numpy(np.random.default_rng(i).random(vocab) < 0.3) if rng.random() < 0.2 else None
        if allowed is not None and rng.random() < 0.5:
            allowed = packed(allowed)
        rows.append(Row(sampling, rng.getrandbits(64), rng.randrange(100), counts if penalises(sampling) else None,
                        allowed, frozenset(rng.sample(range(vocab), 3))))
    return rows


@pytest.mark.equivalence
@pytest.mark.parametrize(("vocab", "dtype", "threads"), [
    (61, torch.float32, 1), (1003, torch.float64, 1), (8192, torch.bfloat16, 1), (4099, torch.float32, 1),
    (20_011, torch.float32, 1), (61, torch.float32, 2), (1003, torch.float32, 2)])
def test_a_row_is_drawn_the_same_whatever_else_is_in_the_batch(vocab: int, dtype: torch.dtype, threads: int) -> None:
    rng = random.Random(vocab)
    rows = mixed(rng, 64, vocab)
    logits = (torch.randn(64, vocab, generator=torch.Generator().manual_seed(vocab)) * 2.5).to(dtype)
    sampler = Sampler(vocab, "cpu")
    torch.set_num_threads(threads)
    try:
        alone = [sampler.draw(logits[b: b + 1], [rows[b]]) for b in range(64)]
        shapes = [distribution(logits[b: b + 1], [rows[b]])[0] for b in range(64)]
        batches = [list(range(size)) for size in (2, 3, 5, 17, 31, 33, 64)]
        batches += [rng.sample(range(64), rng.randrange(1, 65)) for _ in range(12)]
        for chosen in batches:
            drawn = Sampler(vocab, "cpu").draw(logits[chosen], [rows[b] for b in chosen])
            assert drawn.tokens == [alone[b].tokens[0] for b in chosen]
            assert drawn.logprobs == [alone[b].logprobs[0] for b in chosen]  # to the last bit
            assert drawn.top == [alone[b].top[0] for b in chosen]
        for chosen in batches[::6]:
            together = distribution(logits[chosen], [rows[b] for b in chosen])
            assert torch.equal(together, torch.stack([shapes[b] for b in chosen]))
    finally:
        torch.set_num_threads(1)
    for b, row in enumerate(rows):  # and what is drawn is of the distribution
        assert shapes[b][alone[b].tokens[0]] > -math.inf
        if row.sampling.temperature:
            assert float(shapes[b][alone[b].tokens[0]]) == alone[b].logprobs[0]


def test_the_callers_logits_are_left_as_they_are() -> None:
    rows = mixed(random.Random(1), 32, 300)
    logits = torch.randn(32, 300)
    before = logits.clone()
    Sampler(300, "cpu").draw(logits, rows)
    assert torch.equal(logits, before)
    wide = torch.randn(32, 600)
    assert Sampler(300, "cpu").draw(wide[:, ::2], rows) == Sampler(300, "cpu").draw(wide[:, ::2].contiguous(), rows)


def test_uniforms_are_a_function_of_seed_and_step() -> None:
    seeds = np.random.default_rng(0).integers(0, 2**63, 1000, dtype=np.uint64)
    steps = [uniforms(seeds, step) for step in range(50)]
    order = np.random.default_rng(1).permutation(1000)
    assert np.array_equal(uniforms(seeds[order], 7), steps[7][order])
    own = np.random.default_rng(2).integers(0, 50, 1000)
    assert uniforms(seeds, own).tolist() == [steps[step][i] for i, step in enumerate(own)]
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

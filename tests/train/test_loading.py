"""The loader: every example once per epoch, in an order that has a name, continued exactly where it stood."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_models import assistant, system, tokenizer, user

from fathom.core.errors import FathomError
from fathom.core.records import Record, RecordStore
from fathom.train import prepare
from fathom.train.loader import Examples, Loader


def numbered(lengths: list[int]) -> Examples:
    """Examples whose every token is their own number."""
    return Examples.gather((np.full(n, i), np.arange(n) > 0) for i, n in enumerate(lengths))


def order(epoch: int) -> np.random.Generator:
    return np.random.default_rng([7, epoch])


def taken(loader: Loader, tokens: int, steps: int) -> list[list[int]]:
    return [[int(e.tokens[0]) for e in loader.take(tokens)] for _ in range(steps)]


LENGTHS = st.lists(st.integers(2, 30), min_size=1, max_size=25)


@pytest.mark.property
@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(1, 80))
def test_each_epoch_is_a_permutation(lengths: list[int], tokens: int) -> None:
    loader = Loader(numbered(lengths), order)
    flat = [n for step in taken(loader, tokens, 60) for n in step]
    whole = len(flat) // len(lengths)
    for epoch in range(whole):
        part = flat[epoch * len(lengths): (epoch + 1) * len(lengths)]
        assert part == order(epoch).permutation(len(lengths)).tolist()


@pytest.mark.property
@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(1, 80))
def test_a_step_is_full_and_never_over(lengths: list[int], tokens: int) -> None:
    loader = Loader(numbered(lengths), order)
    steps = taken(loader, tokens, 30)
    for step, following in pairwise(steps):
        size = sum(lengths[n] - 1 for n in step)
        assert size <= tokens or len(step) == 1
        assert size + lengths[following[0]] - 1 > tokens or size == tokens


@pytest.mark.equivalence
@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(1, 80), st.integers(0, 40))
def test_resumed_is_uninterrupted(lengths: list[int], tokens: int, cut: int) -> None:
    expected = taken(Loader(numbered(lengths), order), tokens, 50)
    before = Loader(numbered(lengths), order)
    assert taken(before, tokens, cut) == expected[:cut]
    after = Loader(numbered(lengths), order)
    taken(after, 17, 3)  # wherever it stood
    after.restore(before.state())
    assert taken(after, tokens, 50 - cut) == expected[cut:]
    assert after.epoch > 0 or sum(len(s) for s in expected) <= len(lengths)


def test_other_data_is_refused() -> None:
    state = Loader(numbered([3, 4]), order).state()
    with pytest.raises(FathomError, match="2 examples, now there are 3"):
        Loader(numbered([3, 4, 5]), order).restore(state)


def test_split_keeps_the_held_out_apart() -> None:
    every = numbered([3, 4, 5, 6, 7])
    rest, aside = every.split(2, np.array([3, 0, 4, 1, 2]))
    assert [int(aside[i].tokens[0]) for i in range(len(aside))] == [0, 3]
    assert [int(rest[i].tokens[0]) for i in range(len(rest))] == [1, 2, 4]
    rest, aside = every.split(0, np.arange(5))
    assert (len(rest), len(aside)) == (5, 0)
    for count in (5, -1):
        with pytest.raises(FathomError, match=f"held_out={count}"):
            every.split(count, np.arange(5))
    with pytest.raises(FathomError, match="0 examples"):
        Examples.gather([])


@pytest.mark.property
@given(st.lists(st.integers(1, 20), min_size=1, max_size=15), st.integers(1, 25))
def test_rows_train_every_token_once(lengths: list[int], length: int) -> None:
    """Documents end to end: inputs and targets of the rows, laid end to end, are those of the one long document."""
    rng = np.random.default_rng(0)
    source = Examples.gather((rng.integers(0, 99, n), np.arange(n) > 0) for n in lengths)
    cut = prepare.rows(source, length)
    rows = [cut[i] for i in range(len(cut))]
    total = sum(lengths)
    assert all(len(r.tokens) == length + 1 for r in rows[:-1])
    assert len(rows[-1].tokens) <= length + 1
    assert np.concatenate([r.tokens[:-1] for r in rows]).tolist() == source.tokens[: total - 1].tolist()
    assert np.concatenate([r.tokens[1:] for r in rows]).tolist() == source.tokens[1:].tolist()
    assert np.concatenate([r.trained[1:] for r in rows]).tolist() == source.trained[1:].tolist()


def test_encoding_and_what_a_store_kept(tmp_path: Path) -> None:
    words = tokenizer()
    chat = (system("Be brief."), user("1+1"), assistant("2"))
    assert prepare.encode(words, "some text") == words.document("some text")
    assert prepare.encode(words, chat) == words.chat(chat)
    made = [prepare.encode(words, source) for source in ("one", "two words", chat)]
    with RecordStore(tmp_path / "records", prepare.schema()) as store:
        for i, (tokens, trained) in enumerate(made):
            record = Record(f"r{i}", {}, "test")
            store.done(record, [record.child(0, {"tokens": tokens, "trained": trained})])
        store.reject(Record("r9", {}, "test"), "too long")
    examples = prepare.examples(RecordStore(tmp_path / "records", prepare.schema()))
    assert len(examples) == 3
    for i, (tokens, trained) in enumerate(made):
        assert examples[i].tokens.tolist() == tokens
        assert examples[i].trained.tolist() == trained

"""Layouts: packing changes nothing, a shared prompt changes nothing, padding stays within its bound."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_models import (
    CONFIGS,
    DTYPES,
    GQA_MOE,
    MLA_MOE,
    TOLERANCE,
    assert_gradients,
    assert_within,
    gradients,
    sharp,
    texts,
)

from fathom.model.layout import LONGEST_GATHERED, MOST_PADDING, Layout
from fathom.model.transformer import Transformer

LENGTHS = st.integers(1, 90) | st.integers(LONGEST_GATHERED - 40, LONGEST_GATHERED + 60)


def run(model: Transformer, sequences: Sequence[Sequence[int]], prefix: Sequence[int | None] | None = None):
    """Hidden states of packed sequences, one tensor per sequence."""
    lengths = [len(s) for s in sequences]
    tokens = torch.tensor([t for s in sequences for t in s], dtype=torch.long)
    return model(tokens, Layout.packed(lengths, prefix=prefix)).split(lengths)


@pytest.mark.equivalence
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_packed_is_alone(name: str, dtype: torch.dtype) -> None:
    config = CONFIGS[name]
    model, sequences = sharp(config, dtype=dtype), texts(config, 11, 1, 12, 30, 3, 10)
    with torch.no_grad():
        for together, sequence in zip(run(model, sequences), sequences, strict=True):
            assert_within(together, run(model, [sequence])[0], TOLERANCE[dtype])


@pytest.mark.equivalence
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("config", [MLA_MOE, GQA_MOE], ids=["mla", "gqa"])
def test_shared_prompt_is_the_prompt_repeated(config, dtype: torch.dtype) -> None:
    """Outputs of every continuation, and the gradient of every weight."""
    model = sharp(config, dtype=dtype)
    prompt, other, *ends = texts(config, 13, 6, 5, 9, 1, 7, 4)
    together = run(model, [prompt, *ends[:3], other, *ends[3:]], [None, 0, 0, 0, None, 4, 4])
    alone = run(model, [*([*prompt, *e] for e in ends[:3]), *([*other, *e] for e in ends[3:])])
    pairs = list(zip(together[1:4] + together[5:], alone, ends, strict=True))
    for shared, whole, end in pairs:
        assert_within(shared, whole[-len(end):], TOLERANCE[dtype])
    for whole in alone[:3]:
        assert_within(together[0], whole[: len(prompt)], TOLERANCE[dtype])
    # a loss over the continuations only: the prompt's gradient arrives through attention alone
    sum((shared * (i + 1)).sum() for i, (shared, _, _) in enumerate(pairs)).backward()
    found = gradients(model)
    sum((whole[-len(end):] * (i + 1)).sum() for i, (_, whole, end) in enumerate(pairs)).backward()
    # gradients add up over all tokens, so their roundings are relative to the largest entry
    assert_gradients(found, gradients(model), TOLERANCE[dtype])


@pytest.mark.equivalence
def test_a_continuation_of_a_continuation() -> None:
    model, (a, b, c, d) = sharp(MLA_MOE), texts(MLA_MOE, 5, 4, 6, 3)
    with torch.no_grad():
        together = run(model, [a, b, c, d], [None, 0, 1, 0])
        assert_within(together[2], run(model, [[*a, *b, *c]])[0][-6:], TOLERANCE[torch.float64])
        assert_within(together[3], run(model, [[*a, *d]])[0][-3:], TOLERANCE[torch.float64])


def test_only_an_earlier_sequence_can_be_continued() -> None:
    with pytest.raises(ValueError, match=r"prefix\[0\]=1"):
        Layout.packed([2, 3], prefix=[1, None])


@pytest.mark.property
@settings(max_examples=150, deadline=None)
@given(st.lists(LENGTHS, min_size=1, max_size=24))
def test_rectangles(lengths: list[int]) -> None:
    layout = Layout.packed(lengths)
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    rows = {start: list(range(start, start + n)) for start, n in zip(starts, lengths, strict=True)}
    cells, seen = [], []
    for rectangle in layout.rectangles:
        real = 0
        for row in rectangle.tolist():
            expected = rows[row[0]]
            seen.append(row[0])
            assert row[: len(expected)] == expected
            assert set(row[len(expected):]) <= {expected[-1]}  # padding comes last and repeats the last token
            real += len(expected)
            if len(expected) >= LONGEST_GATHERED:
                assert len(rectangle) == 1
        assert rectangle.numel() <= MOST_PADDING * real
        cells += rectangle.flatten().tolist()
    assert sorted(seen) == starts  # every sequence once
    places = layout.place_T.tolist()
    assert len(set(places)) == sum(lengths)
    assert [cells[p] for p in places] == list(range(sum(lengths)))  # every token is read from a cell of its own
    assert layout.positions_T.tolist() == [p for n in lengths for p in range(n)]
    assert layout.sequence_T.tolist() == [s for s, n in enumerate(lengths) for _ in range(n)]


@pytest.mark.property
@settings(max_examples=100, deadline=None)
@given(st.data())
def test_rectangles_with_shared_prompts(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=14))
    prefix = [data.draw(st.none() | st.integers(0, s - 1)) if s else None for s in range(len(lengths))]
    layout = Layout.packed(lengths, prefix=prefix)
    rows: list[list[int]] = []
    for s, n in enumerate(lengths):
        start = sum(lengths[:s])
        rows.append([*(rows[prefix[s]] if prefix[s] is not None else []), *range(start, start + n)])
    cells, before = [], {}
    for rectangle in layout.rectangles:
        for row in rectangle.tolist():
            for position, token in enumerate(row):
                before[len(cells)] = row[: position + 1]
                cells.append(token)
    for row in rows:  # a token's cell sees exactly its sequence up to itself
        for position, token in enumerate(row):
            cell = int(layout.place_T[token])
            assert cells[cell] == token
            assert before[cell] == row[: position + 1]
            assert int(layout.positions_T[token]) == position


@pytest.mark.equivalence
def test_long_sequences_go_singly() -> None:
    """Around the border of 512, packed with short ones."""
    config = GQA_MOE.model_copy(update={"max_position_embeddings": 1024})
    model, sequences = sharp(config), texts(config, 511, 3, 512, 513, 4)
    assert sorted(len(r) for r in Layout.packed([511, 3, 512, 513, 4]).rectangles) == [1, 1, 1, 2]
    with torch.no_grad():
        for together, sequence in zip(run(model, sequences), sequences, strict=True):
            assert_within(together, run(model, [sequence])[0], TOLERANCE[torch.float64])

"""Fill in the middle: what is told in which order, how often, cut where, and that nothing is lost."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from made_chats import directory

from fathom.core.errors import FathomError
from fathom.model.fim import cut
from fathom.model.tokenizer import MARKS, Tokenizer

TEXTS = ["def add(a, b):\n    return a + b\n", "<｜fim▁hole｜> 你好 🙂", "", "x"]
TOKENIZER = Tokenizer.train(TEXTS * 3, 300, infill=True)
BEGIN, HOLE, END = (TOKENIZER.backend.token_to_id(f"<｜fim▁{name}｜>") for name in ("begin", "hole", "end"))


@pytest.mark.property
@pytest.mark.parametrize("form", ["psm", "spm"])
@pytest.mark.parametrize("text", TEXTS)
def test_the_three_parts_are_the_text(text: str, form: str) -> None:
    for seed in range(50):
        tokens, trained = TOKENIZER.fim(text, np.random.default_rng(seed), 1.0, form)
        assert trained == [False] + [True] * (len(tokens) - 1)
        assert tokens[:2] == [TOKENIZER.bos_id, BEGIN]
        assert tokens[-1] == TOKENIZER.eos_id
        assert [tokens.count(i) for i in (TOKENIZER.bos_id, BEGIN, HOLE, END, TOKENIZER.eos_id)] == [1] * 5
        hole, end = tokens.index(HOLE), tokens.index(END)
        if form == "psm":
            prefix, suffix, middle = tokens[2:hole], tokens[hole + 1: end], tokens[end + 1: -1]
            said = (TOKENIZER.decode(prefix), TOKENIZER.decode(middle), TOKENIZER.decode(suffix))
            prompt = TOKENIZER.infill(said[0], said[2])
            assert "".join(said) == text
            assert tokens[: len(prompt)] == prompt
        else:
            assert hole == 2
            rest = TOKENIZER.decode(tokens[end + 1: -1])  # prefix and middle, encoded apart, told as one
            assert rest + TOKENIZER.decode(tokens[hole + 1: end]) == text
            prefix_alone = TOKENIZER.infill("", TOKENIZER.decode(tokens[hole + 1: end]), form)
            assert tokens[: len(prefix_alone)] == prefix_alone


def test_the_rate_and_the_cuts() -> None:
    rng = np.random.default_rng(3)
    told = sum(BEGIN in TOKENIZER.fim(TEXTS[0], rng, 0.1).tokens for _ in range(5000))
    assert 410 < told < 590  # 500 with a standard deviation of 21
    assert TOKENIZER.fim(TEXTS[0], rng, 0.0) == TOKENIZER.document(TEXTS[0])
    counts = np.zeros(4)
    for _ in range(4000):
        prefix, middle, suffix = cut("abc", rng)
        assert prefix + middle + suffix == "abc"
        counts[len(prefix)] += 1
    # the smaller of two even draws from 0…3: 7, 5, 3 and 1 of 16
    assert np.abs(counts / 4000 - np.array([7, 5, 3, 1]) / 16).max() < 0.04


def test_the_same_randomness_is_the_same_document() -> None:
    one, other = (TOKENIZER.fim(TEXTS[0], np.random.default_rng(8), 0.5) for _ in range(2))
    assert one == other


def test_markers_are_appended_and_stay_text() -> None:
    plain = Tokenizer.train(TEXTS * 3, 297)
    ids = plain.backend.get_vocab()
    assert {t: i for t, i in TOKENIZER.backend.get_vocab().items() if i < len(ids)} == ids
    assert (BEGIN, HOLE, END) == (297, 298, 299)
    assert [plain.backend.token_to_id(m) for m in MARKS] == [TOKENIZER.backend.token_to_id(m) for m in MARKS]
    assert not {BEGIN, HOLE, END} & set(TOKENIZER.encode("<｜fim▁begin｜><｜fim▁hole｜><｜fim▁end｜>"))


def test_what_cannot_be_is_refused() -> None:
    plain = Tokenizer.train(TEXTS * 3, 297)
    with pytest.raises(FathomError, match="the vocabulary has neither"):
        plain.fim("text", np.random.default_rng(0), 0.1)
    with pytest.raises(FathomError, match="the vocabulary has neither"):
        plain.infill("a", "b")
    with pytest.raises(FathomError, match="form='pms'"):
        TOKENIZER.infill("a", "b", "pms")  # type: ignore[arg-type]


def test_deepseek_v3_markers() -> None:
    tokenizer = Tokenizer.load(directory("v3", Path(tempfile.mkdtemp(prefix="fathom-fim-"))))
    prompt = tokenizer.infill("a", "b")
    assert prompt == [0, 128801, *tokenizer.encode("a"), 128800, *tokenizer.encode("b"), 128802]


def test_qwen_markers() -> None:
    from tokenizers import AddedToken

    tokenizer = Tokenizer.train(TEXTS, 300, "qwen2.5")
    names = ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
    tokenizer.backend.add_special_tokens([AddedToken(name, special=True) for name in names])
    asked = tokenizer.infill("a", "b")
    assert [tokenizer.backend.id_to_token(i) for i in asked] == ["<|fim_prefix|>", "a", "<|fim_suffix|>", "b",
                                                                 "<|fim_middle|>"]

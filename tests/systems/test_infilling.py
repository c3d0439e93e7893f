"""Pre-training with documents told out of order: how many, that none loses a character, and the same after a kill."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small import SIGKILL, SUMS, Small, differing, kept

from fathom.core.records import RecordStore
from fathom.model.template import family
from fathom.model.tokenizer import Tokenizer

pytestmark = pytest.mark.kill


def test_documents_are_told_out_of_order_and_the_same_after_a_kill(small: Small, place: Path) -> None:
    forks, model = small.forks[0], place / "words" / "model"
    done = forks.run("tokenizer", small.settings("tokenizer", infill=True, vocab_size=290), "--dir", model.parent)
    assert done.code == 0, done.said
    settings = {rate: small.settings(
        "pretrain", tokenizer=str(model), fim=rate, tokens=1024, data=[{**SUMS, "think": "steps", "count": 400}])
        for rate in (0.5, 0)}
    for rate, name in ((0.5, "told"), (0, "plain")):
        done = forks.run("pretrain", settings[rate], "--dir", place / name, commit_every=50)
        assert done.code == 0, done.said
        seconds = done.seconds
    for share in (0.1, 0.3, 0.6):
        cut, moment = place / f"cut at {share}", share * seconds
        words = ("pretrain", settings[0.5], "--dir", cut)
        while forks.run(*words, signal=SIGKILL, after=moment, commit_every=50).code != -SIGKILL:
            shutil.rmtree(cut)
            moment *= 0.7
        done = forks.run(*words, commit_every=50)
        assert done.code == 0, done.said
        assert not differing(kept(cut), kept(place / "told"))

    tokenizer = Tokenizer.load(model)
    begin, hole, end = (tokenizer.backend.token_to_id(f"<｜fim▁{which}｜>") for which in ("begin", "hole", "end"))
    plain = {r.id: r.data["tokens"] for r in RecordStore(place / "plain" / "records").kept()}
    told = 0
    for record in RecordStore(place / "told" / "records").kept():
        tokens, text = record.data["tokens"], tokenizer.decode(plain.pop(record.id))
        assert record.data["trained"] == [False] + [True] * (len(tokens) - 1)
        if begin in tokens:
            told += 1
            a, b = tokens.index(hole), tokens.index(end)
            assert tokens[:2] == [tokenizer.bos_id, begin]
            parts = [tokenizer.decode(part) for part in (tokens[2:a], tokens[b + 1: -1], tokens[a + 1: b])]
            assert "".join(parts) == text
        else:
            assert tokenizer.decode(tokens) == text
    assert not plain
    assert 150 < told < 250  # 200 with a standard deviation of 10


def test_a_vocabulary_without_markers_is_refused_by_name(small: Small, place: Path) -> None:
    done = small.forks[0].run("pretrain", small.settings("pretrain", fim=0.1), "--dir", place / "none")
    assert done.code == 1
    assert "set fim=0, or learn a vocabulary with infill=true" in " ".join(done.said.split())


def test_a_vocabulary_with_the_form_of_a_family(small: Small, place: Path) -> None:
    forks = small.forks[0]
    done = forks.run("tokenizer", small.settings("tokenizer", template="qwen3"), "--dir", place / "words")
    assert done.code == 0, done.said
    tokenizer = Tokenizer.load(place / "words" / "model")
    assert tokenizer.template == family("qwen3")
    assert tokenizer.bos_id is None
    assert [tokenizer.backend.id_to_token(i) for i in tokenizer.stop_ids] == ["<|im_end|>"]
    done = forks.run("tokenizer", small.settings("tokenizer", template="qwen4"), "--dir", place / "other")
    assert done.code == 2
    assert "template" in done.said

"""DeepSeek's own vocabularies: the ids of the reference library, and of byte-level BPE written out by hand."""

from __future__ import annotations

import functools
import itertools
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import regex
import transformers
from made_chats import directory

from fathom.core.errors import FathomError
from fathom.model.tokenizer import Tokenizer

VERSIONS = ("v2", "v3", "v3_think")
SCRIPTS = [
    (0x20, 0x7E), (0xA1, 0xFF), (0x100, 0x17F), (0x370, 0x3FF), (0x400, 0x4FF), (0x531, 0x587), (0x5D0, 0x5EA),
    (0x600, 0x6FF), (0x900, 0x97F), (0xE01, 0xE5B), (0x10A0, 0x10FF), (0x1100, 0x11FF), (0x2010, 0x205E),
    (0x2190, 0x23FF), (0x3040, 0x30FF), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3), (0xFF01, 0xFF5E), (0x10400, 0x1044F),
    (0x1D400, 0x1D7FF), (0x1F300, 0x1F64F), (0x20000, 0x20200)]
ODD = [
    "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "e\u0301\u0323", "a" + "\u0300" * 9, "\u200b\u200d\ufeff", "\x00", "\x1b[0m",
    "\x7f\x80\x9f", "\ufffd", "\U000f0000", "\U0010ffff", "\u2028\u2029", "\u3000", "\xa0", "\r\n", "\r", "\n\n\n",
    "\t", "  ", "\x1c\x1f", "ﬁ", "ß", "İ", "Å", "１２３", "٣٤", "½", "Ⅷ", "3.14159", "1234567", "0x1F", "it's", "WE'LL",
    "_x", "->", "!=", "://", "\\n", "\U0010fff0", "\U0010fff1\U0010fff2"]
LOOKALIKES = [
    "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜fim▁hole｜>",
    "<｜▁pad▁｜>", "<|EOT|>", "<|User|>", "<|begin_of_sentence|>", "<｜tool▁sep｜>", "<think>", "</think>", "<｜User",
    "｜>", "<｜", "<<｜User｜>>", "<｜place▁holder▁no▁7｜>", "<｜User|>", "<｜ User｜>"]
CODE = [
    "def f(x):\n    return x**2\n", "for (int i = 0; i < n; ++i) {\n\ta[i] += 1;\n}", "SELECT * FROM t WHERE a='b';",
    "<div class=\"x\">&amp;</div>", "\\begin{align} x^2 &= \\frac{1}{2} \\\\ \\end{align}", '{"a": [1, 2.5e-3, null]}']


def strings(count: int) -> list[str]:
    """Texts in many scripts with code, odd characters, things that look like control tokens, and long runs."""
    rng = random.Random(5)

    def word() -> str:
        low, high = rng.choice(SCRIPTS)
        return "".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 12)))

    kinds: list[Callable[[], str]] = [
        word, word, word, lambda: rng.choice(ODD), lambda: rng.choice(LOOKALIKES), lambda: rng.choice(CODE),
        lambda: str(rng.randrange(10 ** rng.randint(1, 18))), lambda: " " * rng.randint(1, 6),
        lambda: rng.choice("\n\t .,;-'\"") * rng.randint(1, 4)]
    made = dict.fromkeys(["", *ODD, *LOOKALIKES, *CODE, *(c * 3000 for c in "a 中\n!1é")])
    while len(made) < count:
        made["".join(rng.choice(kinds)() + rng.choice(["", " "]) for _ in range(rng.randint(1, 12)))] = None
    return list(made)


@functools.cache
def folder(version: str) -> Path:
    return directory(version, Path(tempfile.mkdtemp(prefix="fathom-tokenizer-")))


@functools.cache
def ours(version: str) -> Tokenizer:
    return Tokenizer.load(folder(version))


@functools.cache
def theirs(version: str) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder(version))


@functools.cache
def library(version: str) -> Any:
    """The reference library with every control token called special, so that it can be told to take them as text."""
    import tokenizers

    raw = json.loads((folder(version) / "tokenizer.json").read_bytes())
    for token in raw["added_tokens"]:
        token["special"] = token["special"] or token["content"].startswith(("<｜", "<|"))
    made = tokenizers.Tokenizer.from_str(json.dumps(raw))
    made.encode_special_tokens = True
    return made


def compare(version: str, texts: list[str]) -> None:
    tokenizer = ours(version)
    for text in texts:
        assert tokenizer.encode(text, control=True) == theirs(version)(text, add_special_tokens=False).input_ids, text
        ids = tokenizer.encode(text)
        assert ids == library(version).encode(text, add_special_tokens=False).ids, text
        assert tokenizer.decode(ids) == text
        assert not tokenizer.control_ids & set(ids)


@pytest.mark.parity
@pytest.mark.parametrize("version", VERSIONS)
def test_ids_of_the_reference_library(version: str) -> None:
    compare(version, strings(1000))


@pytest.mark.long
@pytest.mark.parity
@pytest.mark.parametrize("version", VERSIONS)
def test_ids_of_the_reference_library_on_ten_thousand(version: str) -> None:
    compare(version, strings(10_000))


class ByHand:
    """Byte-level BPE from the vocabulary, the merges and the patterns of the file, and nothing else."""

    def __init__(self, path: Path):
        raw = json.loads(path.read_bytes())
        self.ids: dict[str, int] = raw["model"]["vocab"]
        self.ranks = {tuple(m.split(" ") if isinstance(m, str) else m): i for i, m in enumerate(raw["model"]["merges"])}
        self.patterns = []
        for step in raw["pre_tokenizer"]["pretokenizers"]:
            if step["type"] == "Split":
                # the file's engine has $ before any line break, and Unicode's white space only
                pattern = step["pattern"]["Regex"].replace(r"\s", r"\p{White_Space}").replace(r"\S", r"\P{White_Space}")
                self.patterns.append(regex.compile(pattern, regex.MULTILINE))
            elif step["type"] == "Digits":
                self.patterns.append(regex.compile(r"\p{N}"))
        # the printable bytes stand for themselves, the others for the characters from U+0100 on
        shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        hidden = [b for b in range(256) if b not in shown]
        self.letters = {b: chr(b) for b in shown} | {b: chr(0x100 + i) for i, b in enumerate(hidden)}

    def encode(self, text: str) -> list[int]:
        pieces = [text] if text else []
        for pattern in self.patterns:
            pieces = [part for piece in pieces for part in self._isolated(pattern, piece)]
        return [self.ids[token] for piece in pieces for token in self._merged(piece)]

    @staticmethod
    def _isolated(pattern: Any, piece: str) -> list[str]:
        parts, at = [], 0
        for found in pattern.finditer(piece):
            parts += [piece[at: found.start()], found[0]]
            at = found.end()
        return [part for part in (*parts, piece[at:]) if part]

    def _merged(self, piece: str) -> list[str]:
        parts = [self.letters[b] for b in piece.encode()]
        while len(parts) > 1:
            ranked = [(self.ranks.get(pair, len(self.ranks)), i) for i, pair in enumerate(itertools.pairwise(parts))]
            rank, i = min(ranked)
            if rank == len(self.ranks):
                break
            parts[i: i + 2] = [parts[i] + parts[i + 1]]
        return parts


@pytest.mark.parity
@pytest.mark.parametrize("version", ["v2", "v3"])
def test_ids_of_byte_level_bpe_by_hand(version: str) -> None:
    """Both libraries share one engine, so it is checked against its description too. v3 has no marks that are text, so
    all that stands in these strings, control tokens too, is text to it."""
    by_hand, tokenizer = ByHand(folder(version) / "tokenizer.json"), ours(version)
    texts = [text for text in strings(1000) if len(text) < 500]
    assert len(texts) > 950
    for text in texts:
        assert tokenizer.encode(text) == by_hand.encode(text), repr(text)


def test_what_is_no_text_is_named() -> None:
    for version in ("v2", "v3"):
        with pytest.raises(FathomError, match="character 1 is half of a surrogate pair"):
            ours(version).encode("a\ud800b")


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_a_long_word_takes_time_in_proportion(version: str) -> None:
    """One word of 1 MB takes a second or two; in quadratic time it would take hours."""
    began = time.monotonic()
    assert ours(version).decode(ours(version).encode("ab" * 500_000)) == "ab" * 500_000
    assert time.monotonic() - began < 60


def test_a_long_chat_takes_time_in_proportion() -> None:
    from fathom.core.chat import Message

    fake = "<｜User｜>" * 2000 + "x" * 200_000
    began = time.monotonic()
    tokens, _ = ours("v3").chat([Message("user", fake), Message("assistant", fake)])
    assert tokens.count(ours("v3").backend.token_to_id("<｜User｜>")) == 1
    assert time.monotonic() - began < 60


@pytest.mark.parity
@pytest.mark.parametrize("version", ["v2", "v3", pytest.param("v3_think", marks=pytest.mark.long)])
def test_the_directory_that_we_write_opens_there_and_is_the_same(version: str, tmp_path: Path) -> None:
    for name, content in ours(version).files().items():
        (tmp_path / name).write_bytes(content)
    again, loaded = transformers.AutoTokenizer.from_pretrained(tmp_path), Tokenizer.load(tmp_path)
    assert loaded.files() == ours(version).files()
    assert (again.bos_token, again.eos_token, again.pad_token) == (
        theirs(version).bos_token, theirs(version).eos_token, theirs(version).pad_token)
    for text in strings(300):
        assert again(text).input_ids == theirs(version)(text).input_ids
        assert loaded.encode(text) == ours(version).encode(text)
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    assert again.apply_chat_template(chat, return_dict=False) == theirs(version).apply_chat_template(
        chat, return_dict=False)
    before, after = (json.loads((place / "tokenizer.json").read_bytes()) for place in (folder(version), tmp_path))
    written, stood = ({t["content"]: t["special"] for t in one["added_tokens"]} for one in (after, before))
    assert written == stood

"""Text as tokens come: equal to decoding them all, equal to looking for stop strings in all of it."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_chats import directory
from made_models import tokenizer
from tokenizers import AddedToken, decoders

from fathom.core.errors import FathomError, UsageError
from fathom.engine.text import Detokenizer, StopStrings
from fathom.model.tokenizer import MARKS, Tokenizer


def odd() -> Tokenizer:
    """A vocabulary with added tokens whose characters are, and are not, those that bytes are written with."""
    made = tokenizer()
    made.backend.add_tokens(["é", "né€", "two words", "<｜mark｜>", "Ġ"])
    made.backend.add_special_tokens([AddedToken("<|late|>", special=True)])
    return Tokenizer(made.backend, made.template)


ODD = odd()
PLAIN = tokenizer()
SIZE = ODD.vocab_size


def pushed(made: Tokenizer, tokens: Sequence[int]) -> list[str]:
    text = Detokenizer(made)
    return [*(text.push(token) for token in tokens), text.finish()]


@pytest.mark.property
@settings(max_examples=500, deadline=None)
@given(st.lists(st.integers(0, SIZE + 3), max_size=40))  # some of them no token at all, as in padded models
def test_pushes_are_the_decoded_text(tokens: list[int]) -> None:
    parts = pushed(ODD, tokens)
    assert "".join(parts) == ODD.decode(tokens)
    for i in range(len(tokens) + 1):  # what was shown stays: it begins every longer text
        assert ODD.decode(tokens).startswith("".join(parts[:i]))


def alphabet() -> dict[int, str]:
    """The character that each byte is written with: the library's own, in the order of its inventors (GPT-2)."""
    from tokenizers import pre_tokenizers

    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = {ord(c): c for c in characters if ord(c) < 256}
    others = [byte for byte in range(256) if byte not in own]
    return own | dict(zip(others, [c for c in characters if ord(c) >= 256], strict=True))


WRITTEN = alphabet()


@pytest.mark.property
@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=24) | st.lists(st.sampled_from([0xE2, 0xF0, 0x9F, 0x98, 0x80, 0xED, 0xA0, 0xC3, 0x61])))
def test_any_bytes_are_read_as_the_library_reads_them(raw: bytes | list[int]) -> None:
    tokens = [ODD.backend.model.token_to_id(WRITTEN[byte]) for byte in raw]
    assert "".join(pushed(ODD, tokens)) == ODD.decode(tokens) == bytes(raw).decode("utf-8", "replace")


@pytest.mark.parametrize("text", ["naïve café", "数学 🙂🙂 é", "👩‍👩‍👧 ok", " <think> no</think> "])
def test_characters_come_whole_and_at_once(text: str) -> None:
    tokens = PLAIN.encode(text)
    parts = pushed(PLAIN, tokens)
    assert "".join(parts) == text
    assert parts[-1] == ""
    assert not any("�" in part for part in parts)
    for i in range(1, len(tokens) + 1):  # nothing is held back that is whole
        whole = b"".join(_raw(t) for t in tokens[:i]).decode("utf-8", "ignore")
        assert "".join(parts[:i]) == whole


def _raw(token: int) -> bytes:
    if PLAIN.backend.id_to_token(token) in MARKS:
        return PLAIN.backend.id_to_token(token).encode()
    back = {character: byte for byte, character in WRITTEN.items()}
    return bytes(back[c] for c in PLAIN.backend.id_to_token(token))


def test_control_tokens_are_no_text() -> None:
    tokens = [ODD.eos_id, *ODD.encode("a"), ODD.backend.token_to_id("<|late|>"), *ODD.encode("b"), ODD.eos_id]
    assert pushed(ODD, tokens) == ["", "a", "", "b", "", ""]


@pytest.mark.parametrize("version", ["v2", "v3", "v3_think"])
def test_real_vocabularies(version: str, tmp_path: Path) -> None:
    made = Tokenizer.load(directory(version, tmp_path))
    rng = random.Random(3)
    size = made.vocab_size
    for token in [*rng.sample(range(size), 20_000), *range(size - 830, size)]:
        assert "".join(pushed(made, [token])) == made.decode([token]), token
    for _ in range(300):
        tokens = [rng.randrange(size + 500) for _ in range(rng.randrange(60))]
        assert "".join(pushed(made, tokens)) == made.decode(tokens)
    for text in ("naïve 数学 🙂\n\n", "x = {'a': [1, 2.5e-3]}\t# ça"):
        assert "".join(pushed(made, made.encode(text))) == text


def test_a_long_text_costs_what_its_tokens_cost() -> None:
    tokens = random.Random(0).choices(range(SIZE), k=60_000)

    def seconds(of: Sequence[int]) -> float:
        text, stops = Detokenizer(ODD), StopStrings(["the end of it", "\n\n\n"])
        begun = time.process_time()
        for token in of:
            stops.push(text.push(token))
        return time.process_time() - begun

    seconds(tokens[:1000])
    short, long = min(seconds(tokens[:6000]) for _ in range(3)), min(seconds(tokens) for _ in range(3))
    assert long < 30 * short  # ten times the tokens; squared costs would be a hundred times


def test_other_decoders_are_refused() -> None:
    made = tokenizer()
    made.backend.decoder = decoders.WordPiece()
    with pytest.raises(FathomError, match=r"decoder WordPiece; .* byte-level BPE"):
        Detokenizer(made)
    made.backend.decoder = decoders.Sequence([decoders.ByteLevel()])
    assert "".join(pushed(made, made.encode("né"))) == "né"


def naive(stops: Sequence[str], text: str) -> tuple[str, bool]:
    """The text up to the stop string that ends first, of those the longest, by looking everywhere."""
    for end in range(1, len(text) + 1):
        lengths = [len(s) for s in stops if text[:end].endswith(s)]
        if lengths:
            return text[: end - max(lengths)], True
    return text, False


def held(stops: Sequence[str], text: str) -> int:
    """How many characters at the end of `text` begin a stop string."""
    return max((n for s in stops for n in range(1, len(s)) if text.endswith(s[:n])), default=0)


few = st.text(alphabet="ab\n", min_size=1, max_size=5)


@pytest.mark.property
@settings(max_examples=1000, deadline=None)
@given(st.lists(few, max_size=4), st.lists(st.text(alphabet="ab\n", max_size=6), max_size=8))
def test_stop_strings_are_those_of_the_whole_text(stops: list[str], parts: list[str]) -> None:
    watch = StopStrings(stops)
    shown, text = "", ""
    for part in parts:
        new, stopped = watch.push(part)
        shown, text = shown + new, text + part
        _, ends = naive(stops, text)
        assert stopped == ends == watch.stopped
        if stopped:
            break
        assert shown == text[: len(text) - held(stops, text)]  # no more is held back than must be
    if not watch.stopped:
        shown += watch.finish()
    assert (shown, watch.stopped) == naive(stops, text)
    assert watch.finish() == ""


@pytest.mark.property
@settings(max_examples=500, deadline=None)
@given(st.lists(few, max_size=3), st.text(alphabet="ab", max_size=12), st.lists(few, max_size=4))
def test_unarmed_text_ends_nothing_but_may_begin_a_stop(stops: list[str], early: str, parts: list[str]) -> None:
    watch = StopStrings(stops)
    shown, stopped = watch.push(early, armed=False)
    assert not stopped
    text = early
    for part in parts:
        new, stopped = watch.push(part)
        shown, text = shown + new, text + part
        if stopped:
            break
    end = next((e for e in range(len(early) + 1, len(text) + 1) if any(text[:e].endswith(s) for s in stops)), None)
    assert watch.stopped == (end is not None)
    if end is None:
        assert shown + watch.finish() == text
    else:
        assert shown == text[: end - max(len(s) for s in stops if text[:end].endswith(s))]


@pytest.mark.parametrize(("stops", "parts", "shown"), [
    (["###"], ["a#", "#", "b##", "#c"], ["a", "", "##b", ""]),  # "##" was held, then shown, then the real one
    (["abcd", "bc"], ["xabc"], ["xa"]),  # "bc" is complete first
    (["ab", "abc"], ["abc"], [""]),  # one begins the other: the shorter is complete first
    (["bc", "abc"], ["zabc"], ["z"]),  # complete together: the longer is cut off
    (["]", "[x]"], ["[x", "]"], ["", ""]),
    (["^-"], ["a^", "-"], ["a", ""]),  # characters that mean something in a pattern
    (["\\d"], ["1\\", "d"], ["1", ""]),
])
def test_cases(stops: list[str], parts: list[str], shown: list[str]) -> None:
    watch = StopStrings(stops)
    found = [watch.push(part) for part in parts]
    assert [text for text, _ in found] == shown
    assert [stopped for _, stopped in found] == [False] * (len(parts) - 1) + [True]
    with pytest.raises(ValueError, match="after a stop string"):
        watch.push("more")


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(UsageError, match="stop: an empty string"):
        StopStrings(["a", ""])


def test_nasty_stop_strings_cost_linear_time() -> None:
    stops = ["a" * 5000 + "b", "a" * 2500 + "c"]  # every character might begin one
    watch = StopStrings(stops)
    begun = time.process_time()
    shown = "".join(watch.push("a" * 10)[0] for _ in range(3000)) + watch.finish()
    assert shown == "a" * 30_000
    assert time.process_time() - begun < 5  # comparing each end of the text with each stop takes minutes

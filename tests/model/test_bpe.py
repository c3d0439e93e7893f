"""The tokenizer: text comes back byte for byte, users cannot write control tokens, the mask covers what is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_models import CORPUS, assistant, system, tokenizer, user

from fathom.core.errors import FathomError
from fathom.model.tokenizer import ASSISTANT, BOS, CONTROL, EOS, MARKS, USER, Tokenizer

TOKENIZER = tokenizer()
IDS = {token: TOKENIZER.backend.token_to_id(token) for token in (*CONTROL, *MARKS)}

# every code point that UTF-8 can hold, and the pieces that could be mistaken for structure
CHARACTERS = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
ODD = ["🙂", "１２3", "👩‍👩‍👧", "\x00", "\r\n", "\ue0000\ue001", "\ue0001\ue001", "{{ bos_token }}", "  "]
PIECES = CHARACTERS | st.sampled_from([*CONTROL, *MARKS, *ODD])
TEXTS = st.lists(PIECES, max_size=6).map("".join)


@pytest.mark.property
@settings(max_examples=300, deadline=None)
@given(TEXTS)
@example("")
@example("\x00\x1f\x7f\u200b\ufeff")
def test_text_comes_back(text: str) -> None:
    tokens = TOKENIZER.encode(text)
    assert TOKENIZER.decode(tokens) == text
    assert not {IDS[token] for token in CONTROL} & set(tokens)


@pytest.mark.property
@settings(max_examples=200, deadline=None)
@given(TEXTS, TEXTS, TEXTS)
@example(f"{ASSISTANT}yes{EOS}{USER}", f"{EOS}{ASSISTANT}", f"{BOS}")
def test_what_is_written_stays_text(first: str, answer: str, second: str) -> None:
    """Control tokens stand where the template puts them and nowhere else; one BOS, at the front."""
    messages = [system(second), user(first), assistant(answer), user(second), assistant(first)]
    tokens, trained = TOKENIZER.chat(messages)
    structure = [t for t in tokens if t in {IDS[c] for c in CONTROL}]
    assert structure == [IDS[BOS], *[IDS[USER], IDS[ASSISTANT], IDS[EOS]] * 2]
    assert tokens[0] == IDS[BOS]
    assert tokens == [
        IDS[BOS], *TOKENIZER.encode(second), IDS[USER], *TOKENIZER.encode(first),
        IDS[ASSISTANT], *TOKENIZER.encode(answer), IDS[EOS], IDS[USER], *TOKENIZER.encode(second),
        IDS[ASSISTANT], *TOKENIZER.encode(first), IDS[EOS],
    ]
    assert [t for t, on in zip(tokens, trained, strict=True) if on] == [
        *TOKENIZER.encode(answer), IDS[EOS], *TOKENIZER.encode(first), IDS[EOS]]


@pytest.mark.property
@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3), TEXTS, st.booleans())
def test_prompt_is_the_front_of_the_chat(turns: list[tuple[str, str]], told: str, with_system: bool) -> None:
    """The model is asked in generation exactly as it was taught; the mask begins where the prompt ends."""
    messages = [system(told)] if with_system else []
    for asked, answered in turns:
        messages += [user(asked), assistant(answered)]
    prompt = TOKENIZER.prompt(messages[:-1])
    tokens, trained = TOKENIZER.chat(messages)
    assert tokens[: len(prompt)] == prompt
    assert all(trained[len(prompt):])
    assert tokens[len(prompt):] == [*TOKENIZER.encode(turns[-1][1]), TOKENIZER.eos_id]
    assert sum(trained) == sum(len(TOKENIZER.encode(a)) + 1 for _, a in turns)


def test_mask_of_several_turns() -> None:
    messages = [system("Be brief."), user("1+1"), assistant("2"), user("2+2"), assistant("4")]
    tokens, trained = TOKENIZER.chat(messages)
    spelled = [(TOKENIZER.backend.id_to_token(t), on) for t, on in zip(tokens, trained, strict=True)]
    assert [s for s, on in spelled if on] == ["2", EOS, "4", EOS]
    assert spelled[-1] == (EOS, True)
    assert (ASSISTANT, True) not in spelled
    assert (USER, True) not in spelled


def test_documents() -> None:
    tokens, trained = TOKENIZER.document("again and again")
    assert tokens == [TOKENIZER.bos_id, *TOKENIZER.encode("again and again"), TOKENIZER.eos_id]
    assert trained == [False] + [True] * (len(tokens) - 1)


@pytest.mark.parametrize("text", ["20241231", "x1234y", " 77", "3.14159", "1,000", "١٢٣"])
def test_digits_stand_alone(text: str) -> None:
    trained_on_numbers = Tokenizer.train([text * 20, "1234 1234 1234", *CORPUS], 400)
    for token in trained_on_numbers.encode(text):
        piece = trained_on_numbers.decode([token])
        assert sum(c.isdigit() for c in piece) <= 1
        assert len(piece) == 1 or not any(c.isdigit() for c in piece)


def test_marks_are_one_token_and_text() -> None:
    for mark in MARKS:
        assert TOKENIZER.encode(mark) == [IDS[mark]]
        assert TOKENIZER.decode([IDS[mark]]) == mark  # unlike control tokens, which leave no trace
    assert TOKENIZER.decode([TOKENIZER.bos_id, TOKENIZER.eos_id]) == ""


def test_training_is_deterministic_and_learns() -> None:
    again = tokenizer()
    assert again.files() == TOKENIZER.files()
    text = "the quick brown fox"
    assert len(TOKENIZER.encode(text)) < len(text.encode())
    assert TOKENIZER.vocab_size == 320


def test_save_and_load(tmp_path: Path) -> None:
    for name, content in TOKENIZER.files().items():
        (tmp_path / name).write_bytes(content)
    loaded = Tokenizer.load(tmp_path)
    messages = [user(f"{EOS} 12 + 7 🙂 {MARKS[0]}"), assistant("19\n")]
    assert loaded.chat(messages) == TOKENIZER.chat(messages)
    assert (loaded.bos_id, loaded.eos_id, loaded.vocab_size) == (
        TOKENIZER.bos_id, TOKENIZER.eos_id, TOKENIZER.vocab_size)
    assert loaded.files() == TOKENIZER.files()


def test_what_is_written_like_a_control_token_is_one(tmp_path: Path) -> None:
    """DeepSeek-V3's file calls <｜User｜> ordinary; typed by a user it would open a turn."""
    for name, content in TOKENIZER.files().items():
        (tmp_path / name).write_bytes(content)
    raw = (tmp_path / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(raw.replace(b'"special":true', b'"special":false'))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.control_ids == TOKENIZER.control_ids == {IDS[token] for token in CONTROL}
    text = "".join(CONTROL)
    assert loaded.encode(text) == TOKENIZER.encode(text)
    assert loaded.encode(text, control=True) == [IDS[token] for token in CONTROL]
    assert b'"special":true' not in loaded.files()["tokenizer.json"]  # what the file said is kept


STRUCTURE = ("<start_of_turn>", "<end_of_turn>", "<stop>")
TURNS = (
    "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }}<end_of_turn>{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>assistant\n{% endif %}")


@pytest.mark.parametrize("template", [TURNS, TURNS + "{{ raise_exception('no') if messages | length == 2 }}"])
def test_what_the_template_writes_and_what_stops_is_a_control_token(template: str) -> None:
    """Gemma's <start_of_turn>, where a file calls it ordinary; also with a template that refuses the sample chat."""
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_str(TOKENIZER.backend.to_str())
    backend.add_tokens([AddedToken(token, normalized=False) for token in (*STRUCTURE, "<tool>")])
    ours = Tokenizer(backend, template, None, EOS, stops=[backend.token_to_id("<stop>")])
    lifted = {backend.token_to_id(token) for token in STRUCTURE}
    assert ours.control_ids == {IDS[token] for token in CONTROL} | lifted
    asked = ours.prompt([user("x" + "".join(STRUCTURE))])
    assert [ours.backend.id_to_token(t) for t in asked if t in lifted] == [
        "<start_of_turn>", "<end_of_turn>", "<start_of_turn>"]
    assert ours.encode("<tool>") == [backend.token_to_id("<tool>")]  # no part of a turn: text like any other
    assert ours.encode("<think>") == [IDS["<think>"]]


CUT = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
FILL = {"strategy": {"Fixed": 40}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 7, "pad_type_id": 0,
        "pad_token": "x"}


def changed(directory: Path, **more: object) -> Path:
    """A directory with our vocabulary, some entries of tokenizer.json replaced."""
    for name, content in TOKENIZER.files().items():
        (directory / name).write_bytes(content)
    written = json.loads((directory / "tokenizer.json").read_bytes()) | more
    (directory / "tokenizer.json").write_text(json.dumps(written))
    return directory


@pytest.mark.parametrize("more", [
    {"truncation": CUT}, {"truncation": CUT | {"max_length": 2, "stride": 5}}, {"padding": FILL},
    {"padding": FILL | {"strategy": {"Fixed": 20_000_000}}, "truncation": CUT}])
def test_truncation_and_padding_of_a_file_are_left_off(more: dict[str, object], tmp_path: Path) -> None:
    loaded = Tokenizer.load(changed(tmp_path, **more))
    chat = [user("again and again"), assistant("the quick brown fox " * 9)]
    assert loaded.chat(chat) == TOKENIZER.chat(chat)
    assert loaded.document("fox") == TOKENIZER.document("fox")
    assert loaded.files() == TOKENIZER.files()


def test_a_panic_of_the_library_is_an_error_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its Rust code panics over is no Exception, so it passes by whoever catches those."""
    loaded = Tokenizer.load(changed(
        tmp_path, normalizer={"type": "Replace", "pattern": {"String": ""}, "content": "zzzzzzzzzz"}))
    with pytest.raises(FathomError, match=r"tokenizer.json: not a tokenizer that works"):
        loaded.encode("a longer text with several words in it to encode 123")

    class Stopping:
        def __init__(self, error: BaseException) -> None:
            self.error = error

        def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
            raise self.error

    monkeypatch.setattr(loaded, "backend", Stopping(type("PanicException", (BaseException,), {})("index 9")))
    with pytest.raises(FathomError, match=r"not a tokenizer that works \(index 9\)"):
        loaded.decode([1])
    monkeypatch.setattr(loaded, "backend", Stopping(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        loaded.decode([1])


def test_half_of_a_surrogate_pair_is_named() -> None:
    for use in (TOKENIZER.encode, TOKENIZER.document, lambda text: TOKENIZER.chat([user(text), assistant("x")])):
        with pytest.raises(FathomError, match=r"is half of a surrogate pair \(0xdc80\), which is no character"):
            use("a\udc80")


def test_what_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FathomError, match="no assistant turn"):
        TOKENIZER.chat([user("hello")])
    with pytest.raises(FathomError, match="vocab_size=64"):
        Tokenizer.train(CORPUS, 64)
    with pytest.raises(FathomError, match=r"tokenizer.json: no such file"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text(" " * 2000)
    with monkeypatch.context() as patch, pytest.raises(FathomError, match=r"tokenizer.json: larger than 1000 bytes"):
        patch.setattr("fathom.model.tokenizer.LARGEST", 1000)
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(FathomError, match="not a tokenizer"):
        Tokenizer.load(tmp_path)
    with pytest.raises(FathomError, match="Jinja"):
        Tokenizer(TOKENIZER.backend, "{% for %}")
    with pytest.raises(FathomError, match=r"message 0 \(system\) does not appear"):
        Tokenizer(TOKENIZER.backend, "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}").prompt(
            [system("x"), user("y")])

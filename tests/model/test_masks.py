"""Loss masks: exactly what a model has to write, for every family, against stretches of text marked by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_chats import ANSWERED, ASKED, chats, directory, learnt, messages, reference, text_of, written

from fathom.core.chat import Message
from fathom.core.errors import FathomError
from fathom.model.template import FAMILIES, ChatTemplate, family
from fathom.model.tokenizer import BOS, EOS, Tokenizer
from fathom.model.turns import Prompts


@pytest.mark.parity
@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_masks_are_those_marked_by_hand(name: str, thinking: bool) -> None:
    tokenizer = learnt(name)
    for chat in chats(thinking):
        for keep in (True, False):
            ids, mask = reference(tokenizer.backend, written(name, chat, keep=keep))
            assert tokenizer.chat(messages(chat), keep_thinking=keep) == (ids, mask)
        last = max(i for i, on in enumerate(mask) if on)
        assert ids[last] in tokenizer.stop_ids


@pytest.mark.parity
@pytest.mark.parametrize("thinking", [False, True])
def test_masks_with_the_thinking_switched_off(thinking: bool) -> None:
    tokenizer = learnt("qwen3")
    for chat in chats(thinking):
        expected = reference(tokenizer.backend, written("qwen3", chat, switch=False))
        assert tokenizer.chat(messages(chat), enable_thinking=False) == expected


@pytest.mark.parity
@pytest.mark.parametrize(("version", "name"), [("v2", "v2"), ("v3", "v3"), ("v3_think", "r1")])
def test_masks_with_the_real_vocabularies_and_their_own_templates(version: str, name: str, tmp_path: Path) -> None:
    """The library's own mask of the same chats is zero everywhere: training on it learns nothing, and says nothing."""
    tokenizer = Tokenizer.load(directory(version, tmp_path))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for chat in chats(thinking=name == "r1"):
        expected = reference(tokenizer.backend, written(name, chat, keep=False))
        assert tokenizer.chat(messages(chat), keep_thinking=False) == expected
        assert any(expected[1])
    empty = theirs.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    assert not any(empty["assistant_masks"])
    assert empty["input_ids"] == expected[0]


def test_the_last_turn_keeps_its_thinking() -> None:
    """R1's template drops it everywhere, so that its rendering teaches no reasoning at all."""
    tokenizer = learnt("r1")
    chat = [Message("user", "2+2?"), Message("assistant", "<think>\nTwo twos.\n</think>\n\n4")]

    def said(encoded: tuple[list[int], list[bool]]) -> str:
        return tokenizer.backend.decode([t for t, on in zip(*encoded, strict=True) if on], skip_special_tokens=False)

    assert said(tokenizer.chat(chat)) == f"Two twos.\n</think>\n\n4{EOS}"
    assert said(tokenizer.chat(chat, keep_thinking=False)) == f"\n\n4{EOS}"
    prompt = tokenizer.prompt(chat[:1])
    assert tokenizer.chat(chat).tokens[: len(prompt)] == prompt
    alone = tokenizer.chat(chat[1:])
    assert said(alone) == f"Two twos.\n</think>\n\n4{EOS}"
    front = tokenizer.encode(f"{BOS}<｜Assistant｜><think>\n", control=True)
    assert alone.tokens[: len(front)] == front
    # as a completion of that prompt comes back: the mark that the prompt holds is not in it
    assert tokenizer.chat([chat[0], Message("assistant", "Two twos.\n</think>\n\n4")]) == tokenizer.chat(chat)


@pytest.mark.property
@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_is_the_front_of_the_chat(name: str) -> None:
    tokenizer = learnt(name)
    for chat in chats(thinking=name in ("r1", "qwen3")):
        prompt = tokenizer.prompt(messages(chat[:-1]))
        tokens, trained = tokenizer.chat(messages(chat))
        assert tokens[: len(prompt)] == prompt
        assert trained[len(prompt)]
        assert not trained[len(prompt) - 1]


WORDS = st.sampled_from([
    "a", "b c", "\n", "\n\n", " ", "<think>", "</think>", "<think>\n", "\n</think>\n\n", "<|im_end|>", "<｜User｜>",
    EOS, "User: ", "Assistant:", "\U0010fff0", "\U0010fff10", "\U0010fff2", "<|eot_id|>",
    "<tool_response>", "{{ 1 }}", "🙂", "é"])
SAID = st.lists(WORDS, max_size=6).map("".join)


@pytest.mark.property
@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(FAMILIES), st.lists(st.tuples(SAID, SAID), min_size=1, max_size=3), st.none() | SAID, st.booleans())
@example("qwen3", [("<tool_response></tool_response>", "<think>a</think>b"), ("c", "<think></think>d")], None, True)
@example("qwen3", [("", "<think></think></think>")], None, True)
@example("r1", [("a", "<think>\n"), ("b", "</think>")], "", True)
def test_any_contents(name: str, turns: list[tuple[str, str]], told: str | None, keep: bool) -> None:
    """Whatever is written in them: the text is the family's, and what is trained is what was marked by hand."""
    tokenizer = learnt(name)
    chat = [] if told is None else [{"role": "system", "content": told}]
    for asked, answered in turns:
        chat += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    pieces = written(name, chat, keep=keep)
    tokens, trained = tokenizer.chat(messages(chat), keep_thinking=keep)

    def said(kept: list[int]) -> str:
        return tokenizer.backend.decode(kept, skip_special_tokens=False)

    assert said(tokens) == text_of(pieces)
    for on in (True, False):
        assert said([t for t, now in zip(tokens, trained, strict=True) if now is on]) == "".join(
            text for text, now in pieces if now is on)
    structure = [t for t in tokens if t in tokenizer.control_ids]
    plain = [{**m, "content": "x"} for m in chat]
    assert structure == [t for t in tokenizer.chat(messages(plain)).tokens if t in tokenizer.control_ids]


def test_where_a_merge_would_reach_over_the_border() -> None:
    """A prompt that ends in a line break and an answer that begins with one: the answer's own tokens are trained."""
    tokenizer = learnt("qwen2")
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\n\nb"}]
    whole, _ = reference(tokenizer.backend, written("qwen2", chat))
    tokens, trained = tokenizer.chat(messages(chat))
    assert tokens != whole
    assert [t for t, on in zip(tokens, trained, strict=True) if on] == [*tokenizer.encode("\n\nb"), tokenizer.eos_id]
    assert tokenizer.backend.decode(tokens, skip_special_tokens=False) == text_of(written("qwen2", chat))


REFUSES_NONE = (
    "{{ raise_exception('none') if not messages }}{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "[{{ m.role }}]{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{{ after }}{% endif %}")


@pytest.mark.property
@pytest.mark.parametrize("name", [*FAMILIES, "refuses none"])
def test_a_chat_that_begins_with_an_answer(name: str) -> None:
    """Trained from where its prompt ends, as any other turn; what stands before it is not."""
    tokenizer = learnt(name) if name in FAMILIES else Tokenizer(learnt("v3").backend, REFUSES_NONE)
    reasons = name in ("r1", "qwen3")
    first = "<think>a</think>b" if not reasons and name in FAMILIES else "Hello"
    chat = [Message("assistant", first), Message("user", "q"), Message("assistant", "<think>\nc\n</think>\n\nd")]
    tokens, trained = tokenizer.chat(chat)
    prompt = tokenizer.prompt(chat[:-1])
    assert tokens[: len(prompt)] == prompt
    said = tokenizer.backend.decode(
        [t for t, on in zip(tokens[: len(prompt)], trained, strict=False) if on], skip_special_tokens=False)
    assert said == (" " if name == "v2" else "") + first + tokenizer.eos
    alone = tokenizer.chat(chat[:1])
    assert (alone.tokens[trained.index(True)], alone.trained.index(True)) == (tokens[trained.index(True)],
                                                                             trained.index(True))


def test_a_first_answer_whose_prompt_cannot_be_found_is_refused() -> None:
    backend = learnt("v3").backend
    chat = [Message("assistant", "<think>\na\n</think>\n\nb")]
    thinks = Tokenizer(backend, REFUSES_NONE.replace("{{ after }}", "<think>\n{{ after }}"))
    tokens, trained = thinks.chat(chat)  # the last answer keeps its thinking, after the prompt
    said = backend.decode([t for t, on in zip(tokens, trained, strict=True) if on], skip_special_tokens=False)
    assert said == f"a\n</think>\n\nb{EOS}"
    assert backend.decode(tokens, skip_special_tokens=False) == f"{BOS}[assistant]<think>\n{said}"
    for other in (REFUSES_NONE, REFUSES_NONE.replace("{{ raise_exception('none') if not messages }}", "")):
        with pytest.raises(FathomError, match=r"message 0 \(assistant\) stands first and no generation prompt"):
            Tokenizer(backend, other.replace("[assistant]", "(assistant)")).chat(chat)


def long_chat(turns: int) -> list[Message]:
    """Questions and answers, some of them empty, some with thinking."""
    said = ["ho", "", "<think>a</think>b", "xy"]
    return [Message(*one) for i in range(turns) for one in (("user", f"q{i}"[: i % 3]), ("assistant", said[i % 4]))]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_long_chat_is_rendered_a_few_times_only(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each prompt by itself is a rendering of all turns before: their number's square."""
    tokenizer, chat, render = learnt(name), long_chat(200), ChatTemplate.render
    with monkeypatch.context() as patch:
        patch.setattr(Prompts, "SURE", 1000)
        expected = tokenizer.chat(chat[:80])
    assert tokenizer.chat(chat[:80]) == expected
    count = 0

    def counted(*args: Any) -> str:
        nonlocal count
        count += 1
        return render(*args)

    monkeypatch.setattr(ChatTemplate, "render", counted)
    tokenizer.chat(chat)
    assert count < 60


def test_a_prompt_that_changes_in_a_long_chat() -> None:
    """Its turns look alike, but the prompt of later ones says more: then each is rendered by itself."""
    grows = ("{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
             "{% if add_generation_prompt %}[assistant]{{ 'x' if messages | length > 30 }}{% endif %}")
    chat = [Message(role, "xa") for _ in range(30) for role in ("user", "assistant")]
    tokenizer = Tokenizer(learnt("v3").backend, grows)
    tokens, trained = tokenizer.chat(chat)
    said = tokenizer.decode([t for t, on in zip(tokens, trained, strict=True) if on])
    assert said == "xa" * 15 + "a" * 15


HIDDEN = {
    "content left out": ("{% for m in messages %}{{ m.role }}{% endfor %}", r"message 0 \(user\) does not appear"),
    "answer left out": ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
                        r"message 1 \(assistant\) does not appear"),
    "answer twice": ("{% for m in messages %}{{ m.content }} {{ m.content }}{% endfor %}", "appears 2 times"),
    "turns reordered": ("{% for m in messages[::-1] %}[{{ m.content }}]{% endfor %}", "not written in one place"),
    "prompt of another kind": (
        "{% if add_generation_prompt %}>{% endif %}{% for m in messages %}[{{ m.content }}]{% endfor %}",
        "changes what stands before message"),
}


@pytest.mark.parametrize("fault", HIDDEN)
def test_a_template_that_hides_what_is_trained_is_refused(fault: str) -> None:
    template, words = HIDDEN[fault]
    tokenizer = Tokenizer(learnt("v3").backend, template)
    chat = [Message("user", "a"), Message("assistant", "b"), Message("user", "c"), Message("assistant", "d")]
    with pytest.raises(FathomError, match=words):
        tokenizer.chat(chat)


def test_a_template_without_a_stop_token_trains_none() -> None:
    tokenizer = Tokenizer(learnt("v3").backend, family("v3").replace("{{ eos_token }}", ""))
    tokens, trained = tokenizer.chat([Message("user", ASKED[0]), Message("assistant", ANSWERED[1])])
    assert [t for t, on in zip(tokens, trained, strict=True) if on] == tokenizer.encode(ANSWERED[1])


def test_control_tokens_that_users_write_stay_text_in_the_mask_too() -> None:
    for name in FAMILIES:
        tokenizer = learnt(name)
        fake = "".join(sorted(tokenizer.backend.id_to_token(i) for i in tokenizer.control_ids))
        chat = [Message("user", f"x{fake}y"), Message("assistant", f"z{fake}w")]
        plain = [Message("user", "x y"), Message("assistant", "z w")]
        tokens, trained = tokenizer.chat(chat)
        kept = [t for t in tokens if t in tokenizer.control_ids]
        assert kept == [t for t in tokenizer.chat(plain).tokens if t in tokenizer.control_ids]
        said = [t for t, on in zip(tokens, trained, strict=True) if on]
        assert tokenizer.decode(said).strip().endswith(f"z{fake}w")

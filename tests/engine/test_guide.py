"""Guided JSON: whatever the model says, what comes out satisfies the schema."""

from __future__ import annotations

import gc
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from made_chats import directory
from made_models import tokenizer

from fathom.core.chat import Sampling
from fathom.core.errors import FathomError, UsageError
from fathom.engine import guide as module
from fathom.engine.guide import Guide, GuideState
from fathom.engine.sampler import Row, Sampler
from fathom.engine.text import Detokenizer
from fathom.model.tokenizer import Tokenizer

pytest.importorskip("llguidance", reason="the extra guided is not installed")

PLAIN = tokenizer()
PERSON = {
    "type": "object", "additionalProperties": False, "required": ["name", "age", "tags"],
    "properties": {"name": {"type": "string", "maxLength": 12},
                   "age": {"type": "integer", "minimum": 0, "maximum": 150},
                   "tags": {"type": "array", "items": {"enum": ["a", "é", None, 3]}, "maxItems": 3}}}
TREE = {"$defs": {"node": {"type": "object", "properties": {"left": {"$ref": "#/$defs/node"}, "value": {
    "type": "number"}}, "required": ["value"], "additionalProperties": False}}, "$ref": "#/$defs/node"}
DATE = {"type": "string", "format": "date"}
CODE = {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}
EITHER = {"anyOf": [{"const": "数学 🙂"}, {"type": "boolean"},
                    {"type": "array", "items": {"type": "null"}, "minItems": 1, "maxItems": 2}]}


def person(value: Any) -> bool:
    return (isinstance(value, dict) and list(value) == ["name", "age", "tags"] and isinstance(value["name"], str)
            and len(value["name"]) <= 12 and type(value["age"]) is int and 0 <= value["age"] <= 150
            and len(value["tags"]) <= 3 and all(tag in ("a", "é", None, 3) for tag in value["tags"]))


def tree(value: Any) -> bool:
    return (isinstance(value, dict) and set(value) <= {"left", "value"} and isinstance(value["value"], (int, float))
            and ("left" not in value or tree(value["left"])))


def date(value: Any) -> bool:
    return isinstance(value, str) and time.strptime(value, "%Y-%m-%d") is not None


def code(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[A-Z]{2}-[0-9]{3}", value) is not None


def either(value: Any) -> bool:
    return value in ("数学 🙂", True, False, [None], [None, None])


SCHEMAS = {"person": (PERSON, person), "tree": (TREE, tree), "date": (DATE, date), "code": (CODE, code),
           "either": (EITHER, either), "any": ({}, lambda value: True)}


def bits(mask: torch.Tensor) -> set[int]:
    return {32 * i + b for i, word in enumerate(mask.tolist()) for b in range(32) if word >> b & 1}


def told(made: Tokenizer, state: GuideState, seed: int, most: int, vocab: int | None = None) -> tuple[str, bool]:
    """What a model of random logits says under a guide, and whether it came to an end within `most` tokens."""
    vocab = vocab or made.vocab_size
    sampler, text = Sampler(vocab, "cpu"), Detokenizer(made)
    generator = torch.Generator().manual_seed(seed)
    sampling, said = Sampling(), ""
    for step in range(most):
        mask = state.allowed()
        logits = torch.randn(1, vocab, generator=generator) * 3
        if step > 60:  # a model that comes to an end: quotes and brackets are likely
            logits[0, [made.encode(c)[0] for c in '"}]']] += 12
        drawn = sampler.draw(logits, [Row(sampling, seed, step, allowed=mask)]).tokens[0]
        state.accept(drawn)
        if drawn in made.stop_ids:
            return said + text.finish(), True
        said += text.push(drawn)
    return said + text.finish(), False


@pytest.mark.parametrize("name", SCHEMAS)
def test_random_models_write_what_satisfies_the_schema(name: str) -> None:
    schema, satisfies = SCHEMAS[name]
    guide = Guide(PLAIN, json.dumps(schema))
    ended = 0
    for seed in range(25):
        text, whole = told(PLAIN, guide.state(), seed, 400, PLAIN.vocab_size + 9)  # a model's vocabulary may be longer
        ended += whole
        if whole:
            assert satisfies(json.loads(text)), text
    assert ended >= 20  # numbers and trees of a random model need not end
    # and without the guide there is no JSON, so this is not the model's doing
    said = Sampler(PLAIN.vocab_size, "cpu").draw(torch.zeros(40, PLAIN.vocab_size), [
        Row(Sampling(), 1, step) for step in range(40)]).tokens
    with pytest.raises(ValueError):
        json.loads(PLAIN.decode(said))


def test_stop_tokens_are_allowed_exactly_where_the_text_is_complete() -> None:
    state = Guide(PLAIN, json.dumps({"type": "array", "items": {"type": "integer"}, "maxItems": 2})).state()
    text = ""
    for character in "[12, 345]":
        assert not bits(state.allowed()) & PLAIN.stop_ids
        assert not state.complete
        assert not state.finished
        (token,) = PLAIN.encode(character)
        assert token in bits(state.allowed())
        state.accept(token)
        text += character
    assert bits(state.allowed()) == PLAIN.stop_ids
    assert state.complete
    assert state.finished
    with pytest.raises(FathomError, match="token"):
        state.copy().accept(PLAIN.encode("1")[0])
    state.accept(PLAIN.eos_id)
    assert state.finished
    with pytest.raises(FathomError, match="does not allow it"):
        state.accept(PLAIN.eos_id)
    number = Guide(PLAIN, '{"type": "integer"}').state()
    number.accept(PLAIN.encode("7")[0])
    assert number.complete  # it may end here, and may go on
    assert not number.finished
    assert bits(number.allowed()) > PLAIN.stop_ids
    with pytest.raises(FathomError, match="does not allow it"):
        Guide(PLAIN, "{}").state().accept(PLAIN.eos_id)


def test_the_mask_is_what_extends_to_the_schema() -> None:
    """Against the definition: a token may come where the text with it begins one of the few texts that satisfy."""
    texts = ['"数学 🙂"', "true", "false", "[null]", "[null,null]"]
    state = Guide(PLAIN, json.dumps(EITHER)).state()
    for token in range(PLAIN.vocab_size):
        raw = module.vocabulary(PLAIN)[token]
        begins = bool(raw) and any(text.encode().startswith(raw) for text in texts)
        if token not in bits(state.allowed()):
            assert not begins, raw
        elif not raw.startswith(b"["):  # after which white space may stand
            assert begins or raw.startswith((b'"\\u', b'"\\')), raw


def test_states_are_their_own() -> None:
    guide = Guide(PLAIN, json.dumps(PERSON))
    first, second = guide.state(), guide.state()
    before = bits(second.allowed())
    first.accept(PLAIN.encode("{")[0])
    assert bits(second.allowed()) == before != bits(first.allowed())
    proposed = first.copy()
    proposed.accept(PLAIN.encode('"')[0])
    assert bits(first.allowed()) != bits(proposed.allowed())


def test_guides_are_made_or_refused_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 3)
    made = tokenizer()
    guide = Guide.of(made, json.dumps(CODE))
    assert Guide.of(PLAIN, json.dumps(CODE)) is not guide
    with pytest.raises(UsageError, match="objec"):
        Guide.of(made, '{"type": "objec"}')
    probe = module._probe
    monkeypatch.setattr(module, "_probe", lambda grammar: pytest.fail("prepared again"))
    assert Guide.of(made, json.dumps(CODE)) is guide
    with pytest.raises(UsageError, match="objec"):
        Guide.of(made, '{"type": "objec"}')
    monkeypatch.setattr(module, "_probe", probe)
    for i in range(3):
        Guide.of(made, json.dumps({"const": i}))
    assert list(module._guides[made]) == [json.dumps({"const": i}) for i in range(3)]
    kept = len(module._guides)
    del made, guide
    gc.collect()
    assert len(module._guides) < kept  # a guide does not keep its tokenizer


def test_a_probe_that_breaks_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PROBE", "raise SystemExit('no memory for this')")
    with pytest.raises(FathomError, match="no memory for this") as found:
        Guide(PLAIN, "{}")
    assert not isinstance(found.value, UsageError)


@pytest.mark.parametrize(("schema", "words"), [
    ("{", "not JSON"), ("[1]", "no schema"), ("3", "no schema"), ('{"a": NaN}', "not JSON"),
    ('{"type": "objec"}', "Invalid type: objec"), ("false", "false, which nothing satisfies"),
    ('{"not": {"type": "string"}}', r'Unimplemented keys: \["not"\]'),
    ('{"not": {"type": "string"}, "x-guidance": {"lenient": true}}', r'Unimplemented keys: \["not"\]'),
    ('{"type": "string", "pattern": "(?=a)b"}', "look-ahead"), ('{"type": "string", "pattern": "["}', "regex parse"),
    ('{"$ref": "https://example.org/schema.json"}', "does not fetch"), ('{"$ref": "#"}', "NoExtension"),
    ('{}}], "grammars": [{"lark_grammar": "start: /a/"', "not JSON"),  # no grammar slips in
    ('{"oneOf": [{"type": "integer"}, {"type": "number"}]}', "oneOf"),
])
def test_a_bad_schema_is_refused_with_the_reason(schema: str, words: str) -> None:
    with pytest.raises(UsageError, match=f"json_schema: .*{words}"):
        Guide(PLAIN, schema)


def nested(levels: int) -> str:
    return '{"properties": {"a": ' * levels + "{}" + "}}" * levels


HOSTILE = {
    "deep": nested(60), "deeper": nested(700), "far too deep": "[" * 30_000,
    "long": json.dumps({"enum": [f"value {i}" for i in range(10_000)]}),
    "enum": json.dumps({"enum": [str(i) for i in range(3500)]}),
    "properties": json.dumps({"type": "object", "properties": {f"p{i}": {} for i in range(2500)}}),
    "choices": json.dumps({"anyOf": [{"required": [f"p{i}"]} for i in range(1200)]}),
    "names": json.dumps({"type": "object", "patternProperties": {f"^{chr(97 + i)}.*x.{{20}}$": {} for i in range(20)}}),
    "product": json.dumps({"allOf": [{"anyOf": [{"properties": {f"p{i}{j}": {}}} for i in range(9)]}
                                     for j in range(90)]}),
    "patterns": json.dumps({"allOf": [{"type": "string", "pattern": f".*{chr(97 + i)}.{{{20 + i}}}"}
                                      for i in range(20)]}),
    "stars": json.dumps({"type": "string", "pattern": "^((a*)*b?)*(a|b|ab)*{1,999}$"}),
    "states": json.dumps({"type": "string", "pattern": "^(.*a.{30}|.*b.{30}|.*c.{40})*$"}),
    "counts": json.dumps({"type": "string", "pattern": "^((a{1,100}){1,100}){1,100}$"}),
    "lengths": json.dumps({"type": "string", "minLength": 10**6, "maxLength": 10**7}),
    "items": json.dumps({"type": "array", "minItems": 10**6, "items": {"type": "array", "maxItems": 10**6}}),
    "multiple": json.dumps({"type": "integer", "multipleOf": 9_999_991}),
    "multiples": json.dumps({"allOf": [{"type": "integer", "multipleOf": n} for n in (9973, 9967)]}),
    "fraction": '{"type": "number", "multipleOf": 0.0000123457}',
    "circle": '{"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}',
    "doubling": json.dumps({"$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(40)} | {
        "d40": {"type": "string"}}, "$ref": "#/$defs/d0"}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_costs_little(name: str) -> None:
    """It is refused, or followed, or given up by name; and none of it takes long."""
    def seconds() -> float:  # of this process, the library's threads and the probe
        used = os.times()
        return used.user + used.system + used.children_user + used.children_system

    begun = seconds()
    try:
        state = Guide(PLAIN, HOSTILE[name]).state()
        prepared = seconds() - begun
        told(PLAIN, state, 1, 60)
    except FathomError as error:
        prepared = seconds() - begun
        assert str(error).startswith("json_schema: ")
        assert len(str(error)) < 500
    # the probe's two seconds and as much again here; then 60 steps of 15 ms and of drawing
    assert prepared < 10
    assert seconds() - begun < 14


def test_multiples_that_are_followed() -> None:
    for schema in ({"type": "integer", "multipleOf": 7}, {"type": "number", "multipleOf": 0.25}):
        guide = Guide(PLAIN, json.dumps({"type": "array", "items": schema, "maxItems": 3}))
        text, whole = told(PLAIN, guide.state(), 3, 300)
        assert whole
        assert all(number % schema["multipleOf"] == 0 for number in json.loads(text))


def test_whitespace_has_an_end() -> None:
    state = Guide(PLAIN, '{"type": "object"}').state()
    state.accept(PLAIN.encode("{")[0])
    (space,) = PLAIN.encode(" ")
    for _ in range(40):
        state.accept(space)
    assert space not in bits(state.allowed())


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    module._library.cache_clear()
    try:
        with pytest.raises(UsageError, match=r"pip install 'fathom-reasoning\[guided\]'"):
            Guide(PLAIN, "{}")
    finally:
        module._library.cache_clear()


@pytest.mark.parametrize("version", ["v2", "v3_think"])
def test_real_vocabularies(version: str, tmp_path: Path) -> None:
    made = Tokenizer.load(directory(version, tmp_path))
    words = module._words(made)
    for token in range(0, made.vocab_size, 7):  # the library reads the bytes that we decode
        assert made.decode([token]) == ("" if words.is_special_token(token) else words.decode_str([token])), token
    for name in ("person", "either", "date"):
        schema, satisfies = SCHEMAS[name]
        ended = 0
        for seed in range(2):
            text, whole = told(made, Guide.of(made, json.dumps(schema)).state(), seed, 250, 129_280)
            ended += whole
            if whole:
                assert satisfies(json.loads(text)), text
        assert ended

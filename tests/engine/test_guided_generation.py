"""JSON schemas in the engine: whatever a random model wants to say, what it says satisfies them."""

from __future__ import annotations

import json

import pytest
import torch
from made_models import MLA_MOE, sharp, tokenizer

from fathom.core.chat import Sampling
from fathom.core.errors import FathomError
from fathom.engine.engine import Engine
from fathom.engine.guide import GuideState
from fathom.engine.settings import EngineSettings

pytest.importorskip("llguidance", reason="the extra guided is not installed")

TOKENIZER = tokenizer()
CONFIG = MLA_MOE.model_copy(update={"vocab_size": TOKENIZER.vocab_size})
SCHEMA = json.dumps({"type": "object", "properties": {"answer": {"type": "integer"}, "sure": {"enum": ["yes", "no"]}},
                     "required": ["answer", "sure"], "additionalProperties": False})
SAMPLING = Sampling(max_tokens=120, temperature=1.2, seed=2, json_schema=SCHEMA)
PROMPT = TOKENIZER.encode("How many?")


def made(**settings: bool) -> Engine:
    return Engine(sharp(CONFIG, dtype=torch.float32, gain=1.0), TOKENIZER, EngineSettings(**settings))


@pytest.mark.parametrize("settings", [{}, {"speculate": True}, {"deterministic": True}], ids=str)
def test_completions_satisfy_their_schema(settings: dict[str, bool]) -> None:
    (group,) = made(**settings).complete([PROMPT], SAMPLING, n=12)
    finished = [c for c in group if c.finish == "stop"]
    assert len(finished) >= 8
    for completion in finished:
        value = json.loads(completion.text)
        assert set(value) == {"answer", "sure"} and isinstance(value["answer"], int) and value["sure"] in ("yes", "no")
    assert len({c.text for c in finished}) > 3


def test_a_thought_is_free_and_what_follows_it_is_held_to_the_schema() -> None:
    begin, end = (TOKENIZER.backend.token_to_id(mark) for mark in ("<think>", "</think>"))
    sampling = SAMPLING.model_copy(update={"logit_bias": {end: 2.0}, "max_tokens": 200})
    (group,) = made().complete([[*PROMPT, begin]], sampling, n=8)
    finished = [c for c in group if c.finish == "stop"]
    assert len(finished) >= 3
    for completion in finished:
        _, closed, answer = completion.text.partition("</think>")
        assert closed and set(json.loads(answer)) == {"answer", "sure"}
    assert any(c.text.index("</think>") > 3 for c in finished)
    (closed,) = made().complete([[*PROMPT, begin, end]], SAMPLING)[0]
    assert closed.text.lstrip().startswith("{")


def test_a_guide_that_fails_ends_its_own_completion_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = made()
    guided, *_ = engine.prepare(PROMPT, SAMPLING)
    (free,) = engine.prepare(PROMPT, Sampling(max_tokens=30, ignore_stop=True))

    def too_large(_: GuideState) -> torch.Tensor:
        raise FathomError("json_schema: too large; simplify it")

    monkeypatch.setattr(GuideState, "allowed", too_large)
    engine.submit([guided])
    engine.submit([free])
    while engine.busy:
        engine.step()
    assert str(guided.error) == "json_schema: too large; simplify it" and guided.finish is None
    assert free.finish == "length" and free.drawn == 30
    assert engine.blocks.available == engine.blocks.total
    with pytest.raises(FathomError, match="too large"):
        engine.complete([PROMPT], SAMPLING)
    assert not engine.busy

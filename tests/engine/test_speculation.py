"""Guesses by multi-token prediction: the completions are those of a run without them, and some guesses are right."""

from __future__ import annotations

import copy
import functools
from collections import Counter

import pytest
import torch
from made_models import GQA_MOE, MLA_MOE, TOLERANCE, assert_within, sharp, texts, tokenizer

from fathom.core.chat import Sampling
from fathom.engine.engine import Engine
from fathom.engine.settings import EngineSettings
from fathom.model.layout import Layout
from fathom.model.transformer import Transformer

TOKENIZER = tokenizer()
CONFIGS = {name: config.model_copy(update={"vocab_size": TOKENIZER.vocab_size})
           for name, config in {"mla": MLA_MOE, "gqa": GQA_MOE}.items()}
PROMPTS = texts(CONFIGS["mla"], 5, 9, 1, 16, 32, 40)


def made(model: Transformer, speculate: bool, **settings: float) -> Engine:
    return Engine(model, TOKENIZER, EngineSettings(speculate=speculate, **settings))


def learnt(name: str = "mla") -> Transformer:
    """A copy of a model that has been taught once."""
    return copy.deepcopy(_learnt(name))


@functools.cache
def _learnt(name: str) -> Transformer:
    """A model whose multi-token prediction has learnt what the model itself says, on its own completions."""
    model = sharp(CONFIGS[name], dtype=torch.float32, gain=1.0)
    said = [(*p, *c.tokens) for p, (c,) in zip(PROMPTS, made(model, False).complete(
        PROMPTS, Sampling(max_tokens=60, temperature=0, ignore_stop=True)), strict=True)]
    tokens = torch.tensor([t for row in said for t in row])
    layout = Layout.packed([len(row) for row in said])
    optimiser = torch.optim.Adam(model.mtp.parameters(), 0.01)
    with torch.no_grad():
        hidden = model(tokens, layout)
    for _ in range(60):
        logits = model.logits(model.predict_next(hidden, tokens.roll(-1), layout))
        torch.nn.functional.cross_entropy(logits[:-2], tokens[2:]).backward()
        optimiser.step()
        optimiser.zero_grad()
    return model


@pytest.mark.equivalence
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_completions_are_those_without_guesses(name: str, dtype: torch.dtype) -> None:
    model = learnt(name).to(dtype)
    for sampling in (Sampling(max_tokens=40, temperature=0),
                     Sampling(max_tokens=40, seed=3, top_p=0.95, presence_penalty=0.3, logprobs=2)):
        expected = made(model, False).complete(PROMPTS, sampling, n=3)
        engine = made(model, True)
        found = engine.complete(PROMPTS, sampling, n=3)
        assert [[c.tokens for c in group] for group in found] == [[c.tokens for c in group] for group in expected]
        assert_within(*(torch.tensor([p for group in groups for c in group for p in c.logprobs], dtype=torch.float64)
                        for groups in (found, expected)), TOLERANCE[dtype])
        assert engine.drafter is not None and 0 < engine.drafter.accepted < engine.drafter.checked
        assert engine.blocks.available == engine.blocks.total


@pytest.mark.equivalence
def test_guesses_that_were_learnt_save_steps() -> None:
    model = learnt()
    sampling = Sampling(max_tokens=60, temperature=0, ignore_stop=True)
    steps = Counter[bool]()
    for speculate in (False, True):
        engine = made(model, speculate)
        step = engine.step

        def counted(step=step, speculate=speculate):
            steps[speculate] += 1
            return step()

        engine.step = counted
        engine.complete(PROMPTS[:1], sampling)
    assert steps[True] < 0.75 * steps[False]


@pytest.mark.equivalence
def test_little_memory_and_prompts_in_pieces_change_nothing() -> None:
    model = learnt()
    sampling = Sampling(max_tokens=40, temperature=0.7, seed=1)
    expected = made(model, False).complete(PROMPTS, sampling, n=2)
    for settings in ({"cache_gb": 5e-5, "block": 4}, {"prefill_tokens": 7}, {"batch": 2}):
        engine = made(model, True, **settings)
        found = engine.complete(PROMPTS, sampling, n=2)
        assert [[c.tokens for c in group] for group in found] == [[c.tokens for c in group] for group in expected]
        assert ("cache_gb" in settings) == (engine.scheduler.preemptions > 0)


def test_a_guess_of_multi_token_prediction_is_its_own_forward_pass() -> None:
    """The guess after each token is the argmax of the module on the whole sequence, for greedy completions."""
    model = learnt()
    engine = made(model, True)
    (request,) = engine.prepare(PROMPTS[1], Sampling(max_tokens=30, temperature=0, ignore_stop=True))
    engine.submit([request])
    guesses: dict[int, int] = {}
    while engine.busy:
        engine.step()
        if request.drafts:
            guesses[len(request.tokens)] = request.drafts[0]
    tokens = torch.tensor(request.tokens)
    with torch.no_grad():
        layout = Layout.packed([len(tokens)])
        logits = model.logits(model.predict_next(model(tokens, layout), tokens.roll(-1), layout))
    assert len(guesses) > 10
    assert guesses == {at: int(logits[at - 2].argmax()) for at in guesses}


@pytest.mark.property
def test_the_distribution_is_that_without_guesses() -> None:
    """Three tokens drawn 4,000 times: the counts are not like those without guesses, they are those."""
    config = MLA_MOE.model_copy(update={"vocab_size": TOKENIZER.vocab_size})
    model = sharp(config, dtype=torch.float64)
    sampling = Sampling(max_tokens=3, seed=8, temperature=0.5)
    groups = [made(model, speculate, batch=500, cache_gb=0.1).complete([[3, 1, 4, 1]], sampling, n=4000)[0]
              for speculate in (False, True)]
    assert Counter(c.tokens for c in groups[0]) == Counter(c.tokens for c in groups[1])
    assert len(Counter(c.tokens for c in groups[0])) > 100

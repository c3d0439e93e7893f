"""Deterministic mode: the same bits whatever else is in the batch, in the cache, or was computed before."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from made_models import GQA_TIED, MLA_LITE, MLA_MOE, QWEN3, V2, assert_within, sharp, texts, tokenizer

from fathom.core.chat import Completion, Sampling
from fathom.core.errors import UsageError
from fathom.engine.engine import Engine
from fathom.engine.settings import EngineSettings
from fathom.model.config import ModelConfig
from fathom.model.cost import cost

TOKENIZER = tokenizer()
_MADE = {"mla": MLA_MOE, "mla-lite": MLA_LITE, "gqa": GQA_TIED, "V2": V2, "Qwen3": QWEN3}
CONFIGS = {name: config.model_copy(update={"vocab_size": TOKENIZER.vocab_size, "max_position_embeddings": 256})
           for name, config in _MADE.items()}
SAMPLING = Sampling(max_tokens=12, seed=5, top_p=0.9, logprobs=3, presence_penalty=0.5)


def made(config: ModelConfig, **settings: float) -> Engine:
    return Engine(sharp(config, dtype=torch.float32), TOKENIZER, EngineSettings(deterministic=True, **settings))


def bits(group: Sequence[Completion]) -> list[tuple[object, ...]]:
    return [(c.tokens, c.logprobs, c.top) for c in group]


def prompts(config: ModelConfig) -> list[list[int]]:
    """Some begin alike, some have whole blocks."""
    stem, *others = texts(config, 40, 70, 1, 16, 32, 5)
    return [stem, [*stem[:32], 7, 8, 9], stem[:33], stem[:16], *others]


@pytest.mark.equivalence
@pytest.mark.parametrize("name", [name if name in ("mla", "gqa") else pytest.param(name, marks=pytest.mark.long)
                                  for name in CONFIGS])
def test_every_batch_gives_the_same_bits(name: str) -> None:
    """Batches of 1 to 64, with little memory and much, prompts in pieces, blocks of several sizes."""
    asked = prompts(CONFIGS[name])
    alone = [bits(made(CONFIGS[name]).complete([p], SAMPLING, n=8)[0]) for p in asked]
    assert len({c for group in alone for c in group}) == 8 * len(asked)
    tried = [{"batch": 64}, {"batch": 5}, {"batch": 1}, {"batch": 33, "prefill_tokens": 19}, {"block": 3},
             {"batch": 16, "cache_gb": 12.5 * 16 * 4 * cost(CONFIGS[name]).cache_elements / 1e9}]  # 11 blocks
    for settings in tried:
        engine = made(CONFIGS[name], **settings)
        together = engine.complete(asked, SAMPLING, n=8)
        assert [bits(group) for group in together] == alone, settings
    assert engine.scheduler.preemptions > 0


@pytest.mark.equivalence
def test_what_the_cache_holds_changes_no_bit() -> None:
    """Requests one by one into a cache that knows their beginnings, from another request or from a preemption."""
    config = CONFIGS["mla"]
    asked = prompts(config)
    expected = [bits(made(config).complete([p], SAMPLING)[0]) for p in asked]
    engine = made(config, cache_gb=0.01)
    found = {}
    for round_, i in itertools.product(range(2), range(len(asked))):
        (request,) = engine.prepare(asked[i], SAMPLING)
        engine.submit([request])
        for step in itertools.count():
            if step == 5 and round_:
                engine.scheduler.preempt_all()
            if engine.step() and request.finish:
                break
        found[round_, i] = bits([engine.completion(request)])
        assert round_ == 0 or request.cached == (len(asked[i]) - 1) // 16 * 16
    assert [found[0, i] for i in range(len(asked))] == [found[1, i] for i in range(len(asked))] == expected


@pytest.mark.equivalence
@pytest.mark.parametrize("name", CONFIGS)
def test_log_probabilities_are_those_of_a_full_forward_pass(name: str) -> None:
    engine = made(CONFIGS[name])
    asked = prompts(CONFIGS[name])
    plain = Sampling(max_tokens=24, seed=5)
    completions = [group[0] for group in engine.complete(asked, plain)]
    scored = engine.score([[*p, *c.tokens] for p, c in zip(asked, completions, strict=True)])
    for prompt, completion, score in zip(asked, completions, scored, strict=True):
        found, expected = torch.tensor(completion.logprobs), torch.tensor(score.logprobs[len(prompt):])
        assert_within(found.double(), expected.double(), 1e-4)
    usual = Engine(sharp(CONFIGS[name], dtype=torch.float32), TOKENIZER).complete(asked, plain)
    assert [c.tokens for (c,) in usual] == [c.tokens for c in completions]


@pytest.mark.equivalence
def test_guesses_change_no_bit() -> None:
    config = CONFIGS["mla"]
    asked = prompts(config)
    expected = [bits(group) for group in made(config).complete(asked, SAMPLING, n=3)]
    engine = made(config, speculate=True)
    assert [bits(group) for group in engine.complete(asked, SAMPLING, n=3)] == expected
    assert engine.drafter is not None and engine.drafter.checked > 100


def test_what_cannot_be_deterministic_says_so() -> None:
    with pytest.raises(UsageError, match=r"engine\.deterministic=true: for FP32 and BF16 models on the CPU"):
        Engine(sharp(MLA_LITE), TOKENIZER, EngineSettings(deterministic=True))
    with pytest.raises(UsageError, match="what is compiled depends on the batch"):
        Engine(sharp(MLA_LITE, dtype=torch.float32), TOKENIZER, EngineSettings(deterministic=True, compile=True))
    with pytest.raises(UsageError, match="no module for multi-token prediction"):
        Engine(sharp(MLA_LITE), TOKENIZER, EngineSettings(speculate=True))

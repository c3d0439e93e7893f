"""The engine on a model with adapters samples what it samples on the merged one, before and after an update."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from made_adapters import adapted, grow
from made_models import DTYPES, GQA_TIED, MLA_LITE, MLA_MOE, TOLERANCE, assert_within, texts, tokenizer

from fathom.core.chat import Completion, Sampling
from fathom.engine.engine import Engine
from fathom.model import lora
from fathom.model.transformer import Transformer

TOKENIZER = tokenizer()
CONFIGS = {name: config.model_copy(update={"vocab_size": TOKENIZER.vocab_size})
           for name, config in {"mla": MLA_MOE, "mla-lite": MLA_LITE, "gqa": GQA_TIED}.items()}
SAMPLING = Sampling(max_tokens=10, temperature=1.0, seed=5)


def merged(model: Transformer) -> Transformer:
    model = deepcopy(model)
    lora.merge(model)
    return model


def sampled(model: Transformer, rows: int) -> list[Completion]:
    prompts = texts(CONFIGS["mla"], *(5, 9, 1, 13)[:rows])
    return [c for group in Engine(model, TOKENIZER).complete(prompts, SAMPLING, 2 if rows > 1 else 1) for c in group]


@pytest.mark.equivalence
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_it_samples_as_the_merged_model(name: str, dtype: torch.dtype, rows: int) -> None:
    model = adapted(CONFIGS[name], dtype=dtype)
    engine = Engine(model, TOKENIZER)
    prompts = texts(CONFIGS["mla"], *(5, 9, 1, 13)[:rows])
    for seed in (3, 4):  # the second time other adapters: nothing of the first may be left
        grow(model, seed)
        found = [c for group in engine.complete(prompts, SAMPLING, 2 if rows > 1 else 1) for c in group]
        expected = sampled(merged(model), rows)
        assert [c.tokens for c in found] == [c.tokens for c in expected]
        for ours, theirs in zip(found, expected, strict=True):
            assert_within(torch.tensor(ours.logprobs), torch.tensor(theirs.logprobs), 10 * TOLERANCE[dtype])
    with lora.off(model):
        assert [c.tokens for c in sampled(model, rows)] != [c.tokens for c in found]

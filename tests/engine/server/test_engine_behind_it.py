"""The routes on a real engine with a small model of random weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fake import settings, tokenizer
from fastapi.testclient import TestClient
from made_models import MLA_MOE, sharp

from fathom.core.chat import Sampling
from fathom.engine.engine import Engine
from fathom.engine.server.app import make_app
from fathom.engine.service import Service
from fathom.engine.settings import EngineSettings

TOKENIZER = tokenizer("r1")
CONFIG = MLA_MOE.model_copy(update={"vocab_size": TOKENIZER.vocab_size, "max_position_embeddings": 256})
PLAIN, CHAT = "/v1/completions", "/v1/chat/completions"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(sharp(CONFIG, dtype=torch.float32), TOKENIZER, EngineSettings(cache_gb=0.01, deterministic=True))


@pytest.fixture
def client(engine: Engine) -> Iterator[TestClient]:
    service = Service(engine)
    with TestClient(make_app(service, settings())) as made:
        yield made
    service.close()


def test_completions_are_the_engines(client: TestClient) -> None:
    prompt = TOKENIZER.encode("hello world")
    asked = {"prompt": prompt, "max_tokens": 12, "seed": 7, "n": 2, "logprobs": 2, "return_token_ids": True}
    body = client.post(PLAIN, json=asked).json()
    again = Engine(sharp(CONFIG, dtype=torch.float32), TOKENIZER, EngineSettings(cache_gb=0.01, deterministic=True))
    expected = again.complete([prompt], Sampling(max_tokens=12, seed=7, logprobs=2), 2)[0]
    for choice, completion in zip(body["choices"], expected, strict=True):
        assert (choice["text"], choice["finish_reason"]) == (completion.text, completion.finish)
        assert choice["token_ids"] == list(completion.tokens)
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(completion.logprobs, abs=1e-5)


def test_a_text_is_as_likely_as_the_model_says(client: TestClient) -> None:
    """What an evaluation harness asks for, against one forward pass."""
    prompt = TOKENIZER.encode("what is 2+3? The answer is 42.")
    asked = {"prompt": [prompt], "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    told = client.post(PLAIN, json=asked).json()["choices"][0]["logprobs"]
    model = sharp(CONFIG, dtype=torch.float32)
    from fathom.model.layout import Layout

    with torch.inference_mode():
        logits = model.logits(model(torch.tensor(prompt), Layout.packed([len(prompt)])))
    logp = torch.log_softmax(logits.float(), -1)
    exact = logp[torch.arange(len(prompt) - 1), torch.tensor(prompt[1:])]
    assert told["token_logprobs"][0] is None and len(told["tokens"]) == len(prompt) + 1
    assert told["token_logprobs"][1: len(prompt)] == pytest.approx(exact.tolist(), abs=1e-4)
    greedy = (logp[:-1].argmax(-1) == torch.tensor(prompt[1:])).tolist()
    assert greedy == [value == max(top.values()) for value, top in zip(
        told["token_logprobs"][1: len(prompt)], told["top_logprobs"][1: len(prompt)], strict=True)]


@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_and_what_stays_behind(client: TestClient, engine: Engine, stream: bool) -> None:
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "n": 3, "max_tokens": 30, "seed": 3,
                             "ignore_eos": True, "stream": stream}
    if stream:
        asked["stream_options"] = {"include_usage": True}
    answer = client.post(CHAT, json=asked)
    assert answer.status_code == 200, answer.text
    if stream:
        assert answer.text.endswith("data: [DONE]\n\n") and '"completion_tokens":90' in answer.text.replace(" ", "")
    else:
        assert answer.json()["usage"]["completion_tokens"] == 90
        assert all(choice["message"]["content"] == "" and choice["message"]["reasoning"]  # never out of <think>
                   for choice in answer.json()["choices"])
    assert engine.blocks.available == engine.blocks.total


def test_what_is_refused(client: TestClient) -> None:
    too_long = client.post(PLAIN, json={"prompt": [5] * 200, "max_tokens": 100})
    assert too_long.status_code == 400 and too_long.json()["error"]["code"] == "context_length_exceeded"
    assert client.get("/health").json()["version"] == 0
    assert b"fathom_engine_blocks_total" in client.get("/metrics").content

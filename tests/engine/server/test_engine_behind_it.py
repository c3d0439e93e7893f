"""The routes and the official client on a real engine with a small model of random weights."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import torch
from fake import Running, settings, tokenizer, wait_for
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


@pytest.fixture(scope="module")
def url(engine: Engine) -> Iterator[str]:
    """A port with the engine behind it."""
    service = Service(engine)
    server = Running(service, settings())  # type: ignore[arg-type]
    yield server.url + "/v1"
    server.stop()
    service.close()


@pytest.fixture
def official(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="-", max_retries=0) as made:
        yield made


HI: list[Any] = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}


def test_plain_completions_for_the_official_client(official: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "fake", "prompt": "hello world", "max_tokens": 9, "seed": 5}
    whole = official.completions.create(**asked)
    text = whole.choices[0].text
    assert official.completions.create(**asked).choices[0].text == text  # a seed is a text
    assert official.completions.create(**asked | {"seed": 6}).choices[0].text != text
    assert "".join(c.choices[0].text for c in official.completions.create(**asked, stream=True) if c.choices) == text
    *_, last = official.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    assert whole.usage is not None and last.usage is not None and not last.choices
    assert last.usage.completion_tokens == whole.usage.completion_tokens

    several = official.completions.create(**asked | {"n": 3, "prompt": ["hello world", "what is"]})
    assert [choice.index for choice in several.choices] == list(range(6)) and several.choices[0].text == text
    assert len({choice.text for choice in several.choices}) == 6
    ids = TOKENIZER.encode("hello world")
    by_ids = official.completions.create(**asked | {"prompt": [ids, [TOKENIZER.bos_id, *ids]]})
    bare = official.completions.create(**asked, extra_body={"add_special_tokens": False})
    begun = official.completions.create(**asked, extra_body={"add_special_tokens": True})
    assert [choice.text for choice in by_ids.choices] == [bare.choices[0].text, begun.choices[0].text]


def test_where_a_completion_stops(official: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "fake", "prompt": "hello world", "max_tokens": 30, "temperature": 0,
                             "extra_body": {"ignore_eos": True}}
    free = official.completions.create(**asked).choices[0]
    assert free.finish_reason == "length"
    stop = free.text[4:6]
    for stream in (False, True):
        cut = official.completions.create(**asked, stop=[stop, "never"], stream=stream)
        parts = [choice for chunk in cut for choice in chunk.choices] if stream else cut.choices
        assert "".join(part.text for part in parts) == free.text[: free.text.index(stop)]
        assert parts[-1].finish_reason == "stop"
    biased = official.completions.create(**asked | {"max_tokens": 3}, logit_bias={"5": 100}, logprobs=0)
    assert biased.choices[0].text == TOKENIZER.decode([5, 5, 5])
    assert official.completions.create(**asked | {"max_tokens": 0}, echo=True).choices[0].text == "hello world"


def test_log_probabilities_for_the_official_client(official: openai.OpenAI) -> None:
    echoed = official.completions.create(model="fake", prompt="hello world", max_tokens=5, echo=True, logprobs=3,
                                         seed=1)
    told = echoed.choices[0].logprobs
    assert told is not None and echoed.choices[0].text.startswith("hello world")
    assert told.token_logprobs is not None and told.token_logprobs[0] is None and told.tokens is not None
    assert told.top_logprobs is not None and all(3 <= len(top) <= 4 for top in told.top_logprobs[1:])
    assert all(top[name] == value for name, value, top in zip(
        told.tokens[1:], told.token_logprobs[1:], told.top_logprobs[1:], strict=True))
    # what was written is as likely as when it is read: the same text with its completion as a prompt
    ids = official.completions.create(model="fake", prompt="hello world", max_tokens=5, seed=1, extra_body={
        "return_token_ids": True}).choices[0]
    extra: Any = ids.model_extra
    again = official.completions.create(model="fake", prompt=[*extra["prompt_token_ids"], *extra["token_ids"]],
                                        max_tokens=0, echo=True, logprobs=0).choices[0].logprobs
    assert again is not None and again.token_logprobs is not None
    assert again.token_logprobs[1:] == pytest.approx(told.token_logprobs[1:], abs=1e-4)

    asked: dict[str, Any] = {"model": "fake", "messages": HI, "max_tokens": 6, "logprobs": True, "top_logprobs": 4,
                             "temperature": 0}
    chat = official.chat.completions.create(**asked)
    assert chat.choices[0].logprobs is not None and chat.choices[0].logprobs.content is not None
    assert all(one.logprob == one.top_logprobs[0].logprob and len(one.top_logprobs) == 4
               for one in chat.choices[0].logprobs.content)  # greedy: the likeliest is the one
    streamed = [one for chunk in official.chat.completions.create(**asked, stream=True) for choice in chunk.choices
                if choice.logprobs and choice.logprobs.content for one in choice.logprobs.content]
    assert streamed == chat.choices[0].logprobs.content


def test_chats_for_the_official_client(official: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "fake", "messages": HI, "max_tokens": 20, "seed": 3,
                             "extra_body": {"separate_reasoning": False}}
    whole = official.chat.completions.create(**asked, n=2)
    texts = ["", ""]
    for chunk in official.chat.completions.create(**asked, n=2, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices] and texts[0] != texts[1]
    turns = [*HI, {"role": "assistant", "content": "hello"}, {"role": "user", "content": [
        {"type": "text", "text": "what is 2+3?"}]}]
    later = official.chat.completions.create(**asked | {"messages": turns})
    assert later.usage is not None and whole.usage is not None
    assert later.usage.prompt_tokens > whole.usage.prompt_tokens
    limited = official.chat.completions.create(model="fake", messages=HI, max_completion_tokens=4, seed=1,
                                               extra_body={"ignore_eos": True})
    assert limited.usage is not None and limited.usage.completion_tokens == 4
    assert limited.choices[0].finish_reason == "length"
    with official.chat.completions.stream(model="fake", messages=HI, max_tokens=5, seed=1, extra_body={
            "ignore_eos": True}) as helper, pytest.raises(openai.LengthFinishReasonError) as cut:
        helper.get_final_completion()
    assert cut.value.completion.choices[0].message.content is not None


def test_json_for_the_official_client(official: openai.OpenAI) -> None:
    pytest.importorskip("llguidance", reason="JSON is held by llguidance: pip install 'fathom-reasoning[guided]'")
    held: Any = {"type": "json_schema", "json_schema": {"name": "one", "schema": SCHEMA, "strict": True}}
    plain = official.completions.create(model="fake", prompt="hello", max_tokens=60, seed=2, extra_body={
        "response_format": held})
    assert set(json.loads(plain.choices[0].text)) == {"a"}
    # a thought that the template opened is free; with this one closed, the answer is JSON from the start
    turns = [*HI, {"role": "assistant", "content": "<think>\nyes\n</think>\n\n"}]
    chat = official.chat.completions.create(model="fake", messages=turns, max_tokens=60, seed=2, response_format=held,
                                            extra_body={"continue_final_message": True})
    assert set(json.loads(chat.choices[0].message.content or "")) == {"a"}
    with pytest.raises(openai.BadRequestError):
        official.completions.create(model="fake", prompt="hello", extra_body={"response_format": {
            "type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no such type"}}}})
    assert official.completions.create(model="fake", prompt="hello", max_tokens=1).choices  # it lives on


def test_errors_for_the_official_client(official: openai.OpenAI) -> None:
    for asked, param in (
            ({"prompt": "x", "max_tokens": 1000}, "max_tokens"), ({"prompt": [TOKENIZER.vocab_size]}, "prompt"),
            ({"prompt": "x", "temperature": -1}, "temperature"), ({"prompt": "x", "logprobs": 21}, "logprobs"),
            ({"prompt": "x", "best_of": 2}, "best_of"), ({"prompt": "x", "suffix": "y"}, "suffix"),
            ({"prompt": "x", "logit_bias": {"99999": 1}}, "logit_bias"),
            ({"prompt": "x", "extra_body": {"no_such": 1}}, "no_such")):
        with pytest.raises(openai.BadRequestError) as bad:
            official.completions.create(model="fake", **asked)  # type: ignore[call-overload]
        assert bad.value.param == param, asked
    with pytest.raises(openai.NotFoundError):
        official.completions.create(model="other", prompt="x")
    with pytest.raises(openai.BadRequestError):
        official.chat.completions.create(model="fake", messages=[])


def test_many_at_once_for_the_official_client(url: str, engine: Engine) -> None:
    """What a seed writes is the same alone, beside others, and in a stream; who goes leaves nothing behind."""
    async def talk() -> list[tuple[str, str]]:
        async with openai.AsyncOpenAI(base_url=url, api_key="-", max_retries=0) as c:
            async def one(seed: int) -> tuple[str, str]:
                asked: dict[str, Any] = {"model": "fake", "prompt": "what is", "max_tokens": 12, "seed": seed}
                stream = await c.completions.create(**asked, stream=True)
                text = "".join([chunk.choices[0].text async for chunk in stream])
                return text, (await c.completions.create(**asked)).choices[0].text

            async def leave() -> tuple[str, str]:
                stream = await c.completions.create(model="fake", prompt="hello", max_tokens=200, stream=True,
                                                    extra_body={"ignore_eos": True})
                await anext(aiter(stream))
                await stream.close()
                return "", ""

            return await asyncio.gather(*(one(seed) for seed in range(8)), *(leave() for _ in range(4)))

    told = asyncio.run(talk())
    assert all(streamed == whole for streamed, whole in told) and len({whole for _, whole in told[:8]}) == 8
    wait_for(lambda: engine.blocks.available == engine.blocks.total)

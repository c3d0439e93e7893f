"""The official client against a real server: what it parses is what was sent."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from fake import TEXT, FakeService, Running, running, tokenizer
from openai.types.chat import ChatCompletionMessageParam

CHAT: list[ChatCompletionMessageParam] = [{"role": "user", "content": "what is 2+3?"}]
THOUGHT = "<think>\nfive?\n</think>\n\n5"


def client(server: Running, key: str = "secret") -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key=key, max_retries=0)


def test_sync() -> None:
    with running(api_key="secret") as server, client(server) as c:
        answer = c.chat.completions.create(model="fake", messages=CHAT, n=2, logprobs=True, top_logprobs=2, seed=1)
        assert [choice.message.content for choice in answer.choices] == [TEXT, TEXT]
        assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
        assert answer.usage.prompt_tokens_details.cached_tokens == answer.usage.prompt_tokens // 2
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None and logprobs.content is not None
        assert b"".join(bytes(one.bytes or ()) for one in logprobs.content).decode() == TEXT + "<|im_end|>"
        assert answer._request_id is not None and answer._request_id in answer.id
        plain = c.completions.create(model="fake", prompt=["hello", "world"], max_tokens=4, echo=True, logprobs=1)
        assert plain.choices[1].text.startswith("world") and plain.choices[1].logprobs is not None
        assert [model.id for model in c.models.list()] == ["fake"] and c.models.retrieve("fake").id == "fake"


def test_streams() -> None:
    with running(FakeService(script=THOUGHT)) as server, client(server) as c:
        text, reasoning, usage, finish = "", "", None, []
        for chunk in c.chat.completions.create(
                model="fake", messages=CHAT, stream=True, stream_options={"include_usage": True}):
            for choice in chunk.choices:
                text += choice.delta.content or ""
                reasoning += getattr(choice.delta, "reasoning_content", None) or ""
                finish += [choice.finish_reason] if choice.finish_reason else []
            usage = chunk.usage or usage
        assert (text, reasoning, finish) == ("5", "five?", ["stop"])
        assert usage is not None and usage.completion_tokens_details is not None
        assert usage.completion_tokens_details.reasoning_tokens == len(tokenizer().encode("<think>\nfive?\n</think>"))
        plain = c.completions.create(model="fake", prompt="hello", max_tokens=5, stream=True)
        assert "".join(chunk.choices[0].text for chunk in plain) == tokenizer().decode(
            tokenizer().encode(THOUGHT)[:5])
        with c.chat.completions.stream(model="fake", messages=CHAT) as helper:
            assert helper.get_final_completion().choices[0].message.content == "5"


def test_async() -> None:
    async def talk(url: str) -> list[Any]:
        async with openai.AsyncOpenAI(base_url=url + "/v1", api_key="-", max_retries=0) as c:
            async def one() -> str:
                text = ""
                async for chunk in await c.chat.completions.create(model="fake", messages=CHAT, stream=True):
                    text += chunk.choices[0].delta.content or ""
                return text

            return await asyncio.gather(*(one() for _ in range(20)), c.chat.completions.create(
                model="fake", messages=CHAT, response_format={"type": "json_object"}))

    with running(FakeService(delay=0.001)) as server:
        *texts, whole = asyncio.run(talk(server.url))
        assert texts == [TEXT] * 20 and whole.choices[0].message.content == TEXT


def test_a_stream_that_is_closed_early_is_given_up() -> None:
    from fake import wait_for

    service = FakeService(delay=0.01)
    with running(service) as server, client(server) as c:
        stream = c.chat.completions.create(model="fake", messages=CHAT, stream=True, extra_body={"ignore_eos": True},
                                           max_tokens=300)
        next(iter(stream))
        stream.close()
        wait_for(lambda: service.streams[0].cancelled_at)


def test_errors_are_the_clients_own() -> None:
    with running(FakeService(), api_key="secret") as server:
        with client(server, "wrong") as c, pytest.raises(openai.AuthenticationError):
            c.models.list()
        with client(server) as c:
            with pytest.raises(openai.NotFoundError):
                c.chat.completions.create(model="other", messages=CHAT)
            with pytest.raises(openai.BadRequestError) as bad:
                c.chat.completions.create(model="fake", messages=CHAT, temperature=3)
            assert bad.value.param == "temperature" and bad.value.code == "invalid_value"
            with pytest.raises(openai.BadRequestError, match="not supported"):
                c.chat.completions.create(model="fake", messages=CHAT, tools=[{
                    "type": "function", "function": {"name": "f", "parameters": {}}}])
    with running(FakeService(busy=True)) as server, client(server) as c, pytest.raises(openai.RateLimitError):
        c.chat.completions.create(model="fake", messages=CHAT)
    with running(FakeService(fail_at=3)) as server, client(server) as c:
        with pytest.raises(openai.APIError, match="matrix"):
            list(c.chat.completions.create(model="fake", messages=CHAT, stream=True))
        with pytest.raises(openai.InternalServerError) as dead:
            c.chat.completions.create(model="fake", messages=CHAT)
        assert dead.value.status_code == 500

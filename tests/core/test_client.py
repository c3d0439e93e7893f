"""The client: what it asks, what comes back, and n completions where an endpoint gives one at a time."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from endpoint import Asked, FakeEndpoint, Status, prompts, reply, settings, text, texts

from fathom.core.chat import Completion, Image, Message, Sampling, Text, TextGenerator
from fathom.core.client import Client, ClientSettings, EndpointFailed, Failed, ItemsFailed
from fathom.core.errors import Stopped, UsageError

# What is asked, and what comes back.


def test_answers_come_in_the_order_of_the_prompts() -> None:
    order = random.Random(7)

    def script(asked: Asked, number: int) -> Any:
        async def late(writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(order.random() / 20)
            data = json.dumps(reply(asked)).encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s" % (len(data), data))
            await writer.drain()
        return late

    with FakeEndpoint(script) as at, Client(settings(at, concurrency=4)) as client:
        generator: TextGenerator = client
        heard: list[tuple[int, int]] = []
        found = client.generate(prompts(20), Sampling(), n=2, progress=lambda *done: heard.append(done))
        by_prompt = {asked.body["messages"][1]["content"]: asked for asked in at.asked}
        assert texts(found) == [[text(by_prompt[p[1].text], i) for i in (0, 1)] for p in prompts(20)]
        assert len({t for row in texts(found) for t in row}) == 40
        assert heard == [(i, 40) for i in range(2, 41, 2)]
        assert {asked.path for asked in at.asked} == {"/v1/chat/completions"}
        assert at.most_flying == 4, "as many as allowed at once"
        assert texts(generator.generate(prompts(20), Sampling(), 2)) == texts(found), "the same call, the same requests"
        assert client.generate([], Sampling()) == []
        stats = client.stats
        assert (stats.requests, stats.answers, stats.found, stats.retries) == (40, 80, 0, {})
        assert (stats.prompt_tokens, stats.completion_tokens, stats.money) == (400, 400, 0.0)
        assert stats.p50 is not None and stats.p95 is not None and 0 < stats.p50 <= stats.p95 < 2


def test_every_completion_has_a_seed_of_its_own() -> None:
    with FakeEndpoint() as at, Client(settings(at)) as client:
        client.generate([*prompts(2), prompts(1)[0]], Sampling(), n=1)
        client.generate(prompts(1), Sampling(seed=1))
        client.generate(prompts(1), Sampling(temperature=0.5))
    seeds = [(asked.body["messages"][1]["content"], asked.body["seed"]) for asked in at.asked]
    assert len(set(seeds[:3])) == 3, "a prompt that comes twice is drawn twice"
    assert seeds[3] not in seeds[:3]
    assert seeds[4] in seeds[:3], "the seed is of sampling.seed, prompt and occurrence alone"
    assert all(0 <= seed < 2**31 for _, seed in seeds)


def test_sampling_goes_under_the_names_that_servers_know() -> None:
    plain, full = Sampling(max_tokens=7), Sampling(
        max_tokens=9, temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, repetition_penalty=1.2, presence_penalty=0.3,
        frequency_penalty=-0.4, logit_bias={17: -100.0}, stop=("END",), min_tokens=2, ignore_stop=True, logprobs=3,
        json_schema='{"type": "object"}')
    with FakeEndpoint() as at, Client(settings(at, extra_body={"service_tier": "flex"})) as client:
        client.generate(prompts(1), plain)
        client.generate(prompts(1), full)
        client.generate(prompts(1), Sampling(json_schema="{}"))
    sent = [{k: v for k, v in asked.body.items() if k not in ("messages", "seed", "model")} for asked in at.asked]
    assert sent[0] == {"max_tokens": 7, "temperature": 1.0, "top_p": 1.0, "service_tier": "flex"}
    schema = {"name": "answer", "schema": {"type": "object"}, "strict": True}
    assert sent[1] == {
        "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2,
        "presence_penalty": 0.3, "frequency_penalty": -0.4, "logit_bias": {"17": -100.0}, "stop": ["END"],
        "min_tokens": 2, "ignore_eos": True, "logprobs": True, "top_logprobs": 3, "service_tier": "flex",
        "response_format": {"type": "json_schema", "json_schema": schema}}
    assert sent[2]["response_format"] == {"type": "json_object"}
    assert at.asked[0].body["messages"] == [{"role": "system", "content": "Add."}, {"role": "user", "content": "0 + 0"}]
    told = {field for field in Sampling.model_fields if field != "seed"}
    assert len(told) == 14, "a new field of Sampling needs a name on the wire"


def test_fields_that_an_endpoint_does_not_take_can_be_left_out() -> None:
    with FakeEndpoint() as at:
        asking = settings(at, omit=("temperature", "top_p", "seed"), max_tokens_name="max_completion_tokens")
        with Client(asking) as client:
            client.generate(prompts(1), Sampling())
            assert at.asked[0].body.keys() == {"model", "messages", "max_completion_tokens"}
            with pytest.raises(UsageError, match=r"omit: temperature is left out .* sets it to 0\.5"):
                client.generate(prompts(1), Sampling(temperature=0.5))
        with (Client(settings(at, extra_body={"top_k": -1})) as client,
              pytest.raises(UsageError, match="extra_body: top_k is set by sampling too")):
            client.generate(prompts(1), Sampling(top_k=3))
        with Client(settings(at)) as client:
            for schema in ("{", "[1]"):
                with pytest.raises(UsageError, match="json_schema"):
                    client.generate(prompts(1), Sampling(json_schema=schema))
            with pytest.raises(UsageError, match="n=0"):
                client.generate(prompts(1), Sampling(), n=0)
            with pytest.raises(UsageError, match="prompt 0: holds no message"):
                client.generate([[]], Sampling())
    assert len(at.asked) == 1, "nothing was sent"


def test_images_in_files_travel_as_data(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    asked = Message("user", (Text("What?"), Image(str(tmp_path / "a.png")), Image("https://host/b.png")))
    with FakeEndpoint() as at, Client(settings(at)) as client:
        client.generate([[asked]], Sampling())
        parts = at.asked[0].body["messages"][0]["content"]
        assert parts[1]["image_url"]["url"] == "data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()
        assert parts[2]["image_url"]["url"] == "https://host/b.png"
        for bad in ("missing.png", "a.txt"):
            with pytest.raises(UsageError, match=bad):
                client.generate([[Message("user", (Image(str(tmp_path / bad)),))]], Sampling())


@pytest.mark.parametrize(("choice", "expected", "finish"), [
    ({"message": {"content": "4"}}, "4", "stop"),
    ({"message": {"content": ""}, "finish_reason": "length"}, "", "length"),
    ({"message": {"content": None}, "finish_reason": "length"}, "", "length"),
    ({"message": {"content": "4", "reasoning_content": "2+2"}}, "<think>2+2</think>4", "stop"),
    ({"message": {"content": "4", "reasoning": "2+2"}}, "<think>2+2</think>4", "stop"),
    ({"message": {"content": "4", "reasoning": "2+2"}, "finish_reason": "length"}, "<think>2+2</think>4", "length"),
    ({"message": {"content": None, "reasoning": "2+2"}}, "<think>2+2</think>", "stop"),
    ({"message": {"content": None, "reasoning": "2+"}, "finish_reason": "length"}, "<think>2+", "length"),
    ({"message": {"content": "4"}, "finish_reason": "eos_token"}, "4", "stop"),
    ({"message": {"content": "a\ud83d"}}, "a\ufffd", "stop"),  # half of an emoji, cut off by the length
    ({"message": {"content": "😀"}}, "😀", "stop"),
])
def test_text_and_finish(choice: dict[str, Any], expected: str, finish: str, tmp_path: Path) -> None:
    with (FakeEndpoint(lambda asked, number: reply(asked, **choice)) as at,
          Client(settings(at, journal=str(tmp_path / "j"))) as client):
        for _ in range(2):
            (answer,), = client.generate(prompts(1), Sampling())
            assert (answer.text, answer.finish) == (expected, finish)
            assert answer.tokens == () and answer.logprobs == () and answer.top == (), "nothing is invented"
        assert len(at.asked) == 1


def _logprobs(names: list[str]) -> dict[str, Any]:
    return {"content": [
        {"token": name, "logprob": -0.5 - i, "top_logprobs": [
            {"token": "token_id:9" if name.startswith("token_id") else "b", "logprob": -0.75 - i},
            {"token": name, "logprob": -0.5 - i}]}
        for i, name in enumerate(names)
    ]}


def test_log_probabilities_and_token_ids_are_what_the_endpoint_tells(tmp_path: Path) -> None:
    ids = {"logprobs": _logprobs(["token_id:5", "token_id:6"])}
    with FakeEndpoint(lambda asked, number: reply(asked, token_ids=[5, 6], **ids)) as at:
        names = {"return_tokens_as_token_ids": True}
        asking = settings(at, logprobs=True, token_ids=True, extra_body=names, journal=str(tmp_path / "j"))
        for _ in range(2):
            with Client(asking) as client:
                (answer,), = client.generate(prompts(1), Sampling(logprobs=2))
            assert answer.tokens == (5, 6) and answer.logprobs == (-0.5, -1.5)
            assert answer.top == (((5, -0.5), (9, -0.75)), ((6, -1.5), (9, -1.75)))
        sent = at.asked[0].body
        assert sent["logprobs"] is True and sent["top_logprobs"] == 2
        assert sent["return_token_ids"] is True
        assert len(at.asked) == 1
    with (FakeEndpoint(lambda asked, number: reply(asked, logprobs=_logprobs(["a", "b"]))) as at,
          Client(settings(at)) as client):
        (answer,), = client.generate(prompts(1), Sampling(logprobs=2))
        assert (answer.tokens, answer.logprobs, answer.top) == ((), (-0.5, -1.5), ()), "names are no ids"
    with (FakeEndpoint(lambda asked, number: reply(asked, token_ids=[5], **ids)) as at,
          Client(settings(at, retries=0)) as client, pytest.raises(EndpointFailed, match="1 token ids and 2 log")):
        client.generate(prompts(1), Sampling(logprobs=2))
    with FakeEndpoint() as at:
        for name in ("logprobs", "token_ids"):
            with (Client(settings(at, **{name: True})) as client,
                  pytest.raises(UsageError, match=f"replies hold no {name}, which {name}=true asks for")):
                client.generate(prompts(1), Sampling())


def test_what_was_cached_and_reasoned_is_told() -> None:
    def script(asked: Asked, number: int) -> Any:
        usage = {"prompt_tokens": 100, "completion_tokens": 50, "prompt_tokens_details": {"cached_tokens": 80},
                 "completion_tokens_details": {"reasoning_tokens": 40}}
        return {**reply(asked), "usage": usage}

    with (FakeEndpoint(script) as at,
          Client(settings(at, price_in=1e6, price_out=2e6, price_cached=0.5e6)) as client):
        (answer,), = client.generate(prompts(1), Sampling())
        assert answer.cached == 80
        assert client.stats.cached_tokens == 80 and client.stats.reasoning_tokens == 40
        assert client.stats.money == pytest.approx(20 * 1 + 80 * 0.5 + 50 * 2)
        assert client.stats.estimated == 0


@pytest.mark.parametrize(("choice", "reason"), [
    ({"finish_reason": "content_filter"}, "content_filter"),
    ({"finish_reason": "tool_calls", "message": {"content": None, "tool_calls": []}}, "tool_calls"),
    ({"finish_reason": "sorry"}, "finish_reason='sorry': of no known meaning"),
    ({"message": {"content": None, "refusal": "I will not"}}, "refused: I will not"),
])
def test_a_withheld_answer_fails_by_name_and_alone(choice: dict[str, Any], reason: str, tmp_path: Path) -> None:
    def script(asked: Asked, number: int) -> Any:
        return reply(asked, **choice) if asked.body["messages"][1]["content"] == "1 + 1" else reply(asked)

    with FakeEndpoint(script) as at, Client(settings(at, journal=str(tmp_path / "j"))) as client:
        with pytest.raises(ItemsFailed) as caught:
            client.generate(prompts(3), Sampling())
        assert "1 of 3 completions failed, the first of prompt 1" in str(caught.value) and reason in str(caught.value)
        found = client.answers(prompts(3), Sampling())
        assert found == caught.value.answers
        assert [isinstance(row[0], Failed) for row in found] == [False, True, False]
        assert len(at.asked) == 3, "it was paid for: not asked again"


@pytest.mark.parametrize("status", [
    Status(400, {"error": {"message": "maximum context length is 10 tokens", "code": "context_length_exceeded"}}),
    Status(400, {"error": {"message": "filtered", "code": "content_filter", "param": "prompt"}}),
    Status(413, b"too much"),
])
def test_a_prompt_that_is_refused_fails_alone(status: Status) -> None:
    def script(asked: Asked, number: int) -> Any:
        return status if asked.body["messages"][1]["content"] == "1 + 1" else reply(asked)

    with FakeEndpoint(script) as at, Client(settings(at)) as client:
        found = client.answers(prompts(3), Sampling())
        assert [type(row[0]) for row in found] == [Completion, Failed, Completion]
        assert len(at.asked) == 3


def test_an_answer_of_other_weights_than_were_sent_is_not_taken(tmp_path: Path) -> None:
    def script(asked: Asked, number: int) -> Any:
        return {**reply(asked), "system_fingerprint": f"fathom-0.1.0-w{3 if number < 1 else 0}"}

    with FakeEndpoint(script) as at, Client(settings(at, journal=str(tmp_path / "j"), concurrency=1)) as client:
        client.version = 3
        with pytest.raises(Stopped, match="draws with weights of version 0, version 3 was sent"):
            client.generate(prompts(3), Sampling())
        client.version = 0  # what was taken is kept, the rest is asked again
        assert len(client.generate(prompts(3), Sampling())) == 3 and len(at.asked) == 4


# n > 1.


@pytest.mark.parametrize("how", [
    Status(400, {"error": {"message": "Unsupported value", "param": "n"}}),
    Status(400, {"error": {"message": "n must be 1"}}),
    Status(422, {"detail": [{"loc": ["body", "n"], "msg": "Input should be less than 2"}]}),
    "fewer",
])
def test_an_endpoint_without_n_is_asked_singly(how: Any, tmp_path: Path) -> None:
    def script(asked: Asked, number: int) -> Any:
        return reply(asked, 1) if how == "fewer" or "n" not in asked.body else how

    with FakeEndpoint(script) as at, Client(settings(at, concurrency=1, journal=str(tmp_path / "j"))) as client:
        assert "takes n > 1" in str(client.forecast(prompts(3), Sampling(), n=3))
        found = client.generate(prompts(3), Sampling(), n=3)
        several = [asked for asked in at.asked if "n" in asked.body]
        assert len(several) == 1, "found out once, remembered"
        assert len(at.asked) == (9 if how == "fewer" else 10), "the one that came is kept"
        assert len({t for row in texts(found) for t in row}) == 9
        assert client.forecast(prompts(4), Sampling(), n=3).requests == 3
        client.generate(prompts(4), Sampling(), n=3)
        assert len([asked for asked in at.asked if "n" in asked.body]) == 1


def test_more_of_the_same_prompt_asks_for_the_rest(tmp_path: Path) -> None:
    with FakeEndpoint() as at:
        with Client(settings(at, journal=str(tmp_path / "j"))) as client:
            two = client.generate(prompts(1), Sampling(), n=2)
            five = client.generate(prompts(1), Sampling(), n=5)
        with Client(settings(at)) as client:
            whole = client.generate(prompts(1), Sampling(), n=5)
    assert [asked.body["n"] for asked in at.asked] == [2, 3, 5]
    assert five[0][:2] == two[0]
    # this endpoint numbers choices from the seed, as vLLM does
    assert texts(five) == texts(whole)


# The page.


@pytest.mark.docs
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "client.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEACHER_KEY", "sk-of-a-teacher")
    with FakeEndpoint() as at:
        for block in blocks:
            assert "https://host/v1" in block
            exec(compile(block.replace("https://host/v1", at.url), "client.md", "exec"), {"__name__": "client.md"})
        assert len(at.asked) >= len(blocks) >= 2
    assert "price: " in capsys.readouterr().out
    for file, name in re.findall(r"`(tests/\S+?)::(\w+)`", page):
        assert f"def {name}(" in (Path(__file__).parents[2] / file).read_text(encoding="utf-8"), name


@pytest.mark.docs
def test_the_page_names_every_setting() -> None:
    page = (Path(__file__).parents[2] / "docs" / "client.md").read_text(encoding="utf-8")
    assert [name for name in ClientSettings.model_fields if f"`{name}" not in page] == []

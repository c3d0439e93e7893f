"""What each route answers, and what of a request reaches the engine."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from fake import TEXT, FakeService, logprob, settings, tokenizer
from fastapi.testclient import TestClient

from fathom.core.chat import Sampling
from fathom.engine.server.answers import ChatAnswer, CompletionAnswer, Models, Tokens
from fathom.engine.server.app import make_app

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "what is 2+3?"}]}


def client(service: FakeService | None = None, **more: Any) -> TestClient:
    return TestClient(make_app(service or FakeService(), settings(**more)), raise_server_exceptions=False)


def chunks(response: Any) -> list[dict[str, Any]]:
    """The events of a stream, which ends as it should."""
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [e for e in response.text.split("\n\n") if e and not e.startswith(":")]
    assert events[-1] == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]


def test_a_chat_is_answered() -> None:
    service = FakeService()
    answer = client(service).post("/v1/chat/completions", json=CHAT)
    assert answer.status_code == 200
    body = answer.json()
    ChatAnswer.model_validate(body)
    assert body["choices"] == [{"index": 0, "logprobs": None, "finish_reason": "stop", "message": {
        "role": "assistant", "content": TEXT, "reasoning": None, "reasoning_content": None, "refusal": None}}]
    prompt = service.streams[0].prompt
    assert list(prompt) == tokenizer().encode(
        "<|im_start|>user\nwhat is 2+3?<|im_end|>\n<|im_start|>assistant\n", control=True)
    count = len(tokenizer().encode(TEXT)) + 1
    assert body["usage"] == {
        "prompt_tokens": len(prompt), "completion_tokens": count, "total_tokens": len(prompt) + count,
        "prompt_tokens_details": {"cached_tokens": len(prompt) // 2},
        "completion_tokens_details": {"reasoning_tokens": 0}}
    assert body["id"].startswith("chatcmpl-") and body["id"].endswith(answer.headers["x-request-id"])
    assert service.streams[0].sampling.max_tokens == service.max_length - len(prompt)


def test_a_streamed_chat_is_the_whole_one_in_parts() -> None:
    asked = CHAT | {"n": 3, "logprobs": True, "top_logprobs": 2, "return_token_ids": True, "seed": 5}
    script = ("<think>\nfirst 日本\n\n</think>\n\nthen", TEXT, "<think>never ends").__getitem__
    whole = client(FakeService(script=script)).post("/v1/chat/completions", json=asked).json()
    parts = chunks(client(FakeService(script=script)).post(
        "/v1/chat/completions", json=asked | {"stream": True, "stream_options": {"include_usage": True}}))
    assert parts[-1]["choices"] == [] and parts[-1]["usage"] == whole["usage"]
    assert all(part["usage"] is None for part in parts[:-1])
    assert parts[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    assert len({(p["id"], p["created"], p["model"], p["object"]) for p in parts}) == 1
    for i, choice in enumerate(whole["choices"]):
        mine = [c for p in parts for c in p["choices"] if c["index"] == i]
        assert mine[0]["delta"] == {"role": "assistant", "content": ""}
        for key in ("content", "reasoning", "reasoning_content"):
            assert "".join(c["delta"].get(key, "") for c in mine) == (choice["message"][key] or "")
        assert [t for c in mine if c["logprobs"] for t in c["logprobs"]["content"]] == choice["logprobs"]["content"]
        assert [t for c in mine for t in c.get("token_ids", [])] == choice["token_ids"]
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == [choice["finish_reason"]]
    assert whole["choices"][0]["message"]["reasoning"] == "first 日本"
    assert whole["choices"][0]["message"]["content"] == "then"
    assert whole["choices"][2]["message"] | {"refusal": None} == {
        "role": "assistant", "content": "", "reasoning": "never ends", "reasoning_content": "never ends",
        "refusal": None}
    thought = sum(len(tokenizer().encode(t)) for t in ("<think>\nfirst 日本\n\n</think>", "<think>never ends")) + 1
    assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] == thought


def test_log_probabilities_of_a_chat() -> None:
    asked = CHAT | {"logprobs": True, "top_logprobs": 3, "return_token_ids": True}
    choice = client().post("/v1/chat/completions", json=asked).json()["choices"][0]
    told = choice["logprobs"]["content"]
    assert b"".join(bytes(one["bytes"]) for one in told).decode() == TEXT + "<|im_end|>"
    assert [one["logprob"] for one in told] == [logprob(k) for k in range(len(told))]
    assert all(one["top_logprobs"][0] == {k: one[k] for k in ("token", "logprob", "bytes")} for one in told)
    assert all(one["top_logprobs"][2]["logprob"] == -9999.0 for one in told)  # JSON has no infinities


SAMPLING = {
    "temperature": (0.5, {"temperature": 0.5}), "top_p": (0.9, {"top_p": 0.9}), "top_k": (7, {"top_k": 7}),
    "min_p": (0.1, {"min_p": 0.1}), "repetition_penalty": (1.2, {"repetition_penalty": 1.2}),
    "presence_penalty": (-1, {"presence_penalty": -1.0}), "frequency_penalty": (1.5, {"frequency_penalty": 1.5}),
    "logit_bias": ({"7": -100, "0": 3.5}, {"logit_bias": {7: -100.0, 0: 3.5}}),
    "stop": ("42", {"stop": ("42",)}), "min_tokens": (3, {"min_tokens": 3}),
    "ignore_eos": (True, {"ignore_stop": True}), "seed": (-5, {"seed": (1 << 63) - 5}),
    "max_tokens": (9, {"max_tokens": 9}),
    "response_format": ({"type": "json_object"}, {"json_schema": '{"type":"object"}'}),
}


@pytest.mark.parametrize("field", SAMPLING)
@pytest.mark.parametrize("route", ["/v1/chat/completions", "/v1/completions"])
def test_sampling_reaches_the_engine(route: str, field: str) -> None:
    value, expected = SAMPLING[field]
    service = FakeService()
    asked: dict[str, Any] = (CHAT if "chat" in route else {"prompt": "hello"}) | {"max_tokens": 20, "seed": 0} | {
        field: value}
    assert client(service).post(route, json=asked).status_code == 200
    plain = Sampling(max_tokens=20)
    assert service.streams[0].sampling == plain.model_copy(update=expected)


def test_what_is_left_out_or_null_is_a_default() -> None:
    service = FakeService()
    nulls = dict.fromkeys(["n", "temperature", "top_p", "stop", "logit_bias", "tools", "tool_choice", "user", "audio",
                           "stream_options", "response_format", "seed", "logprobs", "max_completion_tokens"])
    assert client(service).post("/v1/chat/completions", json=CHAT | nulls).status_code == 200
    assert client(service).post("/v1/completions", json={"prompt": "hello"}).status_code == 200
    one, two = (stream.sampling for stream in service.streams)
    assert one.temperature == two.temperature == 1.0 and two.max_tokens == 16
    assert one.seed != two.seed  # drawn anew


def test_json_schema_reaches_the_engine_which_lets_thinking_end_first() -> None:
    service = FakeService(tokenizer("r1"), f"yes\n</think>\n\n{TEXT}")
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    form = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": schema}}
    asked = {"messages": CHAT["messages"], "response_format": form}
    body = client(service).post("/v1/chat/completions", json=asked).json()
    stream = service.streams[0]
    assert json.loads(stream.sampling.json_schema or "") == schema
    assert tokenizer("r1").decode(stream.prompt).endswith("<think>\n")
    assert body["choices"][0]["message"]["content"] == TEXT and body["choices"][0]["message"]["reasoning"] == "yes"


@pytest.mark.parametrize(("template", "extra", "opened"), [
    ("r1", {}, True), ("qwen3", {}, False), ("v3", {}, False), ("qwen3", {"enable_thinking": False}, False)])
def test_thinking_that_the_prompt_has_opened(template: str, extra: dict[str, Any], opened: bool) -> None:
    service = FakeService(tokenizer(template), "yes\n</think>\n\nno")
    message = client(service).post("/v1/chat/completions", json=CHAT | extra).json()["choices"][0]["message"]
    if opened:
        assert (message["reasoning"], message["content"]) == ("yes", "no")
    else:
        assert (message["reasoning"], message["content"]) == (None, "yes\n</think>\n\nno")
    ends = tokenizer(template).decode(service.streams[0].prompt)
    assert ends.endswith("<think>\n\n</think>\n\n") == bool(extra)


def test_a_user_cannot_open_thinking() -> None:
    for template in ("v3", "qwen3"):
        service = FakeService(tokenizer(template), "a</think>b")
        asked = {"messages": [{"role": "user", "content": "say <think>"}]}
        message = client(service).post("/v1/chat/completions", json=asked).json()["choices"][0]["message"]
        assert message["content"] == "a</think>b"


def test_thinking_may_stay_in_the_content() -> None:
    service = FakeService(tokenizer("r1"), "yes\n</think>\n\nno")
    body = client(service).post("/v1/chat/completions", json=CHAT | {"separate_reasoning": False}).json()
    assert body["choices"][0]["message"]["content"] == "yes\n</think>\n\nno"
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0


def test_template_settings() -> None:
    for asked in ({"enable_thinking": False}, {"chat_template_kwargs": {"enable_thinking": False}}):
        service = FakeService()
        assert client(service).post("/v1/chat/completions", json=CHAT | asked).status_code == 200
        assert tokenizer().decode(service.streams[0].prompt).endswith("</think>\n\n")
    for name in ("messages", "bos_token", "add_generation_prompt", "colour"):
        refused = client().post("/v1/chat/completions", json=CHAT | {"chat_template_kwargs": {name: "x"}})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == f"chat_template_kwargs.{name}"


def test_an_answer_is_continued() -> None:
    turns = [*CHAT["messages"], {"role": "assistant", "content": "<think>\nso"}]  # type: ignore[misc]
    service = FakeService(tokenizer("r1"), " it is</think>5")
    asked = {"messages": turns, "continue_final_message": True, "add_generation_prompt": False}
    message = client(service).post("/v1/chat/completions", json=asked).json()["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == (" it is", "5")
    assert tokenizer("r1").decode(service.streams[0].prompt).endswith("<think>\nso")
    for wrong, param in (
        ({"messages": CHAT["messages"], "continue_final_message": True}, "continue_final_message"),
        ({"messages": turns, "add_generation_prompt": False}, "add_generation_prompt"),
        ({"messages": turns, "add_generation_prompt": True, "continue_final_message": True}, "add_generation_prompt"),
    ):
        refused = client().post("/v1/chat/completions", json=wrong)
        assert refused.status_code == 400 and refused.json()["error"]["param"] == param


def test_parts_and_roles() -> None:
    service = FakeService()
    parts = [{"type": "text", "text": "what is"}, {"type": "text", "text": " 2+3?"}]
    asked = {"messages": [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts},
                          {"role": "assistant", "content": "5", "reasoning_content": "easy"},
                          {"role": "user", "content": "why?", "type": "text"}]}
    assert client(service).post("/v1/chat/completions", json=asked).status_code == 200
    text = tokenizer().decode(service.streams[0].prompt)
    assert text == "system\nbe brief\nuser\nwhat is 2+3?\nassistant\n5\nuser\nwhy?\nassistant\n"


@pytest.mark.parametrize(("prompt", "count"), [
    ("hello", 1), (["hello", "world"], 2), ([5, 6, 7], 1), ([[5, 6], [7]], 2)])
def test_completions_of_every_kind_of_prompt(prompt: Any, count: int) -> None:
    service = FakeService()
    asked = {"prompt": prompt, "n": 2, "max_tokens": 5, "return_token_ids": True}
    body = client(service).post("/v1/completions", json=asked).json()
    CompletionAnswer.model_validate(body)
    assert [choice["index"] for choice in body["choices"]] == list(range(2 * count))
    text = tokenizer().decode(tokenizer().encode(TEXT)[:5])
    assert all(choice["text"] == text and choice["finish_reason"] == "length" for choice in body["choices"])
    assert [c["prompt_token_ids"] for c in body["choices"][::2]] == [list(s.prompt) for s in service.streams]
    assert body["usage"]["completion_tokens"] == 10 * count


def test_streamed_completions_are_the_whole_ones_in_parts() -> None:
    asked = {"prompt": ["hello", "what is 2+3?"], "n": 2, "max_tokens": 40, "logprobs": 2, "echo": True, "stop": "42"}
    whole = client().post("/v1/completions", json=asked).json()
    parts = chunks(client().post("/v1/completions", json=asked | {"stream": True}))
    assert all(part["object"] == "text_completion" for part in parts)
    for choice in whole["choices"]:
        mine = [c for p in parts for c in p["choices"] if c["index"] == choice["index"]]
        assert "".join(c["text"] for c in mine) == choice["text"]
        for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            assert [v for c in mine if c["logprobs"] for v in c["logprobs"][key]] == choice["logprobs"][key]
    assert whole["choices"][0]["text"] == "helloThe answer is "
    assert whole["choices"][3]["finish_reason"] == "stop"


def test_bos_before_a_text() -> None:
    for asked, first in (({}, False), ({"add_special_tokens": True}, True), ({"add_special_tokens": False}, False)):
        service = FakeService(tokenizer("v3"))
        assert client(service).post("/v1/completions", json={"prompt": "hello"} | asked).status_code == 200
        assert (service.streams[0].prompt[0] == tokenizer("v3").bos_id) == first


def test_control_tokens_in_a_text_are_text() -> None:
    service = FakeService()
    assert client(service).post("/v1/completions", json={"prompt": "<|im_end|>"}).status_code == 200
    assert not set(service.streams[0].prompt) & tokenizer().control_ids


@pytest.mark.parametrize("max_tokens", [0, 1])
@pytest.mark.parametrize("stream", [False, True])
def test_echo_with_log_probabilities(max_tokens: int, stream: bool) -> None:
    """How an evaluation harness asks for a text's likelihood."""
    service = FakeService()
    ids = tokenizer().encode("hello 日本")
    asked = {"prompt": [ids], "max_tokens": max_tokens, "logprobs": 1, "echo": True, "temperature": 0, "seed": 1234,
             "stream": stream}
    response = client(service).post("/v1/completions", json=asked)
    if stream:
        parts = [c for p in chunks(response) for c in p["choices"]]
        assert [c["finish_reason"] for c in parts if c["finish_reason"]] == ["length"]
        told = {k: [v for c in parts for v in c["logprobs"][k]] for k in parts[0]["logprobs"]}
    else:
        choice = response.json()["choices"][0]
        assert choice["finish_reason"] == "length"
        told = choice["logprobs"]
    assert len(told["tokens"]) == len(ids) + max_tokens and len(service.streams) == max_tokens
    assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None
    assert told["token_logprobs"][1: len(ids)] == [logprob(k) for k in range(1, len(ids))]
    for value, top in zip(told["token_logprobs"][1:], told["top_logprobs"][1:], strict=True):
        assert value == max(top.values())  # greedy, as the harness finds out
    assert told["text_offset"][0] == 0 and told["text_offset"][:len(ids)] == sorted(told["text_offset"][:len(ids)])
    assert any(name.startswith("bytes:\\x") for name in told["tokens"])  # a part of 日


def test_offsets_count_characters() -> None:
    asked = {"prompt": "日本 hello", "max_tokens": 0, "logprobs": 0, "echo": True}
    choice = client().post("/v1/completions", json=asked).json()["choices"][0]
    assert choice["text"] == "日本 hello" and choice["logprobs"]["top_logprobs"] is None
    for name, offset in zip(choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"], strict=True):
        if not name.startswith("bytes:"):
            assert choice["text"].startswith(name, offset)


def test_no_token_at_all() -> None:
    body = client().post("/v1/completions", json={"prompt": "hello", "max_tokens": 0}).json()
    assert body["choices"][0] | {} == {"index": 0, "text": "", "logprobs": None, "finish_reason": "length"}
    parts = chunks(client().post("/v1/completions", json={"prompt": "hello", "max_tokens": 0, "stream": True}))
    assert [c["finish_reason"] for p in parts for c in p["choices"]] == ["length"]


def test_models() -> None:
    models = client().get("/v1/models").json()
    Models.model_validate(models)
    assert models["data"][0]["id"] == "fake" and models["data"][0]["max_model_len"] == 512
    assert client().get("/v1/models/fake").json()["id"] == "fake"
    slashed = TestClient(make_app(FakeService(), settings().model_copy(update={"name": "org/m"})))
    assert slashed.get("/v1/models/org/m").json()["id"] == "org/m"
    for missing in ("/v1/models/other", "/v1/models/"):
        assert client().get(missing).json()["error"]["code"] == "model_not_found"
    other = client().post("/v1/chat/completions", json=CHAT | {"model": "gpt"})
    assert other.status_code == 404 and other.json()["error"]["param"] == "model"


def test_tokens_and_back() -> None:
    c = client()
    body = c.post("/tokenize", json={"prompt": "hello 日本", "return_token_strs": True}).json()
    Tokens.model_validate(body)
    assert body["tokens"] == tokenizer().encode("hello 日本") and body["count"] == len(body["token_strs"])
    assert c.post("/detokenize", json={"tokens": body["tokens"]}).json() == {"prompt": "hello 日本"}
    chat = c.post("/tokenize", json={"messages": CHAT["messages"]}).json()
    assert "token_strs" not in chat and chat["max_model_len"] == 512
    service = FakeService()
    client(service).post("/v1/chat/completions", json=CHAT)
    assert chat["tokens"] == list(service.streams[0].prompt)
    assert c.post("/detokenize", json={"tokens": [400_000]}).json()["error"]["param"] == "tokens"
    assert c.post("/tokenize", json={}).status_code == 400


def test_health_and_metrics_balance() -> None:
    from prometheus_client.parser import text_string_to_metric_families

    service = FakeService()
    c = client(service)
    assert c.get("/health").json() == {"status": "ok", "model": "fake", "version": 3, "running": 0, "waiting": 0}
    c.post("/v1/chat/completions", json=CHAT)
    c.post("/v1/chat/completions", json=CHAT | {"temperature": 9})
    service.fail_at = 2
    c.post("/v1/completions", json={"prompt": "hello"})
    values = {(s.name, *s.labels.values()): s.value
              for family in text_string_to_metric_families(c.get("/metrics").text) for s in family.samples}
    assert values["fathom_http_requests_total", "/v1/chat/completions", "200"] == 1
    assert values["fathom_http_requests_total", "/v1/chat/completions", "400"] == 1
    assert values["fathom_http_requests_total", "/v1/completions", "500"] == 1
    ended = {how: values["fathom_requests_ended_total", how] for how in ("finished", "cancelled", "failed")}
    assert ended == {"finished": 1, "cancelled": 0, "failed": 1}
    assert values["fathom_requests_started_total",] == sum(ended.values()) + values["fathom_requests_running",]
    assert values["fathom_engine_version",] == 3 and values["fathom_engine_prompt_tokens_total",] == 5
    assert values["fathom_first_token_seconds_count",] == 2
    count = len(tokenizer().encode(TEXT)) + 1
    assert values["fathom_token_seconds_count",] == count - 1 + 1
    assert math.isfinite(values["fathom_request_seconds_sum",])
    assert c.get("/health").status_code == 200  # the engine is asked again


def test_one_log_line_for_each_request(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "fathom.serve"):
        answer = client().post("/v1/chat/completions", json=CHAT)
        client().post("/v1/chat/completions", json=CHAT | {"bad\nname": 1})
        client().get("/health")
    lines = [record.getMessage() for record in caplog.records if record.name == "fathom.serve"]
    assert len(lines) == 2 and all("\n" not in line for line in lines)
    usage = answer.json()["usage"]
    for part in (answer.headers["x-request-id"], "POST /v1/chat/completions 200", f"prompt={usage['prompt_tokens']}",
                 f"completion={usage['completion_tokens']}", "cached=", "first=", "all=", "tok/s=", "finish=stop"):
        assert part in lines[0]
    assert " 400 " in lines[1] and "no such field" in lines[1]


def test_the_page_runs_only_what_stands_in_it(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import base64
    import hashlib

    from fathom.engine.server import app as module

    monkeypatch.setattr(module.resources, "files", lambda package: tmp_path)
    assert client().get("/").json()["error"]["code"] == "not_found"
    (tmp_path / "page.html").write_text("<style>a {}</style><script type='module'>go()</script>")
    page = client(api_key="secret").get("/")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    for text in (b"a {}", b"go()"):
        assert base64.b64encode(hashlib.sha256(text).digest()).decode() in policy
    assert "unsafe" not in policy and policy.startswith("default-src 'none'")

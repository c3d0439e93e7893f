"""Every refusal: OpenAI's shape, the right status, and words that name the field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fake import FakeService, settings, tokenizer
from fastapi.testclient import TestClient

from fathom.core.errors import UsageError
from fathom.engine.server.app import make_app
from fathom.engine.server.errors import ErrorBody

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"


def client(service: FakeService | None = None, **more: Any) -> TestClient:
    return TestClient(make_app(service or FakeService(), settings(**more)), raise_server_exceptions=False)


def refused(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    ErrorBody.model_validate(body)
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    assert len(body["error"]["message"]) < 600
    error: dict[str, Any] = body["error"]
    return error


def deep(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"properties": {"a": value}}
    return value


# (what is asked beside the messages, the field that is named, a word of the message)
CHATS: list[tuple[dict[str, Any], str, str]] = [
    ({"temprature": 1}, "temprature", "did you mean temperature"),
    ({"zzz": 1}, "zzz", "no such field"),
    ({"tools": [{"type": "function"}]}, "tools", "not supported"),
    ({"tools": []}, "tools", "not supported"),
    ({"functions": []}, "functions", "not supported"),
    ({"tool_choice": "auto"}, "tool_choice", "not supported"),
    ({"parallel_tool_calls": True}, "parallel_tool_calls", "not supported"),
    ({"audio": {"voice": "a"}}, "audio", "text only"),
    ({"reasoning_effort": "high"}, "reasoning_effort", "chat_template_kwargs"),
    ({"best_of": 2}, "best_of", "not supported"),
    ({"suffix": "x"}, "suffix", "not supported"),
    ({"stop_token_ids": [3]}, "stop_token_ids", "use stop"),
    ({"logit_bias": {"x": 1}}, "logit_bias.x", "pattern"),
    ({"logit_bias": {"-1": 1}}, "logit_bias.-1", "pattern"),
    ({"logit_bias": {"99999": 1}}, "logit_bias", "no token 99999"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1", "100"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias", "1024"),
    ({"n": 129}, "n", "128"),
    ({"n": 0}, "n", "1"),
    ({"n": "2"}, "n", "integer"),
    ({"n": True}, "n", "integer"),
    ({"temperature": 2.5}, "temperature", "2"),
    ({"temperature": "hot"}, "temperature", "number"),
    ({"top_p": 0}, "top_p", "greater than 0"),
    ({"top_logprobs": 3}, "top_logprobs", "logprobs"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "20"),
    ({"logprobs": 5}, "logprobs", "boolean"),
    ({"max_tokens": 0}, "max_tokens", "1"),
    ({"max_tokens": 1000}, "max_tokens", "512"),
    ({"max_tokens": 4, "max_completion_tokens": 5}, "max_tokens", "same"),
    ({"max_tokens": 4, "min_tokens": 5}, "min_tokens", "max_tokens"),
    ({"stop": [""]}, "stop[0]", "1 character"),
    ({"stop": ["a"] * 17}, "stop", "16"),
    ({"stop": "x" * 257}, "stop", "256"),
    ({"seed": 1 << 64}, "seed", "less"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "stream"),
    ({"stream": True, "stream_options": {"colour": 1}}, "stream_options.colour", "no such field"),
    ({"response_format": {"type": "xml"}}, "response_format", "json_schema"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": deep(40)}}},
     "response_format.json_schema.schema", "64"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"title": "x" * 70_000}}}},
     "response_format.json_schema.schema", "65536"),
    ({"messages": []}, "messages", "1"),
    ({"messages": "hi"}, "messages", "list"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "missing"),
    ({"messages": [{"role": "king", "content": "hi"}]}, "messages[0].role", "user"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "string"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
     "messages[0].content[0].type", "image"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
     "messages[0].content[0].type", "sound"),
    ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, "messages[0].tool_calls",
     "not supported"),
    ({"messages": [{"role": "user", "content": "hi", "name": "Ann"}]}, "messages[0].name", "not supported"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content", ""),
    ({"messages": [{"role": "tool", "content": "3"}]}, "messages", "tool"),
    ({"messages": [{"role": "user", "content": "hello " * 2000}]}, "messages[0].content", "512"),
    ({"chat_template_kwargs": {"enable_thinking": "<|im_start|>"}}, "chat_template_kwargs.enable_thinking", ""),
    ({"model": 5}, "model", "string"),
]


@pytest.mark.parametrize(("asked", "param", "word"), CHATS, ids=lambda v: ascii(v)[:40])
def test_what_is_wrong_is_named(asked: dict[str, Any], param: str, word: str) -> None:
    service = FakeService()
    body = json.dumps({"messages": MESSAGES} | asked)  # half a surrogate travels as an escape
    answer = client(service).post(CHAT, content=body, headers={"Content-Type": "application/json"})
    error = refused(answer, 400)
    assert error["param"] == param and word in error["message"], error
    assert not service.streams


@pytest.mark.parametrize(("asked", "param", "word"), [
    ({"prompt": []}, "prompt", "1 item"), ({"prompt": [[]]}, "prompt[0]", "1 item"), ({"prompt": 5}, "prompt", "text"),
    ({"prompt": ["a", 5]}, "prompt[1]", "string"), ({"prompt": [-1]}, "prompt[0]", "0"),
    ({"prompt": [5000]}, "prompt", "no token 5000"), ({"prompt": ["a"] * 257}, "prompt", "256"),
    ({"prompt": ["a"] * 200, "n": 9}, "n", "1024"), ({"prompt": "a", "best_of": 2}, "best_of", "ranked"),
    ({"prompt": "a", "suffix": "b"}, "suffix", "infilling"), ({"prompt": "a", "logprobs": 21}, "logprobs", "20"),
    ({"prompt": "hello " * 2000}, "prompt", "512"), ({"prompt": [1] * 510}, "prompt", "512"), ({}, "prompt", "missing"),
], ids=str)
def test_what_is_wrong_with_a_completion_is_named(asked: dict[str, Any], param: str, word: str) -> None:
    error = refused(client().post(PLAIN, json=asked), 400)
    assert error["param"] == param and word in error["message"], error


@pytest.mark.parametrize(("body", "kind", "code"), [
    (b"", "application/json", "empty_body"), (b"{", "application/json", "invalid_json"),
    (b"[" * 100_000, "application/json", "invalid_json"), (b'{"a":' * 100_000, "application/json", "invalid_json"),
    (b"\xff\xfe{}", "application/json", "invalid_json"), (b"[]", "application/json", "invalid_type"),
    (b"5", "application/json", "invalid_type"), (b"9" * 5000, "application/json", "invalid_json"),
    (b'{"messages": NaN}', "application/json", "invalid_value"),
    (b'{"messages":[{"role":"user","content":"a"}],"temperature":NaN}', "application/json", "invalid_value"),
    (b'{"messages":[{"role":"user","content":"a"}],"temperature":1e999}', "application/json", "invalid_value"),
    (b'{"messages":[{"role":"user","content":"a"}],"temperature":' + b"9" * 400 + b"}", "application/json",
     "invalid_value"),
    (json.dumps({"messages": MESSAGES}).encode(), "text/plain", "invalid_content_type"),
    (b"a=b", "application/x-www-form-urlencoded", "invalid_content_type"),
], ids=lambda v: str(v)[:24])
def test_bodies_that_are_not_what_they_should_be(body: bytes, kind: str, code: str) -> None:
    for route in (CHAT, PLAIN, "/tokenize"):
        error = refused(client().post(route, content=body, headers={"Content-Type": kind}), 400)
        if route == CHAT:
            assert error["code"] == code, error


def test_no_route_and_no_method() -> None:
    assert refused(client().get("/v1/nothing"), 404)["code"] == "not_found"
    for route, method in ((CHAT, "GET"), ("/v1/models", "POST"), ("/health", "DELETE"), (PLAIN, "OPTIONS")):
        answer = client().request(method, route)
        assert refused(answer, 405)["code"] == "method_not_allowed"
        assert answer.headers["allow"] in ("POST", "GET")


def test_a_body_that_is_too_large() -> None:
    c = client(body_bytes=1000)
    asked = {"messages": [{"role": "user", "content": "a" * 1000}]}
    assert refused(c.post(CHAT, json=asked), 413)["code"] == "body_too_large"

    def in_parts() -> Any:
        yield from (b" " * 100 for _ in range(11))

    answer = c.post(CHAT, content=in_parts(), headers={"Content-Type": "application/json"})
    assert refused(answer, 413)["code"] == "body_too_large"
    exactly = json.dumps({"messages": MESSAGES}).ljust(1000)
    assert c.post(CHAT, content=exactly, headers={"Content-Type": "application/json"}).status_code == 200
    assert refused(c.post(CHAT, content=exactly + " ", headers={"Content-Type": "application/json"}), 413)


def test_the_key() -> None:
    c = client(api_key="sésame")
    ok = {"Authorization": "Bearer sésame".encode()}
    assert c.get("/v1/models", headers=ok).status_code == 200
    assert c.get("/health").status_code == 200
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": b"Basic s\xc3\xa9same"},
                    {"Authorization": "Bearer"}, {"Authorization": b"\xff"}):
        for route in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
            answer = c.get(route, headers=headers)
            assert refused(answer, 401)["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
    assert refused(c.post(CHAT, content=b"{" * 10), 401)  # before a body is looked at


def test_origins() -> None:
    asked = {"json": {"messages": MESSAGES}}
    for fine in ("http://localhost:8000", "http://127.0.0.1:8000", "http://[::1]:8000", "http://192.168.1.5"):
        assert client().post(CHAT, headers={"Origin": fine}, **asked).status_code == 200
    for page in ("https://evil.example", "null", "http://127.0.0.1.evil.example", "http://[zz"):
        assert refused(client().post(CHAT, headers={"Origin": page}, **asked), 403)["code"] == "origin_not_allowed"
    answer = client(api_key="k").post(
        CHAT, headers={"Origin": "https://a.example", "Authorization": "Bearer k"}, **asked)
    assert answer.status_code == 200 and "access-control-allow-origin" not in answer.headers
    c = client(allow_origin=("https://a.example",))
    answer = c.post(CHAT, headers={"Origin": "https://a.example"}, **asked)
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "https://a.example"
    asks = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type"}
    assert c.options(CHAT, headers=asks).status_code == 200
    assert c.options(CHAT, headers=asks | {"Origin": "https://b.example"}).status_code == 400


def test_too_many_wait() -> None:
    answer = client(FakeService(busy=True)).post(CHAT, json={"messages": MESSAGES})
    error = refused(answer, 429)
    assert answer.headers["retry-after"] == "3" and error["type"] == "rate_limit_error"
    streamed = client(FakeService(busy=True)).post(CHAT, json={"messages": MESSAGES, "stream": True})
    assert refused(streamed, 429)


def test_one_of_many_prompts_that_finds_no_room_gives_up_the_others() -> None:
    service = FakeService()
    submit = service.submit

    def two_only(*args: Any, **named: Any) -> Any:
        service.busy = len(service.streams) == 2
        return submit(*args, **named)

    service.submit = two_only  # type: ignore[method-assign]
    refused(client(service).post(PLAIN, json={"prompt": ["a", "b", "c"]}), 429)
    assert len(service.streams) == 2 and all(stream.cancelled_at is not None for stream in service.streams)


def test_draining() -> None:
    c = client()
    c.app.state.fathom.draining = True  # type: ignore[attr-defined]
    for answer in (c.get("/health"), c.post(CHAT, json={"messages": MESSAGES}), c.get("/v1/models")):
        assert refused(answer, 503)["code"] == "draining"
        assert int(answer.headers["retry-after"]) >= 1
    assert c.get("/metrics").status_code == 200
    service = FakeService()
    service.draining = True  # between the gate and the engine
    assert refused(client(service).post(CHAT, json={"messages": MESSAGES}), 503)["code"] == "draining"


def test_an_engine_that_fails() -> None:
    for fail_at in (0, 3):
        service = FakeService(fail_at=fail_at)
        c = client(service)
        for _ in range(3):
            assert c.get("/health").status_code == 200
            error = refused(c.post(CHAT, json={"messages": MESSAGES}), 500)
            assert error["type"] == "server_error" and "matrix" in error["message"]
        assert refused(c.get("/health"), 503)["code"] == "engine_failed"
        streamed = client(FakeService(fail_at=fail_at)).post(CHAT, json={"messages": MESSAGES, "stream": True})
        last = [line for line in streamed.text.split("\n\n") if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
        assert "[DONE]" not in streamed.text
        service.fail_at = None  # it may recover, and is asked
        assert c.post(CHAT, json={"messages": MESSAGES}).status_code == 200
        assert c.get("/health").status_code == 200


def test_what_the_engine_refuses_late_is_still_told() -> None:
    class Late(FakeService):
        def submit(self, *args: Any, **named: Any) -> Any:
            stream = super().submit(*args, **named)

            async def refuse() -> Any:
                raise UsageError("json_schema: no such type 'wine'; correct it")
                yield

            stream.__class__ = type("Refusing", (type(stream),), {"__aiter__": lambda self: refuse()})
            return stream

    asked = {"messages": MESSAGES}
    error = refused(client(Late()).post(CHAT, json=asked), 400)
    assert "wine" in error["message"]
    streamed = client(Late()).post(CHAT, json=asked | {"stream": True})
    assert json.loads(streamed.text.split("data: ")[-1])["error"]["type"] == "invalid_request_error"


def test_a_bug_is_a_500_that_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(FakeService):
        def submit(self, *args: Any, **named: Any) -> Any:
            raise ZeroDivisionError

    answer = client(Broken()).post(CHAT, json={"messages": MESSAGES})
    error = refused(answer, 500)
    assert answer.headers["x-request-id"] in error["message"]
    assert any(record.exc_info for record in caplog.records)


def test_a_long_text_is_refused_from_its_beginning() -> None:
    """A vocabulary encodes some half a megabyte a second: ten of them would keep all others waiting."""
    service = FakeService()
    lengths: list[int] = []
    encode = tokenizer().encode

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer(), name)

        def encode(self, text: str, control: bool = False) -> list[int]:
            lengths.append(len(text))
            return encode(text, control)

    service.tokenizer = Watched()  # type: ignore[assignment]
    for asked, route in (({"prompt": "hello " * 1_000_000}, PLAIN),
                         ({"messages": [{"role": "user", "content": "hello " * 1_000_000}]}, CHAT)):
        error = refused(client(service).post(route, json=asked), 400)
        assert error["code"] == "context_length_exceeded" and max(lengths) <= 16 * 512

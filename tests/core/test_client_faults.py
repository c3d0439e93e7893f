"""The client against an endpoint that fails on command: what is tried again, what is said, and that no key leaks."""

from __future__ import annotations

import asyncio
import logging
import re
import subprocess
import sys
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from endpoint import KEY, Asked, Drop, FakeEndpoint, Status, once, prompts, reply, settings, text, texts

from fathom.core.chat import Sampling
from fathom.core.client import Client, ClientSettings, EndpointFailed, endpoint
from fathom.core.config import build
from fathom.core.errors import FathomError, Stopped, UsageError


async def _slow_head(writer: asyncio.StreamWriter) -> None:
    for byte in b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n" * 9:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.05)


async def _slow_body(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n")
    for _ in range(200):
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.05)


async def _half(writer: asyncio.StreamWriter) -> None:
    writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\n{"choices": [')
    await writer.drain()


async def _not_http(writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
    await writer.drain()


FAULTS = {
    "408": Status(408), "409": Status(409), "429": Status(429, {"error": {"message": "slow down"}}), "500": Status(500),
    "503": Status(503, b"<html>busy</html>"), "504": Status(504), "drop": Drop(), "half": _half, "not HTTP": _not_http,
    "html": Status(200, b"<html><body>Welcome</body></html>", {"content-type": "text/html"}), "empty": Status(200, b""),
    "cut": Status(200, b'{"choices": [{"index": 0,'), "list": Status(200, b"[]"), "deep": Status(200, b"[" * 100_000),
    "no choices": Status(200, {"choices": []}), "choices of text": Status(200, {"choices": ["a"]}),
    "no message": Status(200, {"choices": [{"finish_reason": "stop"}]}),
    "null": Status(200, {"choices": [{"finish_reason": "stop", "message": {"content": None}}]}),
    "number": Status(200, {"choices": [{"finish_reason": "stop", "message": {"content": 4}}]}),
    "no finish": Status(200, {"choices": [{"finish_reason": None, "message": {"content": "4"}}]}),
    "abort": Status(200, {"choices": [{"finish_reason": "abort", "message": {"content": "4"}}]}),
    "indexes": Status(200, {"choices": [{"index": 3, "finish_reason": "stop", "message": {"content": "4"}}]}),
    "not a number": Status(200, b'{"choices": [{"finish_reason": "stop", "message": {"content": "4"}, '
                                b'"logprobs": {"content": [{"token": "a", "logprob": NaN}]}}]}'),
    "error in 200": Status(200, {"error": {"message": "provider is down", "code": 502}}),
    "gzip": Status(200, b"no gzip", {"content-encoding": "gzip"}),
}
KINDS = {"drop": "connection", "half": "connection", "not HTTP": "connection", "gzip": "connection",
         "error in 200": "502"}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_may_pass_is_tried_again(fault: str) -> None:
    with FakeEndpoint(once(FAULTS[fault])) as at, Client(settings(at)) as client:
        assert texts(client.generate(prompts(1), Sampling())) == [[text(at.asked[1])]]
        assert client.stats.retries == {KINDS.get(fault, fault if fault.isdecimal() else "malformed"): 1}
        assert (client.stats.requests, client.stats.answers) == (2, 1)
        assert at.asked[0].name == at.asked[1].name, "the same request, seed and all"


@pytest.mark.parametrize(("slow", "name"), [(_slow_head, "head"), (_slow_body, "body")])
def test_a_slow_endpoint_meets_the_time_limit(slow: Any, name: str) -> None:
    with FakeEndpoint(once(slow)) as at, Client(settings(at, timeout_s=0.3)) as client:
        began = time.monotonic()
        client.generate(prompts(1), Sampling())
        assert client.stats.retries == {"timeout": 1}
        assert 0.3 < time.monotonic() - began < 5


def test_nobody_listens() -> None:
    with FakeEndpoint() as at:
        asking = settings(at, retries=2)
    with Client(asking) as client, pytest.raises(EndpointFailed, match="after 3 tries, the last: ConnectError"):
        client.generate(prompts(1), Sampling())
    assert client.stats.retries == {"connection": 2} and client.stats.requests == 3


def test_after_the_last_try_the_error_says_where_and_what_is_kept(tmp_path: Path) -> None:
    def script(asked: Asked, number: int) -> Any:
        broken = asked.body["messages"][1]["content"] == "2 + 2"
        return Status(503, b"the \x1b[31mmodel is loading " + b"x" * 5000) if broken else reply(asked)

    with (FakeEndpoint(script) as at,
          Client(settings(at, retries=1, concurrency=1, journal=str(tmp_path / "j"))) as client):
        with pytest.raises(EndpointFailed) as caught:
            client.generate(prompts(5), Sampling())
        message = str(caught.value)
        assert at.url in message and "503: the \\x1b[31mmodel is loading" in message and len(message) < 700
        assert "after 2 tries" in message and "2 of 5 completions are done and journalled" in message
        assert caught.value.exit_code == 75, "the same command goes on"
        assert len(at.asked) == 4
        at.script = lambda asked, number: reply(asked)
        client.generate(prompts(5), Sampling())
        assert len(at.asked) == 7, "what was done was not asked again"


def test_the_endpoint_says_how_long_to_wait() -> None:
    for told, least in (("0.4", 0.4), ("soon", 0.0), ("-5", 0.0), ("nan", 0.0)):
        with FakeEndpoint(once(Status(429, headers={"retry-after": told}))) as at, Client(settings(at)) as client:
            client.generate(prompts(1), Sampling())
            assert least <= at.asked[1].at - at.asked[0].at < least + 0.35, told
    with (FakeEndpoint(once(Status(503, headers={"retry-after": "3600"}))) as at,
          Client(settings(at, wait_max_s=0.3)) as client):
        client.generate(prompts(1), Sampling())
        assert 0.3 <= at.asked[1].at - at.asked[0].at < 1
    date = endpoint.retry_after({"retry-after": formatdate(time.time() + 30, usegmt=True)})
    assert date is not None and 28 < date <= 30
    assert endpoint.retry_after({"retry-after": formatdate(time.time() - 30, usegmt=True)}) == 0


def test_all_wait_when_one_is_told_to() -> None:
    with (FakeEndpoint(once(Status(429, headers={"retry-after": "0.5"}))) as at,
          Client(settings(at, concurrency=2)) as client):
        at.delay = 0.1
        client.generate(prompts(6), Sampling())
        assert [asked.at - at.asked[0].at > 0.5 for asked in at.asked] == [False] * 2 + [True] * 5


def test_waits_double_up_to_their_bound_with_full_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    bounds: list[float] = []
    with (FakeEndpoint(lambda asked, number: Status(500)) as at,
          Client(settings(at, retries=5, backoff_s=1.0, wait_max_s=6.0)) as client):
        monkeypatch.setattr(client._random, "uniform", lambda low, high: bounds.append((low, high)) or 0.0)
        with pytest.raises(EndpointFailed):
            client.generate(prompts(1), Sampling())
    assert bounds == [(0.0, 1.0), (0.0, 2.0), (0.0, 4.0), (0.0, 6.0), (0.0, 6.0)]


@pytest.mark.parametrize(("status", "words"), [
    (Status(401, {"error": {"message": f"Incorrect API key provided: {KEY}."}}), "key in FATHOM_KEY is not accepted"),
    (Status(403, {"error": "no"}), "the key in FATHOM_KEY has no right to do this"),
    (Status(404, {"detail": "Not Found"}), "404: Not Found; check url, which usually ends in /v1, and model=m"),
    (Status(400, b"<html>Bad Request</html>"), "the endpoint refuses the request"),
    (Status(400, {"error": {"message": "bad", "param": "messages.0.content"}}), "does not take messages"),
    (Status(402, {"error": {"message": "Insufficient Balance"}}), "no credit left"),
    (Status(429, {"error": {"message": "quota", "code": "insufficient_quota"}}), "no credit left"),
    (Status(302, headers={"location": "/login"}), "redirects (302) to http://127.0.0.1/login; the key is not sent on"),
])
def test_what_will_not_pass_is_said_at_once(
    status: Status, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FATHOM_KEY", KEY)
    with (FakeEndpoint(lambda asked, number: status) as at,
          Client(settings(at, key_env="FATHOM_KEY", concurrency=1)) as client):
        with pytest.raises(Stopped if status.code in (402, 429) else UsageError) as caught:
            client.generate(prompts(3), Sampling())
        assert words in str(caught.value) and at.url in str(caught.value)
        assert len(at.asked) == 1
        assert at.asked[0].headers["authorization"] == f"Bearer {KEY}"
        assert KEY not in str(caught.value)


@pytest.mark.parametrize(("error", "sampling", "more", "named", "remedy"), [
    ({"message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'.",
      "param": "max_tokens"}, {}, {}, "max_tokens", "set max_tokens_name=max_completion_tokens"),
    ({"message": "Unrecognized request argument supplied: min_p"}, {"min_p": 0.1}, {}, "min_p",
     "sampling's min_p at its default"),
    ({"message": "'temperature' does not support 1.0"}, {}, {}, "temperature", "set omit=[temperature]"),
    ({"message": "ignore_eos is unknown, please stop"}, {"ignore_stop": True, "stop": ("a",)}, {}, "ignore_eos",
     "sampling's ignore_stop"),
    ({"message": "json_schema is not served", "param": "response_format"}, {"json_schema": "{}"}, {}, "response_format",
     "sampling's json_schema"),
    ({"message": "Unknown argument", "param": "tier"}, {}, {"extra_body": {"tier": 1}}, "tier", "out of extra_body"),
])
def test_a_rejected_parameter_is_named(
    error: dict[str, Any], sampling: dict[str, Any], more: dict[str, Any], named: str, remedy: str
) -> None:
    with (FakeEndpoint(lambda asked, number: Status(400, {"error": error})) as at,
          Client(settings(at, **more)) as client):
        with pytest.raises(UsageError) as caught:
            client.generate(prompts(1), Sampling(**sampling))
        assert f"does not take {named} (400: " in str(caught.value) and remedy in str(caught.value)
        assert len(at.asked) == 1


def test_a_reply_past_the_limit_is_not_read() -> None:
    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n")
        for _ in range(10_000):
            writer.write(b" " * 65536)
            await writer.drain()
            sent.append(65536)

    sent: list[int] = []
    with FakeEndpoint(lambda asked, number: endless) as at, Client(settings(at, price_in=1, price_out=1)) as client:
        with pytest.raises(FathomError, match="a reply of more than reply_mb=10; raise reply_mb"):
            client.generate(prompts(1), Sampling())
        assert len(at.asked) == 1
        assert client.stats.money == client.stats.estimated > 0, "it may be billed"
    assert 10e6 < sum(sent) < 60e6
    with (FakeEndpoint(lambda asked, number: Status(500, b"x" * 50_000_000)) as at,
          Client(settings(at, retries=0)) as client, pytest.raises(EndpointFailed, match="500: xxx")):
        client.generate(prompts(1), Sampling())


def test_no_redirect_takes_the_key_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FATHOM_KEY", KEY)
    for code in (301, 302, 303, 307, 308):
        with FakeEndpoint() as thief:
            away = Status(code, headers={"location": thief.url.replace("127.0.0.1", "localhost") + "/chat/completions"})
            with (FakeEndpoint(lambda asked, number, away=away: away) as at,
                  Client(settings(at, key_env="FATHOM_KEY")) as client,
                  pytest.raises(UsageError, match=r"redirects .* to http://localhost/v1/chat/completions")):
                client.generate(prompts(1), Sampling())
            assert thief.asked == []


def test_the_key_stands_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("FATHOM_KEY", KEY)
    shown: list[str] = []
    faults: list[Any] = [
        Status(500, f"{'x' * 290}{KEY}".encode()),  # at the end of what an error tells
        Status(503, {"error": {"message": f"{'x' * 290}{KEY}"}}),
        Status(200, f"<p>{KEY}</p>".encode()),
        Status(200, {"choices": [{"finish_reason": "stop", "message": {"content": f"your key is {KEY}"}}]}),
        Status(200, b'{"choices": [{"finish_reason": "stop", "message": {"content": "%s"}}]}' %
               KEY.replace("s", "\\u0073").encode()),
        Status(401, KEY.encode()),
        Status(307, headers={"location": f"http://thief/{KEY}"}),
    ]
    for fault in faults:
        if fault is faults[-1]:
            caplog.set_level(logging.INFO)  # below, the HTTP library writes down every header that comes in
        with (FakeEndpoint(lambda asked, number, fault=fault: fault) as at,
              Client(settings(at, key_env="FATHOM_KEY", retries=0, journal=str(tmp_path / "j"))) as client):
            with pytest.raises(FathomError) as caught:
                client.generate(prompts(1), Sampling())
            seen: BaseException | None = caught.value
            while seen is not None:
                shown.append(f"{seen!r} {seen}")
                seen = seen.__cause__
            shown += [repr(client), repr(client.settings), repr(client.stats)]
    with FakeEndpoint() as at, Client(settings(at, key_env="FATHOM_KEY", journal=str(tmp_path / "j"))) as client:
        client.generate(prompts(1), Sampling())
    everything = "\n".join([*shown, caplog.text]) + "".join(
        path.read_bytes().decode("latin-1") for path in tmp_path.iterdir())
    assert "answer " in everything and at.url in everything, "the test looks where things are"
    # a shorter piece of it would be a leak too
    assert KEY[:12] not in everything


def test_keys_are_sent_where_they_are_meant_to_go(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", "org-7")
    with FakeEndpoint() as at:
        with Client(settings(at)) as client:
            client.generate(prompts(1), Sampling())
        assert KEY not in str(at.asked[0].headers) and "org-7" not in str(at.asked[0].headers)
        assert "authorization" not in at.asked[0].headers
        with pytest.raises(UsageError, match="key_env=FATHOM_KEY: not set; export FATHOM_KEY"):
            Client(settings(at, key_env="FATHOM_KEY"))
        monkeypatch.setenv("FATHOM_KEY", "a\nb")
        with pytest.raises(UsageError, match="holds characters that a header cannot"):
            Client(settings(at, key_env="FATHOM_KEY"))
    assert not caplog.records
    Client(ClientSettings(url="http://models.example/v1", model="m", key_env="OPENAI_API_KEY")).close()
    assert "travels unencrypted" in caplog.text


@pytest.mark.parametrize(("values", "words"), [
    ({"url": "host/v1"}, "not an address"), ({"url": "http://h:x/v1"}, "not an address"),
    ({"url": "https://me:secret@host/v1"}, "more than host and path"),
    ({"url": "https://host/v1?key=secret"}, "more than host and path"),
    ({"cap": 1.0}, "cannot be kept without prices"), ({"price_in": 1.0}, "one of them is missing"),
    ({"price_cached": 1.0}, "means nothing without"), ({"extra_body": {"n": 2}}, "n is the client's own"),
    ({"extra_body": {"x": {1}}}, "cannot be written as JSON"), ({"omit": ["max_tokens"]}, "omit"),
])
def test_settings_that_cannot_be_meant(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)):
        build(ClientSettings, {"url": "https://host/v1", "model": "m", **values}, "test")


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'fathom-reasoning\[client\]'"):
        Client(ClientSettings(url="http://localhost/v1", model="m"))


def test_settings_load_no_http_library() -> None:
    code = ("import sys, fathom.core.client as c; c.ClientSettings\n"
            "assert not {'openai', 'asyncio', 'sqlite3'} & set(sys.modules)\n"
            "c.Client; assert 'openai' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)

"""Real sockets: clients that go, that do not read, that send too much, and the end of the server."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake import FakeService, running, tokenizer, wait_for

from fathom.engine.server import wire

MESSAGES = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"
LONG = {"messages": MESSAGES, "ignore_eos": True, "max_tokens": 400}
AT_ONCE = 0.5  # seconds: what is at once on a busy machine


def sent(address: Any, body: bytes, head: str = "", path: str = CHAT, small: bool = False) -> socket.socket:
    made = socket.socket()
    if small:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.connect(address)
    made.settimeout(20)
    head = head or f"Content-Length: {len(body)}\r\n"
    made.sendall(f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n{head}\r\n".encode() + body)
    return made


def asked(**more: Any) -> bytes:
    return json.dumps(LONG | more).encode()


def everything(client: socket.socket) -> bytes:
    data = b""
    while part := client.recv(65536):
        data += part
    return data


@pytest.mark.parametrize("how", ["close", "reset", "half"])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("queued", [True, False])
def test_a_client_that_goes_is_noticed_at_once(how: str, stream: bool, queued: bool) -> None:
    service = FakeService(delay=0.02)
    if queued:
        service.gate.clear()
    with running(service) as server, sent(server.address, asked(stream=stream)) as client:
        wait_for(lambda: service.streams)
        if stream:
            assert b"200 OK" in client.recv(4096)
        assert service.streams[0].cancelled_at is None
        if how == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if how == "half":
            client.shutdown(socket.SHUT_WR)
        else:
            client.close()
        assert wait_for(lambda: service.streams[0].cancelled_at) < AT_ONCE
        metrics = server.app.state.fathom.metrics
        wait_for(lambda: b'fathom_requests_ended_total{outcome="cancelled"} 1.0' in metrics.text())
        assert b"fathom_requests_running 0.0" in metrics.text()
        assert b'status="499"} 1.0' in metrics.text()
        assert not server.app.state.fathom.jobs


def test_a_client_that_goes_while_its_prompt_is_scored() -> None:
    service = FakeService()
    service.gate.clear()
    body = json.dumps({"prompt": "hello", "echo": True, "logprobs": 1}).encode()
    with running(service) as server, sent(server.address, body, path="/v1/completions") as client:
        wait_for(lambda: service.scored)
        client.close()
        wait_for(lambda: not server.app.state.fathom.jobs)
        assert not service.streams


def test_a_slow_reader_is_dropped_and_others_are_not_kept_waiting() -> None:
    service = FakeService(delay=0.001, max_length=100_000)
    slow = asked(stream=True, max_tokens=50_000, n=8, logprobs=True, top_logprobs=20)
    patient = running(service, write_seconds=1.0, buffer_bytes=1 << 30)
    with patient as server, sent(server.address, slow, small=True) as client:
        wait_for(lambda: service.streams)
        began = time.monotonic()
        fast = httpx.post(server.url + CHAT, json={"messages": MESSAGES})
        assert fast.status_code == 200 and time.monotonic() - began < 5
        wait_for(lambda: service.streams[0].cancelled_at, 20)
        assert not service.streams[0].ended
        wait_for(lambda: not server.app.state.fathom.jobs, AT_ONCE)
        with contextlib.suppress(ConnectionResetError):  # dropped: the rest of it never comes
            assert b"[DONE]" not in everything(client)
        wait_for(lambda: not server.server.server_state.connections, AT_ONCE)


def test_what_waits_for_a_slow_reader_is_bounded() -> None:
    service = FakeService(delay=0.0, max_length=100_000)
    slow = asked(stream=True, max_tokens=50_000, n=8, logprobs=True, top_logprobs=20)
    with running(service, write_seconds=60.0, buffer_bytes=100_000) as server:
        client = sent(server.address, slow, small=True)
        wait_for(lambda: service.streams and service.streams[0].cancelled_at, 20)
        wait_for(lambda: not server.app.state.fathom.jobs, AT_ONCE)
        client.close()


def test_a_reader_who_takes_its_time_gets_everything() -> None:
    service = FakeService(max_length=100_000)
    body = asked(stream=True, max_tokens=3000, logprobs=True, top_logprobs=5)
    with running(service, buffer_bytes=8 << 20) as server:
        client = sent(server.address, body, small=True, head=f"Content-Length: {len(body)}\r\nConnection: close\r\n")
        data = b""
        while part := client.recv(8192):
            data += part
            time.sleep(0.002)
        assert data.count(b'"token":') == 3000 * 6 and b"data: [DONE]" in data
        assert service.streams[0].ended


def test_a_stream_without_news_says_so() -> None:
    service = FakeService()
    service.gate.clear()
    with running(service, quiet_seconds=0.05) as server, sent(server.address, asked(stream=True)) as client:
        data = b""
        while data.count(b": still here\n\n") < 3:
            data += client.recv(4096)


def test_a_body_past_the_limit_is_refused_while_it_comes() -> None:
    limit = 10_000_000
    with running() as server:
        exactly = json.dumps({"messages": MESSAGES}).encode().ljust(limit)
        fine = httpx.post(server.url + CHAT, content=exactly, headers={"Content-Type": "application/json"})
        assert fine.status_code == 200
        over = httpx.post(server.url + CHAT, content=exactly + b" ", headers={"Content-Type": "application/json"})
        assert over.status_code == 413 and over.json()["error"]["code"] == "body_too_large"
        with sent(server.address, b"", "Content-Length: 99999999999\r\nExpect: 100-continue\r\n") as client:
            assert client.recv(4096).startswith(b"HTTP/1.1 413 ")  # nothing of it was asked for
        with sent(server.address, b"", "Transfer-Encoding: chunked\r\n") as client:
            client.settimeout(0.01)
            answer = b""
            for _ in range(200):  # 20 MB, of which the server keeps at most half
                with contextlib.suppress(TimeoutError, BrokenPipeError, ConnectionResetError):
                    client.sendall(b"186a0\r\n" + b" " * 100_000 + b"\r\n")
                with contextlib.suppress(TimeoutError):
                    answer += client.recv(4096)
                if answer:
                    break
            assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_body_that_stops_coming() -> None:
    with running(read_seconds=0.2) as server, sent(server.address, b"{", "Content-Length: 100\r\n") as client:
        answer = everything(client)
        assert answer.startswith(b"HTTP/1.1 400 ") and b"body_timeout" in answer


def test_what_is_not_http() -> None:
    with running() as server, socket.create_connection(server.address) as client:
        client.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        head, _, body = everything(client).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ") and json.loads(body)["error"]["code"] == "invalid_http"


def test_one_connection_serves_many_requests_and_refusals() -> None:
    with running() as server, httpx.Client(base_url=server.url) as client:
        for _ in range(3):
            assert client.post(CHAT, json={"messages": MESSAGES}).status_code == 200
            assert client.post(CHAT, json={"messages": MESSAGES, "n": 0}).status_code == 400
            assert client.post(CHAT, json={"messages": MESSAGES, "stream": True}).text.endswith("[DONE]\n\n")
        assert len(server.server.server_state.connections) == 1


SERVER = """
import asyncio, sys
sys.path.insert(0, {here!r})
from fake import FakeService, settings
from fathom.engine.server.run import listen, serve_on
import logging
logging.basicConfig(level="INFO", stream=sys.stderr)
made = []
def make():
    made.append(FakeService(delay={delay}, max_length=5000))
    return made[0]
try:
    serve_on(listen("127.0.0.1", 0), make, settings(drain_seconds={drain}), lambda line: print(line, flush=True))
finally:
    assert made[0].closed
print("ended", flush=True)
"""


@contextlib.contextmanager
def process(delay: float, drain: float) -> Iterator[tuple[subprocess.Popen[str], str]]:
    code = SERVER.format(here=str(Path(__file__).parent), delay=delay, drain=drain)
    made = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        assert made.stdout is not None
        line = made.stdout.readline()
        yield made, line.split(" at ")[1].split(": chat")[0]
    finally:
        made.kill()
        made.communicate()


def test_sigterm_lets_what_runs_finish() -> None:
    with process(delay=0.02, drain=30) as (server, url), httpx.Client(base_url=url, timeout=30) as client:
        body = LONG | {"stream": True, "max_tokens": 60}
        with client.stream("POST", CHAT, json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.send_signal(signal.SIGTERM)
            wait_for(lambda: httpx.get(url + "/health").status_code == 503)
            refused = httpx.post(url + CHAT, json={"messages": MESSAGES})
            assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
            assert "data: [DONE]" in list(lines)
        out, log = server.communicate(timeout=20)
        assert server.returncode == 0 and out == "ended\n", log
        assert "SIGTERM: nothing new is taken; 1 running" in log and "finish=length" in log
        assert "Traceback" not in log, log


def test_what_does_not_finish_in_time_is_told_so() -> None:
    with process(delay=0.05, drain=0.5) as (server, url), httpx.Client(base_url=url, timeout=30) as client:
        with client.stream("POST", CHAT, json=LONG | {"stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert json.loads(rest[-1].removeprefix("data: "))["error"]["type"] == "service_unavailable_error"
        _, log = server.communicate(timeout=20)
        assert server.returncode == 0 and "1 running requests are cut" in log, log
        assert "cut at the end" in log and "Traceback" not in log, log


def test_a_second_signal_stops_at_once() -> None:
    with process(delay=0.05, drain=60) as (server, url), httpx.Client(base_url=url, timeout=30) as client:
        with pytest.raises(httpx.RemoteProtocolError), client.stream("POST", CHAT, json=LONG | {
                "stream": True, "max_tokens": 4000}) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.send_signal(signal.SIGINT)
            wait_for(lambda: httpx.get(url + "/health").status_code == 503)
            began = time.monotonic()
            server.send_signal(signal.SIGINT)
            list(lines)
        server.communicate(timeout=20)
        assert time.monotonic() - began < 3 and server.returncode != 0


def test_many_streams_leave_nothing_behind() -> None:
    import asyncio

    service = FakeService(delay=0.005)

    async def one(client: httpx.AsyncClient, i: int) -> bool:
        async with client.stream("POST", CHAT, json=LONG | {"stream": True, "max_tokens": 30}) as answer:
            seen, line = 0, ""
            async for told in answer.aiter_lines():
                seen, line = seen + 1, told or line
                if i % 3 == 0 and seen > i % 25:
                    return False
            return line == "data: [DONE]"

    async def all_of_them(url: str) -> list[bool]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:
            return await asyncio.gather(*(one(client, i) for i in range(100)))

    with running(service) as server:
        whole = asyncio.run(all_of_them(server.url))
        assert [i for i, done in enumerate(whole) if not done] == list(range(0, 100, 3))
        wait_for(lambda: not server.app.state.fathom.jobs)
        metrics = server.app.state.fathom.metrics.text().decode()
        assert "fathom_requests_started_total 100.0" in metrics and "fathom_requests_running 0.0" in metrics
        assert 'outcome="failed"} 0.0' in metrics
        assert service.stats()["running"] == 0


def test_importing_loads_neither_tensors_nor_web() -> None:
    code = ("import sys, fathom.engine.server;"
            "loaded = {'torch', 'fastapi', 'uvicorn', 'tokenizers'} & set(sys.modules);"
            "assert not loaded, loaded; import fathom.engine.server.app, fathom.engine.server.wire;"
            "assert 'torch' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_port_is_taken() -> None:
    from fathom.core.errors import UsageError
    from fathom.engine.server.run import listen

    with listen("127.0.0.1", 0) as first, pytest.raises(UsageError, match="another program may have the port"):
        listen("127.0.0.1", first.getsockname()[1])
    assert tokenizer()  # what the fakes share


def test_a_peer_that_never_says_what_it_wants_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "HEAD_SECONDS", 0.3)
    with running(FakeService(delay=0.05)) as server:
        with socket.create_connection(server.address) as silent, socket.create_connection(server.address) as half:
            half.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n")
            assert everything(silent) == everything(half) == b""
        with sent(server.address, asked(stream=True)) as client:  # an answer may take longer than that
            data = b""
            while b"0\r\n\r\n" not in data:
                data += client.recv(4096)
            assert b"[DONE]" in data
            client.sendall(b"GET /health HTT")  # half of a second request
            assert everything(client) == b""
        wait_for(lambda: not server.server.server_state.connections)


def test_more_token_ids_than_any_prompts_have_are_not_read() -> None:
    many = b'{"prompt":[' + b"7," * 1_000_000 + b"7]}"
    with running(FakeService(max_length=512)) as server:
        answer = httpx.post(server.url + "/v1/completions", content=many, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "context_length_exceeded"
        assert "1000000 commas" in answer.json()["error"]["message"]
        text = json.dumps({"prompt": [[7] * 511] * 256, "max_tokens": 1, "n": 1}).encode()  # the most that fits
        fine = httpx.post(server.url + "/v1/completions", content=text, headers={"Content-Type": "application/json"})
        assert fine.status_code == 200, fine.text

"""An OpenAI-compatible endpoint in a thread: it counts what it is asked, and fails on command; what tests ask it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self

from fathom.core.chat import Completion, Message
from fathom.core.client import ClientSettings

KEY = "sk-2b7e151628aed2a6abf7"

@dataclass
class Asked:
    """A request as it came in."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    at: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        """What tells the request from others: the same request again has the same name."""
        return json.dumps(self.body, sort_keys=True)


@dataclass
class Status:
    """A reply with this status, headers and body."""

    code: int
    body: bytes | dict[str, Any] = b""
    headers: dict[str, str] = field(default_factory=dict)


class Drop:
    """The connection closes without a word."""


# Writes to the connection itself; what it returns is of no matter.
Wild = Callable[[asyncio.StreamWriter], Awaitable[None]]
Script = Callable[[Asked, int], "dict[str, Any] | Status | Drop | Wild"]


def text(asked: Asked, index: int = 0) -> str:
    """What the endpoint completes: a function of messages, sampling, seed and index."""
    body = {name: value for name, value in asked.body.items() if name not in ("n", "seed")}
    seed = asked.body.get("seed", 0) + index
    return "answer " + hashlib.sha256(f"{json.dumps(body, sort_keys=True)}/{seed}".encode()).hexdigest()[:12]


def reply(asked: Asked, n: int | None = None, **choice: Any) -> dict[str, Any]:
    """A proper reply of `n` choices (as asked); `choice` replaces fields of every choice."""
    choices = [
        {"index": i, "message": {"role": "assistant", "content": text(asked, i)}, "finish_reason": "stop", **choice}
        for i in range(asked.body.get("n", 1) if n is None else n)
    ]
    return {"id": "x", "object": "chat.completion", "model": asked.body["model"], "choices": choices,
            "usage": {"prompt_tokens": 10, "completion_tokens": 5 * len(choices), "total_tokens": 15}}


class FakeEndpoint:
    """Serves while the context lasts. `script(asked, number)` says what request `number` (from 0) gets."""

    def __init__(self, script: Script | None = None, delay: float = 0.0) -> None:
        self.script: Script = script or (lambda asked, number: reply(asked))
        self.delay = delay
        self.asked: list[Asked] = []
        self.answered = 0
        self.flying = self.most_flying = 0

    @property
    def url(self) -> str:
        """The base address."""
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        begun = threading.Event()

        async def serve() -> None:
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 26)
            self.port = server.sockets[0].getsockname()[1]
            self._end = asyncio.Event()
            begun.set()
            await self._end.wait()
            server.close()
            open_connections = asyncio.all_tasks() - {asyncio.current_task()}
            for task in open_connections:
                task.cancel()
            await asyncio.gather(*open_connections, return_exceptions=True)
            await asyncio.sleep(0.01)  # for the loop to close their sockets

        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(serve()), name="endpoint")
        self._thread.start()
        assert begun.wait(10)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._one(reader, writer):
                pass
        writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:]) if name}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        asked = Asked(head[0].split()[1], headers, json.loads(body))
        number = len(self.asked)
        self.asked.append(asked)
        self.flying += 1
        self.most_flying = max(self.most_flying, self.flying)
        try:
            await asyncio.sleep(self.delay)
            answer = self.script(asked, number)
            if isinstance(answer, Drop):
                return False
            if isinstance(answer, dict):
                answer = Status(200, answer)
            if not isinstance(answer, Status):
                await answer(writer)
                return False
            data = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            told = {"content-type": "application/json", "content-length": str(len(data)), **answer.headers}
            lines = [f"HTTP/1.1 {answer.code} x", *(f"{name}: {value}" for name, value in told.items()), "", ""]
            writer.write("\r\n".join(lines).encode() + data)
            await writer.drain()
            self.answered += 1
            return True
        finally:
            self.flying -= 1


def settings(at: FakeEndpoint, **values: Any) -> ClientSettings:
    """Settings for the endpoint that make no test wait."""
    return ClientSettings(**{"url": at.url, "model": "m", "backoff_s": 0.01, "timeout_s": 10.0, **values})


def prompts(count: int) -> list[list[Message]]:
    return [[Message("system", "Add."), Message("user", f"{i} + {i}")] for i in range(count)]


def texts(answers: list[list[Completion]]) -> list[list[str]]:
    return [[completion.text for completion in row] for row in answers]


def once(answer: Any) -> Any:
    """A script that fails the first request and answers the others."""
    return lambda asked, number: answer if number == 0 else reply(asked)

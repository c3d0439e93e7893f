"""A service without an engine: it writes what a script says, as slowly as asked, and remembers who gave up."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import functools
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fathom.core.chat import Sampling
from fathom.core.errors import UsageError
from fathom.engine.server.app import make_app
from fathom.engine.server.backend import Busy, Draining, EngineFailed, Top
from fathom.engine.server.run import listen
from fathom.engine.server.settings import ServerSettings
from fathom.engine.server.tokens import TokenTexts
from fathom.engine.server.wire import Server, config
from fathom.model.tokenizer import Tokenizer

TEXT = "The answer is 42, naïve café 日本."
CORPUS = ["hello world, what is 2+3? The answer is 42.", "naïve café", TEXT, "<think>\nyes\n</think>\n\nno"]


@functools.cache
def tokenizer(template: str = "qwen3") -> Tokenizer:
    """A small vocabulary with a family's template; 日 and 本 are several tokens each."""
    return Tokenizer.train(CORPUS[:2] * 5, 400, template)


@dataclass(frozen=True)
class Piece:
    index: int
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    top: tuple[Top, ...]
    finish: Literal["stop", "length"] | None
    version: int = 3
    cached: int = 0


class FakeStream:
    """Pieces of one token each, all n completions in step."""

    def __init__(self, service: FakeService, prompt: Sequence[int], sampling: Sampling, n: int):
        self.service, self.prompt, self.sampling, self.n = service, tuple(prompt), sampling, n
        self.cancelled_at: float | None = None
        self.ended = False

    def cancel(self) -> None:
        if self.cancelled_at is None:
            self.cancelled_at = time.monotonic()

    async def __aiter__(self) -> AsyncIterator[list[Piece]]:
        service = self.service
        await service.gate.wait()
        runs = [service.pieces(self.prompt, self.sampling, i) for i in range(self.n)]
        for step in itertools.count():
            await asyncio.sleep(service.delay)
            if self.cancelled_at is not None:
                return
            if service.fail_at == step:
                raise EngineFailed("a matrix was not square")
            pieces = [piece for run in runs if (piece := next(run, None)) is not None]
            if not pieces:
                break
            yield pieces
        self.ended = True


class FakeService:
    """What `fathom.engine.service.Service` promises, scripted."""

    def __init__(
        self, tokens: Tokenizer | None = None, script: Callable[[int], str] | str = TEXT, delay: float = 0.0,
        max_length: int = 512, busy: bool = False, fail_at: int | None = None,
    ):
        self.tokenizer, self.max_length = tokens or tokenizer(), max_length
        self.script = script if callable(script) else lambda i: script
        self.delay, self.busy, self.fail_at = delay, busy, fail_at
        self.streams: list[FakeStream] = []
        self.draining = False
        self.texts = TokenTexts(self.tokenizer)
        self.gate = asyncio.Event()
        self.gate.set()
        self.scored = 0

    def submit(self, prompt: Sequence[int], sampling: Sampling, n: int = 1) -> FakeStream:
        if self.draining:
            raise Draining("the engine is draining")
        if self.busy:
            raise Busy("1024 requests wait, the most that may; ask again later", 2.5)
        if len(prompt) + sampling.max_tokens > self.max_length:
            raise UsageError(f"prompt of {len(prompt)} and max_tokens={sampling.max_tokens}: too long")
        self.streams.append(FakeStream(self, prompt, sampling, n))
        return self.streams[-1]

    def pieces(self, prompt: Sequence[int], sampling: Sampling, index: int) -> Iterator[Piece]:
        ids = [*self.tokenizer.encode(self.script(index)), self.tokenizer.eos_id]
        finish: Literal["stop", "length"] = "stop" if len(ids) <= sampling.max_tokens else "length"
        if sampling.ignore_stop:
            ids, finish = [ids[k % (len(ids) - 1)] for k in range(sampling.max_tokens)], "length"
        ids = ids[: sampling.max_tokens]
        decoder = codecs.getincrementaldecoder("utf-8")()
        held, longest = "", max((len(stop) for stop in sampling.stop), default=0)
        for k, token in enumerate(ids):
            last = k == len(ids) - 1
            held += decoder.decode(self.texts.shown(token))
            if last and decoder.getstate()[0]:
                held += "�"
            cut = next((held.index(stop) for stop in sampling.stop if stop in held), None)
            if cut is not None:
                held, last, finish = held[:cut], True, "stop"
            safe = len(held) if last else max(0, len(held) - longest)
            new, held = held[:safe], held[safe:]
            yield Piece(index, new, (token,), (logprob(k),), (self.rivals(token, logprob(k), sampling.logprobs),),
                        finish if last else None, cached=len(prompt) // 2)
            if last:
                return

    def rivals(self, token: int, value: float, count: int) -> Top:
        others = [(token + i) % self.tokenizer.vocab_size for i in range(count)]
        return tuple((other, value - i if i < 2 else float("-inf")) for i, other in enumerate(others))

    async def score(
        self, prompt: Sequence[int], top: int
    ) -> tuple[Sequence[float | None], Sequence[Top | None]]:
        self.scored += 1
        await self.gate.wait()
        values = [logprob(k) for k in range(len(prompt))]
        tops = [self.rivals(token, value, top) for token, value in zip(prompt, values, strict=True)]
        return (None, *values[1:]), (None, *tops[1:])

    async def take(self, model: Path, version: int) -> None:
        self.taken = model, version

    def stats(self) -> dict[str, float]:
        running = sum(not s.ended and s.cancelled_at is None for s in self.streams)
        return {"running": running, "waiting": 0, "blocks_used": running, "blocks_total": 64, "version": 3,
                "prompt_tokens_total": 5, "completion_tokens_total": 7, "cached_tokens_total": 2,
                "preemptions_total": 0, "failures_total": 0, "drafted_total": 0, "accepted_total": 0}

    async def drain(self) -> None:
        self.draining = True
        while self.stats()["running"]:
            await asyncio.sleep(0.01)

    def close(self) -> None:
        self.closed = True


def logprob(k: int) -> float:
    return -(k % 7 + 1) / 8


def settings(**more: Any) -> ServerSettings:
    return ServerSettings(name="fake", **more)


class Running:
    """A server on a free port, in a thread."""

    def __init__(self, service: FakeService, cfg: ServerSettings):
        self.service = service
        self.app = make_app(service, cfg)
        self.server = Server(config(self.app))
        self.listener = listen("127.0.0.1", 0)
        self.address = self.listener.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        wait_for(lambda: self.server.started)

    def _run(self) -> None:
        asyncio.run(self.server.serve(sockets=[self.listener]))

    def stop(self) -> None:
        self.server.end(at_once=True)
        self._thread.join(20)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def running(service: FakeService | None = None, **more: Any) -> Iterator[Running]:
    """A server while the block runs."""
    made = Running(service or FakeService(), settings(**more))
    try:
        yield made
    finally:
        made.stop()


def wait_for(what: Callable[[], Any], seconds: float = 10.0) -> float:
    """Waits until `what()` holds and says how long that took."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < seconds, "it did not come"
        time.sleep(0.002)
    return time.monotonic() - began

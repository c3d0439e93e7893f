"""Service: an engine in a thread of its own, for callers that live in an event loop."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from fathom.core.chat import Completion, Sampling
from fathom.core.config import differences, plain
from fathom.core.errors import FathomError, UsageError
from fathom.engine.engine import Engine
from fathom.engine.request import Request
from fathom.engine.server.backend import Busy, Draining, EngineFailed, Top
from fathom.engine.settings import EngineSettings
from fathom.model import weights
from fathom.model.cost import cost
from fathom.model.device import place

log = logging.getLogger(__name__)
RATE_OVER_S = 30.0  # what was finished in so many last seconds tells how long the queue is


@dataclass(frozen=True)
class Piece:
    """What one step brought one of a request's completions."""

    index: int  # which of the n
    text: str  # new text that is certain: no part of a stop string, no broken character; may be empty
    tokens: tuple[int, ...]  # usually one; several where guesses were right
    logprobs: tuple[float, ...]
    top: tuple[Top, ...]  # as in Completion
    finish: Literal["stop", "length"] | None  # on its last piece
    version: int
    cached: int  # of the prompt's tokens, those that need not be computed


class Stream:
    """`async for pieces in stream`: a list of Piece at a time, until all completions are finished.

    Raises EngineFailed where the engine broke. Belongs to the event loop in which it was made.
    """

    def __init__(self, service: Service, requests: Sequence[Request]):
        self.requests = requests
        self.open = len(requests)
        self.loop = asyncio.get_running_loop()
        self.queue: asyncio.Queue[list[Piece] | FathomError] = asyncio.Queue()
        self._service = service
        self._over = False

    def __aiter__(self) -> AsyncIterator[list[Piece]]:
        return self

    async def __anext__(self) -> list[Piece]:
        if self._over:
            raise StopAsyncIteration
        got = await self.queue.get()
        if isinstance(got, FathomError):
            self._over = True
            raise got
        self.open -= sum(piece.finish is not None for piece in got)
        self._over = not self.open
        return got

    def cancel(self) -> None:
        """Nothing more is computed; its blocks are free before the next step. From any thread, any number of times."""
        self._service._put(_Cancel(self))


@dataclass(frozen=True)
class _Submit:
    stream: Stream


@dataclass(frozen=True)
class _Cancel:
    stream: Stream


@dataclass(frozen=True)
class _Call:
    run: Callable[[], Any]
    tell: Callable[[Any, BaseException | None], None]


@dataclass(frozen=True)
class _Score:
    prompt: Sequence[int]
    top: int
    tell: Callable[[Any, BaseException | None], None]


@dataclass
class _Totals:
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    failures: int = 0
    finished: deque[float] = field(default_factory=deque)  # when, lately


class Service:
    """Takes requests from event loops, and steps the engine in its own thread as long as there are any."""

    def __init__(self, engine: Engine, *, waiting: int = 1024):
        """`waiting`: completions that may wait to be begun; more are turned away."""
        self.engine, self.most_waiting = engine, waiting
        self.tokenizer, self.max_length = engine.tokenizer, engine.longest
        self._inbox: deque[_Submit | _Cancel | _Call | _Score] = deque()
        self._wake = threading.Condition()
        self._owner: dict[Request, Stream] = {}
        self._told: dict[Request, tuple[int, int]] = {}  # tokens and parts of text that were handed on
        self._totals = _Totals()
        self._submitted = 0  # completions in the inbox
        self._draining = self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, prompt: Sequence[int], sampling: Sampling, n: int = 1) -> Stream:
        """The `n` completions of a prompt, as they come.

        UsageError where it can never be done, Busy where too many wait, Draining where no more is taken.
        """
        if self._draining or self._closed:
            raise Draining("the server is shutting down; ask another one")
        waiting = len(self.engine.scheduler.waiting) + self._submitted
        if waiting + n > self.most_waiting:
            after = self._retry_after(waiting)
            raise Busy(
                f"{waiting} completions wait already, {self.most_waiting} may; try again in {after:.0f} s", after)
        stream = Stream(self, self.engine.prepare(prompt, sampling, n, streamed=True))
        self._submitted += n
        self._put(_Submit(stream))
        return stream

    async def score(
        self, prompt: Sequence[int], top: int
    ) -> tuple[Sequence[float | None], Sequence[Top | None]]:
        """How likely a prompt's own tokens are, each after those before it, and their `top` likeliest rivals; None for
        the first. Prompts that wait together are computed together."""
        future, tell = _future()
        self._put(_Score(prompt, top, tell))
        scored = await future
        rivals = scored.top or ((),) * len(scored.tokens)
        return (None, *scored.logprobs[1:]), (None, *rivals[1:])

    async def update(self, version: int, tensors: Mapping[str, Tensor] | None = None) -> None:
        """New weights between two steps, see Engine.update."""
        await self.call(lambda: self.engine.update(version, tensors))

    async def take(self, model: Path, version: int) -> None:
        """New weights from a model directory; FathomError where they are no weights of this model."""
        def load() -> dict[str, Tensor]:
            own = self.engine.model
            if (given := weights.read_config(model)) != own.config:
                changed = "; ".join(differences(plain(own.config), plain(given)))
                raise UsageError(f"{model}: not the model that is served ({changed}); name one of its shape")
            loaded, _ = weights.load(model, own.embed_tokens.weight.dtype, self.engine.device)
            return loaded.state_dict()

        await self.update(version, await asyncio.to_thread(load))

    async def call(self, run: Callable[[], Any]) -> Any:
        """What `run` gives, called in the engine's thread between two steps."""
        future, tell = _future()
        self._put(_Call(run, tell))
        return await future

    def stats(self) -> dict[str, float]:
        """Gauges and totals, for metrics."""
        engine, totals = self.engine, self._totals
        drafter = engine.drafter
        return {
            "running": len(engine.scheduler.running),
            "waiting": len(engine.scheduler.waiting) + self._submitted,
            "blocks_used": engine.blocks.total - engine.blocks.available,
            "blocks_total": engine.blocks.total,
            "prompt_tokens_total": totals.prompt_tokens,
            "completion_tokens_total": totals.completion_tokens,
            "cached_tokens_total": totals.cached_tokens,
            "preemptions_total": engine.scheduler.preemptions,
            "failures_total": totals.failures,
            "drafted_total": drafter.checked if drafter else 0,
            "accepted_total": drafter.accepted if drafter else 0,
            "version": engine.version,
        }

    async def drain(self) -> None:
        """Takes no more; waits until everything under way is finished."""
        self._draining = True
        while self._owner or self._submitted:
            await asyncio.sleep(0.02)

    def close(self) -> None:
        """Stops the thread after the step it is in; what is under way fails."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _put(self, item: _Submit | _Cancel | _Call | _Score) -> None:
        with self._wake:
            self._inbox.append(item)
            self._wake.notify()

    def _retry_after(self, waiting: int) -> float:
        finished = self._totals.finished
        if not finished:
            return 5.0
        rate = len(finished) / max(time.monotonic() - finished[0], 1.0)
        return min(max(waiting / rate, 1.0), 60.0)

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._inbox or self._closed or self.engine.busy):
                    self._wake.wait()
                if self._closed:
                    break
                items, self._inbox = self._inbox, deque()
            try:
                self._serve(items)
                if self.engine.busy:
                    self._hand_on(self.engine.step())
            except Exception as error:
                self._totals.failures += 1
                log.exception("the engine failed")
                self._fail(EngineFailed(f"the engine failed: {type(error).__name__}: {error}"))
                self.engine.reset()
        self._fail(EngineFailed("the server has stopped"))
        for item in self._inbox:
            if isinstance(item, _Call | _Score):
                item.tell(None, EngineFailed("the server has stopped"))

    def _serve(self, items: deque[_Submit | _Cancel | _Call | _Score]) -> None:
        scores: list[_Score] = []
        for item in items:
            if isinstance(item, _Submit):
                self._submitted -= len(item.stream.requests)
                try:
                    self.engine.submit(item.stream.requests)
                except FathomError as error:
                    for request in item.stream.requests:
                        self.engine.abort(request)
                    self._send([(item.stream, error)])
                    continue
                for request in item.stream.requests:
                    self._owner[request] = item.stream
                    self._told[request] = 0, 0
            elif isinstance(item, _Cancel):
                self._drop(item.stream)
            elif isinstance(item, _Score):
                scores.append(item)
            else:
                self._answer(item.run, item.tell)
        while scores:
            some: list[_Score] = []
            size = 0
            while scores and (not some or size + len(scores[0].prompt) <= self.engine.settings.prefill_tokens):
                size += len(scores[0].prompt)
                some.append(scores.pop(0))
            try:
                found = self.engine.score([one.prompt for one in some], max(one.top for one in some))
            except FathomError:  # one of them cannot be scored; which, each says for itself
                for one in some:
                    self._answer(functools.partial(self._score, one), one.tell)
                continue
            for one, scored in zip(some, found, strict=True):
                self._totals.prompt_tokens += len(one.prompt)
                one.tell(scored, None)

    def _score(self, one: _Score) -> Completion:
        return self.engine.score([one.prompt], one.top)[0]

    def _drop(self, stream: Stream) -> None:
        for request in stream.requests:
            if self._owner.pop(request, None) is not None:
                del self._told[request]
                self.engine.abort(request)

    @staticmethod
    def _answer(run: Callable[[], Any], tell: Callable[[Any, BaseException | None], None]) -> None:
        try:
            result = run()
        except Exception as error:
            tell(None, error)
        else:
            tell(result, None)

    def _hand_on(self, requests: Sequence[Request]) -> None:
        pieces: dict[Stream, list[Piece]] = {}
        errors: list[tuple[Stream, list[Piece] | FathomError]] = []
        now = time.monotonic()
        for request in requests:
            stream = self._owner.get(request)
            if stream is None:
                continue
            if request.error is not None:  # with it end the others of the n
                self._drop(stream)
                errors.append((stream, request.error))
                pieces.pop(stream, None)
                continue
            tokens, parts = self._told[request]
            new = slice(tokens, None)
            if not tokens:
                self._totals.prompt_tokens += request.prompt
                self._totals.cached_tokens += request.cached
            self._totals.completion_tokens += request.drawn - tokens
            pieces.setdefault(stream, []).append(Piece(
                request.index, "".join(request.said[parts:]), tuple(request.tokens[request.prompt + tokens:]),
                tuple(request.logprobs[new]), tuple(request.top[new]), request.finish, request.versions[-1],
                request.cached))
            self._told[request] = request.drawn, len(request.said)
            if request.finish is not None:
                del self._owner[request], self._told[request]
                self._totals.finished.append(now)
        while self._totals.finished and self._totals.finished[0] < now - RATE_OVER_S:
            self._totals.finished.popleft()
        self._send([*pieces.items(), *errors])

    def _fail(self, error: FathomError) -> None:
        streams = dict.fromkeys(self._owner.values())
        self._owner.clear()
        self._told.clear()
        self._send([(stream, error) for stream in streams])

    @staticmethod
    def _send(news: Sequence[tuple[Stream, list[Piece] | FathomError]]) -> None:
        """One call into each event loop for all of its streams."""
        loops: dict[asyncio.AbstractEventLoop, list[tuple[Stream, list[Piece] | FathomError]]] = {}
        for stream, what in news:
            loops.setdefault(stream.loop, []).append((stream, what))
        for loop, some in loops.items():
            if not loop.is_closed():
                loop.call_soon_threadsafe(_deliver, some)


def start(model: Path, settings: EngineSettings, device: str, dtype: str, waiting: int = 1024) -> Service:
    """A service of the model in a directory or file; UsageError where it cannot be had."""
    where, kind = place(device, dtype, cost(weights.read_config(model)).parameters)
    loaded, tokenizer = weights.load(model, kind, where)
    engine = Engine(loaded, tokenizer, settings)
    log.info("%s on %s; a prompt with its completion has at most %d tokens", str(kind).removeprefix("torch."), where,
             engine.longest)
    if engine.longest < loaded.config.max_position_embeddings:
        log.warning("the model was made for %d tokens, the cache holds %d: cache_gb sets the limit",
                    loaded.config.max_position_embeddings, engine.longest)
    return Service(engine, waiting=waiting)


def _deliver(news: Sequence[tuple[Stream, list[Piece] | FathomError]]) -> None:
    for stream, what in news:
        stream.queue.put_nowait(what)


def _future() -> tuple[asyncio.Future[Any], Callable[[Any, BaseException | None], None]]:
    """A future of the running loop, and how another thread sets it."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if future.done():  # its waiter was cancelled
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def tell(result: Any, error: BaseException | None) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    return future, tell

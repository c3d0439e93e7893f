"""Bringing answers to clients that may be slow or gone: whole ones, and streams of events."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Literal, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fathom.engine.server.backend import Stream

T = TypeVar("T")
Why = Literal["gone", "slow", "cut"]


class Stopped(Exception):
    """A request ended before its answer did."""

    def __init__(self, why: Why):
        super().__init__(why)
        self.why = why


class Job:
    """One request's streams in the engine. `stop` ends them all at once and says why; `why` is None while it runs."""

    def __init__(self) -> None:
        self.streams: list[Stream] = []
        self.why: Why | None = None
        self.failed = False  # the engine broke
        self.stopped = asyncio.Event()

    def stop(self, why: Why) -> None:
        """Ends the request before its answer is whole; the first reason stays."""
        if self.why is None:
            self.why = why
        self.cancel()
        self.stopped.set()

    def cancel(self) -> None:
        """Frees what the engine holds; harmless for streams that have ended."""
        for stream in self.streams:
            stream.cancel()


async def _watch(receive: Receive, job: Job) -> None:
    """Stops `job` when the client goes."""
    while (await receive())["type"] != "http.disconnect":
        pass
    job.stop("gone")


@contextlib.asynccontextmanager
async def watched(job: Job, receive: Receive, work: Coroutine[Any, Any, T]) -> AsyncIterator[asyncio.Task[T]]:
    """`work` as a task beside one that notices the client's going; at the end both are over and the engine is free."""
    tasks: list[asyncio.Task[Any]] = [asyncio.create_task(work), asyncio.create_task(_watch(receive, job))]
    try:
        yield tasks[0]
    finally:
        job.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.exception()  # whoever awaited `work` has its error; nobody is to hear that it was never read


async def whole(job: Job, receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; raises Stopped as soon as the job is stopped."""
    async with watched(job, receive, work) as task:
        stopped = asyncio.create_task(job.stopped.wait())
        try:
            await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
        if task.done():
            return task.result()
        raise Stopped(job.why or "cut")


class Outbox:
    """Events on their way to one client; `overflow` is called when more than `limit` bytes of them wait."""

    def __init__(self, limit: int, overflow: Callable[[], None]):
        self._limit, self._overflow, self._size, self._closed = limit, overflow, 0, False
        self._events: list[bytes] = []
        self._news = asyncio.Event()

    def put(self, event: bytes) -> None:
        """Adds an event."""
        self._events.append(event)
        self._size += len(event)
        self._news.set()
        if self._size > self._limit:
            self._overflow()

    def close(self) -> None:
        """No more comes."""
        self._closed = True
        self._news.set()

    async def take(self, seconds: float) -> bytes | None:
        """What waits; nothing if nothing came for so long; None after the last of it."""
        if not self._events and not self._closed:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._news.wait()
        self._news.clear()
        if not self._events:
            return None if self._closed else b""
        events, self._events, self._size = self._events, [], 0
        return b"".join(events)


class Events(Response):
    """A stream of server-sent events, written by `produce` into an outbox and read from there as the client can.

    A client that has gone, that lets more than `buffer_bytes` wait or that reads nothing for `write_seconds` stops its
    job at once. A stream without news sends a comment every `quiet_seconds`, so that a connection which is no more is
    noticed.
    """

    media_type = "text/event-stream"

    def __init__(
        self, job: Job, produce: Callable[[Outbox], Coroutine[Any, Any, None]], cut: bytes,
        buffer_bytes: int, write_seconds: float, quiet_seconds: float,
    ):
        """`cut`: the last words to a client whose stream the server ends."""
        self.status_code, self.background = 200, None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._job, self._produce, self._cut, self._buffer_bytes = job, produce, cut, buffer_bytes
        self._write_seconds, self._quiet_seconds = write_seconds, quiet_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        job = self._job

        def drop() -> None:
            job.stop("slow")
            abort = scope.get("state", {}).get("abort")
            if abort is not None:  # closing would wait for a reader who does not read
                abort()

        outbox = Outbox(self._buffer_bytes, drop)
        async with watched(job, receive, self._work(outbox)) as task:
            waker = asyncio.create_task(job.stopped.wait())
            waker.add_done_callback(lambda _: outbox.close())
            try:
                start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                await self._send(send, start, drop)
                while job.why is None and (data := await outbox.take(self._quiet_seconds)) is not None:
                    await self._send(send, _body(data or b": still here\n\n", True), drop)
            finally:
                waker.cancel()
            if job.why is None:
                await task  # raises what went wrong
        if job.why not in ("gone", "slow"):
            await self._send(send, _body(self._cut if job.why == "cut" else b"", False), drop)

    async def _work(self, outbox: Outbox) -> None:
        try:
            await self._produce(outbox)
        finally:
            outbox.close()

    async def _send(self, send: Send, message: dict[str, Any], drop: Callable[[], None]) -> None:
        try:
            async with asyncio.timeout(self._write_seconds):
                await send(message)
        except TimeoutError:
            drop()


def _body(data: bytes, more: bool) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}

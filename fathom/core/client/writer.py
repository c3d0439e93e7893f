"""Writer: answers on their way into the journal, many in one transaction, beside the event loop."""

from __future__ import annotations

import asyncio
from typing import Any

from fathom.core.journal import Journal


class Writer:
    """Puts answers into the journal in a thread, all that wait at a time in one transaction."""

    def __init__(self, journal: Journal | None, lengths: str) -> None:
        self._journal, self._lengths = journal, lengths
        self._waiting: list[tuple[dict[str, Any], int, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    async def put(self, entries: dict[str, Any], tokens: int) -> None:
        """Returns when the entries are on the disk. Cancelled, it leaves them to `close`."""
        if self._journal is None:
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((entries, tokens, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain(self._journal))
        await future

    async def close(self) -> None:
        """Waits until everything that was put is on the disk."""
        try:
            if self._task is not None:
                await asyncio.shield(self._task)
        finally:
            # A second Ctrl-C cancels every task, this one before it came to what waits.
            if self._journal is not None and self._waiting:
                batch, self._waiting = self._waiting, []
                self._write(self._journal, batch)

    async def _drain(self, journal: Journal) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            error: BaseException | None = None
            try:
                await asyncio.to_thread(self._write, journal, batch)
            except asyncio.CancelledError:
                self._waiting = batch + self._waiting  # for `close`; writing an answer twice does no harm
                raise
            except Exception as failure:  # whoever put is told
                error = failure
            for _, _, future in batch:
                if not future.done():
                    if error is None:
                        future.set_result(None)
                    else:
                        future.set_exception(error)

    def _write(self, journal: Journal, batch: list[tuple[dict[str, Any], int, asyncio.Future[None]]]) -> None:
        values: dict[str, Any] = {}
        # Another process may count at the same moment, and one of the two be lost: it is a mean, for a forecast.
        before = journal.get(self._lengths) or {"answers": 0, "tokens": 0}
        answers, tokens = before["answers"], before["tokens"]
        for entries, took, _ in batch:
            values |= entries
            answers, tokens = answers + len(entries), tokens + took
        journal.put_many({**values, self._lengths: {"answers": answers, "tokens": tokens}})

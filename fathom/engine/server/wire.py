"""The HTTP server under the application: uvicorn, with what it leaves open about sockets, errors and signals."""

from __future__ import annotations

import contextlib
import json
import socket
from asyncio import TimerHandle, Transport
from collections.abc import Generator
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from fathom.engine.server.errors import ApiError

# A peer that is no more is noticed after IDLE + PROBES × PAUSE seconds, or after UNREAD_MS with bytes under way.
IDLE, PAUSE, PROBES, UNREAD_MS = 15, 5, 3, 30_000
HEAD_SECONDS = 30  # from a connection's beginning, or a further request's, until the request's head must be there
FLUSH_SECONDS = 5  # for the last bytes of answers to reach slow readers at the end


class Protocol(H11Protocol):
    """HTTP/1.1 on one connection. The application finds `abort` in a request's state, which drops the connection."""

    _head_timer: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "abort": transport.abort}
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in (socket.AF_INET, socket.AF_INET6):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in (("TCP_KEEPIDLE", IDLE), ("TCP_KEEPINTVL", PAUSE), ("TCP_KEEPCNT", PROBES),
                                ("TCP_USER_TIMEOUT", UNREAD_MS)):
                if hasattr(socket, name):  # macOS has some of them
                    raw.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._end_without_head)

    def data_received(self, data: bytes) -> None:
        """Bytes came. A peer that stops in the middle of a head holds its connection for a while only."""
        super().data_received(data)
        if self._serving:
            self._stop_head_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._end_without_head)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is no more."""
        self._stop_head_timer()
        super().connection_lost(exc)

    @property
    def _serving(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end_without_head(self) -> None:
        self._head_timer = None
        if not self._serving:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Says in the form of every other error that what came is not HTTP."""
        body = json.dumps(ApiError(400, f"{msg} Send HTTP/1.1", code="invalid_http").body()).encode()
        head = ("HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
                f"content-length: {len(body)}\r\n\r\n")
        self.transport.write(head.encode() + body)  # past h11, which after such a request may be in any state
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn's server, which is told from outside when to end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leaves signals alone: `run.Ending` hears them."""
        yield

    def end(self, at_once: bool) -> None:
        """Ends `serve`: what was answered is written out first, unless `at_once`."""
        if at_once:
            for connection in list(self.server_state.connections):
                connection.transport.abort()
        self.should_exit, self.force_exit = True, at_once


def config(app: FastAPI, **more: Any) -> uvicorn.Config:
    """How uvicorn runs the application."""
    return uvicorn.Config(app, http=Protocol, ws="none", lifespan="off", access_log=False, log_config=None,
                          log_level="warning", server_header=False, timeout_keep_alive=30, backlog=2048,
                          timeout_graceful_shutdown=FLUSH_SECONDS, **more)

"""`fathom serve`: a model behind a port, until a signal ends it politely.

Importing this loads neither a tensor library nor a web framework.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fathom.core import console
from fathom.core.config import build
from fathom.core.errors import UsageError
from fathom.engine.server.settings import ServerSettings
from fathom.engine.settings import EngineSettings
from fathom.model.pretrained import called

if TYPE_CHECKING:
    from fathom.engine.server.backend import Service

KEY = "FATHOM_API_KEY"
LAST_SECONDS = 2.0  # for answers that were cut to reach their clients


def serve(
    model: Path, engine: EngineSettings, *, name: str | None = None, host: str = "127.0.0.1", port: int = 8000,
    api_key: str | None = None, allow_origin: Sequence[str] = (), drain_seconds: float = 30.0,
    device: str = "auto", dtype: str = "auto", waiting: int = 1024, updates: Path | None = None,
    say: Callable[[str], object] = print,
) -> None:
    """Serves a model directory, a GGUF file or a packaged model until SIGTERM or Ctrl-C; `say` is told where.

    The key is `api_key`, or the environment's FATHOM_API_KEY. After the first signal nothing new is taken, and what
    runs may finish within `drain_seconds`; a second one raises KeyboardInterrupt at once. New weights are taken from
    directories below `updates`.
    """
    missing = [module for module in ("fastapi", "uvicorn", "prometheus_client") if not importlib.util.find_spec(module)]
    if missing:
        raise UsageError(f"serve: {', '.join(missing)} not installed; pip install 'fathom-reasoning[serve]'")
    settings = build(ServerSettings, {
        "name": name or called(model), "host": host, "port": port, "api_key": api_key or os.environ.get(KEY) or None,
        "allow_origin": tuple(allow_origin), "drain_seconds": drain_seconds, "updates": updates}, "serve")
    _log_to_terminal()
    with contextlib.closing(listen(host, port)) as listener:  # before minutes go into loading: is the port free?
        def made() -> Service:
            from fathom.engine.service import start

            return start(model, engine, device, dtype, waiting)

        serve_on(listener, made, settings, say)


def serve_on(
    listener: socket.socket, make: Callable[[], Service], settings: ServerSettings, say: Callable[[str], object]
) -> None:
    """Serves the engine that `make` makes on a listening socket until a signal ends it."""
    from fathom.engine.server.gate import log

    host, port = listener.getsockname()[:2]
    if settings.api_key is None and not _is_loopback(host):
        log.warning("host=%s: whoever reaches this machine may ask the model; set --api-key or %s, or listen at "
                    "127.0.0.1", settings.host, KEY)
    log.info("loading %s; who asks port %d meanwhile is answered after that", settings.name, port)
    service = make()
    try:
        say(f"{settings.name} at http://{f'[{host}]' if ':' in host else host}:{port}: chat page at /, OpenAI's "
            "interface at /v1")
        stopped_at_once = asyncio.run(_run(listener, service, settings))
    finally:
        service.close()
    if stopped_at_once:
        raise KeyboardInterrupt


async def _run(listener: socket.socket, service: Service, settings: ServerSettings) -> bool:
    """Serves until a signal; True if a second one cut it short."""
    from fathom.engine.server.app import make_app
    from fathom.engine.server.wire import Server, config

    app = make_app(service, settings)
    server = Server(config(app))
    ending = Ending(server, app.state.fathom)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.hear, number)
    try:
        await server.serve(sockets=[listener])
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    return ending.at_once


class Ending:
    """The way to the end: the first signal lets what runs finish, the second one does not."""

    def __init__(self, server: object, state: object):
        from fathom.engine.server.gate import State
        from fathom.engine.server.wire import Server

        assert isinstance(server, Server) and isinstance(state, State)
        self._server, self._state = server, state
        self._draining: asyncio.Task[None] | None = None
        self.at_once = False

    def hear(self, number: int) -> None:
        """A signal came."""
        from fathom.engine.server.gate import log

        running = len(self._state.jobs)
        if self._draining is None:
            self._state.draining = True
            log.info("%s: nothing new is taken; %d running may finish within %g s; once more stops at once",
                     signal.Signals(number).name, running, self._state.settings.drain_seconds)
            self._draining = asyncio.create_task(self._drain())
        else:
            log.warning("%s again: stopping at once, %d running requests are cut", signal.Signals(number).name, running)
            self.at_once = True
            self._draining.cancel()
            self._cut()
            self._server.end(at_once=True)

    async def _drain(self) -> None:
        from fathom.engine.server.gate import log

        try:
            async with asyncio.timeout(self._state.settings.drain_seconds):
                await self._state.service.drain()
                while self._state.jobs:  # answers that are written and not yet read
                    await asyncio.sleep(0.02)
        except TimeoutError:
            log.warning("drain_seconds=%g are over: %d running requests are cut", self._state.settings.drain_seconds,
                        len(self._state.jobs))
            self._cut()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_SECONDS):
                    while self._state.jobs:
                        await asyncio.sleep(0.02)
        self._server.end(at_once=bool(self._state.jobs))

    def _cut(self) -> None:
        for job in list(self._state.jobs):
            job.stop("cut")


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises UsageError that says what stands in the way."""
    made: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(2048)
    except OSError as error:
        if made is not None:
            made.close()
        raise UsageError(f"host={host} port={port}: cannot listen there ({error.strerror or error}); another program "
                         "may have the port: choose one with --port, or 0 for any free one") from error
    return made


def _log_to_terminal() -> None:
    log = logging.getLogger("fathom")
    if not log.handlers:
        log.addHandler(console.handler())
    log.setLevel(logging.INFO)


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback

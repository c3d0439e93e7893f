"""What every request passes: its account, who may ask, and how much may be sent."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import secrets
import time
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fathom.engine.server.backend import Service
from fathom.engine.server.delivery import Job
from fathom.engine.server.errors import ApiError
from fathom.engine.server.metrics import Metrics
from fathom.engine.server.settings import LARGEST_SCHEMA, MOST_PROMPTS, ServerSettings
from fathom.engine.server.writer import Writer

log = logging.getLogger("fathom.serve")

ROUTES = frozenset(("/", "/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/metrics", "/tokenize",
                    "/detokenize", "/openapi.json"))
OPEN = frozenset(("/", "/health"))  # no key is asked for
ALIVE = frozenset(("/", "/health", "/metrics"))  # answered while draining
TRACE = "fathom.trace"
GONE = 499  # the status in logs and metrics of an answer that nobody was there to read
RETRY_DRAINING = 5.0
OTHER_VALUES = 2 * LARGEST_SCHEMA  # commas that a request may have beside those between token ids


class State:
    """What the server's requests share."""

    def __init__(self, service: Service, settings: ServerSettings):
        self.service, self.settings, self.metrics = service, settings, Metrics(service)
        self.draining = False
        self.failures = 0  # requests that the engine failed since one was finished
        self.jobs: set[Job] = set()  # requests that are in the engine

    def check(self) -> None:
        """Raises ApiError while nothing new is taken."""
        if self.draining:
            raise ApiError(503, "the server is shutting down; ask another one, or again later", code="draining",
                           retry_after=RETRY_DRAINING)


class Trace:
    """The account of one request."""

    def __init__(self, method: str, path: str):
        self.id = secrets.token_hex(12)
        self.method, self.route = method, route_of(path)
        self.began = time.monotonic()
        self.first: float | None = None  # when the first token came
        self.status = 0
        self.job: Job | None = None
        self.writer: Writer | None = None
        self.failed = False  # by a bug here
        self.told: str | None = None  # what was wrong with the request

    def line(self, now: float) -> str:
        """The log line at the request's end."""
        words = [self.id, self.method, self.route, str(self.status)]
        if self.writer is not None:
            usage = self.writer.usage()
            words += [f"prompt={usage['prompt_tokens']}", f"cached={usage['prompt_tokens_details']['cached_tokens']}",
                      f"completion={usage['completion_tokens']}"]
            if self.first is not None:
                words.append(f"first={1000 * (self.first - self.began):.0f}ms")
        words.append(f"all={1000 * (now - self.began):.0f}ms")
        if self.writer is not None and self.first is not None:
            written = usage["completion_tokens"]
            words.append(f"tok/s={written / max(now - self.began, 1e-9):.1f}")
            words.append("finish=" + ",".join(sorted({str(c.finish).lower() for c in self.writer.choices})))
        if self.job is not None and self.job.why is not None:
            words.append({"gone": "client gone", "slow": "client too slow, dropped", "cut": "cut at the end"}[
                self.job.why])
        if self.told is not None:
            words.append(f"({self.told})")
        return " ".join(words)


def route_of(path: str) -> str:
    """The route that a path is counted under; there are few of them, whatever clients ask for."""
    return path if path in ROUTES else "/v1/models/{model}" if path.startswith("/v1/models/") else "other"


class Gate:
    """ASGI middleware that reads a body up to its limit, refuses whom it must, and writes one log line per request."""

    def __init__(self, app: ASGIApp, state: State):
        self.app, self.state = app, state
        key = state.settings.api_key
        self._key = None if key is None else hashlib.sha256(key.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        trace = scope[TRACE] = Trace(scope["method"], scope["path"])

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                trace.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", trace.id.encode())]
            await send(message)

        try:
            try:
                self._admit(scope)
                body = await self._body(scope, receive)
                self._check_values(trace.route, body)
                await self.app(scope, _replayed(body, receive), told)
            except ApiError as error:
                trace.told = error.message
                await error.response()(scope, receive, told)
            except _Gone:
                trace.status = GONE
        except Exception:
            trace.failed = True
            log.exception("%s %s %s: a bug in the server", trace.id, trace.method, trace.route)
            if trace.status:
                raise  # a part of the answer is out: only a broken connection says that it is not whole
            await ApiError(500, f"the server failed; its log says more under {trace.id}").response()(
                scope, receive, told)
        finally:
            self._account(trace)

    def _account(self, trace: Trace) -> None:
        now = time.monotonic()
        job, metrics = trace.job, self.state.metrics
        if job is not None:
            self.state.jobs.discard(job)
            job.cancel()
            if job.why is not None:
                metrics.end("cancelled")
            elif trace.failed or job.failed:
                metrics.end("failed")
                self.state.failures += 1
            else:
                metrics.end("finished")
                self.state.failures = 0
            metrics.duration.observe(now - trace.began)
            if job.why == "gone":
                trace.status = GONE
        elif trace.status == 0:
            trace.status = GONE
        metrics.http.labels(trace.route, str(trace.status)).inc()
        quiet = trace.route in ALIVE and trace.status == 200
        log.log(logging.DEBUG if quiet else logging.INFO, "%s", trace.line(now))

    def _admit(self, scope: Scope) -> None:
        headers = {name: value for name, value in scope["headers"] if name in (b"authorization", b"origin")}
        path = scope["path"]
        if self._key is not None:
            if path not in OPEN:
                self._check_key(headers.get(b"authorization", b""))
        elif b"origin" in headers:
            self._check_origin(headers[b"origin"].decode("latin-1"))
        if path not in ALIVE:
            self.state.check()

    def _check_key(self, given: bytes) -> None:
        scheme, _, key = given.partition(b" ")
        same = hmac.compare_digest(hashlib.sha256(key.strip()).digest(), self._key or b"")
        if scheme.lower() == b"bearer" and same:
            return
        what = "wrong" if given else "missing"
        raise ApiError(401, f"API key: {what}; send `Authorization: Bearer KEY` with the key that the server was "
                       "started with", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _check_origin(self, origin: str) -> None:
        """A web page may make its reader's browser ask a server that has no key, and by a name that it makes point here
        even read the answer. Addresses and localhost are no such names."""
        settings = self.state.settings
        if origin in settings.allow_origin or "*" in settings.allow_origin:
            return
        try:
            host = urlsplit(origin).hostname or ""
        except ValueError:
            host = ""
        if host in ("localhost", settings.host) or host.endswith(".localhost") or _is_address(host):
            return
        raise ApiError(403, f"origin {origin[:100]!r}: pages from there may not ask; start the server with "
                       "--allow-origin for it, or with --api-key", code="origin_not_allowed")

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body; raises ApiError as soon as it is known to be too large, before anything reads it."""
        settings = self.state.settings
        if scope["method"] not in ("POST", "PUT", "PATCH", "DELETE"):
            return b""
        headers = dict(scope["headers"])
        stated = headers.get(b"content-length", b"")
        if stated.isdigit() and int(stated[:20]) > settings.body_bytes:
            raise self._too_large()
        parts, size = [], 0
        while True:
            try:
                async with asyncio.timeout(settings.read_seconds):
                    message = await receive()
            except TimeoutError:
                raise ApiError(400, f"body: nothing came for {settings.read_seconds:g} s; send it whole", None,
                               "body_timeout", headers={"Connection": "close"}) from None
            if message["type"] == "http.disconnect":
                raise _Gone
            part = message.get("body", b"")
            size += len(part)
            if size > settings.body_bytes:
                raise self._too_large()
            parts.append(part)
            if not message.get("more_body", False):
                break
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if size and kind != b"application/json":
            said = kind.decode("latin-1")[:80]
            raise ApiError(400, f"Content-Type {said!r}: must be application/json; send JSON and say so",
                           code="invalid_content_type")
        return b"".join(parts)

    def _check_values(self, route: str, body: bytes) -> None:
        """Raises ApiError for more token ids than any prompts may have. Reading millions of numbers as JSON holds
        everybody up for half a second; counting commas does not."""
        most = MOST_PROMPTS * self.state.service.max_length + OTHER_VALUES
        if len(body) > most and route.startswith("/v1/") and (count := body.count(b",")) > most:
            raise ApiError(400, f"body: {count} commas, so about as many token ids; {MOST_PROMPTS} prompts of at most "
                           f"{self.state.service.max_length} are read; split it", "prompt", "context_length_exceeded")

    def _too_large(self) -> ApiError:
        return ApiError(413, f"body: larger than {self.state.settings.body_bytes} bytes, the most that is read; "
                        "shorten it", code="body_too_large")


class _Gone(Exception):
    """The client went before its request was whole."""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` with a body that was read already."""
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay

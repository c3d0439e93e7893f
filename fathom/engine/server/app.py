"""The routes: OpenAI's for chats, completions and models, and those for people and machines that watch."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from fathom import __version__
from fathom.core.errors import FathomError
from fathom.engine.server.answers import (
    ChatAnswer,
    CompletionAnswer,
    Detokenized,
    Health,
    Models,
    Tokens,
    Updated,
)
from fathom.engine.server.answers import Model as ModelAnswer
from fathom.engine.server.backend import Busy, Draining, EngineFailed, Service
from fathom.engine.server.delivery import Events, Job, Outbox, Stopped, whole
from fathom.engine.server.errors import ApiError, ErrorBody, refused
from fathom.engine.server.gate import GONE, RETRY_DRAINING, TRACE, Gate, State, Trace
from fathom.engine.server.metrics import CONTENT_TYPE
from fathom.engine.server.order import Order, chat_order, chat_prompt, completion_order, template_settings
from fathom.engine.server.protocol import (
    Asked,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
    WeightsRequest,
)
from fathom.engine.server.settings import ServerSettings
from fathom.engine.server.tokens import Encoder, TokenTexts
from fathom.engine.server.writer import ChatWriter, CompletionWriter, Scores, Writer

ABOUT = {
    400: "the request is wrong, or asks for what is not supported; the message names the field",
    401: "no key or a wrong one",
    403: "a web page's origin that may not ask", 404: "no such model or route", 405: "the route has other methods",
    413: "the body is too large", 429: "too many requests wait", 500: "a bug in the server",
    503: "the server is shutting down, or its engine failed",
}
MOST_FAILURES = 3  # in a row, after which /health says so
_INLINE = re.compile(rb"<(script|style)\b[^>]*>(.*?)</\1\s*>", re.DOTALL | re.IGNORECASE)


def make_app(service: Service, settings: ServerSettings) -> FastAPI:
    """The server's ASGI application on `service`; `app.state.fathom` is its State."""
    app = FastAPI(title="Fathom", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    state = State(service, settings)
    app.state.fathom = state
    _handle_errors(app)
    _add_asking(app, _Desk(state))
    _add_watching(app, state)
    if settings.updates is not None:
        _add_updates(app, state, settings.updates.resolve())
    app.add_middleware(Gate, state=state)
    if settings.allow_origin:  # outermost: a refusal is to be readable too
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.allow_origin, allow_methods=("GET", "POST"),
            allow_headers=("Authorization", "Content-Type"), expose_headers=("X-Request-Id", "Retry-After"))
    app.openapi = _openapi(app, settings)  # type: ignore[method-assign]
    return app


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error answers of a route, for /openapi.json."""
    made: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        made[status] = {"model": ErrorBody, "description": ABOUT[status]}
        if status in (429, 503):
            made[status]["headers"] = {"Retry-After": {
                "description": "seconds", "required": True, "schema": {"type": "integer", "minimum": 1}}}
    return made


ASKING = documented(400, 401, 403, 405, 413, 500, 503)
STREAMED: dict[int | str, dict[str, Any]] = {200: {
    "description": "the answer; with stream=true its chunks as server-sent events, `data: [DONE]` last",
    "content": {"text/event-stream": {"itemSchema": {
        "type": "object", "required": ["data"], "properties": {"data": {
            "type": "string", "description": "a chunk as JSON, or an error in the form of ErrorBody; [DONE] last"}}}}}}}

PROMETHEUS: dict[int | str, dict[str, Any]] = {200: {
    "description": "Prometheus' text format", "content": {"text/plain": {"schema": {"type": "string"}}}}}


class _Desk:
    """Takes requests to the engine and answers back."""

    def __init__(self, state: State):
        self.state, self.service = state, state.service
        self.texts = TokenTexts(state.service.tokenizer)
        self.encoder = Encoder(state.service.tokenizer, state.service.max_length)
        self.began = int(time.time())

    def model(self, name: str | None) -> str:
        """The model's name; raises ApiError for another one."""
        mine = self.state.settings.name
        if name not in (None, mine):
            raise ApiError(404, f"model {str(name)[:100]!r}: not served here; this server has {mine!r}", "model",
                           "model_not_found")
        return mine

    async def chat(self, request: ChatRequest, http: Request) -> Response:
        """Answers a chat."""
        self.model(request.model)
        order = await self.encoder.run(chat_order, request, self.encoder)
        writer = ChatWriter(order, self.texts, bool(request.return_token_ids), bool(request.logprobs),
                            request.top_logprobs or 0, request.separate_reasoning is not False)
        return await self._answer(request, order, writer, http, "chatcmpl")

    async def complete(self, request: CompletionRequest, http: Request) -> Response:
        """Answers plain completions."""
        self.model(request.model)
        order = await self.encoder.run(completion_order, request, self.encoder)
        self.state.check()
        job, scores = Job(), []
        if request.echo and request.logprobs is not None:
            self._enter(job, http)
            scores = await self._guard(whole(job, http.receive, self._scores(order, request.logprobs)), job)
        writer = CompletionWriter(order, self.texts, bool(request.return_token_ids), request.logprobs,
                                  bool(request.echo), self.service.tokenizer.decode, scores)
        if request.max_tokens == 0:
            writer.finish_at_once()
        return await self._answer(request, order, writer, http, "cmpl", job)

    async def _scores(self, order: Order, top: int) -> list[Scores]:
        return await asyncio.gather(*(self.service.score(prompt.tokens, top) for prompt in order.prompts))

    def _enter(self, job: Job, http: Request) -> Trace:
        """Begins the account of a request that reaches the engine."""
        trace: Trace = http.scope[TRACE]
        if trace.job is None:
            trace.job = job
            self.state.jobs.add(job)
            self.state.metrics.start()
        return trace

    async def _guard(self, work: Any, job: Job) -> Any:
        """What `work` returns; the engine's refusals and ends as answers."""
        try:
            return await work
        except Stopped as stopped:
            if stopped.why == "cut":
                raise _cut() from stopped
            raise
        except FathomError as error:
            raise self._refusal(error, job) from error

    @staticmethod
    def _refusal(error: FathomError, job: Job) -> ApiError:
        if isinstance(error, Busy):
            return ApiError(429, str(error), code="busy", retry_after=error.retry_after)
        if isinstance(error, Draining):
            return ApiError(503, str(error), code="draining", retry_after=RETRY_DRAINING)
        if isinstance(error, EngineFailed):
            job.failed = True
            return ApiError(500, str(error), code="engine_failed")
        return ApiError(400, str(error))

    async def _answer(
        self, request: Asked, order: Order, writer: Writer, http: Request, kind: str, job: Job | None = None,
    ) -> Response:
        job = job or Job()
        self.state.check()
        try:
            if not writer.finished:
                for prompt, sampling in zip(order.prompts, order.sampling, strict=True):
                    job.streams.append(self.service.submit(prompt.tokens, sampling, order.n))
        except FathomError as error:
            job.cancel()
            raise self._refusal(error, job) from error
        trace = self._enter(job, http)
        trace.writer = writer
        head = {"id": f"{kind}-{trace.id}", "created": int(time.time()), "model": self.state.settings.name,
                "system_fingerprint": f"fathom-{__version__}-w{int(self.service.stats()['version'])}"}
        clock = _Clock(trace, self.state)
        if not request.stream:
            writer.head |= head
            parts = writer.first()

            work = self._read_all(job, writer, clock, parts.extend)
            await self._guard(whole(job, http.receive, work), job)
            return _json(writer.whole(parts))
        usage = bool(request.stream_options and request.stream_options.include_usage)
        return self._stream(job, writer, clock, head, usage, trace)

    def _stream(
        self, job: Job, writer: Writer, clock: _Clock, head: dict[str, Any], usage: bool, trace: Trace
    ) -> Events:
        chunk = head | {"object": writer.object + (".chunk" if isinstance(writer, ChatWriter) else "")}
        if usage:
            chunk["usage"] = None
        first = writer.head

        async def produce(outbox: Outbox) -> None:
            def tell(parts: list[dict[str, Any]]) -> None:
                nonlocal first
                for part in parts:
                    outbox.put(_event(chunk | first | {"choices": [part]}))
                    first = {}

            tell(writer.first())
            try:
                await self._read_all(job, writer, clock, tell)
            except FathomError as error:  # the status line is out
                told = self._refusal(error, job)
                trace.told = told.message
                outbox.put(_event(told.body()))
                return
            if usage:
                outbox.put(_event(chunk | {"choices": [], "usage": writer.usage()}))
            outbox.put(b"data: [DONE]\n\n")

        s = self.state.settings
        return Events(job, produce, _event(_cut().body()), s.buffer_bytes, s.write_seconds, s.quiet_seconds)

    async def _read_all(
        self, job: Job, writer: Writer, clock: _Clock, tell: Callable[[list[dict[str, Any]]], object]
    ) -> None:
        """Reads every prompt's pieces to their end, as they come."""
        try:
            async with asyncio.TaskGroup() as group:
                for i in range(len(job.streams)):
                    group.create_task(self._read(job, i, writer, clock, tell))
        except ExceptionGroup as group_of:
            raise group_of.exceptions[0] from None

    async def _read(
        self, job: Job, prompt: int, writer: Writer, clock: _Clock, tell: Callable[[list[dict[str, Any]]], object]
    ) -> None:
        """Reads the pieces of one prompt's completions to their end."""
        unfinished = writer.order.n
        async for pieces in job.streams[prompt]:
            for piece in pieces:
                clock.tick((prompt, piece.index), len(piece.tokens))
                unfinished -= piece.finish is not None
            tell(writer.take(prompt, pieces))
        if unfinished and job.why is None:
            raise RuntimeError(f"a stream ended with {unfinished} of its completions unfinished")


class _Clock:
    """Times a request's tokens."""

    def __init__(self, trace: Trace, state: State):
        self._trace, self._metrics = trace, state.metrics
        self._last: dict[tuple[int, int], float] = {}

    def tick(self, choice: tuple[int, int], tokens: int) -> None:
        """A step brought a completion so many tokens."""
        if not tokens:
            return
        now = time.monotonic()
        if self._trace.first is None:
            self._trace.first = now
            self._metrics.first_token.observe(now - self._trace.began)
        if choice in self._last:
            for _ in range(tokens):
                self._metrics.token.observe((now - self._last[choice]) / tokens)
        self._last[choice] = now


def _cut() -> ApiError:
    return ApiError(503, "the server stopped before the answer was whole; ask again", code="draining",
                    retry_after=RETRY_DRAINING)


def _json(content: dict[str, Any]) -> Response:
    return Response(json.dumps(content, ensure_ascii=False, allow_nan=False).encode(), media_type="application/json")


def _event(content: dict[str, Any]) -> bytes:
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


def _add_asking(app: FastAPI, desk: _Desk) -> None:
    @app.post("/v1/chat/completions", response_model=ChatAnswer,
              responses=STREAMED | ASKING | documented(404, 429), summary="A chat's next turn")
    async def chat(request: ChatRequest, http: Request) -> Response:
        return await _gone(desk.chat(request, http))

    @app.post("/v1/completions", response_model=CompletionAnswer,
              responses=STREAMED | ASKING | documented(404, 429), summary="Continuations of prompts")
    async def completions(request: CompletionRequest, http: Request) -> Response:
        return await _gone(desk.complete(request, http))

    @app.post("/tokenize", response_model=Tokens, response_model_exclude_none=True,
              responses=ASKING | documented(404), summary="A text's or a chat's tokens")
    async def tokenize(request: TokenizeRequest) -> Tokens:
        desk.model(request.model)
        if (request.prompt is None) == (request.messages is None):
            raise ApiError(400, "prompt, messages: give one of the two", "prompt")
        encoder = desk.encoder
        if request.prompt is not None:
            tokens = await encoder.run(encoder.text, request.prompt, request.add_special_tokens, "prompt")
        else:
            extra = template_settings(request.chat_template_kwargs, None, encoder.tokenizer)
            tokens, _ = await encoder.run(chat_prompt, request.messages or [], False, extra, encoder)
        names = [desk.texts.text(token) for token in tokens] if request.return_token_strs else None
        return Tokens(count=len(tokens), max_model_len=encoder.max_length, tokens=tokens, token_strs=names)

    @app.post("/detokenize", response_model=Detokenized, responses=ASKING | documented(404),
              summary="The text of tokens")
    async def detokenize(request: DetokenizeRequest) -> Detokenized:
        desk.model(request.model)
        size = desk.encoder.tokenizer.vocab_size
        if (worst := max(request.tokens, default=0)) >= size:
            raise ApiError(400, f"tokens: no token {worst}; the model has {size}: 0 to {size - 1}", "tokens")
        return Detokenized(prompt=await desk.encoder.run(desk.encoder.tokenizer.decode, request.tokens))

    def model() -> ModelAnswer:
        return ModelAnswer(id=desk.state.settings.name, object="model", created=desk.began, owned_by="fathom",
                           max_model_len=desk.service.max_length)

    @app.get("/v1/models", response_model=Models, responses=documented(401, 403, 405, 500, 503),
             summary="The models that can be asked")
    async def models() -> Models:
        return Models(object="list", data=[model()])

    @app.get("/v1/models/{model_id:path}", response_model=ModelAnswer,
             responses=documented(401, 403, 404, 405, 500, 503), summary="One model")
    async def one_model(model_id: str) -> ModelAnswer:
        desk.model(model_id)
        return model()


def _add_updates(app: FastAPI, state: State, root: Path) -> None:
    one_at_a_time = asyncio.Lock()

    @app.post("/update_weights_from_disk", response_model=Updated, responses=ASKING,
              summary="New weights, between two steps; what runs goes on under them")
    async def update(request: WeightsRequest) -> Updated:
        state.check()
        path = Path(request.model_path).resolve()
        if root not in path.parents or not path.is_dir():
            raise ApiError(400, f"model_path={request.model_path[:200]!r}: no directory below {root}, which --updates "
                           "names", "model_path")
        async with one_at_a_time:
            given = request.weight_version
            version = int(state.service.stats()["version"]) + 1 if given is None else int(given)
            try:
                await state.service.take(path, version)
            except FathomError as error:
                raise ApiError(400, str(error), "model_path") from error
        return Updated(success=True, message=f"version {version}")


async def _gone(work: Any) -> Response:
    """The answer, or one that nobody will read."""
    try:
        answer: Response = await work
    except Stopped:
        return Response(status_code=GONE)
    return answer


def _add_watching(app: FastAPI, state: State) -> None:
    @app.get("/health", response_model=Health, responses=documented(403, 405, 500, 503),
             summary="Whether requests are taken; asks for no key")
    async def health() -> Health:
        state.check()
        if state.failures >= MOST_FAILURES:
            raise ApiError(503, f"the engine failed the last {state.failures} requests; its log says why; restart the "
                           "server", code="engine_failed", retry_after=30)
        stats = state.service.stats()
        return Health(status="ok", model=state.settings.name, version=int(stats["version"]),
                      running=int(stats["running"]), waiting=int(stats["waiting"]))

    @app.get("/metrics", response_class=Response, responses=PROMETHEUS | documented(401, 403, 405, 500),
             summary="Figures for Prometheus")
    async def metrics() -> Response:
        return Response(state.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return _page()


def _page() -> Response:
    """The chat page. Its policy lets nothing run but what stands in it, and lets it ask nobody but this server."""
    file = resources.files("fathom.engine.server").joinpath("page.html")
    if not file.is_file():
        raise ApiError(404, "/: this installation has no chat page; ask /v1/chat/completions", code="not_found")
    html = file.read_bytes()
    hashes: dict[bytes, list[str]] = {b"script": [], b"style": []}
    for tag, content in _INLINE.findall(html):
        digest = base64.b64encode(hashlib.sha256(content.replace(b"\r\n", b"\n")).digest()).decode()
        hashes[tag.lower()].append(f"'sha256-{digest}'")
    policy = "; ".join((
        "default-src 'none'", f"script-src {' '.join(hashes[b'script']) or chr(39) + 'none' + chr(39)}",
        f"style-src {' '.join(hashes[b'style']) or chr(39) + 'none' + chr(39)}", "connect-src 'self'",
        "img-src 'self' data:", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"))
    return Response(html, media_type="text/html; charset=utf-8", headers={
        "Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache"})


def _handle_errors(app: FastAPI) -> None:
    async def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        _note(request, error)
        return error.response()

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        found = FIELDS.get(request.url.path, [])
        return await ours(request, refused(error.errors(), found))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        allowed = dict(error.headers or {})
        if error.status_code == 404:
            made = ApiError(404, f"{request.method} {request.url.path[:100]}: no such route; /openapi.json lists them",
                            code="not_found")
        elif error.status_code == 405:
            made = ApiError(405, f"{request.method} {request.url.path[:100]}: the route takes "
                            f"{allowed.get('Allow', allowed.get('allow', 'other methods'))}",
                            code="method_not_allowed", headers=allowed)
        else:
            made = ApiError(error.status_code, f"body: cannot be read as JSON ({error.detail}); send a JSON object",
                            code="invalid_json", headers=allowed)
        return await ours(request, made)

    app.add_exception_handler(ApiError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)


def _note(request: Request, error: ApiError) -> None:
    """Puts into the log line what was wrong, on one line."""
    trace: Trace = request.scope[TRACE]
    trace.told = error.message[:200].encode("unicode_escape").decode()


FIELDS = {path: list(model.model_fields) for path, model in (
    ("/v1/chat/completions", ChatRequest), ("/v1/completions", CompletionRequest), ("/tokenize", TokenizeRequest),
    ("/detokenize", DetokenizeRequest), ("/update_weights_from_disk", WeightsRequest))}


def _openapi(app: FastAPI, settings: ServerSettings) -> Callable[[], dict[str, Any]]:
    """/openapi.json as it is: no 422, which is never sent, and the key where one is asked for."""
    def made() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes,
                                 description="A language model, in the forms that OpenAI's clients speak.")
            for path, methods in schema["paths"].items():
                for operation in methods.values():
                    operation["responses"].pop("422", None)
                    if settings.api_key is not None and path != "/health":
                        operation["security"] = [{"key": []}]
            for unused in ("HTTPValidationError", "ValidationError"):
                schema["components"]["schemas"].pop(unused, None)
            if settings.api_key is not None:
                schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            app.openapi_schema = schema
        return app.openapi_schema

    return made

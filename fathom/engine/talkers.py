"""Who answers in a chat: a model of this machine, or an endpoint; and the event loop that they answer in.

Importing this loads no tensor library and no client.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import queue
import signal
import threading
from collections.abc import AsyncGenerator, Coroutine, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import urlsplit

from fathom.core.chat import Message, Sampling
from fathom.core.config import build
from fathom.core.errors import FathomError, UsageError
from fathom.engine.settings import EngineSettings
from fathom.model.pretrained import called

if TYPE_CHECKING:
    from fathom.engine.server.backend import Service

T = TypeVar("T")
RETRIES = 3  # where an endpoint is busy; the waits are its own
# Settings that chat completions have under the same name; the others are understood by most servers of open models.
STANDARD = ("temperature", "top_p", "max_tokens", "seed", "presence_penalty", "frequency_penalty", "logit_bias", "stop")
NAMES = {"ignore_stop": "ignore_eos"}  # what servers call it where they say it differently
HTTP = ("httpx", "httpx2", "httpcore", "httpcore2")  # whose errors the client lets through while a reply is read


@dataclass(frozen=True)
class Usage:
    """Tokens of an exchange: of the prompt, of the completion so far, and of the prompt those that were cached."""

    prompt: int
    completion: int
    cached: int = 0


@dataclass(frozen=True)
class Part:
    """What came of an answer; `finish` is set on its last part."""

    text: str = ""
    thinking: str = ""
    finish: str | None = None
    usage: Usage | None = None


class Talker(Protocol):
    """Whoever answers: a model of this machine or an endpoint."""

    name: str

    def answer(self, messages: Sequence[Message], chosen: Mapping[str, Any]) -> AsyncGenerator[Part, None]:
        """The parts of an answer; `chosen` are fields of Sampling, what is not among them is the talker's to choose.

        Closing the generator stops the answer. Raises FathomError.
        """
        ...

    async def close(self) -> None: ...


class Local:
    """A model of this machine, behind an engine in a thread."""

    def __init__(self, service: Service, name: str):
        self.service, self.name = service, name

    async def answer(self, messages: Sequence[Message], chosen: Mapping[str, Any]) -> AsyncGenerator[Part, None]:
        from fathom.engine.server.reasoning import OPEN, Thinking

        tokens = self.service.tokenizer.prompt(messages)
        room = self.service.max_length - len(tokens)
        if room < 1:
            raise UsageError(f"chat: {len(tokens)} tokens, the model holds {self.service.max_length} with the answer; "
                             "/undo what is last, or begin a /new one")
        sampling = build(Sampling, {"max_tokens": room, **chosen}, "chat")
        # The end of the prompt is the template's own, from its last control token on: R1's opens the thinking.
        tokenizer = self.service.tokenizer
        own = next((i for i in range(len(tokens), 0, -1) if tokens[i - 1] in tokenizer.control_ids), 0)
        split, count = Thinking(tokenizer.decode(tokens[own:]).rstrip().endswith(OPEN)), 0
        stream = self.service.submit(tokens, sampling)
        try:
            async for pieces in stream:
                for piece in pieces:
                    count += len(piece.tokens)
                    thinking, text = split.feed(piece.text)
                    if piece.finish is not None:
                        thinking, text = (a + b for a, b in zip((thinking, text), split.close(), strict=True))
                    yield Part(text, thinking, piece.finish, Usage(len(tokens), count, piece.cached))
        finally:
            stream.cancel()

    async def close(self) -> None:
        self.service.close()


class Remote:
    """An OpenAI-compatible endpoint."""

    def __init__(self, client: Any, name: str, headers: Mapping[str, Any]):
        self.client, self.name, self.headers = client, name, headers

    @classmethod
    async def connect(cls, url: str, name: str | None, key: str | None) -> Remote:
        """Behind `url`, the model called `name`, or the only one there is; raises FathomError where that fails."""
        import openai

        base = url.rstrip("/") + ("" if urlsplit(url).path.strip("/") else "/v1")
        omit = openai.Omit()
        # What the library would take from the environment is nobody else's business.
        headers: dict[str, Any] = {"OpenAI-Organization": omit, "OpenAI-Project": omit}
        if key is None:
            headers["Authorization"] = omit
        client = openai.AsyncOpenAI(
            api_key=key or "none", base_url=base, max_retries=RETRIES, timeout=openai.Timeout(None, connect=10.0))
        try:
            with _refusals(base):
                once = client.with_options(max_retries=0)
                names = [model.id async for model in once.models.list(extra_headers=headers)]
            if name is None and len(names) != 1:
                served = f"serves {', '.join(names)}; name one with --model" if names else "serves no model"
                raise UsageError(f"{base}: {served}")
            if name is not None and name not in names:
                raise UsageError(f"model={name}: {base} serves {', '.join(names) or 'none'}; name one of them")
        except BaseException:
            await client.close()
            raise
        return cls(client, name or names[0], headers)

    async def answer(self, messages: Sequence[Message], chosen: Mapping[str, Any]) -> AsyncGenerator[Part, None]:
        plain: dict[str, Any] = {
            name: list(value) if isinstance(value, tuple) else value for name, value in chosen.items()}
        schema = plain.pop("json_schema", None)
        if schema is not None:
            held = json.loads(schema)
            plain["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": held}} \
                if held else {"type": "json_object"}
        standard = {name: value for name, value in plain.items() if name in (*STANDARD, "response_format")}
        extra = {NAMES.get(name, name): value for name, value in plain.items() if name not in standard}
        with _refusals(str(self.client.base_url)):
            stream = await self.client.chat.completions.create(
                model=self.name, messages=[message.to_json() for message in messages], stream=True,
                stream_options={"include_usage": True}, extra_body=extra,
                extra_headers=self.headers, **standard)
            finish = None
            try:
                async for chunk in stream:
                    text = thinking = ""
                    for choice in chunk.choices[:1]:
                        more = choice.delta.model_extra or {} if choice.delta else {}
                        text = choice.delta.content or "" if choice.delta else ""
                        thinking = more.get("reasoning_content") or more.get("reasoning") or ""
                        finish = choice.finish_reason or finish
                    yield Part(text, thinking, finish, _usage(chunk.usage))
            finally:
                await stream.close()
        if finish is None:
            raise FathomError(f"{self.client.base_url}: the connection broke before the answer was whole; /retry asks "
                              "again")

    async def close(self) -> None:
        await self.client.close()


def _usage(told: Any) -> Usage | None:
    if told is None:
        return None
    details = told.prompt_tokens_details
    return Usage(told.prompt_tokens, told.completion_tokens, (details and details.cached_tokens) or 0)


@contextlib.contextmanager
def _refusals(where: str) -> Iterator[None]:
    """What the client raises, as FathomError with the endpoint's own words."""
    import openai

    try:
        yield
    except openai.APIStatusError as error:
        body = error.body if isinstance(error.body, dict) else {}
        said = str(body.get("message") or error.message)[:1000]
        hint = "; name the key's environment variable with --key-env" if error.status_code == 401 else ""
        raise FathomError(f"{where}: {said} ({error.status_code}){hint}") from error
    except openai.APIConnectionError as error:
        raise FathomError(f"{where}: no connection ({error.__cause__ or error}); is the server running?") from error
    except openai.APIError as error:  # an error inside a stream
        raise FathomError(f"{where}: {error.message}") from error
    except json.JSONDecodeError as error:
        raise FathomError(f"{where}: sent what is no JSON ({error}); is it an endpoint for chats?") from error
    except Exception as error:
        if type(error).__module__.split(".")[0] not in HTTP:
            raise
        raise FathomError(f"{where}: the connection broke ({error or type(error).__name__}); ask again") from error


class Interrupted(Exception):
    """Ctrl-C stopped an answer."""


class Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chat", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, made in the thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def parts(
        self, talker: Talker, messages: Sequence[Message], chosen: Mapping[str, Any]
    ) -> Generator[Part, None, None]:
        """The parts of an answer as they come; raises Interrupted at Ctrl-C, once the answer is stopped.

        A second Ctrl-C raises KeyboardInterrupt at once. Belongs to the main thread, where signals are heard.
        """
        came: queue.SimpleQueue[Part | BaseException | None] = queue.SimpleQueue()  # a put may interrupt its get
        interrupts = 0

        async def pump() -> None:
            async with contextlib.aclosing(talker.answer(messages, chosen)) as parts:
                async for part in parts:
                    came.put(part)

        async def begin() -> asyncio.Task[None]:
            task = asyncio.create_task(pump())
            task.add_done_callback(lambda done: came.put(None if done.cancelled() else done.exception()))
            return task

        def hear(number: int, frame: FrameType | None) -> None:
            nonlocal interrupts
            interrupts += 1
            if interrupts > 1:
                raise KeyboardInterrupt
            came.put(Interrupted())

        before = signal.signal(signal.SIGINT, hear)
        try:
            task = self.run(begin())
            try:
                while (part := came.get()) is not None:
                    if isinstance(part, Interrupted):
                        self._loop.call_soon_threadsafe(task.cancel)
                        while isinstance(came.get(), Part):  # until the talker has let go
                            pass
                    if isinstance(part, BaseException):
                        raise part
                    yield part
            finally:
                self._loop.call_soon_threadsafe(task.cancel)
        finally:
            signal.signal(signal.SIGINT, before)

    def close(self) -> None:
        """Ends the thread, and before it whatever runs there."""

        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await asyncio.get_running_loop().shutdown_asyncgens()

        self.run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _load(model: str, device: str, dtype: str) -> Talker:
    from fathom.engine.service import start

    return Local(start(Path(model), EngineSettings(batch=1), device, dtype), called(Path(model)))


def meet(model: str, loop: Loop, name: str | None, key_env: str | None, device: str, dtype: str) -> Talker:
    """Who answers: an endpoint where `model` is a URL, a model of this machine otherwise."""
    if not model.startswith(("http://", "https://")):
        if name is not None or key_env is not None:
            raise UsageError(f"{model}: not a URL, and --model and --key-env are for endpoints; leave them out")
        missing = [package for package in ("torch", "safetensors", "tokenizers", "jinja2")
                   if importlib.util.find_spec(package) is None]
        if missing:
            raise UsageError(f"chat: needs {', '.join(missing)}, not installed; pip install 'fathom-reasoning[model]'")
        return _load(model, device, dtype)
    if (device, dtype) != ("auto", "auto"):
        raise UsageError(f"{model}: an endpoint, and --device and --dtype are for models of this machine; leave them "
                         "out")
    if importlib.util.find_spec("openai") is None:
        raise UsageError("chat: an endpoint needs the package openai; pip install 'fathom-reasoning[client]'")
    key = None
    if key_env is not None:
        key = os.environ.get(key_env, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            raise UsageError(f"key-env={key_env}: holds no key; export {key_env}=..., or leave it out for an endpoint "
                             "without one")
    return loop.run(Remote.connect(model, name, key))

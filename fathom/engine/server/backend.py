"""What the server needs of an engine: the shapes of `fathom.engine.service`, without its tensors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

from fathom.core.chat import Sampling
from fathom.core.errors import FathomError
from fathom.model.tokenizer import Tokenizer

Top = tuple[tuple[int, float], ...]  # a token's likeliest rivals: id and natural log-probability, likeliest first


class Busy(FathomError):
    """Too many requests wait; `retry_after` seconds from now there may be room."""

    def __init__(self, message: str, retry_after: float = 1.0):
        super().__init__(message)
        self.retry_after = retry_after


class Draining(FathomError):
    """The engine finishes what runs and takes nothing new."""


class EngineFailed(FathomError):
    """The engine's thread died; its message says of what."""


class Piece(Protocol):
    """What one step brought one of the n completions."""

    @property
    def index(self) -> int: ...
    @property
    def text(self) -> str: ...
    @property
    def tokens(self) -> tuple[int, ...]: ...
    @property
    def logprobs(self) -> tuple[float, ...]: ...
    @property
    def top(self) -> tuple[Top, ...]: ...
    @property
    def finish(self) -> Literal["stop", "length"] | None: ...
    @property
    def version(self) -> int: ...
    @property
    def cached(self) -> int: ...


class Stream(Protocol):
    """The pieces of n completions of one prompt, as they come."""

    def __aiter__(self) -> AsyncIterator[Sequence[Piece]]: ...

    def cancel(self) -> None:
        """Ends it: idempotent, from any thread; its blocks are freed within one step."""
        ...


class Service(Protocol):
    """An engine in a thread of its own, for callers in an event loop."""

    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def max_length(self) -> int: ...

    def submit(self, prompt: Sequence[int], sampling: Sampling, n: int = 1) -> Stream:
        """Starts n completions; raises UsageError, Busy or Draining."""
        ...

    async def score(
        self, prompt: Sequence[int], top: int
    ) -> tuple[Sequence[float | None], Sequence[Top | None]]:
        """Each prompt token's log-probability after those before it, and its `top` likeliest rivals; None first."""
        ...

    async def take(self, model: Path, version: int) -> None:
        """New weights from a model directory, between two steps; FathomError where they are not this model's."""
        ...

    def stats(self) -> dict[str, float]: ...

    async def drain(self) -> None: ...

    def close(self) -> None: ...

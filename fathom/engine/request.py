"""Request: one completion under way, as the engine, those who guess for it and those who wait for it see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from fathom.core.chat import Sampling
from fathom.core.errors import FathomError
from fathom.engine.sampler import Counts, Row
from fathom.engine.scheduler import Job
from fathom.engine.text import Detokenizer, StopStrings

if TYPE_CHECKING:
    from fathom.engine.guide import GuideState


@dataclass(eq=False)
class Request(Job):
    """One completion under way."""

    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    index: int = 0  # which of the n
    logprobs: list[float] = field(default_factory=list)
    top: list[tuple[tuple[int, float], ...]] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    finish: Literal["stop", "length"] | None = None
    said: list[str] = field(default_factory=list)  # where `speaking`: what is certain of the text, as it came
    counts: Counts | None = None
    guide: GuideState | None = None
    thinking: Tensor | None = None  # while the guide waits for the end of a thought: what may be said in it
    error: FathomError | None = None  # what ended it, where it could not go on
    stops: frozenset[int] = frozenset()
    speaking: tuple[Detokenizer, StopStrings] | None = None  # where its text is wanted as it comes, or may end it

    @property
    def drawn(self) -> int:
        """Tokens of the completion so far."""
        return len(self.tokens) - self.prompt

    def row(self, proposed: Sequence[int] = ()) -> Row:
        """What the sampler must know, with `proposed` tokens taken for drawn."""
        counts = self.counts
        if counts is not None and proposed:
            counts = counts.copy()
            for token in proposed:
                counts.add(token)
        allowed = self.thinking
        if self.guide is not None and allowed is None:
            allowed = self.guide.allowed()
        return Row(self.sampling, self.seed, self.drawn + len(proposed), counts, allowed, self.stops)

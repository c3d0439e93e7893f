"""Chat messages, sampling settings and completions: what a prompt is and what comes back, without tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import Field

from fathom.core.config import Settings
from fathom.core.errors import FathomError

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Text:
    """A text part of a message."""

    text: str


@dataclass(frozen=True)
class Image:
    """An image part of a message: a local path or a data URL."""

    source: str


@dataclass(frozen=True)
class Message:
    """One turn of a chat. `content` is plain text, or parts where images are involved."""

    role: str
    content: str | tuple[Text | Image, ...]

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise FathomError(f"role={self.role!r}: not a chat role; use one of {', '.join(ROLES)}")

    @property
    def text(self) -> str:
        """The message's text, parts joined; images contribute nothing."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content if isinstance(part, Text))

    def to_json(self) -> dict[str, Any]:
        """The message as OpenAI's chat format writes it."""
        if isinstance(self.content, str):
            return {"role": self.role, "content": self.content}
        parts = [
            {"type": "text", "text": part.text}
            if isinstance(part, Text)
            else {"type": "image_url", "image_url": {"url": part.source}}
            for part in self.content
        ]
        return {"role": self.role, "content": parts}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Message:
        """Reads OpenAI's chat format; raises FathomError that names what is missing or of the wrong type."""
        if not isinstance(value, Mapping) or "role" not in value or "content" not in value:
            raise FathomError(f"message {str(value)[:80]!r}: needs the keys role and content")
        content = value["content"]
        if isinstance(content, str):
            return cls(value["role"], content)
        if not isinstance(content, Sequence):
            raise FathomError(f"message content of type {type(content).__name__}: must be text or a list of parts")
        return cls(value["role"], tuple(_part(part) for part in content))


def _part(part: Any) -> Text | Image:
    match part:
        case {"type": "text", "text": str(text)}:
            return Text(text)
        case {"type": "image_url", "image_url": {"url": str(url)}}:
            return Image(url)
    raise FathomError(
        f"message part {str(part)[:80]!r}: must be {{type: text, text}} or {{type: image_url, image_url}}"
    )


class Sampling(Settings):
    """How completions are drawn."""

    max_tokens: int = Field(256, ge=1, description="most tokens in a completion")
    temperature: float = Field(1.0, ge=0, description="0 is greedy; logits are divided by it otherwise")
    top_p: float = Field(1.0, gt=0, le=1, description="smallest set of tokens with at least this probability")
    top_k: int = Field(0, ge=0, description="only so many most likely tokens; 0: all")
    min_p: float = Field(0.0, ge=0, le=1, description="only tokens with this share of the likeliest one's probability")
    repetition_penalty: float = Field(
        1.0, gt=0, description="of tokens in prompt or completion: logits above 0 are divided by it, others multiplied")
    presence_penalty: float = Field(
        0.0, ge=-2, le=2, description="taken from the logits of tokens that the completion holds")
    frequency_penalty: float = Field(
        0.0, ge=-2, le=2, description="taken from a token's logit for each time that the completion holds it")
    logit_bias: dict[int, float] = Field(default_factory=dict, description="token id: what is added to its logit")
    stop: tuple[str, ...] = Field((), description="strings that end a completion; they are cut off the text")
    min_tokens: int = Field(0, ge=0, description="no stop token and no stop string ends a completion before")
    ignore_stop: bool = Field(False, description="stop tokens do not end a completion")
    logprobs: int = Field(0, ge=0, le=20, description="tell so many most likely tokens beside every chosen one")
    json_schema: str | None = Field(
        None, description="a JSON schema, as JSON, that the completion satisfies; {} is any JSON (extra guided)")
    seed: int = Field(0, ge=0, description="names the randomness: same seed, prompt and weights, same completion")


@dataclass(frozen=True)
class Completion:
    """What came back for one prompt.

    `tokens` are the sampler's own ids, the stop token included; `logprobs` are natural logarithms of the probabilities
    they were drawn with, one per token; `finish` is "stop" or "length"; `versions` names the weights that drew each
    token; `top`, where asked for, holds each token's likeliest rivals, (id, log-probability), likeliest first; `cached`
    counts prompt tokens that need not be computed.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Literal["stop", "length"]
    versions: tuple[int, ...] = ()
    top: tuple[tuple[tuple[int, float], ...], ...] = ()
    cached: int = 0


class TextGenerator(Protocol):
    """Anything that completes prompts: the engine on our own weights, or a client of an endpoint."""

    def generate(self, prompts: Sequence[Sequence[Message]], sampling: Sampling, n: int = 1) -> list[list[Completion]]:
        """`n` completions per prompt, in the order of `prompts`."""
        ...

"""Settings of the client: whom to ask, how patiently, and for how much; loads no HTTP library."""

from __future__ import annotations

from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from fathom.core.config import Settings, canonical
from fathom.core.errors import FathomError

# What the client decides itself: in `extra_body` they would change what is read, counted or paid.
RESERVED = ("model", "messages", "n", "seed", "stream", "max_tokens", "max_completion_tokens")


class ClientSettings(Settings):
    """An OpenAI-compatible endpoint and the manners towards it. The key itself is never a setting."""

    manners: ClassVar[tuple[str, ...]] = (
        "key_env", "concurrency", "timeout_s", "retries", "after_retries",
        "backoff_s", "wait_max_s", "price_in", "price_out",
        "price_cached", "cap", "image_tokens", "journal", "reply_mb")

    url: str = Field(description="the endpoint's base address, which usually ends in /v1")
    model: str = Field(min_length=1, description="the model's name at the endpoint")
    key_env: str | None = Field(None, description="environment variable that holds the key; none: no key is sent")
    concurrency: int = Field(32, ge=1, le=1000, description="most requests in flight")
    timeout_s: float = Field(600.0, gt=0, description="seconds for one try, connection and whole reply included")
    retries: int = Field(6, ge=0, description="tries after the first one that failed")
    after_retries: Literal["stop", "fail"] = Field(
        "stop", description="a request without answer after all tries, or refused: stops the call, or fails alone")
    backoff_s: float = Field(1.0, gt=0, description="longest wait before the second try; it doubles with each")
    wait_max_s: float = Field(60.0, gt=0, description="longest wait before any try, a Retry-After included")
    price_in: float | None = Field(None, ge=0, description="price of a million prompt tokens")
    price_out: float | None = Field(None, ge=0, description="price of a million completion tokens, reasoning too")
    price_cached: float | None = Field(None, ge=0, description="price of a million cached tokens; none: price_in")
    cap: float | None = Field(
        None, gt=0, description="most that this client's answers may cost, those found in the journal included")
    image_tokens: int = Field(1500, ge=1, description="tokens that an image of a prompt is taken to cost")
    journal: str | None = Field(None, description="file that keeps every answer, so that none is paid for twice")
    max_tokens_name: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="what the endpoint calls the most tokens of a completion")
    omit: tuple[Literal["temperature", "top_p", "seed"], ...] = Field(
        (), description="fields that the endpoint does not take; only where sampling has them at their defaults")
    logprobs: bool = Field(False, description="every token's log-probability; a reply without is an error")
    token_ids: bool = Field(False, description="every token's id, as vLLM tells it; a reply without is an error")
    reply_mb: float = Field(10.0, gt=0, description="largest reply that is read, in MB")
    extra_body: dict[str, Any] = Field(default_factory=dict, description="fields to add to every request as they stand")

    @model_validator(mode="after")
    def _fit(self) -> ClientSettings:
        try:
            parts = urlsplit(self.url)
            known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            known = False
        if not known:
            raise ValueError("url: not an address; write http(s)://host/v1")
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ValueError("url: holds more than host and path; put a key into the variable that key_env names")
        if (self.price_in is None) != (self.price_out is None):
            raise ValueError("price_in and price_out: one of them is missing; give both, 0 where it costs nothing")
        if self.price_in is None and self.price_cached is not None:
            raise ValueError("price_cached: means nothing without price_in and price_out; give them too")
        if self.price_in is None and self.cap is not None:
            raise ValueError(f"cap={self.cap:g}: cannot be kept without prices; give price_in and price_out too")
        for name in self.extra_body:
            if name in RESERVED:
                raise ValueError(f"extra_body: {name} is the client's own, from other settings or sampling")
        try:
            canonical(self.extra_body)
        except FathomError as error:
            raise ValueError(f"extra_body: {error}") from error
        return self

    @property
    def base(self) -> str:
        """The address without a slash at its end: one endpoint, one name."""
        return self.url.rstrip("/")

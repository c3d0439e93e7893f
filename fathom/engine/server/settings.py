"""Settings of the server; loads no web framework."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from fathom.core.config import Settings

# What one request may ask for. Stated in /openapi.json wherever JSON schema has a word for it.
MOST_N = 128
MOST_PROMPTS = 256
MOST_COMPLETIONS = 1024  # prompts times n
MOST_STOPS = 16
LONGEST_STOP = 256  # characters
MOST_BIASED = 1024  # tokens in logit_bias
MOST_TOP = 20  # rivals told beside a token
MOST_MESSAGES = 4096
LARGEST_SCHEMA = 1 << 16  # characters of a JSON schema
DEEPEST = 64  # levels of lists and objects inside each other, where a body may hold anything


class ServerSettings(Settings):
    """How the server meets its clients."""

    name: str = Field(min_length=1, max_length=200, description="the model's name in requests and answers")
    host: str = Field("127.0.0.1", description="the address to listen at; 0.0.0.0 is every one of this machine")
    port: int = Field(8000, ge=0, le=65535, description="the port to listen at; 0: any free one")
    api_key: str | None = Field(None, min_length=1, repr=False, description="what clients must show; None: nothing")
    allow_origin: tuple[str, ...] = Field((), description="web pages' origins that may ask, like https://a.example; *")
    updates: Path | None = Field(None, description="new weights are taken from directories below it; None: from none")
    drain_seconds: float = Field(30.0, ge=0, description="how long running requests may go on after SIGTERM")
    body_bytes: int = Field(10_000_000, ge=1, description="largest body of a request")
    read_seconds: float = Field(30.0, gt=0, description="longest pause inside a request's body")
    write_seconds: float = Field(30.0, gt=0, description="a client that reads nothing for so long is dropped")
    quiet_seconds: float = Field(15.0, gt=0, description="a stream without news says so this often")
    buffer_bytes: int = Field(1 << 20, ge=1, description="most that waits for one slow reader; it is dropped past that")

"""Settings of the engine; loads no torch."""

from __future__ import annotations

from pydantic import Field

from fathom.core.config import Settings

COMPILING = "the decoding step is compiled first, which takes about a minute (engine.compile)"


class EngineSettings(Settings):
    """How much the engine does at once: speed and memory, never what a request's distribution is."""

    batch: int = Field(256, ge=1, description="most completions decoded together")
    compile: bool = Field(False, description="compile the decoding step (latent attention only): a minute's wait first")
    prefill_tokens: int = Field(8192, ge=1, description="most prompt tokens in one forward pass")

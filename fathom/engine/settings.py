"""Settings of the engine; loads no torch."""

from __future__ import annotations

from pydantic import Field

from fathom.core.config import Settings

COMPILING = "the decoding step is compiled first, which takes about a minute (engine.compile)"


class EngineSettings(Settings):
    """How much the engine does at once: speed and memory, never what a request's distribution is."""

    batch: int = Field(256, ge=1, description="most completions decoded together")
    compile: bool = Field(
        False, description="compile the decoding step (latent attention only): a minute's wait first, and no faster "
        "than without on the CPUs that were measured")
    prefill_tokens: int = Field(8192, ge=1, description="most prompt tokens in one step")
    block: int = Field(16, ge=1, le=1024, description="tokens in a block of the cache")
    cache_gb: float | None = Field(
        None, gt=0, description="most memory of the cache, in 10⁹ bytes; default: a quarter of the machine's, or of "
        "what the GPU has free")
    int8: bool = Field(
        False, description="decode with weights rounded to 8 bits (BF16 on the CPU): faster for few completions at "
        "once, and another model than the one that is stored")
    deterministic: bool = Field(
        False, description="the same bits whatever else is in the batch or the cache: every token by itself, slower")
    speculate: bool = Field(
        False, description="guess the next token with the model's multi-token prediction and check both at once")

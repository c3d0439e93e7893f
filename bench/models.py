"""The one model of every bench, as ours and as transformers', with the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fathom.model import weights
from fathom.model.presets import PRESETS
from fathom.model.tokenizer import Tokenizer
from fathom.model.transformer import Transformer

PRESET = "bench-10m"


def ours(directory: Path, seed: int = 0, device: str = "cpu") -> tuple[Transformer, Tokenizer]:
    """A model with fresh weights and a small tokenizer, written to `directory` if it is not there yet."""
    if not (directory / "config.json").exists():
        tokenizer = Tokenizer.train([f"{a} + {b} = {a + b}" for a in range(30) for b in range(30)], 320)
        weights.save(directory, Transformer(PRESETS[PRESET]).initialise(seed), tokenizer)
    return weights.load(directory, device=device)


def theirs(
    directory: Path, experts: str = "grouped_mm", dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> Any:
    """The same directory in transformers, with the named implementation of experts where it has some."""
    from transformers import AutoConfig, AutoModelForCausalLM

    routes = hasattr(AutoConfig.from_pretrained(directory), "n_routed_experts")
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, **({"experts_implementation": experts} if routes else {}))
    model.generation_config.eos_token_id = None  # both sides produce every token that was asked for
    model.generation_config.pad_token_id = 0
    return model.to(device)

"""Small models with adapters that matter: B drawn, not zero, large enough to move every logit."""

from __future__ import annotations

import torch
from made_models import sharp

from fathom.model import lora
from fathom.model.config import Lora, ModelConfig
from fathom.model.transformer import Transformer


def grow(model: Transformer, seed: int = 3, gain: float = 0.5) -> Transformer:
    """The same model with every B drawn; the same numbers in every type."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(gain * drawn / parameter.shape[-1] ** 0.5)
    return model


def adapted(
    config: ModelConfig, settings: Lora | None = None, dtype: torch.dtype = torch.float64, gain: float = 0.5
) -> Transformer:
    """A made model with grown adapters at every place."""
    model = sharp(config, dtype=dtype)
    lora.attach(model, settings or Lora(rank=4, alpha=6), 1)
    return grow(model, gain=gain)

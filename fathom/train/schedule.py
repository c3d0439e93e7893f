"""Settings of the optimiser and of checkpoints, and the learning rate as a function of the step; loads no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from fathom.core.config import Settings


class AdamW(Settings):
    """AdamW with a schedule; defaults are DeepSeek-V3's where a tiny model can bear them (§4.2)."""

    aliases: ClassVar[Mapping[str, str]] = {
        "learning_rate": "lr", "max_grad_norm": "clip", "lr_scheduler_type": "schedule", "warmup_steps": "warmup",
    }
    elsewhere: ClassVar[Mapping[str, str]] = {"warmup_ratio": "the warm-up is counted in steps here; write warmup=100"}

    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    betas: tuple[float, float] = Field((0.9, 0.95), description="decay of the two moments")
    eps: float = Field(1e-8, gt=0, description="added to the root of the second moment")
    weight_decay: float = Field(0.1, ge=0, description="decoupled decay, on matrices only")
    clip: float = Field(1.0, gt=0, description="largest norm of the whole gradient")
    schedule: Literal["cosine", "wsd", "constant"] = Field("cosine", description="shape after warm-up")
    warmup: int = Field(20, ge=0, description="steps of linear warm-up")
    decay: float = Field(0.2, ge=0, le=1, description="wsd: last share of the steps, in which the rate falls")
    final: float = Field(0.1, ge=0, le=1, description="last rate as a share of the peak")
    bias_speed: float = Field(0.001, ge=0, description="γ: how far an expert's selection bias moves per step")

    def at(self, step: int, total: int) -> float:
        """Learning rate of step 1 … total."""
        if step <= self.warmup:
            return self.lr * step / self.warmup
        done = (step - self.warmup) / max(1, total - self.warmup)
        match self.schedule:
            case "constant":
                share = 1.0
            case "cosine":
                share = self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
            case "wsd":  # warm-up, stable, then linear decay
                falling = 0.0 if self.decay == 0 else max(0.0, (done - (1 - self.decay)) / self.decay)
                share = 1 - (1 - self.final) * min(1.0, falling)
        return self.lr * share


class Checkpoints(Settings):
    """When the state is saved and what of it is kept."""

    every: int = Field(50, ge=1, description="steps between checkpoints")
    keep: int = Field(2, ge=1, description="how many of the latest stay")
    best: bool = Field(True, description="also keep the one with the lowest held-out loss")

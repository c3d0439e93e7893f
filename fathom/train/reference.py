"""The reference of a policy: a copy that stands still, or follows at intervals; its state survives a kill."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from fathom.core import disk
from fathom.core.errors import FathomError
from fathom.model.transformer import Transformer


class Reference:
    """Holds `model`, whose weights `follow` moves to the policy's; every move is written to `folder` before it counts.

    In a team the first process `writes`. `state` and `restore` make it part of a checkpoint: the weights of the last
    move before it are loaded again.
    """

    def __init__(self, model: Transformer, folder: Path, writes: bool = True):
        self.model, self.folder, self.writes = model.requires_grad_(False).eval(), folder, writes
        self.moved = 0  # the step after which it last moved; 0: as it came
        self._kept = 0  # the move that the newest checkpoint needs

    def follow(self, policy: Transformer, step: int, mix: float = 1.0) -> None:
        """π_ref ← mix·π + (1 − mix)·π_ref after `step`; mix 1 replaces it (DeepSeekMath, algorithm 1)."""
        ours = self.model.state_dict()
        with torch.no_grad():
            for name, value in policy.state_dict().items():
                ours[name].lerp_(value.to(ours[name].dtype), mix) if ours[name].is_floating_point() and mix < 1 \
                    else ours[name].copy_(value)
        self.moved = step
        if not self.writes:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        disk.write_atomic(self._path(step), save({name: value.contiguous() for name, value in ours.items()}))
        for path in self.folder.glob("*.safetensors"):
            if int(path.stem) not in (step, self._kept) and int(path.stem) < step:
                os.unlink(path)

    def state(self) -> dict[str, Any]:
        """After which step it last moved."""
        self._kept = self.moved
        return {"moved": self.moved}

    def restore(self, state: dict[str, Any]) -> None:
        """Loads the weights of that move; FathomError where their file is gone."""
        self.moved = self._kept = int(state["moved"])
        if not self.moved:
            return
        path = self._path(self.moved)
        if not path.is_file():
            raise FathomError(f"{path}: the reference of the checkpoint is not there; restore it from a copy, or start "
                              "over with --fresh")
        self.model.load_state_dict(load_file(path))

    def _path(self, step: int) -> Path:
        return self.folder / f"{step:06d}.safetensors"

"""Checkpoints: the whole state of a stage in one folder, complete or absent, and the rule for which ones stay."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fathom.core import disk
from fathom.core.errors import FathomError

FORMAT = 1


def save(parent: Path, step: int, weights: dict[str, Tensor], optimiser: dict[str, Tensor], state: dict[str, Any]) -> Path:
    """Writes `parent/000050/`: weights, optimiser, `state.json`; returns the folder. The folder appears whole or not."""
    final = parent / f"{step:06d}"
    with disk.commit(final) as folder:
        save_file({k: v.detach().contiguous() for k, v in weights.items()}, folder.path("weights.safetensors"))
        save_file({k: v.detach().contiguous() for k, v in optimiser.items()}, folder.path("optimiser.safetensors"))
        text = json.dumps({"format": FORMAT, "step": step, **state}, sort_keys=True, allow_nan=False)
        folder.write("state.json", text.encode())
    return final


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Weights, optimiser tensors and state of one checkpoint, every checksum verified first."""
    disk.verify(folder)
    state = disk.read_json(folder / "state.json")
    if state.get("format") != FORMAT:
        raise FathomError(f"{folder}: checkpoint format {state.get('format')!r}; this version reads {FORMAT}; "
                          "continue it with the version that wrote it")
    try:
        return load_file(folder / "weights.safetensors"), load_file(folder / "optimiser.safetensors"), state
    except SafetensorError as error:
        raise FathomError(f"{folder}: {error}; delete this checkpoint to continue from the one before") from error


def steps(parent: Path) -> list[int]:
    """The complete checkpoints under `parent`, oldest first."""
    if not parent.is_dir():
        return []
    return sorted(int(p.name) for p in parent.iterdir() if p.name.isdigit() and disk.is_complete(p))


def prune(parent: Path, keep: int, best: int | None) -> None:
    """Removes all but the last `keep` checkpoints and the best one."""
    known = steps(parent)
    for step in known[:-keep]:
        if step != best:
            shutil.rmtree(parent / f"{step:06d}")

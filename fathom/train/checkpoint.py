"""Checkpoints: the whole state of a stage in one folder, complete or absent, and the rule for which ones stay."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fathom.core import disk
from fathom.core.errors import FathomError

FORMAT = 1
STATE = ("step", "mark", "best", "tokens", "threads", "tracked")  # what a Learner keeps beside tensors


def save(
    parent: Path, step: int, weights: dict[str, Tensor], optimiser: dict[str, Tensor], state: dict[str, Any]
) -> Path:
    """Writes `parent/000050/`: weights, optimiser, `state.json`; returns the folder. It appears whole or not at all."""
    final = parent / f"{step:06d}"
    with disk.commit(final) as folder:
        save_file(_apart(weights), folder.path("weights.safetensors"))
        save_file(_apart(optimiser), folder.path("optimiser.safetensors"))
        text = json.dumps({"format": FORMAT, "step": step, **state}, sort_keys=True, allow_nan=False)
        folder.write("state.json", text.encode())
    return final


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, copied where two share memory (tied embeddings): the file format has no aliases."""
    apart: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        apart[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return apart


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Weights, optimiser tensors and state of one checkpoint, every checksum verified first."""
    disk.verify(folder)
    remedy = "delete this checkpoint to continue from the one before"
    names = ("state.json", "weights.safetensors", "optimiser.safetensors")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise FathomError(f"{folder / missing[0]}: no such file, and a checkpoint has it; {remedy}")
    state = disk.read_json(folder / "state.json")
    if state.get("format") != FORMAT:
        raise FathomError(f"{folder}: checkpoint format {state.get('format')!r:.80}; this version reads {FORMAT}; "
                          "continue it with the version that wrote it")
    try:
        return load_file(folder / "weights.safetensors"), load_file(folder / "optimiser.safetensors"), state
    except SafetensorError as error:
        raise FathomError(f"{folder}: not whole safetensors files ({str(error)[:120]}); {remedy}") from error


def check_state(folder: Path, state: Mapping[str, Any], tracked: Collection[str]) -> None:
    """Raises FathomError where `state` lacks what a Learner keeps beside tensors, that of `tracked` things included."""
    missing = [name for name in STATE if name not in state] or [n for n in tracked if n not in state["tracked"]]
    if missing:
        raise FathomError(f"{folder / 'state.json'}: holds no {missing[0]}; delete this checkpoint to continue from "
                          "the one before")


def check_fit(folder: Path, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raises FathomError, naming the tensor, where a checkpoint's `found` tensors are not those of the model."""
    remedy = "it belongs to another model: put the settings back, or start over with --fresh"
    for name, tensor in expected.items():
        if name not in found:
            raise FathomError(f"{folder}: {name}: missing; {remedy}")
        if found[name].shape != tensor.shape:
            raise FathomError(f"{folder}: {name}: shape {list(found[name].shape)}, the model has "
                              f"{list(tensor.shape)}; {remedy}")
    if unknown := [name for name in found if name not in expected]:
        raise FathomError(f"{folder}: {unknown[0]}: not part of the model; {remedy}")


def steps(parent: Path) -> list[int]:
    """The complete checkpoints under `parent`, oldest first."""
    return [step for step in _numbers(parent) if disk.is_complete(parent / f"{step:06d}")]


def incomplete(parent: Path) -> list[Path]:
    """Folders named like checkpoints that lack their last-written file: `steps` leaves them out."""
    return [path for step in _numbers(parent) if not disk.is_complete(path := parent / f"{step:06d}")]


def _numbers(parent: Path) -> list[int]:
    return sorted(int(p.name) for p in parent.iterdir() if p.name.isdigit()) if parent.is_dir() else []


def prune(parent: Path, keep: int, best: int | None) -> None:
    """Removes all but the last `keep` checkpoints and the best one."""
    known = steps(parent)
    for step in known[:-keep]:
        if step != best:
            disk.remove(parent / f"{step:06d}")

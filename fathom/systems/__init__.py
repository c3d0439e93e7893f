"""What can be run. A system is a settings class and a function of (settings, run); they meet on disk, never in code."""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fathom.core import disk
from fathom.core.config import Settings, build
from fathom.core.errors import UsageError
from fathom.core.run import Run

# name → (module, settings class, function)
SYSTEMS: dict[str, tuple[str, str, str]] = {
    "tokenizer": ("fathom.systems.tokenizer", "TokenizerSettings", "tokenizer"),
    "pretrain": ("fathom.systems.pretrain", "Pretrain", "pretrain"),
    "sft": ("fathom.systems.sft", "Sft", "sft"),
    "grpo": ("fathom.systems.grpo", "Grpo", "grpo"),
    "distill": ("fathom.systems.distill", "Distill", "distill"),
    "evaluate": ("fathom.systems.evaluate", "Evaluate", "evaluate"),
}
_PATH = re.compile(r"\.(jsonl|jsonl\.gz|parquet|txt|py)$")


def settings_class(system: str) -> type[Settings]:
    """The settings class of a system; loads no torch."""
    if system not in SYSTEMS:
        import difflib

        near = difflib.get_close_matches(system, SYSTEMS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"{system}: no such system; {hint}There are {', '.join(SYSTEMS)}")
    module, settings, _ = SYSTEMS[system]
    found: type[Settings] = getattr(importlib.import_module(module), settings)
    return found


def start(
    system: str, values: Mapping[str, Any], directory: Path, seed: int, where: str, *, fresh: bool = False,
    time_limit: float | None = None, console: bool = True,
) -> Run:
    """Runs a system in `directory` to its end, continuing what is there; returns the closed run."""
    settings = build(settings_class(system), values, where)
    module, _, function = SYSTEMS[system]
    with Run.open(directory, system, settings, seed, inputs(settings), fresh, time_limit, console) as run:
        if not run.finished:
            getattr(importlib.import_module(module), function)(settings, run)
    return run


def inputs(settings: Settings) -> dict[str, str]:
    """The files and directories that the settings name, each with a fingerprint of its content."""
    found: dict[str, str] = {}

    def visit(value: Any) -> None:
        if isinstance(value, Mapping):
            for inner in value.values():
                visit(inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                visit(inner)
        elif isinstance(value, str | Path) and str(value) not in found:
            path = Path(value)
            if disk.is_complete(path):
                found[str(value)] = disk.digest(path)
            elif (path / "records").is_dir():
                parts = [disk.digest(p) for p in sorted((path / "records").iterdir()) if disk.is_complete(p)]
                found[str(value)] = hashlib.sha256("".join(parts).encode()).hexdigest()
            elif _PATH.search(str(value)) and path.is_file():
                with path.open("rb") as file:
                    found[str(value)] = hashlib.file_digest(file, "sha256").hexdigest()

    visit(settings.model_dump())
    return found

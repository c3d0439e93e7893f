"""What runs in the process that interprets kernels."""

from __future__ import annotations

import io
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch


def ready() -> None:
    """Starts the process, while the environment asks for the interpreter."""
    from fathom.model.kernels.launch import INTERPRETED

    assert INTERPRETED
    torch.set_num_threads(1)


def call(module: str, function: str, packed: bytes, back: int | None = None, source: Path | None = None) -> bytes:
    """The result of a kernel's function, or its argument number `back` as it is afterwards.

    `source` is a file to take the module from instead: a mutant. Tensors travel as bytes.
    """
    if source is None:
        found = import_module(f"fathom.model.kernels.{module}")
    else:
        spec = spec_from_file_location(source.stem, source)
        assert spec is not None and spec.loader is not None
        found = module_from_spec(spec)
        spec.loader.exec_module(found)
    args = unpack(packed)
    result = getattr(found, function)(*args)
    return pack(result if back is None else args[back])


def pack(value: Any) -> bytes:
    """Tensors, numbers and tuples as bytes."""
    held = io.BytesIO()
    torch.save(value, held)
    return held.getvalue()


def unpack(packed: bytes) -> Any:
    """What was packed."""
    return torch.load(io.BytesIO(packed), weights_only=True)

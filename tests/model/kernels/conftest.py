"""Kernels interpreted in a process of their own: Triton decides when it is imported whether it interprets."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def interpreted() -> Iterator[Callable[..., Any]]:
    """`interpreted(module, function, *args, back=None, source=None)`: see `child.call`."""
    pytest.importorskip("triton", reason="the kernels need Triton: pip install 'fathom-reasoning[kernels]'")
    import child

    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            pool.submit(child.ready).result()
        finally:
            if before is None:
                del os.environ["TRITON_INTERPRET"]
            else:
                os.environ["TRITON_INTERPRET"] = before

        def call(module: str, function: str, *args: Any, **named: Any) -> Any:
            return child.unpack(pool.submit(child.call, module, function, child.pack(args), **named).result())

        yield call


@pytest.fixture
def interpreted_gate(interpreted: Callable[..., Any]) -> Callable[..., Any]:
    """`interpreted_gate(config, weight, bias, x, shared)`: what the kernels choose for a router of these numbers."""
    return lambda *args: interpreted("child", "chosen", *args)

"""The tiny world of `small.py`, built once per session."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from small import Small, Twins, build


@pytest.fixture(scope="session")
def small() -> Iterator[Small]:
    """A tokenizer and a base model, in memory where possible: a kill spares there what it spares on a disk."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    root = Path(tempfile.mkdtemp(prefix="fathom-", dir=place))
    made = None
    try:
        made = build(root)
        yield made
    finally:
        if made:
            made.close()
        shutil.rmtree(root)


@pytest.fixture(scope="session")
def twins(small: Small) -> Twins:
    """Uninterrupted runs in the tiny world, each made once."""
    return Twins(small)


@pytest.fixture
def place(small: Small, request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty directory in the tiny world, removed afterwards."""
    path = small.root / f"at-{abs(hash(request.node.nodeid)):x}"
    path.mkdir()
    yield path
    shutil.rmtree(path)

"""What the tests of tasks share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def unsynced() -> Iterator[None]:
    """That stores survive a power failure is tested in tests/core; here they need not, which saves seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield

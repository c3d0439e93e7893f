"""Sandboxes that the tests of a module share."""

from collections.abc import Iterator

import pytest
from sandboxes import opened

from fathom.judge.sandbox import Level, Sandbox


@pytest.fixture(scope="module", params=[Level.L0, Level.L1], ids=["L0", "L1"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with opened(request.param) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def l1() -> Iterator[Sandbox]:
    with opened(Level.L1) as sandbox:
        yield sandbox

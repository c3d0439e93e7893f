"""Makes the room's own helper module importable, and gives kill tests a directory where fsync costs nothing."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is one: SIGKILL spares what reached the kernel there just as on a disk."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    path = Path(tempfile.mkdtemp(prefix="fathom-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path)

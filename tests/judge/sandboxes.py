"""What the tests of the sandbox share: opening one at a level, running one program, looking at processes."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fathom.judge.sandbox import End, Level, Limits, Program, Ran, Sandbox

ROOT = Path(__file__).resolve().parents[2]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def opened(level: Level, **settings: object) -> Sandbox:
    """At exactly this level. A machine that does not reach L1 fails the tests of L1, unless LEVEL=L0 says it may."""
    if level is Level.L1 and os.environ.get("LEVEL") == "L0":
        pytest.skip("LEVEL=L0: L1 is not tested here")
    return Sandbox(level=level, **settings)  # type: ignore[arg-type]


def run(sandbox: Sandbox, source: str, stdin: str | bytes = b"", files: dict[str, bytes] | None = None,
        **limits: float) -> Ran:
    return sandbox.run([Program(source, stdin, files or {}, Limits(**limits))])[0]  # type: ignore[arg-type]


def told(ran: Ran) -> tuple[End, int | None, str | None, str | None]:
    return ran.ended, ran.code, ran.exception, ran.limit


def until(true: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.02)
    return true()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False

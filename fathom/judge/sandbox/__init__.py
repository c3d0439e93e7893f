"""Untrusted Python programs, run where they can neither hurt the machine nor write their own verdict.

    with Sandbox(preload=("numpy",)) as sandbox:
        ran = sandbox.run([Program("print(int(input()) + 1)", stdin="41")])[0]
    assert ran.ended is End.EXITED and ran.code == 0 and ran.stdout == b"42\n"

What each level stops, and what it does not, stands in docs/sandbox.md, each sentence with its test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Self


class Level(IntEnum):
    """How much holds a program back.

    L0: a process of its own with resource limits, an empty environment and a folder that is removed afterwards.
    L1: besides, fresh user, mount, pid, net, ipc, uts and cgroup namespaces, a read-only root that shows Python and the
    system's libraries and nothing else, a sized tmpfs as working folder, no capabilities, no_new_privs, and a seccomp
    list of what is allowed.
    """

    L0 = 0
    L1 = 1


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may use. `memory_mb` counts beyond what the interpreter and its preloaded modules take."""

    cpu_s: float = 5.0
    wall_s: float = 10.0
    memory_mb: int = 512
    output_kb: int = 64  # stdout and stderr, each
    disk_mb: int = 16
    threads: int = 16  # a program starts threads, never processes


@dataclass(frozen=True)
class Program:
    """Python source as it would stand in a file. `files` are put into its working folder, by plain name."""

    source: str
    stdin: str | bytes = b""
    files: Mapping[str, bytes] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)


class End(StrEnum):
    """How a program ended. The kernel or the sandbox's server says so, never the program."""

    EXITED = "exited"  # by itself; `code`
    RAISED = "raised"  # an exception that nobody caught; `exception`. A program can fake this, to its own loss only
    SIGNALLED = "signalled"  # killed by a signal that was not ours; `code` is its number
    LIMIT = "limit"  # it met a limit; `limit` names it
    BROKEN = "broken"  # the sandbox broke or the machine was too busy: nothing is known of the program


@dataclass(frozen=True)
class Ran:
    """What is known of a program that ran. Output is cut at its limit, never dropped."""

    ended: End
    code: int | None = None
    exception: str | None = None  # "ValueError: the message"
    limit: str | None = None  # cpu, wall, memory, output, disk
    reason: str = ""  # of BROKEN, short and stable
    stdout: bytes = b""
    stderr: bytes = b""
    cpu_s: float = 0.0
    wall_s: float = 0.0


class Sandbox:
    """Runs programs, `workers` at a time, each in a process and namespaces of its own. A context manager.

    `level` is the highest that the platform reaches unless given; `require_level` raises SandboxError where less is
    reached, with what is missing and how to get it. Modules named in `preload` are imported once, so that a program
    that imports them starts in milliseconds. A program sees no other program's memory, files, source or output.
    """

    level: Level  # what was reached

    def __init__(
        self,
        *,
        workers: int = 2,
        preload: Sequence[str] = (),
        level: Level | None = None,
        require_level: Level = Level.L0,
    ) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Kills whatever runs; a later `run` starts anew."""

    def run(self, programs: Sequence[Program]) -> list[Ran]:
        """One Ran per program, in order. No program's end, however violent, raises here."""
        raise NotImplementedError

    def run_pairs(self, pairs: Sequence[tuple[Program, Program]]) -> list[tuple[Ran, Ran]]:
        """Runs two programs side by side, joined by a socket that is file descriptor 3 in both.

        The second one leads: when it ends, the first is killed (which is not recorded as a signal but as EXITED with
        code 0). When the first ends, the second reads end of file. Neither sees anything else of the other.
        """
        raise NotImplementedError


def reached_level() -> tuple[Level, str]:
    """The highest level on this machine, tried once and remembered, and why no higher one (empty where L1 is reached)."""
    raise NotImplementedError

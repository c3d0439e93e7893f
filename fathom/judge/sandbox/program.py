"""Untrusted programs as data: what runs, what it may use, and what is known of it afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum


class Level(IntEnum):
    """How much holds a program back.

    L0: a process of its own with resource limits, an environment that tells nothing (numerical libraries are to use one
    thread) and a folder that is removed afterwards.
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
    memory_mb: int = 512  # MiB of address space
    output_kb: int = 64  # KiB of stdout and of stderr, each
    disk_mb: int = 16  # MiB in the working folder; at L0 in each file
    threads: int = 16  # a program starts threads, never processes; not enforced at L0


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

"""An attack: a small Python program, and how the harness sees from outside that it succeeded."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen

from fathom.judge.sandbox import Limits

REFUSED = (errno.EPERM, errno.EACCES, errno.ENOSYS)
LIMITS = Limits(cpu_s=2.0, wall_s=4.0, memory_mb=192)


@dataclass
class Outcome:
    """What became of a program. The sandbox says it, or in a run without one, the kernel or the naive judge."""

    ended: str
    code: int | None = None
    stdout: bytes = field(default=b"", repr=False)  # without the sandbox it holds the machine's secrets
    limit: str | None = None
    reason: str = ""
    second: Outcome | None = None  # of the honest other end, where the attack is half of a pair
    beside: Outcome | None = None  # of the program that ran at the same time
    after: Outcome | None = None  # of the program that ran next
    peak_mb: float = 0.0  # resident memory and tasks of all our descendants, most while it ran
    peak_tasks: int = 0


@dataclass
class Stage:
    """What one run of one attack aims at."""

    attack: Attack
    mark: str  # names this run; whoever sees it outside knows where it came from
    secret: str
    out: Path  # a folder outside the sandbox
    heard: set[str]  # marks that came in at the harness's listeners
    victim: Popen[str] | None = None
    facts: dict[str, object] = field(default_factory=dict)  # what the program is told
    source: str = ""
    alive: bool = False  # a process that carries the mark still ran after the program had ended


See = Callable[[Stage, Outcome], bool]


@dataclass(frozen=True)
class Attack:
    """A program and its company. `source` sees the names that Scene.stage tells it.

    `before` and `after` run just before and after it, by the same worker; `beside` runs at the same time; `second` is
    the honest leading end of a pair whose first end attacks.
    """

    name: str
    kind: str
    source: str
    seen: See
    before: str = ""
    beside: str = ""
    after: str = ""
    second: str = ""
    limits: Limits = LIMITS
    ends: str = ""  # what the sandbox may report, whatever it tries: "limit cpu or raised 1"; empty: anything
    measured: bool = False  # what it takes is measured from outside, so it runs alone
    naive: bool = False  # without the sandbox it runs in the naive judge, not as a plain child


def told(fact: str) -> See:
    """The program printed a fact that only success can tell it."""
    return lambda stage, outcome: str(stage.facts[fact]).encode() in outcome.stdout


def told_secret(stage: Stage, outcome: Outcome) -> bool:
    """The program printed the secret, which stands outside, in a victim or in a neighbour."""
    return stage.secret.encode() in outcome.stdout


def printed(pattern: str) -> See:
    """Standard output holds a line that the source computes from what the kernel returned."""
    return lambda stage, outcome: re.search(pattern.encode(), outcome.stdout, re.MULTILINE) is not None


def reached(*errors: int) -> See:
    """A system call was carried out: its last result is no error, or one that comes after the check of rights."""

    def seen(stage: Stage, outcome: Outcome) -> bool:
        results = re.findall(rb"^returned (-?\d+) (\d+)$", outcome.stdout, re.MULTILINE)
        return any(int(value) != -1 or int(error) in errors for value, error in results[-1:])

    assert not set(errors) & set(REFUSED)
    return seen


def heard(stage: Stage, outcome: Outcome) -> bool:
    """One of the harness's listeners got the mark."""
    return stage.mark in stage.heard


def changed(stage: Stage, outcome: Outcome) -> bool:
    """Something in the folder outside is no longer as it was: content, name, mode, times or attributes."""
    return picture(stage.out) != stage.facts["PICTURE"]


def alive(stage: Stage, outcome: Outcome) -> bool:
    """A process of the program's outlived it."""
    return stage.alive


def victim_changed(stage: Stage, outcome: Outcome) -> bool:
    """The victim died, stopped, or has other priorities, limits or memory than it started with."""
    assert stage.victim is not None
    return stage.victim.poll() is not None or victim_picture(stage) != stage.facts["VICTIM_PICTURE"]


def victim_picture(stage: Stage) -> tuple[object, ...]:
    """State, nice value, limits, affinity and watched memory of the victim."""
    assert stage.victim is not None
    pid = stage.victim.pid
    process = Path(f"/proc/{pid}")
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    with open(process / "mem", "rb") as memory:
        memory.seek(int(str(stage.facts["VICTIM_ADDRESS"])))
        held = memory.read(16)
    status = (process / "status").read_text()
    affinity = re.search(r"Cpus_allowed_list:\s*(\S+)", status)
    return (
        fields[0] in "Tt",
        fields[16],
        (process / "limits").read_text(),
        affinity and affinity[1],
        held,
        os.sched_getscheduler(pid),
        (process / "oom_score_adj").read_text(),
    )


def picture(folder: Path) -> list[tuple[object, ...]]:
    """Name, mode, time, links, attributes and content of everything in the folder."""
    seen: list[tuple[object, ...]] = []
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        attributes = os.listxattr(path, follow_symlinks=False)
        seen.append((path.name, status.st_mode, status.st_mtime_ns, status.st_nlink, attributes, content[:4096]))
    return seen


def peak_mb(least: float) -> See:
    """More memory than that was resident in our descendants, seen from outside."""
    return lambda stage, outcome: outcome.peak_mb > least


def peak_tasks(least: int) -> See:
    """More processes and threads than that ran below us, seen from outside."""
    return lambda stage, outcome: outcome.peak_tasks > least


def counted(least: int) -> See:
    """The last number that the program printed after `held`: what the kernel let it take so far."""

    def seen(stage: Stage, outcome: Outcome) -> bool:
        held = re.findall(rb"^held (\d+)$", outcome.stdout, re.MULTILINE)
        return bool(held) and int(held[-1]) > least

    return seen


def after_differs(expected: bytes) -> See:
    """The next program, honest and the same every time, printed something else."""

    def seen(stage: Stage, outcome: Outcome) -> bool:
        return outcome.after is None or (outcome.after.ended, outcome.after.stdout) != ("exited", expected)

    return seen


def second_differs(expected: bytes) -> See:
    """The honest other end of the pair printed something else, or did not end well."""

    def seen(stage: Stage, outcome: Outcome) -> bool:
        assert outcome.second is not None
        return (outcome.second.ended, outcome.second.code, outcome.second.stdout) != ("exited", 0, expected)

    return seen


def strayed(stage: Stage, outcome: Outcome) -> bool:
    """The harness found, and removed, a file or IPC object with the mark."""
    return bool(stage.facts["STRAY"])


def forged(stage: Stage, outcome: Outcome) -> bool:
    """Reported as ended well; every forging program ends badly, or meets a limit, by its own last line."""
    return outcome.ended == "exited" and outcome.code == 0

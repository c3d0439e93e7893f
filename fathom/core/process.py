"""Which process wrote this, and is it still there? Names that outlive the process that carries them."""

from __future__ import annotations

import hashlib
import os
import socket
from functools import cache
from pathlib import Path


@cache
def host() -> str:
    """This machine's name."""
    return socket.gethostname()


def members() -> int:
    """How many processes torchrun started in this one's row, this one included; 1 without torchrun."""
    told = {"RANK", "LOCAL_RANK", "MASTER_ADDR"} <= os.environ.keys()  # WORLD_SIZE alone is set by others too
    return int(os.environ.get("WORLD_SIZE", "1")) if told else 1


@cache
def boot() -> str:
    """What changes when the machine restarts; empty where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


@cache
def place() -> str:
    """Eight characters for where process numbers mean the same: the machine and, in a container, its own numbering."""
    try:
        numbering = os.readlink("/proc/self/ns/pid")
    except OSError:
        numbering = ""
    return hashlib.sha256(f"{host()}\0{numbering}".encode()).hexdigest()[:8]


def started(pid: int) -> str:
    """When a process started, in clock ticks since boot; empty where it is gone or the system does not tell."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    # The program's name stands in parentheses and may hold anything; field 22 is counted after it.
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]


def alive(pid: int, start: str) -> bool:
    """Whether process `pid` of this place still runs and is the one that started at `start` (empty: any)."""
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it exists and belongs to someone else
    if Path("/proc/self/stat").exists():
        now = started(pid)
        return bool(now) and start in ("", now)
    return True

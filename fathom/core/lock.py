"""One process at a time: a lock file that says who holds it and that a dead holder cannot keep."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any

from fathom.core import process
from fathom.core.errors import FathomError, UsageError


class Lock:
    """The lock file `path`, held from construction until `release`.

    The kernel's flock is the lock, so it ends with the process however that ends; the file's content (pid, host, boot,
    start time) says who holds it, and stands in for flock where a file system has none. `replaced` describes the dead
    holder whose lock was taken over, or is empty. Raises UsageError that names a living holder.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.replaced = path, ""
        try:
            self._file = self._take()
        except OSError as error:
            raise FathomError(f"{path}: {error.strerror}; check the directory and its permissions") from error

    def release(self) -> None:
        """Gives the lock up and removes its file."""
        if self._file < 0:
            return
        # Unlinked while held: whoever opened the old file in between finds another one under the name and tries again.
        self.path.unlink(missing_ok=True)
        os.close(self._file)
        self._file = -1

    def _take(self) -> int:
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                locked = _flock(file)
                holder = _holder(file)
                if not locked:
                    raise self._held(holder)
                if not self._is_still(file):
                    os.close(file)
                    continue
                if holder and _lives(holder):
                    raise self._held(holder)
                if holder:
                    self.replaced = f"pid {holder['pid']} on {holder['host']}"
                pid = os.getpid()
                me = {"pid": pid, "host": process.host(), "place": process.place(), "boot": process.boot()}
                os.ftruncate(file, 0)
                os.pwrite(file, json.dumps({**me, "start": process.started(pid)}).encode(), 0)
                return file
            except BaseException:
                os.close(file)
                raise

    def _is_still(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _held(self, holder: dict[str, Any]) -> UsageError:
        if not holder:
            who, remedy = "another process", "wait for it"
        else:
            who, remedy = f"pid {holder['pid']} on {holder['host']}", "wait for it, or stop it with SIGTERM"
            if holder["place"] == process.place() and not _lives(holder) and holder["pid"] != os.getpid():
                who += " (gone, but a process that it started lives on and holds its files)"
                remedy = "end that process"
        return UsageError(f"{self.path.parent}: in use by {who}; {remedy}, or choose another directory with --dir")


def _flock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        # A file system without flock: the content decides alone.
    return True


def _holder(file: int) -> dict[str, Any]:
    """Who the file names; empty when it is new or was cut off by a kill."""
    try:
        holder = json.loads(os.pread(file, 4096, 0))
        return {"pid": int(holder["pid"]), **{key: str(holder[key]) for key in ("host", "place", "boot", "start")}}
    except (ValueError, KeyError, TypeError):
        return {}


def _lives(holder: dict[str, Any]) -> bool:
    """Whether the named holder is certainly a living process other than this one."""
    if (holder["place"], holder["boot"]) != (process.place(), process.boot()) or holder["pid"] == os.getpid():
        return False
    return process.alive(holder["pid"], holder["start"])

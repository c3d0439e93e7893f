"""The child side of `fathom.judge.pool`, which alone runs it: reads a JSON item a line, answers a JSON line each.

Two processes: a keeper imports the target once and forks the server that works. A server that hangs or dies is
replaced by another fork in milliseconds, where a new interpreter with sympy takes a second.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import logging
import math
import os
import resource
import select
import signal
import sys
from typing import Any, BinaryIO, NoReturn

_MIB = 1 << 20
_ITEMS_PER_SERVER = 5_000  # sympy's caches only grow; a fresh server is cheaper than a full one
_LOOK_MS = 50  # how often to see whether a server has ended where the system does not tell
RETIRED = 70  # exit status of a server that asks to be replaced
log = logging.getLogger(__name__)


def main(target: str, memory_mb: int, timeout_s: float) -> None:
    """Keeps a server for `target` ("module:function") until standard input ends.

    SIGUSR1 kills the server, which is replaced. At SIGTERM, and when the other end of standard input is closed, as it
    also is when the parent is killed, the whole process group ends: keeper, server, and what the target has started.
    """
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a library that prints must not write into the protocol
    module, _, name = target.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        _say(replies, {"error": f"{type(error).__name__}: {error}"})
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    gc.collect()
    gc.freeze()  # what is loaded now stays shared with every server
    server = 0

    def kill(number: int, frame: object) -> None:
        if server:
            os.kill(server, signal.SIGKILL)  # not yet waited for, so the number is still its own
        if number == signal.SIGTERM:
            if server:
                os.waitpid(server, 0)
            _end_all()

    handled = {signal.SIGUSR1, signal.SIGTERM}
    for one in handled:
        signal.signal(one, kill)
    generation = 0
    ended: dict[str, int] = {}
    while True:
        signal.pthread_sigmask(signal.SIG_BLOCK, handled)
        keeper = os.getpid()
        server = os.fork()
        if not server:
            for one in handled:
                signal.signal(one, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, handled)
            os._exit(_serve(function, generation, replies, keeper, memory_mb, timeout_s))
        _say(replies, {**ended, "serving": server})
        signal.pthread_sigmask(signal.SIG_UNBLOCK, handled)
        status, server = _ended(server, handled), 0
        if status == 0:
            _end_all()
        generation, ended = generation + 1, {"ended": status}


def _ended(server: int, handled: set[signal.Signals]) -> int:
    """The exit status of the server once it ended, `handled` being blocked then. Everything ends with the parent."""
    watched = select.poll()
    watched.register(0, 0)  # 0: only that the other end is closed, and nobody will read an answer
    if hasattr(os, "pidfd_open"):
        watched.register(pidfd := os.pidfd_open(server), select.POLLIN)
    while True:
        happened = watched.poll(None if hasattr(os, "pidfd_open") else _LOOK_MS)
        if any(descriptor == 0 for descriptor, _ in happened):
            _end_all()
        signal.pthread_sigmask(signal.SIG_BLOCK, handled)  # before the body is reaped and its number another's
        pid, status = os.waitpid(server, os.WNOHANG)
        if pid:
            if hasattr(os, "pidfd_open"):
                os.close(pidfd)
            return os.waitstatus_to_exitcode(status)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, handled)


def _end_all() -> NoReturn:
    os.killpg(0, signal.SIGKILL)
    raise AssertionError("the own process group outlived SIGKILL")


def _serve(function: Any, generation: int, replies: Any, keeper: int, memory_mb: int, timeout_s: float) -> int:
    """Answers items until input ends (0) or a fresh server is due (RETIRED)."""
    if limited := sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no server outlives its keeper
        if os.getppid() != keeper:
            return 0
        _limit_memory(memory_mb)
    start = _peak_mib() if limited else 0.0
    items = open(0, "rb", closefd=False)  # noqa: SIM115  (a buffer of its own, not the keeper's)
    if generation and not _skip_to(items, generation):
        return 0
    for served, line in enumerate(items, 1):
        _limit_cpu(timeout_s)
        reply = _answer(function, json.loads(line))
        # Libraries swallow MemoryError and answer "not equal". A peak this close to the limit is not believed. (One
        # single request beyond the limit leaves no trace; only a caller that lets MemoryError through reports that.)
        if limited and "error" not in reply and _peak_mib() - start > memory_mb / 2:
            reply = {"error": "out of memory", "retire": True}
        retire = reply.pop("retire", False)
        _say(replies, reply)
        if retire or served >= _ITEMS_PER_SERVER:
            return RETIRED
    return 0


def _skip_to(items: BinaryIO, generation: int) -> bool:
    """Passes over what was meant for the server before; False where input ends."""
    mark = f"#{generation}\n".encode()
    return any(line == mark for line in items)


def _answer(function: Any, item: Any) -> dict[str, Any]:
    try:
        return {"value": function(item)}
    except MemoryError:
        return {"error": "out of memory", "retire": True}
    except RecursionError:
        return {"error": "judge raised RecursionError", "retire": True}
    except Exception as error:
        log.exception("%s raised", function)
        return {"error": f"judge raised {type(error).__name__}"}


def _say(replies: Any, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


def _limit_memory(memory_mb: int) -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + memory_mb * _MIB
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _limit_cpu(timeout_s: float) -> None:
    # The parent's clock comes first. This ends a worker whose parent was killed while it hung.
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(used.ru_utime + used.ru_stime + 2 * timeout_s + 10)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _peak_mib() -> float:
    # Address space, which is what RLIMIT_AS counts; pages that were never touched are missing from the resident peak.
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmPeak:"))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))

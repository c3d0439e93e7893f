"""The child side of `fathom.judge.pool`, which alone runs it: reads a JSON item a line, answers a JSON line each."""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
import resource
import sys
from typing import Any

_MIB = 1 << 20
log = logging.getLogger(__name__)


def main(target: str, memory_mb: int, timeout_s: float) -> None:
    """Serves `target` ("module:function") until standard input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a library that prints must not write into the protocol
    module, _, name = target.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        _say(replies, {"error": f"{type(error).__name__}: {error}"})
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if limited := sys.platform == "linux":
        _limit_memory(memory_mb)
    start = _peak_mib() if limited else 0.0
    _say(replies, {"ready": True})
    for line in sys.stdin.buffer:
        _limit_cpu(timeout_s)
        reply = _answer(function, json.loads(line))
        # Libraries swallow MemoryError and answer "not equal". A peak this close to the limit is not believed. (One
        # single request beyond the limit leaves no trace; only a caller that lets MemoryError through reports that.)
        if limited and "error" not in reply and _peak_mib() - start > memory_mb / 2:
            reply = {"error": "out of memory", "retire": True}
        _say(replies, reply)
        if reply.get("retire"):
            return


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

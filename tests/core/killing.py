"""Runs a scenario in forked children that die by SIGKILL at each disk operation in turn."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

from fathom.core import disk

OPERATIONS = ((disk, "_write"), (os, "fsync"), (os, "replace"), (os, "rename"))


def deaths(scenario: Callable[[], None]) -> Iterator[tuple[int, str]]:
    """Yields (operation number, moment) after each child died there; ends when a child came through alive.

    Moments: "before" and "after" the operation, and for writes "half", with half of the bytes written. The caller
    checks the disk at each yield, and may restore it.
    """
    for number in count(1):
        name = _child(scenario, number, "before")
        if not name:
            return
        yield number, "before"
        for moment in ("half", "after") if name == "_write" else ("after",):
            assert _child(scenario, number, moment) == name, "the scenario is not deterministic"
            yield number, moment


def _child(scenario: Callable[[], None], number: int, moment: str) -> str:
    """Runs the scenario in a child that dies at the operation; the operation's name, or "" if it never came to it."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            counter = count(1)
            for module, name in OPERATIONS:
                setattr(module, name, _dying(getattr(module, name), name, counter, number, moment, theirs))
            scenario()
            os._exit(0)
        except BaseException:  # the child must not return into pytest
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        name = pipe.read()
    status = os.waitpid(pid, 0)[1]
    assert status == (signal.SIGKILL if name else 0), "the scenario itself failed, see above"
    return name


def _dying(
    operation: Callable[..., Any], name: str, counter: Iterator[int], number: int, moment: str, pipe: int
) -> Callable[..., Any]:
    def wrapped(*arguments: Any) -> Any:
        if next(counter) != number:
            return operation(*arguments)
        if moment == "half":
            operation(arguments[0], arguments[1][: len(arguments[1]) // 2])
        elif moment == "after":
            operation(*arguments)
        os.write(pipe, name.encode())
        os.kill(os.getpid(), signal.SIGKILL)

    return wrapped

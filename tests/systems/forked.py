"""A process that has imported everything once and forks a child for each command line: no start-up to wait for.

    python forked.py 5:8 6:9     serves two rows of requests at once, read from file 5 and 6, answered in 8 and 9

A request and its answer are one JSON line each.

A request holds `argv` (what follows `fathom`), `log` (a file for what the child prints), and may hold

    inside        the directory whose disk operations are counted
    point         [number, moment]: the child ends itself by SIGKILL at that operation; moments are before, half, after
    list          a file that gets the names of all operations, in order
    signal, after or lines and file     a signal sent after so many seconds, or once `file` has so many lines
    commit_every  records per commit, in place of 5000

The answer holds `code` (exit code, or minus the signal), `seconds`, and `sent`: whether the signal was sent.
The parent runs no tensor operation, so no thread of torch exists when it forks.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAMES = ("fsync", "replace", "rename", "ftruncate", "pwrite", "unlink", "rmdir", "mkdir")


def main() -> None:
    """Serves every row of requests in a process of its own, until it ends."""
    rows = [tuple(map(int, word.split(":"))) for word in sys.argv[1:]]
    warm_up()
    for row in rows:
        if os.fork():
            continue
        for file in {file for other in rows if other != row for file in other}:
            os.close(file)  # an end of a pipe held here would keep the other row from ending
        with os.fdopen(row[0]) as requests, os.fdopen(row[1], "w") as answers:
            for line in requests:
                answers.write(json.dumps(serve(json.loads(line))) + "\n")
                answers.flush()
        os._exit(0)  # nothing here is worth a tidy end of the interpreter, which takes seconds
    for row in rows:
        for file in row:
            os.close(file)
    while rows:
        os.wait()
        rows.pop()
    os._exit(0)


def warm_up() -> None:
    """Imports what the systems import inside their functions."""
    import pyarrow.parquet
    import torch._dynamo  # imported by the first optimiser, a second long

    import fathom.cli
    import fathom.engine.engine
    import fathom.systems.distill
    import fathom.systems.evaluate
    import fathom.systems.extend
    import fathom.systems.grpo
    import fathom.systems.pretrain
    import fathom.systems.sft
    import fathom.systems.tokenizer
    import fathom.tasks.examples
    import fathom.tasks.judging
    import fathom.tasks.needle
    import fathom.tasks.scores
    import fathom.train.learner
    import fathom.train.positions
    import fathom.train.prepare
    from fathom.tasks.task import load_task

    assert pyarrow.parquet and torch._dynamo and fathom.cli
    next(load_task({"task": "gym:chain_sum"}).problems("train", 1))


def serve(request: dict[str, Any]) -> dict[str, Any]:
    """Forks a child for the request and waits for it."""
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = in_child(request)
        except BaseException:  # the child must not return into the server's loop
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    sent = False
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if "signal" in request and not sent and due(request, time.monotonic() - began):
            os.kill(child, request["signal"])
            sent = True
        time.sleep(0.001)
    return {"code": os.waitstatus_to_exitcode(ended[1]), "seconds": time.monotonic() - began, "sent": sent}


def due(request: dict[str, Any], seconds: float) -> bool:
    """Whether the moment of the signal has come."""
    if "after" in request:
        return bool(seconds >= request["after"])
    try:
        return Path(request["file"]).read_bytes().count(b"\n") >= request["lines"]
    except FileNotFoundError:
        return False


def in_child(request: dict[str, Any]) -> int:
    """Runs the command line as `python -m fathom` does; its exit code."""
    from fathom.cli import main as fathom
    from fathom.core.records import RecordStore

    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    empty = os.open(os.devnull, os.O_RDONLY)
    for file, number in ((empty, 0), (log, 1), (log, 2)):
        os.dup2(file, number)
    if "commit_every" in request:
        RecordStore.__init__.__defaults__ = (None, request["commit_every"], 30.0)
    seen: list[str] = []
    if "inside" in request:
        watch(request["inside"], tuple(request.get("point", (0, ""))), seen)
    sys.argv = ["fathom", *request["argv"]]
    code = 0
    try:
        fathom()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    if "list" in request:
        Path(request["list"]).write_text(json.dumps(seen))
    return code


def watch(inside: str, point: tuple[int, str], seen: list[str]) -> None:
    """Counts the operations that change something in the directory `inside`, notes each, and dies at `point`."""
    import fathom.core.journal
    import fathom.model.weights.directory
    import fathom.train.checkpoint
    from fathom.core import disk

    def dying(operation: Callable[..., Any], name: str) -> Callable[..., Any]:
        """`operation`, counted; at the point the process ends before it, half-way through it, or after it."""

        def wrapped(*arguments: Any, **named: Any) -> Any:
            path = inside if name.startswith("sqlite") else target(name, arguments, named)
            if not path.startswith(inside) or (name == "mkdir" and os.path.isdir(path)):
                return operation(*arguments, **named)
            seen.append(f"{name} {path.removeprefix(inside)}")
            if len(seen) != point[0]:
                return operation(*arguments, **named)
            if point[1] == "half" and name == "_write":
                operation(arguments[0], arguments[1][: len(arguments[1]) // 2])
            elif point[1] == "half":
                operation(*arguments, **named)
                written = target(name, arguments, named)
                os.truncate(written, os.path.getsize(written) // 2)
            elif point[1] == "after":
                operation(*arguments, **named)
            os.kill(os.getpid(), signal.SIGKILL)

        return wrapped

    places = [(os, name) for name in NAMES] + [(disk, "_write")]
    places += [(fathom.model.weights, "write_stream"), (fathom.model.weights.directory, "write_stream"),
               (fathom.train.checkpoint, "save_file")]
    for module, name in places:
        setattr(module, name, dying(getattr(module, name), name))

    class Connection(sqlite3.Connection):
        """Its writing statements are operations too."""

        def execute(self, sql: str, *rest: Any) -> sqlite3.Cursor:
            if sql.startswith("SELECT") or ("PRAGMA" in sql and "=" not in sql):
                return super().execute(sql, *rest)
            return dying(super().execute, f"sqlite {sql[:28]}")(sql, *rest)

        def executemany(self, sql: str, rows: Any) -> sqlite3.Cursor:
            return dying(super().executemany, f"sqlite {sql[:28]}")(sql, rows)

    connect = sqlite3.connect
    fathom.core.journal.sqlite3.connect = lambda *a, **k: connect(*a, **k, factory=Connection)


def target(name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> str:
    """The path that an operation changes."""
    first = arguments[1] if name in ("save_file", "rename", "replace") else arguments[0]
    if isinstance(first, int):
        return os.readlink(f"/proc/self/fd/{first}")
    if named.get("dir_fd") is not None:
        return os.path.join(os.readlink(f"/proc/self/fd/{named['dir_fd']}"), first)
    return os.path.abspath(first)


if __name__ == "__main__":
    main()

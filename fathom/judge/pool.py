"""Processes that may hang, crash or eat memory without harm: the parent kills them and judging goes on.

Signals cannot interrupt sympy inside C code, so nothing here relies on alarms: the parent watches
the clock and kills. Plain subprocesses with a pipe are used, not multiprocessing: a spawned child would import the
user's main script, and a forked one would inherit torch's threads. Each worker is a keeper that forks the server which
does the work (`fathom.judge.worker`), so that a killed server is replaced in milliseconds.
"""

from __future__ import annotations

import json
import math
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from fathom.core.errors import FathomError, UsageError
from fathom.judge.worker import RETIRED

_IN_FLIGHT_ITEMS = 16  # hides the round trip; what a dead worker had not answered is asked again
_IN_FLIGHT_BYTES = 32_768  # below a pipe's 64 KiB, so that parent and worker never both wait to write
_START_S = 120.0
_KILL_S = 5.0  # for a keeper to replace its server, before it is given up itself
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Broken:
    """No value for this item, and why; the reason is short and stable."""

    reason: str


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    server: int = 0  # process id of the fork that works; 0 until there is one
    generation: int = 0  # how many servers it replaced
    buffer: bytes = b""
    asked: deque[tuple[int, int]] = field(default_factory=deque)  # (item number, bytes) not answered yet
    late: int | None = None  # the item for which its server was killed
    since: float = field(default_factory=time.monotonic)  # when it began what it is doing now

    def kill(self) -> None:
        self.process.terminate()  # the keeper takes its server along, and what that may have started
        try:
            self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):  # bytes it never read; it is dead anyway
                    stream.close()


def _kill_all(workers: list[_Worker], owner: int | None = None) -> None:
    if owner in (None, os.getpid()):  # a forked child that ends must not take its parent's workers along
        while workers:
            workers.pop().kill()


class Pool:
    """`map` for a function that cannot be trusted to return.

    `target` is "module:function"; the function takes and returns JSON values and is imported in the workers only.
    Workers start at the first `map`, live until `close`, and get `memory_mb` MiB beyond what they need to start (on
    Linux; macOS does not enforce the limit). Safe to call from several threads, one map at a time.
    """

    def __init__(self, target: str, workers: int = 1, timeout_s: float = 5.0, memory_mb: int = 1024) -> None:
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
            raise UsageError(f"workers={workers!r:.80}: judging needs at least 1 worker; give a whole number ≥ 1")
        if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s < math.inf:
            raise UsageError(f"timeout_s={timeout_s!r:.80}: must be above 0 seconds and finite; give such a number")
        self.target, self.size, self.timeout_s, self.memory_mb = target, workers, timeout_s, memory_mb
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self._finalizer = weakref.finalize(self, _kill_all, self._workers, os.getpid())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Kills the workers; a later `map` starts new ones."""
        with self._lock:
            _kill_all(self._workers)

    def pids(self) -> list[int]:
        """Process ids of the live workers: of their servers, or of those that still start."""
        return [worker.server or worker.process.pid for worker in self._workers]

    def map(self, items: Sequence[Any]) -> list[Any | Broken]:
        """`target(item)` for each item, in order; Broken for the items that hung, crashed, raised or ran out of memory.

        FathomError when a worker cannot even start.
        """
        with self._lock:
            try:
                return self._map([json.dumps(item).encode() + b"\n" for item in items])
            except BaseException:  # Ctrl-C included: answers still in the pipes would belong to nobody
                _kill_all(self._workers)
                raise

    def _map(self, lines: list[bytes]) -> list[Any | Broken]:
        results: list[Any | Broken] = [Broken("never asked")] * len(lines)
        todo = deque(range(len(lines)))
        for worker in self._ready_now():  # one may have died since the last call; that is nobody's fault now
            self._read(worker, results, todo)
        while todo or any(worker.asked for worker in self._workers):
            while len(self._workers) < min(self.size, len(todo)):
                self._workers.append(self._start())
            for worker in list(self._workers):
                self._feed(worker, lines, todo)
            for worker in self._readable():
                self._read(worker, results, todo)
            for worker in list(self._workers):
                self._watch(worker, results, todo)
        return results

    def _start(self) -> _Worker:
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        paths = [str(_ROOT), *(path for path in sys.path if path)]
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
        process = subprocess.Popen(
            [sys.executable, "-m", "fathom.judge.worker", self.target, str(self.memory_mb), str(self.timeout_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the parent, which decides
        )
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        return _Worker(process)

    def _feed(self, worker: _Worker, lines: list[bytes], todo: deque[int]) -> None:
        if not worker.server or worker.late is not None:
            return
        waiting = sum(size for _, size in worker.asked)
        share = -(-len(todo) // len(self._workers))  # the last items are spread, not given to one worker
        while todo and len(worker.asked) < min(_IN_FLIGHT_ITEMS, max(share, 1)):
            line = lines[todo[0]]
            if worker.asked and waiting + len(line) > _IN_FLIGHT_BYTES:
                return
            if not worker.asked:
                worker.since = time.monotonic()
            worker.asked.append((todo.popleft(), len(line)))
            waiting += len(line)
            if not _wrote(worker, line):
                return

    def _ready_now(self) -> list[_Worker]:
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                assert worker.process.stdout is not None
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
            return [key.data for key, _ in selector.select(0)]

    def _readable(self) -> list[_Worker]:
        now = time.monotonic()
        busy = [worker for worker in self._workers if worker.asked or not worker.server]
        if not busy:
            return []
        wait = min(worker.since + self._limit(worker) - now for worker in busy)
        with selectors.DefaultSelector() as selector:
            for worker in busy:
                assert worker.process.stdout is not None
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)
            return [key.data for key, _ in selector.select(max(wait, 0))]

    def _limit(self, worker: _Worker) -> float:
        if not worker.server:
            return _START_S
        return self.timeout_s + (_KILL_S if worker.late is not None else 0.0)

    def _read(self, worker: _Worker, results: list[Any | Broken], todo: deque[int]) -> None:
        assert worker.process.stdout is not None
        try:
            piece = os.read(worker.process.stdout.fileno(), 65_536)
        except BlockingIOError:
            return
        if not piece:
            self._bury(worker, results, todo)
            return
        *complete, worker.buffer = (worker.buffer + piece).split(b"\n")
        for line in complete:
            try:
                reply = json.loads(line)
            except ValueError:
                continue  # the half reply of a server that was killed while it wrote
            worker.since = time.monotonic()
            if "serving" in reply:
                self._replaced(worker, reply, results, todo)
            elif not worker.server:
                raise FathomError(f"judge worker for {self.target} did not start: {reply['error']}")
            else:
                number, _ = worker.asked.popleft()
                results[number] = reply["value"] if "value" in reply else Broken(reply["error"])

    def _replaced(self, worker: _Worker, reply: dict[str, int], results: list[Any | Broken], todo: deque[int]) -> None:
        """A new server works; the item at which the last one ended is broken, the others are asked again."""
        first, worker.server = not worker.server, reply["serving"]
        if first:
            return
        worker.generation += 1
        if worker.asked and worker.asked[0][0] == worker.late:
            results[worker.asked.popleft()[0]] = Broken(f"judging passed {self.timeout_s:g} s")
        elif worker.asked and worker.late is None and reply["ended"] != RETIRED:
            results[worker.asked.popleft()[0]] = Broken(_died(reply["ended"]))
        worker.late = None
        todo.extendleft(number for number, _ in reversed(worker.asked))
        worker.asked.clear()
        _wrote(worker, f"\n#{worker.generation}\n".encode())  # it passes over what was sent before

    def _bury(self, worker: _Worker, results: list[Any | Broken], todo: deque[int]) -> None:
        code = worker.process.wait()
        if not worker.server:
            raise FathomError(
                f"judge worker for {self.target} did not start: exit {code}, try it by hand: python -m "
                f"fathom.judge.worker {self.target} {self.memory_mb} {self.timeout_s:g}"
            )
        if worker.asked:
            results[worker.asked.popleft()[0]] = Broken(_died(code))
        self._retire(worker, todo)

    def _watch(self, worker: _Worker, results: list[Any | Broken], todo: deque[int]) -> None:
        busy = worker.asked or not worker.server
        if not busy or time.monotonic() - worker.since < self._limit(worker):
            return
        if not worker.server:
            raise FathomError(
                f"judge worker for {self.target} did not start in {_START_S:g} s; is the machine overloaded?"
            )
        if worker.late is None:
            worker.late = worker.asked[0][0]
            worker.process.send_signal(signal.SIGUSR1)
            return
        results[worker.asked.popleft()[0]] = Broken(f"judging passed {self.timeout_s:g} s")
        self._retire(worker, todo)

    def _retire(self, worker: _Worker, todo: deque[int]) -> None:
        self._workers.remove(worker)
        todo.extendleft(number for number, _ in reversed(worker.asked))
        worker.kill()


def _wrote(worker: _Worker, line: bytes) -> bool:
    assert worker.process.stdin is not None
    try:
        worker.process.stdin.write(line)
        worker.process.stdin.flush()
    except BrokenPipeError:
        return False  # it died; reading its end of file sorts out who is to blame
    return True


def _died(code: int) -> str:
    return f"worker died: signal {-code}" if code < 0 else f"worker died: exit {code}"

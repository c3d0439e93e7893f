"""The side that may be trusted: hands programs to the fork server and gathers what is known of them."""

from __future__ import annotations

import array
import fcntl
import logging
import math
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
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
from fathom.judge.sandbox.program import End, Level, Limits, Program, Ran
from fathom.judge.sandbox.wire import (
    REFUSED,
    REPLY_BYTES,
    REPORT_BYTES,
    UNPRELOADED,
    Ask,
    Reply,
    Request,
    Seen,
    Told,
    read_report,
    slip,
)

log = logging.getLogger(__name__)

_START_S = 120.0
_AHEAD = 2  # programs that wait at the server, so that it never waits for this side
_QUIET_S = 0.05  # most programs have ended by then, and what they wrote is read in one go
_GRACE_S = 30.0  # a server that says nothing this long after its programs' time is taken for dead
_HERE = Path(__file__).resolve().parent
_ABOVE = [str(folder) for folder in (_HERE.parents[1], _HERE.parent, _HERE)]
# The packages are stubs: importing the real ones would load this side too, and each program is a copy of the server.
_BOOT = """
import sys, types
control, level, workers, folder, packages, preload, *above = sys.argv[1:]
for name, path in zip(("fathom", "fathom.judge", "fathom.judge.sandbox"), above):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from fathom.judge.sandbox.server import main
main(int(control), int(level), int(workers), folder, packages.splitlines(),
     preload.split(",") if preload else [])
"""
_refusal: str | None = None  # why this machine gives no L1, once that is known
_reached: tuple[Level, str] | None = None


class SandboxError(FathomError):
    """The sandbox cannot be had as asked: what is missing, and how to get it."""


class _Refused(SandboxError):
    """The platform does not give L1."""


class _Died(Exception):
    """The server is gone, or as good as gone."""


@dataclass
class _Job:
    place: int
    programs: tuple[Program, ...]  # one, or two that are joined
    died: int = 0  # servers, while it ran
    ran: dict[int, Ran] = field(default_factory=dict)
    link: socket.socket | None = None  # the leader's end: held until both ended, or the other would see it close

    def unlink(self) -> None:
        if self.link:
            self.link.close()
            self.link = None


@dataclass
class _Flight:
    """A program that runs."""

    job: _Job
    index: int  # in its job
    slip: int
    outputs: dict[int, bytearray]  # read end → what came
    launched: float = field(default_factory=time.monotonic)
    watched: bool = False  # its outputs, by the selector
    overflowed: bool = False
    dismissed: bool = False  # the other of its pair ended

    @property
    def limits(self) -> Limits:
        return self.job.programs[self.index].limits


class _Server:
    """The server's process as the parent holds it."""

    def __init__(self, level: Level, workers: int, preload: Sequence[str]) -> None:
        ours, theirs = socket.socketpair()
        self.socket, self.level = ours, level
        self.selector = selectors.DefaultSelector()
        self.flights: dict[int, _Flight] = {}
        self.folder = "" if level else tempfile.mkdtemp(prefix="fathom-sandbox-")
        packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
        environment = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS",
                                              "MALLOC_ARENA_MAX", "LD_BIND_NOW")}  # bound once, not in every copy
        if "LD_LIBRARY_PATH" in os.environ:
            environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-X", "utf8", "-c", _BOOT, str(theirs.fileno()), str(int(level)),
                 str(workers), self.folder, "\n".join(packages), ",".join(preload), *_ABOVE],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, cwd="/",
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the parent, which decides
            )
        self.selector.register(ours, selectors.EVENT_READ)

    def wait_until_ready(self) -> None:
        """UsageError, _Refused or SandboxError where it will not serve."""
        self.socket.settimeout(_START_S)
        try:
            reply = self.receive()
        except (_Died, TimeoutError) as error:
            raise SandboxError(f"the sandbox's server did not start: {self.last_words() or error}") from None
        self.socket.settimeout(None)
        if reply.seen is Seen.READY:
            return
        if reply.status == REFUSED:
            raise _Refused(reply.reason)
        if reply.status == UNPRELOADED:
            raise UsageError(f"preload={reply.reason}; name modules of site-packages that start no threads")
        raise SandboxError(f"the sandbox's server did not start: {reply.reason}")

    def receive(self) -> Reply:
        """The next reply, waited for."""
        data = b""
        while len(data) < REPLY_BYTES:
            try:
                piece = self.socket.recv(REPLY_BYTES - len(data))
            except ConnectionResetError:
                piece = b""
            if not piece:
                raise _Died("it ended")
            data += piece
        return Reply.unpack(data)

    def send(self, request: Request, descriptors: Sequence[int] = ()) -> None:
        """Hands a request over; a server that is gone shows when it is listened to."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        with suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendmsg([request.pack()], rights)

    def last_words(self) -> str:
        """What a server that ended wrote to stderr."""
        assert self.process.stderr is not None
        os.set_blocking(self.process.stderr.fileno(), False)
        with suppress(BlockingIOError):
            return os.read(self.process.stderr.fileno(), 65_536).decode(errors="replace").strip()[-2000:]
        return ""

    def close(self) -> None:
        """Hangs up, which ends the server and all programs, and waits for that."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # a forked child of ours may hold a copy
        self.socket.close()
        try:
            self.process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for flight in self.flights.values():
            _release(flight)
            flight.job.unlink()
        self.flights.clear()
        self.selector.close()
        assert self.process.stderr is not None
        self.process.stderr.close()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)


def _release(flight: _Flight) -> None:
    for descriptor in (flight.slip, *flight.outputs):
        os.close(descriptor)


def _close_all(servers: list[_Server], owner: int) -> None:
    if owner == os.getpid():  # a forked child that ends must not take its parent's server along
        while servers:
            servers.pop().close()


class Sandbox:
    """Runs programs, `workers` at a time, each in a process and namespaces of its own. A context manager.

    `level` is the highest that the platform reaches unless given; SandboxError where the one given, or `require_level`,
    is not reached, with what is missing and how to get it. Modules named in `preload` are imported once, so that a
    program that imports them starts in milliseconds. A program sees no other program's memory, files, source or output.
    Safe to call from several threads, one run at a time.
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
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
            raise UsageError(f"workers={workers!r:.80}: running needs at least 1 worker; give a whole number ≥ 1")
        if isinstance(preload, str):
            raise UsageError(f"preload={preload!r:.80}: a list of module names is needed; write [{preload!r:.80}]")
        for name in preload:
            if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
                raise UsageError(f"preload={name!r:.80}: not the name of a module; give names as import takes them")
        self.workers, self.preload = workers, tuple(preload)
        self._servers: list[_Server] = []  # one or none
        self._lock = threading.Lock()
        self._numbers = 0
        self._owner = os.getpid()
        self._finalizer = weakref.finalize(self, _close_all, self._servers, self._owner)
        self.level = self._start_highest(level, Level(require_level))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Kills whatever runs; a later `run` starts anew."""
        with self._lock:
            _close_all(self._servers, self._owner)

    def pids(self) -> list[int]:
        """Process id of the server, if it runs."""
        return [server.process.pid for server in self._servers]

    def run(self, programs: Sequence[Program]) -> list[Ran]:
        """One Ran per program, in order. No program's end, however violent, raises here."""
        return [ran for (ran,) in self._run_all([(program,) for program in programs])]

    def run_pairs(self, pairs: Sequence[tuple[Program, Program]]) -> list[tuple[Ran, Ran]]:
        """Runs two programs side by side, joined by a socket that is file descriptor 3 in both.

        The second one leads: when it ends, the first is killed (which is not recorded as a signal but as EXITED with
        code 0). When the first ends, the second reads end of file. Neither sees anything else of the other. A pair
        counts as one of `workers`.
        """
        return [(first, second) for first, second in self._run_all(pairs)]

    def _start_highest(self, level: Level | None, required: Level) -> Level:
        global _refusal
        if level is not None and level < required:
            raise UsageError(f"level={level.name}: less than require_level={required.name}; raise it, or require less")
        if level is not Level.L0:
            try:
                if _refusal is None:
                    self._start(Level.L1)
                    return Level.L1
            except _Refused as error:
                _refusal = str(error)
            if level is Level.L1 or required is Level.L1:
                raise SandboxError(f"level L1 is required and not reached here: {_refusal}")
        self._start(Level.L0)
        return Level.L0

    def _start(self, level: Level) -> _Server:
        server = _Server(level, self.workers, self.preload)
        try:
            server.wait_until_ready()
        except BaseException:
            server.close()
            raise
        self._servers.append(server)
        return server

    def _run_all(self, jobs: Sequence[tuple[Program, ...]]) -> list[tuple[Ran, ...]]:
        if os.getpid() != self._owner:
            raise SandboxError(f"this sandbox belongs to process {self._owner}, which forked; open another one here")
        for programs in jobs:
            for program in programs:
                _check(program)
        with self._lock:
            try:
                return self._gather([_Job(place, tuple(programs)) for place, programs in enumerate(jobs)])
            except BaseException:  # Ctrl-C included: what is still running would belong to nobody
                _close_all(self._servers, self._owner)
                raise

    def _gather(self, jobs: list[_Job]) -> list[tuple[Ran, ...]]:
        todo = deque(jobs)
        flying = 0
        while todo or flying:
            server = self._servers[0] if self._servers else self._start(self.level)
            while todo and flying < self.workers + _AHEAD:
                self._launch(server, todo.popleft())
                flying += 1
            try:
                flying -= self._listen(server)
            except _Died:
                log.warning("the sandbox's server died: %s", server.last_words() or "no last words")
                self._servers.remove(server)
                lost = {flight.job.place: flight.job for flight in server.flights.values()}
                server.process.kill()  # its programs end with it
                server.close()
                flying -= len(lost)
                for job in reversed(lost.values()):
                    job.died += 1
                    if job.died < 2:
                        todo.appendleft(job)
                    else:
                        broken = Ran(End.BROKEN, reason="the sandbox's server died twice")
                        job.ran = dict.fromkeys(range(len(job.programs)), broken)
        return [tuple(job.ran[index] for index in range(len(job.programs))) for job in jobs]

    def _launch(self, server: _Server, job: _Job) -> None:
        job.ran.clear()
        links = socket.socketpair() if len(job.programs) == 2 else ()
        job.link = links[1] if links else None
        for index, program in enumerate(job.programs):
            self._numbers += 1
            limits = program.limits
            stdin = program.stdin.encode(errors="surrogateescape") if isinstance(program.stdin, str) else program.stdin
            slip_file, stdin_file = _file(slip(program.source, program.files)), _file(stdin, sealed=True)
            (out, out_end), (err, err_end) = os.pipe(), os.pipe()
            request = Request(Ask.RUN, self._numbers, limits.cpu_s, limits.wall_s, limits.memory_mb, limits.disk_mb,
                              limits.threads, index > 0)
            link = [links[index].fileno()] if links else []
            server.send(request, [slip_file, stdin_file, out_end, err_end, *link])
            for descriptor in (stdin_file, out_end, err_end):
                os.close(descriptor)
            flight = _Flight(job, index, slip_file, {out: bytearray(), err: bytearray()})
            server.flights[self._numbers] = flight
            for descriptor in flight.outputs:
                os.set_blocking(descriptor, False)
        if links:
            links[0].close()

    def _listen(self, server: _Server) -> int:
        """Waits for something to happen; how many jobs are finished by that."""
        pause = max(flight.limits.wall_s for flight in server.flights.values()) + _GRACE_S
        now = time.monotonic()
        for number, flight in server.flights.items():
            if not flight.watched and now - flight.launched < _QUIET_S:
                pause = _QUIET_S
            elif not flight.watched:
                flight.watched = True
                for descriptor in flight.outputs:
                    server.selector.register(descriptor, selectors.EVENT_READ, number)
        events = server.selector.select(pause)
        if not events and pause > _QUIET_S:
            raise _Died
        finished = 0
        for key, _ in events:
            if key.data is None:
                finished += self._end(server, server.receive())
            elif heard := server.flights.get(key.data):
                assert isinstance(key.fd, int)
                if self._read(heard, key.fd):
                    continue
                if key.fd in server.selector.get_map():
                    server.selector.unregister(key.fd)
                if heard.overflowed:
                    server.send(Request(Ask.KILL, key.data))
        return finished

    def _read(self, flight: _Flight, descriptor: int) -> bool:
        """Whether there may be more to come that is of interest."""
        came, most = flight.outputs[descriptor], flight.limits.output_kb * 1024
        try:
            piece = os.read(descriptor, 65_536)
        except BlockingIOError:
            return True
        came += piece[: most - len(came) + 1]
        flight.overflowed |= len(came) > most
        return bool(piece) and not flight.overflowed

    def _end(self, server: _Server, reply: Reply) -> int:
        flight = server.flights.pop(reply.number)
        job = flight.job
        for descriptor in flight.outputs:
            before = -1
            while before < len(flight.outputs[descriptor]):  # all of it is there: no process is left to write
                before = len(flight.outputs[descriptor])
                self._read(flight, descriptor)
            with suppress(KeyError):  # its end was seen before, or it was never watched
                server.selector.unregister(descriptor)
        job.ran[flight.index] = _ran(flight, reply)
        _release(flight)
        if len(job.ran) == len(job.programs):
            job.unlink()
            return 1
        if flight.index == 1:  # the leader ended
            for number, other in server.flights.items():
                if other.job is job:
                    other.dismissed = True
                    server.send(Request(Ask.KILL, number))
        return 0


def _ran(flight: _Flight, reply: Reply) -> Ran:
    most = flight.limits.output_kb * 1024
    stdout, stderr = (bytes(came[:most]) for came in flight.outputs.values())
    known: dict[str, Any] = {"stdout": stdout, "stderr": stderr, "cpu_s": reply.cpu_s, "wall_s": reply.wall_s}
    code = os.waitstatus_to_exitcode(reply.status) if reply.seen is Seen.ENDED else 0
    told, text = Told.NOTHING, ""
    if code in (1, 120):  # 120: its last output could not be written, either
        told, text = read_report(os.pread(flight.slip, REPORT_BYTES, 0))
    if reply.seen is Seen.BROKEN:
        return Ran(End.BROKEN, reason=reply.reason, **known)
    if flight.overflowed:
        return Ran(End.LIMIT, limit="output", **known)
    if reply.seen is Seen.STARVED:
        return Ran(End.BROKEN, reason="starved of processor", **known)
    if reply.seen is Seen.KILLED:
        assert flight.dismissed
        return Ran(End.EXITED, code=0, **known)
    if reply.seen is Seen.CPU or code == -signal.SIGXCPU:
        return Ran(End.LIMIT, limit="cpu", **known)
    if reply.seen is Seen.WALL:
        return Ran(End.LIMIT, limit="wall", **known)
    if told is Told.DISK or code == -signal.SIGXFSZ:
        return Ran(End.LIMIT, limit="disk", exception=text or None, **known)
    if told is Told.MEMORY:
        return Ran(End.LIMIT, limit="memory", exception=text, **known)
    if told is Told.RAISED:
        return Ran(End.RAISED, code=1, exception=text, **known)
    if code < 0:
        return Ran(End.SIGNALLED, code=-code, **known)
    return Ran(End.EXITED, code=code, **known)


def _file(content: bytes, sealed: bool = False) -> int:
    """A descriptor of an unnamed file, at its start. Its size is fixed; `sealed`, its content too."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("program", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
    if sys.platform == "linux":
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL | (fcntl.F_SEAL_WRITE if sealed else 0)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _check(program: Program) -> None:
    """UsageError for what cannot be run as it stands."""
    limits = program.limits
    for name in ("cpu_s", "wall_s"):
        value = getattr(limits, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise UsageError(f"{name}={value!r:.80}: must be above 0 seconds and finite; give such a number")
    for name, least in (("memory_mb", 1), ("output_kb", 1), ("disk_mb", 1), ("threads", 0)):
        value = getattr(limits, name)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 1 << 20:
            raise UsageError(f"{name}={value!r:.80}: must be a whole number from {least} to {1 << 20}; give such a one")
    for name in program.files:
        if not name or name in (".", "..") or "/" in name or "\0" in name or len(os.fsencode(name)) > 255:
            raise UsageError(f"files: {name!r:.80} is no plain file name; give one without slashes, of ≤ 255 bytes")
    pages = sum(-(-len(content) // 4096) * 4096 for content in program.files.values())
    if pages > limits.disk_mb << 20 or len(program.files) > 1000:
        raise UsageError(f"files: {len(program.files)} files of {pages} bytes, disk_mb={limits.disk_mb} and 1000 files "
                         "are the limit; raise disk_mb, or give less")


def reached_level() -> tuple[Level, str]:
    """The highest level on this machine, and why no higher one (empty where L1 is reached). Tried once, remembered."""
    global _reached, _refusal
    if _reached is None:
        with Sandbox(workers=1) as sandbox:
            (ran,) = sandbox.run([Program("print(6 * 7)")])
            if sandbox.level is Level.L1 and ran.stdout != b"42\n":
                _refusal = f"a first program did not run there: {ran.reason or ran.stderr.decode(errors='replace')}"
            _reached = (Level.L0, _refusal) if _refusal is not None else (Level.L1, "")
    return _reached

"""The fork server: imports once, confines itself, and copies itself into a process per program. Single-threaded.

It is told which limits hold and handed closed envelopes (descriptors); it says how each program ended. A process of its
own, started by `fathom.judge.sandbox.parent` alone.
"""

from __future__ import annotations

import _socket  # socket would load three more libraries into every copy
import fcntl
import gc
import importlib
import os
import resource
import select
import signal
import site
import struct
import sys
import time
from contextlib import suppress

from fathom.judge.sandbox import confine, inside
from fathom.judge.sandbox.wire import REFUSED, REQUEST_BYTES, UNPRELOADED, Ask, Reply, Request, Seen, read_slip

TYPE_CHECKING = False
if TYPE_CHECKING:  # as typing's, without importing it
    from typing import NoReturn

_STATUS, _PROC, _SLIP = 61, 62, 63  # descriptors in a program's process, 0–3 aside; the server's own are higher
_OPEN_FILES = 4096  # of the server
_WATCH_S = 0.005  # how closely processor time is watched near its limit
_SIGCHLD, _SIG_DFL = int(signal.SIGCHLD), int(signal.SIG_DFL)
_BROKEN = b"broken "
_PROGRAM_PID = 2  # in its own namespace, where process 1 waits for it


def out_of_time(wall_s: float, cpu_s: float, waited_s: float) -> Seen:
    """Whose fault it is that a program ran out of wall-clock time: its own, or the machine's.

    The machine's where the program waited for a processor most of the time. Threads that take it from each other are
    no excuse: those use it.
    """
    return Seen.STARVED if waited_s > wall_s / 2 and cpu_s < wall_s / 2 else Seen.WALL


class _Running:
    def __init__(self, request: Request, pid: int, status: int, started: float) -> None:
        self.request = request
        self.pid = pid  # of the process that the server reaps, and kills
        self.status = status  # read end of what the process says of itself: a failed start, at L1 its end
        self.started = started
        self.look = 0.0  # when to watch next
        self.cpu_s = 0.0  # when it was watched last
        self.said = b""
        self.seen = Seen.ENDED

    def hear(self) -> bytes:
        """What the process has said, all of it once it has ended."""
        with suppress(BlockingIOError):
            self.said += os.read(self.status, 4096)
        return self.said


class Server:
    """Serves one parent until it hangs up. `folder` is where programs work at L0."""

    def __init__(self, control: int, level: int, workers: int, folder: str) -> None:
        self.control = _socket.socket(fileno=_high(control))
        self.level, self.workers, self.folder = level, workers, folder
        self.running: dict[int, _Running] = {}
        self.waiting: list[tuple[Request, list[int]]] = []  # for one of them to end
        self.maps: list[tuple[str, bytes]] = []  # of users, at L1
        self.used: int | None = None  # bytes of address space, by interpreter and preloaded modules
        self.proc = _high(os.open("/proc", os.O_RDONLY)) if sys.platform == "linux" else None
        self.filter: confine.Filter | None = None  # at L1
        self.cores = os.cpu_count() or 1

    def prepare(self, packages: list[str]) -> None:
        """Everything that programs share. confine.Refused where L1 is asked for and not to be had."""
        if self.level:
            hints = confine.build_root(packages)
            self.maps = confine.maps_for_programs()
            self.filter = confine.system_calls(_PROGRAM_PID)
            confine.unseen()
            assert self.proc is not None
            confine.rehearse(self.proc, self.maps, self.filter, hints)
        elif sys.platform == "linux":
            confine.adopt_orphans()
        resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
        confine.limit_all()

    def say(self, reply: Reply) -> None:
        """To the parent; one that is gone is noticed where it is listened to."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.control.sendall(reply.pack())

    def serve(self) -> None:
        """Until the parent hangs up or dies; nothing that was started outlives that."""
        awake, wake = (_high(end) for end in os.pipe())
        os.set_blocking(awake, False)
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = select.poll()
        poll.register(awake, select.POLLIN)
        poll.register(self.control, select.POLLIN)
        try:
            while True:
                for descriptor, _ in poll.poll(self._pause_ms()):
                    if descriptor == awake:
                        os.read(awake, 4096)
                    elif not self._hear():
                        return
                self._reap()
                while self.waiting and (self.waiting[0][0].joined or self._busy() < self.workers):
                    self._start(*self.waiting.pop(0))
                self._watch()
        finally:
            for running in self.running.values():
                self._kill(running)
            while self.running:
                self._bury(*os.wait4(-1, 0))

    def _busy(self) -> int:
        # A pair counts once, also when one of the two is left.
        return len({running.request.number - running.request.joined for running in self.running.values()})

    def _pause_ms(self) -> float | None:
        looks = [running.look for running in self.running.values() if running.seen is Seen.ENDED]
        return max(min(looks) - time.monotonic(), 0) * 1000 + 1 if looks else None

    def _hear(self) -> bool:
        try:
            data, ancillary, _, _ = self.control.recvmsg(REQUEST_BYTES, _socket.CMSG_SPACE(5 * 4))
        except ConnectionResetError:
            return False
        while data and len(data) < REQUEST_BYTES:
            more = self.control.recv(REQUEST_BYTES - len(data))
            data = data + more if more else b""
        envelopes = [number for _, _, content in ancillary for (number,) in struct.iter_unpack("i", content)]
        if data:
            request = Request.unpack(data)
            if request.ask is Ask.RUN:
                self.waiting.append((request, envelopes))
                return True
            for running in self.running.values():
                if running.request.number == request.number and running.seen is Seen.ENDED:
                    running.cpu_s, _ = self._account(running)
                    running.seen = Seen.KILLED
                    self._dismiss(running)
        return bool(data)

    def _start(self, request: Request, envelopes: list[int]) -> None:
        ours, theirs = os.pipe()
        started = time.monotonic()
        try:
            pid = confine.fresh() if self.level else os.fork()
        except OSError as error:
            for descriptor in (ours, theirs, *envelopes):
                os.close(descriptor)
            self.say(Reply(request.number, Seen.BROKEN, reason=f"no process for the program: {error.strerror}"))
            return
        if not pid:
            self._become(request, envelopes, theirs)
        for descriptor in (theirs, *envelopes):
            os.close(descriptor)
        ours = _high(ours)
        os.set_blocking(ours, False)
        self.running[pid] = _Running(request, pid, ours, started)
        self._look_later(self.running[pid], started)

    def _become(self, request: Request, envelopes: list[int], status: int) -> NoReturn:
        """In the new process: what a program needs, and no descriptor more."""
        try:
            if self.level:
                confine.divide(status, _OPEN_FILES)
            elif sys.platform == "linux":
                confine.die_with_parent()
            signal.set_wakeup_fd(-1)
            sys.modules["_signal"].signal(_SIGCHLD, _SIG_DFL)  # signal.signal, without its enums
            slip, *standard = envelopes
            os.close(3)
            for place, envelope in enumerate(standard):
                os.dup2(envelope, place)
            os.dup2(slip, _SLIP)
            status = os.dup2(status, _STATUS)
            if self.proc is not None:
                os.dup2(self.proc, _PROC)
            os.closerange(4, _STATUS)
            os.closerange(_SLIP + 1, _OPEN_FILES)
            if self.level:
                assert self.proc is not None
                confine.settle(_PROC, self.maps, request.disk_mb)
            else:
                os.setsid()
                folder = os.path.join(self.folder, str(request.number))
                os.mkdir(folder, 0o700)
                os.chdir(folder)
            self._run(request)
        except BaseException as error:
            with suppress(OSError):  # the server is gone, too
                os.write(status, _BROKEN + f"{type(error).__name__}: {error}".encode()[:200] + b"\n")
        finally:
            os._exit(1)  # whatever happens: a copy never goes on as the server

    def _run(self, request: Request) -> NoReturn:
        source, files = read_slip(os.pread(_SLIP, os.lseek(_SLIP, 0, os.SEEK_END), 0))
        for name, content in files:
            with open(name, "wb") as file:
                file.write(content)
        inside.ordinary(source)
        confine.limit(self.used, request.memory_mb, request.cpu_s, request.disk_mb,
                      request.threads if self.level else None)
        if self.filter:
            confine.seal(self.filter)
        os.closerange(_STATUS, _SLIP)
        inside.execute(source, _SLIP)

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while True:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
                if not pid:
                    return
                self._bury(pid, status, usage)

    def _bury(self, pid: int, status: int, usage: resource.struct_rusage) -> None:
        running = self.running.pop(pid, None)
        if running is None:
            return  # at L0, a process that some program left behind
        wall_s = time.monotonic() - running.started
        cpu_s = usage.ru_utime + usage.ru_stime
        request, seen, reason = running.request, running.seen, ""
        said = running.hear()
        if _BROKEN in said:
            seen, reason = Seen.BROKEN, said.partition(_BROKEN)[2].partition(b"\n")[0].decode(errors="replace")
        elif self.level and seen in (Seen.ENDED, Seen.KILLED) and (end := confine.account(said)):
            status, cpu_s = end
        elif self.level and seen is Seen.ENDED:
            seen, reason = Seen.BROKEN, "its namespace was killed from outside"
        else:
            cpu_s = max(cpu_s, running.cpu_s)  # a killed namespace takes its account along
        if seen is Seen.KILLED and status != signal.SIGKILL:
            seen = Seen.ENDED  # by itself: the order to kill it came when it was ending
        if seen is Seen.ENDED and status == signal.SIGKILL and cpu_s >= request.cpu_s:
            seen = Seen.CPU  # the kernel's own limit came first
        os.close(running.status)
        if not self.level:
            self._clean(running)
        self.say(Reply(request.number, seen, status, cpu_s, wall_s, reason))

    def _watch(self) -> None:
        now = time.monotonic()
        for running in self.running.values():
            if running.seen is not Seen.ENDED or running.look > now:
                continue
            request, wall_s = running.request, now - running.started
            running.cpu_s, waited_s = self._account(running)
            if running.cpu_s >= request.cpu_s:
                running.seen = Seen.CPU
            elif wall_s >= request.wall_s:
                running.seen = out_of_time(wall_s, running.cpu_s, waited_s)
            if running.seen is Seen.ENDED:
                self._look_later(running, now)
            else:
                self._kill(running)

    def _look_later(self, running: _Running, now: float) -> None:
        request = running.request
        soon = (request.cpu_s - running.cpu_s) / min(self.cores, request.threads + 1)  # no earlier can it be used up
        running.look = min(running.started + request.wall_s, now + max(soon, _WATCH_S))

    def _account(self, running: _Running) -> tuple[float, float]:
        """Processor seconds that a program has used, and seconds that its main thread has waited for a processor."""
        if self.proc is None:
            return 0.0, 0.0  # RLIMIT_CPU alone
        try:
            pid = running.pid
            if self.level:
                pid = self._inner(pid) or pid  # not yet, or no longer: process 1 itself
            with open(os.open(f"{pid}/schedstat", os.O_RDONLY, dir_fd=self.proc), "rb") as file:
                waited_ns = int(file.read().split()[1])
            return time.clock_gettime(~pid << 3 | 2), waited_ns / 1e9  # clock_getcpuclockid(3), in the kernel's terms
        except OSError:
            return 0.0, 0.0  # it ended just now

    def _inner(self, pid: int) -> int:
        """The program's process in the namespace of process `pid`, 0 where it is not yet, or no longer, there."""
        with open(os.open(f"{pid}/task/{pid}/children", os.O_RDONLY, dir_fd=self.proc), "rb") as file:
            return int(file.read() or 0)

    def _dismiss(self, running: _Running) -> None:
        """Kills a program so that, if it was ending by itself, it is still known how."""
        if not self.level:
            self._kill(running)
        elif inner := self._inner(running.pid):
            with suppress(ProcessLookupError):
                os.kill(inner, signal.SIGKILL)
        elif not running.hear():  # it was not there yet; else process 1 is telling how it ended
            self._kill(running)

    def _kill(self, running: _Running) -> None:
        if not self.level:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(running.pid, signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.kill(running.pid, signal.SIGKILL)

    def _clean(self, running: _Running) -> None:
        """At L0: ends what the program left running and removes its folder."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(running.pid, signal.SIGKILL)
        while strays := self._strays():
            for pid in strays:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                with suppress(ChildProcessError):
                    os.waitpid(pid, 0)
        _remove(os.path.join(self.folder, str(running.request.number)))

    def _strays(self) -> list[int]:
        if self.proc is None:
            return []
        me = os.getpid()
        with open(f"/proc/{me}/task/{me}/children", "rb") as file:
            return [pid for pid in map(int, file.read().split()) if pid not in self.running]


def _remove(top: str) -> None:
    """Removes a folder whatever a program made of it: closed, or nested deeper than a path can say."""
    todo, moved = [top], 0
    while todo:
        folder = todo.pop()
        with suppress(OSError):
            os.chmod(folder, 0o700)
            for entry in list(os.scandir(folder)):
                if entry.is_dir(follow_symlinks=False):
                    moved += 1
                    todo.append(f"{top}.{moved}")
                    os.chmod(entry.path, 0o700)
                    os.rename(entry.path, todo[-1])
                else:
                    os.unlink(entry.path)
            os.rmdir(folder)


def _high(descriptor: int) -> int:
    """The descriptor, moved above those that a program's process uses."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _SLIP + 1)
    os.close(descriptor)
    return moved


def _look_up() -> None:
    """Looks up what a program's process will look up in modules, so that their type's cache is not written to there."""
    things = [thing for scope in (confine, inside, Server) for thing in vars(scope).values()]
    for code in filter(None, (getattr(thing, "__code__", None) for thing in things)):
        for name in code.co_names:
            getattr(os, name, None)


def main(control: int, level: int, workers: int, folder: str, packages: list[str], preload: list[str]) -> None:
    """Serves on socket `control`; says READY, or why not, first."""
    while (low := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    if low > 3:
        os.close(low)
    server = Server(control, level, workers, folder)
    sys.path += packages
    site.setquit()  # exit() and help() are there in an ordinary interpreter
    site.sethelper()
    for name in preload:
        try:
            importlib.import_module(name)
        except Exception as error:
            server.say(Reply(0, Seen.BROKEN, UNPRELOADED, reason=f"{name}: {type(error).__name__}: {error}"))
            return
    if sys.platform == "linux" and len(os.listdir("/proc/self/task")) > 1:
        server.say(Reply(0, Seen.BROKEN, UNPRELOADED, reason=f"{', '.join(preload)}: starts threads when imported"))
        return
    try:
        server.prepare(packages)
    except confine.Refused as error:
        server.say(Reply(0, Seen.BROKEN, REFUSED, reason=str(error)))
        return
    sys.dont_write_bytecode = True  # beside a program's own modules
    for name in [name for name in os.environ if not name.endswith("_NUM_THREADS")]:
        del os.environ[name]
    for name in [name for name in sys.modules if name.startswith("fathom")]:
        del sys.modules[name]
    inside.rehearse()
    _look_up()
    if server.proc is not None:
        server.used = confine.address_space(server.proc)
    gc.collect()
    gc.freeze()
    gc.disable()
    server.say(Reply(0, Seen.READY))
    server.serve()
    if not level:
        _remove(folder)

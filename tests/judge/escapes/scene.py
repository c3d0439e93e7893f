"""What the attacks aim at, made by the harness: a secret, files, listeners, victims, all in one temporary folder."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import secrets
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import numpy

from .attack import Attack, Stage, picture, victim_picture

ROOT = Path(__file__).resolve().parents[3]
STDIN = b"given\n"

# What every attack is told, as the first lines of its program.
_PRELUDE = """
import ctypes, os, sys
os.write(1, b'began\\n')
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

def call(number, *arguments):
    arguments = [ctypes.c_long(x) if isinstance(x, int) else x for x in arguments]
    value = libc.syscall(ctypes.c_long(number), *arguments)
    print('returned', value, ctypes.get_errno() if value == -1 else 0, flush=True)
    return value

def digest(content):
    import hashlib
    return hashlib.sha256(content).hexdigest()
"""

_VICTIM = """
import ctypes, os, sys, time
secret = os.environ["SECRET_OF_VICTIM"].encode()
room = ctypes.create_string_buffer(secret, 128)
file = open("secret")
print(ctypes.addressof(room), flush=True)
time.sleep(600)
"""


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read(path: str) -> str:
    """Its digest, or what no program can print where we may not read it either."""
    try:
        with open(path, "rb") as file:
            return digest(file.read(4096) if path == "/proc/kallsyms" else file.read())
    except OSError:
        return secrets.token_hex(32)


def _listing(path: str) -> str:
    try:
        return digest(repr(sorted(os.listdir(path))).encode())
    except OSError:
        return secrets.token_hex(32)


def _file_handle(path: Path) -> tuple[int, bytes]:
    """Type and content of the handle by which open_by_handle_at opens the file without its path."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = ctypes.create_string_buffer((128).to_bytes(4, "little"), 136)
    if libc.name_to_handle_at(-100, str(path).encode(), handle, ctypes.byref(ctypes.c_int()), 0):
        return 0, b""  # a file system without handles
    size = int.from_bytes(handle.raw[:4], "little")
    return int.from_bytes(handle.raw[4:8], "little", signed=True), handle.raw[8 : 8 + size]


class Scene:
    """A context manager; `stage` sets one attack up, `settle` looks at what it left and removes it."""

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        self.base = Path(tempfile.mkdtemp(prefix="fathom-escapes-"))
        self._stack.callback(shutil.rmtree, self.base, ignore_errors=True)
        self.secret = f"SECRET-{secrets.token_hex(16)}"
        self.heard: set[str] = set()
        self._marks: dict[str, Stage] = {}
        self._number = 0
        try:
            self._secret_file()
            self._inherited()
            self._listen()
        except BaseException:
            self._stack.close()
            raise
        os.environ["FATHOM_ESCAPE"] = self.secret
        self._stack.callback(os.environ.pop, "FATHOM_ESCAPE", None)
        return self

    def __exit__(self, *exception: object) -> None:
        unsettled = list(self._marks.values())  # an exception came before they were judged
        if unsettled:
            self.settle(unsettled)
            self.close_victims(unsettled)
        self._stack.close()

    def _secret_file(self) -> None:
        self.secret_path = self.base / "secret"
        self.secret_path.write_text(self.secret)
        self.secret_path.chmod(0o600)
        self.shared = Path(f"/dev/shm/{self.base.name}")
        self.shared_secret = secrets.token_hex(16)
        self.shared.write_text(self.shared_secret)
        self._stack.callback(self.shared.unlink)

    def _inherited(self) -> None:
        """Descriptors that a careless start of a process passes on: the secret, its folder, a socket of ours."""
        folder = os.open(self.base, os.O_RDONLY)
        file = os.open(self.secret_path, os.O_RDONLY)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.inherited = (folder, file, theirs.fileno())
        for descriptor in self.inherited:
            os.set_inheritable(descriptor, True)
        self._stack.callback(os.close, folder)
        self._stack.callback(os.close, file)
        self._stack.callback(theirs.close)
        self._pair = ours

    def _listen(self) -> None:
        self._selector = selectors.DefaultSelector()
        tcp = socket.create_server(("127.0.0.1", 0))
        udp = socket.socket(type=socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        unix, datagram, abstract = (
            socket.socket(socket.AF_UNIX, kind) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_STREAM)
        )
        unix.bind(str(self.base / "unix"))
        datagram.bind(str(self.base / "datagram"))
        abstract.bind("\0" + self.base.name)
        for server in (unix, abstract):
            server.listen(64)
        for server in (tcp, unix, abstract):
            self._selector.register(server, selectors.EVENT_READ, True)
        for receiver in (udp, datagram, self._pair):
            self._selector.register(receiver, selectors.EVENT_READ, False)
        self.ports = tcp.getsockname()[1], udp.getsockname()[1]
        self._stopped = threading.Event()
        thread = threading.Thread(target=self._hear, daemon=True)
        thread.start()
        self._stack.callback(thread.join)
        self._stack.callback(self._stopped.set)

    def _hear(self) -> None:
        while not self._stopped.is_set():
            for key, _ in self._selector.select(0.05):
                endpoint: Any = key.fileobj
                if key.data:
                    connection, _ = endpoint.accept()
                    self._selector.register(connection, selectors.EVENT_READ, False)
                    continue
                try:
                    piece = endpoint.recv(65_536)
                except OSError:
                    piece = b""
                self.heard.update(re.findall(r"mark[0-9a-f]{16}", piece.decode(errors="replace")))
                if not piece:
                    self._selector.unregister(endpoint)
                    endpoint.close()
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()
        self._selector.close()

    def stage(self, attack: Attack) -> Stage:
        """Sets one attack up: a mark, a folder outside, a victim where it names one, and the program itself."""
        self._number += 1
        mark = f"mark{secrets.token_hex(8)}"
        out = self.base / "out" / str(self._number)
        out.mkdir(parents=True)
        (out / "target").write_text("untouched")
        handle_type, handle = _file_handle(self.secret_path)
        facts: dict[str, object] = {
            "MARK": mark,
            "KEY": int(mark[4:11], 16) | 1,
            "SECRET_PATH": str(self.secret_path),
            "OUT": str(out),
            "TARGET": str(out / "target"),
            "SHM": str(self.shared),
            "ROOT": str(ROOT),
            "HANDLE": handle,
            "HANDLE_TYPE": handle_type,
            "HARNESS": os.getpid(),
            "TCP": self.ports[0],
            "UDP": self.ports[1],
            "UNIX": str(self.base / "unix"),
            "UNIX_DATAGRAM": str(self.base / "datagram"),
            "ABSTRACT": self.base.name,
            "VICTIM": 0,
            "VICTIM_ADDRESS": 0,
        }
        stage = Stage(attack, mark, self.secret, out, self.heard)
        if "VICTIM" in attack.source:
            self._start_victim(stage, facts)
        lines = "".join(f"{name} = {value!r}\n" for name, value in facts.items())
        stage.source = lines + _PRELUDE + attack.source
        stage.facts.update(facts)
        stage.facts.update(self._outside())
        stage.facts["PICTURE"] = picture(out)
        if stage.victim:
            stage.facts["VICTIM_PICTURE"] = victim_picture(stage)
        self._marks[mark] = stage
        return stage

    def neighbour(self, source: str) -> str:
        """The program of a neighbour, who knows the secret."""
        return f"SECRET = {self.secret!r}\n{source}"

    def _outside(self) -> dict[str, object]:
        """What only who sees the machine can tell."""
        return {
            "SHADOW": _read("/etc/shadow"),
            "PASSWD": _read("/etc/passwd"),
            "HOME_OF_ROOT": _listing("/root"),
            "TOP": _listing("/"),
            "PROJECT": _read(str(ROOT / "pyproject.toml")),
            "BASE": self.base.name,
            "SHM_SECRET": self.shared_secret,
            "KERNEL_COMMAND_LINE": _read("/proc/cmdline"),
            "KERNEL_SYMBOLS": _read("/proc/kallsyms"),
            "HOST_MOUNTS": _read("/proc/mounts"),
            "HARNESS_COMMAND_LINE": _read("/proc/self/cmdline"),
            "HARNESS_ENVIRONMENT": _read("/proc/self/environ"),
            "HARNESS_FOLDER": digest(os.getcwd().encode()),
            "STRAY": [],
        }

    def _start_victim(self, stage: Stage, facts: dict[str, object]) -> None:
        stage.victim = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _VICTIM],
            stdout=subprocess.PIPE,
            cwd=self.base,
            env={"SECRET_OF_VICTIM": self.secret},
            text=True,
            start_new_session=True,  # an attack on its group must not find ours
        )
        assert stage.victim.stdout is not None
        facts["VICTIM"] = stage.victim.pid
        facts["VICTIM_ADDRESS"] = int(stage.victim.stdout.readline())

    def _end_victim(self, stage: Stage) -> None:
        if stage.victim is not None:
            stage.victim.kill()
            stage.victim.wait()
            if stage.victim.stdout is not None:
                stage.victim.stdout.close()

    def settle(self, stages: list[Stage]) -> None:
        """Notes what the attacks left outside, then removes it; call before any is judged."""
        time.sleep(0.15)  # what was sent is heard, a daemon has begun
        marks = {stage.mark: stage for stage in stages}
        for pid, name in marked_processes(marks):
            marks[name].alive = True
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for path, name in _stray_files(marks):
            _list(marks[name]).append(path)
            with suppress(FileNotFoundError):
                os.unlink(path)
        _remove_ipc(stages)

    def close_victims(self, stages: list[Stage]) -> None:
        """Ends the victims; call after the attacks are judged."""
        for stage in stages:
            self._end_victim(stage)
            self._marks.pop(stage.mark, None)


def _list(stage: Stage) -> list[str]:
    strays = stage.facts["STRAY"]
    assert isinstance(strays, list)
    return strays


def marked_processes(marks: dict[str, Stage]) -> list[tuple[int, str]]:
    """(process id, mark) of every process whose name or command line holds a mark or its first 15 letters."""
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            words = (process / "comm").read_text() + (process / "cmdline").read_text(errors="replace")
        except OSError:
            continue
        found += [(int(process.name), mark) for mark in marks if mark[:15] in words]
    return found


def _places() -> list[str]:
    library = os.path.dirname(os.__file__)
    return [
        os.path.dirname(os.path.dirname(numpy.__file__)),
        library,
        f"{library}/__pycache__",
        os.path.dirname(os.path.realpath(sys.executable)),
        os.path.dirname(numpy.__file__),
        *("/usr/local/lib", "/etc", "/tmp", "/var/tmp", "/run", "/dev/shm", "/root", "/var/spool", "/var/lock", "/"),
    ]


def _stray_files(marks: dict[str, Stage]) -> list[tuple[str, str]]:
    """(path, mark) of each file that carries a mark in a place where the attacks leave files."""
    found = []
    for place in _places():
        with suppress(OSError):
            for name in os.listdir(place):
                mark = re.search(r"(?:fathom-|sem\.fathom-)(mark[0-9a-f]{16})", name)
                if mark and mark[1] in marks:
                    found.append((f"{place}/{name}", mark[1]))
    return found


def _remove_ipc(stages: list[Stage]) -> None:
    libc = ctypes.CDLL(None)
    for stage in stages:
        key = int(str(stage.facts["KEY"]))
        removals = {
            "system V memory": lambda key=key: libc.shmctl(libc.shmget(key, 0, 0), 0, None),
            "system V semaphores": lambda key=key: libc.semctl(libc.semget(key, 0, 0), 0, 0, 0),
            "system V queue": lambda key=key: libc.msgctl(libc.msgget(key, 0), 0, None),
            "POSIX queue": lambda mark=stage.mark: libc.mq_unlink(f"/fathom-{mark}".encode()),
        }
        for name, remove in removals.items():
            if remove() == 0:
                _list(stage).append(name)

"""What parent and server say to each other, and the two files that a program's process is given.

The server passes descriptors on and never reads what is in them: no program's source, input or output is ever in the
memory that later programs are copied from. Imports little: the server is copied for every program.

A program's slip is a file of REPORT_BYTES, which its process writes if it ends with an exception, and then the source
and the working folder's files. Its standard input is a file of its own.
"""

from __future__ import annotations

import struct
from enum import IntEnum

TYPE_CHECKING = False
if TYPE_CHECKING:  # as typing's, without importing it
    from collections.abc import Mapping

REPORT_BYTES = 4096
REFUSED, UNPRELOADED = 1, 2  # status of a BROKEN reply in place of READY
_REPORT = struct.Struct("<BI")
_REQUEST = struct.Struct("<BIddIII?")
_REASON_BYTES = 400
_REPLY = struct.Struct(f"<IBiddH{_REASON_BYTES}s")
REQUEST_BYTES, REPLY_BYTES = _REQUEST.size, _REPLY.size


class Ask(IntEnum):
    """What the parent wants."""

    RUN = 1
    KILL = 2


class Request:
    """Run a program, or kill it (then its number alone counts). The slip, stdin, stdout, stderr and, for a program of a
    pair, a socket for descriptor 3 come along. One that is `joined` starts together with the one before it."""

    __slots__ = ("ask", "cpu_s", "disk_mb", "joined", "memory_mb", "number", "threads", "wall_s")

    def __init__(self, ask: Ask, number: int, cpu_s: float = 0.0, wall_s: float = 0.0, memory_mb: int = 0,
                 disk_mb: int = 0, threads: int = 0, joined: bool = False) -> None:
        self.ask, self.number = ask, number
        self.cpu_s, self.wall_s = cpu_s, wall_s
        self.memory_mb, self.disk_mb, self.threads, self.joined = memory_mb, disk_mb, threads, joined

    def pack(self) -> bytes:
        """As bytes on the socket."""
        return _REQUEST.pack(self.ask, self.number, self.cpu_s, self.wall_s, self.memory_mb, self.disk_mb, self.threads,
                             self.joined)

    @classmethod
    def unpack(cls, data: bytes) -> Request:
        """From bytes on the socket."""
        ask, *rest = _REQUEST.unpack(data)
        return cls(Ask(ask), *rest)


class Seen(IntEnum):
    """What the server saw of a program's end."""

    READY = 0  # said once, before any program: the server serves
    ENDED = 1  # by itself; `status` as waitpid gives it
    CPU = 2
    WALL = 3
    STARVED = 4  # out of time that it mostly spent waiting for a processor
    KILLED = 5  # because the parent asked
    BROKEN = 6  # it never started, or the server cannot serve; `reason`


class Reply:
    """How program `number` ended. `status` as waitpid gives it; `reason` where it is BROKEN."""

    __slots__ = ("cpu_s", "number", "reason", "seen", "status", "wall_s")

    def __init__(self, number: int, seen: Seen, status: int = 0, cpu_s: float = 0.0, wall_s: float = 0.0,
                 reason: str = "") -> None:
        self.number, self.seen, self.status = number, seen, status
        self.cpu_s, self.wall_s, self.reason = cpu_s, wall_s, reason

    def pack(self) -> bytes:
        """As bytes on the socket; the reason is cut to fit."""
        reason = self.reason.encode()[:_REASON_BYTES]
        return _REPLY.pack(self.number, self.seen, self.status, self.cpu_s, self.wall_s, len(reason), reason)

    @classmethod
    def unpack(cls, data: bytes) -> Reply:
        """From bytes on the socket."""
        number, seen, status, cpu_s, wall_s, length, reason = _REPLY.unpack(data)
        return cls(number, Seen(seen), status, cpu_s, wall_s, reason[:length].decode(errors="replace"))


class Told(IntEnum):
    """What a program's process says of the exception that ended it."""

    NOTHING = 0
    RAISED = 1
    MEMORY = 2
    DISK = 3


def report(told: Told, text: str) -> bytes:
    """The head of a slip, written by the program's process; the text is cut to fit."""
    data = text.encode(errors="replace")[: REPORT_BYTES - _REPORT.size]
    return _REPORT.pack(told, len(data)) + data


def read_report(data: bytes) -> tuple[Told, str]:
    """What a slip's head says. The program can have written anything there."""
    told, length = _REPORT.unpack_from(data)
    if told not in (Told.RAISED, Told.MEMORY, Told.DISK):
        return Told.NOTHING, ""
    return Told(told), data[_REPORT.size : _REPORT.size + min(length, REPORT_BYTES)].decode(errors="replace")


def slip(source: str, files: Mapping[str, bytes]) -> bytes:
    """A slip with an empty head."""
    parts = [source.encode(errors="surrogatepass")]
    for name, content in files.items():
        parts += [name.encode(errors="surrogateescape"), content]
    head = struct.pack(f"<I{len(parts)}Q", len(parts), *map(len, parts))
    return b"".join([bytes(REPORT_BYTES), head, *parts])


def read_slip(data: bytes) -> tuple[str, list[tuple[str, bytes]]]:
    """Source and files of a slip."""
    count = int.from_bytes(data[REPORT_BYTES : REPORT_BYTES + 4], "little")
    place = REPORT_BYTES + 4
    start, parts = place + 8 * count, []
    for _ in range(count):
        size = int.from_bytes(data[place : place + 8], "little")
        parts.append(data[start : start + size])
        place, start = place + 8, start + size
    files = [(parts[n].decode(errors="surrogateescape"), parts[n + 1]) for n in range(1, count, 2)]
    return parts[0].decode(errors="surrogatepass"), files

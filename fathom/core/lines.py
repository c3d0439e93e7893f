"""A file of JSON lines that grows, is cut back to a mark, and knows the sha256 of what it holds."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from fathom.core import disk
from fathom.core.errors import FathomError

_PIECE = 1 << 20


class Lines:
    """The line file `path`, opened for appending. `cut_off` is how many bytes of a torn last line were dropped.

    A line is torn when its writer was killed inside it: what follows the last newline is no line and is removed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            size = os.fstat(self._file).st_size
            self._hash, self.size = self._read(size)
        except OSError as error:
            raise FathomError(f"{path}: {error.strerror}; check the path and its permissions") from error
        self.cut_off = size - self.size
        if self.cut_off:
            disk.cut(self._file, self.size, path)

    @property
    def sha256(self) -> str:
        """Of everything in the file."""
        return self._hash.hexdigest()

    def append(self, line: str) -> None:
        """`line` and a newline at the end; they survive the process at once. A failed write leaves no part behind."""
        data = line.encode() + b"\n"
        try:
            disk.append(self._file, data, self.path)
        except BaseException:
            os.ftruncate(self._file, self.size)
            raise
        self._hash.update(data)
        self.size += len(data)

    def flush(self) -> None:
        """What was appended so far survives a power failure."""
        disk.flush(self._file, self.path)

    def cut(self, size: int, sha256: str) -> int:
        """Cuts the file back to its first `size` bytes, which must have that sha256; returns the bytes dropped.

        Raises FathomError, and changes nothing, when the file is shorter or its beginning is another.
        """
        remedy = "the checkpoint belongs to another history: restore both from one copy, or start over with --fresh"
        if size > self.size:
            raise FathomError(f"{self.path}: holds {self.size} bytes, the checkpoint was made at {size}; {remedy}")
        head, whole = self._read(size)
        if whole != size or head.hexdigest() != sha256:
            raise FathomError(
                f"{self.path}: its first {size} bytes have sha256 {head.hexdigest()[:16]}, expected {sha256[:16]}; "
                f"{remedy}"
            )
        dropped = self.size - size
        if dropped:
            disk.cut(self._file, size, self.path)
        self._hash, self.size = head, size
        return dropped

    def close(self) -> None:
        """Closes the file; closing twice is harmless."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _read(self, size: int) -> tuple[hashlib._Hash, int]:
        """The hash and length of the whole lines among the first `size` bytes."""
        running, whole = hashlib.sha256(), 0
        tail = b""  # what follows the last newline so far; hashed once its line is complete
        at = 0
        while at < size:
            piece = os.pread(self._file, min(_PIECE, size - at), at)
            if not piece:
                break
            at += len(piece)
            head, newline, rest = piece.rpartition(b"\n")
            if newline:
                running.update(tail + head + newline)
                whole += len(tail) + len(head) + 1
                tail = rest
            else:
                tail += rest
        return running, whole

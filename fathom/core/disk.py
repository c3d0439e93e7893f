"""Every byte that must survive goes through here: a process killed at any instant leaves the old state or the new one.

Two shapes of write. `write_atomic` replaces one file. `commit` makes one directory out of many files: they are written
under a temporary name, each made durable, then `checksums.json`, then `COMPLETE`, and the whole is renamed into place.
Temporary names start with `.tmp-` and name their writer, so that `sweep` can tell the leftovers of the dead.

A full disk raises Stopped (exit 75): nothing is lost and the same command goes on once there is room.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from fathom.core import process
from fathom.core.errors import FathomError, Stopped

CHECKSUMS = "checksums.json"
COMPLETE = "COMPLETE"
_TEMPORARY = ".tmp-"
_LEFT_ALONE_S = 24 * 3600.0  # how long a leftover of an unreachable machine is presumed to have a living writer
_FULL = (errno.ENOSPC, errno.EDQUOT)

PathLike = str | os.PathLike[str]


def write_atomic(path: PathLike, data: bytes | str) -> None:
    """`path` holds `data` (text as UTF-8) durably, or, killed on the way, what it held before."""
    target = Path(os.path.realpath(path))  # through a link, the file it points to is replaced, not the link
    with _explained(path):
        if target.is_dir():
            raise FathomError(
                f"{path}: is a directory; a file is to be written there: remove it or choose another name"
            )
        make_directory(target.parent)
        temporary = target.with_name(_temporary_name(target.name))
        try:
            _write_file(temporary, data.encode() if isinstance(data, str) else data)
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _fsync_directory(target.parent)


def append(file: int, data: bytes, path: PathLike) -> None:
    """`data` at the end of the open file `file`, whole as far as other processes see; `path` is for messages.

    The bytes survive the death of the process at once, and that of the machine after `flush`.
    """
    with _explained(path):
        _write(file, data)


def flush(file: int, path: PathLike) -> None:
    """What was appended to the open file `file` survives a power failure from here on."""
    with _explained(path):
        os.fsync(file)


def cut(file: int, size: int, path: PathLike) -> None:
    """The open file `file` ends after `size` bytes, durably."""
    with _explained(path):
        os.ftruncate(file, size)
        os.fsync(file)


def move(old: PathLike, new: PathLike) -> None:
    """The file or directory `old` under the name `new` in the same parent, durably; `new` must not exist."""
    with _explained(old):
        _refuse_existing(Path(new))
        os.rename(old, new)
        _fsync_directory(Path(new).parent)


def remove(directory: PathLike) -> None:
    """`directory` is gone, durably; killed on the way, it is whole or gone too, and `sweep` takes what is left."""
    target = Path(os.path.abspath(directory))
    with _explained(directory):
        temporary = target.with_name(_temporary_name(target.name))
        os.rename(target, temporary)
        _fsync_directory(target.parent)
        shutil.rmtree(temporary)


def aside(directory: Path) -> Path:
    """The first free name beside `directory` to move it to: NAME.1, NAME.2, …"""
    number = 1
    while os.path.lexists(directory.with_name(f"{directory.name}.{number}")):
        number += 1
    return directory.with_name(f"{directory.name}.{number}")


def make_directory(path: PathLike) -> None:
    """`path` as a directory, its own name durable in its parent, as far up as names are new."""
    path = Path(path)
    if path.is_dir():
        return
    make_directory(path.parent)
    with _explained(path):
        path.mkdir(exist_ok=True)
        _fsync_directory(path.parent)


class Commit:
    """A directory in the making; see `commit`."""

    def __init__(self, directory: Path, final: Path) -> None:
        self._directory, self._final = directory, final
        self._promised: dict[str, str] = {}  # name → sha256 of what `write` was given; "" for a foreign writer's file

    def write(self, name: str, data: bytes | str) -> None:
        """The file `name` (`a/b.json` makes the directory `a`) with `data`, durable before the commit is."""
        path = self.path(name)
        data = data.encode() if isinstance(data, str) else data
        with _explained(self._final / name):
            _write_file(path, data)
        self._promised[name] = hashlib.sha256(data).hexdigest()

    def path(self, name: str) -> Path:
        """Where another writer (safetensors, a tokenizer) puts the file `name`; it must exist when the commit ends."""
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or str(pure) != name or name in ("", ".", CHECKSUMS, COMPLETE):
            raise FathomError(f"{name!r}: not a name inside {self._final}; use a plain relative path")
        if name in self._promised:
            raise FathomError(f"{name}: written twice in {self._final}; give each file one writer")
        path = self._directory / name
        with _explained(self._final / name):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._promised[name] = ""
        return path


@contextmanager
def commit(final: PathLike) -> Iterator[Commit]:
    """A directory that appears whole or not at all.

    On a clean exit every file is made durable, `checksums.json` (sha256 by name) follows, `COMPLETE` (sha256 of the
    checksums) is written last, and the directory is renamed to `final`. An exception removes it. An existing `final`
    is never written over: FathomError.
    """
    target = Path(os.path.abspath(final))
    _refuse_existing(target)
    with _explained(target):
        make_directory(target.parent)
        temporary = target.with_name(_temporary_name(target.name))
        temporary.mkdir()
    try:
        work = Commit(temporary, target)
        try:
            yield work
        except OSError as error:
            if error.errno in _FULL:  # a foreign writer ran out of space
                raise _full(target, error) from error
            raise
        with _explained(target):
            _seal(temporary, target, work._promised)
            _refuse_existing(target)
            os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # `sweep` takes what could not be removed now
        raise
    with _explained(target):
        _fsync_directory(target.parent)


def verify(directory: PathLike) -> None:
    """Nothing, if every file of a committed directory is what was committed; FathomError that names the file if not."""
    directory = Path(directory)
    for name, expected in _checksums(directory).items():
        _present(directory, name)
        _compare(directory, name, _digest_file(directory / name), expected)


def read(directory: PathLike, name: str) -> bytes:
    """The bytes of one file of a committed directory, checked against its checksum."""
    directory = Path(directory)
    expected = _checksums(directory).get(name)
    if expected is None:
        raise FathomError(f"{directory / name}: not part of this commit; {_remedy(directory)}")
    _present(directory, name)
    with _explained(directory / name):
        data = (directory / name).read_bytes()
    _compare(directory, name, hashlib.sha256(data).hexdigest(), expected)
    return data


def read_json(path: PathLike) -> dict[str, Any]:
    """The JSON object in a file of at most 64 MiB; FathomError that names the file and what is wrong with it."""
    from fathom.core.config import read_text

    text = read_text(path, 1 << 26)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FathomError(f"{path}: is not JSON ({error}); restore the file or write it anew") from error
    if not isinstance(value, dict):
        raise FathomError(f"{path}: holds a {type(value).__name__}; a JSON object is expected: is it the right file?")
    return value


def is_complete(directory: PathLike) -> bool:
    """Whether a committed directory stands there, by its last-written file; `verify` looks at the contents."""
    return (Path(directory) / COMPLETE).is_file() and (Path(directory) / CHECKSUMS).is_file()


def digest(directory: PathLike) -> str:
    """The sha256 that names the contents of a committed directory: over its files' names and checksums."""
    lines = "".join(f"{expected}  {name}\n" for name, expected in sorted(_checksums(Path(directory)).items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def sweep(parent: PathLike) -> list[str]:
    """Removes what killed writers left directly in `parent`; the names removed. A living writer's work is kept."""
    parent = Path(parent)
    try:
        names = sorted(name for name in os.listdir(parent) if name.startswith(_TEMPORARY))
    except (FileNotFoundError, NotADirectoryError):
        return []
    removed = []
    for name in names:
        path = parent / name
        if not _abandoned(path):
            continue
        with suppress(OSError):  # not ours to remove, or gone already: it is only litter
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
            removed.append(name)
    return removed


# Primitives. A kill test counts os.fsync, os.replace, os.rename and `_write` of this module and dies at each of them.


def _write(file: int, data: bytes) -> None:
    """All of `data` to a file descriptor; the system may take it in pieces."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


def _write_file(path: Path, data: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        _write(file, data)
        os.fsync(file)
    finally:
        os.close(file)


def _fsync_path(path: Path) -> None:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _fsync_directory(path: Path) -> None:
    try:
        _fsync_path(path)
    except OSError as error:
        # Some network file systems cannot sync a directory; they order renames themselves.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise


def _seal(directory: Path, final: Path, promised: dict[str, str]) -> None:
    """Makes the files durable, then writes the checksums, then COMPLETE."""
    found: dict[str, str] = {}
    for parent, below, names in os.walk(directory):
        for name in below + names:
            path = Path(parent, name)
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                local = path.relative_to(directory).as_posix()
                known = promised.get(local)
                if not known:
                    _fsync_path(path)
                found[local] = known or _digest_file(path)
            elif not stat.S_ISDIR(mode):
                raise FathomError(f"{final}: {name} is not a regular file; commits hold files only")
        if Path(parent) != directory:
            _fsync_directory(Path(parent))
    missing = sorted(set(promised) - set(found))
    if missing:
        raise FathomError(f"{final}: {missing[0]} was asked for and never written; write it before the commit ends")
    data = (json.dumps(found, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()
    _write_file(directory / CHECKSUMS, data)
    _write_file(directory / COMPLETE, (hashlib.sha256(data).hexdigest() + "\n").encode())
    _fsync_directory(directory)


def _checksums(directory: Path) -> dict[str, str]:
    if not directory.is_dir():
        raise FathomError(f"{directory}: no such directory; check the path, or run the stage that writes it")
    if not is_complete(directory):
        raise FathomError(f"{directory}: has no {COMPLETE}, so it was never finished; {_remedy(directory)}")
    with _explained(directory):
        data = (directory / CHECKSUMS).read_bytes()
        seal = (directory / COMPLETE).read_bytes().decode(errors="replace").strip()
    _compare(directory, CHECKSUMS, hashlib.sha256(data).hexdigest(), seal)
    try:
        found = json.loads(data)
    except ValueError as error:
        raise FathomError(f"{directory / CHECKSUMS}: not JSON ({error}); {_remedy(directory)}") from error
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise FathomError(f"{directory / CHECKSUMS}: not a mapping of names to sha256; {_remedy(directory)}")
    return found


def _present(directory: Path, name: str) -> None:
    if not (directory / name).exists():
        raise FathomError(f"{directory / name}: No such file, though the checksums name it; {_remedy(directory)}")


def _compare(directory: Path, name: str, actual: str, expected: str) -> None:
    if actual != expected:
        raise FathomError(
            f"{directory / name}: contents changed since they were written (sha256 {actual[:16]}, "
            f"expected {expected[:16]}); {_remedy(directory)}"
        )


def _digest_file(path: Path) -> str:
    with _explained(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remedy(directory: Path) -> str:
    return f"restore {directory.name} from a copy, or remove it and run the stage again"


def _refuse_existing(target: Path) -> None:
    if os.path.lexists(target):
        raise FathomError(f"{target}: exists already and is never written over; remove it or choose another name")


def _temporary_name(name: str) -> str:
    pid = os.getpid()
    writer = f"{process.place()}-{process.boot()[:8]}-{pid}-{process.started(pid)}"
    return f"{_TEMPORARY}{writer}-{secrets.token_hex(4)}-{name.encode()[:60].decode(errors='ignore')}"


def _abandoned(path: Path) -> bool:
    match = re.match(r"\.tmp-([0-9a-f]{8})-([0-9a-f]*)-(\d+)-(\d*)-[0-9a-f]{8}-", path.name)
    if match and match[1] == process.place():
        return match[2] != process.boot()[:8] or not process.alive(int(match[3]), match[4])
    try:
        return time.time() - path.lstat().st_mtime > _LEFT_ALONE_S
    except FileNotFoundError:
        return False


def _full(path: PathLike, error: OSError) -> Stopped:
    return Stopped(f"{path}: {error.strerror}; free some space and run the same command again")


@contextmanager
def _explained(path: PathLike) -> Iterator[None]:
    """Turns the system's refusals into errors that name the path and the remedy."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _FULL:
            raise _full(path, error) from error
        raise FathomError(f"{path}: {reason}; check the path and its permissions") from error

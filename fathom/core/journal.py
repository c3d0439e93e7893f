"""A journal of answers that were slow or paid for: what was put is there after any kill, and is not asked for again."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fathom.core.config import canonical
from fathom.core.errors import FathomError, Stopped, UsageError

FORMAT = 1
_MARK = 0x4661746D  # "Fatm": SQLite's application id, tells our files from other databases
_WAIT_S = 30.0  # for another process's write to end


class Journal:
    """The journal in the SQLite file `path`, made if absent; a context manager; safe for threads and several processes.

    Keys are text, best from `Journal.key`; values are JSON. A put is durable when it returns, power failure included.
    Raises UsageError when the file is something else: it is never written over.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        _refuse_other_files(self.path)
        with self._explained():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.path, timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
        try:
            with self._explained():
                self._prepare()
        except BaseException:
            self._database.close()
            raise

    @staticmethod
    def key(*parts: Any) -> str:
        """The sha256 of JSON-able parts, in order: put in everything that the answer depends on."""
        return hashlib.sha256(canonical(parts).encode()).hexdigest()

    def get(self, key: str) -> Any | None:
        """The value put under `key`, or None. `key in journal` tells a stored null from nothing."""
        row = self._row(key)
        return None if row is None else json.loads(row[0])

    def put(self, key: str, value: Any) -> None:
        """Stores `value` under `key`, in place of an earlier one."""
        self.put_many({key: value})

    def put_many(self, values: Mapping[str, Any]) -> None:
        """Stores all of `values`, or, killed on the way, none: one transaction."""
        rows = []
        for key, value in values.items():
            try:
                rows.append((key, canonical(value)))
            except FathomError as error:
                raise FathomError(f"{key}: {error}") from error
        with self._lock, self._explained():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._database.executemany("INSERT OR REPLACE INTO journal (key, value) VALUES (?, ?)", rows)
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    def __contains__(self, key: str) -> bool:
        return self._row(key) is not None

    def __len__(self) -> int:
        with self._lock, self._explained():
            count = self._database.execute("SELECT count(*) FROM journal").fetchone()[0]
        return int(count)

    def close(self) -> None:
        """Closes the file; closing twice is harmless."""
        with self._lock:
            self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _row(self, key: str) -> tuple[str] | None:
        with self._lock, self._explained():
            row: tuple[str] | None = self._database.execute(
                "SELECT value FROM journal WHERE key = ?", (key,)
            ).fetchone()
        return row

    def _prepare(self) -> None:
        # Looked at before the first pragma that writes: another program's database stays as it is.
        mark, version, tables = (
            self._database.execute(query).fetchone()[0]
            for query in ("PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master")
        )
        if mark != _MARK and tables:
            raise UsageError(f"{self.path}: another program's database; choose another file for the journal")
        if mark == _MARK and version != FORMAT:
            raise FathomError(
                f"{self.path}: format version {version}, this Fathom reads {FORMAT}; use the version that wrote it, or "
                "move the file away"
            )
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        if mark == _MARK:
            return
        self._database.execute("BEGIN IMMEDIATE")
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS journal (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"
        )
        self._database.execute(f"PRAGMA user_version = {FORMAT}")
        self._database.execute(f"PRAGMA application_id = {_MARK}")
        self._database.execute("COMMIT")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError as error:
            raise FathomError(f"{self.path}: {error}; the journal was closed, open it again") from error
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorname", "") == "SQLITE_FULL":
                raise Stopped(f"{self.path}: {error}; free some space and run the same command again") from error
            raise FathomError(f"{self.path}: {error}; check the path, its permissions and other writers") from error
        except sqlite3.DatabaseError as error:
            raise FathomError(f"{self.path}: {error}; restore it from a copy, or move it away to begin anew") from error
        except OSError as error:
            raise FathomError(f"{self.path}: {error.strerror}; check the path and its permissions") from error


def _refuse_other_files(path: Path) -> None:
    if path.is_dir():
        raise UsageError(f"{path}: is a directory; name a file for the journal")
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; name a file for the journal") from error
    if head and head != b"SQLite format 3\0":
        raise UsageError(f"{path}: not a journal (it does not begin as SQLite does); choose another file")

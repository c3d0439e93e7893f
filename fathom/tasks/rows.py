"""Rows of one data file (JSONL, JSON array, Parquet, Arrow), each a mapping or the reason why it is none.

Streamed, except a JSON array, and bounded: a row holds at most 1 MiB and 64 levels. What damages a file is a
FathomError that names it; what damages a row is a row without data.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from fathom.core.errors import FathomError
from fathom.core.records import Record

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".arrow")
LONGEST = 1 << 20  # bytes of a line, or of a table's row written as JSON
DEEPEST = 64  # levels of lists and mappings in a row
LARGEST_ARRAY = 1 << 28  # bytes of a .json file, which is read whole
_SHOWN = 1000  # characters that a reject keeps of a row nobody could read
_BATCH_BYTES = 1 << 25  # of a table, held at once
_BATCH_ROWS = 256
_POINTER = b"version https://git-lfs."
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


class BadRow(FathomError):
    """A row that gives nothing. The message is the reject's reason: short, stable, without the row's content."""


@dataclass(frozen=True)
class Row:
    """One row of a file: its `data`, or None and the `reason`. `text` is its content, which names it.

    `text` is the data as JSON with sorted keys, so that the same row has the same name in every kind of file; of a row
    that could not be read it is how that begins.
    """

    number: int
    data: dict[str, Any] | None
    text: str
    reason: str = ""
    digest: str = ""  # sha256 of what could not be read, or has no key that is read

    @property
    def id(self) -> str:
        """16 characters that name the content."""
        return self.digest[:16] or hashlib.sha256(self.text.encode(errors="backslashreplace")).hexdigest()[:16]

    def record(self, path: Path, name: str) -> Record:
        """The row as a record called `name`; `data_of` reads it back."""
        source = f"{path}:{self.number}"
        if self.data is None:
            return Record(name, {"line": self.text, "reason": self.reason}, source)
        try:
            self.text.encode()
        except UnicodeEncodeError:  # half a surrogate pair, which no store can hold but as JSON spells it
            return Record(name, {"escaped": json.dumps(self.data)}, source)
        return Record(name, {"row": self.data}, source)


def data_of(record: Record) -> dict[str, Any]:
    """The row in a record that `Row.record` made; BadRow where it could not be read."""
    if "row" in record.data:
        return cast(dict[str, Any], record.data["row"])
    if "escaped" in record.data:
        return cast(dict[str, Any], json.loads(record.data["escaped"]))
    raise BadRow(record.data["reason"])


def read(path: Path, fields: Collection[str] | None = None, longest: int = LONGEST) -> Iterator[Row]:
    """The rows of a file, those too that are none, with the keys in `fields` only. A key that is null is absent.

    A line of JSONL holds at most `longest` bytes, a row of anything else 1 MiB.
    """
    if path.name.endswith((".parquet", ".arrow")):
        with _table_explained(path):
            yield from _table_rows(path, fields)
        return
    with _lines_explained(path):
        if path.suffix == ".json":
            yield from _array_rows(path, fields)
        else:
            with _opened(path) as file:
                yield from _line_rows(file, fields, longest)


def count(path: Path) -> int:
    """How many rows a file holds; Parquet says so without being read."""
    if path.suffix != ".parquet":
        return sum(1 for _ in read(path, ()))
    with _table_explained(path):
        import pyarrow.parquet

        return int(pyarrow.parquet.read_metadata(path).num_rows)


@contextmanager
def _lines_explained(path: Path) -> Iterator[None]:
    """Turns what reading lines may raise into a FathomError that names the file and the remedy."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise FathomError(f"{path}: damaged gzip data ({error}); fetch or pack the file again") from error
    except OSError as error:
        raise FathomError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error


@contextmanager
def _table_explained(path: Path) -> Iterator[None]:
    """The same of what reading a table may raise."""
    import pyarrow

    kind = "Parquet" if path.suffix == ".parquet" else "Arrow"
    try:
        _refuse_pointer(path)
        yield
    except (pyarrow.ArrowException, OSError) as error:
        said = " ".join(str(error).split())[:200]
        raise FathomError(f"{path}: not readable as {kind} ({said}); fetch or write it again") from error


def _refuse_pointer(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise FathomError(f"{path}: a Git LFS pointer, not the data; run git lfs pull where it was cloned")


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    _refuse_pointer(path)
    with path.open("rb") as plain:
        if not path.name.endswith(".gz"):
            yield plain
            return
        with gzip.open(plain, "rb") as unpacked:
            yield cast(BinaryIO, unpacked)


# Lines.


def _line_rows(file: BinaryIO, fields: Collection[str] | None, longest: int = LONGEST) -> Iterator[Row]:
    number = 0
    while line := file.readline(longest + 1):
        number += 1
        if len(line) > longest:
            beginning, digest = line, hashlib.sha256(line)
            while line and not line.endswith(b"\n"):
                digest.update(line := file.readline(LONGEST))
            yield _unread(number, beginning, f"line is longer than {longest >> 20} MiB", digest.hexdigest())
            continue
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if line := line.strip():
            yield _line_row(number, line, fields, longest)


def _line_row(number: int, line: bytes, fields: Collection[str] | None, longest: int) -> Row:
    try:
        value = json.loads(line.decode(), parse_constant=_refuse)
    except UnicodeDecodeError:
        return _unread(number, line, "not UTF-8")
    except RecursionError:
        return _unread(number, line, f"nested deeper than {DEEPEST} levels")
    except ValueError:
        return _unread(number, line, "not JSON")
    if line.count(b"{") + line.count(b"[") > DEEPEST and _deeper(value, DEEPEST):
        return _unread(number, line, f"nested deeper than {DEEPEST} levels")
    return _row(number, value, fields, longest)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _deeper(value: Any, levels: int) -> bool:
    """Whether lists and mappings lie in one another over more than `levels`; goes through them level by level."""
    level = [value]
    for _ in range(levels + 1):
        inside: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inside += item.values()
            elif isinstance(item, list):
                inside += item
        level = [item for item in inside if isinstance(item, dict | list)]
        if not level:
            return False
    return True


def _unread(number: int, beginning: bytes, reason: str, digest: str = "") -> Row:
    shown = beginning[:_SHOWN].decode("utf-8", "replace")
    return Row(number, None, shown, reason, digest or hashlib.sha256(beginning).hexdigest())


def _row(number: int, value: Any, fields: Collection[str] | None, longest: int = LONGEST) -> Row:
    """A parsed value as a row: a mapping it must be, its null keys are absent."""
    if not isinstance(value, dict):
        return _unread(number, json.dumps(value).encode(), "not a JSON object")
    kept = {name: item for name, item in value.items() if item is not None and (fields is None or name in fields)}
    try:
        text = json.dumps(kept, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError:  # 1e999, or a table's NaN
        return _unread(number, b"", "not JSON", _digest(value))
    if len(text) > longest:
        return _unread(number, text.encode(errors="backslashreplace"), f"row is longer than {longest >> 20} MiB")
    return Row(number, kept, text, digest="" if kept else _digest(value))


def _digest(value: Any) -> str:
    """A sha256 of a value of any depth and kind."""
    found, stack = hashlib.sha256(), [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            stack += [*item.values(), *map(str, item)]
        elif isinstance(item, list | tuple):
            stack += item
        else:
            found.update(f"{item!r}\n".encode(errors="backslashreplace"))
    return found.hexdigest()


# One JSON array.


def _array_rows(path: Path, fields: Collection[str] | None) -> Iterator[Row]:
    with _opened(path) as file:
        first = file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        file.seek(0)
        if first != b"[":  # many a .json holds lines
            yield from _line_rows(file, fields)
            return
        data = file.read(LARGEST_ARRAY + 1)
    if len(data) > LARGEST_ARRAY:
        raise FathomError(f"{path}: larger than {LARGEST_ARRAY >> 20} MiB, the most that is read as one JSON array; "
                          "write one object per line into a .jsonl file")
    try:
        values = json.loads(data.removeprefix(b"\xef\xbb\xbf").decode())
    except UnicodeDecodeError as error:
        raise FathomError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    except RecursionError as error:
        raise FathomError(f"{path}: nested deeper than {DEEPEST} levels; write flatter rows") from error
    except ValueError as error:
        raise FathomError(f"{path}: not a JSON array ({str(error)[:80]}); correct it, or write one object per line "
                          "into a .jsonl file, where one bad row spoils no other") from error
    for number, value in enumerate(values, 1):
        yield _value_row(number, value, fields)


def _value_row(number: int, value: Any, fields: Collection[str] | None) -> Row:
    """A value from an array or a table as a row, held to the limits that a line has."""
    if _deeper(value, DEEPEST):
        return _unread(number, b"", f"nested deeper than {DEEPEST} levels", _digest(value))
    return _row(number, value, fields)


# Tables.


def _table_rows(path: Path, fields: Collection[str] | None) -> Iterator[Row]:
    number = 0
    for batch in _parquet_batches(path, fields) if path.suffix == ".parquet" else _arrow_batches(path, fields):
        try:
            found = [_value_row(number + i, _plain(value), fields) for i, value in enumerate(batch.to_pylist(), 1)]
        except UnicodeDecodeError:  # some text in it is none: one by one, to lose that row alone
            found = [_one_row(number + i, batch.slice(i - 1, 1), fields) for i in range(1, batch.num_rows + 1)]
        number += batch.num_rows
        yield from found


def _one_row(number: int, row: pyarrow.RecordBatch, fields: Collection[str] | None) -> Row:
    try:
        return _value_row(number, _plain(row.to_pylist()[0]), fields)
    except UnicodeDecodeError:
        return _unread(number, b"", "not UTF-8", hashlib.sha256(row.serialize()).hexdigest())


def _parquet_batches(path: Path, fields: Collection[str] | None) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow.parquet

    # a buffer, and nothing read ahead: else a group of rows, which may be the whole file, would be held in memory
    with pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        columns = _known(file.schema_arrow.names, fields)
        for group in range(file.num_row_groups):
            found = file.metadata.row_group(group)
            size = _rows_at_once(found.total_byte_size, found.num_rows)
            yield from file.iter_batches(batch_size=size, row_groups=[group], columns=columns, use_threads=False)


def _arrow_batches(path: Path, fields: Collection[str] | None) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        if source.size() >= 6 and source.read_at(6, 0) == b"ARROW1":
            reader = pyarrow.ipc.open_file(source)
            batches: Iterator[pyarrow.RecordBatch] = (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            # a stream that was cut between two batches reads as a shorter one
            if source.size() < 8 or source.read_at(8, source.size() - 8) != _END_OF_STREAM:
                raise FathomError(f"{path}: not readable as Arrow (it has no end, so it was cut off); write it again")
            batches = iter(pyarrow.ipc.open_stream(source))
        for batch in batches:
            known = batch.select(_known(batch.schema.names, fields))
            size = _rows_at_once(known.nbytes, known.num_rows)
            yield from (known.slice(first, size) for first in range(0, known.num_rows, size))


def _known(names: list[str], fields: Collection[str] | None) -> list[str]:
    """The columns to read: those of `fields`, or one where there are none, so that rows are counted all the same."""
    return names if fields is None else [name for name in names if name in fields] or names[:1]


def _rows_at_once(size: int, rows: int) -> int:
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * rows // max(1, size)))


def _plain(value: Any) -> Any:
    """A table's value as a JSON value. A null in a struct is a key that the row does not have: tables fill them in."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):  # text that was written without saying that it is text
        return value.decode()
    return value if value is None or isinstance(value, str | int | float) else str(value)

"""Records in, records or named rejects out, and a ledger that balances.

A store is a directory of commits 000001, 000002, …, each renamed into place whole:

    kept.parquet      id, source, parent (the input that gave it) and the data: the schema's columns, or one JSON column
    rejected.parquet  id, source, reason, data (JSON): the inputs that gave nothing, and why
    inputs.json       the ids that this commit answers for, and those that came again
    counts.json       what the ledger adds up

Resume is `store.todo(source)`: it yields what no commit answers for. Killed at any instant, it holds whole commits.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from fathom.core import disk
from fathom.core.config import canonical
from fathom.core.errors import FathomError, Stopped, UsageError

if TYPE_CHECKING:
    import pyarrow

DUPLICATE = "duplicate id"
FORMAT = 1
_OURS = ("id", "source", "parent")


@dataclass(frozen=True)
class Record:
    """One thing: `id` comes from its content or origin (never from its position), `source` says where it is from.

    A record made from another is named after it: `record.child(0, data)` has the id `PARENT/0`.
    """

    id: str
    data: dict[str, Any]
    source: str

    def child(self, index: int, data: dict[str, Any]) -> Record:
        """The `index`-th record made from this one, of the same source."""
        return Record(f"{self.id}/{index}", data, self.source)


@dataclass(frozen=True)
class Ledger:
    """Where every input went: `inputs` = `done` + the sum of `rejected` (by reason); `outputs` records came out.

    `kept_rows` and `rejected_rows` are what the Parquet files themselves hold.
    """

    inputs: int
    done: int
    rejected: Mapping[str, int]
    outputs: int
    kept_rows: int
    rejected_rows: int
    where: str = field(default="ledger", compare=False)

    def check(self) -> None:
        """Nothing, if it balances; FathomError with both sides if not."""
        rejected = sum(self.rejected.values())
        remedy = "the store was changed by hand: restore it from a copy, or start over with --fresh"
        if self.inputs != self.done + rejected:
            raise FathomError(f"{self.where}: {self.inputs} in ≠ {self.done} done + {rejected} rejected; {remedy}")
        for name, counted, rows in (("kept", self.outputs, self.kept_rows), ("rejected", rejected, self.rejected_rows)):
            if counted != rows:
                raise FathomError(f"{self.where}: {counted} {name} by count, {rows} rows in {name}.parquet; {remedy}")

    def __str__(self) -> str:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.rejected.items()))
        listed = f" ({reasons})" if reasons else ""
        return (
            f"{self.inputs} in = {self.done} done + {sum(self.rejected.values())} rejected{listed}; "
            f"{self.outputs} records out"
        )


def json_field(name: str) -> pyarrow.Field:
    """A column for a `RecordStore` schema that holds any JSON value as one string: no None fields are invented."""
    import pyarrow

    return pyarrow.field(name, pyarrow.string(), metadata={"json": "1"})


class RecordStore:
    """The store in `directory`; made when the first commit is.

    `schema` names the columns of kept data; a field called `messages`, and those of `json_field`, hold one JSON string
    and come back as they were. Without a schema the data is one JSON column. `commit_every` inputs make a commit; fewer
    do once `commit_seconds` have passed since the last: slow work loses little to a kill, fast work makes few commits.

    A context manager: leaving cleanly, or with Stopped, commits what is pending; another exception drops it, to be done
    again. Opening reads every commit's ids and removes what killed writers left.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        schema: pyarrow.Schema | None = None,
        commit_every: int = 5000,
        commit_seconds: float = 30.0,
    ) -> None:
        if commit_every < 1:
            raise UsageError(f"commit_every={commit_every}: must be ≥ 1; set it to the inputs worth losing to a kill")
        clash = [name for name in (schema.names if schema is not None else ()) if name in _OURS]
        if clash:
            raise UsageError(f"schema: the column {clash[0]} is the store's own; give the data column another name")
        self.directory, self.commit_every, self.commit_seconds = Path(directory), commit_every, commit_seconds
        self._schema = schema
        self._json = _json_columns(schema)
        disk.sweep(self.directory)
        self._answered: set[str] = set()  # ids that are done or rejected, committed or pending
        self._again: Counter[str] = Counter()  # how often an id was rejected as a duplicate
        self._clear()
        self._commits = self._numbers()
        for number in self._commits:
            self._learn(number)

    # Work.

    def todo(self, source: Iterable[Record]) -> Iterator[Record]:
        """The records of `source` that nothing answers for yet, in its order.

        An id that comes twice in one source is rejected the second time, as "duplicate id", once per time in all runs.
        """
        seen: Counter[str] = Counter()
        for record in source:
            seen[record.id] += 1
            times = seen[record.id] - 1
            if times == 0:
                if record.id not in self._answered:
                    yield record
            elif times > self._again[record.id]:
                self._again[record.id] += 1
                self._duplicates.append(record.id)
                self._add_reject(record, DUPLICATE)

    def done(self, record: Record, outputs: Iterable[Record]) -> None:
        """The input `record` gave `outputs` (none is fine: say why with `reject` where there is a reason)."""
        rows = [self._row(record, output) for output in outputs]
        if len({row["id"] for row in rows}) < len(rows):
            raise FathomError(
                f"{record.id}: two of its outputs share an id; number them with record.child(index, data)"
            )
        self._answer(record)
        self._kept += rows
        self._done += 1
        self._commit_if_due()

    def reject(self, record: Record, reason: str) -> None:
        """The input `record` gave nothing because of `reason`: a few words, the same for the same cause."""
        if not reason or reason != " ".join(reason.split()) or reason == DUPLICATE:
            raise FathomError(f"reason={reason!r}: must be a few words on one line; {DUPLICATE!r} is the store's own")
        self._answer(record)
        self._add_reject(record, reason)

    def commit(self) -> None:
        """Everything pending becomes one commit, whole; nothing pending makes none."""
        inputs = self._done + len(self._rejects)
        if not inputs:
            return
        import pyarrow

        kept = self._kept_table()
        columns = {"id": pyarrow.string(), "source": pyarrow.string(), "reason": pyarrow.string()}
        rejected = _table(self._rejects, pyarrow.schema({**columns, "data": pyarrow.string()}), "rejected")
        counts = {
            "format": FORMAT,
            "inputs": inputs,
            "done": self._done,
            "rejected": dict(Counter(row["reason"] for row in self._rejects)),
            "outputs": len(self._kept),
            "columns": _columns(self._schema),
        }
        number = (self._commits[-1] if self._commits else 0) + 1
        with disk.commit(self._path(number)) as files:
            files.write("kept.parquet", _parquet(kept))
            files.write("rejected.parquet", _parquet(rejected))
            files.write("inputs.json", canonical({"ids": self._inputs, "again": self._duplicates}))
            files.write("counts.json", canonical(counts))
        self._commits.append(number)
        self._clear()

    # Reading. Commits only; what is pending is not on disk.

    def ledger(self) -> Ledger:
        """The sums over all commits; raises FathomError when a commit, and so the whole, does not balance."""
        import pyarrow.parquet

        inputs = done = outputs = kept_rows = rejected_rows = 0
        rejected: Counter[str] = Counter()
        for number in self._commits:
            path, counts = self._path(number), self._counts(number)
            rows = []
            for name in ("kept.parquet", "rejected.parquet"):
                try:
                    rows.append(pyarrow.parquet.read_metadata(path / name).num_rows)
                except (OSError, pyarrow.ArrowException) as error:
                    raise _unreadable(path / name, error) from error
            part = Ledger(
                counts["inputs"], counts["done"], counts["rejected"], counts["outputs"], rows[0], rows[1], str(path)
            )
            part.check()
            inputs, done, outputs = inputs + part.inputs, done + part.done, outputs + part.outputs
            kept_rows, rejected_rows = kept_rows + part.kept_rows, rejected_rows + part.rejected_rows
            rejected.update(part.rejected)
        whole = Ledger(inputs, done, dict(rejected), outputs, kept_rows, rejected_rows, str(self.directory))
        whole.check()
        return whole

    def kept(self) -> Iterator[Record]:
        """Every record that came out, in the order of the commits; each file is checked against its checksum."""
        for number in self._commits:
            table = self._read(number, "kept.parquet")
            columns = [name for name in table.schema.names if name not in _OURS]
            as_json = _json_columns(table.schema)
            whole = (table.schema.metadata or {}).get(b"data") == b"json"
            for row in _rows(table):
                if whole:
                    data = json.loads(row["data"])
                else:
                    data = {name: _from_json(row[name]) if name in as_json else row[name] for name in columns}
                yield Record(row["id"], data, row["source"])

    def rejected(self) -> Iterator[tuple[Record, str]]:
        """Every input that gave nothing, with its reason, in the order of the commits."""
        for number in self._commits:
            for row in _rows(self._read(number, "rejected.parquet")):
                yield Record(row["id"], json.loads(row["data"]), row["source"]), row["reason"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.commit()
        elif isinstance(error, Stopped):
            try:
                self.commit()
            except Stopped:
                return  # the disk that filled up is still full; the first message stands, the work is done again

    # Inside.

    def _clear(self) -> None:
        self._inputs: list[str] = []
        self._duplicates: list[str] = []
        self._kept: list[dict[str, Any]] = []
        self._rejects: list[dict[str, str]] = []
        self._done = 0
        self._committed = time.monotonic()

    def _answer(self, record: Record) -> None:
        if not isinstance(record.id, str) or not record.id:
            raise FathomError(f"id={record.id!r}: must be text and not empty; derive it from the content or origin")
        if record.id in self._answered:
            raise FathomError(f"{record.id}: answered before in {self.directory}; take inputs from todo(), each once")
        self._answered.add(record.id)
        self._inputs.append(record.id)

    def _add_reject(self, record: Record, reason: str) -> None:
        row = {"id": record.id, "source": record.source, "reason": reason, "data": self._encode(record, record.data)}
        self._rejects.append(row)
        self._commit_if_due()

    def _commit_if_due(self) -> None:
        full = self._done + len(self._rejects) >= self.commit_every
        if full or time.monotonic() - self._committed >= self.commit_seconds:
            self.commit()

    def _row(self, record: Record, output: Record) -> dict[str, Any]:
        row = {"id": output.id, "source": output.source, "parent": record.id}
        if self._schema is None:
            return {**row, "data": self._encode(output, output.data)}
        unknown = output.data.keys() - set(self._schema.names)
        if unknown:
            raise FathomError(f"{output.id}: {min(unknown)} is no column; there are {', '.join(self._schema.names)}")
        for name in self._json & output.data.keys():
            row[name] = self._encode(output, output.data[name])
        return {**output.data, **row}

    def _encode(self, record: Record, value: Any) -> str:
        try:
            return canonical(value)
        except FathomError as error:
            raise FathomError(f"{record.id}: {error}") from error

    def _kept_table(self) -> pyarrow.Table:
        import pyarrow

        ours = [pyarrow.field(name, pyarrow.string(), nullable=False) for name in _OURS]
        if self._schema is None:
            schema = pyarrow.schema([*ours, pyarrow.field("data", pyarrow.string())], metadata={"data": "json"})
        else:
            schema = pyarrow.schema([*ours, *self._schema], metadata=self._schema.metadata)
        return _table(self._kept, schema, "kept")

    def _path(self, number: int) -> Path:
        return self.directory / f"{number:06d}"

    def _numbers(self) -> list[int]:
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise FathomError(f"{self.directory}: {error.strerror}; name a directory for the records") from error
        numbers = sorted(int(name) for name in names if re.fullmatch(r"\d{6,}", name))
        missing = sorted(set(range(1, len(numbers) + 1)) - set(numbers))
        if missing:
            raise FathomError(
                f"{self._path(missing[0])}: missing between other commits; restore it from a copy, or start over with "
                "--fresh"
            )
        return numbers

    def _learn(self, number: int) -> None:
        """Takes over what a commit answers for, checking the files that say so."""
        path = self._path(number)
        found = self._json_file(number, "inputs.json")
        ids, again = found.get("ids"), found.get("again")
        counts = self._counts(number)
        if not isinstance(ids, list) or not isinstance(again, list) or len(ids) + len(again) != counts["inputs"]:
            raise FathomError(
                f"{path / 'inputs.json'}: does not hold the {counts['inputs']} ids that were counted; restore it from "
                "a copy, or start over with --fresh"
            )
        if self._schema is not None and counts["columns"] != _columns(self._schema):
            raise UsageError(
                f"{path}: has the columns {_listed(counts['columns'])}, asked for are "
                f"{_listed(_columns(self._schema))}; start over with --fresh"
            )
        twice = self._answered.intersection(ids)
        if twice:
            raise FathomError(
                f"{path}: {min(twice)} is answered by an earlier commit too; restore the store from a copy"
            )
        self._answered.update(ids)
        self._again.update(again)

    def _counts(self, number: int) -> dict[str, Any]:
        found = self._json_file(number, "counts.json")
        path = self._path(number) / "counts.json"
        if found.get("format") != FORMAT:
            raise FathomError(
                f"{path}: format version {found.get('format')!r}, this Fathom reads {FORMAT}; "
                "use the version that wrote it"
            )
        numbers = [found.get(name) for name in ("inputs", "done", "outputs")]
        reasons = found.get("rejected")
        if not isinstance(reasons, dict) or not all(type(n) is int for n in [*numbers, *reasons.values()]):
            raise FathomError(f"{path}: does not hold the counts; restore it from a copy, or start over with --fresh")
        return found

    def _json_file(self, number: int, name: str) -> dict[str, Any]:
        path = self._path(number)
        try:
            found = json.loads(disk.read(path, name))
        except ValueError as error:
            raise _unreadable(path / name, error) from error
        if not isinstance(found, dict):
            raise FathomError(f"{path / name}: not a mapping; restore it from a copy, or start over with --fresh")
        return found

    def _read(self, number: int, name: str) -> pyarrow.Table:
        import pyarrow.parquet

        path = self._path(number)
        try:
            return pyarrow.parquet.read_table(pyarrow.BufferReader(disk.read(path, name)), use_threads=False)
        except (OSError, pyarrow.ArrowException) as error:
            raise _unreadable(path / name, error) from error


def _json_columns(schema: pyarrow.Schema | None) -> frozenset[str]:
    if schema is None:
        return frozenset()
    return frozenset(
        column.name
        for column in schema
        if (column.name == "messages" and str(column.type) in ("string", "large_string"))
        or (column.metadata or {}).get(b"json") == b"1"
    )


def _columns(schema: pyarrow.Schema | None) -> dict[str, str] | None:
    return None if schema is None else {column.name: str(column.type) for column in schema}


def _listed(columns: dict[str, str] | None) -> str:
    return "one JSON column" if columns is None else ", ".join(f"{name} {kind}" for name, kind in columns.items())


def _from_json(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def _table(rows: list[dict[str, Any]], schema: pyarrow.Schema, name: str) -> pyarrow.Table:
    """The rows as a table, column by column; a value that a column cannot hold is an error that names its record."""
    import pyarrow

    arrays = []
    for column in schema:
        values = [row.get(column.name) for row in rows]
        try:
            array = _array(values, column.type)
        except (pyarrow.ArrowException, TypeError, ValueError, OverflowError):
            raise _bad_value(rows, column, name) from None
        if array.null_count and not column.nullable:
            missing = rows[values.index(None)]["id"]
            raise FathomError(f"{missing}: {column.name} is missing and the column needs a value; give one")
        arrays.append(array)
    return pyarrow.Table.from_arrays(arrays, schema=schema)


def _array(values: list[Any], kind: pyarrow.DataType) -> pyarrow.Array:
    """The values as an Arrow array; Arrow would cut 1.5 to 1 in an integer column without a word, this raises."""
    import pyarrow

    if "int" in str(kind):
        for value in values:
            if _has_fraction(value, kind):
                raise ValueError("a fraction would be cut off")
    return pyarrow.array(values, kind)


def _has_fraction(value: Any, kind: pyarrow.DataType) -> bool:
    """Whether a number with a fraction stands where `kind`, or a list or struct type inside it, wants a whole one."""
    import pyarrow.types

    if pyarrow.types.is_integer(kind):
        return isinstance(value, float) and not value.is_integer()
    if isinstance(value, Mapping) and pyarrow.types.is_struct(kind):
        return any(_has_fraction(value.get(part.name), part.type) for part in kind)
    if isinstance(value, (list, tuple)) and (pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)):
        return any(_has_fraction(item, kind.value_type) for item in value)
    return False


def _bad_value(rows: list[dict[str, Any]], column: pyarrow.Field, name: str) -> FathomError:
    import pyarrow

    for row in rows:
        try:
            _array([row.get(column.name)], column.type)
        except (pyarrow.ArrowException, TypeError, ValueError, OverflowError) as error:
            value = repr(row.get(column.name))[:80]
            reason = " ".join(str(error).split())[:200]
            return FathomError(f"{row['id']}: {column.name}={value} does not fit {column.type} ({reason}); convert it")
    return FathomError(f"{name}: {column.name} does not fit {column.type} over {len(rows)} rows; commit fewer at once")


def _parquet(table: pyarrow.Table) -> bytes:
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink, compression="zstd")
    return memoryview(sink.getvalue()).tobytes()


def _rows(table: pyarrow.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=1024):
        yield from batch.to_pylist()


def _unreadable(path: Path, error: Exception) -> FathomError:
    reason = " ".join(str(error).split())[:200]
    return FathomError(f"{path}: cannot be read ({reason}); restore it from a copy, or start over with --fresh")

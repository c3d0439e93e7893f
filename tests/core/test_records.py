"""The record store: resume by id, a ledger that balances, and kills at every disk operation."""

import json
import os
import shutil
import time

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from killing import deaths

from fathom.core.errors import FathomError, Stopped, UsageError
from fathom.core.records import Ledger, Record, RecordStore, json_field

SCHEMA = pyarrow.schema([("text", pyarrow.string()), ("n", pyarrow.int64()), ("messages", pyarrow.string())])


def records(count: int, start: int = 0) -> list[Record]:
    return [Record(f"r{i}", {"text": f"text {i}", "n": i}, f"file{i % 2}") for i in range(start, start + count)]


def work(directory, source, schema=None, commit_every=3) -> None:
    """A stage: rejects multiples of 5, makes 0 to 2 outputs of the rest."""
    with RecordStore(directory, schema, commit_every) as store:
        for record in store.todo(source):
            if record.data["n"] % 5 == 0:
                store.reject(record, "multiple of five")
            else:
                store.done(record, [record.child(i, {**record.data, "n": i}) for i in range(record.data["n"] % 3)])


def state(directory) -> tuple:
    store = RecordStore(directory)
    return list(store.kept()), list(store.rejected()), str(store.ledger())


@pytest.mark.parametrize("schema", [None, SCHEMA])
def test_what_goes_in_comes_out_or_is_rejected(tmp_path, schema):
    work(tmp_path / "s", records(10), schema)
    store = RecordStore(tmp_path / "s", schema)
    ledger = store.ledger()
    assert (ledger.inputs, ledger.done, ledger.rejected, ledger.outputs) == (10, 8, {"multiple of five": 2}, 7)
    assert str(ledger) == "10 in = 8 done + 2 rejected (2 multiple of five); 7 records out"
    extra = {} if schema is None else {"messages": None}
    assert list(store.kept())[:2] == [
        Record("r1/0", {"text": "text 1", "n": 0, **extra}, "file1"),
        Record("r2/0", {"text": "text 2", "n": 0, **extra}, "file0"),
    ]
    assert [(record.id, reason) for record, reason in store.rejected()] == [
        ("r0", "multiple of five"),
        ("r5", "multiple of five"),
    ]
    assert next(store.rejected())[0] == records(1)[0], "the whole input is kept"
    assert list(store.todo(records(10))) == []
    assert [record.id for record in store.todo(records(12))] == ["r10", "r11"]
    assert sorted(os.listdir(tmp_path / "s")) == ["000001", "000002", "000003", "000004"]


def test_messages_and_json_fields_come_back_as_they_were(tmp_path):
    schema = pyarrow.schema([("messages", pyarrow.string()), json_field("samples"), ("plain", pyarrow.string())])
    data = {"messages": [{"role": "user", "content": "é"}], "samples": {"a": [1.5, None]}, "plain": "[1]"}
    with RecordStore(tmp_path, schema) as store:
        store.done(Record("a", {}, "s"), [Record("a", data, "s"), Record("b", {"plain": "x"}, "s")])
    for reader in (RecordStore(tmp_path, schema), RecordStore(tmp_path)):
        assert [record.data for record in reader.kept()] == [
            data,
            {"messages": None, "samples": None, "plain": "x"},
        ]
    table = pyarrow.parquet.read_table(tmp_path / "000001" / "kept.parquet")
    assert table.column("messages").to_pylist()[0] == '[{"content":"é","role":"user"}]'
    assert table.column("parent").to_pylist() == ["a", "a"]


def test_duplicate_ids_are_rejected_by_name_once_in_all_runs(tmp_path):
    source = [*records(4), *records(2), *records(1)]
    work(tmp_path / "s", source[:5])
    work(tmp_path / "s", source)
    work(tmp_path / "s", source)
    ledger = RecordStore(tmp_path / "s").ledger()
    assert ledger.rejected == {"duplicate id": 3, "multiple of five": 1}
    assert ledger.inputs == len(source)


def test_answering_twice_or_without_words_is_refused(tmp_path):
    one, two = records(2)
    with RecordStore(tmp_path) as store:
        store.done(one, [])
        with pytest.raises(FathomError, match="r0: answered before"):
            store.reject(one, "late")
        with pytest.raises(FathomError, match="few words on one line"):
            store.reject(two, "")
        with pytest.raises(FathomError, match="few words on one line"):
            store.reject(two, "duplicate id")
        with pytest.raises(FathomError, match="share an id"):
            store.done(two, [two, two])
        with pytest.raises(FathomError, match="must be text and not empty"):
            store.done(Record("", {}, "s"), [])
        store.done(two, [])
    with pytest.raises(FathomError, match="r1: answered before"):
        RecordStore(tmp_path).done(two, [])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"n": "three"}, r"r1/0: n='three' does not fit int64 .*; convert it"),
        ({"n": 1.5}, r"r1/0: n=1\.5 does not fit int64"),
        ({"lengths": [1, 2.5]}, r"r1/0: lengths=\[1, 2\.5\] does not fit list"),
        ({"text": 3}, r"r1/0: text=3 does not fit string"),
        ({"text": "\ud800"}, r"r1/0: text='\\ud800' does not fit string"),
        ({"tetx": "a"}, r"r1/0: tetx is no column; there are text, n, lengths, messages"),
        ({"messages": [float("nan")]}, r"r1/0: .*cannot be written as JSON"),
    ],
)
def test_data_that_does_not_fit_names_its_record(tmp_path, data, words):
    first, second = records(2)
    schema = SCHEMA.insert(2, pyarrow.field("lengths", pyarrow.list_(pyarrow.int32())))
    with pytest.raises(FathomError, match=words), RecordStore(tmp_path / "s", schema) as store:
        store.done(first, [first.child(0, {"n": 1})])
        store.done(second, [second.child(0, data)])
    assert not (tmp_path / "s").exists(), "nothing half-done is committed"


def test_a_column_that_needs_a_value(tmp_path):
    schema = pyarrow.schema([pyarrow.field("n", pyarrow.int64(), nullable=False)])
    with pytest.raises(FathomError, match="r0/0: n is missing"), RecordStore(tmp_path, schema) as store:
        store.done(records(1)[0], [Record("r0/0", {}, "s")])


def test_leaving_commits_except_on_an_error(tmp_path):
    one, two, three = records(3)
    with RecordStore(tmp_path) as store:
        store.done(one, [])
    with pytest.raises(ZeroDivisionError), RecordStore(tmp_path) as store:
        store.done(two, [])
        raise ZeroDivisionError
    assert [record.id for record in RecordStore(tmp_path).todo(records(3))] == ["r1", "r2"]
    with pytest.raises(Stopped), RecordStore(tmp_path) as store:
        store.done(two, [])
        raise Stopped("SIGTERM")
    assert [record.id for record in RecordStore(tmp_path).todo(records(3))] == ["r2"]
    with RecordStore(tmp_path):
        pass
    assert len(os.listdir(tmp_path)) == 2, "nothing pending makes no commit"
    assert three.id == "r2"


def test_slow_work_is_committed_by_the_clock(tmp_path):
    source = records(4)
    store = RecordStore(tmp_path, commit_seconds=0.05)
    store.done(source[0], [])
    store.done(source[1], [])
    assert os.listdir(tmp_path) == []
    time.sleep(0.06)
    store.done(source[2], [])
    assert RecordStore(tmp_path).ledger().inputs == 3
    store.done(source[3], [])
    assert RecordStore(tmp_path).ledger().inputs == 3


@pytest.mark.parametrize("schema", [None, SCHEMA])
@pytest.mark.kill
def test_killed_anywhere_it_balances_and_resumes_to_the_same_records(memory_path, schema):
    source = [*records(5), records(1, start=2)[0]]
    work(memory_path / "whole", source, schema)
    expected = state(memory_path / "whole")
    directory, kills, inputs = memory_path / "s", 0, set()
    for _ in deaths(lambda: work(directory, source, schema)):
        kills += 1
        inputs.add(RecordStore(directory).ledger().inputs)
        assert not directory.exists() or not [name for name in os.listdir(directory) if name.startswith(".tmp-")]
        work(directory, source, schema)
        assert state(directory) == expected
        shutil.rmtree(directory)
    # two commits of 6 × (write, fsync) + fsync + rename + fsync, before and after each, and half of each write;
    # and one fsync for the new directory
    assert kills == 2 * (6 * 5 + 3 * 2) + 2
    assert inputs == {0, 3, 6}


@pytest.mark.property
@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 12), max_size=25),
    st.lists(st.integers(0, 25), max_size=3),
    st.integers(1, 7),
)
def test_any_stops_any_duplicates_same_records(tmp_path_factory, numbers, stops, commit_every):
    directory = tmp_path_factory.mktemp("p")
    source = [records(1, start=n)[0] for n in numbers]
    for stop in stops:  # an error after `stop` inputs, pending ones lost
        try:
            with RecordStore(directory / "s", None, commit_every) as store:
                for index, record in enumerate(store.todo(source)):
                    if index == stop:
                        raise KeyboardInterrupt
                    store.done(record, [record.child(0, record.data)])
        except KeyboardInterrupt:
            pass
    with RecordStore(directory / "s", None, commit_every) as store:
        for record in store.todo(source):
            store.done(record, [record.child(0, record.data)])
    store = RecordStore(directory / "s")
    ledger = store.ledger()
    assert (ledger.inputs, ledger.done) == (len(numbers), len(set(numbers)))
    assert sum(ledger.rejected.values()) == len(numbers) - len(set(numbers))
    assert [record.id for record in store.kept()] == [f"r{n}/0" for n in dict.fromkeys(numbers)]


def damaged(tmp_path, name: str, data: bytes):
    """A store whose file `name` of commit 1 holds `data`, its checksums made to agree where it is JSON."""
    work(tmp_path / "s", records(6))
    path = tmp_path / "s" / "000001" / name
    path.write_bytes(data)
    return tmp_path / "s"


def test_truncated_parquet(tmp_path):
    work(tmp_path / "a", records(6))
    whole = (tmp_path / "a" / "000001" / "kept.parquet").read_bytes()
    directory = damaged(tmp_path, "kept.parquet", whole[:-20])
    with pytest.raises(FathomError, match=r"000001/kept\.parquet: cannot be read .*; restore it"):
        RecordStore(directory).ledger()
    with pytest.raises(FathomError, match=r"kept\.parquet: contents changed"):
        list(RecordStore(directory).kept())
    assert (directory / "000001" / "kept.parquet").read_bytes() == whole[:-20]


def test_rows_that_are_not_the_counted_ones(tmp_path):
    work(tmp_path / "s", records(12))
    shutil.copy(tmp_path / "s" / "000002" / "kept.parquet", tmp_path / "s" / "000004" / "kept.parquet")
    with pytest.raises(FathomError, match=r"000004: 3 kept by count, 2 rows in kept\.parquet|kept by count"):
        RecordStore(tmp_path / "s").ledger()


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("inputs.json", b"{}", "contents changed"),
        ("counts.json", b"not json", "contents changed"),
        ("COMPLETE", b"", "contents changed"),
    ],
)
def test_damaged_commits_are_refused_at_opening(tmp_path, name, data, words):
    directory = damaged(tmp_path, name, data)
    with pytest.raises(FathomError, match=words):
        RecordStore(directory)
    assert (directory / "000001" / name).read_bytes() == data


def test_commits_that_are_missing_or_unfinished(tmp_path):
    work(tmp_path / "s", records(9))
    (tmp_path / "s" / "000003" / "COMPLETE").unlink()
    with pytest.raises(FathomError, match="000003: has no COMPLETE"):
        RecordStore(tmp_path / "s")
    shutil.rmtree(tmp_path / "s" / "000002")
    with pytest.raises(FathomError, match="000002: missing between other commits"):
        RecordStore(tmp_path / "s")


def test_other_columns_a_file_for_a_directory_and_bad_arguments(tmp_path):
    work(tmp_path / "s", records(3), SCHEMA)
    other = pyarrow.schema([("text", pyarrow.string())])
    with pytest.raises(UsageError, match="has the columns messages string, n int64, text string, asked for are text"):
        RecordStore(tmp_path / "s", other)
    (tmp_path / "file").write_text("x")
    with pytest.raises(FathomError, match="name a directory for the records"):
        RecordStore(tmp_path / "file")
    with pytest.raises(UsageError, match="commit_every=0: must be ≥ 1"):
        RecordStore(tmp_path, commit_every=0)
    with pytest.raises(UsageError, match="the column id is the store's own"):
        RecordStore(tmp_path, pyarrow.schema([("id", pyarrow.string())]))


def test_a_ledger_that_does_not_balance():
    Ledger(3, 2, {"short": 1}, 4, 4, 1).check()
    with pytest.raises(FathomError, match="3 in ≠ 1 done \\+ 1 rejected"):
        Ledger(3, 1, {"short": 1}, 4, 4, 1).check()
    with pytest.raises(FathomError, match="1 rejected by count, 0 rows"):
        Ledger(3, 2, {"short": 1}, 4, 4, 0).check()


def test_bulk(tmp_path):
    source = [Record(f"r{i}", {"text": f"{i} " * 250}, "s") for i in range(10_000)]
    began = time.perf_counter()
    with RecordStore(tmp_path, commit_every=5000) as store:
        for record in store.todo(source):
            store.done(record, [record])
    rate = len(source) / (time.perf_counter() - began)
    assert RecordStore(tmp_path).ledger().outputs == 10_000
    assert rate > 4000, f"{rate:.0f} records/s: far below the 20 000/s of an idle machine"
    assert json.loads((tmp_path / "000002" / "counts.json").read_text())["inputs"] == 5000

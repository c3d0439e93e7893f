"""Directories, damaged files and limits: what is read, what is refused, and what the error says."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import array, lines, parquet, saved

from fathom.core.errors import FathomError, UsageError
from fathom.core.records import Record, RecordStore
from fathom.systems import check_paths, check_sources, inputs
from fathom.systems.grpo import Grpo
from fathom.systems.tokenizer import TokenizerSettings
from fathom.tasks import rows
from fathom.tasks.datasets import from_path
from fathom.tasks.examples import gather, load_source
from fathom.tasks.maths import FileTask
from fathom.tasks.task import load_task


def made(n: int, first: int = 0) -> list[dict[str, Any]]:
    return [{"question": f"{i}?", "answer": f"#### {i}"} for i in range(first, first + n)]


def tree(root: Path, files: dict[str, int]) -> Path:
    """A directory with that many rows in each file, all different."""
    first = 0
    for name, n in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (parquet if name.endswith(".parquet") else lines)(path, made(n, first))
        first += n
    return root


def counts(root: Path, **options: Any) -> dict[str, int]:
    return {split: sum(map(rows.count, files)) for split, files in from_path(root, **options).splits.items()}


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        ({"data/train-00000-of-00002.parquet": 3, "data/train-00001-of-00002.parquet": 2,
          "data/test-00000-of-00001.parquet": 1}, {"train": 5, "test": 1}),
        ({"main/train-00000-of-00001.parquet": 3, "main/test-00000-of-00001.parquet": 1}, {"train": 3, "test": 1}),
        ({"train.jsonl": 3, "dev.jsonl": 2, "test.jsonl": 1}, {"train": 3, "validation": 2, "test": 1}),
        ({"train/a.jsonl": 3, "train/b.jsonl": 2, "eval/a.jsonl": 1}, {"train": 5, "test": 1}),
        ({"my_train_file.jsonl": 3, "my-test.jsonl": 1}, {"train": 3, "test": 1}),
        ({"a.jsonl": 3, "b.parquet": 2}, {"train": 5}),
        ({"default/train/0000.parquet": 3, "default/test/0000.parquet": 1}, {"train": 3, "test": 1}),
        ({"data/train_sft-00000-of-00001.parquet": 2, "data/worked-00000-of-00001.parquet": 1},
         {"train": 2, "worked": 1}),
        ({"train.jsonl": 3, ".hidden/train.jsonl": 9, "__pycache__/train.jsonl": 9, ".train.jsonl": 9}, {"train": 3}),
    ],
)
def test_names_say_the_split(tmp_path: Path, files: dict[str, int], splits: dict[str, int]) -> None:
    assert counts(tree(tmp_path / "d", files)) == splits


def test_what_belongs_to_no_split_is_said(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", {"train.jsonl": 20, "more.jsonl": 1, "other.jsonl": 1})
    assert "more.jsonl and 1 more" in load_source(str(root), 0).form


CARD = """---
configs:
- config_name: main
  data_files:
  - split: train
    path: ["main/train-*", "extra/**/part?.jsonl"]
  - split: test
    path: main/test-*
- config_name: socratic
  data_dir: socratic
- config_name: plain
  data_files: all.jsonl
---
# Words
"""


def test_a_card_names_configurations(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", {
        "main/train-00000-of-00001.parquet": 3, "main/test-00000-of-00001.parquet": 1, "extra/a/b/part1.jsonl": 2,
        "extra/part2.jsonl": 1, "extra/part10.jsonl": 7, "socratic/train.jsonl": 4, "all.jsonl": 5})
    (root / "README.md").write_text(CARD)
    assert counts(root, config="main") == {"train": 6, "test": 1}
    assert counts(root, config="socratic") == {"train": 4}
    assert counts(root, config="plain") == {"train": 5}
    with pytest.raises(UsageError, match="has the configurations main, socratic, plain; set config"):
        from_path(root)
    with pytest.raises(UsageError, match="config=minor: no such configuration; there are main"):
        from_path(root, "minor")
    (root / "README.md").write_text(CARD.replace("- config_name: socratic", "- config_name: socratic\n  default: true"))
    assert counts(root) == {"train": 4}
    task = load_task({"data": str(root), "config": "main"})
    assert (len(list(task.problems("train"))), len(list(task.problems("test")))) == (6, 1)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("configs: 5", "not a list of mappings"),
        ("configs:\n- data_files: {a: b}", "data_files must be a path"),
        ("configs:\n- data_files: [{split: train}]", "data_files must be a path"),
        ("configs:\n- data_files: ../x.jsonl", "lies outside of the directory; copy"),
        ("configs:\n- data_files: /etc/passwd", "lies outside of the directory; copy"),
        ("configs:\n- data_files: hf://datasets/a/b/x.jsonl", "lies outside of the directory; copy"),
        ("configs:\n- data_files: none-*.jsonl", "no file fits none-"),
        ("configs:\n- data_files: '*.csv'", "data are read from .*convert the file"),
        ("configs: [", "README.md"),
    ],
)
def test_cards_that_mislead(tmp_path: Path, card: str, message: str) -> None:
    root = tree(tmp_path / "d", {"train.jsonl": 3})
    (root / "x.csv").write_text("a,b\n")
    (root / "README.md").write_text(f"---\n{card}\n---\n")
    with pytest.raises(FathomError, match=message):
        from_path(root)


def test_a_card_without_configs_leaves_it_to_the_names(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", {"train.jsonl": 3})
    for text in ("# Words\n", "---\nlicense: mit\n---\n", "---\nno end", ""):
        (root / "README.md").write_text(text)
        assert counts(root) == {"train": 3}


def test_splits_of_a_task(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", {"train.jsonl": 30, "test.jsonl": 5})
    lines(root / "test.jsonl", [*made(4, 100), made(1)[0]])  # one question is a training question too
    task = FileTask(root)
    assert (len(list(task.problems("train"))), len(list(task.problems("test")))) == (29, 5)
    assert task.skipped == {"question is in the test split": 1}
    by_share = FileTask(root, test_share=0.5)
    assert sum(len(list(by_share.problems(split))) for split in ("train", "test")) == 30  # type: ignore[arg-type]
    assert len(list(FileTask(root, test_rows=3).problems("train"))) == 27
    assert len(list(FileTask(root, split="test", test_share=0).problems("train"))) == 5
    other = lines(tmp_path / "t.jsonl", made(7, 500))
    assert len(list(FileTask(root, test=other).problems("test"))) == 7
    assert len(list(FileTask(other, test=root).problems("test"))) == 5
    with pytest.raises(UsageError, match="no split validation; there are train, test"):
        FileTask(root, split="validation")
    held = tree(tmp_path / "v", {"train.jsonl": 3, "validation.jsonl": 2})
    assert FileTask(held).note == "; tested on its split validation"
    only = tree(tmp_path / "o", {"test.jsonl": 3})
    assert len(list(FileTask(only).problems("test"))) == 3
    with pytest.raises(FathomError, match="no train problems"):
        list(FileTask(only).problems("train"))


def test_examples_from_a_directory(tmp_path: Path) -> None:
    chats = [{"messages": [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "a"}]}
             for i in range(9)]
    root = tmp_path / "d"
    parquet(root / "data" / "train-00000-of-00001.parquet", chats[:6])
    parquet(root / "data" / "test-00000-of-00001.parquet", chats[6:])
    assert len(list(load_source(str(root), 0).records())) == 6
    assert len(list(load_source({"data": str(root), "split": "test", "count": 2}, 0).records())) == 2
    with pytest.raises(UsageError, match="test_share: rows are messages, which have no such option"):
        load_source({"data": str(root), "test_share": 0.1}, 0)
    with pytest.raises(UsageError, match="revision=x: data on disk have none"):
        load_source({"data": str(root), "revision": "x"}, 0)
    with pytest.raises(UsageError, match="no known form of problems"):
        load_task(str(root))


# Arrow directories, against the library that writes them.


def test_save_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_list(made(30))
    whole.save_to_disk(tmp_path / "one", num_shards=3)
    datasets.DatasetDict({"train": whole, "test": whole.select([1, 3])}).save_to_disk(tmp_path / "two")
    assert counts(tmp_path / "one") == {"train": 30}
    assert counts(tmp_path / "two") == {"train": 30, "test": 2}
    assert len(list(FileTask(tmp_path / "two").problems("train"))) == 28
    assert [p.answer for p in FileTask(tmp_path / "two").problems("test")] == ["1", "3"]


def test_arrow_cut_between_two_batches(tmp_path: Path) -> None:
    root = saved(tmp_path / "d", made(200))
    file = root / "data-00000-of-00001.arrow"
    whole = file.read_bytes()
    for cut in (len(whole) - 8, len(whole) // 2, 3, 0):
        file.write_bytes(whole[:cut])
        with pytest.raises(FathomError, match="not readable as Arrow"):
            list(rows.read(file))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("state.json", "{}", "does not list the data files"),
        ("state.json", "[", "not JSON"),
        ("state.json", '{"_data_files": [{"filename": "../x.arrow"}]}', "does not list the data files"),
        ("state.json", '{"_data_files": [{"filename": "gone.arrow"}]}', "not there; copy"),
        ("state.json", '{"_data_files": [], "_indices_data_files": [1]}', "flatten_indices"),
        ("dataset_dict.json", '{"splits": ["../a"]}', "does not list the splits"),
        ("dataset_dict.json", "5", "not a mapping"),
        ("dataset_dict.json", '{"splits": ["train"]}', "state.json: no such file"),
    ],
)
def test_arrow_directories_that_mislead(tmp_path: Path, name: str, content: str, message: str) -> None:
    root = saved(tmp_path / "d", made(3))
    (root / name).write_text(content)
    with pytest.raises(FathomError, match=message):
        from_path(root)


# Damage and limits.


def test_damaged_files_are_named(tmp_path: Path) -> None:
    whole = parquet(tmp_path / "a.parquet", made(500)).read_bytes()
    for cut in (len(whole) // 2, 10, 0):
        (tmp_path / "a.parquet").write_bytes(whole[:cut])
        with pytest.raises(FathomError, match=r"a.parquet: not readable as Parquet"):
            list(rows.read(tmp_path / "a.parquet"))
    inside = bytearray(whole)
    inside[8:200] = os.urandom(192)
    (tmp_path / "b.parquet").write_bytes(inside)
    with pytest.raises(FathomError, match=r"b.parquet: not readable as Parquet"):
        list(rows.read(tmp_path / "b.parquet"))
    lines(tmp_path / "c.jsonl.gz", made(500))
    packed = bytearray((tmp_path / "c.jsonl.gz").read_bytes())
    for spoilt in (packed[:-9], packed[: len(packed) // 2], packed[:5] + b"\0" * 40 + packed[45:], b"PK\3\4 zip"):
        (tmp_path / "c.jsonl.gz").write_bytes(spoilt)
        with pytest.raises(FathomError, match="damaged gzip"):
            list(rows.read(tmp_path / "c.jsonl.gz"))
    (tmp_path / "d.jsonl").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n")
    with pytest.raises(FathomError, match="Git LFS pointer"):
        list(rows.read(tmp_path / "d.jsonl"))
    for text, message in (("[1, 2", "not a JSON array"), ("[" * 100_000, "nested deeper"), ('["\xff"]', "not UTF-8")):
        (tmp_path / "e.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(FathomError, match=message):
            list(rows.read(tmp_path / "e.json"))


def test_an_array_is_bounded_and_may_hold_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(list(rows.read(lines(tmp_path / "lines.json", made(5))))) == 5
    deep: Any = []
    for _ in range(100):
        deep = [deep]
    odd = [*made(2), 5, None, {"text": deep}, {"text": float("nan")}, {"text": "x" * (1 << 20)}]
    assert [row.reason for row in rows.read(array(tmp_path / "a.json", odd))] == [
        "", "", "not a JSON object", "not a JSON object", "nested deeper than 64 levels", "not JSON",
        "row is longer than 1 MiB"]
    monkeypatch.setattr(rows, "LARGEST_ARRAY", 1 << 20)
    with pytest.raises(FathomError, match="larger than 1 MiB"):
        list(rows.read(tmp_path / "a.json"))


def test_tables_with_odd_cells(tmp_path: Path) -> None:
    good = pa.array(["a", "b", "c", "d"])
    broken = pa.Array.from_buffers(pa.string(), 4, [None, pa.py_buffer(b"".join(
        i.to_bytes(4, "little") for i in (0, 1, 2, 3, 4))), pa.py_buffer(b"a\xffcd")])
    table = pa.table({"question": good, "answer": broken, "x": [{"a": None, "b": 1}] * 4})
    pq.write_table(table, tmp_path / "a.parquet")
    found = list(rows.read(tmp_path / "a.parquet"))
    assert [row.reason for row in found] == ["", "not UTF-8", "", ""]
    assert found[0].data == {"question": "a", "answer": "a", "x": {"b": 1}}
    import datetime

    pq.write_table(pa.table({
        "question": [b"bytes", b"\xff", b"c"], "answer": [datetime.date(2020, 1, 2)] * 3,
        "level": [1.0, 2.0, float("nan")]}), tmp_path / "b.parquet")
    found = list(rows.read(tmp_path / "b.parquet"))
    assert found[0].data == {"question": "bytes", "answer": "2020-01-02", "level": 1.0}
    assert [row.reason for row in found] == ["", "not UTF-8", "not JSON"]
    assert len({row.id for row in found}) == 3


def test_huge_cells_are_rejects_and_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_BATCH_BYTES", 4 << 20)
    path = tmp_path / "d.parquet"
    texts = [os.urandom(1 << 20).hex() for _ in range(16)]  # 32 MiB in one group of rows
    pq.write_table(pa.table({"text": [*texts, "small"]}), path, compression="none", use_dictionary=False,
                   write_batch_size=1)  # one cell in a page, which is what a reader must hold
    del texts
    before, most, reasons = pa.total_allocated_bytes(), 0, []
    for row in rows.read(path):
        most = max(most, pa.total_allocated_bytes() - before)
        reasons.append(row.reason)
    assert reasons == ["row is longer than 1 MiB"] * 16 + [""]
    assert most < 16 << 20


def test_links(tmp_path: Path) -> None:
    outside = lines(tmp_path / "secret.jsonl", made(3))
    root = tree(tmp_path / "d", {"train.jsonl": 3})
    (root / "again.jsonl").symlink_to(root / "train.jsonl")
    assert counts(root) == {"train": 3}
    (root / "test.jsonl").symlink_to(outside)
    with pytest.raises(FathomError, match=r"test.jsonl: a link to .*secret.jsonl, which .* lies outside"):
        from_path(root)
    (root / "test.jsonl").unlink()
    (root / "loop").symlink_to(root)
    with pytest.raises(FathomError, match=r"loop: a link to .* which is a folder"):
        from_path(root)


def test_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "d"
    root.mkdir()
    for i in range(1000):
        (root / f"train-{i}.jsonl").write_bytes(b'{"question": "%d?", "answer": "#### %d"}\n' % (i, i))
    assert len(from_path(root).splits["train"]) == 1000
    assert len(list(FileTask(root, test_share=0).problems("train"))) == 1000
    monkeypatch.setattr("fathom.tasks.datasets.MOST_FILES", 999)
    with pytest.raises(FathomError, match="more than 999 files"):
        from_path(root)


def test_directories_that_are_no_data(tmp_path: Path) -> None:
    for name, message in (("empty", "a folder without data files"), ("run", "run that kept no records"),
                          ("table", "a folder without data files .x.csv")):
        (tmp_path / name).mkdir()
        if name == "run":
            (tmp_path / name / "manifest.json").write_text("{}")
            lines(tmp_path / name / "metrics.jsonl", [{"step": 1}])
        if name == "table":
            (tmp_path / name / "x.csv").write_text("a")
        with pytest.raises(UsageError, match=message):
            load_source(str(tmp_path / name), 0)


def test_a_stage_gives_examples(tmp_path: Path) -> None:
    root = tmp_path / "stage"
    with RecordStore(root / "records") as store:
        for record in store.todo([Record("a", {"n": 1}, "made")]):
            turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
            store.done(record, [record.child(0, {"messages": turns, "outcome": "right"})])
    (root / "manifest.json").write_text("{}")
    source = load_source(str(root), 0)
    assert [source.example(record)[-1].text for record in source.records()] == ["a"]  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="test_rows: what a stage kept has no such option"):
        load_source({"data": str(root), "test_rows": 3}, 0)
    for spec in (str(root), {"task": "gsm8k", "data": str(root)}):
        with pytest.raises(UsageError, match="gives examples, no problems; name it under data"):
            load_task(spec)


@pytest.mark.property
@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=40) | st.sampled_from([b'{"text": "a"}', b"{}", b"null", b'{"a": "\xf0"}', b"\0"])))
def test_any_bytes_are_rows_or_reasons(tmp_path_factory: pytest.TempPathFactory, content: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("any") / "d.jsonl"
    path.write_bytes(b'{"text": "first"}\n' + b"\n".join(content))
    blank = sum(not line.strip() for line in path.read_bytes().split(b"\n"))
    found = list(rows.read(path))
    assert len(found) == path.read_bytes().count(b"\n") + 1 - blank
    assert all((row.data is None) == bool(row.reason) for row in found)
    store = RecordStore(path.parent / "records")
    ledger = gather(store, [str(path)], lambda _: 0, lambda e: {"e": str(e)}, logging.getLogger("x"), lambda: None)
    assert ledger.inputs == len(found)


# What systems make of it.


def test_fingerprints_of_directories(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", {"train.jsonl": 3, "test.jsonl": 2})
    cfg = Grpo(init=tmp_path, tasks=(str(root),))
    first = inputs(cfg)
    assert list(first) == [str(root)]
    assert inputs(cfg) == first
    lines(root / "test.jsonl", made(2, 77))
    assert inputs(cfg) != first
    lines(root / "test.jsonl", made(2, 3))
    assert inputs(cfg) == first
    (root / "test.jsonl").rename(root / "test-0.jsonl")
    assert inputs(cfg) != first


def test_the_form_is_said_before_the_start(tmp_path: Path) -> None:
    root = tree(tmp_path / "d", {"train.jsonl": 3})
    cfg = Grpo(init=tmp_path, tasks=(str(root), {"data": str(root), "test_share": 0.5}))
    assert check_sources(cfg) == [f"tasks: {root}, read as gsm8k"] * 2
    check_paths(TokenizerSettings(data=(str(root), str(parquet(tmp_path / "x.parquet", made(2))))), "here")
    with pytest.raises(UsageError, match=r"data: gone.json: no such file"):
        check_paths(TokenizerSettings(data=("gone.json",)), "here")
    assert json.dumps(inputs(TokenizerSettings(data=(str(tmp_path / "x.parquet"),))))

"""Hub names against a hub made for the test: a server on this machine that huggingface_hub downloads from."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_data import array, lines, parquet

from fathom.core.errors import FathomError, UsageError
from fathom.systems import check_sources, inputs
from fathom.systems.grpo import Grpo
from fathom.tasks import hub
from fathom.tasks.examples import load_source
from fathom.tasks.hub import DECLARED
from fathom.tasks.maths import FileTask
from fathom.tasks.task import load_task

CARD = """---
configs:
- config_name: {name}
  data_files:
  - split: train
    path: {folder}/train-*
  - split: test
    path: {folder}/test-*
---
"""


def gsm8k(i: int) -> dict[str, Any]:
    return {"question": f"{i}+1?", "answer": f"{i}+1=<<{i}+1={i + 1}>>{i + 1}\n#### {i + 1}"}


def maths(i: int) -> dict[str, Any]:
    return {"problem": f"{i}+1?", "level": "Level 1", "solution": rf"$\boxed{{{i + 1}}}$", "type": "Algebra"}


def repository(root: Path, name: str, row: Callable[[int], dict[str, Any]], train: int, test: int) -> Path:
    """What a declared data set looks like on the hub, with made rows."""
    folder = {"main": "main", "default": "data"}[name]
    parquet(root / folder / "train-00000-of-00001.parquet", [row(i) for i in range(train)])
    parquet(root / folder / "test-00000-of-00001.parquet", [row(i) for i in range(train, train + test)])
    (root / "README.md").write_text(CARD.format(name=name, folder=folder))
    (root / "other").mkdir()
    (root / "other" / "train-00000-of-00001.parquet").write_bytes(b"never asked for")
    return root


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str, list[str]]]]:
    """Downloads come from directories below tmp_path/hub, named by repository; lists what was asked for."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    asked: list[tuple[str, str, list[str]]] = []

    def snapshot_download(repo_id: str, *, repo_type: str, revision: str, allow_patterns: list[str]) -> str:
        assert repo_type == "dataset"
        asked.append((repo_id, revision, allow_patterns))
        found = tmp_path / "hub" / repo_id.replace("/", "--") / "snapshots"
        (commit,) = found.iterdir()
        return str(commit)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    hub._downloaded.cache_clear()
    yield asked
    hub._downloaded.cache_clear()


def cached(tmp_path: Path, name: str) -> Path:
    return tmp_path / "hub" / name.replace("/", "--") / "snapshots" / "0123456789abcdef"


def test_declared_names(tmp_path: Path, fetched: list[tuple[str, str, list[str]]]) -> None:
    repository(cached(tmp_path, "openai/gsm8k"), "main", gsm8k, 7473, 1319)
    repository(cached(tmp_path, "DigitalLearningGmbH/MATH-lighteval"), "default", maths, 7500, 5000)
    task = load_task("gsm8k")
    assert isinstance(task, FileTask)
    assert (task.name, task.format) == ("gsm8k", "gsm8k")
    assert (len(list(task.problems("train"))), len(list(task.problems("test")))) == (7473, 1319)
    assert fetched == [
        ("openai/gsm8k", DECLARED["gsm8k"].revision, ["README.md"]),
        ("openai/gsm8k", "0123456789abcdef", ["README.md", "main/train-*", "main/test-*"])]
    assert load_task("hub:openai/gsm8k").name == "hub:openai/gsm8k"
    assert len(fetched) == 2  # one process downloads once
    task = load_task("math")
    assert isinstance(task, FileTask)
    assert task.format == "problem/solution"
    assert next(task.problems("test")).meta == {"level": "Level 1", "type": "Algebra"}
    source = load_source({"data": "gsm8k", "count": 5}, 0)
    assert source.form == "problems (gsm8k)"
    assert [source.example(record)[-1].role for record in source.records()] == ["assistant"] * 5  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("row", "train", "test", "message"),
    [
        (gsm8k, 7472, 1319, "7472 rows in split train of revision 0123456789ab, expected 7473; leave revision out"),
        (gsm8k, 7473, 1320, "1320 rows in split test of revision 0123456789ab, expected 1319; leave revision out"),
        (maths, 7473, 1319, "columns level, problem, solution, type in split train, expected answer, question"),
    ],
)
def test_other_counts_and_columns_are_errors(
    tmp_path: Path, fetched: list[Any], row: Callable[[int], dict[str, Any]], train: int, test: int, message: str
) -> None:
    repository(cached(tmp_path, "openai/gsm8k"), "main", row, train, test)
    for spec in ("gsm8k", "hub:openai/gsm8k", {"task": "gsm8k", "revision": "main"}):
        with pytest.raises(FathomError, match=message):
            load_task(spec)


def test_any_other_name(tmp_path: Path, fetched: list[tuple[str, str, list[str]]]) -> None:
    root = cached(tmp_path, "me/chats")
    chats = [{"messages": [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "a"}]}
             for i in range(9)]
    lines(parquet(root / "train.parquet", chats).with_name("test.jsonl"), chats[:2])
    source = load_source({"data": "hub:me/chats", "revision": "v1.0", "split": "train"}, 0)
    assert (source.form, len(list(source.records()))) == ("messages", 9)
    assert fetched[0] == ("me/chats", "v1.0", ["README.md"])
    assert "*.parquet" in fetched[1][2]
    with pytest.raises(UsageError, match="no split dev; there are train, test"):
        load_source({"data": "hub:me/chats", "split": "dev"}, 0)
    with pytest.raises(UsageError, match="no known form of problems"):
        load_task("hub:me/chats")


def test_fingerprints(tmp_path: Path, fetched: list[Any]) -> None:
    root = repository(cached(tmp_path, "me/sums"), "main", gsm8k, 30, 10)
    cfg = Grpo(init=tmp_path, tasks=("hub:me/sums", {"task": "hub:me/sums", "config": "main", "revision": "v2"}))
    assert check_sources(cfg) == ["tasks: hub:me/sums, read as gsm8k"] * 2
    first = inputs(cfg)
    assert list(first) == ["hub:me/sums", "hub:me/sums main v2"]
    parquet(root / "main" / "test-00000-of-00001.parquet", [gsm8k(i) for i in range(50, 60)])
    changed = inputs(cfg)
    assert first.keys() == changed.keys() and first != changed
    parquet(root / "main" / "test-00000-of-00001.parquet", [gsm8k(i) for i in range(30, 40)])
    assert inputs(cfg) == first
    root.rename(root.with_name("fedcba9876543210"))
    hub._downloaded.cache_clear()
    assert inputs(cfg) != first


def test_local_files_in_place_of_a_data_set(tmp_path: Path) -> None:
    train = lines(tmp_path / "a.jsonl", [gsm8k(i) for i in range(5)])
    test = array(tmp_path / "b.json", [gsm8k(i) for i in range(10, 12)])
    task = load_task({"task": "gsm8k", "data": str(train), "test": str(test)})
    assert {p.task for p in task.problems("train")} == {"gsm8k"}
    assert len(list(task.problems("test"))) == 2
    with pytest.raises(UsageError, match="rows are gsm8k, expected problem/solution or problem/answer or verl; name"):
        load_task({"task": "math", "data": str(train)})
    with pytest.raises(UsageError, match="data=5: must be a path"):
        load_task({"task": "math", "data": 5})
    chats = lines(tmp_path / "c.jsonl", [{"text": "a"}])
    with pytest.raises(UsageError, match="no known form of problems"):
        load_source({"task": "math", "data": str(chats)}, 0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hub:gsm8k", "not the name of a data set; write hub:OWNER/NAME"),
        ("hub:../..", "not the name of a data set; write hub:OWNER/NAME"),
        ("hub:a/b/c", "not the name of a data set; write hub:OWNER/NAME"),
        ({"task": "hub:a/b", "revision": "x y"}, "not a revision; name a branch"),
        ({"task": "hub:a/b", "revision": 5}, "revision=5: must be text; name"),
        ({"task": "gsm8k", "config": ""}, "config='': must be text; name"),
        ({"task": "gsm8k", "confg": "main"}, "confg: no such option; did you mean config"),
    ],
)
def test_names_that_are_none(spec: Any, message: str) -> None:
    with pytest.raises(FathomError, match=message):
        load_task(spec)


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    hub._downloaded.cache_clear()
    with pytest.raises(UsageError, match=r"needs huggingface_hub, not installed; pip install 'fathom-.*\[hub\]'"):
        load_task("gsm8k")


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's interface as a download needs, over one directory."""

    root: Path
    commit = "ab" * 20

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        files = {p.relative_to(self.root).as_posix(): p for p in sorted(self.root.rglob("*")) if p.is_file()}
        if path.startswith("/api/datasets/me/sums/revision/"):
            self.reply(json.dumps({"id": "me/sums", "sha": self.commit, "siblings": []}).encode())
        elif path.startswith("/api/datasets/me/sums/tree/"):
            self.reply(json.dumps([
                {"type": "file", "path": name, "size": p.stat().st_size, "oid": self.tag(p)}
                for name, p in files.items()]).encode())
        elif (name := path.removeprefix(f"/datasets/me/sums/resolve/{self.commit}/")) in files:
            self.reply(files[name].read_bytes(), self.tag(files[name]))
        else:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_HEAD = do_GET

    @staticmethod
    def tag(path: Path) -> str:
        return hashlib.sha1(path.read_bytes()).hexdigest()

    def reply(self, content: bytes, tag: str = "") -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        if tag:
            self.send_header("ETag", f'"{tag}"')
            self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


PROGRAM = """
import sys
from fathom.core.errors import FathomError
from fathom.tasks.hub import fingerprints
from fathom.tasks.task import load_task
for name in sys.argv[1:]:
    try:
        task = load_task({"task": name, "revision": "main"})
        print(len(list(task.problems("train"))), len(list(task.problems("test"))), *fingerprints(name))
    except FathomError as error:
        print(error)
assert "torch" not in sys.modules
"""


def test_a_download_from_a_server(tmp_path: Path) -> None:
    """The package itself, its cache of links included, against a server; then without one, from the cache."""
    pytest.importorskip("huggingface_hub")
    Hub.root = repository(tmp_path / "served", "main", gsm8k, 30, 10)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home"),
           "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0"}

    def told(*names: str) -> list[str]:
        command = [sys.executable, "-c", PROGRAM, *names]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.splitlines()

    try:
        good, bad = told("hub:me/sums", "hub:me/none")
    finally:
        server.shutdown()
        server.server_close()
    assert good == "30 10 hub:me/sums"
    assert "hub:me/none: revision main cannot be fetched" in bad
    assert not list((tmp_path / "home").rglob("other"))  # what is not asked for is not downloaded
    good, bad = told("hub:me/sums", "hub:me/else")
    assert good == "30 10 hub:me/sums"
    assert "hub:me/else: revision main cannot be fetched" in bad

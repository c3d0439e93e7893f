"""The journal: answers survive a kill; foreign files are left alone."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading

import pytest

from fathom.core.errors import FathomError, UsageError
from fathom.core.journal import Journal


def test_values_come_back(tmp_path):
    with Journal(tmp_path / "deep" / "j.sqlite") as journal:
        journal.put("a", {"x": [1, None, "é"]})
        journal.put("a", {"x": 2})
        journal.put_many({"b": None, "c": 1.5})
        assert len(journal) == 3
    with Journal(tmp_path / "deep" / "j.sqlite") as journal:
        assert journal.get("a") == {"x": 2} and journal.get("c") == 1.5
        assert journal.get("b") is None and "b" in journal
        assert journal.get("d") is None and "d" not in journal


def test_key_is_of_all_its_parts():
    assert Journal.key("ab", "c") != Journal.key("a", "bc") != Journal.key(["a", "bc"])
    assert Journal.key({"x": 1, "y": 2}) == Journal.key({"y": 2, "x": 1})
    assert len(Journal.key()) == 64
    with pytest.raises(FathomError, match="cannot be written as JSON"):
        Journal.key(float("nan"))


def test_put_many_is_all_or_nothing(tmp_path):
    with Journal(tmp_path / "j") as journal:
        with pytest.raises(FathomError, match=r"^b: .*cannot be written as JSON"):
            journal.put_many({"a": 1, "b": {1}})
        assert len(journal) == 0


@pytest.mark.kill
def test_what_was_put_survives_a_kill(tmp_path):
    code = (
        "import sys; from fathom.core.journal import Journal\n"
        "journal = Journal(sys.argv[1]); n = 0\n"
        "while True: journal.put(f'k{n}', n); print(n, flush=True); n += 1\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, tmp_path / "j"], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    told = [child.stdout.readline() for _ in range(20)]
    child.send_signal(signal.SIGKILL)
    told += child.stdout.readlines()
    child.wait()
    last = max(int(line) for line in told if line.endswith("\n"))
    with Journal(tmp_path / "j") as journal:
        assert [journal.get(f"k{n}") for n in range(last + 1)] == list(range(last + 1))
        assert len(journal) in (last + 1, last + 2), "at most one more was put and not yet told"


def test_threads_share_a_journal(tmp_path):
    with Journal(tmp_path / "j") as journal:
        threads = [
            threading.Thread(target=lambda n=n: [journal.put(f"{n}-{i}", i) for i in range(10)]) for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(journal) == 40


def test_two_journals_on_one_file(tmp_path):
    with Journal(tmp_path / "j") as one, Journal(tmp_path / "j") as two:
        one.put("a", 1)
        two.put("b", 2)
        assert one.get("b") == 2 and two.get("a") == 1


def foreign(tmp_path, kind):
    path = tmp_path / "j"
    match kind:
        case "text":
            path.write_text("not a database at all")
        case "directory":
            path.mkdir()
        case "other":
            database = sqlite3.connect(path)
            database.execute("CREATE TABLE mine (x)")
            database.commit()
            database.close()
        case "newer":
            Journal(path).close()
            database = sqlite3.connect(path)
            database.execute("PRAGMA user_version = 9")
            database.commit()
            database.close()
        case "torn":
            with Journal(path) as journal:
                journal.put_many({f"k{n}": "x" * 500 for n in range(50)})
            data = path.read_bytes()
            path.write_bytes(data[:100] + b"\xff" * (len(data) - 100))
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("text", "does not begin as SQLite does"),
        ("directory", "is a directory"),
        ("other", "another program's database"),
        ("newer", "format version 9, this Fathom reads 1"),
        ("torn", "restore it from a copy|malformed"),
    ],
)
def test_what_is_no_journal_is_left_alone(tmp_path, kind, words):
    path = foreign(tmp_path, kind)
    before = None if path.is_dir() else path.read_bytes()
    with pytest.raises(FathomError, match=words) as caught, Journal(path) as journal:
        journal.get("k1")
    assert str(path) in str(caught.value)
    assert isinstance(caught.value, UsageError) == (kind in ("text", "directory", "other"))
    assert before is None or path.read_bytes() == before


def test_a_closed_journal_says_so(tmp_path):
    journal = Journal(tmp_path / "j")
    journal.close()
    journal.close()
    with pytest.raises(FathomError, match="the journal was closed"):
        journal.get("a")
    assert os.path.exists(tmp_path / "j")

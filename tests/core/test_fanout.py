"""The same function over many items: order, named failures, nothing left behind."""

import os
import re
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from fathom.core.errors import FathomError, Stopped, UsageError
from fathom.core.fanout import fanout


@dataclass
class Item:
    id: str


def square(n: int) -> int:
    time.sleep(0.01 * (n % 3))
    return n * n


def trouble(item):
    if item == "raise":
        raise ValueError("bad\nvalue")
    if item == "stop":
        raise Stopped("the disk is full")
    if item == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "exit":
        os._exit(3)
    if item == "unpicklable":
        return lambda: None
    return os.getpid()


def with_child(path: str) -> int:
    child = subprocess.Popen(["sleep", "60"])
    Path(path).write_text(f"{os.getpid()} {child.pid}")
    time.sleep(60)
    return 0


def gone(pid: int, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_results_come_in_the_order_of_the_items(workers):
    assert list(fanout(square, range(9), workers)) == [n * n for n in range(9)]
    assert list(fanout(square, [], workers)) == []


def test_items_are_taken_lazily_and_processes_end_with_the_iterator():
    taken = []

    def endless():
        for n in count():
            taken.append(n)
            yield "pid"

    results = fanout(trouble, endless(), 2)
    pids = {next(results) for _ in range(6)}
    assert os.getpid() not in pids
    assert len(taken) <= 6 + 2 * 4
    results.close()
    assert all(gone(pid) for pid in pids)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("item", "kind", "words"),
    [("raise", FathomError, r"^raise: ValueError: bad value$"), ("stop", Stopped, r"^stop: the disk is full$")],
)
def test_an_exception_names_its_item_after_the_results_before_it(workers, item, kind, words):
    results = fanout(trouble, ["ok", item, "ok"], workers)
    next(results)
    with pytest.raises(kind) as caught:
        next(results)
    assert re.search(words, str(caught.value))
    story = "".join(traceback.format_exception(caught.value))
    assert "in trouble" in story, "where it happened is shown, from another process too"


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("die", r"^die: its process died \(signal SIGKILL\)"),
        ("exit", r"^exit: its process died \(exit code 3\)"),
        ("unpicklable", r"^unpicklable: .*pickle"),
    ],
)
def test_a_crash_names_its_item(item, words):
    with pytest.raises(FathomError, match=words):
        list(fanout(trouble, ["ok", item], 2))


def test_what_cannot_be_sent_is_said():
    with pytest.raises(UsageError, match="cannot be sent to another process"):
        list(fanout(lambda n: n, [1], 2))
    with pytest.raises(FathomError, match="cannot be sent to another process; use workers=1"):
        list(fanout(trouble, [lambda: None], 2))


def test_items_are_called_by_their_id():
    with pytest.raises(FathomError, match=r"^page-7: "):
        list(fanout(square, [Item("page-7")], 1))


@pytest.mark.kill
def test_processes_end_when_the_parent_is_killed(tmp_path):
    path = tmp_path / "pids"
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_fanout import with_child; from fathom.core.fanout import fanout\n"
        "if __name__ == '__main__': list(fanout(with_child, [sys.argv[2]], 2))\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    parent = subprocess.Popen([sys.executable, script, str(Path(__file__).parent), str(path)])
    deadline = time.monotonic() + 20
    while not (path.exists() and path.read_text().count(" ")) and time.monotonic() < deadline:
        time.sleep(0.02)
    worker, grandchild = map(int, path.read_text().split())
    parent.kill()
    parent.wait()
    assert gone(worker) and gone(grandchild)

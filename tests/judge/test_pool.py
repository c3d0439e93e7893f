"""The pool outlives everything that its function does."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fathom.core.errors import FathomError, UsageError
from fathom.judge.pool import Broken, Pool


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with Pool("made_targets:obey", timeout_s=1.0, memory_mb=256) as pool:
        yield pool


def test_order_and_values_over_several_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with Pool("made_targets:obey", workers=2) as pool:
        items = [f"item {i} {'x' * (i * 97 % 5000)}" for i in range(300)]
        assert pool.map(items) == items
        assert len(pool.pids()) == 2
        assert pool.map(["sleep 0.2"] * 4) == ["sleep 0.2"] * 4  # both are up now
        before = time.monotonic()
        pool.map(["sleep 0.3"] * 4)
        assert time.monotonic() - before < 1.0  # 1.2 s one after the other
        assert pool.map([]) == []


def test_each_disaster_costs_one_item(pool: Pool) -> None:
    items = ["a", "hang", "b", "die", "c", "exit", "d", "raise", "e", "eat", "f", "print", "g", "torch"]
    assert pool.map(items) == [
        "a",
        Broken("judging passed 1 s"),
        "b",
        Broken("worker died: signal 9"),
        "c",
        Broken("worker died: exit 3"),
        "d",
        Broken("judge raised KeyError"),
        "e",
        Broken("out of memory"),
        "f",
        "print",
        "g",
        False,
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="macOS does not enforce RLIMIT_AS")
def test_a_swallowed_memory_error_is_not_believed(pool: Pool) -> None:
    assert pool.map(["swallow", "after"]) == [Broken("out of memory"), "after"]


def test_a_worker_killed_from_outside_is_replaced(pool: Pool) -> None:
    pool.map(["a"])
    (first,) = pool.pids()
    threading.Timer(0.3, os.kill, (first, 9)).start()
    assert pool.map(["sleep 0.6", "b"]) == [Broken("worker died: signal 9"), "b"]
    assert pool.pids() != [first]
    os.kill(pool.pids()[0], 9)  # between two calls: nobody's item is lost for long
    time.sleep(0.1)
    assert pool.map(["c", "d"])[1] == "d"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_server_that_hung_is_replaced_by_its_keeper_without_a_new_interpreter(pool: Pool) -> None:
    def keeper() -> str:
        status = Path(f"/proc/{pool.pids()[0]}/status").read_text()
        return next(line for line in status.splitlines() if line.startswith("PPid:"))

    pool.map(["a"])
    servers, first = {pool.pids()[0]}, keeper()
    for _ in range(2):
        before = time.monotonic()
        assert pool.map(["hang"]) == [Broken("judging passed 1 s")]
        assert pool.map(["b"]) == ["b"]
        assert time.monotonic() - before < 1.5
        servers.add(pool.pids()[0])
    assert keeper() == first
    assert len(servers) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_outlives_a_keeper_that_is_killed(pool: Pool) -> None:
    pool.map(["a"])
    (server,) = pool.pids()
    keeper = pool._workers[0].process.pid
    threading.Timer(0.2, os.kill, (keeper, 9)).start()
    assert pool.map(["hang", "b"]) == [Broken("worker died: signal 9"), "b"]
    assert not Path(f"/proc/{server}/cmdline").exists() or Path(f"/proc/{server}/cmdline").read_bytes() == b""


def test_close_leaves_no_process(pool: Pool) -> None:
    pool.map(["a"])
    (worker,) = pool.pids()
    pool.close()
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_a_target_that_cannot_be_imported_is_an_error_with_its_reason() -> None:
    with Pool("no_such_module:f") as pool, pytest.raises(FathomError, match="No module named 'no_such_module'"):
        pool.map(["a"])


def test_impossible_settings() -> None:
    with pytest.raises(UsageError, match="workers=0"):
        Pool("m:f", workers=0)
    with pytest.raises(UsageError, match="timeout_s=0"):
        Pool("m:f", timeout_s=0)


def gone(pids: list[int]) -> bool:
    """Whether the processes end within 5 s; orphans are reaped a moment after they were killed."""
    before = time.monotonic()
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() - before < 5:
        time.sleep(0.02)
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_a_killed_parent(end: signal.Signals, tmp_path: Path) -> None:
    """Not a server that sleeps for ever, nor what the target started."""
    parent = subprocess.Popen(
        [sys.executable, "-c", "from fathom.judge.pool import Pool; Pool('made_targets:linger').map(['go'])"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)}, cwd=tmp_path,
    )
    wanted = {"keeper", "server", "started"}
    while wanted - {path.name for path in tmp_path.iterdir()}:
        assert parent.poll() is None
        time.sleep(0.02)
    pids = [int((tmp_path / name).read_text()) for name in wanted]
    parent.send_signal(end)
    parent.wait()
    assert gone(pids)


def test_close_ends_what_the_target_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.chdir(tmp_path)
    with Pool("made_targets:linger", timeout_s=1.0) as pool:
        assert pool.map(["go"]) == [Broken("judging passed 1 s")]
    assert gone([int((tmp_path / "started").read_text())])

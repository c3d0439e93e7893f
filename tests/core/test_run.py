"""A run: the manifest tells the truth after any ending, metrics rewind bit-exactly, one process at a time."""

import hashlib
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy
import pytest
from killing import deaths

from fathom.core import machine
from fathom.core.config import Settings
from fathom.core.errors import FathomError, Stopped, UsageError
from fathom.core.run import Run, read_manifest


class Sft(Settings):
    lr: float = 1e-3
    steps: int = 10


def start(directory, **changes) -> Run:
    arguments = {"system": "sft", "settings": Sft(), "seed": 7, "console": False, **changes}
    return Run.open(directory, **arguments)


def statuses(directory) -> list[str]:
    return [attempt["status"] for attempt in read_manifest(directory)["attempts"]]


def lines(directory, name="metrics.jsonl") -> list[str]:
    return (Path(directory) / name).read_text().splitlines()


def test_a_finished_run(tmp_path):
    directory = tmp_path / "runs" / "sft"
    with start(directory, inputs={"data": "abc"}) as run:
        assert (run.dir, run.attempt, run.finished) == (directory, 1, False)
        assert read_manifest(directory)["status"] == "running"
        run.metrics(1, loss=0.5, expert_load=[[1, 2], [3, 4]], lr=numpy.float32(0.5), n=numpy.int64(3))
        run.timing(1, seconds=0.25)
        run.log.info("hello")
        run.finish(steps=1)
    manifest = read_manifest(directory)
    assert manifest["status"] == "done" and manifest["summary"] == {"steps": 1}
    assert manifest["settings"] == {"lr": 0.001, "steps": 10} and manifest["inputs"] == {"data": "abc"}
    assert (manifest["system"], manifest["seed"], manifest["format"]) == ("sft", 7, 1)
    assert manifest["versions"]["python"].count(".") == 2 and "cores" in manifest["device"]
    (attempt,) = manifest["attempts"]
    assert attempt["pid"] == os.getpid() and attempt["started"] <= attempt["ended"]
    assert lines(directory) == ['{"step":1,"expert_load":[[1,2],[3,4]],"loss":0.5,"lr":0.5,"n":3}']
    assert lines(directory, "timing.jsonl") == ['{"step":1,"seconds":0.25}']
    assert "hello" in (directory / "logs" / "attempt-1.log").read_text()
    assert not (directory / "LOCK").exists()


def test_a_finished_run_is_skipped_and_left_alone(tmp_path):
    with start(tmp_path / "r") as run:
        run.finish()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with start(tmp_path / "r") as run:
        assert run.finished and run.attempt == 1
        assert run.seed("a") == run.seed("a")
        with pytest.raises(FathomError, match="finished before"):
            run.metrics(1, loss=1)
        with pytest.raises(FathomError, match="finished before"):
            run.finish()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ZeroDivisionError("a\nb"), "failed", "ZeroDivisionError: a b"),
        (FathomError("lr=9: too high; lower it"), "failed", "lr=9: too high; lower it"),
        (Stopped("SIGTERM"), "stopped", "SIGTERM"),
        (KeyboardInterrupt(), "stopped", "Ctrl-C twice"),
    ],
)
def test_how_it_ended_is_recorded(tmp_path, error, status, message):
    with pytest.raises(type(error)), start(tmp_path / "r"):
        raise error
    manifest = read_manifest(tmp_path / "r")
    assert manifest["status"] == status
    assert (manifest["attempts"][0]["status"], manifest["attempts"][0]["message"]) == (status, message)
    assert message in (tmp_path / "r" / "logs" / "attempt-1.log").read_text()
    with start(tmp_path / "r") as run:
        assert run.attempt == 2 and not run.finished
    assert statuses(tmp_path / "r") == [status, "stopped"]
    assert read_manifest(tmp_path / "r")["attempts"][1]["message"] == "left before the work was done"


def test_other_settings_are_refused_with_the_differences(tmp_path):
    with start(tmp_path / "r", inputs={"data": "abc"}) as run:
        run.metrics(1, loss=1)
    before = (tmp_path / "r" / "manifest.json").read_bytes()
    with pytest.raises(UsageError) as caught:
        start(tmp_path / "r", settings=Sft(lr=0.002), seed=8, inputs={"data": "abd"})
    text = str(caught.value)
    for part in ("lr: 0.001 → 0.002", "seed: 7 → 8", "inputs.data: abc → abd", "--fresh", "r.1", "--dir OTHER"):
        assert part in text
    with pytest.raises(UsageError, match="system: sft → grpo"):
        start(tmp_path / "r", system="grpo")
    assert (tmp_path / "r" / "manifest.json").read_bytes() == before and lines(tmp_path / "r")
    assert sorted(os.listdir(tmp_path / "r")) == ["logs", "manifest.json", "metrics.jsonl", "timing.jsonl"]


def test_fresh_moves_the_old_run_aside(tmp_path):
    for lr in (1.0, 2.0, 3.0):
        with start(tmp_path / "r", settings=Sft(lr=lr), fresh=True) as run:
            assert run.attempt == 1
            run.metrics(1, lr=lr)
            run.finish()
    assert sorted(os.listdir(tmp_path)) == ["r", "r.1", "r.2"]
    assert [read_manifest(tmp_path / name)["settings"]["lr"] for name in ("r.1", "r.2", "r")] == [1.0, 2.0, 3.0]
    assert lines(tmp_path / "r") == ['{"step":1,"lr":3.0}']


def test_fresh_does_not_move_a_living_run(tmp_path):
    with start(tmp_path / "r") as run, pytest.raises(UsageError, match=f"in use by pid {os.getpid()} on "):
        start(tmp_path / "r", fresh=True)
    assert run.dir.exists() and not (tmp_path / "r.1").exists()


def test_directories_that_are_no_run_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(UsageError, match=r"holds thesis\.tex and no manifest\.json, so it is not a run"):
            start(tmp_path, fresh=fresh)
    with pytest.raises(UsageError, match="name a directory for the run"):
        start(tmp_path / "thesis.tex")
    with pytest.raises(FathomError, match=r"thesis\.tex"):
        start(tmp_path / "thesis.tex" / "r")
    assert os.listdir(tmp_path) == ["thesis.tex"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not JSON"),
        ("[]", "no format version"),
        ('{"format": 2}', "format version 2, this Fathom reads 1"),
        ('{"format": 1}', "system='None' is not what a run writes"),
        ("\xff\xfe", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("", "not JSON"),
    ],
)
def test_a_broken_manifest_is_never_written_over(tmp_path, text, words):
    with start(tmp_path / "r"):
        pass
    path = tmp_path / "r" / "manifest.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(FathomError, match=words):
        start(tmp_path / "r")
    with pytest.raises(FathomError, match=words):
        read_manifest(tmp_path / "r")
    assert path.read_bytes() == text.encode("latin-1")
    with start(tmp_path / "r", settings=Sft(lr=5), fresh=True) as run:
        assert run.attempt == 1
    assert (tmp_path / "r.1" / "manifest.json").read_bytes() == text.encode("latin-1")


def test_manifest_of_a_wrong_type_in_one_field(tmp_path):
    with start(tmp_path / "r"):
        pass
    good = json.loads((tmp_path / "r" / "manifest.json").read_text())
    for name, value in (("attempts", [1]), ("status", "finished"), ("versions", None), ("settings", [])):
        (tmp_path / "r" / "manifest.json").write_text(json.dumps({**good, name: value}))
        with pytest.raises(FathomError, match=f"{name}.*not what a run writes"):
            start(tmp_path / "r")
    shutil.rmtree(tmp_path / "r")
    (tmp_path / "r" / "manifest.json").mkdir(parents=True)
    with pytest.raises(FathomError, match="cannot be read"):
        start(tmp_path / "r")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"loss": math.nan}, r"^loss=nan: must be finite"),
        ({"load": [[1, math.inf]]}, r"^load\[0\]\[1\]=inf: must be finite"),
        ({"a": {"b": numpy.float32("nan")}}, r"^a\.b=nan: must be finite"),
        ({"x": object()}, r"^x: object is not a number"),
    ],
)
def test_metrics_refuse_what_is_no_number_by_name(tmp_path, values, words):
    with start(tmp_path / "r") as run:
        with pytest.raises(FathomError, match=words):
            run.metrics(1, ok=1, **values)
        with pytest.raises(FathomError, match="step=-1: must be a whole number"):
            run.metrics(-1, loss=1)
        with pytest.raises(FathomError, match=words):
            run.finish(**values)
    assert lines(tmp_path / "r") == []


def test_a_write_that_fails_leaves_no_torn_line(tmp_path, monkeypatch):
    with start(tmp_path / "r") as run:
        run.metrics(1, loss=1)

        def full(file, data):
            os.write(file, data[:5])
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("fathom.core.disk._write", full)
            with pytest.raises(Stopped, match=r"metrics\.jsonl: No space left"):
                run.metrics(2, loss=1)
        run.metrics(2, loss=2)
    assert lines(tmp_path / "r") == ['{"step":1,"loss":1}', '{"step":2,"loss":2}']


def test_rewind_cuts_back_to_the_mark(tmp_path):
    with start(tmp_path / "r") as run:
        for step in (1, 2, 3):
            run.metrics(step, loss=1 / step)
            run.timing(step, seconds=step)
            if step == 2:
                mark = run.mark()
    path = tmp_path / "r" / "metrics.jsonl"
    whole = path.read_bytes()
    assert mark["metrics_sha256"] == hashlib.sha256(whole[: mark["metrics_bytes"]]).hexdigest()
    path.write_bytes(whole + b'{"step":4,"lo')  # killed inside a line
    with start(tmp_path / "r") as run:
        assert path.read_bytes() == whole, "the torn line is gone at opening"
        run.rewind(mark)
        assert run.mark() == mark
        run.metrics(3, loss=1 / 3)
        assert path.read_bytes() == whole
        assert run.mark()["metrics_sha256"] == hashlib.sha256(whole).hexdigest()
        run.rewind(None)
        assert path.read_bytes() == b""
    assert len(lines(tmp_path / "r", "timing.jsonl")) == 3


def test_rewind_refuses_another_history(tmp_path):
    with start(tmp_path / "r") as run:
        run.metrics(1, loss=1)
        mark = run.mark()
        path = run.dir / "metrics.jsonl"
        whole = path.read_bytes()
        with pytest.raises(FathomError, match="holds 20 bytes, the checkpoint was made at 21"):
            run.rewind({**mark, "metrics_bytes": mark["metrics_bytes"] + 1})
        for bad in ({**mark, "metrics_sha256": "0" * 64}, {**mark, "metrics_bytes": 3}):
            with pytest.raises(FathomError, match=r"first \d+ bytes have sha256 .* expected .*; "):
                run.rewind(bad)
        for bad in ({}, {"metrics_bytes": "3", "metrics_sha256": ""}, {"metrics_bytes": -1, "metrics_sha256": ""}):
            with pytest.raises(FathomError, match=r"not made by Run\.mark"):
                run.rewind(bad)
        assert path.read_bytes() == whole


def test_randomness_has_a_name(tmp_path):
    with start(tmp_path / "a") as run, start(tmp_path / "b") as same, start(tmp_path / "c", seed=8) as other:
        # Pinned: another value would change every result.
        assert run.seed("sample", 3) == same.seed("sample", 3) == 1443220825183485457
        names = [("sample", 3), ("sample", "3"), ("sample3",), ("sample",), ()]
        assert len({run.seed(*name) for name in names} | {other.seed("sample", 3)}) == 6
        assert all(0 <= run.seed(n) < 2**63 for n in range(1000))
        assert run.rng("a").random(3).tolist() == same.rng("a").random(3).tolist() != run.rng("b").random(3).tolist()
        assert run.seed("x", numpy.int64(3)) == run.seed("x", 3)
        with pytest.raises(TypeError):
            run.seed(0.5)


def test_a_stop_is_asked_for_by_signals_and_the_handlers_come_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    for number, reason in ((signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")):
        with start(tmp_path / "r") as run:
            assert run.stop_requested is None
            os.kill(os.getpid(), number)
            assert run.stop_requested == run.stop_requested == reason
            if number == signal.SIGINT:
                with pytest.raises(KeyboardInterrupt):
                    os.kill(os.getpid(), number)
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
        assert read_manifest(tmp_path / "r")["attempts"][-1]["message"] == reason
    with pytest.raises(UsageError):
        start(tmp_path / "r", seed=9)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_time_limit_asks_for_a_stop(tmp_path):
    with start(tmp_path / "r", time_limit=0.05) as run:
        assert run.stop_requested is None
        time.sleep(0.06)
        assert run.stop_requested == "time_limit=0.05 s reached"
    with pytest.raises(UsageError, match="time_limit=0: must be > 0 seconds"):
        start(tmp_path / "r", time_limit=0)


def test_another_thread_installs_no_handlers(tmp_path):
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with start(tmp_path / "r") as run:
            seen.append(signal.getsignal(signal.SIGTERM))
            run.finish()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before] and read_manifest(tmp_path / "r")["status"] == "done"


HOLD = """
import sys, time
sys.path.insert(0, sys.argv[1])
from test_run import start
run = start(sys.argv[2])
run.metrics(1, loss=1)
print("held", flush=True)
time.sleep(60)
"""


def hold(directory) -> subprocess.Popen:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(Path(__file__).parent), str(directory)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    return child


@pytest.mark.kill
def test_one_process_at_a_time_and_a_dead_holder_is_replaced(tmp_path):
    child = hold(tmp_path / "r")
    with pytest.raises(UsageError, match=rf"r: in use by pid {child.pid} on .+; wait for it, or stop it with SIGTERM"):
        start(tmp_path / "r")
    child.kill()
    child.communicate()
    (tmp_path / "r" / "checkpoints").mkdir()
    litter = tmp_path / "r" / "checkpoints" / f".tmp-00000000--{child.pid}-1-00000000-x"
    litter.mkdir()
    os.utime(litter, (0, 0))
    with start(tmp_path / "r") as run:
        assert run.attempt == 2 and not litter.exists()
        run.metrics(2, loss=1)
    log = (tmp_path / "r" / "logs" / "attempt-2.log").read_text()
    assert f"pid {child.pid}" in log and "left by a dead process" in log
    assert statuses(tmp_path / "r") == ["killed", "stopped"]
    assert len(lines(tmp_path / "r")) == 2


def test_a_lock_kept_by_the_child_of_a_dead_holder_says_so(tmp_path):
    code = HOLD.replace("run.metrics(1, loss=1)", "import os; child = os.fork() or time.sleep(60)")
    code = code.replace('print("held"', "print(child")
    arguments = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path / "r")]
    holder = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    holder.kill()
    holder.wait()
    try:
        with pytest.raises(UsageError, match=rf"pid {holder.pid} on .* \(gone, but a process that it started lives on"):
            start(tmp_path / "r")
    finally:
        os.kill(child, signal.SIGKILL)
        holder.stdout.close()


def test_a_lock_of_a_reused_process_number_is_not_believed(tmp_path):
    with start(tmp_path / "r") as run:
        content = json.loads((run.dir / "LOCK").read_text())
    assert content["pid"] == os.getpid()
    for text in (json.dumps({**content, "pid": os.getppid(), "start": "1"}), "", '{"pid":', "\x00" * 50):
        (tmp_path / "r" / "LOCK").write_text(text)
        with start(tmp_path / "r"):
            pass


@pytest.mark.kill
def test_killed_anywhere_it_opens_again_with_the_same_metrics(memory_path):
    directory = memory_path / "r"

    def work() -> None:
        with start(directory) as run:
            if run.finished:
                return
            run.rewind(None)  # no checkpoint: from the beginning
            for step in (1, 2):
                run.metrics(step, loss=1 / step)
            run.mark()
            run.finish(steps=2)

    kills = 0
    for _ in deaths(work):
        kills += 1
        work()
        assert lines(directory) == ['{"step":1,"loss":1.0}', '{"step":2,"loss":0.5}']
        assert read_manifest(directory)["status"] == "done"
        assert statuses(directory)[:-1] in ([], ["killed"])
        assert not [name for name in os.listdir(directory) if name.startswith(".tmp-")]
        # Killed between "done" and the release, the lock file stays: a finished run is only looked at.
        assert not (directory / "LOCK").exists() or statuses(directory) == ["done"]
        shutil.rmtree(directory)
    assert kills > 20


def test_a_changed_version_is_logged_by_name(tmp_path, monkeypatch):
    with start(tmp_path / "r"):
        pass
    monkeypatch.setattr(machine, "versions", lambda: {**read_manifest(tmp_path / "r")["versions"], "numpy": "9.9"})
    with start(tmp_path / "r"):
        pass
    (line,) = read_manifest(tmp_path / "r")["attempts"][1]["changed"]
    assert line == f"numpy: {numpy.__version__} → 9.9"
    assert line in (tmp_path / "r" / "logs" / "attempt-2.log").read_text()


def test_console_lines_go_to_stderr_plainly(tmp_path, capsys):
    with pytest.raises(ZeroDivisionError), start(tmp_path / "r", console=True) as run:
        run.log.info("[bold]hello")
        raise ZeroDivisionError
    out, err = capsys.readouterr()
    assert out == "" and "I [bold]hello\n" in err and "\x1b" not in err
    assert "ZeroDivisionError" not in err, "the command line prints the error, once"
    assert logging.getLogger().handlers == [] or run.log.propagate is False


def test_an_end_that_cannot_be_recorded_does_not_hide_the_error(tmp_path):
    with pytest.raises(ZeroDivisionError), start(tmp_path / "r") as run:
        (run.dir / "manifest.json").unlink()
        (run.dir / "manifest.json").mkdir()
        raise ZeroDivisionError
    assert "could not be recorded" in (tmp_path / "r" / "logs" / "attempt-1.log").read_text()
    assert not (tmp_path / "r" / "LOCK").exists()


def test_close_twice(tmp_path):
    run = start(tmp_path / "r")
    run.close()
    run.close()
    with pytest.raises(FathomError, match="this run is closed"):
        run.metrics(1, loss=1)
    with pytest.raises(FathomError, match="holds no manifest"):
        read_manifest(tmp_path)

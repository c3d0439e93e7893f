"""Atomic files and commits: the old state or the new one, after a kill at any operation."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from killing import deaths

from fathom.core import disk, process
from fathom.core.errors import FathomError, Stopped


def leftovers(directory: Path) -> list[str]:
    return [name for name in os.listdir(directory) if name.startswith(".tmp-")]


def test_write_atomic_makes_parents_and_replaces(tmp_path):
    path = tmp_path / "a" / "b.txt"
    disk.write_atomic(path, "old")
    disk.write_atomic(path, b"new \xff")
    assert path.read_bytes() == b"new \xff"
    assert leftovers(path.parent) == []


def test_write_atomic_through_a_link_keeps_the_link(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    disk.write_atomic(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"


@pytest.mark.kill
def test_write_atomic_killed_anywhere_leaves_old_or_new(memory_path):
    path = memory_path / "file"
    path.write_text("old")
    seen = []
    for place in deaths(lambda: disk.write_atomic(path, "newer")):
        seen.append((place, path.read_text()))
        assert path.read_text() in ("old", "newer")
        disk.sweep(memory_path)
        assert leftovers(memory_path) == []
        path.write_text("old")
    # write, fsync, replace, fsync of the directory; the new text shows from the rename on and not before
    assert max(number for (number, _), _ in seen) == 4
    assert {text for (number, moment), text in seen if (number, moment) < (3, "after")} <= {"old", "newer"}
    assert [text for (number, moment), text in seen if (number, moment) == (3, "before")] == ["old"]
    assert [text for (number, moment), text in seen if (number, moment) == (3, "after")] == ["newer"]


def test_write_atomic_onto_a_directory_is_refused(tmp_path):
    (tmp_path / "d").mkdir()
    with pytest.raises(FathomError, match="is a directory"):
        disk.write_atomic(tmp_path / "d", "x")


def test_a_full_disk_stops_and_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")

    def full(file, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk, "_write", full)
    with pytest.raises(Stopped, match=r"file: No space left on device; free some space") as caught:
        disk.write_atomic(path, "new")
    assert caught.value.exit_code == 75
    assert path.read_text() == "old" and leftovers(tmp_path) == []
    with pytest.raises(Stopped), disk.commit(tmp_path / "c") as c:
        c.write("a", "1")
    with pytest.raises(Stopped), disk.commit(tmp_path / "c") as c:
        raise OSError(errno.ENOSPC, "a foreign writer found the disk full")
    assert sorted(os.listdir(tmp_path)) == ["file"]


def make(final: Path) -> None:
    with disk.commit(final) as c:
        c.write("a.txt", "hello")
        c.write("deep/b.bin", b"\x00" * 100)
        c.path("foreign.safetensors").write_bytes(b"weights")


def test_commit_holds_what_was_written(tmp_path):
    final = tmp_path / "x" / "000001"
    make(final)
    assert disk.is_complete(final) and leftovers(final.parent) == []
    disk.verify(final)
    assert disk.read(final, "deep/b.bin") == b"\x00" * 100
    assert (final / "foreign.safetensors").read_bytes() == b"weights"


def test_digest_names_the_contents_not_the_place(tmp_path):
    make(tmp_path / "a")
    make(tmp_path / "b")
    with disk.commit(tmp_path / "c") as c:
        c.write("a.txt", "hello!")
    assert disk.digest(tmp_path / "a") == disk.digest(tmp_path / "b") != disk.digest(tmp_path / "c")


@pytest.mark.kill
def test_commit_killed_anywhere_appears_whole_or_not_at_all(memory_path):
    final = memory_path / "c"
    outcomes = []
    for place in deaths(lambda: make(final)):
        outcomes.append((place, final.exists()))
        if final.exists():
            disk.verify(final)
        disk.sweep(memory_path)
        assert leftovers(memory_path) == []
        shutil.rmtree(final, ignore_errors=True)
    # 4 written files × (write, fsync), a foreign file, 2 directories, rename, parent
    assert max(number for (number, _), _ in outcomes) == 13
    appeared = [place for place, there in outcomes if there]
    assert appeared == [(12, "after"), (13, "before"), (13, "after")]


def test_an_exception_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), disk.commit(tmp_path / "c") as c:
        c.write("a", "1")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def test_commit_never_writes_over(tmp_path):
    make(tmp_path / "c")
    before = disk.digest(tmp_path / "c")
    with pytest.raises(FathomError, match="exists already"), disk.commit(tmp_path / "c"):
        pytest.fail("the body must not run")
    with pytest.raises(FathomError, match="exists already"), disk.commit(tmp_path / "late") as c:
        c.write("a", "1")
        make(tmp_path / "late")
    assert disk.digest(tmp_path / "c") == before == disk.digest(tmp_path / "late")


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "", ".", "COMPLETE", "checksums.json", "a//b"])
def test_commit_refuses_names_outside_itself(tmp_path, name):
    with pytest.raises(FathomError, match="not a name inside"), disk.commit(tmp_path / "c") as c:
        c.write(name, "1")
    assert os.listdir(tmp_path) == []


def test_commit_refuses_two_writers_missing_files_and_links(tmp_path):
    with pytest.raises(FathomError, match="written twice"), disk.commit(tmp_path / "c") as c:
        c.write("a", "1")
        c.write("a", "2")
    with pytest.raises(FathomError, match="never written"), disk.commit(tmp_path / "c") as c:
        c.path("a")
    with pytest.raises(FathomError, match="not a regular file"), disk.commit(tmp_path / "c") as c:
        c.path("a").symlink_to("/etc/passwd")
    assert os.listdir(tmp_path) == []


def damage(kind: str, final: Path) -> None:
    match kind:
        case "changed":
            (final / "a.txt").write_text("hellp")
        case "truncated":
            (final / "deep" / "b.bin").write_bytes(b"\x00" * 99)
        case "gone":
            (final / "foreign.safetensors").unlink()
        case "unsealed":
            (final / "COMPLETE").unlink()
        case "checksums":
            (final / "checksums.json").write_text("{")
        case "absent":
            shutil.rmtree(final)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("changed", r"a\.txt: contents changed.*sha256.*expected.*; restore"),
        ("truncated", r"b\.bin: contents changed"),
        ("gone", r"foreign\.safetensors: No such file"),
        ("unsealed", r"no COMPLETE.*never finished; restore"),
        ("checksums", r"checksums\.json: contents changed"),
        ("absent", r"no such directory"),
    ],
)
def test_verify_names_the_damage(tmp_path, kind, words):
    make(tmp_path / "c")
    damage(kind, tmp_path / "c")
    with pytest.raises(FathomError, match=words):
        disk.verify(tmp_path / "c")


def test_sweep_keeps_the_living(tmp_path):
    with disk.commit(tmp_path / "c") as c:
        c.write("a", "1")
        assert disk.sweep(tmp_path) == []
    assert disk.is_complete(tmp_path / "c")


def test_sweep_judges_writers_elsewhere_by_age(tmp_path):
    own = f"{process.place()}-{process.boot()[:8]}"
    dead_boot = tmp_path / f".tmp-{process.place()}-00000000-1-5-00000000-a"
    reused_pid = tmp_path / f".tmp-{own}-{os.getpid()}-1-00000000-b"
    elsewhere = tmp_path / ".tmp-00000000-00000000-1-5-00000000-c"
    old = tmp_path / ".tmp-00000000-00000000-1-5-00000001-d"
    for path in (dead_boot, reused_pid, elsewhere, old):
        path.mkdir()
    os.utime(old, (0, 0))
    assert disk.sweep(tmp_path) == sorted(path.name for path in (dead_boot, reused_pid, old))
    assert elsewhere.exists()
    assert disk.sweep(tmp_path / "absent") == []


def test_process_identity_tells_the_dead():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = process.started(child.pid)
    assert process.alive(child.pid, start) and not process.alive(child.pid, start + "1")
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not process.alive(child.pid, start), "a zombie is not alive"
    child.communicate()
    assert not process.alive(child.pid, start)

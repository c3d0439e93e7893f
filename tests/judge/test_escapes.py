"""Nothing in tests/judge/escapes gets out of the sandbox, and nearly all of it succeeds without.

An attack counts where it succeeds without the sandbox in the same environment: a fresh child, or the naive judge of
escapes/naive.py. `LEVEL=L0` says that this machine need not reach L1.
"""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from escapes import ATTACKS
from escapes.in_python import HONEST, HONEST_SAYS
from escapes.running import PRELOAD, Tried, descendants, settled, within, without
from escapes.scene import STDIN, Scene, marked_processes

from fathom.judge.sandbox import End, Level, Program, Sandbox, reached_level

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="the attacks call Linux on x86_64 by number"
)
ROOT = Path(__file__).resolve().parents[2]
QUICK = [a for a in ATTACKS if not (a.measured or a.beside or a.second or a.ends.startswith("limit"))]

ORDINARY = """
import asyncio
import ctypes
import socket
import subprocess
import threading

import numpy

print(numpy.arange(6).reshape(2, 3) @ numpy.ones(3))
with open("notes.txt", "w") as file:
    file.write("kept")
print(open("notes.txt").read(), open("given.txt").read())
found = []
threads = [threading.Thread(target=found.append, args=(number,)) for number in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(sorted(found))
left, right = socket.socketpair()
left.sendall(b"over a socketpair")
print(right.recv(100).decode())


async def slept():
    await asyncio.sleep(0.01)
    return "slept"


print(asyncio.run(slept()))
print(ctypes.CDLL(None).abs(-7))
print(input())
"""
ORDINARY_SAYS = b"[ 3. 12.]\nkept by the caller\n[0, 1, 2, 3, 4, 5, 6, 7]\nover a socketpair\nslept\n7\ngiven\n"


@pytest.fixture(scope="module", autouse=True)
def level() -> Level:
    """What this machine reaches: L1, or the run fails unless LEVEL=L0 is set."""
    reached, why = reached_level()
    if reached < Level.L1 and os.environ.get("LEVEL") != "L0":
        pytest.fail(f"L1 is not reached: {why}; set LEVEL=L0 where it cannot be")
    return reached


@dataclass(frozen=True)
class Whole:
    """Every attack, tried in the sandbox, and the world around before and after."""

    tried: list[Tried]
    before: dict[str, object]
    after: dict[str, object]
    temporary: list[str]  # what stands in the folder for temporary files afterwards


def _all_in_the_sandbox(level: Level, folder: Path) -> Whole:
    with pytest.MonkeyPatch.context() as patch:
        before = _world()
        with Scene() as scene:
            patch.setattr("tempfile.tempdir", str(folder))
            with (
                Sandbox(preload=PRELOAD, level=level) as sandbox,
                Sandbox(workers=1, preload=PRELOAD, level=level) as one,
            ):
                tried = within(scene, sandbox, one, ATTACKS)
        settled(_world, before)
        return Whole(tried, before, _world(), os.listdir(folder))


def _world() -> dict[str, object]:
    """Our processes, and the mounts and IPC objects that we see."""
    return {
        "processes": sorted(descendants()),
        "mounts": Path("/proc/self/mounts").read_text(),
        **{
            name: [line.split()[1] for line in Path(f"/proc/sysvipc/{name}").read_text().splitlines()[1:]]
            for name in ("shm", "sem", "msg")
        },
    }


@pytest.fixture(scope="module")
def whole_at_l1(level: Level, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    if level < Level.L1:
        pytest.skip(f"L1 is not reached: {reached_level()[1]}")
    return _all_in_the_sandbox(Level.L1, tmp_path_factory.mktemp("temporary"))


@pytest.fixture
def at_l1(whole_at_l1: Whole) -> list[Tried]:
    return whole_at_l1.tried


@pytest.fixture(scope="module")
def uncontained() -> list[Tried]:
    """Every attack, tried without the sandbox."""
    with Scene() as scene:
        return without(scene, ATTACKS)


def _names(tried: list[Tried]) -> set[str]:
    return {one.attack.name for one in tried if one.succeeded}


def _counts(tried: list[Tried]) -> str:
    counted = Counter(one.attack.kind for one in tried if one.succeeded)
    return ", ".join(f"{kind} {count}" for kind, count in sorted(counted.items())) + f"; {sum(counted.values())} in all"


def test_no_attack_succeeds_at_l1(at_l1: list[Tried]) -> None:
    assert len(at_l1) == len(ATTACKS)
    assert _names(at_l1) == set()


def test_every_attack_begins_at_l1(at_l1: list[Tried]) -> None:
    # one that fails at its first line would prove nothing; and one that breaks the sandbox goes unjudged
    assert [one.attack.name for one in at_l1 if not one.began] == []
    assert [one.attack.name for one in at_l1 if one.outcome.ended == "broken"] == []


def test_forged_verdicts(at_l1: list[Tried]) -> None:
    forging = [one for one in at_l1 if one.attack.ends]
    assert len(forging) >= 20
    reported = [(one, f"{one.outcome.ended} {one.outcome.limit or one.outcome.code}") for one in forging]
    assert [(one.attack.name, end) for one, end in reported if end not in one.attack.ends.split(" or ")] == []
    # most show their true end, not an exception on the way there
    assert sum(not end.startswith("raised") for _, end in reported) >= 12


def test_a_later_program_is_as_it_would_be_alone(at_l1: list[Tried]) -> None:
    after = {one.attack.name: one.outcome.after for one in at_l1 if one.attack.after}
    assert len(after) >= 20
    assert {name: (later.ended, later.stdout) for name, later in after.items() if later} == dict.fromkeys(
        after, ("exited", HONEST_SAYS)
    )


def test_the_leading_end_of_a_pair_is_believed(at_l1: list[Tried]) -> None:
    seconds = {one.attack.name: one.outcome.second for one in at_l1 if one.attack.second}
    assert len(seconds) >= 8
    assert {name: (second.ended, second.stdout) for name, second in seconds.items() if second} == dict.fromkeys(
        seconds, ("exited", b"wrong\n")
    )


def test_a_sample_succeeds_without_the_sandbox() -> None:
    # The control of the test above, in part; the whole is test_attacks_count, which takes a minute.
    kinds = {attack.kind for attack in QUICK}
    sample = [attack for kind in kinds for attack in [a for a in QUICK if a.kind == kind][:6]]
    with Scene() as scene:
        tried = without(scene, sample)
    print(_counts(tried))
    assert sum(one.succeeded for one in tried) >= 40, _counts(tried)
    if os.geteuid() == 0:  # a user has no devices
        assert {one.attack.kind for one in tried if one.succeeded} == kinds


@pytest.mark.long
def test_attacks_count(uncontained: list[Tried]) -> None:
    print("succeed without the sandbox:", _counts(uncontained))
    print("not counted here:", ", ".join(sorted(one.attack.name for one in uncontained if not one.succeeded)) or "none")
    assert len(_names(uncontained)) >= (300 if os.geteuid() == 0 else 120)


@pytest.mark.long
def test_what_l0_does_not_stop(uncontained: list[Tried], tmp_path: Path) -> None:
    tried = _all_in_the_sandbox(Level.L0, tmp_path).tried
    print("succeed at L0:", _counts(tried))
    listed = _listed_at_l0()
    if listed is None:
        pytest.skip("docs/sandbox.md has no table of what L0 does not stop")
    succeeded = _names(tried)
    assert succeeded - listed == set(), "missing from the table in docs/sandbox.md"
    undecided = {one.attack.name for one in tried if one.outcome.ended in ("broken", "limit")}  # a busy machine
    if os.geteuid() == 0:
        assert (listed & _names(uncontained)) - succeeded - undecided == set(), "L0 stops these; the table denies it"


def _listed_at_l0() -> set[str] | None:
    """The attacks in the table under "What L0 does not stop" in docs/sandbox.md: of each kind all, all but some, some,
    or none."""
    page = ROOT / "docs" / "sandbox.md"
    table = page.read_text().partition("What L0 does not stop")[2] if page.exists() else ""
    listed: set[str] = set()
    rows = re.findall(r"^\| ([a-z-]+) \| (.*) \|$", table, re.MULTILINE)
    for kind, cell in rows:
        of_kind = {attack.name for attack in ATTACKS if attack.kind == kind}
        named = set(re.findall(r"`(\w+)`", cell))
        assert named <= of_kind, f"{kind}: no such attacks: {named - of_kind}"
        listed |= of_kind - named if cell.startswith("all") else named
    return listed if {attack.kind for attack in ATTACKS} <= {kind for kind, _ in rows} else None


@pytest.mark.parametrize("asked", list(Level))
def test_an_ordinary_program_runs(asked: Level, level: Level) -> None:
    if asked > level:
        pytest.skip(f"L1 is not reached: {reached_level()[1]}")
    files = {"given.txt": b"by the caller"}
    with Sandbox(preload=PRELOAD, level=asked) as sandbox:
        for ran in sandbox.run([Program(ORDINARY, stdin=STDIN, files=files)] * 3):
            assert (ran.ended, ran.code, ran.stdout) == (End.EXITED, 0, ORDINARY_SAYS), ran.stderr


def test_nothing_is_left_over(whole_at_l1: Whole) -> None:
    # files, queues and sockets outside would have counted as attacks that succeed
    assert whole_at_l1.after == whole_at_l1.before
    assert whole_at_l1.temporary == []


def test_no_process_is_left_over_at_l0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _world()
    outliving = [a for a in ATTACKS if a.kind == "processes" and re.match("daemon|child|fork|subprocess", a.name)]
    assert len(outliving) >= 6
    with Scene() as scene:
        stages = [scene.stage(attack) for attack in outliving]
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        with Sandbox(preload=PRELOAD, level=Level.L0) as sandbox:
            sandbox.run([Program(stage.source) for stage in stages])
            sandbox.run([Program("open('left', 'w').write('x')")] * 4)
        assert marked_processes({stage.mark: stage for stage in stages}) == []
    assert settled(_world, before) == before
    assert list(tmp_path.iterdir()) == []


_CALLER = """
import sys
from fathom.judge.sandbox import Level, Limits, Program, Sandbox
source = '''
import signal
import time
for number in set(signal.Signals) - {9, 19}:
    signal.signal(number, signal.SIG_IGN)
print("runs", flush=True)
time.sleep(60)
'''
with Sandbox(level=Level[sys.argv[1]]) as sandbox:
    print("ready", flush=True)
    sandbox.run([Program(source, limits=Limits(wall_s=60.0))] * 2)
"""


@pytest.mark.parametrize("asked", list(Level))
def test_a_killed_caller_leaves_no_process(asked: Level, level: Level, tmp_path: Path) -> None:
    if asked > level:
        pytest.skip(f"L1 is not reached: {reached_level()[1]}")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    before = set(descendants())  # pools that other tests of this process keep
    caller = subprocess.Popen(
        [sys.executable, "-c", _CALLER, asked.name], stdout=subprocess.PIPE, env=environment, text=True
    )
    assert caller.stdout is not None
    with caller.stdout:
        assert caller.stdout.readline() == "ready\n"
    least = 4  # the caller, its server, two programs
    end = time.monotonic() + 10
    while len(started := set(descendants()) - before) < least and time.monotonic() < end:
        time.sleep(0.02)
    assert len(started) >= least
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    assert settled(lambda: [pid for pid in started if _lives(pid)], []) == []


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize("asked", list(Level))
def test_a_chain_of_folders_is_removed(
    asked: Level, level: Level, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if asked > level:
        pytest.skip(f"L1 is not reached: {reached_level()[1]}")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    deep = "import os\nfor _ in range(1800): os.mkdir('d'); os.chdir('d')"  # deeper than Python's own recursion goes
    try:
        with Sandbox(workers=1, level=asked) as sandbox:
            chain, honest = sandbox.run([Program(deep), Program(HONEST, stdin=STDIN)])
        assert (chain.ended, chain.code) == (End.EXITED, 0), chain
        assert (honest.ended, honest.stdout) == (End.EXITED, HONEST_SAYS)
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["rm", "-rf", *tmp_path.iterdir()], check=True)  # pytest itself removes such a chain no better


@pytest.mark.parametrize("asked", list(Level))
def test_programs_do_not_share_random_numbers(asked: Level, level: Level) -> None:
    if asked > level:
        pytest.skip(f"L1 is not reached: {reached_level()[1]}")
    draw = "import random, numpy\nprint(random.random(), numpy.random.random(), numpy.random.default_rng().random())"
    with Sandbox(preload=("numpy", "random"), level=asked) as sandbox:
        drawn = [ran.stdout.split() for ran in sandbox.run([Program(draw)] * 4)]
    assert all(len(set(column)) == 4 for column in zip(*drawn, strict=True)), drawn


def test_a_folder_named_by_pythonpath_is_not_shown(
    level: Level, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if level < Level.L1:
        pytest.skip(f"L1 is not reached: {reached_level()[1]}")
    (tmp_path / "answers.py").write_text("ANSWER = 42")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    read = f"try:\n    import answers\nexcept ImportError:\n    print(open({str(tmp_path / 'answers.py')!r}).read())"
    with Sandbox(level=Level.L1) as sandbox:
        (ran,) = sandbox.run([Program(read)])
    assert (ran.ended, ran.exception and ran.exception.split(":")[0]) == (End.RAISED, "FileNotFoundError"), ran


@pytest.fixture(autouse=True)
def no_victim_survives() -> Iterator[None]:
    """Every test ends with the processes it began with."""
    before = set(descendants())
    yield
    assert settled(lambda: set(descendants()) - before, set()) == set()

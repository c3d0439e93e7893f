"""Runs attacks without the sandbox, the control, and in it; both ways the same harness looks for success."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fathom.judge.sandbox import End, Program, Ran, Sandbox

from .attack import Attack, Outcome, Stage
from .in_python import HONEST, HONEST_SAYS
from .scene import STDIN, Scene

PRELOAD = ("ctypes", "json", "numpy", "socket", "subprocess")  # what many attacks import; each run starts faster
_NAIVE = Path(__file__).with_name("naive.py")
_LINK = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
_PLAIN_S = 20.0


@dataclass(frozen=True)
class Tried:
    """One attack, tried once."""

    attack: Attack
    succeeded: bool
    began: bool  # its first line ran: an attack that never began proves nothing
    outcome: Outcome


def is_alone(attack: Attack) -> bool:
    """Whether what runs at the same time would disturb it, or it that: it is measured, or looks for its neighbour."""
    return bool(attack.measured or attack.beside or attack.second)


def _judge(scene: Scene, stages: Sequence[Stage], outcomes: Sequence[Outcome]) -> list[Tried]:
    scene.settle(list(stages))
    tried = [
        Tried(stage.attack, bool(stage.attack.seen(stage, outcome)), b"began\n" in outcome.stdout, outcome)
        for stage, outcome in zip(stages, outcomes, strict=True)
    ]
    scene.close_victims(list(stages))
    return tried


def _one_by_one(scene: Scene, attacks: Sequence[Attack], run: Callable[[Stage], Outcome]) -> list[Tried]:
    stages, outcomes = [], []
    for attack in attacks:
        if is_alone(attack):
            stages.append(scene.stage(attack))
            outcomes.append(run(stages[-1]))
    return _judge(scene, stages, outcomes)


class Watch:
    """Most resident memory and most tasks of our descendants, beyond those at the start, while it is entered."""

    def __enter__(self) -> Watch:
        self._done = threading.Event()
        self._base = self._sum()
        self.peak_mb, self.peak_tasks = 0.0, 0
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(0.02):
            pages, tasks = self._sum()
            self.peak_mb = max(self.peak_mb, (pages - self._base[0]) * resource.getpagesize() / 2**20)
            self.peak_tasks = max(self.peak_tasks, tasks - self._base[1])

    @staticmethod
    def _sum() -> tuple[int, int]:
        pages = tasks = 0
        for fields in descendants().values():
            pages += int(fields[21])
            tasks += int(fields[17])
        return pages, tasks


def descendants() -> dict[int, list[str]]:
    """The fields of /proc/PID/stat after the name, for each process that we started, or they did, and so on."""
    every: dict[int, list[str]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                every[int(name)] = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
    ours: dict[int, list[str]] = {}
    parents = {os.getpid()}
    while parents:
        children = {pid for pid, fields in every.items() if int(fields[1]) in parents and pid not in ours}
        ours.update((pid, every[pid]) for pid in children)
        parents = children
    return ours


# Without the sandbox


@contextmanager
def _child(
    scene: Scene, folder: Path, arguments: Sequence[str], link: int | None = None
) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], bytes]]]:
    """A plain child of ours, with all that we have; its output goes to a file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stdin").write_bytes(STDIN)
    command = [sys.executable, *arguments]
    descriptors = scene.inherited
    if link is not None:
        command = [sys.executable, "-S", "-E", "-c", _LINK, str(link), *arguments]
        descriptors = (*scene.inherited, link)
    with open(folder / "stdin", "rb") as stdin, open(folder / "stdout", "w+b", 0) as stdout:
        process = subprocess.Popen(
            command, stdin=stdin, stdout=stdout, stderr=subprocess.DEVNULL, cwd=folder, pass_fds=descriptors
        )
        try:
            yield process, lambda: (folder / "stdout").read_bytes() if (folder / "stdout").exists() else b""
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def _ended(process: subprocess.Popen[bytes]) -> tuple[str, int]:
    try:
        code = process.wait(_PLAIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    return ("exited", code) if code >= 0 else ("signalled", -code)


def _plain_one(scene: Scene, stage: Stage) -> Outcome:
    attack, folder = stage.attack, scene.base / "work" / stage.out.name
    folder.mkdir(parents=True)
    if attack.naive:
        return _naive(scene, stage, folder)
    (folder / "program.py").write_text(stage.source)
    with Watch() if is_alone(attack) else _NoWatch() as watch:
        if attack.second:
            outcome = _pair(scene, stage, folder)
        elif attack.beside:
            (folder / "beside.py").write_text(scene.neighbour(attack.beside))
            with _child(scene, folder / "beside", [str(folder / "beside.py")]) as (process, said):
                outcome = _alone(scene, folder)
                outcome.beside = Outcome(*_ended(process), said())
        else:
            outcome = _alone(scene, folder)
    outcome.peak_mb, outcome.peak_tasks = watch.peak_mb, watch.peak_tasks
    return outcome


class _NoWatch:
    peak_mb, peak_tasks = 0.0, 0

    def __enter__(self) -> _NoWatch:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


def _alone(scene: Scene, folder: Path) -> Outcome:
    with _child(scene, folder / "attack", [str(folder / "program.py")]) as (process, output):
        ended, code = _ended(process)
        return Outcome(ended, code, output())


def _naive(scene: Scene, stage: Stage, folder: Path) -> Outcome:
    attack = stage.attack
    sources = [stage.source]
    if attack.before:
        sources.insert(0, scene.neighbour(attack.before))
    if attack.after:
        sources.append(attack.after)
    (folder / "jobs.json").write_text(json.dumps(sources))
    with open(folder / "report", "wb") as report:
        arguments = [str(_NAIVE), str(folder / "jobs.json")]
        with _child(scene, folder / "attack", arguments, report.fileno()) as (process, output):
            ended, code = _ended(process)
            real = output()
    reports = []
    for line in (folder / "report").read_bytes().split(b"\n"):
        try:
            told = json.loads(line)
            reports.append(Outcome(told["ended"], told.get("code"), told.get("stdout", "").encode()))
        except (ValueError, TypeError, KeyError, AttributeError):
            continue  # what a forging attack wrote besides reports
    index = 1 if attack.before else 0
    outcome = reports[index] if len(reports) > index else Outcome(ended, code)
    outcome.stdout = real + outcome.stdout
    outcome.after = reports[index + 1] if attack.after and len(reports) > index + 1 else None
    return outcome


def _pair(scene: Scene, stage: Stage, folder: Path) -> Outcome:
    (folder / "second.py").write_text(scene.neighbour(stage.attack.second))
    left, right = socket.socketpair()
    with (
        left,
        right,
        _child(scene, folder / "first", [str(folder / "program.py")], left.fileno()) as (first, told),
        _child(scene, folder / "second", [str(folder / "second.py")], right.fileno()) as (second, answered),
    ):
        ended, code = _ended(second)
        try:
            first.wait(0.5)
        except subprocess.TimeoutExpired:
            first.send_signal(signal.SIGKILL)
        return Outcome("exited", first.wait(), told(), second=Outcome(ended, code, answered()))


def without(scene: Scene, attacks: Sequence[Attack]) -> list[Tried]:
    """Each attack by a plain child of this process, two at a time."""
    together = [attack for attack in attacks if not is_alone(attack)]
    stages = [scene.stage(attack) for attack in together]
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(lambda stage: _plain_one(scene, stage), stages))
    tried = _judge(scene, stages, outcomes)
    return tried + _one_by_one(scene, attacks, lambda stage: _plain_one(scene, stage))


# In the sandbox


def _program(stage: Stage) -> Program:
    return Program(stage.source, stdin=STDIN, limits=stage.attack.limits)


def _outcome(ran: Ran) -> Outcome:
    return Outcome(str(ran.ended), ran.code, ran.stdout, ran.limit, ran.reason)


def _run(sandbox: Sandbox, programs: Sequence[Program]) -> list[Ran]:
    """Runs them, and once more those that a busy machine starved."""
    rans = sandbox.run(programs)
    starved = [place for place, ran in enumerate(rans) if ran.reason == "starved of processor"]
    for place, ran in zip(starved, sandbox.run([programs[place] for place in starved]), strict=True):
        rans[place] = ran
    return rans


def _among_honest(sandbox: Sandbox, stages: Sequence[Stage]) -> list[Outcome]:
    """The attacks' outcomes; AssertionError where one of the honest programs that run among them is harmed."""
    programs = [_program(stage) for stage in stages]
    for place in range(0, len(programs) * 11 // 10, 11):
        programs.insert(place, Program(HONEST, stdin=STDIN))
    rans = _run(sandbox, programs)
    honest = rans[::11]
    harmed = [ran for ran in honest if (ran.ended, ran.code, ran.stdout) != (End.EXITED, 0, HONEST_SAYS)]
    assert not harmed, harmed
    return [_outcome(ran) for place, ran in enumerate(rans) if place % 11]


def within(scene: Scene, sandbox: Sandbox, one: Sandbox, attacks: Sequence[Attack]) -> list[Tried]:
    """Each attack in the sandbox: most at once in `sandbox`, those with a neighbour in `one`, which has one worker."""
    together = [scene.stage(a) for a in attacks if not is_alone(a) and not (a.before or a.after)]
    tried = _judge(scene, together, _among_honest(sandbox, together))
    neighbours = [scene.stage(a) for a in attacks if a.before or a.after]
    programs, places = [], []
    for stage in neighbours:
        attack = stage.attack
        if attack.before:
            programs.append(Program(scene.neighbour(attack.before), stdin=STDIN))
        places.append(len(programs))
        programs.append(_program(stage))
        if attack.after:
            programs.append(Program(attack.after, stdin=STDIN))
    rans = [_outcome(ran) for ran in _run(one, programs)]
    for stage, place in zip(neighbours, places, strict=True):
        rans[place].after = rans[place + 1] if stage.attack.after else None
    tried += _judge(scene, neighbours, [rans[place] for place in places])
    return tried + _one_by_one(scene, attacks, lambda stage: _within_alone(scene, sandbox, stage))


def _within_alone(scene: Scene, sandbox: Sandbox, stage: Stage) -> Outcome:
    attack = stage.attack
    with Watch() as watch:
        if attack.second:
            second = Program(scene.neighbour(attack.second), stdin=STDIN)
            first, last = sandbox.run_pairs([(_program(stage), second)])[0]
            outcome = _outcome(first)
            outcome.second = _outcome(last)
        elif attack.beside:
            beside = Program(scene.neighbour(attack.beside), stdin=STDIN)
            aside, outcome = map(_outcome, sandbox.run([beside, _program(stage)]))
            outcome.beside = aside
        else:
            outcome = _outcome(_run(sandbox, [_program(stage)])[0])
    outcome.peak_mb, outcome.peak_tasks = watch.peak_mb, watch.peak_tasks
    return outcome


def settled(look: Callable[[], object], expected: object, within_s: float = 3.0) -> object:
    """What `look` returns once it is as expected, or at last."""
    end = time.monotonic() + within_s
    while (seen := look()) != expected and time.monotonic() < end:
        time.sleep(0.05)
    return seen

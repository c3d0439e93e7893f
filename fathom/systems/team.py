"""A run in several processes: torchrun starts them, this watches over it, hands signals on and tells how it ended.

A process killed by whatever means takes the others with it; what was saved stays, and the same command continues.
`torchrun --nproc-per-node 8 -m fathom grpo …`, with as many machines as there are, does the same without this module.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from fathom.core import process
from fathom.core.errors import FathomError, Stopped, UsageError

REQUEST, OUTCOME, ENDED, STOP = "request.json", "outcome.json", "ended.json", "stop"
ENDINGS = {kind.__name__: kind for kind in (FathomError, UsageError, Stopped)}
CUT_OFF = ("gloo/transport", "NCCL", "ncclRemoteError")  # in what is raised where a member of the team is gone
GRACE_S = 5  # for the others when one of them has ended badly
PREFIX, PARENT = "fathom-team-", "FATHOM_STARTED_BY"
_PDEATHSIG = 1


def launch(
    nproc: int, system: str, values: Mapping[str, Any], directory: Path, seed: int, where: str, fresh: bool,
    time_limit: float | None, console: bool,
) -> None:
    """Runs a system in `nproc` processes of this machine to its end; raises what the first of them raised."""
    _sweep()
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{os.getpid()}-") as place:
        asked = {"system": system, "values": values, "directory": str(directory), "seed": seed, "where": where,
                 "fresh": fresh, "time_limit": time_limit, "console": console}
        (Path(place) / REQUEST).write_text(json.dumps(asked, default=str))
        threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // nproc))
        started = subprocess.Popen(
            [sys.executable, "-m", "fathom.systems.team", place, str(nproc)], start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": threads, PARENT: str(os.getpid())})
        stops: list[int] = []

        def hand_on(number: int, frame: FrameType | None) -> None:
            stops.append(number)
            if len(stops) > 1:  # once more stops at once: what was saved is whole whenever they die
                number = signal.SIGKILL
            (Path(place) / STOP).touch()  # for one that is not there yet
            for path in Path(place).glob("*.pid"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(path.stem), number)

        main = threading.current_thread() is threading.main_thread()
        before = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGINT) if main}
        try:
            code = started.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
        outcome = Path(place) / OUTCOME
        if outcome.exists():
            told = json.loads(outcome.read_text())
            raise ENDINGS[told["kind"]](told["message"])
        if stops:
            when = "at once" if len(stops) > 1 else "before it came to a step"
            raise Stopped(f"{directory}: stopped by {signal.Signals(stops[0]).name} {when}; the same command continues")
        if code:
            raise FathomError(f"{directory}: {_ended(Path(place))}; what was saved is kept, the same command continues")


def _ended(place: Path) -> str:
    """Which process of the team ended badly, and how."""
    if not (place / ENDED).exists():
        return "torchrun was killed"
    codes = {int(rank): code for rank, code in json.loads((place / ENDED).read_text()).items()}
    # where one was killed the others fail at the next word to it, or get torchrun's SIGTERM
    rank = min(codes, key=lambda rank: (codes[rank] == -signal.SIGTERM, codes[rank] > 0, rank))
    if codes[rank] < 0:
        return f"process {rank} of the team was killed by {signal.Signals(-codes[rank]).name}"
    for path in place.glob(f"**/{rank}/stderr.log"):
        lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
        if said := next((line for line in reversed(lines) if not line.startswith(" ")), ""):
            return f"process {rank} of the team: {said[:300]}"
    return f"process {rank} of the team ended with code {codes[rank]}, for the reason above"


def run_torchrun(place: str, nproc: int) -> None:
    """Becomes torchrun, which dies with the process that started it."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    os.environ[PARENT] = str(os.getpid())
    quiet = ",".join(f"{rank}:3" for rank in range(1, nproc))
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        main(["--standalone", "--nproc-per-node", str(nproc), "--max-restarts", "0", "--signals-to-handle", "SIGUSR1",
              "--shutdown-timeout", str(GRACE_S), "--log-dir", place, "--redirects", quiet,
              "-m", "fathom.systems.team", place])
    except ChildFailedError as error:  # its report is a page long; who started this tells it in a line
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        (Path(place) / ENDED).write_text(json.dumps(codes))
        sys.exit(1)


def take_part(place: str) -> int:
    """One process of the team; the exit code. How the first one ends is written down, unless it ends well."""
    from fathom.systems import start

    (Path(place) / f"{os.getpid()}.pid").touch()
    if (Path(place) / STOP).exists():
        return 0
    asked = json.loads((Path(place) / REQUEST).read_text())
    leads = os.environ["RANK"] == "0"
    try:
        start(asked["system"], asked["values"], Path(asked["directory"]), asked["seed"], asked["where"],
              fresh=asked["fresh"], time_limit=asked["time_limit"], console=asked["console"] and leads)
    except Stopped as stopped:  # all of them stop at the same step
        if leads:
            _tell(place, stopped)
    except FathomError as error:
        if leads:
            _tell(place, error)
        else:
            print(error, file=sys.stderr)
        return 1
    except RuntimeError as error:
        if not any(word in str(error) for word in CUT_OFF):
            raise
        return 1  # another one is gone: which and how, torchrun sees
    return 0


def _tell(place: str, error: FathomError) -> None:
    kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in ENDINGS)
    (Path(place) / OUTCOME).write_text(json.dumps({"kind": kind, "message": str(error)}))


def _die_with_parent() -> None:
    """SIGKILL for this process when the one that started it ends, where the system knows such a thing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if str(os.getppid()) != os.environ[PARENT]:  # it has ended already
            sys.exit(1)


def _sweep() -> None:
    """Removes what launchers that were killed left behind."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        owner = path.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdigit() and not process.alive(int(owner), ""):
            shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    _die_with_parent()
    if len(sys.argv) == 3:
        run_torchrun(sys.argv[1], int(sys.argv[2]))
    else:
        ended = take_part(sys.argv[1])
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended)  # what torch's threads do while an interpreter is taken down can end in SIGABRT

"""Trying out data, templates and rewards before processor hours are spent on them: `fathom audit RECIPE`.

Everything runs in a process of its own, which is killed when the time is up: a judge that hangs is a finding, not a
reason to wait.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from fathom.core.errors import AuditFailed, FathomError, UsageError

__all__ = ["Check", "State", "audit", "checks"]


class State(StrEnum):
    """What a check found."""

    OK = "ok"
    NOTE = "note"  # to be known, not to be mended
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """One thing looked at. `remedy` says what to do about it; `shown` is an example in (text, trained) pieces."""

    stage: str
    name: str
    state: State
    said: str
    remedy: str = ""
    shown: tuple[tuple[str, bool], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON value that `from_json` restores."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Check:
        """Reads what `to_json` wrote."""
        shown = tuple((text, trained) for text, trained in value["shown"])
        return cls(**{**value, "state": State(value["state"]), "shown": shown})


def audit(
    recipe: str, overrides: Sequence[str] = (), labels: Path | None = None, seconds: float = 60.0,
    console: Console | None = None,
) -> list[Check]:
    """Prints what every check found, as it is found. AuditFailed where one failed, naming the remedies."""
    out = console or Console()
    found: list[Check] = []
    began = time.monotonic()
    for check in checks(recipe, overrides, labels, seconds):
        found.append(check)
        for line in _lines(check):
            out.print(line, soft_wrap=True, highlight=False)
    failed = [check for check in found if check.state is State.FAIL]
    out.print(Text(f"{len(found)} checks in {time.monotonic() - began:.0f} s, {len(failed)} failed"))
    if failed:
        listed = ", ".join(f"{check.stage}: {check.name}" for check in failed)
        raise AuditFailed(f"audit of {recipe}: {len(failed)} of {len(found)} checks failed: {listed}; see → above")
    return found


_STYLE = {State.OK: "green", State.NOTE: "yellow", State.FAIL: "bold red"}


def _lines(check: Check) -> Iterator[Text]:
    yield Text(f"{check.state.value:<5}", style=_STYLE[check.state]) + Text(
        f"{check.stage}: {check.name}: ", style="bold") + Text(check.said)
    if check.remedy and check.state is not State.OK:
        yield Text(f"      → {check.remedy}", style=_STYLE[check.state])
    if check.shown:
        pieces = ((text.replace("\n", "\n      "), "green" if trained else "dim") for text, trained in check.shown)
        yield Text("      ") + Text.assemble(*pieces)


def checks(
    recipe: str, overrides: Sequence[str] = (), labels: Path | None = None, seconds: float = 60.0
) -> Iterator[Check]:
    """Every check of a recipe as it is done; what is under way after `seconds` is killed and fails by its name."""
    if not seconds > 0:
        raise UsageError(f"seconds={seconds}: must be above 0; give the audit, for example, 60")
    if labels is not None and not labels.is_file():
        raise UsageError(f"{labels}: no such file; name the labelled answers, one JSON object a line")
    asked = json.dumps({"recipe": recipe, "overrides": list(overrides), "labels": str(labels) if labels else None})
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(dict.fromkeys([root, *(path for path in sys.path if path)]))
    child = subprocess.Popen(
        [sys.executable, "-m", "fathom.audit.child", asked], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        start_new_session=True,  # so that what users' code starts there can be ended with it
    )
    try:
        yield from _told(child, time.monotonic() + seconds, seconds)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream is not None:
                stream.close()


def _told(child: subprocess.Popen[bytes], deadline: float, seconds: float) -> Iterator[Check]:
    assert child.stdout is not None and child.stderr is not None
    doing, rest, waiting, errors = ("", "start"), b"", True, b""
    with selectors.DefaultSelector() as selector:
        for stream in (child.stdout, child.stderr):
            os.set_blocking(stream.fileno(), False)
            selector.register(stream, selectors.EVENT_READ)
        while waiting and selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                yield Check(
                    doing[0], doing[1], State.FAIL, f"did not end within the {seconds:g} s of the audit",
                    "find out what takes so long there (a judge that hangs?), or give more time with --seconds; what "
                    "comes after it was not looked at",
                )
                return
            for key, _ in ready:
                piece = os.read(key.fd, 65_536)
                if not piece:
                    selector.unregister(key.fileobj)
                    continue
                if key.fileobj is child.stderr:
                    errors = (errors + piece)[-4_000:]
                    continue
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    value = json.loads(line)
                    if "doing" in value:
                        doing = (value["doing"][0], value["doing"][1])
                    elif "check" in value:
                        yield Check.from_json(value["check"])
                    elif "refused" in value:
                        raise UsageError(value["refused"]) if value["usage"] else FathomError(value["refused"])
                    else:
                        waiting = False
    if waiting:
        code = child.wait()
        last = errors.decode("utf-8", "replace").strip().rpartition("\n")[2]
        yield Check(
            doing[0], doing[1], State.FAIL, f"ended the whole process ({_end(code)}){': ' + last if last else ''}",
            "mend what runs there; what comes after it was not looked at",
        )


def _end(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"

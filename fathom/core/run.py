"""A run: one directory that says what was asked, who works on it and how far it is, and goes on where it was left.

    with Run.open("runs/r1/zero", "grpo", settings, seed=7) as run:
        if not run.finished:
            run.metrics(1, loss=0.5)
            run.finish(steps=1)

The directory holds manifest.json (what and how far), metrics.jsonl (bit-exact), timing.jsonl (clock values), logs/ and,
while a process works on it, LOCK.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import operator
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from fathom.core import console as terminal
from fathom.core import disk, machine, process
from fathom.core.config import Settings, canonical, differences, fingerprint, identity, plain
from fathom.core.errors import FathomError, Stopped, UsageError
from fathom.core.lines import Lines
from fathom.core.lock import Lock
from fathom.core.stop import StopSignals

if TYPE_CHECKING:
    import numpy

FORMAT = 1
MANIFEST = "manifest.json"
STATUSES = ("running", "stopped", "failed", "done")
LOCK = "LOCK"
_LOGGERS = itertools.count(1)


class Run:
    """What `Run.open` gives: a context manager over one directory.

    `dir` is the directory; `log` writes to logs/attempt-N.log and the terminal; `attempt` counts from 1; `finished`
    says that this very work is done: skip it. Leaving with Stopped or Ctrl-C records "stopped", with another exception
    "failed" and its message; leaving without `finish` records "stopped", for the work is not known to be done.
    """

    def __init__(
        self, directory: Path, asked: dict[str, Any], name: str, time_limit: float | None, console: bool
    ) -> None:
        self.dir, self.attempt, self.finished = directory, 0, False
        self.log = logging.getLogger(f"fathom.run.{next(_LOGGERS)}")  # two runs never share handlers
        self.log.setLevel(logging.INFO)
        self.log.propagate = False
        self.log.addHandler(logging.NullHandler())  # without any handler, logging prints warnings on its own
        if console:
            self.log.addHandler(terminal.handler())
        self._asked, self._fingerprint, self._console = asked, name, console
        self._time_limit, self._began = time_limit, time.monotonic()
        self._manifest: dict[str, Any] = {}
        self._lock: Lock | None = None
        self._metrics: Lines | None = None
        self._timing: Lines | None = None
        self._signals: StopSignals | None = None
        self._announced = False

    @classmethod
    def open(
        cls,
        dir: str | os.PathLike[str],
        system: str,
        settings: Settings,
        seed: int,
        inputs: Mapping[str, str] | None = None,
        fresh: bool = False,
        time_limit: float | None = None,
        console: bool = True,
    ) -> Run:
        """The run at `dir`: new, continued, or finished before (then nothing is written and no lock is taken).

        `inputs` maps the name of each input to its fingerprint; `time_limit` is in seconds from now. `fresh` moves an
        existing run aside to NAME.1 (or the next free number) first. Raises UsageError when the directory holds a run
        of other settings (naming the differences), files that are no run, or the lock of a living process, and
        FathomError when its manifest cannot be read: nothing is written over in any of these cases.
        """
        if time_limit is not None and not time_limit > 0:
            raise UsageError(f"time_limit={time_limit}: must be > 0 seconds; leave it out for no limit")
        asked = {"system": system, "settings": plain(settings), "seed": seed, "inputs": dict(inputs or {})}
        name = fingerprint({**asked, "settings": identity(settings)})
        run = cls(Path(os.path.abspath(dir)), asked, name, time_limit, console)
        try:
            run._start(fresh)
        except BaseException:
            run._release()
            raise
        return run

    # What a system writes.

    def metrics(self, step: int, **values: Any) -> None:
        """Appends one line to metrics.jsonl. Values are finite numbers, text, or lists and mappings of them.

        NaN and infinity raise FathomError that names the metric: a run that diverged must stop, not be averaged over.
        """
        self._open_lines(self._metrics).append(_line(step, values))

    def timing(self, step: int, **values: Any) -> None:
        """Appends one line to timing.jsonl, the only place for clock values: they differ between equal runs."""
        self._open_lines(self._timing).append(_line(step, values))

    def seed(self, *names: str | int) -> int:
        """A number in [0, 2**63) for the randomness called `names`: the same in any order and any process."""
        return int.from_bytes(self._entropy(names)[:8], "big") >> 1

    def rng(self, *names: str | int) -> numpy.random.Generator:
        """A generator for the randomness called `names`: the same in any order and any process."""
        import numpy

        return numpy.random.Generator(numpy.random.PCG64(int.from_bytes(self._entropy(names), "big")))

    def mark(self) -> dict[str, Any]:
        """Where metrics.jsonl stands, for a checkpoint to keep and `rewind` to return to; durable once this returns."""
        lines = self._open_lines(self._metrics)
        lines.flush()
        return {"metrics_bytes": lines.size, "metrics_sha256": lines.sha256}

    def rewind(self, mark: Mapping[str, Any] | None) -> None:
        """Cuts metrics.jsonl back to a mark (None: to nothing), so that replayed steps are written once.

        timing.jsonl keeps what the lost steps cost. Raises FathomError, changing nothing, when the file does not begin
        with what the mark saw.
        """
        lines = self._open_lines(self._metrics)
        if mark is None:
            mark = {"metrics_bytes": 0, "metrics_sha256": hashlib.sha256().hexdigest()}
        size, sha256 = mark.get("metrics_bytes"), mark.get("metrics_sha256")
        if type(size) is not int or size < 0 or not isinstance(sha256, str):
            raise FathomError(f"mark {str(dict(mark))[:120]}: not made by Run.mark; use an older checkpoint")
        dropped = lines.cut(size, sha256)
        if dropped:
            self.log.info("metrics.jsonl: %d bytes past the checkpoint cut off; their steps run again", dropped)

    @property
    def stop_requested(self) -> str | None:
        """Why to save and stop at the next good moment (SIGTERM, Ctrl-C, the time limit), or None."""
        reason = self._signals.reason if self._signals else None
        spent = time.monotonic() - self._began
        if reason is None and self._time_limit is not None and spent >= self._time_limit:
            reason = f"time_limit={self._time_limit:g} s reached"
        if reason is not None and not self._announced:
            self._announced = True
            self.log.info("stopping at the next good moment: %s", reason)
        return reason

    def finish(self, **summary: Any) -> None:
        """Records that the work is done, with JSON values worth reading at a glance. The last write of a run."""
        found = {name: _finite(value, name) for name, value in summary.items()}
        for lines in (self._metrics, self._timing):
            self._open_lines(lines).flush()
        self._record("done", "", summary=found)
        self.finished = True
        self.log.info("done: %s", self.dir)

    # Opening and leaving.

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._lock is not None and not self.finished:
                self._leave(error)
        finally:
            self._release()

    def close(self) -> None:
        """Leaves the run as a clean exit of its `with` block does; leaving twice is harmless."""
        self.__exit__(None, None, None)

    def _start(self, fresh: bool) -> None:
        if not fresh and self._is_done():
            return
        disk.make_directory(self.dir)
        self._lock = Lock(self.dir / LOCK)
        if fresh:
            self._move_aside()
        if self._is_done():  # another process finished it between the look and the lock
            self._lock.release()
            self._lock = None
            return
        parents = (self.dir, *(path for path in self.dir.iterdir() if path.is_dir()))
        swept = [parent / name for parent in parents for name in disk.sweep(parent)]
        for attempt in self._manifest.get("attempts", []):
            if attempt["status"] == "running":
                attempt["status"] = "killed"  # it never came to say how it ended; its last line says when, about
                attempt["last_seen"] = self._last_written()
        before = self._manifest
        self._begin_attempt()
        self._open_files()
        going_on = f"attempt {self.attempt}, after {before['attempts'][-1]['status']}" if before else "new"
        self.log.info("%s: %s (%s)", self._asked["system"], self.dir, going_on)
        if self._lock.replaced:
            self.log.warning("the lock of %s was left by a dead process; taken over", self._lock.replaced)
        for path in swept:
            self.log.info("%s: removed, left by a killed writer", path)
        for lines in (self._metrics, self._timing):
            if lines is not None and lines.cut_off:
                self.log.warning("%s: a torn last line (%d bytes) cut off", lines.path.name, lines.cut_off)
        for line in self._manifest["attempts"][-1].get("changed", []):
            self.log.warning("%s since attempt %d: results may differ", line, self.attempt - 1)
        self._signals = StopSignals(self._console)

    def _last_written(self) -> str | None:
        """When this directory's metrics, timing or logs were last written to."""
        paths = (self.dir / "metrics.jsonl", self.dir / "timing.jsonl", *(self.dir / "logs").glob("*.log"))
        seen = [path.stat().st_mtime for path in paths if path.exists()]
        return datetime.fromtimestamp(max(seen), UTC).isoformat(timespec="seconds") if seen else None

    def _is_done(self) -> bool:
        """Reads the manifest, refusing a directory that is not this run; whether the work was finished before."""
        self._manifest = {}
        if not os.path.lexists(self.dir / MANIFEST):
            _refuse_foreign(self.dir)
            return False
        found = read_manifest(self.dir)
        if found["fingerprint"] != self._fingerprint:
            raise self._other_run(found)
        self._manifest, self.attempt = found, len(found["attempts"])
        self.finished = found["status"] == "done"
        return self.finished

    def _other_run(self, found: Mapping[str, Any]) -> UsageError:
        lines = [f"system: {found['system']} → {self._asked['system']}"]
        if found["system"] == self._asked["system"]:
            lines = differences(found["settings"], self._asked["settings"])
        rest = ("seed", "inputs")
        lines += differences({name: found[name] for name in rest}, {name: self._asked[name] for name in rest})
        listed = "\n  ".join(lines) or "the fingerprint differs: the manifest was edited"
        return UsageError(
            f"{self.dir}: holds a run of other settings\n  {listed}\n"
            f"start over with --fresh (moves the old directory to {disk.aside(self.dir).name}), "
            "or keep both with --dir OTHER"
        )

    def _move_aside(self) -> None:
        """Gives the directory's content another name, holding its lock, so that no living process loses it."""
        assert self._lock is not None
        if not os.path.lexists(self.dir / MANIFEST):
            _refuse_foreign(self.dir)
            return
        aside = disk.aside(self.dir)
        disk.move(self.dir, aside)
        self._lock.path = aside / LOCK
        self._lock.release()
        self.log.info("%s: moved to %s", self.dir, aside)
        disk.make_directory(self.dir)
        self._lock = Lock(self.dir / LOCK)

    def _begin_attempt(self) -> None:
        attempts = list(self._manifest.get("attempts", []))
        this: dict[str, Any] = {"started": _now(), "ended": None, "status": "running"}
        this |= {"host": process.host(), "pid": os.getpid()}
        made_with: dict[str, Any] = {
            "commit": machine.commit(),
            "versions": machine.versions(),
            "device": machine.device(),
        }
        if self._manifest:
            old, new = self._manifest, made_with
            changed = machine.changed(old["versions"], new["versions"])
            changed += [f"{name}: {old[name]} → {new[name]}" for name in ("commit", "device") if old[name] != new[name]]
            if changed:
                this["changed"] = changed
        self.attempt = len(attempts) + 1
        self._manifest = {
            "format": FORMAT,
            **self._asked,
            "fingerprint": self._fingerprint,
            **made_with,
            "attempts": [*attempts, this],
            "status": "running",
            "summary": {},
        }
        self._write_manifest()

    def _open_files(self) -> None:
        logs = self.dir / "logs"
        disk.make_directory(logs)
        try:
            self.log.addHandler(terminal.file_handler(logs / f"attempt-{self.attempt}.log"))
        except OSError as error:
            raise FathomError(f"{logs}: {error.strerror}; check the directory and its permissions") from error
        self._metrics, self._timing = Lines(self.dir / "metrics.jsonl"), Lines(self.dir / "timing.jsonl")

    def _leave(self, error: BaseException | None) -> None:
        status, message = "failed", _one_line(error)
        if error is None:
            status, message = "stopped", self.stop_requested or "left before the work was done"
        elif isinstance(error, (Stopped, KeyboardInterrupt)):
            status = "stopped"
        self.log.info("%s: %s", status, message, exc_info=error, extra={terminal.FILE_ONLY: True})
        try:
            self._record(status, message)
        except FathomError as second:
            if error is None:
                raise
            # The first error is the one to act on, and the next start reads "running" without a process as killed.
            self.log.error("the end of this attempt could not be recorded: %s", second)

    def _record(self, status: str, message: str, **more: Any) -> None:
        if self._lock is None:
            raise FathomError(f"{self.dir}: this run is closed or was finished before; open it again, or use --fresh")
        attempts = self._manifest["attempts"]
        last = {**attempts[-1], "ended": _now(), "status": status} | ({"message": message} if message else {})
        self._manifest = {**self._manifest, **more, "attempts": [*attempts[:-1], last], "status": status}
        self._write_manifest()

    def _write_manifest(self) -> None:
        disk.write_atomic(self.dir / MANIFEST, json.dumps(self._manifest, indent=1, ensure_ascii=False) + "\n")

    def _release(self) -> None:
        if self._signals is not None:
            self._signals.restore()
        for lines in (self._metrics, self._timing):
            if lines is not None:
                lines.close()
        for handler in list(self.log.handlers):
            self.log.removeHandler(handler)
            handler.close()
        if self._lock is not None:
            self._lock.release()
        self._signals = self._metrics = self._timing = self._lock = None

    def _open_lines(self, lines: Lines | None) -> Lines:
        if lines is None:
            raise FathomError(f"{self.dir}: this run is closed or was finished before; open it again, or use --fresh")
        return lines

    def _entropy(self, names: tuple[str | int, ...]) -> bytes:
        parts = [name if isinstance(name, str) else operator.index(name) for name in names]
        return hashlib.sha256(canonical([self._asked["seed"], *parts]).encode()).digest()


def read_manifest(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a run's directory; FathomError that names what is wrong with it and what to do."""
    path = Path(directory) / MANIFEST
    remedy = "restore it from a copy, or move the directory away and run again"
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FathomError(f"{directory}: holds no {MANIFEST}, so it is not a run; name a run's directory") from None
    except OSError as error:
        raise FathomError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise FathomError(f"{path}: not JSON ({error}); {remedy}") from error
    if not isinstance(found, dict) or "format" not in found:
        raise FathomError(f"{path}: not a run's manifest (no format version); {remedy}")
    if found["format"] != FORMAT:
        raise FathomError(
            f"{path}: format version {found['format']!r}, this Fathom reads {FORMAT}; use the version that wrote it, "
            "or move the directory away and run again"
        )
    wanted: dict[str, type | tuple[type, ...]] = {"system": str, "settings": dict, "seed": int, "inputs": dict}
    wanted |= {"fingerprint": str, "versions": dict, "commit": (str, type(None)), "device": str}
    wanted |= {"attempts": list, "summary": dict, "status": str}
    for name, kind in wanted.items():
        if not isinstance(found.get(name), kind) or (name == "status" and found[name] not in STATUSES):
            raise FathomError(f"{path}: {name}={str(found.get(name))[:60]!r} is not what a run writes; {remedy}")
    if not all(isinstance(attempt, dict) and isinstance(attempt.get("status"), str) for attempt in found["attempts"]):
        raise FathomError(f"{path}: attempts are not what a run writes; {remedy}")
    return found


def _refuse_foreign(directory: Path) -> None:
    """A directory without manifest must be ours to fill: absent, empty, or of a start killed before the manifest."""
    try:
        names = sorted(os.listdir(directory))
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"{directory}: {error.strerror}; name a directory for the run") from error
    foreign = [name for name in names if name != LOCK and not name.startswith(".tmp-")]
    if foreign:
        raise UsageError(
            f"{directory}: holds {foreign[0]} and no {MANIFEST}, so it is not a run; choose another directory with "
            "--dir"
        )


def _line(step: int, values: Mapping[str, Any]) -> str:
    if isinstance(step, bool) or operator.index(step) < 0:
        raise FathomError(f"step={step!r}: must be a whole number ≥ 0; count steps from 0 or 1")
    found = {name: _finite(values[name], name) for name in sorted(values)}
    # Not sorted: people read these lines, and the step comes first.
    return json.dumps({"step": operator.index(step), **found}, separators=(",", ":"), ensure_ascii=False)


def _finite(value: Any, name: str) -> Any:
    """`value` as JSON holds it: numpy and tensor values as numbers; NaN, infinity and other objects refused by name."""
    if isinstance(value, (str, bool, int, type(None))):
        return value
    if isinstance(value, Mapping):
        return {str(key): _finite(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item, f"{name}[{index}]") for index, item in enumerate(value)]
    if not isinstance(value, float) and hasattr(value, "tolist"):
        return _finite(value.tolist(), name)
    if not isinstance(value, float):
        raise FathomError(f"{name}: {type(value).__name__} is not a number, text, list or mapping; convert it first")
    if not math.isfinite(value):
        raise FathomError(
            f"{name}={value}: must be finite; the run diverged or a mean of nothing was taken, look there"
        )
    return float(value)


def _one_line(error: BaseException | None) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "Ctrl-C twice"
    text = " ".join(str(error).split())
    if not isinstance(error, FathomError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= 500 else text[:499] + "…"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

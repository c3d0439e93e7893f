"""A run as it stands on disk: stages with manifests, metrics, samples, scores and records. Only reads, never locks.

A run that still writes, was killed in the middle of a line or lacks whole files is read as far as it goes: what is
not there is empty here, and what could not be read is counted (`Lines.torn`), so that a page can say so.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from fathom.core.config import load_yaml
from fathom.core.errors import FathomError, UsageError
from fathom.core.records import Ledger, RecordStore

JSON_COLUMNS = ("prompt", "samples", "messages", "about")  # lists of objects, which a record may hold as JSON text


@dataclass(frozen=True)
class Lines:
    """Rows of a JSONL file, and how many lines could not be read (a kill may tear the last one)."""

    rows: tuple[dict[str, Any], ...] = ()
    torn: int = 0


@dataclass(frozen=True)
class Attempt:
    """One time that a stage ran. Times are POSIX seconds; `ended` is None where nothing says when it ended."""

    number: int
    started: float
    ended: float | None
    status: str  # running | stopped | failed | done | killed
    certain: bool = True  # False: the end is the last sign of life, because a killed process writes no end
    message: str = ""  # why it ended, where the run says so


@dataclass(frozen=True)
class Row:
    """A kept or rejected record; `reason` is None for kept ones. Lists of messages and samples are parsed."""

    id: str
    data: dict[str, Any]
    source: str
    reason: str | None = None


@dataclass(frozen=True)
class Stage:
    """A stage directory. Everything is read when first asked for and kept."""

    dir: Path
    name: str

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """manifest.json, or an empty dict where the stage never opened."""
        return read_json(self.dir / "manifest.json") or {}

    @cached_property
    def metrics(self) -> Lines:
        return read_lines(self.dir / "metrics.jsonl")

    @cached_property
    def timing(self) -> Lines:
        return read_lines(self.dir / "timing.jsonl")

    @cached_property
    def scores(self) -> dict[str, Any]:
        """scores.json of an evaluation, or an empty dict."""
        return read_json(self.dir / "scores.json") or {}

    @cached_property
    def proofs(self) -> tuple[dict[str, Any], ...]:
        """What a long-context stage measured, in order (`proof/0-before.json`)."""
        return tuple(read_json(path) or {} for path in sorted((self.dir / "proof").glob("*.json")))

    @property
    def exists(self) -> bool:
        return bool(self.manifest) or (self.dir / "metrics.jsonl").exists() or (self.dir / "scores.json").exists()

    @property
    def system(self) -> str:
        return str(self.manifest.get("system", ""))

    @property
    def settings(self) -> dict[str, Any]:
        value = self.manifest.get("settings")
        return value if isinstance(value, dict) else {}

    @property
    def status(self) -> str:
        """done, running, stopped or failed as the manifest says; "waiting" where the stage has not started."""
        return str(self.manifest.get("status", "running")) if self.exists else "waiting"

    @cached_property
    def attempts(self) -> tuple[Attempt, ...]:
        """The attempts in order. One that ended without writing so, and was followed by another, was killed."""
        listed = [a for a in self.manifest.get("attempts") or [] if isinstance(a, dict)]
        found = []
        for i, entry in enumerate(listed):
            started = moment(entry.get("started"))
            if started is None:
                continue
            ended, status = moment(entry.get("ended")), str(entry.get("status", "running"))
            following = moment(listed[i + 1].get("started")) if i + 1 < len(listed) else None
            certain = ended is not None
            if ended is None:
                ended = moment(entry.get("last_seen")) or self._last_sign(i + 1, started, following)
                if following is not None and status == "running":
                    status = "killed"
            found.append(Attempt(i + 1, started, ended, status, certain, str(entry.get("message") or "")))
        return tuple(found)

    def _last_sign(self, number: int, started: float, following: float | None) -> float | None:
        """When attempt `number` was last seen to write: its log's age, never past the start of the next attempt."""
        log = self.dir / "logs" / f"attempt-{number}.log"
        seen = log.stat().st_mtime if log.exists() else None
        if seen is None or seen < started:
            return following
        return seen if following is None else min(seen, following)

    def samples(self) -> Iterator[dict[str, Any]]:
        """Problems with their groups of completions, by step (`samples/000050.jsonl`)."""
        for path in sorted((self.dir / "samples").glob("*.jsonl")):
            yield from read_lines(path).rows

    def kept(self) -> Iterator[Row]:
        """The records that the stage made, checked against their checksums; none where it made none."""
        if (records := self._records()) is not None:
            for record in records.kept():
                yield Row(record.id, _parsed(record.data), record.source)

    def rejected(self) -> Iterator[Row]:
        """The inputs that gave nothing, each with its reason."""
        if (records := self._records()) is not None:
            for record, reason in records.rejected():
                yield Row(record.id, _parsed(record.data), record.source, reason)

    @cached_property
    def ledger(self) -> Ledger | None:
        """Where every input went, None where the stage makes no records. Raises FathomError if it does not balance."""
        records = self._records()
        ledger = None if records is None else records.ledger()
        return ledger if ledger is not None and ledger.inputs else None

    def _records(self) -> RecordStore | None:
        directory = self.dir / "records"
        return RecordStore(directory) if directory.is_dir() else None


@dataclass(frozen=True)
class RunDir:
    """A recipe run with its stages in the recipe's order, or a single stage directory as a run of one stage."""

    dir: Path
    name: str
    stages: tuple[Stage, ...]
    recipe: str = ""  # recipe.yaml as written
    plan: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # stage name -> its settings in the recipe

    def stage(self, name: str) -> Stage:
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise UsageError(f"{name}: no such stage in {self.dir}; it has {', '.join(s.name for s in self.stages)}")

    @property
    def evaluations(self) -> tuple[Stage, ...]:
        """The stages that hold scores, in order."""
        return tuple(stage for stage in self.stages if stage.scores.get("tasks"))


def read_run(path: Path) -> RunDir:
    """The run at `path`. Raises UsageError where the directory is neither a recipe run nor a stage."""
    path = Path(path)
    if not path.is_dir():
        raise UsageError(f"{path}: no such directory; give a run (runs/NAME) or one of its stages (runs/NAME/STAGE)")
    single = Stage(path, path.resolve().name)
    if single.exists:
        return RunDir(path, single.name, (single,))
    recipe_file = path / "recipe.yaml"
    plan: dict[str, Mapping[str, Any]] = {}
    recipe = ""
    if recipe_file.exists():
        recipe = recipe_file.read_text(encoding="utf-8", errors="replace")
        stages = load_yaml(recipe_file).get("stages")
        if isinstance(stages, Mapping):
            plan = {str(name): value if isinstance(value, Mapping) else {} for name, value in stages.items()}
    found = {p.name: Stage(p, p.name) for p in sorted(path.iterdir()) if p.is_dir() and Stage(p, p.name).exists}
    # `--fresh` moves a stage aside to NAME.1: an older run of a stage is not a stage of this run.
    aside = {name for name in found if name.rpartition(".")[2].isdigit() and name.rpartition(".")[0] in {*plan, *found}}
    extra = sorted((s for n, s in found.items() if n not in plan and n not in aside), key=_started)
    ordered = [found.get(name, Stage(path / name, name)) for name in plan] + extra
    if not found:
        raise UsageError(f"{path}: holds no stage with a manifest.json; give a directory that `fathom run` has written")
    return RunDir(path, path.resolve().name, tuple(ordered), recipe, plan)


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, None where the file is absent. Raises FathomError naming a file that does not parse."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise FathomError(
            f"{path}: cannot be read as JSON ({error}); restore the file or run the stage again"
        ) from error
    return finite(value) if isinstance(value, dict) else None


def read_lines(path: Path) -> Lines:
    """The objects of a JSONL file; a line that is torn or no object is counted, NaN and infinities become None."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return Lines()
    rows, torn = [], 0
    for line in raw.split(b"\n"):
        if not line.strip():
            continue
        row = parse_line(line)
        if row is None:
            torn += 1
        else:
            rows.append(row)
    return Lines(tuple(rows), torn)


def parse_line(line: bytes) -> dict[str, Any] | None:
    """One JSONL line as an object with finite numbers, None where it does not parse."""
    try:
        value = json.loads(line)
    except ValueError:  # UnicodeDecodeError is one too
        return None
    return finite(value) if isinstance(value, dict) else None


def finite(value: Any) -> Any:
    """`value` with NaN and infinities replaced by None, which JSON can carry and a chart shows as a gap."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return value


def moment(value: Any) -> float | None:
    """POSIX seconds from a number or an ISO 8601 string (UTC where it names no zone)."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, (int, float)):
        return float(value)
    try:
        parsed = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


def prompt_text(prompt: Any) -> str:
    """The user's side of a prompt as plain text: messages joined by blank lines, images by their name."""
    if isinstance(prompt, str):
        return prompt
    parts = []
    for message in prompt if isinstance(prompt, list) else []:
        content = message.get("content", "") if isinstance(message, dict) else message
        if isinstance(content, list):
            content = "".join(str(part.get("text", "[image]")) for part in content if isinstance(part, dict))
        parts.append(str(content))
    return "\n\n".join(parts)


def _started(stage: Stage) -> float:
    return stage.attempts[0].started if stage.attempts else math.inf


def _parsed(data: dict[str, Any]) -> dict[str, Any]:
    """The data with its lists of objects (messages, samples) parsed where a system wrote them as JSON text."""
    found = {}
    for name, value in data.items():
        if name in JSON_COLUMNS and isinstance(value, str) and (value.startswith("[{") or name == "about"):
            with contextlib.suppress(ValueError):  # a prompt may begin like JSON and be plain text
                value = json.loads(value)
        found[name] = value
    return {name: finite(value) for name, value in found.items()}

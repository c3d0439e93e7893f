"""Recipes: sequences of systems in one YAML file, each stage in a process and a directory of its own.

    seed: 7
    stages:
      base: {run: pretrain, tokenizer: words, data: [{task: "gym:chain_sum", count: 1000}], tokens: 2e6}
      cold: {run: sft, init: base, data: [worked.jsonl]}

What stands under `define` is meant by "$name" and given on the command line as name=value. Where a setting is a
directory (`init`, `tokenizer`, `model` of evaluate) the name of an earlier stage stands for that stage's model; in
`data` it stands for the records that the stage kept.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fathom.core import disk
from fathom.core.config import Settings, build, load_yaml, merge, parse_overrides, show
from fathom.core.errors import FathomError, Stopped, UsageError
from fathom.systems import SYSTEMS, check_paths, settings_class

SHIPPED = Path(__file__).parent
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")  # a stage's name is a directory's
DIRECTORIES = ("init", "tokenizer", "model")


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe, its references to earlier stages resolved to paths."""

    name: str
    system: str
    values: dict[str, Any]
    settings: Settings
    seed: int


@dataclass(frozen=True)
class Recipe:
    """A recipe as it will run: where it is from, its text, its run directory and its stages in order."""

    source: Path
    text: str
    directory: Path
    seed: int
    stages: tuple[Stage, ...]


def find(name: str) -> Path:
    """The file of a recipe: a path, or the name of one that ships with Fathom, like tiny/demo."""
    for path in (Path(name), SHIPPED / f"{name}.yaml"):
        if path.is_file():
            return path
    shipped = sorted(str(p.relative_to(SHIPPED).with_suffix("")) for p in SHIPPED.rglob("*.yaml"))
    raise UsageError(f"{name}: no such recipe; give a YAML file or one that ships: {', '.join(shipped)}")


def load(name: str, overrides: Sequence[str] = (), directory: Path | None = None, seed: int | None = None) -> Recipe:
    """The recipe called `name` with `stage.setting=value` overrides; every stage's settings are checked here."""
    source = find(name)
    raw = load_yaml(source)
    if unknown := [key for key in raw if key not in ("seed", "stages", "about", "define")]:
        raise UsageError(f"{source}: {unknown[0]}: no such key; a recipe has seed, stages, about and define")
    stages = raw.get("stages")
    if not isinstance(stages, dict) or not stages:
        raise UsageError(f"{source}: stages={show(stages)}: a recipe needs at least one stage; write, for example, "
                         "stages: {first: {run: sft, …}}, where run is one of "
                         f"{', '.join(SYSTEMS)}")
    given = parse_overrides(overrides)
    number = given.pop("seed", raw.get("seed", 0)) if seed is None else seed
    _check_seed(number, str(source))
    define = raw.get("define") or {}
    if not isinstance(define, dict):
        raise UsageError(f"{source}: define={show(define)}: must be a mapping; write it as names with values")
    define = dict(define)
    for key in given:
        if key in define and not isinstance(given[key], dict):
            define[key] = given[key]
        elif key not in stages:
            names = [*stages, *(name for name, value in define.items() if not isinstance(value, dict))]
            raise UsageError(f"{key}: no such stage or name in {source}; there are {', '.join(names)}; "
                             "write stage.setting=value")
    where = Path("runs") / source.stem if directory is None else directory
    made: list[Stage] = []
    for key, values in stages.items():
        if not isinstance(values, dict) or not isinstance(values.get("run"), str):
            found = show(values.get("run") if isinstance(values, dict) else values)
            raise UsageError(f"{source}: {key}: run={found}: a stage names its system; write run: with one of "
                             f"{', '.join(SYSTEMS)}")
        if not _NAME.fullmatch(str(key)) or key in ("stages", "proof"):
            raise UsageError(f"{source}: {key}: not a stage's name; use letters, digits, _ and - (not stages, proof)")
        over = given.get(key, {})
        if not isinstance(over, dict):
            raise UsageError(f"{key}={over}: write {key}.setting=value")
        values = merge(_defined(values, define, f"{source}: {key}"), over)
        system, own = values.pop("run"), values.pop("seed", number)
        _check_seed(own, f"{source}: {key}")
        cls = settings_class(system)
        resolved = _resolved(cls, values, {stage.name: where / stage.name for stage in made})
        made.append(Stage(key, system, resolved, build(cls, resolved, f"{source}: {key}"), own))
    return Recipe(source, source.read_text(encoding="utf-8"), where, number, tuple(made))


def _check_seed(seed: Any, where: str) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UsageError(f"{where}: seed={show(seed)}: must be a whole number ≥ 0; write such a number")


def _defined(value: Any, define: Mapping[str, Any], where: str) -> Any:
    """`value` with every text "$name" replaced by what the recipe defines under that name."""
    if isinstance(value, dict):
        return {key: _defined(inner, define, where) for key, inner in value.items()}
    if isinstance(value, list):
        return [_defined(inner, define, where) for inner in value]
    if isinstance(value, str) and value.startswith("$"):
        name = value[1:]
        if define.get(name) is None:
            known = ", ".join(define) or "none"
            raise UsageError(f"{where}: {value}: not given; this recipe defines {known}; write {name}=value")
        return define[name]
    return value


def _resolved(cls: type[Settings], values: Mapping[str, Any], known: Mapping[str, Path]) -> dict[str, Any]:
    """`values` with the names of earlier stages turned into paths."""
    resolved = dict(values)
    for name in DIRECTORIES:
        field = cls.model_fields.get(name)
        given = values.get(name)
        if field is not None and field.annotation in (Path, Path | None) and isinstance(given, str) and given in known:
            resolved[name] = str(known[given] / "model")
    if isinstance(stored := values.get("stored"), str) and stored in known and "stored" in cls.model_fields:
        resolved["stored"] = str(known[stored])  # the answers of an earlier evaluation, judged anew

    def source(entry: Any) -> Any:
        if isinstance(entry, str) and entry in known:
            return str(known[entry])
        if isinstance(entry, Mapping) and isinstance(task := entry.get("task"), str) and task in known:
            return {**entry, "task": str(known[task])}
        return entry

    if isinstance(values.get("data"), list):
        resolved["data"] = [source(entry) for entry in values["data"]]
    return resolved


def command(recipe: Recipe, stage: Stage, quiet: bool) -> list[str]:
    """The command line that runs one stage; the settings are read from a file beside the stage."""
    path = recipe.directory / "stages" / f"{stage.name}.yaml"
    disk.write_atomic(path, json.dumps(stage.values, indent=2))  # JSON is YAML
    return [sys.executable, "-m", "fathom", stage.system, str(path), "--dir", str(recipe.directory / stage.name),
            "--seed", str(stage.seed), *(["--quiet"] if quiet else [])]


def run_stage(
    recipe: Recipe, stage: Stage, quiet: bool, watch: Callable[[subprocess.Popen[bytes]], None] | None = None
) -> None:
    """Runs one stage in a child process to its end; `watch` may look at, and kill, the child."""
    words = command(recipe, stage, quiet)
    with subprocess.Popen(words, stderr=subprocess.PIPE if quiet else None) as child, _passing_on_sigterm(child):
        try:
            if watch is not None:
                watch(child)
            _, errors = child.communicate()
        except KeyboardInterrupt:
            child.wait()  # the child got the signal too: it saves and stops
            raise Stopped(f"stage {stage.name} stopped; the same command continues") from None
    code = child.returncode
    if code == 0:
        return
    said = errors.decode("utf-8", "replace").strip() if errors else ""
    at = said.rfind("fathom: ")  # what it said for the user, on several lines perhaps; without it the last line
    said = said[at:].removeprefix("fathom: ") if at >= 0 else said.rpartition("\n")[2]
    message = f"stage {stage.name}: {said or f'ended with exit code {code}'}"
    if code == Stopped.exit_code:
        raise Stopped(message)
    error = UsageError if code == UsageError.exit_code else FathomError
    raise error(f"{message}; the log is in {recipe.directory / stage.name / 'logs'}")


@contextmanager
def _passing_on_sigterm(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """While open, SIGTERM to this process asks the stage to save and stop instead of leaving it behind."""
    if threading.current_thread() is not threading.main_thread():  # handlers belong to the main thread
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: child.terminate())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def prepare(recipe: Recipe, fresh: bool = False) -> None:
    """Makes the run directory and writes the recipe into it; `fresh` moves an earlier one aside.

    Raises UsageError, nothing written, where a stage names a file or directory that is not there.
    """
    for stage in recipe.stages:
        check_paths(stage.settings, f"{recipe.source}: {stage.name}", recipe.directory)
    if fresh and recipe.directory.exists():
        disk.move(recipe.directory, disk.aside(recipe.directory))
    for folder in (recipe.directory, recipe.directory / "stages"):
        disk.sweep(folder)
    disk.write_atomic(recipe.directory / "recipe.yaml", recipe.text)


def run(recipe: Recipe, fresh: bool = False, panel: bool = True) -> Path:
    """Runs every stage in order, finished ones skipped, and writes the report; returns the report's path."""
    from fathom.report import write_report
    from fathom.report.panel import follow

    prepare(recipe, fresh)
    names = [stage.name for stage in recipe.stages]
    with follow(recipe.directory, names) if panel else nullcontext() as follower:
        for stage in recipe.stages:
            run_stage(recipe, stage, quiet=panel)
            if follower is not None and (data := told(recipe, stage)):
                follower.panel.say(data)
    return write_report(recipe.directory)


def told(recipe: Recipe, stage: Stage) -> str:
    """One line about what became of a finished stage's records; empty where it has none."""
    summary = disk.read_json(recipe.directory / stage.name / "manifest.json").get("summary") or {}
    return f"{stage.name}: {summary['ledger']}" if "ledger" in summary else ""


def tiny() -> list[str]:
    """The names of the recipes that run on a CPU in minutes."""
    return sorted(str(p.relative_to(SHIPPED).with_suffix("")) for p in (SHIPPED / "tiny").glob("*.yaml"))


__all__ = ["Recipe", "Stage", "command", "find", "load", "prepare", "run", "run_stage", "tiny", "told"]

"""What can be run. A system is a settings class and a function of (settings, run); they meet on disk, never in code."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fathom.core.errors import FathomError, UsageError

if TYPE_CHECKING:
    from fathom.core.config import Settings
    from fathom.core.run import Run


class System(NamedTuple):
    """Where a system's settings class and function stand, and its one line in `fathom --help`."""

    module: str
    settings: str
    function: str
    about: str  # the first sentence of the settings class's docstring, here so that listing systems loads none


SYSTEMS: dict[str, System] = {
    "tokenizer": System(
        "fathom.systems.tokenizer", "TokenizerSettings", "tokenizer",
        "Learns a byte-level BPE vocabulary and writes it, with a chat template, to DIR/model."),
    "pretrain": System(
        "fathom.systems.pretrain", "Pretrain", "pretrain",
        "Trains a model from random weights on documents: next token, the token after it, balanced experts."),
    "extend": System(
        "fathom.systems.extend", "Extend", "extend",
        "Lengthens what a model can read: YaRN, then training on long texts in phases, with a proof."),
    "sft": System(
        "fathom.systems.sft", "Sft", "sft",
        "Teaches a model by chats, or by tasks with worked solutions."),
    "grpo": System(
        "fathom.systems.grpo", "Grpo", "grpo",
        "Improves a model by group relative policy optimisation on problems with a judge."),
    "distill": System(
        "fathom.systems.distill", "Distill", "distill",
        "Samples completions of a model on training problems, judges them and keeps what is right."),
    "evaluate": System(
        "fathom.systems.evaluate", "Evaluate", "evaluate",
        "Asks a model the test problems of tasks and scores what comes back."),
    "overlap": System(
        "fathom.systems.overlap", "Overlap", "overlap",
        "Looks for the test problems of tasks in training data, by n-grams, and lists every text that holds one."),
    "leakage": System(
        "fathom.systems.leakage", "Leakage", "leakage",
        "Asks a model for the next tokens at a few places of every test problem, and counts what it knows."),
}
MAKES_MODEL = ("tokenizer", "pretrain", "extend", "sft", "grpo")
NEEDED = ("torch", "safetensors", "tokenizers", "jinja2")  # by every system: the extra `model`
OTHER_INPUTS = (".txt", ".py", ".gguf")  # files beside data whose content counts


def settings_class(system: str) -> type[Settings]:
    """The settings class of a system; loads no torch."""
    if system not in SYSTEMS:
        import difflib

        near = difflib.get_close_matches(system, SYSTEMS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"{system}: no such system; {hint}There are {', '.join(SYSTEMS)}")
    found: type[Settings] = getattr(importlib.import_module(SYSTEMS[system].module), SYSTEMS[system].settings)
    return found


def start(
    system: str, values: Mapping[str, Any], directory: Path, seed: int, where: str, *, fresh: bool = False,
    time_limit: float | None = None, console: bool = True,
) -> Run:
    """Runs a system in `directory` to its end, continuing what is there; returns the closed run."""
    from fathom.core import process
    from fathom.core.config import build
    from fathom.core.run import MANIFEST, Run

    settings = build(settings_class(system), values, where)
    nproc, members = getattr(settings, "nproc", None), process.members()
    if members > 1:
        if nproc is None:
            raise UsageError(f"{system}: runs in one process, torchrun started {members}; start it without torchrun")
        from fathom.train.parallel import Team

        if not Team.join(getattr(settings, "device", "cpu")).leads:
            return follow(system, settings, directory, seed)
    launched = members == 1 and (nproc or 1) > 1 and (fresh or not is_finished(directory))
    if launched:
        from fathom.systems.team import launch

        launch(nproc or 1, system, values, directory, seed, where, fresh, time_limit, console)
        fresh = False
    needed = getattr(settings, "needed", NEEDED)  # an endpoint's evaluation needs no tensors
    if absent := [package for package in needed if importlib.util.find_spec(package) is None]:
        raise UsageError(f"{system}: needs {', '.join(absent)}, not installed; pip install 'fathom-reasoning[demo]'")
    found: list[str] = []
    if fresh or not (directory / MANIFEST).exists():  # before there is a run that a corrected name would not continue
        check_paths(settings, where)
        if check := getattr(settings, "check", None):
            check()
        found = check_sources(settings)
    with Run.open(directory, system, settings, seed, inputs(settings), fresh, time_limit, console) as run:
        if members > 1:
            Team.join().tell(lambda: not run.finished)  # whether there is anything to do
        if run.finished:
            check_model(system, run.dir)
            if console and not launched:
                print(f"{run.dir}: finished before, nothing to do; --fresh starts over", file=sys.stderr)
        else:
            for line in found:
                run.log.info(line)
            getattr(importlib.import_module(SYSTEMS[system].module), SYSTEMS[system].function)(settings, run)
    return run


def is_finished(directory: Path) -> bool:
    """Whether a run in `directory` came to its end."""
    from fathom.core.run import MANIFEST, read_manifest

    return (directory / MANIFEST).exists() and read_manifest(directory)["status"] == "done"


def follow(system: str, settings: Settings, directory: Path, seed: int) -> Run:
    """What a process of a team does that is not its first: the same work, and no file written."""
    from fathom.core.follower import Follower
    from fathom.train.parallel import Team

    with Follower.open(directory, system, settings, seed, console=False) as run:
        if Team.join().tell(lambda: True):  # the first process knows
            getattr(importlib.import_module(SYSTEMS[system].module), SYSTEMS[system].function)(settings, run)
    return run


def check_model(system: str, directory: Path) -> None:
    """Raises FathomError where a finished stage no longer has the model that it wrote."""
    from fathom.core import disk

    model = directory / "model"
    if system in MAKES_MODEL and not (
        disk.is_complete(model) and all((model / name).is_file() for name in disk.read_json(model / disk.CHECKSUMS))
    ):
        raise FathomError(f"{directory}: finished before, but {model} is not whole any more; restore it from a copy, "
                          "or start the stage over with --fresh")


def check_paths(settings: Settings, where: str, made_in: Path | None = None) -> None:
    """Raises UsageError where a directory, or data of `data` or `tasks`, that the settings name are not there.

    What lies below `made_in`, the directory of the run, is still to be made.
    """
    from fathom.core.config import neighbour
    from fathom.model.pretrained import is_model
    from fathom.tasks.hub import CODE, PREFIX
    from fathom.tasks.rows import SUFFIXES
    from fathom.tasks.stored import StoredSettings

    def check(name: str, path: Path, kind: str, there: bool) -> None:
        if not there and (made_in is None or not path.is_relative_to(made_in)):
            raise UsageError(f"{where}: {name}: {path}: no such {kind}{neighbour(path)}")

    fields = {name: getattr(settings, name) for name in type(settings).model_fields}
    if (critic := fields.get("critic")) is not None:
        fields["critic.init"] = critic.init
    for name, value in fields.items():
        if isinstance(value, Path):
            if name != "tokenizer" and is_model(value):
                continue
            if name == "scored":
                check(name, value, "directory", value.is_dir())
                continue
            check(name, value, "directory", value.is_dir())
            holds = "tokenizer.json" if name == "tokenizer" else "config.json"
            if value.is_dir() and not (value / holds).is_file():
                hint = f"did you mean {value / 'model'}?" if (value / "model").is_dir() else "name a directory with it"
                raise UsageError(f"{where}: {name}: {value}: holds no {holds}; {hint}")
        if isinstance(value, StoredSettings):
            check(name, Path(value.path), "file or directory", Path(value.path).exists())
        for entry in value if name in ("data", "tasks") else ():
            options = {"task": entry} if isinstance(entry, str) else entry
            for text in (options.get("task"), options.get("data"), options.get("test")):
                text = text.removeprefix(CODE) if isinstance(text, str) else ""
                if text.endswith(SUFFIXES) and not text.startswith(PREFIX):
                    check(name, Path(text), "file", Path(text).is_file() or Path(text).is_dir())


def check_sources(settings: Settings) -> list[str]:
    """One line per task that is read from files: the form found. A hub name is downloaded.

    Raises UsageError where a task of reasoning-gym, or files of `data` or `tasks`, cannot be read as one. Tasks of a
    user's own making are left to the system, which makes them once.
    """
    from fathom.tasks import hub
    from fathom.tasks.examples import load_source
    from fathom.tasks.maths import FileTask
    from fathom.tasks.task import load_task

    lines = []
    for name in ("data", "tasks"):
        for entry in getattr(settings, name, ()):
            task = entry if isinstance(entry, str) else entry.get("task", entry.get("data"))
            if not isinstance(task, str) or ":" not in task or task.startswith(("gym:", hub.CODE)) or hub.is_data(task):
                made = load_source(entry, 0) if name == "data" else load_task(entry)
                if isinstance(made, FileTask):
                    lines.append(f"{name}: {made.name}, read as {made.format}{made.note}")
    return lines


def inputs(settings: Settings) -> dict[str, str]:
    """The files, directories and hub names that the settings name, each with a fingerprint of its content."""
    from fathom.core import disk
    from fathom.model.pretrained import locate
    from fathom.tasks import hub
    from fathom.tasks.rows import SUFFIXES

    found: dict[str, str] = {}

    def visit(value: Any) -> None:
        if isinstance(value, Mapping):
            for inner in value.values():
                visit(inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                visit(inner)
        elif isinstance(value, str | Path) and str(value) not in found:
            path = locate(Path(str(value).removeprefix(hub.CODE)))
            if disk.is_complete(path):
                found[str(value)] = disk.digest(path)
            elif (path / "records").is_dir():
                parts = [disk.digest(p) for p in sorted((path / "records").iterdir()) if disk.is_complete(p)]
                found[str(value)] = hashlib.sha256("".join(parts).encode()).hexdigest()
            elif str(value).endswith((*SUFFIXES, *OTHER_INPUTS)) and path.is_file():
                with path.open("rb") as file:
                    found[str(value)] = hashlib.file_digest(file, "sha256").hexdigest()

    visit(settings.model_dump())
    for name in ("data", "tasks"):
        for entry in getattr(settings, name, ()):
            found |= {key: value for key, value in hub.fingerprints(entry).items() if key not in found}
    return found

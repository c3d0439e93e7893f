"""Data sets of the Hugging Face hub: GSM8K and MATH as declared, any other by `hub:OWNER/NAME`.

A data set is downloaded into the hub's own cache (extra `hub`) and read from there as a directory. What is declared is
checked: other columns or counts are an error, never a shorter training set.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from fathom.core.errors import FathomError, UsageError
from fathom.tasks import datasets, rows
from fathom.tasks.datasets import DataFiles
from fathom.tasks.formats import LOOKED_AT

PREFIX = "hub:"
CODE = "code:"  # before data whose problems are answered by programs
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_REMEDY = "pip install 'fathom-reasoning[hub]', or give local files: data=train.parquet test=test.parquet"
_REVISION = re.compile(r"[\w./-]+")


@dataclass(frozen=True)
class Declared:
    """A data set that this project knows: where it is, and what it must hold. `forms` are the formats it may have."""

    repository: str
    revision: str
    config: str
    forms: tuple[str, ...]
    columns: frozenset[str]
    rows: Mapping[str, int]


DECLARED = {
    # Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems"
    "gsm8k": Declared(
        "openai/gsm8k", "740312add88f781978c0658806c59bc2815b9866", "main", ("gsm8k", "verl"),
        frozenset({"question", "answer"}), {"train": 7473, "test": 1319}),
    # Hendrycks et al. 2021, "Measuring Mathematical Problem Solving With the MATH Dataset"
    "math": Declared(
        "DigitalLearningGmbH/MATH-lighteval", "0530c78699ea5e8eb5530600900e1f328b48acad", "default",
        ("problem/solution", "problem/answer", "verl"),
        frozenset({"problem", "level", "solution", "type"}), {"train": 7500, "test": 5000}),
}


def is_data(name: str) -> bool:
    """Whether a name stands for data files: of the hub, or in a file or directory."""
    if name.startswith(CODE):
        return False
    return name in DECLARED or name.startswith(PREFIX) or name.endswith(rows.SUFFIXES) or os.path.isdir(name)


def is_stage(name: str) -> bool:
    """Whether a name stands for the directory of an earlier stage that kept records."""
    return bool(name) and os.path.isdir(os.path.join(name, "records"))


def locate(name: str, config: str | None = None, revision: str | None = None) -> DataFiles:
    """The data files behind a name, downloaded where they are the hub's. UsageError says what stands in the way."""
    for option, value in (("config", config), ("revision", revision)):
        if value is not None and (not isinstance(value, str) or not value):
            raise UsageError(f"{name}: {option}={value!r:.80}: must be text; name the data set's {option}")
    if name not in DECLARED and not name.startswith(PREFIX):
        if revision is not None:
            raise UsageError(f"{name}: revision={revision:.80}: data on disk have none; leave revision out")
        return datasets.from_path(Path(name), config)
    repository = DECLARED[name].repository if name in DECLARED else name.removeprefix(PREFIX)
    known = next((d for d in DECLARED.values() if d.repository == repository and config in (None, d.config)), None)
    if not _REPOSITORY.fullmatch(repository):
        raise UsageError(f"{name}: not the name of a data set; write hub:OWNER/NAME, as in hub:openai/gsm8k")
    if revision is not None and not _REVISION.fullmatch(revision):
        raise UsageError(f"{name}: revision={revision:.80}: not a revision; name a branch, a tag or a commit")
    if known is not None:
        config, revision = known.config, revision or known.revision
    root = _downloaded(repository, config, revision or "main")
    files = replace(datasets.from_path(root, config), name=name, revision=root.name)
    if known is not None:
        _check(files, known)
    return files


def _check(files: DataFiles, known: Declared) -> None:
    """Raises FathomError where a declared data set holds something else."""
    remedy = f"leave revision out (declared is {known.revision[:12]}), or read its directory: data={files.root}"
    for split, expected in known.rows.items():
        paths = files.splits.get(split, ())
        found = sum(rows.count(path) for path in paths)
        if found != expected:
            raise FathomError(f"{files.name}: {found} rows in split {split} of revision {files.revision[:12]}, "
                              f"expected {expected}; {remedy}")
        columns = {key for row in islice(rows.read(paths[0]), LOOKED_AT) for key in row.data or ()}
        if columns != known.columns:
            raise FathomError(f"{files.name}: columns {', '.join(sorted(columns))[:200]} in split {split}, expected "
                              f"{', '.join(sorted(known.columns))}; {remedy}")


@functools.cache  # one process reads one state of a branch that may move
def _downloaded(repository: str, config: str | None, revision: str) -> Path:
    """The directory in the hub's cache with the data set's card and the files of the configuration."""
    card = _fetch(repository, revision, ("README.md",))
    wanted: list[str] = []
    if there := datasets.configs(card):
        chosen = datasets.chosen(card, config, there)
        wanted = [glob for globs in datasets.patterns(card, chosen, there[chosen]).values() for glob in globs]
    # the commit that the card is of, so that both are of one state
    return _fetch(repository, card.name, ("README.md", *(wanted or [f"*{suffix}" for suffix in rows.SUFFIXES])))


def _fetch(repository: str, revision: str, globs: tuple[str, ...]) -> Path:
    try:
        import huggingface_hub
    except ImportError:
        raise UsageError(f"hub:{repository}: needs huggingface_hub, not installed; {_REMEDY}") from None
    try:
        return Path(huggingface_hub.snapshot_download(
            repository, repo_type="dataset", revision=revision, allow_patterns=list(globs)))
    except Exception as error:  # its own errors, and those of the HTTP library that it happens to use
        said = " ".join(str(error).split())[:200]
        raise FathomError(
            f"hub:{repository}: revision {revision[:40]} cannot be fetched ({type(error).__name__}: {said}); check the "
            "name and the network, or give local files: data=train.parquet test=test.parquet") from error


def _benchmark(name: str) -> tuple[str, str | None] | None:
    """Hub data set and configuration of a benchmark's name."""
    from fathom.tasks.benchmarks import BENCHMARKS, CODE_BENCHMARKS

    if name in BENCHMARKS and BENCHMARKS[name].repository:
        return BENCHMARKS[name].repository, BENCHMARKS[name].config
    return CODE_BENCHMARKS.get(name)


def fingerprints(entry: str | Mapping[str, Any]) -> dict[str, str]:
    """A fingerprint for each directory or hub name in an entry of `data` or `tasks`: of all files that are read."""
    options: Mapping[str, Any] = {"task": entry} if isinstance(entry, str) else entry
    config, revision = options.get("config"), options.get("revision")
    found = {}
    main = options.get("data", options.get("task"))
    if main in DECLARED and "data" not in options and "test" in options:
        main = options["test"]  # tested on a file alone
    if isinstance(main, str) and (published := _benchmark(main)):
        main, config = f"{PREFIX}{published[0]}", config or published[1]
    for name, about in ((main, (config, revision)), (options.get("test"), (None, None)),
                        (options.get("examples"), (None, None))):
        name = name.removeprefix(CODE) if isinstance(name, str) else name
        if isinstance(name, str) and is_data(name) and not os.path.isfile(name) and not is_stage(name):
            files = locate(name, *about)
            key = " ".join([name, *(f"{option}" for option in about if option)])
            digest = hashlib.sha256(files.revision.encode())
            for path in (*files.about, *(path for paths in files.splits.values() for path in paths)):
                with path.open("rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
                digest.update(f"{path.relative_to(files.root)} {content}\n".encode())
            found[key] = digest.hexdigest()
    return found

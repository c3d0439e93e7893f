"""HumanEval in other languages than Python (MultiPL-E), where this machine can run them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from fathom.core.chat import Message
from fathom.core.errors import UsageError
from fathom.core.records import Record
from fathom.judge.code.foreign import LANGUAGES, Foreign, ForeignJudge, missing
from fathom.judge.verdict import Verdict
from fathom.tasks import rows
from fathom.tasks.datasets import DataFiles
from fathom.tasks.formats import LOOKED_AT, Asked, Format
from fathom.tasks.hub import Declared
from fathom.tasks.maths import FileTask
from fathom.tasks.rows import BadRow
from fathom.tasks.task import Problem

PREFIX = "humaneval-"
REPOSITORY = "nuprl/MultiPL-E"
_FIELDS = frozenset({"name", "task_id", "prompt", "tests", "test", "language"})


def language_of(name: str) -> str | None:
    """The language of a task called humaneval-LANGUAGE; None for other names."""
    language = name.removeprefix(PREFIX)
    return language if name.startswith(PREFIX) and language in LANGUAGES else None


class PolyglotTask(FileTask):
    """HumanEval in one language: all rows are test problems, judged by that language's own tools inside bubblewrap.

    `data` is a local file of MultiPL-E's form in the hub's place. UsageError names what the machine lacks.
    """

    def __init__(
        self,
        name: str,
        *,
        data: str | Path | None = None,
        revision: str | None = None,
        workers: int = 2,
        time_s: float = 10.0,
        memory_mb: int = 1024,
    ) -> None:
        language = language_of(name)
        assert language is not None
        self.language = language
        self._foreign = ForeignJudge(language, time_s, memory_mb, workers)
        super().__init__(str(data) if data is not None else f"hub:{REPOSITORY}",
                         config=None if data is not None else name, revision=revision)
        self.name = name

    def judge(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """One verdict per (problem, completion text), by running what was written."""
        return self._foreign.judge([
            (Foreign(problem.meta["prompt"], problem.meta["tests"]), text) for problem, text in items])

    def _choose(
        self, found: DataFiles, test: str | Path | None, parted: bool, split: str | None
    ) -> tuple[tuple[Path, ...], tuple[Path, ...] | None, str]:
        return (), found.test or found.splits["train"], found.note

    def _learn(self, files: tuple[Path, ...], declared: Declared | None) -> Iterator[str]:
        first = [row.data for path in files for row in islice(rows.read(path, _FIELDS), LOOKED_AT)
                 if row.data is not None]
        if not any("prompt" in row and ("tests" in row or "test" in row) for row in first):
            raise UsageError(f"{files[0]}: rows have no prompt and tests; give a file of MultiPL-E's form")
        self._formats |= dict.fromkeys(files, Format(self.name, "problem", ("prompt",), self._read))
        yield "MultiPL-E"

    def _read(self, row: Mapping[str, Any]) -> Asked:
        prompt, tests = row.get("prompt"), row.get("tests", row.get("test"))
        for name, value in (("prompt", prompt), ("tests", tests)):
            if not isinstance(value, str) or not value.strip():
                raise BadRow(f"{name} is missing" if value is None else f"{name} is not text, or empty")
        mark = LANGUAGES[self.language].fences[0]
        question = (f"Complete this function. Answer with one ```{mark} block that holds the whole function, its head "
                    f"as it is given.\n\n```{mark}\n{prompt}\n```")
        digest = hashlib.sha256(str(tests).encode(errors="replace")).hexdigest()[:16]
        return Asked((Message("user", question),), f"tests {digest}", None,
                     {"prompt": prompt, "tests": tests, "task_id": str(row.get("task_id") or row.get("name") or "")})

    def _records(self, files: Sequence[Path]) -> Iterator[Record]:
        for path in files:
            for row in rows.read(path, _FIELDS):
                named = row.id
                if row.data is not None and isinstance(row.data.get("prompt"), str):
                    named = hashlib.sha256(row.data["prompt"].encode(errors="replace")).hexdigest()[:16]
                yield row.record(path, named)


def lacking() -> dict[str, str]:
    """Languages that this machine cannot run, and what each lacks."""
    return {name: why for name in LANGUAGES if (why := missing(name)) is not None}

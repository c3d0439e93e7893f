"""Code problems in files, directories and hub data sets as a task, judged by running what was written."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from fathom.core.errors import UsageError
from fathom.core.records import Record
from fathom.judge.code import WALL, CodeJudge, Credit, from_json
from fathom.judge.sandbox import Level, Limits
from fathom.judge.verdict import Verdict
from fathom.tasks import rows
from fathom.tasks.code_formats import FIELDS, FORMATS, Choices, checks_of, form_of, question_of, read
from fathom.tasks.formats import LOOKED_AT, Format
from fathom.tasks.hub import CODE, Declared
from fathom.tasks.maths import FileTask
from fathom.tasks.task import Problem, check_options

FEW_CHECKS = 5  # with fewer, a program that answers these alone is found before one that solves the problem


class CodeTask(FileTask):
    """Problems whose answer is a program, from what FileTask reads problems from, with its splits and rejects.

    A program may use `time_s` seconds of processor (four times that by the clock) and `memory_mb` MiB. With `credit`
    share the score is the share of tests passed. At most `most_tests` are run, rows with fewer than `min_tests` tests
    or assertions are rejects, and numbers may differ by `tolerance`. `preload`ed modules start fast; `require_level` is
    the sandbox's, 0 or 1.
    """

    def __init__(
        self,
        data: str | Path,
        *,
        test: str | Path | None = None,
        test_rows: int | None = None,
        test_share: float | None = None,
        config: str | None = None,
        split: str | None = None,
        revision: str | None = None,
        workers: int = 2,
        time_s: float = 5.0,
        memory_mb: int = 512,
        credit: Credit = "all",
        most_tests: int | None = None,
        min_tests: int = 0,
        tolerance: float | None = None,
        preload: Sequence[str] = (),
        require_level: int = 0,
    ) -> None:
        for name, value in (("time_s", time_s), ("memory_mb", memory_mb)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
                raise UsageError(f"{name}={value!r:.80}: must be a number above 0; give such a one")
        if isinstance(min_tests, bool) or not isinstance(min_tests, int) or min_tests < 0:
            raise UsageError(f"min_tests={min_tests!r:.80}: must be a whole number ≥ 0; give how few are too few")
        if tolerance is not None and (isinstance(tolerance, bool) or not isinstance(tolerance, int | float)
                                      or not 0 < tolerance < 1):
            raise UsageError(f"tolerance={tolerance!r:.80}: must be above 0 and below 1; leave it out for exact words")
        if require_level not in tuple(Level):
            raise UsageError(f"require_level={require_level!r:.80}: must be 0 or 1; see docs/sandbox.md")
        self._choices = Choices(min_tests, tolerance)
        super().__init__(
            data, test=test, test_rows=test_rows, test_share=test_share, config=config, split=split, revision=revision)
        self.name = f"{CODE}{data}"
        self._code_judge = CodeJudge(
            workers=workers,
            limits=Limits(cpu_s=time_s, wall_s=WALL * time_s, memory_mb=memory_mb),
            preload=preload,
            require_level=Level(require_level),
            credit=credit,
            most_tests=most_tests,
        )

    @classmethod
    def load(cls, name: str, options: dict[str, Any]) -> CodeTask:
        """The task of "code:DATA", or of "code" with the option `data`; UsageError names an option that is none."""
        data = name.removeprefix(CODE) if ":" in name else options.pop("data", "")
        if not isinstance(data, str) or not data:
            raise UsageError(f"{name}: no data; name them as code:path/to/problems.jsonl")
        check_options(f"{CODE}{data}", options, cls, "a code task")
        return cls(data, **options)

    def judge(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """One verdict per (problem, completion text), by CodeJudge."""
        return self._code_judge.judge([(from_json(problem.meta["tests"]), text) for problem, text in items])

    def close(self) -> None:
        """Ends the sandbox, if there is one."""
        super().close()
        self._code_judge.close()

    def _learn(self, files: tuple[Path, ...], declared: Declared | None) -> Iterator[str]:
        data = [row.data for _, row in islice(_rows(files), LOOKED_AT) if row.data is not None]
        votes = Counter(form.name for form in map(form_of, data) if form is not None)
        if not votes:
            keys = f"rows have {', '.join(data[0])[:200] or 'none of them'}" if data else "no row is a JSON object"
            known = "; ".join(dict.fromkeys(" and ".join(form.needs) for form in FORMATS))
            raise UsageError(f"{files[0]}: {keys}, which is no known form of code problems; rename the keys to {known}")
        few = sum(0 < checks_of(row) < FEW_CHECKS for row in data)
        if few:
            self.note += f"; {few} of the first {len(data)} problems have fewer than {FEW_CHECKS} tests (min_tests)"
        form = Format("code", "problem", (), lambda row: read(row, self._choices))
        self._formats |= dict.fromkeys(files, form)
        yield from (name for name, _ in votes.most_common())

    def _records(self, files: Sequence[Path]) -> Iterator[Record]:
        for path, row in _rows(files):
            question = None if row.data is None else question_of(row.data)
            named = row.id if question is None else hashlib.sha256(question.encode(errors="replace")).hexdigest()[:16]
            yield row.record(path, named)


def _rows(files: Sequence[Path]) -> Iterator[tuple[Path, rows.Row]]:
    for path in files:
        for row in rows.read(path, FIELDS):
            yield path, row

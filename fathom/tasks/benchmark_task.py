"""A benchmark that is known by name, as a task: read from the hub or from local files, asked and judged as it says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

from fathom.core.errors import UsageError
from fathom.core.records import Record
from fathom.judge.extract import Unread
from fathom.judge.maths import LONGEST_ANSWER, number
from fathom.judge.verdict import Outcome, Verdict
from fathom.judge.words import brackets_form, in_brackets, judge_table, judge_words
from fathom.tasks import omni_math, rows
from fathom.tasks.benchmarks import BENCHMARKS, Benchmark
from fathom.tasks.datasets import DataFiles
from fathom.tasks.formats import LOOKED_AT, Format
from fathom.tasks.hub import Declared, locate
from fathom.tasks.maths import FileTask
from fathom.tasks.prompting import ShotsAs
from fathom.tasks.rows import BadRow, data_of
from fathom.tasks.tables import Table, by
from fathom.tasks.task import Problem

_PER_LETTER = "ABCDEFGHIJ"


class BenchmarkTask(FileTask):
    """The benchmark `name`: all its rows are test problems. `data` is a local file or directory in the hub's place.

    `examples` is a file of the same form whose solved rows are shown (`shots`). `ask` is the benchmark's own where it
    is not given; `final` says where an answer stands. `tiers` is the rule of Omni-MATH's tiers: script or text.
    """

    def __init__(
        self,
        name: str,
        *,
        data: str | Path | None = None,
        examples: str | Path | None = None,
        config: str | None = None,
        revision: str | None = None,
        system: str = "",
        ask: str | None = None,
        shots: int = 0,
        shots_as: ShotsAs = "turns",
        final: str = "auto",
        tiers: omni_math.Rule = "script",
        workers: int = 1,
        timeout_s: float = 5.0,
    ) -> None:
        self.benchmark = BENCHMARKS[name]
        if data is None and not self.benchmark.repository:
            raise UsageError(f"{name}: is on no hub that Fathom knows; give its file: {{task: {name}, data: FILE}}")
        if tiers not in omni_math.RULES:
            raise UsageError(f"tiers={tiers!r:.80}: must be script or text; docs/evaluate.md says how they differ")
        if shots and examples is None:
            raise UsageError(f"{name}: shots={shots}, but a benchmark's own problems are not shown; give examples=FILE")
        self._given, self._shown_from, self.tiers = data, examples, tiers
        self._shows_answers = self.benchmark.judging in ("choice", "words")
        super().__init__(
            str(data) if data is not None else f"hub:{self.benchmark.repository}",
            config=config or (self.benchmark.config if data is None else None), revision=revision, system=system,
            ask=self.benchmark.ask if ask is None else ask, shots=shots, shots_as=shots_as, final=final,
            workers=workers, timeout_s=timeout_s)
        self.name = name
        if data is None and self.benchmark.rows is not None:
            found = sum(rows.count(path) for path in self.test or ())
            if found != self.benchmark.rows:
                self.note += f"; {found} rows, {self.benchmark.rows} were published"

    @property
    def k(self) -> int | None:
        """Samples per problem in DeepSeek-R1's protocol, where it says."""
        return self.benchmark.k

    def judge(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """One verdict per (problem, completion text), as the benchmark is judged."""
        match self.benchmark.judging:
            case "words":
                return [judge_words(problem.answer, text) for problem, text in items]
            case "table":
                return [judge_table(problem.meta["table"], text) for problem, text in items]
            case "brackets":
                return self._in_brackets(items)
            case "choice":
                return self._chosen(items)
            case "tolerance":
                return [_within(problem, verdict)
                        for (problem, _), verdict in zip(items, super().judge(items), strict=True)]
        return super().judge(items)

    def tables(self, found: Sequence[Mapping[str, Any]]) -> list[Table]:
        """Where the model was right: by domain and difficulty for Omni-MATH, else by what rows say of themselves."""
        if self.benchmark.read is BENCHMARKS["omni-math"].read:
            return omni_math.tables([omni_math.item(row) for row in found], self.tiers)
        keyed = [(row["about"], [sample["outcome"] == "right" for sample in row["samples"]]) for row in found]
        return [
            by(f"By {part.replace('_', ' ')}", part,
               ((about[part], right) for about, right in keyed if part in about), order=_natural)
            for part in self.benchmark.parts if any(part in about for about, _ in keyed)
        ]

    # Judging.

    def _in_brackets(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """The same spelling; else, for formulas and numbers, the same value."""
        verdicts: list[Verdict | None] = []
        asked: list[tuple[int, str, str]] = []
        for place, (problem, text) in enumerate(items):
            gold, found = problem.answer[2:-2], in_brackets(text)
            if isinstance(found, Unread):
                verdicts.append(Verdict.unread(found.reason))
            elif brackets_form(found.answer) == brackets_form(gold):
                verdicts.append(Verdict.right("same spelling", found.answer))
            else:
                verdicts.append(Verdict.wrong("different spelling", found.answer))
                if problem.meta["about"].get("part") == "operation":
                    asked.append((place, gold, found.answer))
        for (place, _, answer), verdict in zip(
                asked, self._judge.equal([(gold, answer) for _, gold, answer in asked]), strict=True):
            if verdict.outcome in (Outcome.RIGHT, Outcome.FAILED):
                verdicts[place] = verdict
            else:
                verdicts[place] = Verdict.wrong("different expressions", answer)
        return [verdict for verdict in verdicts if verdict is not None]

    def _chosen(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """The letter; an answer that is the right option's own text counts too, unless another option reads alike."""
        verdicts = super().judge(items)
        again = []
        for place, ((problem, _), verdict) in enumerate(zip(items, verdicts, strict=True)):
            options = problem.meta.get("options") or ()
            if verdict.outcome in (Outcome.WRONG, Outcome.UNREAD) and verdict.answer and options \
                    and verdict.reason != "different options":
                again.append((place, options, _PER_LETTER.index(problem.answer), verdict.answer))
        pairs = [(option, answer) for _, options, _, answer in again for option in options]
        said = iter(self._judge.equal(pairs))
        for place, options, right, answer in again:
            same = [next(said).outcome is Outcome.RIGHT for _ in options]
            if same[right] and sum(same) == 1:
                verdicts[place] = Verdict.right("the option's own text", answer)
        return verdicts

    # Reading.

    def parse(self, record: Record) -> Problem:
        """The problem in a record, read as this benchmark's and nothing else; BadRow(reason) where there is none."""
        row = data_of(record)
        if missing := [key for key in self.benchmark.needs if key not in row]:
            raise BadRow(f"{missing[0]} is missing")
        asked = self.benchmark.read(row)
        if len(asked.answer) > LONGEST_ANSWER:
            raise BadRow(f"answer is longer than {LONGEST_ANSWER} characters")
        return Problem(record.id, asked.prompt, asked.answer, self.name, asked.solution, asked.meta)

    def _choose(
        self, found: DataFiles, test: str | Path | None, parted: bool, split: str | None
    ) -> tuple[tuple[Path, ...], tuple[Path, ...] | None, str]:
        wanted = self.benchmark.split if self._given is None else "test"
        files = found.splits.get(wanted) or found.test or found.splits["train"]
        shown = () if self._shown_from is None else locate(str(self._shown_from)).split("train")
        return shown, files, found.note

    def _learn(self, files: tuple[Path, ...], declared: Declared | None) -> Iterator[str]:
        one = self.benchmark
        first = [row.data for path in files for row in islice(rows.read(path, self._fields), LOOKED_AT)
                 if row.data is not None]
        if not first:
            raise UsageError(f"{files[0]}: none of its first lines is a JSON object; give the file of {one.name}")
        if not any(all(key in row for key in one.needs) for row in first):
            keys = sorted({key for row in first for key in row})
            raise UsageError(f"{files[0]}: rows have {', '.join(keys)[:200] or 'none of the keys'} of what {one.name} "
                             f"has; it needs {', '.join(one.needs)}. Name the file that holds {one.about}")
        form = Format(one.name, "problem", one.needs, one.read, one.may_have)
        self._formats |= dict.fromkeys(files, form)
        yield one.name

    @property
    def _fields(self) -> frozenset[str]:
        return frozenset((*self.benchmark.needs, *self.benchmark.asks, *self.benchmark.may_have))

    def _records(self, files: Sequence[Path]) -> Iterator[Record]:
        for path in files:
            for row in rows.read(path, self._fields):
                yield row.record(path, row.id if row.data is None else _named(row.data, self.benchmark, row.id))


def _named(row: Mapping[str, Any], benchmark: Benchmark, otherwise: str) -> str:
    """16 characters that name a problem by what is asked alone; as FileTask's where that is one text."""
    parts = [row[name] for name in benchmark.asks if row.get(name) is not None]
    if not parts:
        return otherwise
    content = parts[0].strip() if len(parts) == 1 and isinstance(parts[0], str) else json.dumps(parts, sort_keys=True)
    return hashlib.sha256(content.encode(errors="replace")).hexdigest()[:16]


def _within(problem: Problem, verdict: Verdict) -> Verdict:
    """RIGHT for a number that lies within the tolerance that the problem itself states."""
    if verdict.outcome is not Outcome.WRONG or "tolerance" not in problem.meta or verdict.answer is None:
        return verdict
    gold, given = number(problem.answer), number(verdict.answer)
    if gold is None or given is None or abs(gold - given) > Fraction(problem.meta["tolerance"]):
        return verdict
    return Verdict.right("within the stated tolerance", verdict.answer)


def _natural(key: Any) -> tuple[int, float, str]:
    """Numbers by size, then words."""
    value = number(str(key))
    return (1, 0.0, str(key)) if value is None else (0, float(value), "")

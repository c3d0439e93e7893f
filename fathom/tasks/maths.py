"""Problems in files, directories and hub data sets as a task: GSM8K, MATH, verl and plain forms, judged mathematically.

The forms are those of `fathom.tasks.formats`. Rows that do not fit are rejects with a reason, never guesses.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

from fathom.core.chat import Message
from fathom.core.errors import FathomError, UsageError
from fathom.core.records import Record
from fathom.judge.extract import FINALS
from fathom.judge.maths import MathsJudge
from fathom.judge.verdict import Verdict
from fathom.tasks import datasets
from fathom.tasks.formats import Format, form_of, question_id
from fathom.tasks.hub import Declared, locate
from fathom.tasks.prompting import Prompting, ShotsAs
from fathom.tasks.rows import BadRow, data_of
from fathom.tasks.task import Problem, Split

__all__ = ["BadRow", "FileTask"]

_SHOWN = 10  # rows left out of a split that are named by their place
_MOST_LEFT_OUT = 10_000  # rows left out that are kept for whoever asks
_SHUFFLED = 50_000  # problems that are put into a seed's order at a time
QUESTION = "question"  # key of a problem's meta with the bare question, where the prompt says more
_IN_TEST = "in the test split"  # key of a training record whose question is tested


class FileTask:
    """Problems from a file, a directory in Hugging Face's manner, or a hub name (see `fathom.tasks.hub.locate`).

    `data` holds the training rows: a file's all, else those of the split called `split` (train). The test split is, in
    this order: `test`, a file or what has a test split; the last `test_rows` rows of the training rows; the
    `test_share` of them that a hash of each question picks; the test, else validation, split of `data`; a share of
    0.1. A question that stands in a test split is a reject in training. `system`, `ask`, `shots` and `shots_as` say how
    a question is put (`fathom.tasks.prompting`). `workers` and `timeout_s` are MathsJudge's.

    `format` is the form found. `skipped` counts, by reason, the rows that the last `problems` did not give out. What is
    `declared` about a known data set is checked.
    """

    _shows_answers = False  # as examples, where there is no worked solution

    def __init__(
        self,
        data: str | Path,
        declared: Declared | None = None,
        *,
        test: str | Path | None = None,
        test_rows: int | None = None,
        test_share: float | None = None,
        config: str | None = None,
        split: str | None = None,
        revision: str | None = None,
        system: str = "",
        ask: str = "",
        shots: int = 0,
        shots_as: ShotsAs = "turns",
        final: str = "auto",
        workers: int = 1,
        timeout_s: float = 5.0,
    ) -> None:
        self.name = str(data)
        self.prompting = Prompting(system, ask, shots, shots_as)
        if final not in FINALS:
            raise UsageError(f"final={final!r:.80}: not a way to give an answer; use one of {', '.join(FINALS)}")
        self._final = final
        self._examples: list[Problem] | None = None
        self.left_out: list[tuple[Record, str]] = []  # rows that are no problems, and why
        if test is not None and not isinstance(test, str | Path):
            raise UsageError(f"test={test!r:.80}: must be a path; name the file of test problems")
        if split is not None and not isinstance(split, str):
            raise UsageError(f"{self.name}: split={split!r:.80}: must be text; name the split to train on")
        if sum(option is not None for option in (test, test_rows, test_share)) > 1:
            raise UsageError(
                f"{self.name}: give one of test, test_rows and test_share; they say the same thing differently"
            )
        if test_rows is not None and (isinstance(test_rows, bool) or not isinstance(test_rows, int) or test_rows < 1):
            raise UsageError(f"test_rows={test_rows!r:.80}: must be a whole number ≥ 1; give the rows to test on")
        self.test_rows = test_rows
        self.test_share = 0.1 if test_share is None else test_share
        share = self.test_share
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
            raise UsageError(f"test_share={test_share!r:.80}: must be ≥ 0 and < 1; give the share of rows to test on")
        found = locate(self.name, config, revision)
        parted = test_rows is not None or test_share is not None
        self.data, self.test, self.note = self._choose(found, test, parted, split)
        self._formats: dict[Path, Format] = {}
        self.format = " and ".join(dict.fromkeys(
            form for files in (self.data, self.test) if files for form in self._learn(files, declared)))
        self._skipped: dict[Split, Counter[str]] = {}
        self._where: dict[Split, list[str]] = {}
        self._judge = MathsJudge(workers, timeout_s)
        self._test_ids: frozenset[str] | None = None

    def _choose(
        self, found: datasets.DataFiles, test: str | Path | None, parted: bool, split: str | None
    ) -> tuple[tuple[Path, ...], tuple[Path, ...] | None, str]:
        """The files of the training rows and of the test rows (None: a part of the training rows), and a note."""
        note, tested = found.note, None
        if test is not None:
            apart = locate(str(test))
            tested = apart.test or apart.split("train")
        elif not parted and found.test != found.splits.get(split or "train"):
            tested = found.test
            note += "" if tested is None or "test" in found.splits else "; tested on its split validation"
        if test is None and tested is not None and split is None and "train" not in found.splits:
            return (), tested, note  # a data set to be tested on alone
        return found.split(split or "train"), tested, note

    def _learn(self, files: tuple[Path, ...], declared: Declared | None) -> Iterator[str]:
        """Finds out in which form the files are; each is read by the form that most of the first rows have."""
        forms = datasets.formats(self.name if len(files) > 1 else str(files[0]), files, ("problem",))
        if declared is not None and forms[0].name not in declared.forms:
            raise UsageError(f"{files[0]}: rows are {forms[0].name}, expected {' or '.join(declared.forms)}; name the "
                             "file alone as the task, without the data set that it is not")
        self._formats |= dict.fromkeys(files, forms[0])
        yield from (form.name for form in forms)

    @property
    def where(self) -> list[str]:
        """`file:row: reason` of the first rows that the last `problems` of each split did not give out."""
        return [line for lines in self._where.values() for line in lines]

    @property
    def apart(self) -> str:
        """How the test split is made where nobody said it: by a share of the rows; else nothing."""
        shared = self.test is None and self.test_rows is None and self.test_share
        return f"{100 * self.test_share:g} % of the rows are kept apart for test (test_share)" if shared else ""

    @property
    def skipped(self) -> Counter[str]:
        """How many rows, by reason, the last `problems` of each split did not give out."""
        return sum(self._skipped.values(), Counter())

    def problems(self, split: Split, limit: int | None = None, seed: int = 0) -> Iterator[Problem]:
        """The good rows of a split, each question once; in the file's order for seed 0, else in an order of the seed.

        Other orders are made within 50,000 problems at a time, so that a file need not fit into memory.
        """
        if split not in ("train", "test"):
            raise UsageError(f"split={split!r}: use train or test")
        if limit is not None and limit <= 0:
            return
        problems = self._good(split)
        if seed == 0:
            yield from islice(problems, limit)
            return
        left = limit
        while window := list(islice(problems, _SHUFFLED)):
            window.sort(key=lambda problem: hashlib.sha256(f"{seed} {problem.id}".encode()).digest())
            yield from window[:left]
            if left is not None and (left := left - len(window)) <= 0:
                return

    def _good(self, split: Split) -> Iterator[Problem]:
        seen: set[str] = set()
        skipped = self._skipped[split] = Counter()
        where = self._where[split] = []
        self.left_out.clear()
        for record in self.records(split):
            try:
                problem = self.parse(record)
                if problem.id in seen:
                    raise BadRow("question appeared before")
            except BadRow as bad:
                skipped[str(bad)] += 1
                if len(self.left_out) < _MOST_LEFT_OUT:
                    self.left_out.append((record, str(bad)))
                if len(where) < _SHOWN:
                    where.append(f"{record.source}: {bad}")
                continue
            seen.add(problem.id)
            yield self._put(problem)
        if not seen:
            raise FathomError(f"{self.name} ({self.format}): no {split} problems, rows left out: "
                              f"{dict(skipped) or 0}; give another file, or another share for the {split} split")

    def _put(self, problem: Problem) -> Problem:
        """The problem as it is asked: with system message, instruction and examples."""
        if not self.prompting:
            return problem
        prompt = self.prompting.put(problem.prompt, self._shown(problem.id))
        return replace(problem, prompt=prompt, meta={**problem.meta, QUESTION: problem.prompt[-1].text})

    def _shown(self, but: str) -> list[tuple[tuple[Message, ...], str]]:
        """The first training problems with a worked solution, without the problem `but` itself."""
        shots = self.prompting.shots
        if self._examples is None:
            self._examples = list(islice(self._solved(), shots + 1)) if shots else []
            if len(self._examples) < shots:
                raise UsageError(f"{self.name}: shots={shots}, but {len(self._examples)} training problems have a "
                                 "worked solution and are not among those that are asked; give fewer, or other "
                                 "training data")
        return [(one.prompt, one.solution or f"The answer is {one.answer}.") for one in self._examples
                if one.id != but][:shots]

    def _solved(self) -> Iterator[Problem]:
        for record in self.records("train"):
            with suppress(BadRow):  # counted where the training split itself is read
                if (problem := self.parse(record)).solution is not None or self._shows_answers:
                    yield problem

    def records(self, split: Split) -> Iterator[Record]:
        """Every row of a split as a Record, unreadable ones too; `parse` turns them into problems or says why not."""
        for record in self._split(split):
            if split == "train" and record.id in self._ids_of_test():
                yield Record(record.id, {**record.data, _IN_TEST: True}, record.source)
            else:
                yield record

    def parse(self, record: Record) -> Problem:
        """The problem in a record of `records`; BadRow(reason) where there is none."""
        if _IN_TEST in record.data:
            raise BadRow("question is in the test split")
        row = data_of(record)
        asked = form_of(row, self._formats[Path(record.source.rpartition(":")[0])]).problem(row)
        return Problem(record.id, asked.prompt, asked.answer, self.name, asked.solution, asked.meta)

    def judge(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """One verdict per (problem, completion text), by MathsJudge; a formula copied from the question is WRONG."""
        return self._judge.judge(
            [(problem.answer, text) for problem, text in items], self._final,
            questions=[question(problem) for problem, _ in items],
        )

    def close(self) -> None:
        """Ends the judging processes, if there are any."""
        self._judge.close()

    def _split(self, split: Split) -> Iterator[Record]:
        if self.test is not None:
            yield from self._records(self.test if split == "test" else self.data)
        elif self.test_rows is not None:
            last: deque[Record] = deque()
            for record in self._records(self.data):
                last.append(record)
                if len(last) > self.test_rows:
                    leaving = last.popleft()
                    if split == "train":
                        yield leaving
            if split == "test":
                yield from last
        else:
            for record in self._records(self.data):
                if (int(record.id[:8], 16) < self.test_share * 2**32) is (split == "test"):
                    yield record

    def _records(self, files: Sequence[Path]) -> Iterator[Record]:
        for path, row in datasets.rows(files):
            yield row.record(path, row.id if row.data is None else question_id(row.data, row.id))

    def _ids_of_test(self) -> frozenset[str]:
        if self._test_ids is None:
            apart = self.test is None and self.test_rows is None  # a hash of the question cannot put it in both
            self._test_ids = frozenset() if apart else frozenset(record.id for record in self._split("test"))
        return self._test_ids


def question(problem: Problem) -> str | None:
    """What was asked, without instruction and examples: else the text of the last message from the user."""
    if QUESTION in problem.meta:
        return str(problem.meta[QUESTION])
    return next((message.text for message in reversed(problem.prompt) if message.role == "user"), None)

r"""A user's own problem file as a task: GSM8K, MATH and plain forms, judged mathematically.

| form (printed as `.format`) | fields |
|---|---|
| gsm8k | question; answer: reasoning, then `#### 72` |
| question/answer, problem/answer, prompt/answer | the answer alone; prompt may be a list of chat messages |
| question/solution/answer | working and answer apart |
| problem/solution | MATH: the answer is the last `\boxed{…}` of the solution, or the field answer where there is one |

Rows that do not fit are rejects with a reason, never guesses.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import re
import zlib
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from fathom.core.chat import Message
from fathom.core.config import neighbour
from fathom.core.errors import FathomError, UsageError
from fathom.core.records import Record
from fathom.judge.extract import boxes
from fathom.judge.maths import LONGEST_ANSWER, MathsJudge, number
from fathom.judge.verdict import Verdict
from fathom.tasks.solutions import answer_format
from fathom.tasks.task import Problem, Split

LONGEST_LINE = 1 << 20  # bytes
_SHUFFLED = 50_000  # problems that are put into a seed's order at a time
_LOOKED_AT = 100  # rows that may be unreadable before the form is known
_CALCULATOR = re.compile(r"<<[^<>]*>>")  # GSM8K: "48/2 = <<48/2=24>>24"
_TAGS = re.compile(r"</?(?:think|answer)>")
_WRITTEN = re.compile(r"\s*<think>.*</think>\s*<answer>.*</answer>\s*", re.DOTALL)
_ASKED = ("question", "problem", "prompt")
_FIELDS = (*_ASKED, "solution", "answer")  # what a record keeps of a row
_BAD = "rejected"  # key of a record that stands for a row nobody could read
_log = logging.getLogger(__name__)


class BadRow(FathomError):
    """A row that gives no problem. The message is the reject's reason: short, stable, without the row's content."""


class FileTask:
    """Problems from one or two files (.jsonl, .jsonl.gz, .parquet).

    `data` is the training file. The test split is, in this order: the file `test`; the last `test_rows` rows of `data`;
    else the `test_share` of `data` that a hash of each question picks. A question that stands in a test file or among
    the test rows is a reject in training. `workers` and `timeout_s` are MathsJudge's.

    `format` is the form found in `data`. `skipped` counts, by reason, the rows that `problems` did not give out.
    """

    def __init__(
        self,
        data: str | Path,
        *,
        test: str | Path | None = None,
        test_rows: int | None = None,
        test_share: float | None = None,
        workers: int = 1,
        timeout_s: float = 5.0,
    ) -> None:
        self.name = str(data)
        if test is not None and not isinstance(test, str | Path):
            raise UsageError(f"test={test!r:.80}: must be a path; name the file of test problems")
        self.data, self.test = _file(data), None if test is None else _file(test)
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
        self.format = _format(self.data)
        self._formats = {self.data: self.format}
        if self.test is not None:
            self._formats[self.test] = _format(self.test)
        self.skipped: Counter[str] = Counter()
        self._judge = MathsJudge(workers, timeout_s)
        self._test_ids: frozenset[str] | None = None

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
        skipped: Counter[str] = Counter()
        for record in self.records(split):
            try:
                problem = self.parse(record)
                if problem.id in seen:
                    raise BadRow("question appeared before")
            except BadRow as bad:
                skipped[str(bad)] += 1
                self.skipped[str(bad)] += 1
                continue
            seen.add(problem.id)
            yield problem
        found = (
            f"{self.name} ({self.format}): {len(seen) or 'no'} {split} problems, rows left out: {dict(skipped) or 0}"
        )
        if not seen:
            raise FathomError(f"{found}; give another file, or another share for the {split} split")
        if skipped:
            _log.info(found)

    def records(self, split: Split) -> Iterator[Record]:
        """Every row of a split as a Record, unreadable ones too; `parse` turns them into problems or says why not."""
        for path, number_, record in self._split(split):
            if split == "train" and record.id in self._ids_of_test():
                yield Record(record.id, {_BAD: "question is in the test split"}, f"{path}:{number_}")
            else:
                yield record

    def parse(self, record: Record) -> Problem:
        """The problem in a record of `records`; BadRow(reason) where there is none."""
        row = record.data
        if isinstance(row.get(_BAD), str):
            raise BadRow(row[_BAD])
        path = Path(record.source.rpartition(":")[0])
        form = self._formats.get(path, self.format)
        prompt = _prompt(row)
        answer, solution = _READERS[form](row)
        if len(answer) > LONGEST_ANSWER:
            raise BadRow(f"answer is longer than {LONGEST_ANSWER} characters")
        return Problem(record.id, prompt, answer, self.name, solution)

    def judge(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """One verdict per (problem, completion text), by MathsJudge."""
        return self._judge.judge([(problem.answer, text) for problem, text in items])

    def close(self) -> None:
        """Ends the judging processes, if there are any."""
        self._judge.close()

    def _split(self, split: Split) -> Iterator[tuple[Path, int, Record]]:
        if self.test is not None:
            yield from _records(self.test if split == "test" else self.data)
        elif self.test_rows is not None:
            last: deque[tuple[Path, int, Record]] = deque()
            for row in _records(self.data):
                last.append(row)
                if len(last) > self.test_rows:
                    leaving = last.popleft()
                    if split == "train":
                        yield leaving
            if split == "test":
                yield from last
        else:
            for row in _records(self.data):
                if (int(row[2].id[:8], 16) < self.test_share * 2**32) is (split == "test"):
                    yield row

    def _ids_of_test(self) -> frozenset[str]:
        if self._test_ids is None:
            apart = self.test is None and self.test_rows is None  # a hash of the question cannot put it in both
            self._test_ids = frozenset() if apart else frozenset(row[2].id for row in self._split("test"))
        return self._test_ids


def _file(path: str | Path) -> Path:
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"{path}: a folder; name a file that ends in .jsonl, .jsonl.gz or .parquet")
    if not path.is_file():
        raise UsageError(f"{path}: no such file (from {Path.cwd()}){neighbour(path)}")
    if not path.name.endswith((".jsonl", ".jsonl.gz", ".parquet")):
        raise UsageError(f"{path}: problems are read from .jsonl, .jsonl.gz and .parquet; convert the file")
    return path


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Row number from 1 and the row, or a BadRow in its place."""
    if path.name.endswith(".parquet"):
        yield from enumerate(_parquet_rows(path), 1)
        return
    opener = gzip.open if path.name.endswith(".gz") else open
    with explained(path), cast(BinaryIO, opener(path, "rb")) as file:
        yield from _json_rows(file)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns what reading a line file may raise into a FathomError that names the file and the remedy."""
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise FathomError(f"{path}: damaged gzip data ({error}); fetch or pack the file again") from error
    except OSError as error:
        raise FathomError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error


def _json_rows(file: BinaryIO) -> Iterator[tuple[int, Any]]:
    line_number = 0
    while line := file.readline(LONGEST_LINE + 1):
        line_number += 1
        if len(line) > LONGEST_LINE:
            digest = hashlib.sha256(line)
            while line and not line.endswith(b"\n"):
                digest.update(line := file.readline(LONGEST_LINE))
            yield line_number, (digest.hexdigest(), BadRow("line is longer than 1 MiB"))
        elif line.strip():
            yield line_number, _json_row(line.removeprefix(b"\xef\xbb\xbf") if line_number == 1 else line)


def _json_row(line: bytes) -> Any:
    try:
        row = json.loads(line, parse_constant=_refuse)
    except UnicodeDecodeError:
        return hashlib.sha256(line).hexdigest(), BadRow("not UTF-8")
    except (ValueError, RecursionError):
        return hashlib.sha256(line).hexdigest(), BadRow("not JSON")
    return row if isinstance(row, dict) else (hashlib.sha256(line).hexdigest(), BadRow("not an object"))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():  # dates and bytes become text: a record is JSON
                    yield json.loads(json.dumps({name: row[name] for name in _FIELDS if name in row}, default=str))
    except (pa.ArrowException, OSError) as error:
        raise FathomError(f"{path}: not readable as Parquet ({error}); write it again") from error


def _records(path: Path) -> Iterator[tuple[Path, int, Record]]:
    for row_number, row in _rows(path):
        source = f"{path}:{row_number}"
        if isinstance(row, tuple):
            yield path, row_number, Record(row[0][:16], {_BAD: str(row[1])}, source)
            continue
        row = {name: row[name] for name in _FIELDS if name in row}
        question = next((row[name] for name in _ASKED if row.get(name) is not None), None)
        content = question.strip() if isinstance(question, str) and question.strip() else json.dumps(row, default=str)
        yield path, row_number, Record(hashlib.sha256(content.encode(errors="replace")).hexdigest()[:16], row, source)


def _format(path: Path) -> str:
    seen: list[str] = []
    for row_number, row in _rows(path):
        if isinstance(row, Mapping):
            seen = seen or list(row)
            if (form := _form_of(row)) is not None:
                return form
        if row_number >= _LOOKED_AT:
            break
    if not seen:
        raise UsageError(
            f"{path}: none of the first {_LOOKED_AT} lines is a JSON object; write one object per line, "
            "for example with the keys question and answer"
        )
    raise UsageError(
        f"{path}: rows have {', '.join(seen)[:200]}, which is no known form of problems; rename the keys to "
        "question and answer, problem and solution (with a box), prompt and answer, or question, solution and answer"
    )


def _form_of(row: Mapping[str, Any]) -> str | None:
    if "question" in row and "answer" in row:
        if "solution" in row:
            return "question/solution/answer"
        return "gsm8k" if "####" in str(row["answer"]) else "question/answer"
    if "problem" in row:
        return "problem/solution" if "solution" in row else "problem/answer" if "answer" in row else None
    return "prompt/answer" if "prompt" in row and "answer" in row else None


def _prompt(row: Mapping[str, Any]) -> tuple[Message, ...]:
    question = next((row[name] for name in _ASKED if row.get(name) is not None), None)
    if isinstance(question, list) and question:
        try:
            messages = tuple(Message.from_json(message) for message in question)
        except FathomError as error:
            raise BadRow("prompt is not a list of messages") from error
        if messages[-1].role != "user":
            raise BadRow("prompt does not end with the user")
        return messages
    return (Message("user", _text(question, "question")),)


def _text(value: Any, name: str) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool) and name == "answer":
        value = str(value)
    if not isinstance(value, str):
        raise BadRow(f"{name} is not text")
    if not value.strip():
        raise BadRow(f"{name} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRow(f"{name} is not UTF-8") from error
    return value.strip()


def _plain(row: Mapping[str, Any]) -> tuple[str, str | None]:
    return _text(row.get("answer"), "answer"), None


def _worked(row: Mapping[str, Any]) -> tuple[str, str | None]:
    answer = _text(row.get("answer"), "answer")
    return answer, _solution(_text(row.get("solution"), "solution"), answer)


def _gsm8k(row: Mapping[str, Any]) -> tuple[str, str | None]:
    working, mark, final = _text(row.get("answer"), "answer").rpartition("####")
    answer = final.strip()
    if not mark or not answer:
        raise BadRow("no answer after ####")
    if number(answer) is not None:
        answer = answer.replace(",", "")  # 79 of the 7,473 train answers have thousands commas
    return answer, _solution(_CALCULATOR.sub("", working).strip(), answer)


def _math(row: Mapping[str, Any]) -> tuple[str, str | None]:
    solution = _text(row.get("solution"), "solution")
    if row.get("answer") is not None:
        answer = _text(row["answer"], "answer")
    else:
        found = boxes(solution)
        if not found:
            raise BadRow("no boxed answer in the solution")
        answer = _text(found[-1], "answer")
    return answer, _solution(solution, answer)


def _solution(working: str, answer: str) -> str:
    if not _TAGS.search(working):
        return answer_format(working, answer)
    if len(_TAGS.findall(working)) == 4 and _WRITTEN.fullmatch(working):
        return working
    raise BadRow("solution has think or answer tags in disorder")


_READERS = {
    "gsm8k": _gsm8k,
    "question/answer": _plain,
    "problem/answer": _plain,
    "prompt/answer": _plain,
    "question/solution/answer": _worked,
    "problem/solution": _math,
}

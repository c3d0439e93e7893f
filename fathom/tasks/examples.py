"""Sources of examples: tasks with worked solutions, chats and texts in files, records of earlier stages."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from fathom.core.chat import Message
from fathom.core.errors import FathomError, Stopped, UsageError
from fathom.core.records import Ledger, Record, RecordStore
from fathom.tasks.maths import BadRow, FileTask, explained
from fathom.tasks.task import Problem, Task, load_task

LONGEST_LINE = 1 << 20

Example = tuple[Message, ...] | str  # a chat, or a plain text


class Source(Protocol):
    """Something that gives records, and turns each into an example or says why not."""

    name: str
    form: str  # the format found, printed for the user

    def records(self) -> Iterator[Record]: ...
    def example(self, record: Record) -> Example:
        """The record as a chat or a text; raises BadRow with a reason that is the same for the same cause."""
        ...


def load_source(spec: str | Mapping[str, Any], seed: int) -> Source:
    """The source that a recipe names under `data`.

    A task (see `load_task`) gives its training problems with their worked solutions; the option `count` limits them and
    `use: solution` takes the solution alone as a text. A file (.jsonl, .jsonl.gz) with `messages`, `text` or
    `prompt`/`completion` rows, or with problems. A directory of an earlier stage gives the records that it kept.
    """
    options = {"task": spec} if isinstance(spec, str) else dict(spec)
    count = options.pop("count", None)
    use = options.pop("use", "chat")
    if use not in ("chat", "solution"):
        raise UsageError(f"use={use!r}: use chat (prompt and solution) or solution (its text alone)")
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise UsageError(f"count={count!r}: how many examples to take, a whole number from 1")
    name = options.get("task", options.get("data"))
    if isinstance(name, str) and (Path(name) / "records").is_dir():
        return StageSource(Path(name), count)
    if isinstance(name, str) and name.endswith((".jsonl", ".jsonl.gz")) and (form := _form(Path(name))) is not None:
        return ChatFile(Path(name), form, count)
    task = load_task(options)
    if isinstance(task, FileTask):
        return ProblemFile(task, count, use)
    if count is None:
        raise UsageError(f"data {name!r}: this task has no end; write how many as {{task: {name}, count: 1000}}")
    return TaskSource(task, count, seed, use)


def _solved(problem: Problem, use: str) -> Example:
    if problem.solution is None:
        raise BadRow("no worked solution")
    if use == "solution":
        return problem.solution
    return (*problem.prompt, Message("assistant", problem.solution))


class TaskSource:
    """The first `count` training problems of a task, each with its worked solution."""

    def __init__(self, task: Task, count: int, seed: int, use: str):
        self.name, self.form = task.name, "problems with worked solutions"
        self._task, self._count, self._seed, self._use = task, count, seed, use

    def records(self) -> Iterator[Record]:
        for problem in self._task.problems("train", self._count, self._seed):
            yield Record(problem.id, problem.to_json(), self.name)

    def example(self, record: Record) -> Example:
        return _solved(Problem.from_json(record.data), self._use)


class ProblemFile:
    """The training rows of a problem file; rows that are no problems are rejected by name."""

    def __init__(self, task: FileTask, count: int | None, use: str):
        apart = "" if task.test or task.test_rows or not task.test_share else (
            f"; {100 * task.test_share:g} % of the rows are kept apart for test (test_share)")
        self.name, self.form = task.name, f"problems ({task.format}){apart}"
        self._task, self._count, self._use = task, count, use

    def records(self) -> Iterator[Record]:
        return islice(self._task.records("train"), self._count)

    def example(self, record: Record) -> Example:
        return _solved(self._task.parse(record), self._use)


class ChatFile:
    """A JSONL file of chats (`messages`, or `prompt` and `completion`) or of plain `text`."""

    def __init__(self, path: Path, form: str, count: int | None):
        self.name, self.form, self._path, self._count = str(path), form, path, count

    def records(self) -> Iterator[Record]:
        for line in islice(_lines(self._path), self._count):
            name = hashlib.sha256(line).hexdigest()[:16]
            yield Record(name, {"line": line[:LONGEST_LINE].decode("utf-8", "replace")}, self.name)

    def example(self, record: Record) -> Example:
        text = record.data["line"]
        if len(text) >= LONGEST_LINE:
            raise BadRow("line longer than 1 MiB")
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            raise BadRow("not JSON") from None
        if not isinstance(row, dict):
            raise BadRow("not a JSON object")
        return example_of(row)


class StageSource:
    """What an earlier stage kept: records with `messages`."""

    def __init__(self, directory: Path, count: int | None):
        self.name, self.form, self._directory, self._count = str(directory), "records of a stage", directory, count

    def records(self) -> Iterator[Record]:
        for record in islice(RecordStore(self._directory / "records").kept(), self._count):
            yield Record(record.id, record.data, self.name)

    def example(self, record: Record) -> Example:
        return example_of(record.data)


def example_of(row: Mapping[str, Any]) -> Example:
    """A row with `messages`, `text` or `prompt`/`completion` as an example; BadRow says what is wrong with it."""
    if "messages" in row:
        messages = row["messages"]
        if not isinstance(messages, list) or not messages:
            raise BadRow("messages is not a list of turns")
        try:
            chat = tuple(Message.from_json(m) for m in messages)
        except FathomError:
            raise BadRow("a message is malformed") from None
        if not any(m.role == "assistant" and m.text.strip() for m in chat):
            raise BadRow("no assistant turn")
        for message in chat:
            _encodable(message.text, "a message")
        return chat
    if "text" in row:
        return _text(row["text"], "text")
    if "prompt" in row and "completion" in row:
        return (
            Message("user", _text(row["prompt"], "prompt")),
            Message("assistant", _text(row["completion"], "completion")),
        )
    raise BadRow("no messages, text or prompt and completion")


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"{name} is not text")
    if not value.strip():
        raise BadRow(f"{name} is empty")
    _encodable(value, name)
    return value


def _encodable(text: str, name: str) -> None:
    """Refuses half a surrogate pair, which JSON can spell and no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRow(f"{name} is not UTF-8") from None


def _lines(path: Path) -> Iterator[bytes]:
    opener = gzip.open if path.suffix == ".gz" else open
    with explained(path), opener(path, "rb") as file:
        while line := file.readline(LONGEST_LINE + 1):
            if len(line) > LONGEST_LINE:  # the rest of a line that is too long is skipped, the line is not
                while line[-1:] != b"\n" and (rest := file.readline(LONGEST_LINE)):
                    line = line[:LONGEST_LINE] + rest[-1:]
            if line.strip():
                yield line


def _form(path: Path) -> str | None:
    """The chat or text format of the file's first readable row; None leaves it to the problem formats."""
    if not path.is_file():
        return None
    for line in islice(_lines(path), 100):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            if "messages" in row:
                return "messages"
            if "prompt" in row and "completion" in row:
                return "prompt/completion"
            return "text" if "text" in row and "question" not in row else None
    return None


def gather(
    store: RecordStore, specs: Sequence[str | Mapping[str, Any]], seed: Callable[[int], int],
    make: Callable[[Example], dict[str, Any]], log: logging.Logger, stop: Callable[[], str | None],
) -> Ledger:
    """Every record of every source into the store: what `make` makes of its example, or a reject; the ledger, checked.

    `make` raises BadRow for what it cannot use. Records already in the store are not touched: a killed stage goes on.
    `stop` gives a reason to stop, or None: Stopped then, what is done being saved.
    The entries of `specs` are told apart by number, since two may name the same problems with different solutions.
    """
    sources = [load_source(spec, seed(number)) for number, spec in enumerate(specs)]

    def records() -> Iterator[Record]:
        for number, source in enumerate(sources):
            log.info("data %d: %s, read as %s", number, source.name, source.form)
            for record in source.records():
                yield Record(f"{number}:{record.id}", record.data, record.source)

    with store:
        for record in store.todo(records()):
            if reason := stop():
                raise Stopped(f"stopped while preparing data ({reason}); the same command continues")
            number, _, name = record.id.partition(":")
            try:
                made = make(sources[int(number)].example(Record(name, record.data, record.source)))
            except BadRow as bad:
                store.reject(record, str(bad))
            else:
                store.done(record, [record.child(0, made)])
    ledger = store.ledger()
    ledger.check()
    log.info("data: %s", ledger)
    return ledger

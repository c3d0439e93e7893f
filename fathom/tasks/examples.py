"""Sources of examples: tasks with worked solutions, chats and texts in files, records of earlier stages."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from fathom.core.chat import Message
from fathom.core.errors import Stopped, UsageError
from fathom.core.records import Ledger, Record, RecordStore
from fathom.tasks import datasets, hub
from fathom.tasks.formats import FORMATS, Example, Format, form_of
from fathom.tasks.maths import FileTask
from fathom.tasks.rows import BadRow, data_of
from fathom.tasks.task import Problem, Task, load_task

__all__ = ["BadRow", "Example", "Source", "gather", "load_source"]


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
    `use: solution` takes the solution alone as a text. Files, directories and hub names whose rows are chats or texts
    give these, of the split `split` (train); `config` and `revision` say which. A directory of an earlier stage gives
    the records that it kept.
    """
    options = {"task": spec} if isinstance(spec, str) else dict(spec)
    count = options.pop("count", None)
    use = options.pop("use", "chat")
    if use not in ("chat", "solution"):
        raise UsageError(f"use={use!r}: use chat (prompt and solution) or solution (its text alone)")
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise UsageError(f"count={count!r}: how many examples to take, a whole number from 1")
    name = options.get("task", options.get("data"))
    if isinstance(name, str) and hub.is_stage(name):
        if unknown := sorted(options.keys() - {"task" if "task" in options else "data"}):
            raise UsageError(f"{name}: {unknown[0][:80]}: what a stage kept has no such "
                             "option; there is count: leave it out")
        return StageSource(Path(name), count)
    readable = isinstance(name, str) and use == "chat" and hub.is_data(name) and name not in hub.DECLARED
    if readable and (chats := _chat_files(str(name), options, count)) is not None:
        return chats
    task = load_task(options)
    if isinstance(task, FileTask):
        return ProblemFile(task, count, use)
    if count is None:
        raise UsageError(f"data {name!r}: this task has no end; write how many as {{task: {name}, count: 1000}}")
    return TaskSource(task, count, seed, use)


def _chat_files(name: str, options: Mapping[str, Any], count: int | None) -> ChatFiles | None:
    """The files as chats and texts; None where most of their rows are problems."""
    found = hub.locate(name, options.get("config"), options.get("revision"))
    split = options.get("split", "train")
    if split == "train" and split not in found.splits and found.test is not None:
        return None  # a task says better that there is nothing to train on
    files = found.split(str(split))
    forms = datasets.formats(name, files, ("chat", "problem"))
    if forms[0].kind == "problem":
        return None
    if unknown := sorted(options.keys() - {"task" if "task" in options else "data", "config", "revision", "split"}):
        raise UsageError(f"{name}: {unknown[0][:80]}: rows are {forms[0].name}, which have no such option; there are "
                         "count, config, split and revision: leave it out")
    return ChatFiles(name, files, [form for form in forms if form.kind == "chat"], found.note, count)


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
        apart = f"; {task.apart}" if task.apart else ""
        self.name, self.form = task.name, f"problems ({task.format}){apart}{task.note}"
        self._task, self._count, self._use = task, count, use

    def records(self) -> Iterator[Record]:
        return islice(self._task.records("train"), self._count)

    def example(self, record: Record) -> Example:
        return _solved(self._task.parse(record), self._use)


class ChatFiles:
    """Chats and plain texts in files, in any chat format of `fathom.tasks.formats`."""

    def __init__(self, name: str, files: Sequence[Path], forms: Sequence[Format], note: str, count: int | None):
        self.name, self.form = name, " and ".join(form.name for form in forms) + note
        self._files, self._usual, self._count = files, forms[0], count

    def records(self) -> Iterator[Record]:
        for path, row in islice(datasets.rows(self._files), self._count):
            yield row.record(path, row.id)

    def example(self, record: Record) -> Example:
        row = data_of(record)
        return form_of(row, self._usual).example(row)


class StageSource:
    """What an earlier stage kept: records with `messages`, or another chat format."""

    def __init__(self, directory: Path, count: int | None):
        self.name, self.form, self._directory, self._count = str(directory), "records of a stage", directory, count

    def records(self) -> Iterator[Record]:
        for record in islice(RecordStore(self._directory / "records").kept(), self._count):
            yield Record(record.id, record.data, self.name)

    def example(self, record: Record) -> Example:
        return form_of(record.data, FORMATS[0]).example(record.data)


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

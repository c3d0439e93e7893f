"""Problems, tasks and scores: what is asked, who judges it, and what the judgements add up to."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from fathom.core.chat import Message
from fathom.core.errors import UsageError
from fathom.judge.own import load_object
from fathom.judge.verdict import Outcome, Verdict
from fathom.tasks.statistics import (
    Difference,
    maj_at_k,
    paired_difference,
    pass_at_k,
    share_interval,
    wilson,
)

if TYPE_CHECKING:
    from fathom.tasks.hub import Declared

__all__ = [
    "Difference",
    "Problem",
    "Score",
    "Task",
    "load_task",
    "maj_at_k",
    "paired_difference",
    "pass_at_k",
    "wilson",
]

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Problem:
    """One question with its answer. `id` comes from the content; `solution` is a full completion to learn from.

    `meta` is JSON-able and holds what the task needs to judge, so that a resumed run can.
    """

    id: str
    prompt: tuple[Message, ...]
    answer: str
    task: str
    solution: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The problem as a JSON value; `from_json` restores an equal one."""
        prompt = [message.to_json() for message in self.prompt]
        return {
            "id": self.id,
            "prompt": prompt,
            "answer": self.answer,
            "task": self.task,
            "solution": self.solution,
            "meta": self.meta,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Problem:
        """Reads what `to_json` wrote."""
        prompt = tuple(Message.from_json(message) for message in value["prompt"])
        return cls(value["id"], prompt, value["answer"], value["task"], value.get("solution"), dict(value["meta"]))


@runtime_checkable
class Task(Protocol):
    """A source of problems that can judge answers to them."""

    name: str

    def problems(self, split: Split, limit: int | None = None, seed: int = 0) -> Iterator[Problem]:
        """At most `limit` different problems; depends on the arguments alone, in the same order every time."""
        ...

    def judge(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """One verdict per (problem, completion text), in order."""
        ...


def load_task(spec: str | Mapping[str, Any]) -> Task:
    """The task that a recipe names.

    "gym:NAME" is a reasoning-gym task; a data file, a directory of them, "hub:OWNER/NAME", "gsm8k" and "math" are
    problem files; "code:DATA", or "code" with the option `data`, is such data with programming problems;
    a benchmark's name (`fathom.tasks.benchmarks`) is the published set, or local files of its form with `data`;
    "my_package.module:thing" is anybody's own, either a Task or something that returns one when called with the
    options. A mapping {"task": name, **options} passes options; for files {"data": path, ...} may stand without "task",
    and with gsm8k or math `data` and `test` name local files to read in the data set's place.
    """
    options = {"task": spec} if isinstance(spec, str) else dict(spec)
    name = options.pop("task", None)
    if name is None and "data" in options:
        name = options.pop("data")
    if not isinstance(name, str) or not name.strip():
        raise UsageError(
            f"task={name!r:.80}: no task's name; name a task like gym:chain_sum, path/to/problems.jsonl or "
            "my_package.module:thing"
        )
    if name.startswith("gym:"):
        from fathom.tasks.gym import GymTask

        return GymTask(name.removeprefix("gym:"), **options)  # it refuses unknown options itself
    from fathom.tasks import hub
    from fathom.tasks.rows import SUFFIXES

    if name == "code" or name.startswith(hub.CODE):
        from fathom.tasks.code import CodeTask

        return CodeTask.load(name, options)
    from fathom.tasks.benchmarks import BENCHMARKS, CODE_BENCHMARKS, NOT_JUDGED

    if name in BENCHMARKS:
        from fathom.tasks.benchmark_task import BenchmarkTask

        check_options(name, options, BenchmarkTask, "a benchmark")
        return BenchmarkTask(name, **options)
    from fathom.tasks import polyglot

    if polyglot.language_of(name):
        check_options(name, options, polyglot.PolyglotTask, "a task of HumanEval in other languages")
        return polyglot.PolyglotTask(name, **options)
    if name in CODE_BENCHMARKS:
        from fathom.tasks.code import CodeTask

        repository, config = CODE_BENCHMARKS[name]
        options = {"data": f"{hub.PREFIX}{repository}", **({} if "data" in options else {"config": config}), **options}
        task = CodeTask.load("code", {key: value for key, value in options.items() if value is not None})
        task.name = name
        return task
    if name in NOT_JUDGED:
        raise UsageError(f"{name}: cannot be judged here: {NOT_JUDGED[name]}")
    if hub.is_data(name):
        return _file_task(name, hub.DECLARED.get(name), options)
    if ":" not in name:
        raise UsageError(
            f"{name}: no such task; {_near(name)}a task is "
            f"{', '.join((*hub.DECLARED, *BENCHMARKS, *CODE_BENCHMARKS))}, gym:NAME, code:DATA, hub:OWNER/NAME, a "
            f"directory of data, a file that ends in {', '.join(SUFFIXES)}, or my_package.module:thing"
        )
    thing = load_object(name, "task")
    if isinstance(thing, type) or not isinstance(thing, Task):
        if not callable(thing):
            raise UsageError(f"{name}: neither a Task nor something that makes one; it is a {type(thing).__name__}")
        thing = thing(**options)
    elif options:
        raise UsageError(f"{name}: is a Task already and takes no options; got {', '.join(options)}")
    if not isinstance(thing, Task):
        raise UsageError(
            f"{name}: a task has name, problems(split, limit, seed) and judge(items); {thing!r:.80} has not"
        )
    return thing


def _near(name: str) -> str:
    from fathom.tasks.benchmarks import BENCHMARKS, CODE_BENCHMARKS

    near = difflib.get_close_matches(name, (*BENCHMARKS, *CODE_BENCHMARKS), n=1)
    return f"did you mean {near[0]}? " if near else ""


def check_options(name: str, options: Mapping[str, Any], kind: type, what: str) -> None:
    """Raises UsageError for an option of the task `name` that its class `kind`, called `what`, does not take."""
    own = list(kind.__init__.__kwdefaults__ or ())  # type: ignore[misc]
    if unknown := [option for option in options if option not in own]:
        near = difflib.get_close_matches(unknown[0], own, n=1)
        hint = f"did you mean {near[0]}?" if near else f"{what} has {', '.join(own)}"
        raise UsageError(f"{name}: {unknown[0][:80]}: no such option; {hint}")


def _file_task(name: str, declared: Declared | None, options: dict[str, Any]) -> Task:
    from fathom.tasks.maths import FileTask

    data = options.pop("data", options.get("test", name)) if declared is not None else name
    check_options(name, options, FileTask, "a problem file")
    if not isinstance(data, str):
        raise UsageError(f"{name}: data={data!r:.80}: must be a path; name the file of training problems")
    task = FileTask(data, declared, **options)
    task.name = name
    return task


@dataclass(frozen=True)
class Score:
    """What a model reached on one task. Every sample that was asked counts in `accuracy`, judged or not.

    `range` runs from all failed samples being wrong to all being right; `low` and `high` bound `accuracy` at 95 %
    (Wilson; with several samples per problem for as many trials as have the variance found between problems).
    """

    problems: int
    samples: int
    right: int
    wrong: int
    unread: int
    failed: int
    low: float
    high: float

    @classmethod
    def of(cls, verdicts: Sequence[Sequence[Verdict]]) -> Score:
        """The score over one inner sequence of verdicts per problem; problems weigh equally only with equal samples."""
        groups = [list(group) for group in verdicts]
        if not groups or not all(groups):
            raise UsageError(f"score over {len(groups)} problems: needs at least one problem and one sample for each")
        counts = dict.fromkeys(Outcome, 0)
        for group in groups:
            for verdict in group:
                counts[verdict.outcome] += 1
        samples, right = sum(counts.values()), counts[Outcome.RIGHT]
        if samples == len(groups):
            low, high = wilson(right, samples)
        else:
            low, high = share_interval(
                [sum(v.outcome is Outcome.RIGHT for v in group) for group in groups], [len(group) for group in groups])
        return cls(
            len(groups),
            samples,
            right,
            counts[Outcome.WRONG],
            counts[Outcome.UNREAD],
            counts[Outcome.FAILED],
            low,
            high,
        )

    @property
    def accuracy(self) -> float:
        """Right over all asked."""
        return self.right / self.samples

    @property
    def range(self) -> tuple[float, float]:
        """[right / all, (right + failed) / all]."""
        return self.accuracy, (self.right + self.failed) / self.samples

    @property
    def unread_share(self) -> float:
        """Samples without an answer that could be read, over all asked."""
        return self.unread / self.samples

    @property
    def failed_share(self) -> float:
        """Samples that our judge could not judge, over all asked; above 1 % the score is not to be trusted."""
        return self.failed / self.samples

    def __str__(self) -> str:
        low, high = self.range
        percents = f"{100 * low:.1f}–{100 * high:.1f} %" if self.failed else f"{100 * low:.1f} %"
        missing = f", {self.failed} not judged" if self.failed else ""
        unread = f", {self.unread} unread" if self.unread else ""
        return (
            f"{self.right}/{self.samples} right{unread}{missing} ({percents}; "
            f"95 % interval {100 * self.low:.1f}–{100 * self.high:.1f} %)"
        )

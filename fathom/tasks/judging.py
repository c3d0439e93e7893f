"""Asking problems in a named order and judging what came back: shared by every system that samples."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from fathom.core.chat import Completion
from fathom.core.errors import FathomError
from fathom.core.journal import Journal
from fathom.judge.rewards import Answered, Rewards, total
from fathom.judge.verdict import Outcome, Verdict
from fathom.tasks.maths import FileTask
from fathom.tasks.task import Problem, Task


class Problems:
    """Training problems of several tasks in turn, as many as are asked for; `state` and `restore` continue the row.

    A task that runs out begins anew with the next seed: another order or, where the task draws, other problems.
    """

    def __init__(self, tasks: Sequence[Task], seed: int):
        self.tasks, self._seed, self.taken = tasks, seed, 0
        self._peeked: deque[Problem] = deque()
        self._rows = [self._row(task) for task in tasks]

    def _row(self, task: Task) -> Iterator[Problem]:
        epoch = 0
        while True:
            empty = True
            for problem in task.problems("train", seed=self._seed + epoch):
                empty = False
                yield problem
            if empty:
                raise FathomError(f"{task.name}: 0 training problems; check its options and its rejects")
            epoch += 1

    def take(self, n: int) -> list[Problem]:
        """The next `n` problems."""
        self.peek(n)
        self.taken += n
        return [self._peeked.popleft() for _ in range(n)]

    def peek(self, n: int) -> list[Problem]:
        """The same, not taken yet: `state` does not count them."""
        while len(self._peeked) < n:
            self._peeked.append(next(self._rows[(self.taken + len(self._peeked)) % len(self._rows)]))
        return list(islice(self._peeked, n))

    def state(self) -> dict[str, Any]:
        """How many problems were taken."""
        return {"taken": self.taken}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on after as many problems as `state` says."""
        self._rows = [self._row(task) for task in self.tasks]
        self._peeked.clear()
        self.taken = 0
        while self.taken < state["taken"]:
            self.take(min(1024, state["taken"] - self.taken))


def tell_left_out(tasks: Sequence[Task], log: logging.Logger) -> None:
    """Says of each problem file how many rows are no problems and why, then where the first of them stand."""
    for task in tasks:
        if isinstance(task, FileTask) and task.skipped:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in task.skipped.most_common())
            log.warning("%s: %d rows are no problems and are left out: %s", task.name, task.skipped.total(), reasons)
            for line in task.where:
                log.warning("%s", line)


def judge_groups(
    tasks: Sequence[Task], asked: Sequence[Problem], groups: Sequence[Sequence[Completion]], journal: Journal | None
) -> list[list[Verdict]]:
    """One verdict per completion. Verdicts in the journal are used again, so a replayed step is judged as it was.

    What a task's judge raises makes FAILED of the items that raise alone; where all do, it is an error with its name.
    """
    by_name = {task.name: task for task in tasks}
    flat = [(problem, c.text) for problem, group in zip(asked, groups, strict=True) for c in group]
    keys = [Journal.key("verdict", problem.task, problem.id, problem.answer, text) for problem, text in flat]
    known: dict[str, Verdict] = {}
    if journal is not None:
        for key in dict.fromkeys(keys):
            if (stored := journal.get(key)) is not None:
                known[key] = Verdict.from_json(stored)
    for name, task in by_name.items():
        fresh = {key: item for key, item in zip(keys, flat, strict=True) if key not in known and item[0].task == name}
        verdicts = dict(zip(fresh, judged(task, list(fresh.values())), strict=True)) if fresh else {}
        known |= verdicts
        if journal is not None:
            journal.put_many({key: verdict.to_json() for key, verdict in verdicts.items()})
    row = iter(keys)
    return [[known[key] for key in islice(row, len(group))] for group in groups]


def judged(task: Task, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
    """The task's verdicts. Where its judge raises, each item is tried alone, and those that raise alone are FAILED."""
    try:
        verdicts = list(task.judge(items))
    except FathomError:
        raise
    except Exception as error:  # anybody's own judge can raise anything
        if len(items) == 1:
            raise FathomError(f"{task.name}: its judge {_said(error)}; mend the task") from error
        return _one_by_one(task, items)
    if len(verdicts) != len(items):
        raise FathomError(f"{task.name}: {len(verdicts)} verdicts for {len(items)} completions; return one for each")
    for verdict in verdicts:
        if not isinstance(verdict, Verdict):
            raise FathomError(f"{task.name}: its judge returned {verdict!r:.80}; return a Verdict for each completion")
    return verdicts


def _one_by_one(task: Task, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
    verdicts, raised = [], []
    for item in items:
        try:
            verdicts += judged(task, [item])
        except FathomError as error:
            if error.__cause__ is None:
                raise
            raised.append(error)
            verdicts.append(Verdict.failed(f"judge raised {type(error.__cause__).__name__}"))
    if len(raised) == len(items):
        raise raised[0]
    return verdicts


def _said(error: Exception) -> str:
    return f"raised {type(error).__name__}: {str(error)[:200]}"


def answered_group(
    problem: Problem, group: Sequence[Completion], verdicts: Sequence[Verdict], limit: int
) -> list[Answered]:
    """A problem's completions with their verdicts, as rewards and judges of steps are given them."""
    return [Answered(problem.prompt, c.text, verdict, c.finish, len(c.tokens), limit, f"{problem.task}:{problem.id}")
            for c, verdict in zip(group, verdicts, strict=True)]


def reward_groups(
    rewards: Rewards,
    asked: Sequence[Problem],
    groups: Sequence[Sequence[Completion]],
    verdicts: Sequence[Sequence[Verdict]],
    limit: int,
    journal: Journal | None,
    log: logging.Logger,
) -> tuple[list[list[float | None]], list[list[dict[str, float | None]]], int]:
    """The weighted reward of every completion, None where a part could not be judged, its parts by name, and a count.

    The count is of completions whose judge failed, or on which a reward of the user's own broke; why is logged.
    `limit` is the most tokens of a completion. Values in the journal are used again: what was killed at its time limit
    is None in the replay too.
    """
    answered = [
        one for problem, group, judged in zip(asked, groups, verdicts, strict=True)
        for one in answered_group(problem, group, judged, limit)
    ]
    key = Journal.key("rewards", rewards.given, [one.to_json() for one in answered])
    stored = journal.get(key) if journal is not None else None
    if stored is None:
        parts, broken = rewards.parts(answered), rewards.broken()
        for name, places in broken.items():
            said = ", ".join(f"{reason} ({count})" for reason, count in Counter(places.values()).most_common())
            log.warning("reward %s: %d of %d completions have none: %s", name, len(places), len(answered), said)
        stored = [parts, sorted({place for places in broken.values() for place in places})]
        if journal is not None:
            journal.put(key, stored)
    parts, lost = stored
    failed = sum(one.verdict.outcome is Outcome.FAILED or i in lost for i, one in enumerate(answered))
    sums = iter(total(parts, rewards.weights))
    each = iter([{name: values[i] for name, values in parts.items()} for i in range(len(answered))])
    return (
        [list(islice(sums, len(group))) for group in groups],
        [list(islice(each, len(group))) for group in groups],
        failed,
    )

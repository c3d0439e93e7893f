"""Endless procedural problems from reasoning-gym, with numbers that training never sees."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import importlib
import importlib.util
import json
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fathom.core.chat import Message
from fathom.core.errors import FathomError, UsageError
from fathom.judge.extract import Unread, extract
from fathom.judge.maths import judge_number
from fathom.judge.pool import Broken, Pool
from fathom.judge.verdict import Verdict
from fathom.tasks.gym_answers import REFUSED, unsafe
from fathom.tasks.solutions import SOLVED_BY_HAND, evaluate, expression_of, manner_of, worked
from fathom.tasks.task import Problem, Split

_INTEGER = re.compile(r"-?(?:0|[1-9]\d*)")
_NUMBERS = re.compile(r"\d+")
_FIRST_SIZE = 4096  # declared size of the data set; it grows as indices run past it
_IDLE = 2_000_000  # this many draws in a row without a new problem, or
_AGAIN = 20_000  # this many acceptable ones that were all known: there are no more
_LONGEST_ANSWER = 20_000
_RIGHT_FROM = 0.99
_log = logging.getLogger(__name__)


class GymTask:
    """One reasoning-gym task: `GymTask("chain_sum", min_terms=2, hold_out=0.1, think="steps")`.

    Options are the data set's own settings and three of ours:
    hold_out: share of the integers that training never sees. Train problems use none of them, test problems use only
        them, at least two. At 0 the splits differ by seed alone and may overlap.
    numbers: [least, most]: only problems whose whole numbers all lie in this range.
    think: how worked solutions are written: steps, columns, direct, or two of them as columns/direct, half and half;
        without it there are none.
    timeout_s: seconds that the data set's own judge may take for one answer.

    `skipped` counts, by reason, the drawn problems that were not given out by this object.
    """

    def __init__(
        self, task: str, *, hold_out: float = 0.0, numbers: Sequence[int] | None = None, think: str | None = None,
        timeout_s: float = 5.0, **options: Any,
    ) -> None:
        self.gym, self.name = task, f"gym:{task}"
        self.hold_out, self.think, self.options = hold_out, think, options
        self.skipped: Counter[str] = Counter()
        if isinstance(hold_out, bool) or not isinstance(hold_out, int | float) or not 0 <= hold_out < 1:
            raise UsageError(f"hold_out={hold_out!r:.80}: must be ≥ 0 and < 1; give the share of integers to hold out")
        if numbers is not None and not (
            isinstance(numbers, list | tuple) and len(numbers) == 2
            and all(isinstance(n, int) and not isinstance(n, bool) for n in numbers) and 0 <= numbers[0] <= numbers[1]
        ):
            raise UsageError(f"numbers={numbers!r}: must be the least and the most, both ≥ 0; write numbers: [10, 99]")
        self.numbers = None if numbers is None else (numbers[0], numbers[1])
        if think is not None:
            manner_of("", think)
        if think is not None and task not in SOLVED_BY_HAND:
            raise UsageError(
                f"think={think}: {self.name} has no worked solutions; "
                f"those that have: {', '.join('gym:' + name for name in SOLVED_BY_HAND)}"
            )
        if task in REFUSED:
            raise UsageError(f"{self.name}: not offered: {REFUSED[task]}")
        _config(task, options)
        self._pool = Pool("fathom.tasks.gym:score", timeout_s=timeout_s)

    def problems(self, split: Split, limit: int | None = None, seed: int = 0) -> Iterator[Problem]:
        """Different problems of a split, at most `limit`; without one they end only where the task runs out.

        The same arguments give the same problems in the same order. FathomError where there is none at all.
        """
        if split not in ("train", "test"):
            raise UsageError(f"split={split!r}: use train or test")
        base = int.from_bytes(hashlib.sha256(f"{self.name} {split} {seed}".encode()).digest()[:4]) >> 1
        options = json.dumps(self.options)
        seen: set[str] = set()
        size, index, idle, again = _FIRST_SIZE, 0, 0, 0
        dataset = _dataset(self.gym, options, base, size)
        while (limit is None or len(seen) < limit) and idle < _IDLE and again < _AGAIN:
            if index >= size:
                size *= 4
                dataset = _dataset(self.gym, options, base, size)
            drawn = {"seed": base, "size": size, "index": index, "options": self.options}
            problem = self._problem(dataset[index], split, drawn)
            index, idle = index + 1, idle + 1
            if problem is None:
                continue
            if problem.id in seen:
                self.skipped["drawn before"] += 1
                again += 1
                continue
            seen.add(problem.id)
            idle = again = 0
            yield problem
        if not seen and limit != 0:
            raise FathomError(
                f"{self.name}: no {split} problem among {index} drawn (hold_out={self.hold_out:g}, "
                f"skipped: {dict(self.skipped)}); allow larger numbers, or change hold_out"
            )
        if limit is not None and len(seen) < limit:
            _log.warning("%s: only %d different %s problems, %d were asked for", self.name, len(seen), split, limit)

    def _problem(self, entry: Mapping[str, Any], split: Split, meta: dict[str, Any]) -> Problem | None:
        question, answer = entry["question"], entry["answer"]
        if self.numbers and not all(self.numbers[0] <= int(n) <= self.numbers[1] for n in _NUMBERS.findall(question)):
            self.skipped["numbers out of range"] += 1
            return None
        if self.hold_out and not self._belongs(question, split):
            self.skipped["kept apart by hold_out"] += 1
            return None
        name, solution = question_id(question), None
        if self.gym in SOLVED_BY_HAND:
            # reasoning-gym 0.1.25 without brackets works basic_arithmetic from left to right: "2 + 3 * 4" is stored as
            # 20, and its "/" answers belong to another expression. Wrong answers are not taught.
            try:
                right = str(evaluate(expression_of(question))[0]) == answer
            except FathomError:
                right = False
            if not right:
                self.skipped["stored answer is wrong"] += 1
                return None
            if self.think is not None:
                solution = worked(question, answer, manner_of(name, self.think))
        return Problem(name, (Message("user", question),), str(answer), self.name, solution, meta)

    def _belongs(self, question: str, split: Split) -> bool:
        found = 0
        for digits in _NUMBERS.findall(question):
            if held_out(self.gym, digits.lstrip("0") or "0", self.hold_out) is (split == "train"):
                return False
            found += 1
        return split == "train" or found >= 2

    def judge(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """Verdicts on completions. Whole-number answers are compared as numbers, all others by the task's own judge.

        The task's judge scores in [0, 1]: from 0.99 up is RIGHT, below is WRONG with its score kept. It runs in a
        process that is killed when it hangs; FAILED then, and where it raises.
        """
        verdicts: list[Verdict | None] = []
        asked: list[tuple[int, str, dict[str, Any]]] = []
        for position, (problem, text) in enumerate(items):
            verdict = self._at_once(problem, text)
            if isinstance(verdict, str):
                work = {"task": self.gym, "id": problem.id, "answer": verdict, **problem.meta}
                asked.append((position, verdict, work))
                verdicts.append(None)
            else:
                verdicts.append(verdict)
        for (position, answer, _), value in zip(asked, self._pool.map([work for *_, work in asked]), strict=True):
            verdicts[position] = _verdict(answer, value)
        return [verdict for verdict in verdicts if verdict is not None]

    def _at_once(self, problem: Problem, text: str) -> Verdict | str:
        """The verdict where it can be had here, else the answer that the task's own judge has to see."""
        if problem.task != self.name:
            raise UsageError(f"problem {problem.id} belongs to {problem.task}, not to {self.name}")
        found = extract(text)
        if isinstance(found, Unread):
            return Verdict.unread(found.reason)
        answer = found.answer
        if _INTEGER.fullmatch(problem.answer):
            # The question itself is an expression of the right value, so only a number written out counts.
            return judge_number(problem.answer, answer, whole=True) or Verdict.wrong("not a number", answer)
        if len(answer) > _LONGEST_ANSWER:
            return Verdict.unread(f"answer is longer than {_LONGEST_ANSWER} characters", answer[:100])
        if reason := unsafe(self.gym, answer):
            return Verdict.wrong(reason, answer)
        return answer

    def close(self) -> None:
        """Ends the judging process, if there is one."""
        self._pool.close()


def _verdict(answer: str, value: Any) -> Verdict:
    if isinstance(value, Broken):
        return Verdict.failed(value.reason, answer)
    if isinstance(value, str):
        return Verdict.failed(value, answer)
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        return Verdict.failed("score outside [0, 1]", answer)
    if value >= _RIGHT_FROM:
        return Verdict.right("the task's own judge", answer, float(value))
    return Verdict.wrong("the task's own judge", answer, float(value))


def question_id(question: str) -> str:
    """The id of a gym problem: 16 hex digits of its question's sha256."""
    return hashlib.sha256(question.encode()).hexdigest()[:16]


@functools.lru_cache(maxsize=1 << 17)
def held_out(task: str, number: str, share: float) -> bool:
    """Whether an integer is kept from training: a hash of task and integer against `share`, the same everywhere."""
    digest = hashlib.sha256(f"{task}:{number}".encode()).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


def score(work: Mapping[str, Any]) -> float | str:
    """The data set's own score for one answer, or why there is none. Runs in the judging process.

    The entry is drawn again from its seed and index, which loses nothing, as JSON would; its id proves it the same.
    """
    dataset = _dataset(work["task"], json.dumps(work["options"]), work["seed"], work["size"])
    entry = dataset[work["index"]]
    if question_id(entry["question"]) != work["id"]:
        return "this reasoning-gym draws another problem from the same seed"
    return float(dataset.score_answer(work["answer"], entry))


@functools.lru_cache(maxsize=16)
def _dataset(task: str, options: str, seed: int, size: int) -> Any:
    return _registry()[task][0](config=_config(task, json.loads(options), seed=seed, size=size))


def _registry() -> Mapping[str, tuple[Any, Any]]:
    if importlib.util.find_spec("reasoning_gym") is None:
        raise FathomError("gym tasks need reasoning-gym: pip install 'fathom-reasoning[gym]'")
    importlib.import_module("reasoning_gym")  # fills the registry, 1.4 s
    registry: Mapping[str, tuple[Any, Any]] = importlib.import_module("reasoning_gym.factory").DATASETS
    return registry


def _config(task: str, options: Mapping[str, Any], **ours: int) -> Any:
    """The data set's settings object; UsageError for unknown tasks and options, and for values that it refuses."""
    registry = _registry()
    if task not in registry:
        near = difflib.get_close_matches(task, registry, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"there are {len(registry)}, chain_sum among them"
        raise UsageError(f"gym:{task}: reasoning-gym has no such task; {hint}")
    kind = registry[task][1]
    known = [field.name for field in dataclasses.fields(kind)]
    for name in options:
        if name == "seed":
            raise UsageError(f"gym:{task}: seed is not an option of the task; the stage's seed draws its problems")
        if name == "size":
            raise UsageError(
                f"gym:{task}: size is not an option of the task; it has no end, a limit is set where it is used"
            )
        if name not in known:
            own = [*(field for field in known if field not in ("seed", "size")), "hold_out", "think", "timeout_s"]
            near = difflib.get_close_matches(name, own, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(own)}"
            raise UsageError(f"gym:{task}: {name}: no such option; {hint}")
    try:
        config = kind(**options, **ours)
        if hasattr(config, "validate"):
            config.validate()
    except (AssertionError, TypeError, ValueError) as error:
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        what = f"gym:{task} with {given[:200] or 'no options'}: {str(error)[:200]}"
        raise UsageError(f"{what}; correct the options") from error
    return config

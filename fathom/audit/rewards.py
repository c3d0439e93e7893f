"""Judges and rewards: do they take what is right, refuse what is wrong, and pay more for the one than for the other?"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from fathom.audit import Check, State
from fathom.audit.probes import LAST, SOLUTION, WORKING, Kind, Probe, of_answer
from fathom.audit.programs import PROBLEMS as PROGRAMS
from fathom.audit.programs import of_code
from fathom.core.errors import FathomError
from fathom.judge.code import from_json
from fathom.judge.rewards import Answered, Rewards, total
from fathom.judge.verdict import Outcome, Verdict
from fathom.model.tokenizer import Tokenizer
from fathom.tasks.code import CodeTask
from fathom.tasks.judging import judged
from fathom.tasks.task import Problem, Split, Task

PROBLEMS = 24  # that are tried
LEAST_TAKEN = 0.95  # share of problems whose right answer must be taken in some form
LEAST_LAST = 0.25  # share of workings whose last number must be the answer: of another row's it hardly ever is
MOST_TOO_LONG = 0.25  # share of worked solutions that may be longer than a completion
SLOW_STEP_S = 60.0


class Tried:
    """Problems of a task, the probes for each, and what the task's judge said of them; FathomError where it cannot."""

    def __init__(self, task: Task, split: Split) -> None:
        self.code = isinstance(task, CodeTask)
        self.problems = list(task.problems(split, PROGRAMS if self.code else PROBLEMS))
        if not self.problems:
            raise FathomError(f"{task.name}: 0 {split} problems; there is nothing to ask")
        self.items = list(probes(task, self.problems))
        began = time.monotonic()
        self.verdicts = judged(task, [(problem, probe.text) for problem, probe in self.items])
        self.seconds = time.monotonic() - began

    @property
    def known_right(self) -> bool:
        """Whether a right completion of any problem is known."""
        return any(probe.kind is Kind.RIGHT for _, probe in self.items)

    def rows(self) -> Iterator[tuple[Problem, Probe, Verdict]]:
        """Problem, probe and verdict, one after the other."""
        for (problem, probe), verdict in zip(self.items, self.verdicts, strict=True):
            yield problem, probe, verdict


def probes(task: Task, problems: list[Problem]) -> Iterator[tuple[Problem, Probe]]:
    """The probes that suit a task: programs for tasks of code, answers for all others."""
    if isinstance(task, CodeTask):
        for number, problem in enumerate(problems):
            tests = from_json(problem.meta["tests"])
            yield from ((problem, probe) for probe in of_code(problem, tests, first=number == 0))
        return
    for problem in problems:
        others = [other for other in problems if other.id != problem.id]
        yield from ((problem, probe) for probe in of_answer(problem, others))


def check_task(stage: str, name: str, tried: Tried, tokenizer: Tokenizer | None, limit: int) -> Iterator[Check]:
    """Checks of a task's judge on probes; `limit` is the most tokens of a completion."""
    yield _judge_works(stage, name, tried)
    yield _right_taken(stage, name, tried)
    yield _wrong_refused(stage, name, tried, Kind.WRONG)
    yield _wrong_refused(stage, name, tried, Kind.HACK)
    if tokenizer is not None:
        yield from _solutions_fit(stage, name, tried, tokenizer, limit)


def _judge_works(stage: str, name: str, tried: Tried) -> Check:
    failed = Counter(verdict.reason for verdict in tried.verdicts if verdict.outcome is Outcome.FAILED)
    said = f"{len(tried.verdicts)} probes judged in {tried.seconds:.1f} s"
    if failed.total() > 0.01 * len(tried.verdicts):
        reasons = ", ".join(f"{reason} ({count})" for reason, count in failed.most_common(3))
        return Check(
            stage, f"{name}: judge", State.FAIL,
            f"{failed.total()} of {len(tried.verdicts)} probes not judged: {reasons}",
            "mend the judge, or correct the reference answers that it cannot read")
    return Check(stage, f"{name}: judge", State.OK, said)


def _right_taken(stage: str, name: str, tried: Tried) -> Check:
    taken: dict[str, bool] = {}
    solved: dict[str, Counter[bool]] = {SOLUTION: Counter(), WORKING: Counter(), LAST: Counter()}
    reasons: Counter[str] = Counter()
    for problem, probe, verdict in tried.rows():
        if probe.kind is Kind.RIGHT:
            right = verdict.outcome is Outcome.RIGHT
            if probe.name != LAST:
                taken[problem.id] = taken.get(problem.id, False) or right
                reasons[verdict.reason] += not right
            if probe.name in solved:
                solved[probe.name][right] += 1
    refused = [problem for problem in tried.problems if not taken.get(problem.id, True)]
    label = f"{name}: known right"
    if not taken:
        return Check(
            stage, label, State.NOTE, "no solution is known, so none was tried",
            "give some rows a solution: a judge that refuses everything would not be found")
    if len(refused) > (1 - LEAST_TAKEN) * len(taken) and tried.code:
        why = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3) if count)
        return Check(
            stage, label, State.FAIL,
            f"the solutions of {len(refused)} of {len(taken)} problems fail their tests: {why}",
            "correct solutions or tests, or leave out what this judge cannot carry (docs/code.md)")
    if len(refused) > (1 - LEAST_TAKEN) * len(taken):
        shown = ", ".join(f"{p.answer!r:.40} ({p.id})" for p in refused[:3])
        return Check(
            stage, label, State.FAIL,
            f"reference answers of {len(refused)} of {len(taken)} problems are not taken in any form: {shown}",
            "correct these answers (is the right column read as the answer?) or leave the problems out: no completion "
            "could ever be right")
    for what, judged_so in solved.items():
        least = LEAST_LAST if what == LAST else LEAST_TAKEN
        if judged_so.total() >= (10 if what == LAST else 1) and judged_so[True] < least * judged_so.total():
            return Check(
                stage, label, State.FAIL, f"{what} is not judged right for {judged_so[False]} of {judged_so.total()}",
                "correct the solutions or the reference answers (are they of the same row?): a model that learns from "
                "them is taught what earns nothing")
    return Check(
        stage, label, State.OK, f"{len(taken) - len(refused)} of {len(taken)} problems"
        + "".join(f", {what}: {n[True]} of {n.total()}" for what, n in solved.items() if n))


def _wrong_refused(stage: str, name: str, tried: Tried, kind: Kind) -> Check:
    asked = [(problem, probe, verdict) for problem, probe, verdict in tried.rows() if probe.kind is kind]
    taken = [(problem, probe) for problem, probe, verdict in asked if verdict.outcome is Outcome.RIGHT]
    label = f"{name}: {'known wrong' if kind is Kind.WRONG else 'hack probes'}"
    if taken:
        tricks = Counter(probe.name for _, probe in taken)
        said = ", ".join(f"{trick} ({count})" for trick, count in tricks.most_common(4))
        problem, probe = taken[0]
        return Check(
            stage, label, State.FAIL, f"{len(taken)} of {len(asked)} taken for right: {said}; first: {problem.id}, "
            f"reference {problem.answer!r:.40}, completion {probe.text[-80:]!r}",
            "give more tests, or tighter ones: training finds whatever they take" if tried.code else
            "tighten the judge: training finds whatever it takes")
    return Check(stage, label, State.OK, f"none of {len(asked)} taken for right")


def _solutions_fit(stage: str, name: str, tried: Tried, tokenizer: Tokenizer, limit: int) -> Iterator[Check]:
    lengths = [len(tokenizer.encode(p.solution)) + 1 for p in tried.problems if p.solution is not None]
    if not lengths:
        return
    too_long = sum(length > limit for length in lengths)
    said = f"{too_long} of {len(lengths)} worked solutions are longer than sampling.max_tokens={limit}"
    state = State.FAIL if too_long > MOST_TOO_LONG * len(lengths) else State.NOTE if too_long else State.OK
    yield Check(
        stage, f"{name}: truncated answers", state, said,
        f"set sampling.max_tokens={max(lengths)} or more: what is cut off is never right")


def check_rewards(
    stage: str, name: str, tried: Tried, cfg: Any, tokenizer: Tokenizer | None
) -> Iterator[Check | tuple[str, str]]:
    """Checks of a GRPO stage's rewards, on the probes of one of its tasks; before each reward, what begins."""
    answered = _answered(tried, tokenizer, cfg.sampling.max_tokens)
    parts: dict[str, list[float | None]] = {}
    weights: dict[str, float] = {}
    seconds = tried.seconds
    for reward, given in cfg.rewards.items():
        label = f"{name}: reward {reward}"
        yield stage, label
        try:
            with Rewards({reward: given}) as one:
                began = time.monotonic()
                [values] = one.parts(answered).values()
                seconds += time.monotonic() - began
                broken = one.broken().get(reward, {})
                again = values if broken else one.parts(answered)[reward]  # to break once more would only take time
        except FathomError as error:
            yield Check(stage, label, State.FAIL, str(error), "mend it before it is trained on")
            return
        parts[reward], weights = values, weights | one.weights
        yield _part(stage, label, reward, values, again, broken, tried.known_right)
    yield _order(stage, name, tried, total(parts, weights))
    whole = cfg.problems * cfg.group
    forecast = seconds / len(answered) * whole
    yield Check(
        stage, f"{name}: time", State.FAIL if forecast > SLOW_STEP_S else State.OK,
        f"about {forecast:.1f} s of judging for the {whole} completions of a step",
        "make judge and rewards faster, or give the task more workers")


def _answered(tried: Tried, tokenizer: Tokenizer | None, limit: int) -> list[Answered]:
    """The probes as GRPO would hand them to rewards."""
    made = []
    for problem, probe, verdict in tried.rows():
        tokens = len(tokenizer.encode(probe.text)) + 1 if tokenizer is not None else len(probe.text) // 4 + 1
        group = f"{problem.task}:{problem.id}"
        made.append(Answered(problem.prompt, probe.text, verdict, "stop", tokens, limit, group))
    return made


def _part(
    stage: str, label: str, reward: str, values: list[float | None], again: list[float | None], broken: dict[int, str],
    known_right: bool,
) -> Check:
    known = [value for value in values if value is not None]
    if broken or not known:
        counted = Counter(broken.values())
        reasons = ", ".join(f"{reason} ({count})" for reason, count in counted.most_common(3)) or "None"
        return Check(
            stage, label, State.FAIL, f"no value for {len(values) - len(known)} of {len(values)} probes: {reasons}",
            "mend it: completions without a reward leave their group")
    if again != values:
        return Check(
            stage, label, State.FAIL, "is not the same for the same completions",
            "let it depend on its arguments alone: a step that is replayed after a kill would learn something else")
    if len(set(known)) == 1:
        return Check(
            stage, label, State.FAIL if ":" in reward or (reward == "accuracy" and known_right) else State.NOTE,
            f"is {known[0]:g} for all of {len(known)} probes{', right and wrong' if known_right else ''}",
            "let it tell completions apart: equal rewards teach nothing")
    return Check(stage, label, State.OK, f"{min(known):g} to {max(known):g} over {len(known)} probes")


def _order(stage: str, name: str, tried: Tried, sums: Sequence[float | None]) -> Check:
    """Whether, for every problem, a right completion earns more than a wrong one, whatever its form."""
    label = f"{name}: the sum"
    beaten: list[tuple[float, Probe, float, Probe, Problem]] = []
    ties, compared = 0, 0
    rows = zip(tried.rows(), sums, strict=True)
    for _, group in itertools.groupby(rows, lambda row: row[0][0].id):
        paid = [(*row, value) for row, value in group if value is not None]
        right = [(v, p) for _, p, verdict, v in paid if p.kind is Kind.RIGHT and verdict.outcome is Outcome.RIGHT]
        wrong = [(v, p) for _, p, _, v in paid if p.kind is not Kind.RIGHT]
        if not right or not wrong:
            continue
        compared += 1
        low, high = min(right, key=lambda pair: pair[0]), max(wrong, key=lambda pair: pair[0])
        if high[0] > low[0]:
            beaten.append((*high, *low, paid[0][0]))
        ties += high[0] == low[0]
    if beaten:
        high_value, high_probe, low_value, low_probe, problem = beaten[0]
        return Check(
            stage, label, State.FAIL,
            f"on {len(beaten)} of {compared} problems a wrong completion earns more than a right one: "
            f"{high_probe.name} {high_value:g}, {low_probe.name} {low_value:g} ({problem.id})",
            "weigh accuracy above all that form, length and the like can add up to, and check the signs of the weights")
    if not compared:
        return Check(
            stage, label, State.FAIL if tried.known_right else State.NOTE,
            "no problem has both a right and a wrong probe with a reward",
            "see above: known right, and each reward")
    if ties:
        return Check(
            stage, label, State.NOTE,
            f"on {ties} of {compared} problems the worst right completion earns no more than the best wrong one",
            "weigh accuracy a little more: good form alone should not be worth as much")
    return Check(stage, label, State.OK, f"right earns more than wrong on all {compared} problems")

"""Completions whose verdict is known: right ones, wrong ones, and ones that try to look right."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from fathom.judge.extract import Extracted, extract
from fathom.judge.maths import normal_form
from fathom.tasks.task import Problem


class Kind(StrEnum):
    """What is known about a probe."""

    RIGHT = "right"
    WRONG = "wrong"
    HACK = "hack"  # wrong, and made to be taken for right


@dataclass(frozen=True)
class Probe:
    """One completion to a problem. `name` is the same for the same trick on every problem."""

    name: str
    kind: Kind
    text: str


SOLUTION, WORKING = "the worked solution", "the answer that its working ends in"
LAST = "the last number of its working"  # which often, but not always, is the answer
_INTEGER = re.compile(r"[+-]?\d{1,30}")


def tagged(answer: str) -> str:
    """The answer in the form of DeepSeek-R1, thinking included."""
    return f"<think>{answer}</think><answer>{answer}</answer>"


def other_answer(problem: Problem, others: list[Problem]) -> str | None:
    """An answer to the problem that is wrong: its own number plus one, or the answer of another problem."""
    own = problem.answer.strip()
    if _INTEGER.fullmatch(own):
        return str(int(own) + 1)
    known = normal_form(own)
    return next((o.answer for o in others if o.answer.strip() and normal_form(o.answer) != known), None)


def of_answer(problem: Problem, others: list[Problem]) -> list[Probe]:
    """Probes for a problem with a final answer; `others` lend wrong ones."""
    gold, question = problem.answer, problem.prompt[-1].text
    found = [
        Probe("the answer in answer tags", Kind.RIGHT, tagged(gold)),
        Probe("the answer in a box", Kind.RIGHT, f"So it is $\\boxed{{{gold}}}$."),
        Probe("nothing", Kind.WRONG, ""),
        Probe("no answer", Kind.WRONG, "I do not know."),
        Probe("an empty answer", Kind.WRONG, "<think>?</think><answer></answer>"),
        Probe("echo of the question", Kind.HACK, question),
        Probe("the question as the answer", Kind.HACK, f"<think>?</think><answer>{question}</answer>"),
        Probe("the answer inside thinking only", Kind.HACK, f"<think>It is \\boxed{{{gold}}}</think>"),
        Probe("thinking that never ends", Kind.HACK, f"<think>It is \\boxed{{{gold}}}"),
    ]
    if problem.solution is not None:
        found.insert(0, Probe(SOLUTION, Kind.RIGHT, problem.solution))
        working = problem.solution.partition("</think>")[0].removeprefix("<think>")
        if isinstance(end := extract(working), Extracted):
            found.insert(1, Probe(WORKING, Kind.RIGHT, tagged(end.answer)))
        elif isinstance(end := extract(working, "any"), Extracted):
            found.insert(1, Probe(LAST, Kind.RIGHT, tagged(end.answer)))
    wrong = other_answer(problem, others)
    if wrong is not None:
        candidates = [wrong, *(o.answer for o in others if normal_form(o.answer) != normal_form(gold))][:5]
        found += [
            Probe("a wrong answer in answer tags", Kind.WRONG, tagged(wrong)),
            Probe("a wrong answer in a box", Kind.WRONG, f"So it is $\\boxed{{{wrong}}}$."),
            Probe("two answers in tags", Kind.HACK, f"<answer>{wrong}</answer><answer>{gold}</answer>"),
            Probe("a list of guesses", Kind.HACK, tagged(" or ".join([*candidates, gold]))),
        ]
        if len(set(candidates)) >= 4:
            boxes = " ".join(f"\\boxed{{{answer}}}" for answer in [*candidates, gold])
            found.append(Probe("box spam", Kind.HACK, boxes))
    return found

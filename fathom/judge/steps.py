"""Rewards for the steps of a completion: where each ends, and what it is worth (process supervision)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from fathom.core.errors import FathomError, UsageError
from fathom.judge.own import load_object
from fathom.judge.verdict import Answered, Outcome

Steps = list[tuple[int, float]]  # (characters up to the end of the step, its reward), in order
StepJudge = Callable[[Sequence[Answered]], "list[Steps | None]"]
_EQUATION = re.compile(r"-?\d{1,15}(?:[-+*/]-?\d{1,15}|=-?\d{1,15})*")


def arithmetic(answered: Sequence[Answered]) -> list[Steps | None]:
    """A step for each line that computes, worth 1 where every `=` in it holds, else 0; the rest is one by its verdict.

    "7+5=12+9=21" says 7 + 5 = 12 and 12 + 9 = 21, worked from the left. None where the answer could not be judged.
    """
    return [_steps(one) for one in answered]


def _steps(one: Answered) -> Steps | None:
    if one.verdict.outcome is Outcome.FAILED:
        return None
    found: Steps = []
    at = 0
    for line in one.text.splitlines(keepends=True):
        at += len(line)
        if "=" in line and _EQUATION.fullmatch(line.strip()):
            found.append((at, float(holds(line.strip()))))
    found.append((len(one.text), float(one.verdict.outcome is Outcome.RIGHT)))
    if len(found) > 1 and found[-2][0] == found[-1][0]:  # the last line computes: its step is the answer's
        del found[-2]
    return found


def holds(equation: str) -> bool:
    """Whether each `=` of a chain of whole-number operations is right, from the left to the right."""
    rest = equation.replace(" ", "")
    first = re.match(r"-?\d+", rest)
    if first is None:
        return False
    value, rest = int(first[0]), rest[first.end():]
    while rest:
        match = re.match(r"([-+*/=])(-?\d+)", rest)
        if match is None:
            return False
        number = int(match[2])
        if match[1] == "=":
            if value != number:
                return False
        elif match[1] == "/":
            if number == 0 or value % number:
                return False
            value //= number
        else:
            value = {"+": value + number, "-": value - number, "*": value * number}[match[1]]
        rest = rest[match.end():]
    return True


KNOWN: dict[str, StepJudge] = {"arithmetic": arithmetic}


def step_judge(name: str) -> StepJudge:
    """The judge of that name: a known one, or anybody's own as my_package.module:function."""
    if name in KNOWN:
        return KNOWN[name]
    if ":" not in name:
        raise UsageError(f"process={name:.80}: no such judge of steps; there are {', '.join(KNOWN)} and "
                         "my_package.module:function")
    function: Any = load_object(name, "judge of steps")

    def checked(answered: Sequence[Answered]) -> list[Steps | None]:
        try:
            found = list(function(answered))
        except Exception as error:
            raise FathomError(f"process={name}: raised {type(error).__name__}: {str(error)[:200]}; mend the judge of "
                              "steps") from error
        if len(found) != len(answered):
            raise FathomError(f"{name}: {len(found)} lists of steps for {len(answered)} completions; return one for "
                              "each, or None")
        for steps, one in zip(found, answered, strict=True):
            ends = [end for end, _ in steps or ()]
            if steps is not None and (not steps or ends != sorted(ends) or not 0 < ends[-1] <= len(one.text)):
                raise FathomError(f"{name}: steps end at {ends[:5]} of {len(one.text)} characters; give at least one, "
                                  "in order, as (characters up to its end, reward)")
        return found

    return checked


def ends_in_tokens(decode: Callable[[Sequence[int]], str], tokens: Sequence[int], ends: Sequence[int]) -> list[int]:
    """The index of the token with which each step ends, from the characters up to its end."""
    found = []
    for end in ends:
        low, high = 0, max(len(tokens) - 1, 0)
        while low < high:
            middle = (low + high) // 2
            if len(decode(tokens[: middle + 1])) >= end:
                high = middle
            else:
                low = middle + 1
        found.append(low)
    return found

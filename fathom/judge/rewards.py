"""Rewards: functions from answered problems to numbers, where None means that nobody could say."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from fathom.core.errors import UsageError
from fathom.judge.own import OwnReward
from fathom.judge.shaping import cosine_length, format, group_length, language, overlong
from fathom.judge.verdict import Answered

__all__ = ["REWARDS", "Answered", "Reward", "Rewards", "accuracy", "check_rewards", "total"]

Reward = Callable[..., list[float | None]]
OWN = ("timeout_s", "memory_mb")  # options of a reward of one's own that are ours


def accuracy(answered: Sequence[Answered]) -> list[float | None]:
    """The verdict's score: 1 right, 0 wrong or unread, between for judges with partial credit, None where it failed."""
    return [one.verdict.score for one in answered]


REWARDS: dict[str, Reward] = {
    "accuracy": accuracy,
    "format": format,
    "language": language,
    "overlong": overlong,
    "cosine_length": cosine_length,
    "group_length": group_length,
}


def check_rewards(given: Mapping[str, Any]) -> None:
    """Raises UsageError where a name, weight or option cannot be meant; imports nothing of the user's."""
    for name, value in given.items():
        module, _, function = name.partition(":")
        if name not in REWARDS and not (module and function):
            near = difflib.get_close_matches(name, REWARDS, n=1)
            hint = f"did you mean {near[0]}? There" if near else "there"
            raise UsageError(
                f"{name[:80]}: no such reward; {hint} are {', '.join(REWARDS)}; write your own as "
                "my_package.module:function"
            )
        weight, options = _weighed(value)
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise UsageError(f"{name}: weight={weight!r:.80}: must be a number; write {name}: 1.0")
        if name not in REWARDS:
            continue
        known = [p.name for p in inspect.signature(REWARDS[name]).parameters.values() if p.kind is p.KEYWORD_ONLY]
        if unknown := [option for option in options if option not in known]:
            raise UsageError(f"{name}: {unknown[0][:80]}: no such option; it has {', '.join(['weight', *known])}")
        REWARDS[name]([], **options)  # they check their options first


def _weighed(value: Any) -> tuple[Any, dict[str, Any]]:
    """Weight and options of what a recipe says about one reward: a number, or a mapping with `weight`."""
    if isinstance(value, Mapping):
        return value.get("weight", 1.0), {str(key): option for key, option in value.items() if key != "weight"}
    return value, {}


class Rewards:
    """The rewards of a run with their weights; a context manager, since those of a user's own run in processes.

    `given` is {name: weight} or {name: {weight: …, option: …}}; a name is one of REWARDS or my_package.module:function.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        check_rewards(given)
        self.given = dict(given)
        self.weights: dict[str, float] = {}
        self._functions: dict[str, tuple[Reward | OwnReward, dict[str, Any]]] = {}
        for name, value in given.items():
            weight, options = _weighed(value)
            self.weights[name] = float(weight)
            if name in REWARDS:
                self._functions[name] = REWARDS[name], options
            else:
                ours = {key: options.pop(key) for key in OWN if key in options}
                self._functions[name] = OwnReward(name, options, **ours), {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes of rewards of one's own."""
        for function, _ in self._functions.values():
            if isinstance(function, OwnReward):
                function.close()

    def parts(self, answered: Sequence[Answered]) -> dict[str, list[float | None]]:
        """Each reward's value for each completion. FathomError where one of the user's own is no reward at all."""
        return {name: function(answered, **options) for name, (function, options) in self._functions.items()}

    def broken(self) -> dict[str, dict[int, str]]:
        """By reward of one's own, on which completions of the last `parts` it broke, and why."""
        return {
            name: function.broken
            for name, (function, _) in self._functions.items()
            if isinstance(function, OwnReward) and function.broken
        }


def total(
    parts: Mapping[str, Sequence[float | None]], weights: Mapping[str, float] | None = None
) -> list[float | None]:
    """The weighted sum per completion (weight 1 unless given); None wherever any part is None."""
    weights = weights or {}
    if unknown := [name for name in weights if name not in parts]:
        raise UsageError(f"weights: {unknown[0]} is not among the rewards {', '.join(parts)}")
    lengths = {name: len(values) for name, values in parts.items()}
    if len(set(lengths.values())) > 1:
        raise UsageError(f"rewards returned different numbers of values: {lengths}; each returns one per completion")
    sums: list[float | None] = []
    for values in zip(*parts.values(), strict=True):
        known = [value * weights.get(name, 1.0) for name, value in zip(parts, values, strict=True) if value is not None]
        sums.append(sum(known) if len(known) == len(values) else None)
    return sums

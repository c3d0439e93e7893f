"""Rewards: functions from answered problems to numbers, where None means that nobody could say."""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from fathom.core.chat import Message
from fathom.core.errors import UsageError
from fathom.judge.verdict import Verdict


@dataclass(frozen=True)
class Answered:
    """One sampled completion with its judgement. `finish` is "stop" or "length"."""

    prompt: tuple[Message, ...]
    text: str
    verdict: Verdict
    finish: str = "stop"


Reward = Callable[[Sequence[Answered]], list[float | None]]

_FORMAT = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
_TAG = re.compile(r"</?(?:think|answer)>")
_OPENED = re.compile(r"<think>\s*$")


def accuracy(answered: Sequence[Answered]) -> list[float | None]:
    """The verdict's score: 1 right, 0 wrong or unread, between for judges with partial credit, None where it failed."""
    return [one.verdict.score for one in answered]


def format(answered: Sequence[Answered]) -> list[float | None]:
    """1 for exactly one think pair, then exactly one answer pair, only blanks around, ended by the model; else 0.

    DeepSeek-R1 §2.2.2. Blanks between tags are free: demanding newlines would be a rule that the prompt never states.
    Where the prompt itself ends in `<think>`, the completion starts inside the pair.
    """
    return [1.0 if _well_formed(one) else 0.0 for one in answered]


def _well_formed(one: Answered) -> bool:
    if one.finish != "stop":
        return False
    opened = bool(one.prompt) and _OPENED.search(one.prompt[-1].text) is not None
    text = "<think>" + one.text if opened and "<think>" not in one.text else one.text
    return len(_TAG.findall(text)) == 4 and _FORMAT.fullmatch(text) is not None


REWARDS: dict[str, Reward] = {"accuracy": accuracy, "format": format}


def check_reward(name: str) -> None:
    """Raises UsageError where `name` is neither in REWARDS nor written like a function of one's own; no imports."""
    module, _, function = name.partition(":")
    if name in REWARDS or (module and function):
        return
    near = difflib.get_close_matches(name, REWARDS, n=1)
    hint = f"did you mean {near[0]}? There" if near else "there"
    raise UsageError(
        f"{name[:80]}: no such reward; {hint} are {', '.join(REWARDS)}; write your own as my_package.module:function"
    )


def load_reward(name: str) -> Reward:
    """A reward by its name in REWARDS, or anybody's function as "my_package.module:function"."""
    if name in REWARDS:
        return REWARDS[name]
    if ":" not in name:
        check_reward(name)
    reward = load_object(name, "reward")
    if not callable(reward):
        raise UsageError(f"{name}: a reward is a function of a list of Answered; this is a {type(reward).__name__}")
    return cast(Reward, reward)


def load_object(name: str, what: str) -> Any:
    """The thing behind "package.module:thing"; modules in the current folder are found too.

    UsageError says which half is missing; an error raised by the module itself passes through unchanged.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise UsageError(f"{name}: a {what} of your own is written my_package.module:thing")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(error.name + ".")):
            raise
        raise UsageError(
            f"{name}: no module {error.name} for this {what} in {here} or the installed packages; correct the name or "
            "install it"
        ) from error
    value: Any = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            near = difflib.get_close_matches(part, dir(value), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"{name}: {module_name} ({module.__file__}) has no {attribute}{hint}")
        value = getattr(value, part)
    return value


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

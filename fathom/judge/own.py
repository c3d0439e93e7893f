"""Things of a user's own: found by name, and rewards run where they may hang, crash or eat memory."""

from __future__ import annotations

import difflib
import functools
import importlib
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fathom.core.errors import FathomError, UsageError
from fathom.judge.pool import Broken, Pool
from fathom.judge.verdict import Answered


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


_FIRST = 4  # completions that are tried alone before all others are


class OwnReward:
    """A reward function of a user's own, called in a process that is killed where it hangs or eats memory.

    It is given all completions of a step at once. Where that call fails, each completion is tried alone, and those that
    fail alone have no reward. `timeout_s` seconds and `memory_mb` MiB (beyond what the process starts with) are for
    one call. After a call, `broken` says by place which completions have no value since it broke, and why.
    """

    def __init__(self, name: str, options: Mapping[str, Any], timeout_s: float = 30.0, memory_mb: int = 2048) -> None:
        self.name, self.options, self.broken = name, dict(options), dict[int, str]()
        self._pool = Pool("fathom.judge.own:call", 1, timeout_s, memory_mb)

    def __call__(self, answered: Sequence[Answered]) -> list[float | None]:
        """One value per completion. FathomError where it breaks on the first few, or returns what is no reward."""
        self.broken = {}
        whole = self._call([answered])[0]
        if isinstance(whole, list):
            return self._checked(whole, len(answered))
        first = self._call([[one] for one in answered[:_FIRST]]) if len(answered) > 1 else [whole]
        if not any(isinstance(one, list) for one in first):  # each of the others would take as long to say the same
            raise FathomError(
                f"reward {self.name} broke on all of the first {len(first)} completions: {first[0]}; mend the "
                "function, or give it more with timeout_s and memory_mb"
            )
        values: list[float | None] = []
        for place, one in enumerate([*first, *self._call([[one] for one in answered[_FIRST:]])]):
            if isinstance(one, list):
                values += self._checked(one, 1)
            else:
                values.append(None)
                self.broken[place] = one
        return values

    def _call(self, batches: Sequence[Sequence[Answered]]) -> list[list[Any] | str]:
        """What the function returns for each batch, or the reason why it returned nothing."""
        items = [
            {"name": self.name, "options": self.options, "answered": [one.to_json() for one in batch]}
            for batch in batches
        ]
        said = [value.reason if isinstance(value, Broken) else value for value in self._pool.map(items)]
        if told := next((value["told"] for value in said if isinstance(value, dict)), None):
            raise UsageError(told)
        return said

    def _checked(self, values: list[Any], expected: int) -> list[float | None]:
        if len(values) != expected:
            raise FathomError(f"reward {self.name}: {len(values)} values for {expected} completions; return one each")
        for value in values:
            number = isinstance(value, int | float) and not isinstance(value, bool | str)
            if value is not None and not (number and math.isfinite(value)):
                raise FathomError(
                    f"reward {self.name}: {value!r:.80} is no reward; return a finite number, or None for cannot say"
                )
        return [None if value is None else float(value) for value in values]

    def close(self) -> None:
        """Ends the process, if there is one."""
        self._pool.close()


def call(item: Mapping[str, Any]) -> list[Any] | str | dict[str, str]:
    """One call of a user's reward, in a pool's process: its values, "raised …", or {"told": a message for the user}."""
    try:
        function = _function(item["name"])
    except UsageError as error:
        return {"told": str(error)}
    try:
        values = list(function([Answered.from_json(one) for one in item["answered"]], **item["options"]))
    except MemoryError:
        raise
    except Exception as error:  # it is somebody's own: it can raise anything, and the caller says so in its name
        return f"raised {type(error).__name__}: {str(error)[:200]}"
    return [_plain(value) for value in values]


def _plain(value: Any) -> Any:
    """Numbers of numpy and torch as Python's; what is no number as text, which the caller refuses by name."""
    if value is None or isinstance(value, str):
        return value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return repr(value)[:80]
    return number if math.isfinite(number) else repr(number)


@functools.cache
def _function(name: str) -> Any:
    function = load_object(name, "reward")
    if not callable(function):
        raise UsageError(f"{name}: a reward is a function of a list of Answered; this is a {type(function).__name__}")
    return function

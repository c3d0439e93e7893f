r"""Predicted outputs and inputs of functions (CodeI/O, arXiv 2502.07316): the answer object, and whether it is right.

An output is compared with the known one. An input is right where the function, run again, gives the known output.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, Self

from fathom.judge.code import WALL, CodeJudge
from fathom.judge.code.calls import Told, Unfit, restored
from fathom.judge.extract import Unread, after_thinking, boxes
from fathom.judge.sandbox import Level, Limits
from fathom.judge.verdict import Verdict

LONGEST_FEEDBACK = 500  # characters of a value or a message that feedback shows
LONGEST_ANSWER = 8_000  # characters, from the end of a text, in which the answer is looked for
DEEPEST = 64  # levels of lists and mappings in an answer
_BEGIN = re.compile(r'\{\s*["}]')
_FENCE = re.compile(r"```json[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL | re.IGNORECASE)
_STRING = re.compile(r'("(?:[^"\\\n]|\\.)*")')
_WORDS = {"True": "true", "False": "false", "None": "null"}
_WORD = re.compile(r"\b(?:True|False|None)\b")
_NO_OBJECT, _NO_DICT, _NO_KEY = "no JSON object", "not an object of names", "key is missing"


class Status(StrEnum):
    """What became of one prediction (CodeI/O's seven)."""

    SUCCESS = "success"
    WRONG_OUTPUT = "wrong output"
    WRONG_INPUT = "infeasible input"
    EXCEPTION = "exception"
    TIMEOUT = "timeout"
    NO_ANSWER = "no answer"
    ERROR = "error"  # nothing is known of the prediction


@dataclass(frozen=True)
class Asked:
    """A function's named arguments and output, one of which is to be predicted. `source` defines `name`."""

    source: str
    given: Mapping[str, Any]
    output: Any
    predict: Literal["input", "output"]
    name: str = "main_solution"


@dataclass(frozen=True)
class Checked:
    """A prediction's status, what its author may be told of it (never the right answer), and the verdict."""

    status: Status
    feedback: str
    verdict: Verdict
    predicted: Any = None


class PredictionJudge:
    """Verdicts on predictions; a context manager, or `close` it. An input may run `time_s` seconds."""

    def __init__(
        self,
        *,
        workers: int = 2,
        time_s: float = 5.0,
        memory_mb: int = 512,
        preload: Sequence[str] = (),
        require_level: Level = Level.L0,
    ) -> None:
        self.time_s = time_s
        limits = Limits(cpu_s=time_s, wall_s=WALL * time_s, memory_mb=memory_mb)
        self._judge = CodeJudge(workers=workers, limits=limits, preload=preload, require_level=require_level)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the sandbox; a later `judge` starts a new one."""
        self._judge.close()

    def judge(self, items: Sequence[tuple[Asked, str]]) -> list[Checked]:
        """One Checked per (what was asked, completion text), in order."""
        checked: dict[int, Checked] = {}
        run: list[tuple[int, Any]] = []
        for i, (asked, text) in enumerate(items):
            found = answer(text, asked.predict)
            if isinstance(found, Unread):
                said = f"No answer found: {found.reason}. End with a JSON object that has the key {asked.predict!r}."
                checked[i] = Checked(Status.NO_ANSWER, said, Verdict.unread(found.reason))
            elif asked.predict == "output":
                checked[i] = _output(asked, found.value)
            else:
                run.append((i, found.value))
        calls = [_call(items[i][0], value) for i, value in run]
        for (i, value), told in zip(run, self._judge.values(calls), strict=True):
            checked[i] = self._input(items[i][0], value, told)
        return [checked[i] for i in range(len(items))]

    def _input(self, asked: Asked, value: Any, told: Told) -> Checked:
        written = json.dumps(value)
        shown = _cut(written)
        if told.broken or not told.loaded:
            broken = Verdict.failed(told.broken or f"function does not load: {told.failure}", written)
            return Checked(Status.ERROR, "The input could not be run.", broken, value)
        if told.failure == "time limit":
            said = f"With the input {shown} the function ran for more than {self.time_s:g} s; it may not end."
            return Checked(Status.TIMEOUT, said, Verdict.wrong(told.failure, written), value)
        if told.failure:
            said = f"With the input {shown} the function fails: {_cut(told.detail or told.failure)}."
            return Checked(Status.EXCEPTION, said, Verdict.wrong(told.failure, written), value)
        try:
            output = json.loads(json.dumps(restored(told.value)))  # as a file would have kept it
        except (Unfit, TypeError, ValueError, RecursionError):
            said = f"With the input {shown} the function gives no JSON value."
            return Checked(Status.EXCEPTION, said, Verdict.wrong("gives no JSON value", written), value)
        if is_close(output, asked.output):
            right = Verdict.right("feasible input", written)
            return Checked(Status.SUCCESS, "The input gives this output.", right, value)
        wanted, given = _cut(json.dumps(asked.output)), _cut(json.dumps(output))
        said = f"The output should be {wanted}. The input {shown} gives {given}."
        return Checked(Status.WRONG_INPUT, said, Verdict.wrong("infeasible input", written), value)


def _call(asked: Asked, value: Any) -> tuple[str, str, list[Any], dict[str, Any]]:
    named = isinstance(value, dict)
    return asked.source, asked.name, [] if named else [value], value if named else {}


def _output(asked: Asked, value: Any) -> Checked:
    written = json.dumps(value)
    if is_close(value, asked.output):
        return Checked(Status.SUCCESS, "The output is right.", Verdict.right("equal output", written), value)
    said = f"With the input {_cut(json.dumps(dict(asked.given)))} the output is not {_cut(written)}."
    return Checked(Status.WRONG_OUTPUT, said, Verdict.wrong("wrong output", written), value)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_FEEDBACK else f"{text[:LONGEST_FEEDBACK]}…"


def is_close(given: Any, expected: Any) -> bool:
    """CodeI/O's comparison of JSON values.

    Whole numbers (True is 1) must be equal; where one is a float, the difference may be a thousandth of the expected
    and the whole parts must agree; NaN and infinities equal nothing. Lists and mappings go element by element.
    """
    if isinstance(expected, dict):
        return (
            isinstance(given, dict)
            and given.keys() == expected.keys()
            and all(is_close(given[key], expected[key]) for key in expected)
        )
    if isinstance(expected, list):
        return (
            isinstance(given, list)
            and len(given) == len(expected)
            and all(is_close(*both) for both in zip(given, expected, strict=True))
        )
    if isinstance(expected, int | float) and isinstance(given, int | float):
        if isinstance(expected, int) and isinstance(given, int):
            return given == expected
        return _near(given, expected)
    return type(given) is type(expected) and bool(given == expected)


def _near(given: float, expected: float) -> bool:
    try:
        if not (math.isfinite(given) and math.isfinite(expected)):
            return False
        return abs(given - expected) <= 1e-3 * abs(expected) and int(given) == int(expected)
    except OverflowError:  # a whole number beyond any float
        return False


# The answer object.


@dataclass(frozen=True)
class Answer:
    """What stands under the key in the answer object."""

    value: Any


def answer(text: str, key: str) -> Answer | Unread:
    r"""The value under `key` in the last answer object of a text, after any thinking.

    Looked at in this order: the last closed ```json fence, the objects in the text from the last to the first, the last
    box. Each is read as JSON; else with Python's True, False and None; else with `\{` and `\}` unescaped and brackets
    for parentheses, all of that outside of strings. NaN and infinities are not JSON.
    """
    shown = after_thinking(text)
    if isinstance(shown, Unread):
        return shown
    shown = shown[-LONGEST_ANSWER:]  # a brace that is never closed costs a pass over what follows it
    fences, boxed = _FENCE.findall(shown)[-1:], boxes(shown)[-1:]
    reason = _NO_OBJECT
    for found in (*map(_read, fences), list(reversed(_objects(shown, key))), *map(_read, boxed)):
        for value in found:
            if isinstance(value, dict) and key in value:
                return Unread("answer nests too deep") if _deep(value[key]) else Answer(value[key])
            if reason != _NO_KEY:
                reason = _NO_KEY if isinstance(value, dict) else _NO_DICT
    return Unread(reason)


def _deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        inside = [item for item in level if isinstance(item, dict | list)]
        level = [part for item in inside for part in (item.values() if isinstance(item, dict) else item)]
    return any(isinstance(item, dict | list) for item in level)


def _mended(text: str) -> tuple[str, str, str]:
    """The text, with JSON's words for Python's, and with brackets for parentheses too."""
    words = _outside(text, lambda part: _WORD.sub(lambda match: _WORDS[match.group()], part))
    plain = words.replace("\\{", "{").replace("\\}", "}")
    return text, words, _outside(plain, lambda part: part.replace("(", "[").replace(")", "]"))


def _outside(text: str, change: Callable[[str], str]) -> str:
    """The text with its parts outside of JSON strings changed."""
    return "".join(part if i % 2 else change(part) for i, part in enumerate(_STRING.split(text)))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


_DECODER = json.JSONDecoder(strict=False, parse_constant=_refuse)  # line ends inside strings are what was meant


def _read(text: str) -> list[Any]:
    """The one JSON value that the text is, mended where it must be; none where it is none."""
    for written in _mended(text):
        try:
            return [_DECODER.decode(written)]
        except (ValueError, RecursionError):
            continue
    return []


def _objects(text: str, key: str) -> list[Any]:
    """Every JSON object at the outermost level, in order, mended only where none has the key as the text stands.

    What is no JSON hides nothing: a brace that is never closed, a set `{1, 2}` after the answer, a stray quote.
    """
    found: list[Any] = []
    for written in _mended(text):
        found, end = [], 0
        while begin := _BEGIN.search(written, end):
            try:
                value, end = _DECODER.raw_decode(written, begin.start())
                found.append(value)
            except (ValueError, RecursionError):
                end = begin.start() + 1
        if any(key in value for value in found):
            return found
    return found

"""The tests' process: it asks, compares and tells the judge. No line of the solution is executed here."""

from __future__ import annotations

import builtins
import json
import math
import os
import select
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from fathom.judge.code.guest.messages import (
    IS_CLASS,
    MADE_BY_CLASS,
    MADE_BY_FUNCTION,
    SOCKET,
    Codec,
    Handle,
    Rows,
    Unfit,
    made,
    receive,
    send,
    silent,
)

LONGEST_DETAIL = 500  # characters of an exception's message
_SEEN_S = 0.1  # a process that dies closes its sockets before it can be waited for
_SHARED = "raised_by_the_solution"  # attribute that marks an exception
_UNFIT = ("nests too deep", "is too large", "is an endless list", "is an endless tree", "is endless")
_READ_TWICE = "is an iterator and was read twice"


def tell(*event: Any) -> None:
    """One line to the judge."""
    os.write(1, json.dumps(event).encode() + b"\n")


def leave(*event: Any) -> NoReturn:
    """A last line to the judge, past every `except` and `finally` that the test may have around."""
    tell(*event)
    tell("end")
    os._exit(0)


def gone() -> NoReturn:
    """Leaves because the solution's process ended, once the sandbox had the time to see how."""
    time.sleep(_SEEN_S)
    leave("gone")


class Calls:
    """The tests' end: what it asks the solution, and that each answer is one to the question."""

    def __init__(self, in_place: bool = False) -> None:
        self.codec = Codec(find=lambda number: Handle(self, number, self._made))
        self.in_place, self.answered = in_place, False
        self._asked = False
        self._made = MADE_BY_FUNCTION  # the handles in the answer that is being read
        self._looks: dict[str, Any] = {}  # what looking at things gave, until something may have changed them
        self._texts: dict[str, Any] = {}  # and the texts of functions' answers, for good

    def ask(self, asked: str, *parts: Any, coded: bool = False) -> Any:
        """The value that the solution's process gives; the exception that it raises is raised here."""
        self.check_silence()
        about = [*parts] if coded else [self._sent(part) for part in parts]
        if asked in ("get", "str"):
            seen = self._texts if asked == "str" and made(parts[0]) == MADE_BY_FUNCTION else self._looks
            key = json.dumps([asked, *about])
            said = seen[key] = seen.get(key) or self._answer(asked, about)
        else:
            self._looks.clear()
            said = self._answer(asked, about)
        self._made = _makes(asked, *parts)
        return self._value(*said)

    def _sent(self, part: Any) -> Any:
        try:
            return self.codec.encode(part)
        except Unfit as error:
            raise Unfit(f"argument {error}") from None

    def _answer(self, asked: str, about: list[Any]) -> list[Any]:
        """How it went, and what came of it, as it was sent."""
        if not self._asked:
            self._asked = True
            tell("asked")
        number = int.from_bytes(os.urandom(7), "big")
        try:
            send([number, asked, *about])
            reply = self._reply()
        except Unfit as error:
            raise Unfit(f"question {error}") from None
        except (EOFError, OSError):
            gone()
        if not isinstance(reply, list) or len(reply) < 2 or reply[0] != number:
            leave("fail", "answered out of turn")
        # Data in a function's place: what it costs to read them, or a sound test to stumble over them, is its doing.
        if not (asked == "name" and _is_handle(reply[1:])):
            self._answers()
        return reply[1:]

    def _reply(self) -> Any:
        try:
            return receive()
        except Unfit as error:
            leave("fail", "answer is too large" if str(error) == "is too large" else "answered out of turn")
        except MemoryError:  # brackets take a hundred times their bytes
            leave("fail", "answer is too large")

    def _answers(self) -> None:
        """Tells once that the solution answered: whatever fails from here on may be its doing."""
        if not self.answered:
            self.answered = True
            tell("answered")

    def _value(self, how: Any, *said: Any) -> Any:
        if how == "value" and len(said) == 1:
            try:
                return self.codec.decode(said[0])
            except (Unfit, RecursionError):
                leave("fail", "answer is not a value")
        if how == "raised" and len(said) == 2:
            raise _raised(*said)
        if how == "missing":
            leave("fail", "does not define the name asked for")
        if how == "unfit" and said and said[0] in _UNFIT:
            leave("fail", f"answer {said[0]}")
        leave("fail", "answered out of turn")

    def call(self, function: Handle, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call with copies of the arguments; with `in_place` the caller's lists, dicts and sets follow."""
        if not self.in_place:
            return self.ask("call", function, args, kwargs)
        value, after = self.ask("call in place", function, args, kwargs)
        for mine, changed in zip(args, after, strict=False):
            if isinstance(mine, list) and isinstance(changed, list):
                mine[:] = changed
            elif isinstance(mine, dict | set) and type(changed) is type(mine):
                mine.clear()
                mine.update(changed)
        return value

    def check_silence(self) -> None:
        """Ends the tests where the solution sent something that nobody asked for."""
        ready, _, _ = select.select([SOCKET], [], [], 0)
        if not ready:
            return
        try:
            receive()
        except (EOFError, OSError):
            gone()
        except Unfit:
            pass
        leave("fail", "wrote to the tests unasked")


def _makes(asked: str, thing: Any, *parts: Any) -> int:
    """Where the handles in an answer are from. A class is what is named like one."""
    if asked == "name":
        return IS_CLASS if thing[:1].isupper() else MADE_BY_FUNCTION
    if asked == "get" and made(thing):
        return IS_CLASS if made(thing) == IS_CLASS and parts[0][:1].isupper() else MADE_BY_CLASS
    return MADE_BY_CLASS if isinstance(thing, Handle) and made(thing) == IS_CLASS else MADE_BY_FUNCTION


def _is_handle(said: list[Any]) -> bool:
    return said[0] == "value" and isinstance(said[-1], list) and said[-1][:1] == ["h"]


def _raised(name: Any, message: Any) -> Exception:
    kind = getattr(builtins, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        kind = Exception
    # Out of a function that map or zip calls, a StopIteration would end them as if all had been read.
    stops = issubclass(kind, StopIteration | StopAsyncIteration)
    try:
        error = RuntimeError(str(message)) if stops else kind(str(message))
    except TypeError:  # UnicodeDecodeError and others of several arguments
        error = Exception(str(message))
    setattr(error, _SHARED, kind.__name__)
    return error


def same(given: Any, expected: Any, tolerance: float | None) -> bool:
    """Whether a value is the expected one.

    Tuples, deques, ranges and iterators count as lists, and keys as JSON writes them; numbers may differ by `tolerance`
    where it is set.
    """
    if isinstance(given, Rows):
        given = list(given)
    if isinstance(expected, list | tuple):
        return (
            isinstance(given, list | tuple | deque | range)
            and len(given) == len(expected)
            and all(same(*pair, tolerance) for pair in zip(given, expected, strict=True))
        )
    if isinstance(expected, dict):
        if not isinstance(given, dict) or len(given) != len(expected):
            return False
        if given.keys() != expected.keys():
            given, expected = ({_key(key): value for key, value in one.items()} for one in (given, expected))
        return given.keys() == expected.keys() and all(same(given[key], expected[key], tolerance) for key in expected)
    if tolerance is not None and isinstance(expected, int | float) and isinstance(given, int | float):
        return given == expected or _near(given, expected, tolerance)
    return bool(given == expected)


def _near(given: float, expected: float, tolerance: float) -> bool:
    try:
        if not (math.isfinite(given) and math.isfinite(expected)):
            return False
        return abs(given - expected) <= tolerance * max(1.0, abs(expected))
    except OverflowError:  # a whole number beyond any float
        return False


def _key(key: Any) -> Any:
    """A key as JSON writes it; itself where JSON has none."""
    if key is None or type(key) in (bool, float):
        return json.dumps(key)
    return format(key, "d") if type(key) is int and key.bit_length() < 64 else key


def examine(text: str) -> None:
    """Runs the tests that `text` describes, and tells the judge what came of each."""
    spec = json.loads(text)
    calls = Calls(spec.get("in_place", False))
    sys.stdout = sys.stderr = silent()
    if "value_of" in spec:
        args, kwargs = spec["value_of"]["args"], spec["value_of"]["kwargs"]
        _one(lambda: _tell_value(calls, spec["value_of"]["name"], args, kwargs))
    elif "cases" in spec:
        for case in spec["cases"]:
            _one(partial(_case, calls, spec, case), spec["stop"])
    else:
        names: dict[str, Any] = {"__name__": "tests"}
        _one(lambda: _begin(calls, spec, names), stop=True, counts=False)
        for test in spec["tests"]:
            _one(partial(_execute, test, names), spec["stop"])
    calls.check_silence()
    leave("done")


def _tell_value(calls: Calls, name: str, args: Any, kwargs: Any) -> None:
    calls.ask("name", name, coded=True)
    tell("loaded")
    value = calls.ask("solve", name, [], "", None, args, kwargs, coded=True)
    tell("value", calls.codec.encode(value))


def _case(calls: Calls, spec: dict[str, Any], case: list[Any]) -> None:
    args, expected = case
    try:
        value = calls.ask("solve", spec["name"], spec["takes"], spec["gives"], spec["result"], args, ["d"], coded=True)
    except Unfit:  # of the message, in which nothing is the solution's
        leave("large")
    wanted = calls.codec.decode(expected)
    alone = wanted[0] if spec["unwrap"] and isinstance(wanted, list) and len(wanted) == 1 else wanted
    if not (same(value, wanted, spec["tolerance"]) or same(value, alone, spec["tolerance"])):
        raise AssertionError


def _begin(calls: Calls, spec: dict[str, Any], names: dict[str, Any]) -> None:
    _execute(spec["given"], names)
    for name in spec["names"]:
        names[name] = calls.ask("name", name, coded=True)
    _execute(spec["setup"], names)


def _execute(source: str, names: dict[str, Any]) -> None:
    exec(compile(source, "test.py", "exec", dont_inherit=True), names)


def _one(test: Callable[[], None], stop: bool = True, counts: bool = True) -> None:
    """Runs one test and tells how it went; ends all where it failed and that settles it."""
    try:
        test()
    except BaseException as error:  # SystemExit of a test's must not end it as if it had passed
        shared = getattr(error, _SHARED, None)
        if shared is not None:
            said = ("fail", f"raised {shared}", str(error)[:LONGEST_DETAIL])
        elif isinstance(error, Unfit) and str(error) in (*_UNFIT, _READ_TWICE):
            said = ("fail", f"answer {error}", "")
        elif isinstance(error, AssertionError):
            said = ("fail", "wrong output", "")
        else:
            if isinstance(error, TypeError | AttributeError) and Handle.__name__ in str(error):
                tell("answered")  # by a thing in the place of data: that the test stumbles may be its doing
            said = ("test", type(error).__name__, str(error)[:LONGEST_DETAIL])
        (leave if stop else tell)(*said)
        return
    if counts:
        tell("pass")

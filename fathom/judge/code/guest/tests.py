"""The tests' process: it asks, compares and tells the judge. No line of the solution is executed here."""

from __future__ import annotations

import builtins
import json
import os
import select
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from fathom.judge.code.guest.messages import SOCKET, Codec, Handle, Unfit, receive, send, silent

LONGEST_DETAIL = 500  # characters of an exception's message
_SEEN_S = 0.1  # a process that dies closes its sockets before it can be waited for
_SHARED = "raised_by_the_solution"  # attribute that marks an exception
_UNFIT = ("nests too deep", "is too large", "is an endless list", "is an endless tree")


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
        self.codec = Codec(find=lambda number: Handle(self, number))
        self.in_place, self.answered = in_place, False

    def ask(self, asked: str, *parts: Any, coded: bool = False) -> Any:
        """The value that the solution's process gives; the exception that it raises is raised here."""
        self.check_silence()
        number = int.from_bytes(os.urandom(7), "big")
        message = [number, asked, *(parts if coded else map(self.codec.encode, parts))]
        try:
            send(message)
            reply = self._reply()
        except (EOFError, OSError):
            gone()
        if not isinstance(reply, list) or len(reply) < 2 or reply[0] != number:
            leave("fail", "answered out of turn")
        if asked != "name":
            self._answers()
        value = self._value(*reply[1:])
        if not isinstance(value, Handle):  # data in a function's place, over which a sound test may stumble
            self._answers()
        return value

    def _reply(self) -> Any:
        try:
            return receive()
        except Unfit as error:
            leave("fail", "answer is too large" if str(error) == "is too large" else "answered out of turn")

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


def _raised(name: Any, message: Any) -> Exception:
    kind = getattr(builtins, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        kind = Exception
    try:
        error = kind(str(message))
    except TypeError:  # UnicodeDecodeError and others of several arguments
        error = Exception(str(message))
    setattr(error, _SHARED, kind.__name__)
    return error


def same(given: Any, expected: Any, tolerance: float | None) -> bool:
    """Whether a value is the expected one: tuples count as lists, numbers may differ by `tolerance` where it is set."""
    if isinstance(expected, list | tuple):
        return (
            isinstance(given, list | tuple)
            and len(given) == len(expected)
            and all(same(*pair, tolerance) for pair in zip(given, expected, strict=True))
        )
    if isinstance(expected, dict):
        return (
            isinstance(given, dict)
            and given.keys() == expected.keys()
            and all(same(given[key], expected[key], tolerance) for key in expected)
        )
    if tolerance is not None and isinstance(expected, int | float) and isinstance(given, int | float):
        return given == expected or abs(given - expected) <= tolerance * max(1.0, abs(expected))
    return bool(given == expected)


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
    value = calls.ask("solve", spec["name"], spec["takes"], spec["gives"], spec["result"], args, ["d"], coded=True)
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
        elif isinstance(error, AssertionError):
            said = ("fail", "wrong output", "")
        else:
            said = ("test", type(error).__name__, str(error)[:LONGEST_DETAIL])
        (leave if stop else tell)(*said)
        return
    if counts:
        tell("pass")

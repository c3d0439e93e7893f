"""Two programs for the sandbox, joined by a socket: a solution that answers calls and the tests that make them.

The verdict is what the tests' process told before it ended, as the sandbox's server saw it end. The solution has no way
to that process but answers to calls, and those are data.
"""

from __future__ import annotations

import ast
import binascii
import builtins
import functools
import json
import marshal
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fathom.judge.code.guest.messages import Codec, Unfit
from fathom.judge.sandbox import End, Limits, Program, Ran

MORE_WALL_S = 5.0  # that the tests have beyond the solution, so that it is the solution which meets the limit
_TOLD_KB = 1024  # what the tests may tell the judge
_GUEST = Path(__file__).parent / "guest"


@dataclass(frozen=True)
class Told:
    """What came of a pair.

    `passed` tests passed, and `failure` is why the first one that failed did; it is empty where all passed. `broken`
    says why nothing is known of the solution: the sandbox broke, or the tests did before the solution answered.
    """

    passed: int
    failure: str = ""
    broken: str = ""
    detail: str = ""  # the message of an exception
    loaded: bool = False  # of `value_of`: the function was there
    value: Any = None  # of `value_of`, coded


def pair(sources: Sequence[str], spec: Mapping[str, Any], limits: Limits) -> tuple[Program, Program]:
    """The solution's program, which runs `sources` as one module, and the tests' program, which does what `spec` says.

    A spec holds either `tests` (sources), with `given` and `setup` run before them and the `names` that they take from
    the solution; or `cases`; or `value_of`. See `fathom.judge.code` for who writes which.
    """
    solution = f"{_guest('solution')}\nserve({list(sources)!a})\n"
    tests = f"{_guest('tests')}\nexamine({json.dumps(spec)!a})\n"
    more = replace(limits, wall_s=limits.wall_s + MORE_WALL_S, cpu_s=limits.cpu_s + MORE_WALL_S, output_kb=_TOLD_KB)
    return Program(solution, limits=limits), Program(tests, limits=more)


@functools.cache
def _guest(side: str) -> str:
    """Source that defines what one side needs: the messages and the side, compiled once for all programs.

    Compiling takes 5 ms, in either program of every pair; the sandbox runs the interpreter that runs this.
    """
    body: list[ast.stmt] = []
    for name, ours in (("messages", ("fathom",)), (side, ("fathom", "__future__"))):
        tree = ast.parse((_GUEST / f"{name}.py").read_text(encoding="utf-8"))
        body += [
            statement
            for statement in tree.body
            if not (isinstance(statement, ast.ImportFrom) and str(statement.module).startswith(ours))
        ]
    code = compile(ast.Module(body, []), f"{side}.py", "exec", dont_inherit=True, optimize=2)
    packed = binascii.b2a_base64(zlib.compress(marshal.dumps(code)), newline=False).decode()
    unpacked = f"zlib.decompress(binascii.a2b_base64({packed!r}))"
    return f"import binascii, marshal, zlib\nexec(marshal.loads({unpacked}))"


def said(solution: Ran, tests: Ran, count: int) -> Told:
    """What came of a pair with `count` tests."""
    for ran in (solution, tests):
        if ran.ended is End.BROKEN:
            return Told(0, broken=ran.reason or "sandbox broke")
    try:
        events = [json.loads(line) for line in tests.stdout.splitlines(keepends=True) if line.endswith(b"\n")]
        names = [str(event[0]) for event in events]
    except (ValueError, TypeError, LookupError, RecursionError):  # a test that writes to descriptor 1 by itself
        return Told(0, broken="tests wrote to standard output")
    passed, answered = names.count("pass"), "answered" in names
    value = next((event[1] for event in events if event[0] == "value"), None)
    if not (tests.ended is End.EXITED and tests.code == 0 and names[-1:] == ["end"]):
        if tests.ended is End.LIMIT and ("asked" in names or solution.ended is End.LIMIT):
            return Told(passed, f"{limit(tests)} limit")
        return Told(passed, broken=f"tests ended early: {tests.limit or tests.ended}")
    loaded = "loaded" in names
    for event in events:
        if event[0] == "fail":
            return Told(passed, event[1], detail="".join(event[2:]), loaded=loaded)
        if event[0] == "gone":
            return Told(passed, ending(solution) or "exited before it answered", loaded=loaded)
        if event[0] == "large":
            return Told(passed, broken="arguments are too large")
        if event[0] == "test":
            how = f"test raised {event[1]}"
            return Told(passed, how) if answered else Told(passed, broken=how)
    if not answered:
        return Told(passed, broken="tests ask nothing of the solution")
    if passed != count:
        return Told(passed, broken="tests ended early")
    return Told(passed, loaded=loaded, value=value)


def ending(ran: Ran) -> str:
    """Why a program that ran did not end well, short and stable; empty where it did."""
    if ran.ended is End.LIMIT:
        return f"{limit(ran)} limit"
    if ran.ended is End.RAISED:
        name = (ran.exception or "").partition(":")[0].strip()
        if name == "MemoryError":
            return "memory limit"
        known = getattr(builtins, name, None)
        return f"raised {name}" if isinstance(known, type) else "raised an exception of its own"
    if ran.ended is End.SIGNALLED:
        return f"killed by signal {ran.code}"
    return "exited with an error" if ran.code else ""


def limit(ran: Ran) -> str:
    """The limit that a program met, in words: time, memory, output or disk."""
    return "time" if ran.limit in ("cpu", "wall", None) else ran.limit


def plain(value: Any) -> Any:
    """A JSON value as it travels to a solution."""
    return Codec().encode(value)


def restored(code: Any) -> Any:
    """The value that a solution gave, as the tests passed it on; Unfit where it is no plain data."""
    return Codec().decode(code)


__all__ = ["Told", "Unfit", "ending", "pair", "plain", "restored", "said"]

"""Programs against tests: what they print, what their functions return, what assertions say of them.

    tests = AssertTests.of(["assert add(1, 2) == 3", "assert add(-1, 1) == 0"])
    with CodeJudge() as judge:
        verdict = judge.judge([(tests, "```python\ndef add(a, b):\n    return a + b\n```")])[0]
    assert verdict.outcome is Outcome.RIGHT

Tests of functions run in a process of their own, which the solution reaches by nothing but the answers to calls.
"""

from __future__ import annotations

import builtins
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self, TypeVar, get_args

from fathom.core import machine
from fathom.core.errors import UsageError
from fathom.judge.code.calls import Told, ending, pair, plain, said
from fathom.judge.code.names import is_module, names
from fathom.judge.code.programs import Reading, program
from fathom.judge.extract import Unread
from fathom.judge.sandbox import End, Level, Limits, Program, Ran, Sandbox
from fathom.judge.verdict import Verdict

Credit = Literal["all", "share"]
WALL = 4  # seconds by the clock per second of processor: a busy machine must not look like a slow program
# what solutions import most, and what the sandbox's own side of a call needs
PRELOAD = (
    "binascii", "bisect", "collections", "collections.abc", "copy", "dataclasses", "datetime", "decimal", "fractions",
    "functools", "heapq", "itertools", "json", "marshal", "math", "operator", "random", "re", "select", "string",
    "typing", "zlib",
)  # fmt: skip
MOST_OUTPUT_MB = 4  # of an expected output
_HELD_KB = 256 << 10  # KiB of outputs that may be held at once
_STARVED = "starved of processor"  # what the sandbox says of a program that a busy machine kept from running
# what annotations need, as LeetCode has it imported
_TYPING = """\
from typing import (
    Any, Callable, DefaultDict, Deque, Dict, FrozenSet, Generator, Iterable, Iterator, List, Mapping, Optional,
    Sequence, Set, Tuple, Union,
)
"""
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class StdinTests:
    """A program is run once per test: it reads an input and must print an output, the same words in the same order.

    With a `tolerance` words that are numbers may differ by that much, relative to numbers beyond 1. A program may print
    twice what is expected and 64 KiB (`Limits.output_kb`) more; what it writes to standard error is dropped.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tolerance: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", tuple(self.inputs))
        object.__setattr__(self, "outputs", tuple(self.outputs))
        if len(self.inputs) != len(self.outputs) or not self.inputs:
            raise UsageError(f"{len(self.inputs)} inputs, {len(self.outputs)} outputs: give as many, and at least one")
        if not any(output.split() for output in self.outputs):
            raise UsageError("outputs are all empty: a program that does nothing prints them; give one that is not")
        if max(map(len, self.outputs)) > MOST_OUTPUT_MB << 20:
            raise UsageError(f"an output is longer than {MOST_OUTPUT_MB} Mi characters; leave that test out")

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class AssertTests:
    """Pieces of test code, each a test, that run after `setup`, taking `names` from the solution; `of` finds the names.

    `given` is trusted code that stands before the solution and before the tests: a prompt's imports and helpers, and in
    the mode "completion" the beginning of the function. Arguments are copies, so that a solution cannot change what it
    is compared with; with `in_place` the caller's lists, dicts and sets follow what the solution did to them.
    """

    tests: tuple[str, ...]
    names: tuple[str, ...]
    setup: str = ""
    given: str = ""
    in_place: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "tests", tuple(self.tests))
        object.__setattr__(self, "names", tuple(self.names))
        if not self.tests or not self.names:
            raise UsageError("tests without a test, or that take no name from the solution; give both")

    def __len__(self) -> int:
        return len(self.tests)

    @classmethod
    def of(
        cls,
        tests: Iterable[str],
        setup: str = "",
        given: str = "",
        entry: Iterable[str] = (),
        in_place: bool = False,
    ) -> Self:
        """Tests that take `entry` from the solution and every other name that they use and nobody trusted defines.

        What `given` or `setup` defines or imports is taken from there, but for `entry`. A module of the standard
        library that the tests use and forgot to import is imported. UsageError where the code is not Python.
        """
        pieces = tuple(tests)
        source = "\n".join([setup, *pieces])
        try:
            (_, known), (used, defined) = names(given), names(source)
        except SyntaxError as error:
            raise UsageError(f"test code is not Python ({str(error)[:80]}); correct it") from error
        wanted = used & set(entry)
        free = used - defined - known - set(dir(builtins)) - {"__file__"}
        modules = sorted(name for name in free - wanted if is_module(name, source))
        imports = "".join(f"import {name}\n" for name in modules)
        return cls(pieces, tuple(sorted(wanted | free - set(modules))), imports + setup, given, in_place)


@dataclass(frozen=True)
class CaseTests:
    """Calls of one function, or of a method of `Solution`, each with the arguments and the value expected, as JSON.

    `takes` and `gives` name what an argument or the value is converted to or from: ListNode (a list of its values),
    TreeNode (level by level, null for a missing child), "list of ListNode"; empty for no conversion. `result` is the
    argument that is compared after the call in place of the value. With `unwrap` an expected [x] may also be answered
    by x, as sets with one-element outputs are written. `given` and `tolerance` as for the other tests.
    """

    name: str
    cases: tuple[tuple[list[Any], Any], ...]
    takes: tuple[str, ...] = ()
    gives: str = ""
    result: int | None = None
    unwrap: bool = False
    given: str = ""
    tolerance: float | None = None

    def __post_init__(self) -> None:
        cases = tuple((list(args), expected) for args, expected in self.cases)
        object.__setattr__(self, "cases", cases)
        object.__setattr__(self, "takes", tuple(self.takes))
        if not self.name.isidentifier() or not cases:
            raise UsageError(f"name={self.name!r:.80} with {len(cases)} cases: give a function's name and its cases")
        result = self.result
        if result is not None and not (type(result) is int and all(0 <= result < len(args) for args, _ in cases)):
            raise UsageError(f"result={result!r:.80}: not the number of an argument of every case; count from 0")

    def __len__(self) -> int:
        return len(self.cases)


Tests = StdinTests | AssertTests | CaseTests
_KINDS: dict[str, type[StdinTests] | type[AssertTests] | type[CaseTests]] = {
    "stdin": StdinTests, "asserts": AssertTests, "cases": CaseTests,
}  # fmt: skip


def to_json(tests: Tests) -> dict[str, Any]:
    """The tests as a JSON value; `from_json` restores equal ones."""
    kind = next(name for name, kind in _KINDS.items() if type(tests) is kind)
    return {"kind": kind, **asdict(tests)}


def from_json(value: Mapping[str, Any]) -> Tests:
    """Reads what `to_json` wrote."""
    kind = _KINDS[value["kind"]]
    return kind(**{field.name: value[field.name] for field in fields(kind)})


class CodeJudge:
    """Verdicts on programs; a context manager, or `close` it. The sandbox starts with the first `judge`.

    RIGHT is all tests passed. A WRONG program scores 0, at its first failure; with `credit` share it is run to the end
    and scores the share of tests that it passed. At most the first `most_tests` are run. `limits` hold for a program:
    for each test of standard input and output, for all tests of a function together. What is `preload`ed starts fast.
    `require_level` is Sandbox's. No more than one program per processor runs at a time, whatever `workers` says: more
    would take the time from each other that each may use. One that a busy machine starved is run again, alone.
    """

    def __init__(
        self,
        *,
        workers: int = 2,
        limits: Limits | None = None,
        preload: Sequence[str] = (),
        require_level: Level = Level.L0,
        credit: Credit = "all",
        most_tests: int | None = None,
    ) -> None:
        if credit not in get_args(Credit):
            raise UsageError(
                f"credit={credit!r:.80}: must be all or share; say how a program is paid that fails some tests"
            )
        if most_tests is not None and (isinstance(most_tests, bool) or most_tests < 1):
            raise UsageError(f"most_tests={most_tests!r:.80}: must be ≥ 1; leave it out to run all tests")
        self.workers, self.limits, self.most_tests = min(workers, machine.cores()), limits or Limits(), most_tests
        self._share = credit == "share"
        self.preload, self.require_level = tuple(dict.fromkeys((*PRELOAD, *preload))), require_level
        self._sandbox: Sandbox | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the sandbox; a later `judge` starts a new one."""
        with self._lock:
            if self._sandbox is not None:
                self._sandbox.close()
            self._sandbox = None

    def judge(self, items: Sequence[tuple[Tests, str]], read: Reading = "block") -> list[Verdict]:
        """One verdict per (tests, completion text), in order; what is read of the text is `programs.program`'s.

        UNREAD: no program in the text. FAILED: the sandbox broke, or the tests did before they asked anything.
        """
        verdicts: list[Verdict | None] = [None] * len(items)
        codes: dict[int, str] = {}
        for position, (tests, text) in enumerate(items):
            if read == "completion" and not isinstance(tests, AssertTests):
                raise UsageError("read=completion: needs AssertTests, whose `given` begins the function; use block")
            found = program(text, read)
            if isinstance(found, Unread):
                verdicts[position] = Verdict.unread(found.reason)
            else:
                codes[position] = found.answer
        printing = {i: tests for i in codes if isinstance(tests := items[i][0], StdinTests)}
        calling = {i: tests for i in codes if not isinstance(tests := items[i][0], StdinTests)}
        told = self._print({i: codes[i] for i in printing}, printing)
        told |= self._call({i: codes[i] for i in calling}, calling, read)
        for i, one in told.items():
            verdicts[i] = self._verdict(one, self._count(items[i][0]), codes[i])
        return [verdict for verdict in verdicts if verdict is not None]

    def values(self, calls: Sequence[tuple[str, str, Sequence[Any], Mapping[str, Any]]]) -> list[Told]:
        """What (source, function's name, arguments, named arguments) gives, for each; `Told.value` is coded data."""
        specs = [
            ([source], {"value_of": {"name": name, "args": plain(list(args)), "kwargs": plain(dict(named))}})
            for source, name, args, named in calls
        ]
        return self._pairs(specs, [1] * len(specs))

    def _verdict(self, told: Told, count: int, code: str) -> Verdict:
        if told.broken:
            return Verdict.failed(told.broken, code)
        if told.failure:
            return Verdict.wrong(told.failure, code, told.passed / count if self._share else 0.0)
        return Verdict.right("all tests passed", code)

    def _count(self, tests: Tests) -> int:
        return len(tests) if self.most_tests is None else min(len(tests), self.most_tests)

    # Functions.

    def _call(
        self, codes: Mapping[int, str], tests: Mapping[int, AssertTests | CaseTests], read: Reading
    ) -> dict[int, Told]:
        specs = [self._spec(tests[i], codes[i], read) for i in codes]
        return dict(zip(codes, self._pairs(specs, [self._count(tests[i]) for i in codes]), strict=True))

    def _spec(self, tests: AssertTests | CaseTests, code: str, read: Reading) -> tuple[list[str], dict[str, Any]]:
        count = self._count(tests)
        sources = [f"{tests.given.rstrip()}\n{code}"] if read == "completion" else [tests.given, code]
        if isinstance(tests, AssertTests):
            about: dict[str, Any] = {"tests": tests.tests[:count], "names": tests.names, "setup": tests.setup}
            about |= {"given": tests.given, "in_place": tests.in_place}
        else:
            sources.insert(0, _TYPING)
            cases = [(plain(args), plain(expected)) for args, expected in tests.cases[:count]]
            about = {"cases": cases, "name": tests.name, "takes": tests.takes, "gives": tests.gives}
            about |= {"result": tests.result, "unwrap": tests.unwrap, "tolerance": tests.tolerance}
        return sources, {**about, "stop": not self._share}

    def _pairs(self, specs: Sequence[tuple[list[str], dict[str, Any]]], counts: Sequence[int]) -> list[Told]:
        if not specs:
            return []
        pairs = [pair(sources, spec, self.limits) for sources, spec in specs]
        with self._lock:
            ended = _again(self._opened().run_pairs, pairs, lambda rans: any(map(_starved, rans)))
        return [said(*rans, count) for rans, count in zip(ended, counts, strict=True)]

    # Standard input and output.

    def _print(self, codes: Mapping[int, str], tests: Mapping[int, StdinTests]) -> dict[int, Told]:
        """What came of each program: all tests at once for a share, else in waves that only the good survive."""
        told = {i: Told(0) for i in codes}
        first, size = 0, max(map(len, tests.values()), default=0) if self._share else 1
        while alive := [i for i in codes if first < self._count(tests[i]) and not (told[i].failure or told[i].broken)]:
            asked = [(i, test) for i in alive for test in range(first, min(first + size, self._count(tests[i])))]
            programs = [_printing(codes[i], tests[i], test, self.limits) for i, test in asked]
            for batch in _batches(programs):
                with self._lock:
                    ended = _again(self._opened().run, programs[batch], _starved)
                for (i, test), ran in zip(asked[batch], ended, strict=True):
                    told[i] = _added(told[i], ran, tests[i].outputs[test], tests[i].tolerance, self._share)
            first, size = first + size, size * 2
        return told

    def _opened(self) -> Sandbox:
        if self._sandbox is None:
            self._sandbox = Sandbox(workers=self.workers, preload=self.preload, require_level=self.require_level)
        return self._sandbox


def _starved(ran: Ran) -> bool:
    return ran.ended is End.BROKEN and ran.reason == _STARVED


def _again(run: Callable[[Sequence[_T]], list[_R]], jobs: Sequence[_T], starved: Callable[[_R], bool]) -> list[_R]:
    """What came of each job; those that were starved are run once more when all others are done, one at a time."""
    ended = run(jobs)
    return [run([job])[0] if starved(one) else one for job, one in zip(jobs, ended, strict=True)]


def _printing(code: str, tests: StdinTests, test: int, limits: Limits) -> Program:
    """The program of one test. Its standard error goes nowhere: debug lines must not count as output."""
    source = (
        "import os\n_null = os.open(os.devnull, os.O_WRONLY)\nos.dup2(_null, 2)\nos.close(_null)\ndel os, _null\n"
        f"exec(compile({code.removeprefix(chr(0xFEFF))!a}, __file__, 'exec', dont_inherit=True))\n"
    )
    room_kb = limits.output_kb + -(-2 * len(tests.outputs[test].encode(errors="replace")) // 1024)
    return Program(source, tests.inputs[test], limits=replace(limits, output_kb=room_kb))


def _batches(programs: Sequence[Program]) -> Iterator[slice]:
    """Slices of the programs whose outputs may be held at once."""
    begin = held = 0
    for i, one in enumerate(programs):
        held += one.limits.output_kb
        if held > _HELD_KB and i > begin:
            yield slice(begin, i)
            begin, held = i, one.limits.output_kb
    yield slice(begin, len(programs))


def _added(told: Told, ran: Ran, output: str, tolerance: float | None, share: bool) -> Told:
    """What is told of a program after one more test. A failure settles it, unless a share is asked for."""
    if ran.ended is End.BROKEN:
        settled = bool(told.failure) and not share
        return told if settled else Told(told.passed, told.failure, told.broken or ran.reason or "sandbox broke")
    failure = ending(ran) or ("" if same_words(ran.stdout, output, tolerance) else "wrong output")
    if failure:
        return Told(told.passed, told.failure or failure, told.broken if share else "")
    return Told(told.passed + 1, told.failure, told.broken)


def same_words(printed: bytes, expected: str, tolerance: float | None = None) -> bool:
    """Whether as many words were printed as expected, each the same or a number as near as `tolerance` allows."""
    given, wanted = printed.decode(errors="replace").split(), expected.split()
    return len(given) == len(wanted) and all(
        one == other or (tolerance is not None and _near(one, other, tolerance))
        for one, other in zip(given, wanted, strict=True)
    )


def _near(given: str, wanted: str, tolerance: float) -> bool:
    if "_" in given:  # Python's spelling of a number, which no printed number has
        return False
    try:
        one, other = float(given), float(wanted)
    except ValueError:
        return False
    return math.isfinite(one) and math.isfinite(other) and abs(one - other) <= tolerance * max(1.0, abs(other))

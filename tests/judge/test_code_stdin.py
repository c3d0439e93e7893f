"""Programs on standard input and output: every word, in order, and not one less."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from fathom.core.errors import UsageError
from fathom.judge.code import AssertTests, CodeJudge, StdinTests, same_words
from fathom.judge.code import judge as code
from fathom.judge.sandbox import End, Limits, Program, Ran
from fathom.judge.verdict import Outcome

SUMS = StdinTests(("1 2\n", "2 3\n", "3 4\n", "5 5\n", "0 0\n"), ("3\n", "5", "7\n\n", "10", "0"))
SUM = "print(sum(map(int, input().split())))"


def block(source: str) -> str:
    return f"```python\n{source}\n```"


@pytest.mark.parametrize(
    ("printed", "expected", "tolerance", "same"),
    [
        (b"1 2\n3", "1\n2 3\n", None, True),
        (b"  1\t2 ", "1 2", None, True),
        (b"", "", None, True),
        (b"1 2", "1 2 3", None, False),
        (b"1 2 3", "1 2", None, False),
        (b"1", "", None, False),
        (b"", "1", None, False),
        (b"yes", "YES", None, False),
        (b"1.0", "1", None, False),
        (b"1.0", "1", 1e-9, True),
        (b"0.3333333", "0.33333333333", 1e-6, True),
        (b"0.34", "0.33333333333", 1e-6, False),
        (b"1000001", "1000000", 1e-6, True),
        (b"nan", "1", 1e-6, False),
        (b"inf", "1", 1e-6, False),
        (b"x", "1", 1e-6, False),
        (b"1_000", "1000", 1e-6, False),
        (b"\xff", "1", None, False),
    ],
)
def test_same_words(printed: bytes, expected: str, tolerance: float | None, same: bool) -> None:
    assert same_words(printed, expected, tolerance) is same


def test_programs_that_print() -> None:
    programs = {
        SUM: (Outcome.RIGHT, "all tests passed"),
        f"{SUM}\nexit()": (Outcome.RIGHT, "all tests passed"),
        "print(3)": (Outcome.WRONG, "wrong output"),
        f"{SUM}\nprint(0)": (Outcome.WRONG, "wrong output"),
        "": (Outcome.UNREAD, "code block is empty"),
        "pass": (Outcome.WRONG, "wrong output"),
        f"{SUM}\nimport sys\nsys.exit(1)": (Outcome.WRONG, "exited with an error"),
        f"{SUM}\nraise ValueError": (Outcome.WRONG, "raised ValueError"),
        "while True:\n    pass": (Outcome.WRONG, "time limit"),
        "while True:\n    print('x' * 10_000)": (Outcome.WRONG, "output limit"),
        "x = [0] * 10**9": (Outcome.WRONG, "memory limit"),
        f"if __name__ == '__main__':\n    {SUM}": (Outcome.RIGHT, "all tests passed"),
        f"from __future__ import annotations\n{SUM}": (Outcome.RIGHT, "all tests passed"),
        f"import sys\nprint('debug ' * 100_000, file=sys.stderr)\n{SUM}": (Outcome.RIGHT, "all tests passed"),
        f"import os\nos.write(2, b'x' * 300_000)\n{SUM}": (Outcome.RIGHT, "all tests passed"),
        f"{SUM} +": (Outcome.WRONG, "raised SyntaxError"),
    }
    with CodeJudge(limits=Limits(cpu_s=1.0, wall_s=10.0, memory_mb=256)) as judge:
        verdicts = judge.judge([(SUMS, block(source)) for source in programs])
    assert dict(zip(programs, [(v.outcome, v.reason) for v in verdicts], strict=True)) == programs


def test_as_much_may_be_printed_as_is_expected() -> None:
    numbers = StdinTests(("200000",), (" ".join(map(str, range(200_000))),))
    count, more = "print(*range(int(input())))", "print(*range(3 * int(input())))"
    with CodeJudge() as judge:
        verdicts = judge.judge([(numbers, block(source)) for source in (count, more)])
    assert [verdict.reason for verdict in verdicts] == ["all tests passed", "output limit"]


class Recorded:
    """A sandbox that answers as `ends` says, and remembers what it ran: the program's only word and its input."""

    ran: list[list[str]]
    ends: dict[str, Ran]

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def run(self, programs: Sequence[Program]) -> list[Ran]:
        words = [next(word for word in "abc" if f"'{word}\\n'" in program.source) for program in programs]
        self.ran.append([f"{word} {program.stdin!s}" for word, program in zip(words, programs, strict=True)])
        return [self.ends.get(name, Ran(End.EXITED, 0, stdout=b"ok")) for name in self.ran[-1]]

    def run_pairs(self, pairs: Sequence[tuple[Program, Program]]) -> list[tuple[Ran, Ran]]:
        return [(Ran(End.BROKEN, reason="no processes left"), Ran(End.EXITED, 0)) for _ in pairs]

    def close(self) -> None:
        pass


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Recorded]]:
    monkeypatch.setattr(code, "Sandbox", Recorded)
    Recorded.ran, Recorded.ends = [], {}
    yield Recorded


FIVE = StdinTests(tuple("01234"), ("ok",) * 5)


def test_a_program_that_failed_is_not_run_again(recorded: type[Recorded]) -> None:
    recorded.ends = {"b 1": Ran(End.EXITED, 0, stdout=b"no")}
    verdicts = CodeJudge().judge([(FIVE, block("a")), (FIVE, block("b")), (FIVE, block("c"))])
    assert [verdict.score for verdict in verdicts] == [1.0, 0.0, 1.0]
    assert recorded.ran == [
        ["a 0", "b 0", "c 0"],
        ["a 1", "a 2", "b 1", "b 2", "c 1", "c 2"],
        ["a 3", "a 4", "c 3", "c 4"],
    ]


def test_a_share_runs_all_tests_at_once(recorded: type[Recorded]) -> None:
    recorded.ends = {"a 1": Ran(End.EXITED, 0, stdout=b"no"), "a 3": Ran(End.LIMIT, limit="cpu")}
    (verdict,) = CodeJudge(credit="share").judge([(FIVE, block("a"))])
    assert (verdict.score, verdict.reason) == (0.6, "wrong output")
    assert recorded.ran == [["a 0", "a 1", "a 2", "a 3", "a 4"]]
    (few,) = CodeJudge(credit="share", most_tests=2).judge([(FIVE, block("a"))])
    assert few.score == 0.5


BUSY = Ran(End.BROKEN, reason="starved of processor")


def test_a_broken_sandbox_is_no_wrong_answer(recorded: type[Recorded]) -> None:
    recorded.ends = {"a 1": BUSY, "b 1": BUSY, "b 2": Ran(End.EXITED, 3)}
    broken, failed = CodeJudge().judge([(FIVE, block("a")), (FIVE, block("b"))])
    assert (broken.outcome, broken.score, broken.reason) == (Outcome.FAILED, None, "starved of processor")
    assert (failed.outcome, failed.reason) == (Outcome.WRONG, "exited with an error")  # one failure settles it
    (share,) = CodeJudge(credit="share").judge([(FIVE, block("b"))])
    assert share.outcome is Outcome.FAILED
    called = CodeJudge().judge([(AssertTests.of(["assert f() == 1"]), block("def f(): return 1"))])
    assert [(v.outcome, v.reason) for v in called] == [(Outcome.FAILED, "no processes left")]


def test_what_was_starved_is_run_once_more_alone(recorded: type[Recorded], monkeypatch: pytest.MonkeyPatch) -> None:
    recorded.ends = {"a 0": BUSY, "c 0": BUSY}
    one = StdinTests(("0",), ("ok",))
    found = CodeJudge().judge([(one, block(word)) for word in "abc"])
    assert [verdict.outcome for verdict in found] == [Outcome.FAILED, Outcome.RIGHT, Outcome.FAILED]
    assert recorded.ran == [["a 0", "b 0", "c 0"], ["a 0"], ["c 0"]]
    again = iter([BUSY, Ran(End.EXITED, 0, stdout=b"ok")])
    monkeypatch.setattr(Recorded, "run", lambda self, programs: [next(again)])
    assert CodeJudge().judge([(one, block("a"))])[0].outcome is Outcome.RIGHT


def test_outputs_of_many_programs_are_held_a_few_at_a_time(
    recorded: type[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code, "_HELD_KB", 150)
    found = CodeJudge().judge([(FIVE, block(word)) for word in "abc"])
    assert [verdict.outcome for verdict in found] == [Outcome.RIGHT] * 3
    assert recorded.ran[:2] == [["a 0", "b 0"], ["c 0"]] and sum(map(len, recorded.ran)) == 15


def test_no_more_programs_at_once_than_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3}, raising=False)
    assert CodeJudge(workers=64).workers == 2 and CodeJudge(workers=1).workers == 1


def test_impossible_tests_are_refused() -> None:
    with pytest.raises(UsageError, match="all empty"):
        StdinTests(("1", "2"), ("", "\n"))
    assert len(StdinTests(("1", "2"), ("", "1"))) == 2
    with pytest.raises(UsageError, match="longer than 4 Mi"):
        StdinTests(("1",), ("x" * (4 << 20) + "y",))
    with pytest.raises(UsageError, match="2 inputs, 1 outputs"):
        StdinTests(("1", "2"), ("1",))
    with pytest.raises(UsageError, match="0 inputs"):
        StdinTests((), ())
    with CodeJudge() as judge, pytest.raises(UsageError, match="read=completion"):
        judge.judge([(SUMS, "    pass")], read="completion")

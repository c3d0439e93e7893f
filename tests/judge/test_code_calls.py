"""Values that travel between a solution and its tests: whole, or not at all."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.judge.code.calls import said
from fathom.judge.code.guest.messages import DEEPEST, Codec, Handle, Unfit
from fathom.judge.code.guest.tests import same
from fathom.judge.sandbox import End, Ran

HASHABLE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
    | st.decimals(allow_nan=False) | st.fractions() | st.complex_numbers(allow_nan=False)
    | st.dates() | st.datetimes() | st.timedeltas(),
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
VALUES = st.recursive(
    HASHABLE,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(HASHABLE, inner, max_size=3)
    | st.sets(HASHABLE, max_size=3),
    max_leaves=8,
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.sampled_from("ltsfdibcThnxrDI"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=12,
)


class NoCalls:
    def ask(self, asked: str, *parts: Any) -> Any:
        raise AssertionError(asked)

    def call(self, function: Handle, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        raise AssertionError("called")


@pytest.mark.property
@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_what_is_decoded_is_what_was_encoded(value: Any) -> None:
    back = Codec().decode(json.loads(json.dumps(Codec().encode(value))))
    assert back == value and type(back) is type(value)


@pytest.mark.property
@settings(max_examples=150, deadline=None)
@given(st.lists(JSON, min_size=1))
def test_bytes_from_a_solution_are_a_value_or_unfit(code: list[Any]) -> None:
    try:
        value = Codec(find=lambda number: Handle(NoCalls(), number)).decode(code)
    except Unfit:
        return
    with suppress(Unfit):  # of an iterator that was cut
        same(value, value, None)  # and whatever it is, comparing it asks nobody


@pytest.mark.parametrize(
    "code",
    [
        [], ["?"], [1], {}, ["i", "zz"], ["i"], ["d", 1], ["s", ["l"]], ["T", "exec"], ["b", 1], ["c", "x"],
        ["x", "os", "system", ["t", "true"]], ["x", "decimal", "getcontext", ["t"]],
        ["x", "decimal", "Decimal", ["t", "x"]], ["x", ["l"], "Decimal", ["t"]],
        ["x", "Fraction", "1e999999999"], ["x", "Fraction", ["i", "f" * 10_000], 3], ["x", "Fraction", 1, 0],
        ["x", "Fraction", 1.5, 1], ["x", "Decimal", "1" * 10_001], ["x", "Decimal", 1], ["x", "date", "x" * 10],
        ["x", "timedelta", ["i", "f" * 10_000]], ["x", "datetime_CAPI"], ["x"],
        ["r", 1.5], ["r", 0, ["i", "f" * 20]], ["r", 1, 2, 0], ["I"], ["I", 1], ["c", "1"],
        ["s", *(["i", format((2**61 - 1) * i, "x")] for i in range(101))],
        ["h", 1], ["h", True], ["n"], [["l"]], ["f", ["d"]], ["l", {}],
    ],
)  # fmt: skip
def test_what_is_no_value_is_unfit(code: Any) -> None:
    with pytest.raises(Unfit):
        Codec().decode(code)


def test_depth_is_bounded_on_both_sides() -> None:
    value: list[Any] = []
    code: list[Any] = ["l"]
    for _ in range(DEEPEST - 1):
        value, code = [value], ["l", code]
    assert Codec().encode(value) == code and Codec().decode(code) == value
    with pytest.raises(Unfit, match="too deep"):
        Codec().encode([value])
    with pytest.raises(Unfit):
        Codec().decode(["l", ["l", code]])
    with pytest.raises(Unfit, match="object is not carried"):
        Codec().encode(object())


def test_a_handle_is_equal_to_itself_alone() -> None:
    handle, again, other = (Handle(NoCalls(), number) for number in (1, 1, 2))
    assert handle == again and hash(handle) == hash(again) and handle != other and handle != 1 and handle
    with pytest.raises(TypeError):
        assert handle < 1  # type: ignore[operator]
    with pytest.raises(AttributeError):
        handle.__wrapped__  # noqa: B018
    assert Codec().encode([handle]) == ["l", ["h", 1]]


def told(*events: list[Any]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


IDLE = Ran(End.EXITED, 0)
PASSED = told(["answered"], ["pass"], ["done"], ["end"])


@pytest.mark.parametrize(
    ("solution", "tests", "failure", "broken"),
    [
        (IDLE, Ran(End.EXITED, 0, stdout=PASSED), "", ""),
        (IDLE, Ran(End.EXITED, 1, stdout=PASSED), "", "tests ended early: exited"),
        (IDLE, Ran(End.SIGNALLED, 9, stdout=PASSED), "", "tests ended early: signalled"),
        (IDLE, Ran(End.EXITED, 0, stdout=PASSED[:-8]), "", "tests ended early: exited"),
        (IDLE, Ran(End.EXITED, 0, stdout=told(["answered"], ["done"], ["end"])), "", "tests ended early"),
        (IDLE, Ran(End.EXITED, 0, stdout=told(["pass"], ["done"], ["end"])), "", "tests ask nothing of the solution"),
        (IDLE, Ran(End.LIMIT, limit="cpu", stdout=told(["asked"])), "time limit", ""),
        (IDLE, Ran(End.LIMIT, limit="memory", stdout=told(["asked"])), "memory limit", ""),
        (IDLE, Ran(End.LIMIT, limit="cpu"), "", "tests ended early: cpu"),
        (IDLE, Ran(End.EXITED, 0, stdout=told(["asked"], ["large"], ["end"])), "", "arguments are too large"),
        (Ran(End.LIMIT, limit="wall"), Ran(End.LIMIT, limit="wall"), "time limit", ""),
        (Ran(End.BROKEN, reason="busy"), Ran(End.EXITED, 0, stdout=PASSED), "", "busy"),
        (IDLE, Ran(End.BROKEN), "", "sandbox broke"),
        (IDLE, Ran(End.EXITED, 0, stdout=b"hello\n" + PASSED), "", "tests wrote to standard output"),
        (IDLE, Ran(End.EXITED, 0, stdout=b"{}\n" + PASSED), "", "tests wrote to standard output"),
        (Ran(End.LIMIT, limit="disk"), Ran(End.EXITED, 0, stdout=told(["gone"], ["end"])), "disk limit", ""),
        (Ran(End.RAISED, 1, "MemoryError"), Ran(End.EXITED, 0, stdout=told(["gone"], ["end"])), "memory limit", ""),
        (
            Ran(End.RAISED, 1, "anything it likes: to say"),
            Ran(End.EXITED, 0, stdout=told(["gone"], ["end"])),
            "raised an exception of its own",
            "",
        ),
    ],
)
def test_what_is_said_of_a_pair_needs_a_whole_report(solution: Ran, tests: Ran, failure: str, broken: str) -> None:
    found = said(solution, tests, 1)
    assert (found.failure, found.broken) == (failure, broken)

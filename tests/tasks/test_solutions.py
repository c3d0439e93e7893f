"""Written-out solutions: every line is true, the order is the one on paper, the end is the answer."""

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fathom.core.errors import FathomError, UsageError
from fathom.judge.extract import Extracted, extract
from fathom.tasks.solutions import columns, evaluate, expression_of, manner_of, worked

CHAIN = "State the final answer to the following arithmetic problem: {} ="


def test_the_format_of_both_manners() -> None:
    question = CHAIN.format("347 + 285 - 96")
    assert worked(question, "536", "steps") == "<think>\n347+285=632\n632-96=536\n</think>\n<answer>536</answer>"
    assert worked(question, "536", "direct") == "<think>\n</think>\n<answer>536</answer>"


@pytest.mark.parametrize(
    ("question", "answer", "lines"),
    [
        ("Calculate 2 + 3 * 4 - 5.", "9", ["3*4=12", "2+12=14", "14-5=9"]),
        ("Calculate 1 + 2 + 3 * 4.", "15", ["3*4=12", "1+2=3", "3+12=15"]),
        ("Calculate ( ( -9 - 6 ) - -( -3 * 4 ) ) * 2 / 2.", "-27", None),
        ("What is 5 - -3?", "8", ["5--3=8"]),
        ("Calculate 12 / 4 * 5.", "15", ["12/4=3", "3*5=15"]),
        ("Calculate -(2 + 3).", "-5", ["2+3=5"]),
        ("Evaluate: 7.", "7", []),
    ],
)
def test_working(question: str, answer: str, lines: list[str] | None) -> None:
    value, working = evaluate(expression_of(question))
    assert str(value) == answer
    assert lines is None or working == lines


@given(
    st.lists(st.tuples(st.integers(0, 99), st.sampled_from(["+", "-", "*"])), min_size=2, max_size=6),
    st.sampled_from(["{}", "( {} ) * 2", "3 - ( {} )"]),
)
def test_agrees_with_python_and_every_line_is_true(terms: list[tuple[int, str]], frame: str) -> None:
    flat = " ".join(f"{number} {operator}" for number, operator in terms)[:-2]
    expression = frame.format(flat)
    value, lines = evaluate(expression)
    assert value == eval(expression)
    assert len(lines) == len(re.findall(r"[-+*]", expression))
    for line in lines:
        left, _, right = line.partition("=")
        assert eval(left) == int(right)
    text = worked(f"Calculate {expression}.", str(value), "steps")
    assert extract(text) == Extracted(str(value), "answer_tag")


@given(st.text(alphabet="0123456789+-*/() ", max_size=12))
def test_broken_expressions_are_errors_never_numbers(text: str) -> None:
    try:
        value, _ = evaluate(text)
    except FathomError:
        return
    assume("/" not in text)
    assert value == eval(re.sub(r"\b0+(?=\d)", "", text.strip()))


def test_refusals() -> None:
    with pytest.raises(FathomError, match="arrives at 5, the stored answer is 6"):
        worked("Calculate 2 + 3.", "6", "steps")
    with pytest.raises(FathomError, match="7/2 does not come out even"):
        worked("Calculate 7 / 2.", "3", "steps")
    with pytest.raises(FathomError, match="gym:chain_sum"):
        worked("Who wrote Hamlet?", "x", "steps")
    with pytest.raises(FathomError, match="no whole-number expression"):
        worked("Calculate 2.5 + 3.", "5.5", "steps")
    with pytest.raises(UsageError, match="manner='mixed'"):
        worked("Calculate 2 + 3.", "5", "mixed")  # type: ignore[arg-type]


def test_mixed_is_half_and_half_and_keeps_to_the_problem() -> None:
    manners = [manner_of(f"{i:016x}", "steps/direct") for i in range(1000)]
    assert 430 < manners.count("steps") < 570
    assert manners == [manner_of(f"{i:016x}", "steps/direct") for i in range(1000)]
    with pytest.raises(UsageError, match="think='step'"):
        manner_of("a", "step")


@pytest.mark.property
@given(st.lists(st.integers(0, 99_999), min_size=2, max_size=6))
def test_columns_arrive_at_the_sum(terms: list[int]) -> None:
    lines = columns(" + ".join(map(str, terms)))
    totals = [int(line.rpartition("=")[2]) for line in lines]
    assert int(f"{totals[-1]}" + "".join(str(total % 10) for total in reversed(totals[:-1]))) == sum(terms)
    for line in lines:  # every running total is the one before it plus the digit
        value, *steps = re.split(r"[+=]", line)
        for digit, total in zip(steps[::2], steps[1::2], strict=True):
            assert int(value) + int(digit) == int(total)
            value = total


@pytest.mark.parametrize("expression", ["47 - 12", "2 * 3", "-4 + 5", "12"])
def test_columns_are_for_sums(expression: str) -> None:
    with pytest.raises(FathomError, match="only sums"):
        columns(expression)

"""The fast path: exact values, no leniency."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.judge.maths import judge_number, normal_form, number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("72", "72"),
        (" 072. ", "72"),
        ("-5", "-5"),
        ("− 5", "-5"),
        ("+5", "5"),
        ("5.00", "5"),
        (".5", "1/2"),
        ("1/2", "1/2"),
        ("2/4", "1/2"),
        (r"\frac{1}{2}", "1/2"),
        (r"-\dfrac{3}{4}", "-3/4"),
        (r"\frac12", "1/2"),
        ("1,234,567.50", "1234567.5"),
        ("1{,}000", "1000"),
        (r"1\,000", "1000"),
        ("$18", "18"),
        (r"\$18", "18"),
        ("$18$", "18"),
        ("-$3.50", "-3.5"),
        (r"\(7\)", "7"),
    ],
)
def test_plain_numbers(text: str, value: str) -> None:
    assert number(text) == Fraction(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "-",
        "1 2",
        "1,22",
        "12,34",
        "50%",
        "5 cm",
        "2^3",
        "1/0",
        "x",
        "3:2",
        "600+32",
        "1.2.3",
        "1 3/4",
        "9" * 5_000,
    ],
)
def test_not_plain(text: str) -> None:
    assert number(text) is None


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("1/2", "0.5", True),
        ("0.5", "50", False),  # no percent rule
        ("0.5", "0.005", False),
        ("1/3", "0.333", False),
        ("1", "1.0005", False),
        ("0", "0.0009", False),  # no absolute tolerance
        ("1000", "1,000", True),
        ("3.1416", "3.14159", True),  # a decimal gold is a rounded one: relative 1e-4
        ("3.1416", "3.142", False),
        ("999.99", "1000", False),
        (str(10**100), str(10**100 + 1), False),
    ],
)
def test_table_of_rl_7_3(gold: str, answer: str, right: bool) -> None:
    verdict = judge_number(gold, answer)
    assert verdict is not None
    assert (verdict.outcome == "right") is right


def test_a_whole_answer_is_not_an_unfinished_quotient() -> None:
    assert judge_number("632", "1264/2", whole=True) is None
    assert judge_number("632", "632.0", whole=True).score == 1  # type: ignore[union-attr]
    assert judge_number("632", "1264/2").score == 1  # type: ignore[union-attr]


@given(st.integers(-(10**30), 10**30))
def test_commas_and_zeros_do_not_change_a_value(value: int) -> None:
    for text in (str(value), f"{value:,}", f"{value}.000", f"${value:,}$", f"{value}/1"):
        assert number(text) == value
        assert normal_form(text) == str(value)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (r"\dfrac{\pi}{2}", r"\frac{\pi}{2}", True),
        (r"\left( 1, 2 \right)", "(1,2)", True),
        (r"\text{Monday}", "Monday", True),
        ("1 2", "12", False),
        (r"1\;2", "12", False),
        ("(1,2)", "[1,2]", False),
        ("x", "X", False),
    ],
)
def test_normal_form(a: str, b: str, same: bool) -> None:
    assert (normal_form(a) == normal_form(b)) is same

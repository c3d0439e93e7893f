"""Answers as structures: equal ones stay equal however they are dressed, and reading is safe for any text."""

import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.judge.answers.answer import Items, Named, Ratio, Reals, Record, Value, Words
from fathom.judge.answers.compare import same_answer, same_readings
from fathom.judge.answers.equality import same_tree, same_value
from fathom.judge.answers.expressions import QUICK, THOROUGH, Budget, NotRead, TooDear, parse
from fathom.judge.answers.forms import form
from fathom.judge.answers.options import option
from fathom.judge.answers.reading import is_formula, read, readings
from fathom.judge.answers.units import unit
from fathom.judge.answers.values import value


def same(gold: str, answer: str) -> bool | None:
    return same_readings(readings(gold), readings(answer), same_value)


numbers = st.one_of(
    st.integers(-999, 999).map(str),
    st.tuples(st.integers(-99, 99), st.integers(1, 99)).map(lambda t: f"\\frac{{{t[0]}}}{{{t[1]}}}"),
    st.tuples(st.integers(0, 99), st.integers(0, 999)).map(lambda t: f"{t[0]}.{t[1]:03d}"),
    st.tuples(st.integers(2, 9), st.integers(2, 99)).map(lambda t: f"{t[0]}\\sqrt{{{t[1]}}}"),
    st.integers(2, 40).map(lambda n: f"\\frac{{{n}\\pi}}{{7}}"),
)
formulas = st.recursive(
    st.one_of(numbers, st.sampled_from("xyn")),
    lambda part: st.one_of(
        st.tuples(part, st.sampled_from("+-"), part).map(lambda t: f"({t[0]}{t[1]}{t[2]})"),
        st.tuples(part, part).map(lambda t: f"({t[0]}) \\cdot ({t[1]})"),
        st.tuples(part, st.integers(1, 3)).map(lambda t: f"({t[0]})^{{{t[1]}}}"),
        part.map(lambda p: f"\\sqrt{{{p}}}"),
        part.map(lambda p: f"\\sin({p})"),
    ),
    max_leaves=4,
)
several = st.lists(formulas, min_size=2, max_size=4)
answers = st.one_of(
    formulas,
    several.map(", ".join),
    several.map(lambda items: f"({', '.join(items)})"),
    several.map(lambda items: f"\\{{{', '.join(items)}\\}}"),
    st.tuples(numbers, numbers).map(lambda t: f"[{t[0]},{t[1]})"),
    formulas.map(lambda p: f"z = {p}"),
    several.map(lambda items: f"\\begin{{pmatrix}}{' & '.join(items)}\\end{{pmatrix}}"),
)


def dressed(answer: str) -> str:
    wide = answer.replace("(", "\\left( ").replace(")", " \\right)").replace("\\frac", "\\dfrac").replace(",", ", \\,")
    return f" $ {wide} $ "


@given(answers)
@settings(max_examples=80, deadline=None)
def test_an_answer_equals_itself_in_any_dress(answer: str) -> None:
    assert same(answer, answer) is True
    assert same(answer, dressed(answer)) is True
    assert same(dressed(answer), answer) is True


@given(answers, answers)
@settings(max_examples=80, deadline=None)
def test_without_decimals_the_order_of_the_two_does_not_matter(a: str, b: str) -> None:
    if "." not in a + b:
        assert same(a, b) is same(b, a)


@given(st.lists(numbers, min_size=2, max_size=5), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_order_is_free_in_lists_and_sets_only(items: list[str], r: object) -> None:
    mixed = items[::-1]
    assert same(", ".join(items), ", ".join(mixed)) is True
    assert same(f"\\{{{', '.join(items)}\\}}", ", ".join(mixed)) is True
    values = [parse(item) for item in items]
    if any(same_tree(a, b) is False for a, b in zip(values, values[::-1], strict=True)):
        assert same(f"({', '.join(items)})", f"({', '.join(mixed)})") is False


@given(st.fractions(), st.fractions())
def test_exact_numbers_are_equal_only_if_they_are(a: Fraction, b: Fraction) -> None:
    gold, answer = f"\\frac{{{a.numerator}}}{{{a.denominator}}}", f"{b.numerator}/{b.denominator}"
    assert same(gold, answer) is (a == b)


@given(formulas, st.floats(0.1, 3.0), st.floats(0.1, 3.0), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_forms_and_values_agree(formula: str, x: float, y: float, n: int) -> None:
    """Adding 0 in a roundabout way never counts as a change, adding 1 always does."""
    tree = parse(formula)
    assert same_tree(tree, parse(f"{formula} + (x+1)^2 - x^2 - 2x - 1")) is not False
    assert same_tree(tree, parse(f"{formula} + 1")) is not True
    point = {"x": x, "y": y, "n": float(n)}
    if (found := value(tree, point)) and (other := value(parse(f"({formula}) \\cdot 3 \\div 3"), point)):
        assert abs(found[0] - other[0]) <= 10 * (found[1] + other[1]) + 1e-300


@given(st.text(max_size=60))
@settings(max_examples=150, deadline=None)
def test_reading_never_raises_anything_else(text: str) -> None:
    try:
        found = readings(text)
    except TooDear:
        return
    for one in found:
        same_answer(one, one, same_value)
    is_formula(text)
    option(text, labelled=True)


@given(st.text(alphabet="0123456789xyn+-*/^(){}[]\\,.=<>|:!_ $%afrcsqtpmediou", max_size=80))
@settings(max_examples=150, deadline=None)
def test_nor_on_what_looks_like_mathematics(text: str) -> None:
    test_reading_never_raises_anything_else.hypothesis.inner_test(text)  # type: ignore[attr-defined]


NASTY = (
    "(", "((1)", "{", "\\frac{1}{", "\\sqrt{", "1+", "x^{", "9^", "-", "!", ",", "1,", ",,", "|", "\\left(",
    "\\text{a} ", "a ", "1 1/2 ", "\\pm ", "x=", "<", "1<x<", "\\cup ", "\\{", "a.a", "1.", "..", "\\\\", "_", "1:",
    "and ", "for all ", "\\begin{pmatrix}", "0.3", "\\overline{3}", "{1}", "\\sin ", "f(x)", "%", "\\forall ", "x_",
    "1,000", "\\!", " or 1",
)  # fmt: skip


@pytest.mark.parametrize("piece", NASTY)
def test_the_quick_reading_is_quick_for_whatever_it_accepts(piece: str) -> None:
    text = (piece * QUICK.characters)[: QUICK.characters]
    for nasty in (text, f"1{text}"[: QUICK.characters], f"{text[:-2]}!1"):
        start = time.thread_time()
        try:
            same(nasty, "x+1")
            same(nasty, nasty)
        except TooDear:
            pass
        assert time.thread_time() - start < 0.5  # of this thread alone, whatever else runs
    with pytest.raises(TooDear):
        read(text + "1")


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (r"\frac{1}{\sqrt{3}}", r"\frac{\sqrt{3}}{3}"), (r"5\sqrt[3]{4}", "5 \\cdot 2^{2/3}"), ("i^2", "-1"),
        (r"\frac{1}{1+i}", r"\frac{1-i}{2}"), (r"\sqrt{9006001}", "3001"), (r"\sqrt{-4}", "2i"),
        (r"\frac{a}{b} + \frac{b}{a}", r"\frac{a^2+b^2}{ab}"), (r"\sin(x+y-y)", r"\sin x"),
        ("2003^{2003^{7}}", "2003^{2003^{8-1}}"), (r"\sqrt{\sqrt{2}+x}", r"\sqrt{x+\sqrt{2}}"),
        (r"\binom{1000000}{2}", "499999500000"), (r"2\frac{\pi}{3}", r"\frac{2\pi}{3}"),
        ("5 - 11i", r"\left(-1\right) 11 i + 5"), ("(-1)^n 2^{n-1}", r"\frac{(-1)^n 2^{n-1} x}{x}"),
        (r"\lceil n/2 \rceil", r"\left\lceil \dfrac{n}{2}\right\rceil"),
    ],
)  # fmt: skip
def test_equal_forms(a: str, b: str) -> None:
    assert same(a, b) is True


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("5 \\text{ cm}", Value), ("\\text{no real solution}", Words), ("1, 2", Items), ("(1, 2]", Reals),
        ("x < 3", Reals), ("x = 3", Named), ("p = 1, q = 2", Record), ("3:2", Ratio), ("\\emptyset", Items),
        ("no", Words),
    ],
)  # fmt: skip
def test_kinds(text: str, kind: type) -> None:
    assert isinstance(read(text), kind)


def test_several_options_are_none() -> None:
    assert option("(B) 12", labelled=True) == "B"
    assert option("(B)", labelled=True) == "B"
    assert [option(text, labelled=True) for text in ("(B) or (C)", "(A) (B) (C)", "A. B. C.", "12")] == [None] * 4


def test_a_value_is_not_the_same_without_its_case() -> None:
    cases = r"2 \text{ if } n = 2k, \text{ and } 1 \text{ otherwise}"
    assert same(cases, "2") is not True
    assert same(r"1 \text{ for } n = 1, 2 \text{ for } n = 2", "1") is not True
    assert same(r"f(x) = 0 \text{ for all } x", "0") is True


@pytest.mark.parametrize("text", ["", "(1", "1)", "\\frac{1}{2", "[1, 2"])
def test_unbalanced_is_unread(text: str) -> None:
    assert read(text) is None


@pytest.mark.parametrize("text", ["2 3", "f(x)", "\\sqrt12", "x2", "1+", "\\sum_k k", "n!!", "\\sin^2"])
def test_ambiguous_formulas_are_not_guessed_at(text: str) -> None:
    with pytest.raises(NotRead):
        parse(text)


def test_budgets_are_kept() -> None:
    with pytest.raises(TooDear, match="longer than 5 characters"):
        parse("1+1+1+1", Budget(5, 9, 9, 9))
    with pytest.raises(TooDear, match="nested too deeply"):
        parse("(" * 50 + "1" + ")" * 50)
    with pytest.raises(TooDear, match="too many terms"):
        form(parse("(a+b+c+d+e+f+g+h)^{20}"), QUICK)
    assert form(parse("(" * 60 + "1" + ")" * 60, THOROUGH), THOROUGH).rational() == 1


def test_values_carry_their_error() -> None:
    found = value(parse("10^{16} + 1 - 10^{16}"), {})
    assert found is not None
    assert abs(found[0] - 1) <= found[1]
    assert value(parse("9^{9^{9^9}}"), {}) is None
    assert value(parse("\\frac{1}{x-x}"), {"x": 1.0}) is None


@pytest.mark.parametrize(
    ("text", "kind", "size"),
    [
        ("cm", "length", "1/100"), ("square feet", "length^2", "9290304/100000000"), ("m^3", "length^3", "1"),
        ("miles per hour", "length per time", "1609344/3600000"), ("cents", "dollar", "1/100"),
        ("%", "percent", "1/100"),
    ],
)  # fmt: skip
def test_units(text: str, kind: str, size: str) -> None:
    found = unit(text)
    assert found is not None
    assert (found.kind, found.size) == (kind, Fraction(size))


@pytest.mark.parametrize("text", ["apples", "units", "x", "furlongs per cm", ""])
def test_what_is_no_unit(text: str) -> None:
    assert unit(text) is None

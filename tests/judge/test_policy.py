"""docs/answers.md and the judge say the same: every example of its tables is judged."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fathom.judge.extract import Extracted, Unread, extract
from fathom.judge.maths import MathsJudge

pytest.importorskip("math_verify")
PAGE = (Path(__file__).parents[2] / "docs/answers.md").read_text()
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ")]
PAIRS = [found for row in ROWS for found in re.findall(r"`([^`]+)` (=|≠) `([^`]+)`", row)]
TEXTS = [found for row in ROWS for found in re.findall(r"`([^`]+)` → (`[^`]+`|[a-z ]+[a-z])", row)]


@pytest.fixture(scope="module")
def judge() -> Iterator[MathsJudge]:
    with MathsJudge(timeout_s=5.0) as judge:
        yield judge


def test_the_page_has_its_examples() -> None:
    assert len(PAIRS) > 150
    assert len(TEXTS) > 15
    assert {sign for _, sign, _ in PAIRS} == {"=", "≠"}


def test_pairs(judge: MathsJudge) -> None:
    verdicts = judge.equal([(gold, answer) for gold, _, answer in PAIRS])
    drifted = [
        (gold, sign, answer, verdict.reason)
        for (gold, sign, answer), verdict in zip(PAIRS, verdicts, strict=True)
        if (verdict.outcome == "right") is not (sign == "=") or verdict.outcome == "failed"
    ]
    assert not drifted


@pytest.mark.parametrize(("text", "said"), TEXTS)
def test_extraction(text: str, said: str) -> None:
    found = extract(text)
    if said.startswith("`"):
        assert isinstance(found, Extracted)
        assert found.answer == said.strip("`")
    else:
        assert found == Unread(said)


# Gold, answer, accepted: every row of the measured table of three graders (DeepSeekMath's, PRM800K's, Math-Verify)
# that two of them or fewer get right.
GRADERS_DISAGREE = [
    ("1/2", "2/4", True), ("0.5", "50", False), ("0.5", "0.005", False), ("0.5", "50\\%", True), ("50\\%", "50", True),
    ("1/3", "0.333", False), ("1", "1.0005", False), ("0", "0.0009", False), ("(1,2)", "[1,2]", False),
    ("[1,2)", "(1,2]", False), ("(1,2)", r"\{1,2\}", False), (r"(1,2)\cup(3,4)", r"(3,4)\cup(1,2)", True),
    ("(1,2,3)", "(3,2,1)", False), ("1<x<2", "(1,2)", True), ("(1,2)", "1<x<2", True), ("10 cm", "10 inches", False),
    ("1024", "2^{10}", True), ("x+1", r"\frac{x^2-1}{x-1}", True), ("2x-y+1=0", "y=2x+1", True),
    ("10^{100}+1", "10^{100}", False), ("7/4", r"1\frac{3}{4}", True), ("7/4", "1 3/4", True),
    ("1000", "1{,}000", True), ("1000", r"1\,000", True), ("120", "5!", True), ("10", r"\binom{5}{2}", True),
    (r"2+\sqrt{3}, 2-\sqrt{3}", r"2\pm\sqrt{3}", True), ("2516", "2516_8", False), ("5", "5.00 dollars", True),
    ("-1", r"e^{i\pi}", True), ("1/3", r"0.333\overline{3}", True), (r"\cos 2x", r"\cos^2 x-\sin^2 x", True),
    ("3/2", "3:2", True), ("23", r"2\cdot 3", False), ("6", r"2\cdot 3", True), ("information", "information", True),
    ("5", "a+b=2+3=5", True), ("x=5", "k=5", False), (r"\sqrt{2}", r"\sqrt2", True),
]  # fmt: skip


def test_rows_that_other_graders_get_wrong(judge: MathsJudge) -> None:
    verdicts = judge.equal([(gold, answer) for gold, answer, _ in GRADERS_DISAGREE])
    accepted = [verdict.outcome == "right" for verdict in verdicts]
    assert accepted == [same for _, _, same in GRADERS_DISAGREE]
    assert not any(verdict.outcome == "failed" for verdict in verdicts)


def test_box_spam_and_boxes_that_correct_each_other(judge: MathsJudge) -> None:
    texts = [
        r"\boxed{1} or \boxed{2} or \boxed{5}",
        r"\boxed{1}? Rather \boxed{2}? Or so: \boxed{5}",
        r"\boxed{3} no: \boxed{5}",
    ]
    assert [v.outcome.value for v in judge.judge([("5", text) for text in texts])] == ["wrong", "unread", "right"]

"""The judge as a whole: the table of known verdicts, the four outcomes, real pairs where they are at hand."""

import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fathom.core.errors import FathomError
from fathom.judge.maths import MathsJudge

pytest.importorskip("math_verify")
DATA = Path("/work/shared/data")


@pytest.fixture(scope="module")
def judge() -> Iterator[MathsJudge]:
    with MathsJudge(timeout_s=3.0) as judge:
        yield judge


# gold, answer, accepted. Rows of §7.3 where the policy agrees with Math-Verify or is stricter.
TABLE = [
    ("1/2", r"\frac{2}{4}", True),
    ("0.5", "50", False),
    ("1/3", "0.333", False),
    ("0", "10^{-4}", False),
    ("(1,2)", "[1,2]", False),
    ("[1,2)", "(1,2]", False),
    (r"(-\infty,1)\cup(2,\infty)", r"(2,\infty)\cup(-\infty,1)", True),
    ("1024", "2^{10}", True),
    ("x+1", r"\frac{x^2-1}{x-1}", True),
    ("10^{100}", "10^{100}+1", False),
    (r"\frac{7}{4}", r"1\frac{3}{4}", True),
    ("1000", r"1{,}000", True),
    ("1000", r"1\,000", True),
    ("120", "5!", True),
    ("6", r"2\cdot 3", True),
    ("23", r"2\cdot 3", False),
    (r"\sqrt{2}", r"\sqrt{2}", True),
    (r"2\sqrt{2}", r"\sqrt{8}", True),
    ("5", "x=5", True),
    ("x=5", "k=5", False),
    (r"\frac{\pi}{3}", r"\dfrac{2\pi}{6}", True),
    ("Monday", r"\text{Monday}", True),
]


def test_table(judge: MathsJudge) -> None:
    verdicts = judge.equal([(gold, answer) for gold, answer, _ in TABLE])
    wrong = [
        (gold, answer, verdict)
        for (gold, answer, accepted), verdict in zip(TABLE, verdicts, strict=True)
        if (verdict.outcome == "right") is not accepted or verdict.outcome == "failed"
    ]
    assert not wrong


def test_texts_have_four_outcomes(judge: MathsJudge) -> None:
    verdicts = judge.judge(
        [
            ("5", r"<think>6</think> \boxed{5}"),
            ("5", r"<think>5</think> \boxed{6}"),
            ("5", "no idea, 5 perhaps"),
            ("5", "<think>5"),
            ("5", r"\boxed{" + "1+" * 600 + "1}"),
            (r"{\alpha \rightarrow ???", r"\boxed{x^2}"),
        ]
    )
    assert [(verdict.outcome.value, verdict.reason) for verdict in verdicts] == [
        ("right", "equal numbers"),
        ("wrong", "different numbers"),
        ("unread", "no answer found"),
        ("unread", "thinking was never closed"),
        ("unread", "answer is longer than 1000 characters"),
        ("failed", "gold answer cannot be read"),
    ]
    assert verdicts[5].score is None


def test_a_hanging_answer_is_failed_and_the_others_are_judged() -> None:
    with MathsJudge(timeout_s=1.0) as judge:
        judge.equal([("x+1", "1+x")])  # starts the worker: only the hang is timed
        before = time.monotonic()
        verdicts = judge.equal(
            [("x+1", "1+x"), ("5", "9^{9^{9^{9}}}"), ("2x", "x+x"), ("5", "(10^9)!"), ("3x", "2x+x")]
        )
        assert time.monotonic() - before < 15
    assert [verdict.outcome.value for verdict in verdicts] == ["right", "failed", "right", "failed", "right"]
    assert (verdicts[1].score, verdicts[1].reason) == (None, "judging passed 1 s")


def test_numbers_need_no_worker_and_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with MathsJudge() as judge:
        assert judge.equal([("5", "5.0"), ("5", "6"), ("(1, 2)", "(1,2)")])[2].reason == "same spelling"
        assert judge._pool.pids() == []
        with pytest.raises(FathomError, match=r"fathom-reasoning\[judge\]"):
            judge.equal([("x+1", "1+x")])


def test_known_pairs_are_not_asked_again(judge: MathsJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    first = judge.equal([("a+b", "b+a")])
    monkeypatch.setattr(judge._pool, "map", lambda items: pytest.fail(f"asked again: {items}"))
    assert judge.equal([("a+b", "b+a")]) == first


@pytest.mark.skipif(not (DATA / "gsm8k/train.jsonl.gz").exists(), reason="gsm8k is not on this machine")
def test_gsm8k_golds_equal_themselves(judge: MathsJudge) -> None:
    with gzip.open(DATA / "gsm8k/train.jsonl.gz", "rt") as file:
        answers = [json.loads(line)["answer"] for line in file]
    golds = [answer.rpartition("####")[2].strip() for answer in answers]
    verdicts = judge.judge(list(zip(golds, answers, strict=True)))
    assert len(verdicts) == 7473
    assert {verdict.reason for verdict in verdicts} == {"equal numbers"}


@pytest.mark.skipif(not (DATA / "math/math500_even.jsonl").exists(), reason="MATH is not on this machine")
def test_math_solutions_give_their_own_answers(judge: MathsJudge) -> None:
    rows = [json.loads(line) for line in (DATA / "math/math500_even.jsonl").read_text().splitlines()]
    verdicts = judge.judge([(row["answer"], row["solution"]) for row in rows], "boxed")
    assert sum(verdict.outcome == "right" for verdict in verdicts) >= len(rows) - 2


@pytest.mark.skipif(not (DATA / "grader_pairs").exists(), reason="grader_pairs is not on this machine")
def test_agreement_with_labelled_pairs(judge: MathsJudge) -> None:
    rows = [json.loads(line) for line in (DATA / "grader_pairs/hardverify_even.jsonl").read_text().splitlines()][:40]
    verdicts = judge.equal([(row["gold"], row["pred"]) for row in rows])
    false_accepts = sum(
        verdict.outcome == "right" and not row["equal"] for row, verdict in zip(rows, verdicts, strict=True)
    )
    assert false_accepts <= 2  # pairs made to defeat rule graders; rejecting right ones is their point

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
SLOW = r"\sum_{k=1}^{1} k"  # nothing that is settled without a worker


@pytest.fixture(scope="module")
def judge() -> Iterator[MathsJudge]:
    with MathsJudge(timeout_s=3.0) as judge:
        yield judge


def test_texts_have_four_outcomes(judge: MathsJudge) -> None:
    verdicts = judge.judge(
        [
            ("5", r"<think>6</think> \boxed{5}"),
            ("5", r"<think>5</think> \boxed{6}"),
            ("5", "no idea, 5 perhaps"),
            ("5", "<think>5"),
            ("5", r"\boxed{" + "so what? " * 200 + "}"),
            (r"{\alpha \rightarrow ???", r"\boxed{x^2}"),
        ]
    )
    assert [(verdict.outcome.value, verdict.reason) for verdict in verdicts] == [
        ("right", "equal numbers"),
        ("wrong", "different numbers"),
        ("unread", "no answer found"),
        ("unread", "thinking was never closed"),
        ("unread", "answer is not an expression"),
        ("failed", "gold answer cannot be read"),
    ]
    assert verdicts[5].score is None


def test_a_hanging_answer_is_failed_and_the_others_are_judged() -> None:
    with MathsJudge(timeout_s=1.0) as judge:
        judge.equal([(SLOW, "1")])  # starts the worker: only the hang is timed
        before = time.monotonic()
        verdicts = judge.equal(
            [
                (r"\sqrt{x}\sqrt{x}", "x"),
                (r"\frac{1}{2}", r"\int_0^1 x^{100000} dx"),
                (r"\cos 2x", r"1-2\sin^2 x"),
                ("5", "9^{9^{9^{9}}}"),
                ("-1", r"e^{i\pi}"),
            ]
        )
        assert time.monotonic() - before < 5
    assert [verdict.outcome.value for verdict in verdicts] == ["right", "failed", "right", "failed", "right"]
    assert (verdicts[1].score, verdicts[1].reason) == (None, "judging passed 1 s")
    assert (verdicts[3].score, verdicts[3].reason) == (None, "comparison is too dear")


def test_numbers_need_no_worker_and_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with MathsJudge() as judge:
        verdicts = judge.equal([("5", "5.0"), ("5", "6"), ("(1, 2)", "(1,2)"), ("x+1", "1+x"), ("(1,2)", r"\{1,2\}")])
        assert [verdict.outcome.value for verdict in verdicts] == ["right", "wrong", "right", "right", "wrong"]
        assert judge._pool.pids() == []
        with pytest.raises(FathomError, match=r"fathom-reasoning\[judge\]"):
            judge.equal([(SLOW, "1")])


def test_known_pairs_are_not_asked_again(judge: MathsJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    first = judge.equal([("-1", r"e^{i\pi}")])
    monkeypatch.setattr(judge._pool, "map", lambda items: pytest.fail(f"asked again: {items}"))
    assert judge.equal([("-1", r"e^{i\pi}")]) == first
    assert first[0].outcome == "right"


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
    assert [row["unique_id"] for row, verdict in zip(rows, verdicts, strict=True) if verdict.outcome != "right"] == []

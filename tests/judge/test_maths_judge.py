"""The judge as a whole: the table of known verdicts, the four outcomes, real pairs where they are at hand."""

import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fathom.core.errors import FathomError, UsageError
from fathom.judge.answers.expressions import parse
from fathom.judge.answers.sampling import samples
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


EQUAL = [
    (r"\sqrt{(t-4)^2}", "|t-4|"), (r"\ln t^4", r"4\ln|t|"),
    (r"\lceil\frac{n}{3}\rceil", r"\lfloor\frac{n+2}{3}\rfloor"), (r"\binom{n}{2}", r"\frac{n^2-n}{2}"),
    (r"\sin\frac{n\pi}{2}", r"\sin^5\frac{n\pi}{2}"), ("2^{3^n}", r"8^{3^{n-1}}"),
    (r"2\arcsin\sqrt{a}", r"\arccos(1-2a)"), (r"\sqrt{x-50}", r"\frac{x-50}{\sqrt{x-50}}"),
    (r"\lfloor\log_3 n\rfloor+1", r"\lceil\log_3(n+1)\rceil"), (r"\frac{n^2-9}{n-3}", "n+3"), ("1", "0.999..."),
    (r"\cos 7\pi", "-1"), (r"\frac{e^{-900}}{2}", r"\frac{1}{2e^{900}}"),
    (r"x\equiv 2\pmod 5", r"x \equiv -3 \pmod{5}"), ("4", r"4 \pmod 9"), ("4", r"2^{10} \bmod 12"),
    ("7500", "7.5 thousand"), ("24", "2 dozen"), ("7", "7 kg"), ("7 m", "700 cm"), (r"90\text{ km/h}", "25 m/s"),
    ("2.5 hours", "2 hours 30 minutes"), ("18:05", "6:05 p.m."), ("¥200", "200 yen"), ("(4, -6)", "y = -6, x = 4"),
    ("(m,n)=(3,8)", "(n,m)=(8,3)"), (r"\frac{3}{4}", "three quarters"), ("250", "two hundred fifty"),
    ("0.0025", "2.5e-3"), (r"\sqrt{7}/3", "sqrt(7)/3"), (r"3\pi", "3pi"), ("(-6,6)", "|x|<6"),
    (r"(-\infty,-2)\cup(8,\infty)", "|x-3|>5"), ("I, IV", "IV, I"), ("2,000, 3,000", "3000, 2000"),
    (r"x=2+3k\pi, k\in\mathbb{Z}", r"x = 2+3k\pi"), ("5", "5 个"),
    (r"\begin{cases}n&n>4\\2n&n\le 4\end{cases}", r"\begin{cases}2n,&\text{if } n\leq 4,\\n,&n>4.\end{cases}"),
]  # fmt: skip
DIFFERENT = [
    ("t", "t+|t-10^8|+t-10^8"), ("3^n", r"3^n+\lfloor\frac{n}{70000}\rfloor"),
    (r"\sqrt{(t-4)^2}", "t-4"), ("t|t|", "t^2"), (r"\frac{|t|}{t}", "1"),
    (r"\lfloor\frac{n}{6}\rfloor", r"\lfloor\frac{n+1}{6}\rfloor"), ("3^n", "2n^2+1"),
    ("3^n", r"\frac{(n-7)(n-9)}{8}\cdot 3-\frac{(n-5)(n-9)}{4}\cdot 3^7"), ("5^n", r"5^n+\lfloor\frac{n}{40}\rfloor"),
    (r"\cos t", r"\cos t+\lfloor\frac{|t|}{5000}\rfloor"), (r"\sqrt{1-\cos^2 t}", r"\sin t"),
    (r"\sin\frac{n\pi}{2}", r"\sin^4\frac{n\pi}{2}"), ("|z|^2", "z^2"), (r"\pi", r"\pi+e^{-700}"),
    ("t", r"t+10^{-80}\cos t"), ("1", r"\tanh(300)"), ("6", "1/0"), ("0", r"\frac{4}{\infty}"),
    (r"x\equiv 2\pmod 5", r"x \equiv 4 \pmod{5}"), (r"2 \pmod 5", r"2 \pmod 6"), ("7", "7 billion"),
    ("7", "7 squared"), ("7", r"7\text{ minus one}"), ("50 mph", "50 km/h"), (r"60^\circ", "60 radians"),
    ("9 yen", "9 dollars"), (r"4\text{ cubic units}", r"4\text{ square units}"), ("9:20", "18:40"),
    ("9:20 a.m.", "9:20 p.m."), ("(4, -6)", "y = 4, x = -6"), ("P(X)=0.4", "P(Y)=0.4"), ("f(3)=8", "f(4)=8"),
    ("9", "x^2=9"), ("8", "7 = 8"), (r"y^2=9x", r"y=3\sqrt{x}"), (r"2a+b\ge c", r"2a+b\le c"), ("有理数", "无理数"),
    (r"\begin{cases}n&n>4\\2n&n\le 4\end{cases}", r"\begin{cases}2n&n>4\\n&n\le 4\end{cases}"), ("5", "never"),
    ("5", "The value is unknown"), ("5", "n is odd"),
]  # fmt: skip


def test_equal_answers_in_ordinary_dress(judge: MathsJudge) -> None:
    verdicts = judge.equal(EQUAL)
    assert [(pair, v.reason) for pair, v in zip(EQUAL, verdicts, strict=True) if v.outcome != "right"] == []


def test_answers_that_agree_in_places_only_score_nothing_and_do_not_fail(judge: MathsJudge) -> None:
    verdicts = judge.equal(DIFFERENT)
    assert [(pair, v.reason) for pair, v in zip(DIFFERENT, verdicts, strict=True) if v.score != 0] == []


def test_points_depend_on_the_pair() -> None:
    gold, answer, other = parse("2^n"), parse("n^2"), parse("n^3")
    assert list(samples(gold, answer)) == list(samples(gold, answer)) != list(samples(gold, other))
    whole = {point["n"] for point in samples(gold, answer)}
    assert set(range(61)) < whole
    assert max(whole) > 200
    real = [point["x"] for point in samples(parse("|x|"), parse("x"))]
    assert min(real) < -1 < 1 < max(real)


@pytest.mark.parametrize(
    ("gold", "answer", "question", "outcome"),
    [
        ("35", r"\binom73", r"Compute $\binom{7}{3}$.", "wrong"),
        ("(u-3)(u+3)", "$u^2-9$", "Factor $u^2 - 9$.", "wrong"),
        ("35", "35", "Is it 35 or 36?", "right"),
        (r"\sqrt{5}", r"\sqrt{5}", r"Which is larger, $\sqrt{5}$ or 2?", "right"),
        (r"\frac{1}{2}", "0.5", "Write 0.5 as a fraction.", "right"),
        ("(2,1)", "(x,y)=(2,1)", "Reflect (x,y)=(2,1) twice.", "right"),
        ("35", r"\binom73", None, "right"),
        ("35", r"\binom73", r"Compute $\binom{17}{3}$.", "right"),
        ("36", r"\binom73", r"Compute $\binom{7}{3}$.", "wrong"),
    ],
)
def test_a_copy_of_the_question_is_no_answer(
    judge: MathsJudge, gold: str, answer: str, question: str | None, outcome: str
) -> None:
    (verdict,) = judge.judge([(gold, f"\\boxed{{{answer}}}")], questions=[question])
    assert verdict.outcome == outcome
    assert (verdict.reason == "copied from the question") is (outcome == "wrong" and gold != "36")


def test_questions_come_one_per_pair(judge: MathsJudge) -> None:
    with pytest.raises(UsageError, match="2 texts for 1 pairs"):
        judge.judge([("1", "1")], questions=["a", "b"])


@pytest.mark.parametrize("answer", [r"\sum_{k=1}^{10^9} \frac{1}{k}", r"\prod_{k=1}^{10^7} \sin k"])
def test_sums_too_long_to_begin_are_failed_at_once(judge: MathsJudge, answer: str) -> None:
    judge.equal([(SLOW, "1")])
    before = time.monotonic()
    (verdict,) = judge.equal([("5", answer)])
    assert verdict.reason == "comparison is too dear"
    assert time.monotonic() - before < 2


def test_fifty_thousand_letters_are_judged_soon(judge: MathsJudge) -> None:
    judge.equal([(SLOW, "1")])
    before = time.monotonic()
    (verdict,) = judge.equal([("5", "b " * 50_000)])
    assert verdict.outcome != "right"
    assert time.monotonic() - before < 4

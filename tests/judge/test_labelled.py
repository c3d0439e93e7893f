"""Agreement with labelled pairs, where the data is on this machine; `python -m bench judges` prints the whole table."""

from collections.abc import Iterator

import pytest

from bench import judges
from fathom.judge.maths import MathsJudge
from fathom.judge.verdict import Verdict

pytest.importorskip("math_verify")
pytestmark = pytest.mark.skipif(not judges.DATA.exists(), reason="the labelled sets are not on this machine")


@pytest.fixture(scope="module")
def judge() -> Iterator[MathsJudge]:
    with MathsJudge(timeout_s=5.0) as judge:
        yield judge


def judged(labelled: judges.Labelled, judge: MathsJudge) -> list[tuple[str, bool, Verdict]]:
    pairs = [(gold, text) for _, gold, text, _ in labelled.rows]
    verdicts = judge.judge(pairs, "any") if labelled.texts else judge.equal(pairs)
    return [
        (name, label, verdict)
        for (name, _, _, label), verdict in zip(labelled.rows, verdicts, strict=True)
        if label is not None and name not in labelled.excluded
    ]


def test_pairs_of_other_graders(judge: MathsJudge) -> None:
    rows = judged(judges.answer_pairs(), judge)
    assert len(rows) > 130
    wrong = [(name, verdict.reason) for name, label, verdict in rows if label is not (verdict.outcome == "right")]
    assert len(wrong) <= 0.02 * len(rows), wrong


def test_pairs_made_to_defeat_rule_graders(judge: MathsJudge) -> None:
    rows = judged(judges.hard_verify(), judge)
    right = [verdict.outcome == "right" for _, label, verdict in rows if label]
    accepted = [name for name, label, verdict in rows if not label and verdict.outcome == "right"]
    assert sum(right) >= 0.75 * len(right)
    assert len(accepted) <= 0.03 * (len(rows) - len(right)), accepted


def test_where_a_rule_grader_and_gpt4o_disagree(judge: MathsJudge) -> None:
    part_a, part_b = (judged(part, judge) for part in judges.omni_disagreements())
    assert [name for name, label, verdict in part_a if label is not (verdict.outcome == "right")] == []
    assert sum(verdict.outcome == "right" for _, _, verdict in part_b) >= 0.5 * len(part_b)


def test_final_answers_of_process_bench(judge: MathsJudge) -> None:
    rows = judged(judges.process_bench(), judge)
    assert len(rows) > 800
    accepted = [name for name, label, verdict in rows if not label and verdict.outcome == "right"]
    assert len(accepted) <= 0.01 * len(rows), accepted
    assert sum(label is (verdict.outcome == "right") for _, label, verdict in rows) >= 0.96 * len(rows)


def test_real_outputs_on_gsm8k_and_math(judge: MathsJudge) -> None:
    rows = judges.gsm8k_and_math()
    verdicts = judge.judge([(gold, text) for gold, text, _ in rows], "any")
    differ = [gold for (gold, _, label), v in zip(rows, verdicts, strict=True) if label is not (v.outcome == "right")]
    assert differ == ["10{,}000"]  # labelled wrong for 10000

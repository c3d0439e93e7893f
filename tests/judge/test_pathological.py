"""Answers that keep a naive judge busy for ever cost their time limit at most, and are never scored 0 for it."""

import pytest

from bench.judges import judge_pathological
from bench.pathological import FAMILIES, pathological
from fathom.judge.maths import MathsJudge

pytest.importorskip("math_verify")


def test_every_family_within_its_limit() -> None:
    found = judge_pathological(len(FAMILIES), limit_s=0.4)
    assert found["scored 0"] == []
    assert len(found["outcomes"]) == len(FAMILIES)
    assert found["max"] < 0.4 + 2.0
    assert found["workers"] == [1]
    right = sum(counts.get("right", 0) for counts in found["outcomes"].values())
    assert right >= len(FAMILIES) / 2  # half of them are settled exactly within their time


def test_what_is_settled_exactly_is_settled_right() -> None:
    wrong = [
        ("2003^{2002^{2001}}", "2003^{2002^{2000}}"),
        ("((30!)!)!", "((31!)!)!"),
        ("7", "9^{9^{9^{9}}} - 9^{9^{9^{9}}} + 5"),
    ]
    with MathsJudge(timeout_s=1.0) as judge:
        assert "right" not in {verdict.outcome for verdict in judge.equal(wrong)}


def test_the_generator_is_seeded() -> None:
    assert pathological(30, seed=1) == pathological(30, seed=1) != pathological(30, seed=2)


@pytest.mark.long
def test_two_thousand() -> None:
    found = judge_pathological(2_000)
    assert found["scored 0"] == []
    assert found["p99"] <= 1.3
    assert found["max"] <= 3.0
    assert found["workers"] == [1]
    sizes = found["resident MiB (parent, workers)"]
    assert max(parent for parent, _ in sizes) - sizes[0][0] < 100
    assert max(worker for _, worker in sizes) < 600

"""Two evaluations: significant or not on made data, what is not comparable is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_run import evaluated, score, write_evaluation, write_manifest, write_records

from fathom.core.errors import UsageError
from fathom.report import compare, render


def test_a_clear_gain_is_significant(tmp_path: Path) -> None:
    problems = [f"{i:03d}" for i in range(60)]
    write_evaluation(tmp_path / "a", "m1", {"t": {p: ["wrong", "wrong"] for p in problems}})
    write_evaluation(
        tmp_path / "b", "m2", {"t": {p: ["right", "wrong" if i % 2 else "right"] for i, p in enumerate(problems)}}
    )
    found = compare(tmp_path / "a", tmp_path / "b")
    task = found.tasks[0]
    assert task.difference is not None
    assert (task.a, task.b, task.difference.mean) == (0.0, 0.75, 0.75)
    assert task.difference.significant
    assert task.difference.low > 0
    text = render(found)
    assert "+75.0" in text
    assert "not significant" not in text
    assert "init: m1 → m2" in text
    back = compare(tmp_path / "b", tmp_path / "a").tasks[0].difference
    assert back is not None
    assert back.mean == -0.75


def test_noise_is_not_significant(tmp_path: Path) -> None:
    problems = [f"{i:03d}" for i in range(40)]
    a = {p: ["right" if i % 2 else "wrong"] for i, p in enumerate(problems)}
    b = {p: ["wrong" if i % 2 else "right"] for i, p in enumerate(problems)} | {"000": ["wrong"]}
    write_evaluation(tmp_path / "a", "m", {"t": a})
    write_evaluation(tmp_path / "b", "m", {"t": b})
    found = compare(tmp_path / "a", tmp_path / "b")
    assert found.tasks[0].difference is not None
    assert not found.tasks[0].difference.significant
    assert found.settings == ()
    assert "not significant" in render(found)


def test_what_only_one_side_has_is_named_and_left_out(tmp_path: Path) -> None:
    write_evaluation(
        tmp_path / "a", "m", {"t": {"1": ["right"], "2": ["right"], "9": ["right"]}, "only-a": {"1": ["right"]}}
    )
    write_evaluation(
        tmp_path / "b", "m", {"t": {"1": ["right"], "2": ["failed"], "7": ["wrong"]}, "only-b": {"1": ["right"]}}
    )
    found = compare(tmp_path / "a", tmp_path / "b")
    task = found.tasks[0]
    assert (task.problems, task.only_a, task.only_b) == (2, ("9",), ("7",))
    assert (task.failed_a, task.failed_b) == (0, 1)
    assert (found.only_a, found.only_b) == (("only-a",), ("only-b",))
    text = render(found)
    assert "only A was asked: 9" in text
    assert "only B was asked: 7" in text
    assert "tasks only in A: only-a" in text
    assert "not judged in A 0, in B 1" in text


def test_the_same_id_with_another_problem_is_not_compared(tmp_path: Path) -> None:
    for name, answer in (("a", "42"), ("b", "40")):
        stage = tmp_path / name
        write_manifest(stage, "evaluate", {}, [])
        (stage / "scores.json").write_text('{"model": "m", "tasks": [{"task": "t"}]}')
        write_records(stage, [evaluated("t", "same", ["right"]), evaluated("t", "changed", ["right"], answer=answer)])
    task = compare(tmp_path / "a", tmp_path / "b").tasks[0]
    assert (task.problems, task.changed) == (1, ("changed",))


def test_a_run_is_compared_by_its_last_evaluation(made: Path) -> None:
    found = compare(made / "before", made)
    assert found.b.startswith(str(made / "score"))
    assert found.tasks[0].b == pytest.approx(score("t", [["right"]])["accuracy"] * found.tasks[0].b)
    assert found.tasks[0].difference is not None
    assert found.tasks[0].difference.significant


def test_without_scores_or_a_shared_task_nothing_is_compared(tmp_path: Path, made: Path) -> None:
    with pytest.raises(UsageError, match=r"no scores\.json"):
        compare(made / "cold", made)
    write_evaluation(tmp_path / "other", "m", {"another": {"1": ["right"]}})
    with pytest.raises(UsageError, match="no task in common"):
        compare(tmp_path / "other", made)

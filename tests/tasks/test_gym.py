"""Gym tasks: deterministic, apart, honestly judged."""

import itertools
import json
import random
import re

import pytest

from fathom.core.errors import UsageError
from fathom.judge.verdict import Outcome
from fathom.tasks.gym import GymTask, held_out
from fathom.tasks.gym_answers import unsafe
from fathom.tasks.task import Problem, Task, load_task

pytest.importorskip("reasoning_gym")


def numbers(problem: Problem) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", problem.prompt[0].text)]


def test_hold_out_keeps_integers_apart() -> None:
    task = GymTask("chain_sum", hold_out=0.3, min_terms=2, max_terms=3, max_digits=2)
    train, test = list(task.problems("train", 2000)), list(task.problems("test", 150))
    seen = {number for problem in train for number in numbers(problem)}
    asked = {number for problem in test for number in numbers(problem)}
    assert len(seen) > 50
    assert len(asked) > 15
    assert not seen & asked
    assert all(len(numbers(problem)) >= 2 for problem in test)
    assert not {problem.id for problem in train} & {problem.id for problem in test}
    share = sum(held_out("chain_sum", str(number), 0.3) for number in range(10, 10_010)) / 10_000
    assert share == pytest.approx(0.3, abs=0.02)
    assert task.skipped["kept apart by hold_out"] > 0


def test_problems_depend_on_their_arguments_alone() -> None:
    task = GymTask("chain_sum", hold_out=0.1, think="steps/direct")
    first = list(task.problems("train", 5000, seed=3))
    random.seed(99)
    again = GymTask("chain_sum", hold_out=0.1, think="steps/direct")
    interleaved = itertools.islice(
        zip(again.problems("train", seed=3), again.problems("test", seed=3), strict=False), 50
    )
    assert [problem for problem, _ in interleaved] == first[:50]
    assert list(again.problems("train", 5000, seed=3)) == first
    assert len({problem.id for problem in first}) == 5000
    assert list(task.problems("train", 50, seed=4)) != first[:50]
    assert list(task.problems("train", 0)) == []


def test_solutions_are_judged_right_and_survive_json() -> None:
    for name in ("chain_sum", "basic_arithmetic"):
        task = GymTask(name, think="steps/direct")
        problems = list(task.problems("train", 300))
        restored = [Problem.from_json(json.loads(json.dumps(problem.to_json()))) for problem in problems]
        assert restored == problems
        verdicts = task.judge([(problem, problem.solution or "") for problem in restored])
        assert {verdict.outcome for verdict in verdicts} == {Outcome.RIGHT}
        lines = [(problem.solution or "").count("=") for problem in problems]
        assert 90 < sum(count == 0 for count in lines) < 210


def test_wrong_stored_answers_are_not_given_out() -> None:
    # reasoning-gym 0.1.25 works these from left to right, whatever the operators.
    task = GymTask("basic_arithmetic", allow_parentheses=False, operators=["+", "*"], min_terms=3, max_terms=3)
    problems = list(task.problems("train", 200))
    assert task.skipped["stored answer is wrong"] > 20
    for problem in problems:
        expression = problem.prompt[0].text.removeprefix("Calculate ").rstrip(".")
        assert str(eval(re.sub(r"\b0+(?=\d)", "", expression))) == problem.answer


def test_repeating_the_question_is_no_answer() -> None:
    task = GymTask("chain_sum", min_digits=3)
    (problem,) = task.problems("test", 1)
    expression = problem.prompt[0].text.rpartition(": ")[2].removesuffix(" =")
    texts = [f"<answer>{answer}</answer>" for answer in (expression, f"{problem.answer}.0", f"{problem.answer}0", "x")]
    outcomes = [verdict.outcome.value for verdict in task.judge([(problem, text) for text in [*texts, problem.answer]])]
    assert outcomes == ["wrong", "right", "wrong", "wrong", "unread"]
    assert task._pool.pids() == []


def test_the_tasks_own_judge_runs_apart() -> None:
    task = GymTask("spiral_matrix", timeout_s=20)
    problems = list(task.problems("train", 3))
    listed = [f"[{', '.join(problem.answer.split())}]" for problem in problems]
    items = [(problem, f"<answer>{problem.answer}</answer>") for problem in problems]
    items += [(problem, f"<answer>{answer}</answer>") for problem, answer in zip(problems, listed, strict=True)]
    items += [(problems[0], "<answer>__import__('os').getpid()</answer>")]
    verdicts = task.judge(items)
    assert [verdict.score for verdict in verdicts] == [1.0, 1.0, 1.0, 0.1, 0.1, 0.1, 0.0]
    assert [verdict.outcome.value for verdict in verdicts] == ["right"] * 3 + ["wrong"] * 4
    assert verdicts[-1].reason == "not a literal"
    changed = Problem("0" * 16, problems[0].prompt, problems[0].answer, problems[0].task, None, problems[0].meta)
    (verdict,) = task.judge([(changed, f"<answer>{changed.answer}</answer>")])
    assert (verdict.outcome.value, verdict.score) == ("failed", None)
    task.close()


@pytest.mark.parametrize("name", ["countdown", "simple_integration", "polynomial_multiplication"])
def test_right_answers_are_never_held_for_unsafe(name: str) -> None:
    for problem in GymTask(name).problems("train", 8):
        assert unsafe(name, problem.answer) is None


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("countdown", "9**9**9"),
        ("countdown", "f(3)"),
        ("simple_integration", "x.__class__"),
        ("polynomial_multiplication", "open('x')"),
        ("simple_integration", "lambda: 0"),
        ("n_queens", "[exit()]"),
        ("binary_matrix", "[i for i in x]"),
        ("string_insertion", "x.y"),
    ],
)
def test_what_eval_must_not_see(task: str, answer: str) -> None:
    assert unsafe(task, answer)


def test_small_tasks_end(caplog: pytest.LogCaptureFixture) -> None:
    task = GymTask("chain_sum", min_terms=2, max_terms=2, max_digits=1)
    assert len(list(task.problems("train", 500))) == 200  # 10 · 10 operands, two signs
    assert "only 200 different train problems, 500 were asked for" in caplog.text


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"task": "gym:chain_sun"}, "did you mean chain_sum"),
        ({"task": "gym:chain_sum", "min_term": 2}, "did you mean min_terms"),
        ({"task": "gym:chain_sum", "holdout": 0.1}, "did you mean hold_out"),
        ({"task": "gym:chain_sum", "seed": 2}, "the stage's seed"),
        ({"task": "gym:chain_sum", "size": 2}, "a limit"),
        ({"task": "gym:chain_sum", "min_terms": 5, "max_terms": 2}, "max_terms must be >= min_terms"),
        ({"task": "gym:chain_sum", "min_terms": "many"}, "min_terms='many'"),
        ({"task": "gym:chain_sum", "hold_out": 1.0}, "hold_out=1.0"),
        ({"task": "gym:chain_sum", "think": "step"}, "use one of steps, columns, direct"),
        ({"task": "gym:countdown", "think": "steps"}, "no worked solutions"),
        ({"task": "gym:rush_hour"}, "stores no answer"),
        ({"task": "gym:puzzle24"}, "any four numbers"),
    ],
)
def test_refusals_name_the_remedy(spec: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        load_task(spec)


def test_it_is_a_task() -> None:
    assert isinstance(load_task("gym:chain_sum"), Task)


def test_numbers_keeps_to_a_range() -> None:
    task = GymTask("basic_arithmetic", operators=["+"], allow_parentheses=False, numbers=[10, 99], hold_out=0.2)
    for split in ("train", "test"):
        problems = list(task.problems(split, 100))
        assert len(problems) == 100
        assert all(10 <= n <= 99 for problem in problems for n in numbers(problem))
    assert task.skipped["numbers out of range"] > 50
    for wrong in ([99, 10], [10], "10", [1.5, 3], [-1, 3]):
        with pytest.raises(UsageError, match="numbers="):
            GymTask("chain_sum", numbers=wrong)

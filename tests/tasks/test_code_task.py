"""Code problems from files: every form, every reason, and real data sets judged right and wrong."""

from __future__ import annotations

import ast
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fathom.core.errors import FathomError, UsageError
from fathom.judge.code import AssertTests, CaseTests, CodeJudge, StdinTests, from_json
from fathom.judge.code.names import parse
from fathom.judge.verdict import Outcome
from fathom.tasks.code import CodeTask
from fathom.tasks.code_formats import Choices, read
from fathom.tasks.rows import BadRow
from fathom.tasks.task import Problem, Task, load_task

DATA = Path("/work/shared/data/code_eval")

HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'import math\n\n\ndef double(x):\n    return 2 * x\n\n\ndef half(x):\n    """ x / 2 """\n',
    "canonical_solution": "    return x / 2\n",
    "test": "def check(candidate):\n    assert double(candidate(math.pi)) == math.pi\n",
    "entry_point": "half",
}
MBPP = {
    "task_id": 7,
    "text": "Write a function to add.",
    "code": "def add(a, b):\r\n    return a + b",
    "test_list": ["assert add(1, 2) == 3", "assert add(2, 2) == 4"],
    "test_setup_code": "",
}
STDIN = {"problem": "Add two numbers.", "tests": {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]}}
STARTER = "class Solution:\n    def turn(self, head: Optional[ListNode], k: List[TreeNode]) -> 'ListNode':\n        "
LEETCODE = {
    "question": "Turn a list.",
    "starter_code": STARTER,
    "input_output": json.dumps({"fn_name": "turn", "inputs": ["[1, 2]\n[]"], "outputs": ["[2, 1]"]}),
    "solutions": '["class Solution: ..."]',
}
APPS = {
    "question": "Add one.",
    "input_output": {"fn_name": "more", "inputs": [[1], [2]], "outputs": [[2], [3]]},
    "solutions": ["def more(x):\n    return x + 1"],
}
VERL = {
    "prompt": [{"role": "system", "content": "Think."}, {"role": "user", "content": "Add."}],
    "reward_model": {"style": "rule", "ground_truth": json.dumps(STDIN["tests"])},
    "ability": "code",
}


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def only(path: Path, row: dict[str, Any], **options: Any) -> tuple[CodeTask, Problem]:
    task = CodeTask(written(path / "p.jsonl", [row]), test_share=0, **options)
    (problem,) = task.problems("train")
    return task, problem


@pytest.mark.parametrize(
    ("row", "form", "tests"),
    [
        (
            HUMANEVAL,
            "humaneval",
            AssertTests((HUMANEVAL["test"] + "\ncheck(half)\n",), ("half",), given=str(HUMANEVAL["prompt"])),
        ),
        (MBPP, "mbpp", AssertTests(("assert add(1, 2) == 3", "assert add(2, 2) == 4"), ("add",))),
        (
            {"prompt": "Root.", "test_list": ["assert f(4) == math.sqrt(4)"], "test_imports": ["import math"]},
            "mbpp",
            AssertTests(("assert f(4) == math.sqrt(4)",), ("f",), "import math"),
        ),
        (STDIN, "problem/tests", StdinTests(("1 2\n", "3 4\n"), ("3\n", "7\n"))),
        (
            {"question": "q", "tests": {"inputs": [["1", "2"]], "outputs": ["3"]}},
            "question/tests",
            StdinTests(("1\n2",), ("3",)),
        ),
        (
            {"problem": "q", "tests": json.dumps([{"input": "1", "output": "2"}, {"input": "3", "output": "4"}])},
            "problem/tests",
            StdinTests(("1", "3"), ("2", "4")),
        ),
        (
            {"problem": "q", "tests": [{"input": "1\n[2]", "output": "3", "metadata": {"func_name": "f"}}]},
            "problem/tests",
            CaseTests("f", (([1, [2]], 3),)),
        ),
        (APPS, "question/input_output", CaseTests("more", (([1], [2]), ([2], [3])), unwrap=True)),
        (VERL, "verl code", StdinTests(("1 2\n", "3 4\n"), ("3\n", "7\n"))),
    ],
)
def test_forms(tmp_path: Path, row: dict[str, Any], form: str, tests: Any) -> None:
    task, problem = only(tmp_path, row)
    assert isinstance(task, Task) and task.format == form
    assert from_json(problem.meta["tests"]) == tests
    assert Problem.from_json(json.loads(json.dumps(problem.to_json()))) == problem
    assert problem.prompt[-1].role == "user" and problem.answer.startswith(f"{len(tests)} tests ")
    assert "```python" in problem.prompt[-1].text or form == "verl code"


def test_parquet_and_gzip(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.Table.from_pylist([STDIN]), tmp_path / "p.parquet")
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(json.dumps(STDIN).encode()))
    found = [list(CodeTask(tmp_path / name, test_share=0).problems("train")) for name in ("p.parquet", "p.jsonl.gz")]
    assert [problem.meta for problem in found[0]] == [problem.meta for problem in found[1]]
    assert found[0][0].id == found[1][0].id


def test_leetcode_annotations_say_what_is_built_of_nodes(tmp_path: Path) -> None:
    _, problem = only(tmp_path, LEETCODE)
    tests = from_json(problem.meta["tests"])
    assert isinstance(tests, CaseTests)
    assert (tests.takes, tests.gives) == (("ListNode", "list of TreeNode"), "ListNode")
    assert tests.cases == (([[1, 2], []], [2, 1]),) and not tests.unwrap
    assert "turn" in problem.prompt[0].text and STARTER.strip() in problem.prompt[0].text
    compile(tests.given, "given", "exec")


def test_prompts_hide_the_tests(tmp_path: Path) -> None:
    _, problem = only(tmp_path, MBPP)
    assert "assert add(1, 2) == 3" in problem.prompt[0].text and "add(2, 2)" not in problem.prompt[0].text
    _, problem = only(tmp_path, STDIN)
    assert "3 4" not in problem.prompt[0].text


BAD: dict[str, Any] = {
    "prompt does not define entry_point": {**HUMANEVAL, "entry_point": "third"},
    "prompt is not Python": {**HUMANEVAL, "prompt": "def f(:\n"},
    "test is not Python": {**HUMANEVAL, "prompt": "def f():\n    'a'\n", "entry_point": "f", "test": "assert f(("},
    "test is empty": {**HUMANEVAL, "test": " "},
    "tests take nothing from the solution": {**MBPP, "text": "a", "test_list": ["assert True"]},
    "test_list is not a list of assertions": {**MBPP, "text": "b", "test_list": "assert add(1, 2) == 3"},
    "test_list is not Python": {**MBPP, "text": "c", "test_list": ["assert add(1"]},
    "text is not UTF-8": '{"text": "\\ud800", "test_list": ["assert f(1)"]}',
    "tests is not JSON": {"problem": "a", "tests": "{"},
    "tests is not a mapping": {"problem": "b", "tests": [1]},
    "tests has no inputs and outputs": {"problem": "c", "tests": {"inputs": [], "outputs": []}},
    "tests has unequal numbers of inputs and outputs": {"problem": "d", "tests": {"inputs": ["1"], "outputs": []}},
    "an input or output is not text": {"problem": "e", "tests": {"inputs": [1], "outputs": ["1"]}},
    "an input or output is not UTF-8": '{"problem": "k", "tests": {"inputs": ["\\ud800"], "outputs": ["1"]}}',
    "outputs are all empty": {"problem": "l", "tests": {"inputs": ["1", "2"], "outputs": ["", "\n"]}},
    "fn_name is not a name": {"problem": "f", "tests": {"fn_name": "a b", "inputs": [[1]], "outputs": [1]}},
    "an input is not JSON": {"problem": "g", "tests": {"fn_name": "f", "inputs": ["x"], "outputs": ["1"]}},
    "tests has inputs that are no lists of arguments": {
        "problem": "h",
        "tests": {"fn_name": "f", "inputs": [1], "outputs": [1]},
    },
    "in_place is not the number of an argument": {
        "problem": "i",
        "tests": {"fn_name": "f", "inputs": [[1]], "outputs": [1], "in_place": True},
    },
    "fewer than 2 tests": {"problem": "j", "tests": {"inputs": ["1"], "outputs": ["1"]}},
    "ground_truth is not JSON": {"prompt": "a", "reward_model": {"ground_truth": "#### 5"}},
    "prompt does not end with the user": {**VERL, "prompt": [{"role": "assistant", "content": "a"}]},
    "a message is malformed": {**VERL, "prompt": ["a"]},
    "is no known form of a code problem": {"question": "q", "answer": "5"},
    "not JSON": '{"problem": ',
}


def test_bad_rows_are_named_and_counted(tmp_path: Path) -> None:
    path = written(tmp_path / "p.jsonl", [STDIN, *BAD.values(), STDIN])
    task = CodeTask(path, test_share=0, min_tests=2)
    assert len(list(task.problems("train"))) == 1
    assert task.skipped == Counter([*BAD, "question appeared before"])
    assert task.where[0] == f"{path}:2: {next(iter(BAD))}"


def test_outputs_beyond_what_a_program_may_print_are_named() -> None:
    long = {"problem": "m", "tests": {"inputs": ["1"], "outputs": ["y" * ((4 << 20) + 1)]}}
    with pytest.raises(BadRow, match="an output is too long"):
        read(long, Choices())


def test_splits_are_those_of_problem_files(tmp_path: Path) -> None:
    rows = [{**STDIN, "problem": f"Add {i}."} for i in range(60)]
    path = written(tmp_path / "p.jsonl", rows)
    shared = CodeTask(path, test_share=0.3)
    train, test = ({problem.id for problem in shared.problems(split)} for split in ("train", "test"))  # type: ignore[arg-type]
    assert len(train) + len(test) == 60 and len(test) > 5 and not train & test
    last = CodeTask(path, test_rows=7)
    assert [len(list(last.problems(split))) for split in ("train", "test")] == [53, 7]  # type: ignore[arg-type]
    apart = CodeTask(path, test=written(tmp_path / "t.jsonl", rows[:3]))
    assert len(list(apart.problems("test"))) == 3 and len(list(apart.problems("train"))) == 57
    assert apart.skipped == {"question is in the test split": 3}


def test_a_recipe_names_it_with_code(tmp_path: Path) -> None:
    path = written(tmp_path / "p.jsonl", [STDIN])
    task = load_task({"task": f"code:{path}", "test_share": 0, "time_s": 2, "tolerance": 1e-6, "credit": "share"})
    assert isinstance(task, CodeTask) and task.name == f"code:{path}"
    (problem,) = task.problems("train")
    assert problem.task == task.name and problem.meta["tests"]["tolerance"] == 1e-6
    same = load_task({"task": "code", "data": str(path), "test_share": 0})
    assert same.name == task.name and [p.id for p in same.problems("train")] == [problem.id]
    assert same.note == "; 1 of the first 1 problems have fewer than 5 tests (min_tests)"
    with pytest.raises(UsageError, match="no data"):
        load_task("code")
    with pytest.raises(UsageError, match="did you mean credit"):
        load_task({"task": f"code:{path}", "credt": "share"})
    wrong = {"time_s": 0, "memory_mb": "1", "tolerance": 2, "require_level": 7, "most_tests": 0, "min_tests": -1}
    wrong |= {"credit": "half"}
    for name, value in wrong.items():
        with pytest.raises(UsageError, match=name):
            CodeTask(path, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no known form of code problems"):
        CodeTask(written(tmp_path / "q.jsonl", [{"question": "q", "answer": "5"}]))
    with pytest.raises(FathomError, match="no train problems"):
        list(CodeTask(path, min_tests=5, test_share=0).problems("train"))


def test_problems_are_judged_by_their_own_tests(tmp_path: Path) -> None:
    path = written(tmp_path / "p.jsonl", [HUMANEVAL, MBPP, STDIN, APPS])
    task = CodeTask(path, test_share=0)
    half, add, both, more = task.problems("train")
    print_sum = "```python\nprint(sum(map(int, input().split())))\n```"
    verdicts = task.judge([
        (half, half.solution or ""), (half, "```python\ndef half(x):\n    return double(x) / 4\n```"),
        (add, add.solution or ""), (add, print_sum), (both, print_sum), (both, add.solution or ""),
        (more, more.solution or ""), (more, "x + 1"),
    ])  # fmt: skip
    task.close()
    right, wrong = Outcome.RIGHT, Outcome.WRONG
    assert [v.outcome for v in verdicts] == [right, right, right, wrong, right, wrong, right, Outcome.UNREAD]


# Real data.


def needs(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is missing")
    return path


def none_returned(source: str) -> str:
    """The program with a last function that returns None."""
    tree = parse(source)
    last = [node for node in tree.body if isinstance(node, ast.FunctionDef)][-1]
    last.body = [ast.Return(ast.Constant(None))]
    return ast.unparse(ast.fix_missing_locations(tree))


class _Beside(ast.NodeTransformer):
    def visit_Return(self, node: ast.Return) -> ast.Return:
        return ast.Return(ast.Tuple([ast.Constant("beside"), node.value or ast.Constant(None)], ast.Load()))


def value_beside(source: str) -> str:
    """The program whose functions return a pair with what they should return."""
    return ast.unparse(ast.fix_missing_locations(_Beside().visit(parse(source))))


def constants_changed(source: str) -> str:
    """The program that ends in a constant where it should compute one."""
    tree = parse(source)
    last = [node for node in tree.body if isinstance(node, ast.FunctionDef)][-1]
    last.body = [ast.Return(ast.Constant("no such answer"))]
    return ast.unparse(ast.fix_missing_locations(tree))


def judged(name: str, every: int) -> None:
    """The data set's own solutions are RIGHT, and none of their mutants is."""
    task = CodeTask(needs(name), test_share=0)
    assert not task.skipped
    problems = list(task.problems("train"))[::every]
    solutions = [problem.solution or "" for problem in problems]
    found = task.judge(list(zip(problems, solutions, strict=True)))
    assert {p.meta["task_id"]: v for p, v in zip(problems, found, strict=True) if v.outcome is not Outcome.RIGHT} == {}
    programs = [verdict.answer or "" for verdict in found]
    for mutate in (none_returned, value_beside, constants_changed):
        mutants = [(p, f"```python\n{mutate(source)}\n```") for p, source in zip(problems, programs, strict=True)]
        wrong = task.judge(mutants)
        kept = {p.meta["task_id"]: v for p, v in zip(problems, wrong, strict=True) if v.outcome is not Outcome.WRONG}
        assert kept == {}, mutate.__name__
    swapped = task.judge([(p, solutions[i - 1]) for i, p in enumerate(problems)])
    assert all(verdict.outcome is Outcome.WRONG for verdict in swapped)
    task.close()


@pytest.mark.parametrize(
    ("name", "every"),
    [("humaneval-python_even.jsonl", 20), ("mbpp_test_even.jsonl", 50), ("mbpp_train_valid_prompt.jsonl.gz", 100)],
)
def test_a_sample_of_known_solutions_and_their_mutants(name: str, every: int) -> None:
    judged(name, every)


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["humaneval-python_even.jsonl", "mbpp_test_even.jsonl", "mbpp_train_valid_prompt.jsonl.gz"]
)
def test_all_known_solutions_and_their_mutants(name: str) -> None:
    judged(name, 1)


@pytest.mark.long
def test_all_of_humaneval_as_completions() -> None:
    rows = [json.loads(line) for line in needs("humaneval-python_even.jsonl").read_text().splitlines()]
    task = CodeTask(DATA / "humaneval-python_even.jsonl", test_share=0)
    tests = [from_json(problem.meta["tests"]) for problem in task.problems("train")]
    with CodeJudge() as judge:
        found = judge.judge(
            [(test, row["canonical_solution"] + "\nprint('and so')\n") for test, row in zip(tests, rows, strict=True)],
            read="completion",
        )
    assert {row["task_id"]: v for row, v in zip(rows, found, strict=True) if v.outcome is not Outcome.RIGHT} == {}


LIKED = """
from bisect import bisect_right
liked = sorted({i**2 for i in range(1, 31623)} | {i**3 for i in range(1, 1001)})
for _ in range(int(input())):
    print(bisect_right(liked, int(input())))
"""
STICKS = """
import sys

def main():
    lines = sys.stdin.read().splitlines()[1:]
    for line in lines:
        a, b, c = sorted(map(int, line.split()))
        whole = a + b == c or (a == b and c % 2 == 0) or (b == c and a % 2 == 0)
        print("YES" if whole else "NO")

if __name__ == "__main__":
    main()
"""
SONGS = """
for _ in range(int(input())):
    one, two, three = map(int, input().split())
    print((one + 2 * two + 3 * three) % 2)
"""


def test_programs_for_contest_problems() -> None:
    task = CodeTask(needs("code_contests_even.jsonl.gz"), test_share=0, most_tests=15)
    problems = {problem.prompt[0].text[:24]: problem for problem in task.problems("train")}
    squares, sticks, songs = (
        next(problem for begin, problem in problems.items() if begin.startswith(start))
        for start in ("Polycarp likes squares", "There are three sticks", "Luntik has decided")
    )
    programs = [(squares, LIKED), (sticks, STICKS), (songs, SONGS)]
    slips = [
        (squares, LIKED.replace("} | {", "} ^ {")),  # sixth powers are both
        (sticks, STICKS.replace("a % 2", "c % 2")),
        (songs, SONGS.replace("% 2)", "% 3)")),
    ]
    right, wrong = (
        task.judge([(problem, f"```python\n{source}```") for problem, source in sources])
        for sources in (programs, slips)
    )
    task.close()
    assert [verdict.outcome for verdict in right] == [Outcome.RIGHT] * 3
    assert [(verdict.outcome, verdict.reason) for verdict in wrong] == [(Outcome.WRONG, "wrong output")] * 3

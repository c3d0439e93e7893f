r"""Rows of code problems: how each is recognised, and what it asks, with which tests.

HumanEval, MBPP (also sanitised), CodeContests, APPS and TACO, LiveCodeBench and LeetCode cases, and verl's code rows.
docs/code.md shows what each holds. A row that does not fit is a reject with a reason, never a guess.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fathom.core.chat import Message
from fathom.core.errors import FathomError, UsageError
from fathom.judge.code import AssertTests, CaseTests, StdinTests, Tests, to_json
from fathom.judge.code.names import parse
from fathom.tasks.formats import Asked
from fathom.tasks.rows import BadRow

FIELDS = frozenset({
    "canonical_solution", "code", "entry_point", "input_output", "problem", "prompt", "question", "reward_model",
    "solution", "solutions", "starter_code", "task_id", "test", "test_imports", "test_list", "test_setup_code", "tests",
    "text",
})  # fmt: skip
_ASK = "Answer with one ```python block."
_PRINTS = f"Write a Python program that reads standard input and prints to standard output. {_ASK}"
# what LeetCode has imported before a solution begins
_LEETCODE = """\
import bisect, collections, functools, heapq, itertools, math, operator, random, re, string
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import inf
from typing import *
"""
_NODE = re.compile(r"(?:Optional\[)?(ListNode|TreeNode)\b")


@dataclass(frozen=True)
class CodeFormat:
    """One row of the table: the keys by which a row is recognised, and what reads it."""

    name: str
    needs: tuple[str, ...]
    read: Callable[[Mapping[str, Any]], tuple[tuple[Message, ...], Tests, str]]  # prompt, tests, a solution or ""


@dataclass(frozen=True)
class Choices:
    """What a task says about tests: how few make no problem, and how near numbers must be."""

    min_tests: int = 0
    tolerance: float | None = None


def form_of(row: Mapping[str, Any]) -> CodeFormat | None:
    """The first format that has its keys in the row."""
    return next((form for form in FORMATS if all(key in row for key in form.needs)), None)


def read(row: Mapping[str, Any], choices: Choices) -> Asked:
    """A row as a problem; its tests are in `meta`, its answer names them. BadRow says what is wrong with it."""
    form = form_of(row)
    if form is None:
        raise BadRow("is no known form of a code problem")
    prompt, tests, solution = form.read(row)
    if _checks(tests) < choices.min_tests:
        raise BadRow(f"fewer than {choices.min_tests} tests")
    if choices.tolerance is not None and not isinstance(tests, AssertTests):
        tests = replace(tests, tolerance=choices.tolerance)
    coded = json.loads(json.dumps(to_json(tests)))
    digest = hashlib.sha256(json.dumps(coded, sort_keys=True).encode()).hexdigest()[:16]
    meta = {"tests": coded, "format": form.name}
    if isinstance(row.get("task_id"), str | int):
        meta["task_id"] = row["task_id"]
    block = f"```python\n{solution.strip()}\n```" if solution.strip() else None
    return Asked(prompt, f"{len(tests)} tests {digest}", block, meta)


def checks_of(row: Mapping[str, Any]) -> int:
    """How many tests or assertions a row holds; 0 where it is no problem."""
    form = form_of(row)
    try:
        return 0 if form is None else _checks(form.read(row)[1])
    except BadRow:
        return 0


def _checks(tests: Tests) -> int:
    if not isinstance(tests, AssertTests):
        return len(tests)
    return sum(isinstance(node, ast.Assert) for test in tests.tests for node in ast.walk(parse(test)))


def question_of(row: Mapping[str, Any]) -> str | None:
    """The text that names a problem, whatever its tests."""
    for name in ("question", "problem", "prompt", "text"):
        if isinstance(row.get(name), str) and row[name].strip():
            return str(row[name]).strip()
        if isinstance(row.get(name), list):
            return json.dumps(row[name], sort_keys=True)
    return None


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise BadRow(f"{name} is not text" if value is not None else f"{name} is missing")
    if not value.strip():
        raise BadRow(f"{name} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        raise BadRow(f"{name} is not UTF-8") from None
    return value.replace("\r\n", "\n")


def _optional(row: Mapping[str, Any], name: str) -> str:
    return _text(row, name) if row.get(name) not in (None, "") else ""


def _user(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def _parsed(source: str, name: str) -> ast.Module:
    try:
        return parse(source)
    except SyntaxError:
        raise BadRow(f"{name} is not Python") from None


def _functions(tree: ast.Module) -> list[str]:
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]


def _asserts(tests: list[str], setup: str, given: str, entry: list[str]) -> AssertTests:
    try:
        return AssertTests.of(tests, setup, given, entry)
    except UsageError:
        raise BadRow("tests take nothing from the solution") from None


def _humaneval(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], Tests, str]:
    """The prompt is the beginning of a function, the last one that it defines unless `entry_point` names another."""
    prompt, test = _text(row, "prompt"), _text(row, "test")
    given = prompt
    try:
        tree = parse(given)
    except SyntaxError:
        given = f"{prompt.rstrip()}\n    pass\n"
        tree = _parsed(given, "prompt")
    entry = _optional(row, "entry_point") or next(reversed(_functions(tree)), "")
    if entry not in _functions(tree):
        raise BadRow("prompt does not define entry_point")
    checks = _parsed(test, "test")
    called = any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "check"
        for statement in checks.body
        if isinstance(statement, ast.Expr)
        for node in ast.walk(statement)
    )
    if "check" in _functions(checks) and not called:
        test += f"\ncheck({entry})\n"
    asked = f"Complete this Python function. {_ASK[:-1]} that holds all of it.\n\n```python\n{prompt.strip()}\n```"
    done = _optional(row, "canonical_solution")
    return _user(asked), _asserts([test], "", given, [entry]), prompt + done if done else ""


def _mbpp(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], Tests, str]:
    """The first assertion is shown, since it alone says how the function is called; the others stay hidden."""
    question = _text(row, "text" if row.get("text") else "prompt")
    tests, imports = row.get("test_list"), row.get("test_imports") or []
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in (*tests, *imports)):
        raise BadRow("test_list is not a list of assertions")
    setup = "\n".join([*imports, _optional(row, "test_setup_code")]).replace("\r\n", "\n").strip()
    code = _optional(row, "code")
    for test in [setup, *tests]:
        _parsed(test, "test_list")
    try:
        entry = _functions(parse(code))
    except SyntaxError:
        entry = []
    asked = f"{question.strip()}\n\n{_ASK} This must hold:\n\n```python\n{tests[0].strip()}\n```"
    return _user(asked), _asserts([*tests], setup, "", entry), code


def _tested(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], Tests, str]:
    """Inputs with outputs, of a program or of a function where `fn_name` is given."""
    name = next(name for name in ("question", "problem", "prompt") if row.get(name) is not None)
    key = "tests" if row.get("tests") is not None else "input_output"
    starter = _optional(row, "starter_code")
    tests = _cases(row[key], key, starter)
    solutions = row.get("solutions")
    if isinstance(solutions, str):
        solutions = _json(solutions, "solutions")
    known = solutions[0] if isinstance(solutions, list) and solutions else row.get("solution")
    solution = known if isinstance(known, str) else ""
    if isinstance(row[name], list):
        return _turns(row[name]), tests, solution
    question = _text(row, name).strip()
    if isinstance(tests, StdinTests):
        return _user(f"{question}\n\n{_PRINTS}"), tests, solution
    beginning = f" It begins so:\n\n```python\n{starter.strip()}\n```" if starter else ""
    return _user(f"{question}\n\nWrite the function {tests.name}. {_ASK}{beginning}"), tests, solution


def _verl(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], Tests, str]:
    """verl's prompt says itself how to answer; the tests are the ground truth."""
    reward = row.get("reward_model")
    if not isinstance(reward, Mapping):
        raise BadRow("reward_model is not a mapping")
    tests = _cases(reward.get("ground_truth"), "ground_truth", "")
    return _turns(row["prompt"]) if isinstance(row["prompt"], list) else _user(_text(row, "prompt")), tests, ""


def _turns(turns: list[Any]) -> tuple[Message, ...]:
    try:
        prompt = tuple(Message.from_json(turn) for turn in turns)
    except (FathomError, AttributeError, TypeError, KeyError):
        raise BadRow("a message is malformed") from None
    if not prompt or prompt[-1].role != "user":
        raise BadRow("prompt does not end with the user")
    return prompt


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadRow(f"{name} is not JSON") from None


def _cases(value: Any, name: str, starter: str) -> StdinTests | CaseTests:
    if isinstance(value, str):
        value = _json(value, name)
    if isinstance(value, list):
        value = _gathered(value)
    if not isinstance(value, Mapping):
        raise BadRow(f"{name} is not a mapping")
    inputs, outputs = value.get("inputs"), value.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or not inputs:
        raise BadRow(f"{name} has no inputs and outputs")
    if len(inputs) != len(outputs):
        raise BadRow(f"{name} has unequal numbers of inputs and outputs")
    function = value.get("fn_name")
    if function is None:
        printed = tuple(map(_words, outputs))
        try:
            return StdinTests(tuple(map(_words, inputs)), printed)
        except UsageError:
            raise BadRow("an output is too long" if any(map(str.split, printed)) else "outputs are all empty") from None
    if not isinstance(function, str) or not function.isidentifier():
        raise BadRow("fn_name is not a name")
    given = [_lines(item) if isinstance(item, str) else item for item in inputs]
    if not all(isinstance(args, list) for args in given):
        raise BadRow(f"{name} has inputs that are no lists of arguments")
    if all(isinstance(item, str) for item in outputs) and all(isinstance(item, str) for item in inputs):
        wanted, unwrap = [_json(item, "an output") for item in outputs], False
    else:  # APPS wraps every output into a list
        wanted, unwrap = outputs, all(isinstance(item, list) and len(item) == 1 for item in outputs)
    takes, gives = _kinds(starter, function)
    before = _LEETCODE if "class Solution" in starter or takes else ""
    try:
        cases = tuple(zip(given, wanted, strict=True))
        return CaseTests(function, cases, takes, gives, value.get("in_place"), unwrap, before)
    except UsageError:
        raise BadRow("in_place is not the number of an argument") from None


def _gathered(tests: list[Any]) -> dict[str, Any] | None:
    """Tests that stand one by one, as DeepCoder and LiveCodeBench write them; None where they are none."""
    if not tests or not all(isinstance(test, Mapping) and "input" in test and "output" in test for test in tests):
        return None
    about = tests[0].get("metadata")
    name = tests[0].get("fn_name") or (about.get("func_name") if isinstance(about, Mapping) else None)
    return {"inputs": [t["input"] for t in tests], "outputs": [t["output"] for t in tests], "fn_name": name}


def _words(value: Any) -> str:
    """An input or output as text; some sets keep its lines in a list."""
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        value = "\n".join(value)
    if not isinstance(value, str):
        raise BadRow("an input or output is not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRow("an input or output is not UTF-8") from None
    return value


def _lines(text: str) -> list[Any]:
    """The arguments of a call, one JSON value a line, as LiveCodeBench writes them."""
    return [_json(line, "an input") for line in text.splitlines() if line.strip()]


def _kinds(starter: str, function: str) -> tuple[tuple[str, ...], str]:
    """What a starter's annotations say of lists and trees that are built of nodes, by argument, and of the value."""
    try:
        tree = parse(f"{starter.rstrip()} pass" if starter.rstrip().endswith(":") else starter)
    except SyntaxError:
        return (), ""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == function:
            args = [_kind(arg.annotation) for arg in node.args.args if arg.arg != "self"]
            return (tuple(args) if any(args) else ()), _kind(node.returns)
    return (), ""


def _kind(annotation: ast.expr | None) -> str:
    written = "" if annotation is None else ast.unparse(annotation).replace("'", "")
    inner = re.fullmatch(r"[Ll]ist\[(.*)\]", written)
    node = _NODE.match(inner[1] if inner else written)
    return "" if node is None else ("list of " if inner else "") + node[1]


# In order: of several that a row fits, the first.
FORMATS = (
    CodeFormat("verl code", ("prompt", "reward_model"), _verl),
    CodeFormat("humaneval", ("prompt", "test"), _humaneval),
    CodeFormat("mbpp", ("text", "test_list"), _mbpp),
    CodeFormat("mbpp", ("prompt", "test_list"), _mbpp),
    *(
        CodeFormat(f"{question}/{tests}", (question, tests), _tested)
        for question in ("question", "problem", "prompt")
        for tests in ("tests", "input_output")
    ),
)

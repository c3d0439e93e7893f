"""Predicted outputs and inputs: what is read as the answer, and what counts as equal."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fathom.judge.code import judge as code
from fathom.judge.code.prediction import Answer, Asked, PredictionJudge, Status, answer, is_close
from fathom.judge.extract import Unread
from fathom.judge.sandbox import End, Program, Ran
from fathom.judge.verdict import Outcome

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("given", "expected", "close"),
    [
        (True, 1, True), (1, True, True), (0.0009, 0, False), (999.9, 1000.0, False), (2.9999, 3.0, False),
        (1000.9, 1000.2, True), (1000.9, 1002.2, False), ((1, 2), [1, 2], False), ({"1": 2}, {1: 2}, False),
        (3, 3.0, True), (3, 4, False), (-0.5, 0.5, False), (-999.9, -999.2, True), (NAN, NAN, False), (INF, INF, False),
        (10**400, 1.0, False), (1.0, 10**400, False), (10**400, 10**400, True), ("a", "a", True), ("1", 1, False),
        (None, None, True), (None, 0, False), ("", None, False), (False, None, False),
        ([1, [2.0005]], [1, [2.0]], True), ([1], [1, 2], False), ([1, 2], [1], False), ([], {}, False),
        ({"a": 1.0005, "b": [True]}, {"b": [1], "a": 1.0}, True), ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": 1, "b": 2}, {"a": 1}, False),
    ],
)  # fmt: skip
def test_is_close(given: Any, expected: Any, close: bool) -> None:
    assert is_close(given, expected) is close


FENCE = '```json\n{"output": 3}\n```'


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (FENCE, 3),
        ('So {"output": 3}', 3),
        ('{"output": 1} no, {"output": 3}', 3),
        (f'{{"output": 1}}\n{FENCE}\nand {{"output": 2}}', 3),  # a fence comes first
        ('{"output": 3}, as the set {1, 2} shows', 3),  # a brace after the answer
        ('{"output": 3} and {x} and {"steps": 2}', 3),
        ('Take {a, b from {"output": 3}.', 3),  # one before it that is never closed
        ('He says "so {"output": 3}', 3),  # a stray quote
        ('```json\n{"output": 3}', 3),  # a fence that is never closed
        ('```json\n{"output": \n```\n{"output": 3}', 3),
        ('{"output": "two\nlines"}', "two\nlines"),  # the line end stays
        ('{"output": "True } {"}', "True } {"),
        ('{"output": True, "why": None}', True),
        ('{"output": [None, False, "None"]}', [None, False, "None"]),
        ('{"output": (1, (2, "(3)"))}', [1, [2, "(3)"]]),
        (r"$\{\"output\": 3\}$".replace('\\"', '"'), 3),
        (r'\boxed{{"output": [3]}}', [3]),
        ('{"output": {"a": {"b": 1}}}', {"a": {"b": 1}}),
        ('{"output": null}', None),
        ('{"output": 1e3}', 1000.0),
        ('<think>{"output": 1}</think>{"output": 3}', 3),
    ],
)
def test_the_answer_object(text: str, value: Any) -> None:
    assert answer(text, "output") == Answer(value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("The output is 3.", "no JSON object"),
        ("", "no JSON object"),
        ('{"output": NaN}', "no JSON object"),
        ('{"output": -Infinity}', "no JSON object"),
        ("```json\n[3]\n```", "not an object of names"),
        ('{"input": 3}', "key is missing"),
        ('```json\n[3]\n```\n{"input": 3}', "key is missing"),
        ('<think>{"output": 3}', "thinking was never closed"),
        ('<think>{"output": 3}</think> 3', "no JSON object"),
        ('{"output": ' + "[" * 100 + "]" * 100 + "}", "answer nests too deep"),
        ('{"output": ' * 5000, "no JSON object"),
        ("{" * 100_000, "no JSON object"),
        ('{"output": ' + "9" * 5000 + "}", "no JSON object"),
    ],
)
def test_nothing_is_guessed(text: str, reason: str) -> None:
    assert answer(text, "output") == Unread(reason)


SOURCE = """
import json

def main_solution(n, seen=None):
    if n < 0:
        raise ValueError("n is negative")
    if n == 100:
        while True:
            pass
    if n == 101:
        import os
        os._exit(0)
    if n == 102:
        return {1, 2}
    print("not the answer")
    return {"sum": n * (n + 1) / 2, 7: (n, n)}
"""
OUTPUT = {"sum": 6.0, "7": [3, 3]}


def predicted(**changes: Any) -> Asked:
    return Asked(**{"source": SOURCE, "given": {"n": 3}, "output": OUTPUT, "predict": "input", **changes})


@pytest.fixture(scope="module")
def judge() -> Iterator[PredictionJudge]:
    with PredictionJudge(time_s=1.0) as judge:
        yield judge


CASES = [
    ('{"input": {"n": 3}}', Status.SUCCESS, "feasible input", []),
    ('{"input": {"n": 3, "seen": [1]}}', Status.SUCCESS, "feasible input", []),
    ('{"input": 3}', Status.SUCCESS, "feasible input", []),
    ('{"input": {"n": 4}}', Status.WRONG_INPUT, "infeasible input", ['{"n": 4}', "[4, 4]", "[3, 3]"]),
    ('{"input": {"n": -1}}', Status.EXCEPTION, "raised ValueError", ["n is negative", '{"n": -1}']),
    ('{"input": {"m": 3}}', Status.EXCEPTION, "raised TypeError", ["unexpected keyword argument 'm'"]),
    ('{"input": {"n": 100}}', Status.TIMEOUT, "time limit", ["1 s", "not end"]),
    ('{"input": {"n": 101}}', Status.EXCEPTION, "exited before it answered", []),
    ('{"input": {"n": 102}}', Status.EXCEPTION, "gives no JSON value", []),
    ("n is 3", Status.NO_ANSWER, "no JSON object", ["no JSON object", "'input'"]),
    ('{"output": 3}', Status.NO_ANSWER, "key is missing", ["key is missing"]),
]


def test_inputs_are_run(judge: PredictionJudge) -> None:
    found = judge.judge([(predicted(), text) for text, *_ in CASES])
    outcomes = {Status.SUCCESS: Outcome.RIGHT, Status.NO_ANSWER: Outcome.UNREAD}
    for (text, status, reason, shown), checked in zip(CASES, found, strict=True):
        assert (checked.status, checked.verdict.reason) == (status, reason), text
        assert checked.verdict.outcome is outcomes.get(status, Outcome.WRONG)
        assert all(part in checked.feedback for part in shown), checked.feedback


def test_outputs_are_compared_and_never_told(judge: PredictionJudge) -> None:
    asked = predicted(predict="output")
    right, wrong, none = judge.judge([
        (asked, '{"output": {"sum": 6.0001, "7": [3, 3]}}'), (asked, '{"output": 61}'), (asked, '{"output": ')
    ])  # fmt: skip
    assert (right.status, right.verdict.outcome) == (Status.SUCCESS, Outcome.RIGHT)
    assert (wrong.status, wrong.verdict.outcome, wrong.verdict.answer) == (Status.WRONG_OUTPUT, Outcome.WRONG, "61")
    assert "61" in wrong.feedback and '{"n": 3}' in wrong.feedback and "[3, 3]" not in wrong.feedback
    assert (none.status, none.verdict.outcome) == (Status.NO_ANSWER, Outcome.UNREAD)


def test_what_is_not_the_predictions_fault_is_failed(judge: PredictionJudge, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '{"input": {"n": 3}}'
    unloaded = predicted(source="import no_such_module\n" + SOURCE)
    unnamed = predicted(name="other")
    for asked in (unloaded, unnamed):
        (checked,) = judge.judge([(asked, text)])
        assert (checked.status, checked.verdict.outcome, checked.verdict.score) == (Status.ERROR, Outcome.FAILED, None)

    class Busy:
        def __init__(self, **settings: Any) -> None: ...

        def run_pairs(self, pairs: Sequence[tuple[Program, Program]]) -> list[tuple[Ran, Ran]]:
            return [(Ran(End.BROKEN, reason="starved of processor"), Ran(End.EXITED, 0))] * len(pairs)

    monkeypatch.setattr(code, "Sandbox", Busy)
    (checked,) = PredictionJudge().judge([(predicted(), text)])
    assert (checked.status, checked.verdict.reason) == (Status.ERROR, "starved of processor")
    assert checked.verdict.outcome is Outcome.FAILED


@pytest.mark.long
def test_known_inputs_of_real_functions_give_their_outputs() -> None:
    """CodeI/O's own pairs, of which some do not reproduce: clocks, randomness, inputs changed before they were kept."""
    path = Path("/work/shared/data/codeio_raw/parsed_io.jsonl.gz")
    if not path.exists():
        pytest.skip(f"{path} is missing")
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    pairs = [(row, pair) for row in rows for pair in row["ios"][:3]]
    items = [
        (Asked(row["refcode"], pair["input"], pair["output"], kind, row["funcname"]), json.dumps({kind: pair[kind]}))
        for row, pair in pairs
        for kind in ("input", "output")
    ]
    with PredictionJudge(preload=("numpy",)) as judge:
        found = judge.judge(items)
    inputs, outputs = found[::2], found[1::2]
    assert len(inputs) > 300 and all(checked.status is Status.SUCCESS for checked in outputs)
    assert sum(checked.status is Status.SUCCESS for checked in inputs) >= 0.93 * len(inputs)
    broken = {checked.verdict.reason for checked in inputs if checked.status is Status.ERROR}
    assert broken <= {"function does not load: raised ModuleNotFoundError"}  # pandas and the like

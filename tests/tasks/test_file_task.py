"""Problem files: every form, every reason, every split."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fathom.core.errors import FathomError, UsageError
from fathom.core.records import RecordStore
from fathom.tasks.maths import BadRow, FileTask
from fathom.tasks.task import Task, load_task

DATA = Path("/work/shared/data")
GSM = {"question": "How many?", "answer": "48/2 = <<48/2=24>>24 clips.\nTogether 72.\n#### 1,072"}


def written(path: Path, rows: list[Any]) -> Path:
    lines = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(lines.encode()) if path.name.endswith(".gz") else lines.encode())
    return path


@pytest.mark.parametrize(
    ("row", "form", "answer", "solution"),
    [
        (GSM, "gsm8k", "1072", "<think>\n48/2 = 24 clips.\nTogether 72.\n</think>\n<answer>1072</answer>"),
        ({"question": "q", "answer": 7}, "question/answer", "7", None),
        ({"problem": "q", "answer": "x^2"}, "problem/answer", "x^2", None),
        ({"prompt": "q", "answer": "7"}, "prompt/answer", "7", None),
        (
            {"question": "q", "solution": "3+4", "answer": "7"},
            "question/solution/answer",
            "7",
            "<think>\n3+4\n</think>\n<answer>7</answer>",
        ),
        (
            {"problem": "q", "solution": r"so \boxed{1} and \boxed{\frac{1}{2}}."},
            "problem/solution",
            r"\frac{1}{2}",
            "<think>\nso \\boxed{1} and \\boxed{\\frac{1}{2}}.\n</think>\n<answer>\\frac{1}{2}</answer>",
        ),
        ({"problem": "q", "solution": r"\boxed{07}", "answer": "7"}, "problem/solution", "7", None),
        (
            {"question": "q", "solution": "<think>\na\n</think>\n<answer>7</answer>", "answer": "7"},
            "question/solution/answer",
            "7",
            "<think>\na\n</think>\n<answer>7</answer>",
        ),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_forms(tmp_path: Path, suffix: str, row: dict[str, Any], form: str, answer: str, solution: str | None) -> None:
    path = tmp_path / f"problems{suffix}"
    if suffix == ".parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.Table.from_pylist([row]), path)
    else:
        written(path, [row])
    task = FileTask(path, test_share=0)
    (problem,) = task.problems("train")
    assert task.format == form
    assert problem.answer == answer
    assert solution is None or problem.solution == solution
    assert problem.prompt[0].role == "user"
    assert isinstance(task, Task)


def test_chat_prompts(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    rows = [
        {"prompt": messages, "answer": "1"},
        {"prompt": [{"role": "wizard", "content": "u"}], "answer": "1"},
        {"prompt": [messages[0]], "answer": "1"},
    ]
    task = FileTask(written(tmp_path / "p.jsonl", rows), test_share=0)
    (problem,) = task.problems("train")
    assert [message.role for message in problem.prompt] == ["system", "user"]
    assert task.skipped == {"a message has an unknown role": 1, "prompt does not end with the user": 1}


BAD = {
    "no answer after ####": {"question": "q1", "answer": "half"},
    "answer is empty": {"question": "q2", "answer": "  "},
    "answer is not text": {"question": "q3", "answer": ["5"]},
    "question is not text": {"question": {"a": 1}, "answer": "#### 5"},
    "question is empty": {"question": " ", "answer": "#### 5"},
    "not JSON": '{"question": "q4", ',
    "not a JSON object": "[1, 2]",
    "line is longer than 1 MiB": json.dumps({"question": "x" * (1 << 20), "answer": "#### 5"}),
    "answer is longer than 1000 characters": {"question": "q5", "answer": "#### " + "5" * 1001},
    "solution has think or answer tags in disorder": {"question": "q6", "answer": "<answer>5</answer>\n#### 5"},
    "question is not UTF-8": '{"question": "\\ud800", "answer": "#### 5"}',
}


def test_bad_rows_are_named_and_counted(tmp_path: Path) -> None:
    rows = [GSM, *BAD.values(), {"question": "nan", "answer": float("nan")}, "", GSM]
    task = FileTask(written(tmp_path / "p.jsonl.gz", rows), test_share=0)
    assert len(list(task.problems("train"))) == 1
    assert task.skipped == Counter(dict.fromkeys(BAD, 1)) + Counter({"not JSON": 1, "question appeared before": 1})


def test_records_go_through_a_store_that_balances(tmp_path: Path) -> None:
    rows = [GSM, *BAD.values(), {**GSM, "question": "another"}, GSM]
    task = FileTask(written(tmp_path / "p.jsonl", rows), test_share=0)
    with RecordStore(tmp_path / "store") as store:
        for record in store.todo(task.records("train")):
            try:
                problem = task.parse(record)
            except BadRow as bad:
                store.reject(record, str(bad))
            else:
                store.done(record, [record.child(0, {"answer": problem.answer})])
    ledger = store.ledger()
    assert (ledger.inputs, ledger.done, ledger.rejected["duplicate id"]) == (len(rows), 2, 1)
    for record, reason in store.rejected():
        if reason in BAD:
            with pytest.raises(BadRow, match=reason):
                task.parse(record)


def test_splits(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "answer": f"#### {i}"} for i in range(1000)]
    data = written(tmp_path / "all.jsonl", rows)

    hashed = FileTask(data, test_share=0.2)
    train, test = list(hashed.problems("train")), list(hashed.problems("test"))
    assert len(train) + len(test) == 1000
    assert 150 < len(test) < 250
    assert not {problem.id for problem in train} & {problem.id for problem in test}
    halved = FileTask(written(tmp_path / "half.jsonl", rows[::-2]), test_share=0.2)
    assert {problem.id for problem in halved.problems("test")} < {problem.id for problem in test}

    last = FileTask(data, test_rows=3)
    assert [problem.answer for problem in last.problems("test")] == ["997", "998", "999"]
    assert [problem.answer for problem in last.problems("train", 2)] == ["0", "1"]
    assert sum(1 for _ in last.problems("train")) == 997

    leaking = written(tmp_path / "test.jsonl", [rows[5], {"question": "new", "answer": "#### 1"}])
    apart = FileTask(data, test=leaking)
    assert len(list(apart.problems("test"))) == 2
    assert len(list(apart.problems("train"))) == 999
    assert apart.skipped == {"question is in the test split": 1}


def test_a_seed_gives_an_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"question": f"q{i}", "answer": str(i)} for i in range(100)]
    task = FileTask(written(tmp_path / "p.jsonl", rows), test_share=0)

    def order(seed: int, limit: int | None = None) -> list[str]:
        return [problem.answer for problem in task.problems("train", limit, seed)]

    assert order(0) == [str(i) for i in range(100)]
    assert order(1) != order(2)
    assert order(1) == order(1)
    assert sorted(order(1), key=int) == order(0)
    assert order(1, 30) == order(1)[:30]
    monkeypatch.setattr("fathom.tasks.maths._SHUFFLED", 40)  # more rows than are shuffled at a time
    assert sorted(order(1, 40), key=int) == order(0)[:40]
    assert order(1, 60) == order(1)[:60]
    assert sorted(order(1), key=int) == order(0)


def test_a_test_file_may_have_another_form(tmp_path: Path) -> None:
    data = written(tmp_path / "a.jsonl", [GSM])
    test = written(tmp_path / "b.jsonl", [{"problem": "q", "solution": r"\boxed{2}"}])
    task = FileTask(data, test=test)
    assert [problem.answer for problem in task.problems("test")] == ["2"]
    assert [problem.answer for problem in task.problems("train")] == ["1072"]


def test_judging(tmp_path: Path) -> None:
    task = load_task({"data": str(written(tmp_path / "p.jsonl", [GSM])), "test_share": 0})
    (problem,) = task.problems("train")
    texts = [problem.solution or "", "<answer>1,072.0</answer>", "<answer>72</answer>", "72"]
    outcomes = [verdict.outcome.value for verdict in task.judge([(problem, text) for text in texts])]
    assert outcomes == ["right", "right", "wrong", "unread"]


def test_refusals(tmp_path: Path) -> None:
    good = written(tmp_path / "p.jsonl", [GSM])
    (tmp_path / "empty").mkdir()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"data": tmp_path / "none.jsonl"}, "no such file"),
        ({"data": tmp_path / "empty"}, "a folder without data files"),
        ({"data": written(tmp_path / "p.txt", [GSM])}, "read from .jsonl"),
        ({"data": written(tmp_path / "odd.jsonl", [{"text": "x"}])}, "rows have text, which is no known form"),
        ({"data": written(tmp_path / "empty.jsonl", [])}, "none of the first 100 lines is a JSON object"),
        ({"data": good, "test_rows": 0}, "test_rows=0"),
        ({"data": good, "test_share": 1.0}, "test_share=1.0"),
        ({"data": good, "test_rows": 1, "test_share": 0.1}, "one of test, test_rows and test_share"),
    ]
    for options, message in cases:
        with pytest.raises(UsageError, match=message):
            FileTask(**options)
    damaged = tmp_path / "cut.jsonl.gz"
    damaged.write_bytes(gzip.compress(json.dumps(GSM).encode() * 50)[:-20])
    with pytest.raises(FathomError, match="damaged gzip"):
        FileTask(damaged)
    notparquet = tmp_path / "x.parquet"
    notparquet.write_bytes(b"hello")
    with pytest.raises(FathomError, match="not readable as Parquet"):
        FileTask(notparquet)
    with pytest.raises(FathomError, match="no test problems, rows left out: 0"):
        list(FileTask(good, test_share=0).problems("test"))


def test_load_task_names_what_it_can_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_task_here.py").write_text(
        "class Own:\n"
        "    name = 'own'\n"
        "    def __init__(self, size=1): self.size = size\n"
        "    def problems(self, split, limit=None, seed=0): return iter(())\n"
        "    def judge(self, items): return []\n"
        "thing = Own()\nnothing = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    assert load_task({"task": "own_task_here:Own", "size": 4}).size == 4  # type: ignore[attr-defined]
    assert load_task("own_task_here:thing").name == "own"
    for spec, message in {
        "own_task_here:nothing": "neither a Task",
        "chain_sum": "no such task",
        "": "name a task",
    }.items():
        with pytest.raises(UsageError, match=message):
            load_task(spec)
    with pytest.raises(UsageError, match="takes no options"):
        load_task({"task": "own_task_here:thing", "size": 4})


@pytest.mark.skipif(not (DATA / "gsm8k/train.jsonl.gz").exists(), reason="gsm8k is not on this machine")
def test_gsm8k_as_it_is() -> None:
    task = FileTask(DATA / "gsm8k/train.jsonl.gz", test=DATA / "gsm8k/test_200.jsonl")
    problems = list(task.problems("train"))
    assert task.format == "gsm8k"
    assert len(problems) + sum(task.skipped.values()) == 7473
    assert len(problems) > 7450
    assert not any("<<" in (problem.solution or "") or "," in problem.answer for problem in problems)
    assert len(list(task.problems("test"))) == 200
    verdicts = task.judge([(problem, problem.solution or "") for problem in problems])
    assert {verdict.outcome.value for verdict in verdicts} == {"right"}


@pytest.mark.skipif(not (DATA / "math/math500_even.jsonl").exists(), reason="MATH is not on this machine")
def test_math_as_it_is() -> None:
    task = FileTask(DATA / "math/math500_even.jsonl", test_share=0)
    assert task.format == "problem/solution"
    assert len(list(task.problems("train"))) == 253

"""Data files made for the tests: every format, good and bad rows of it, in every container."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Make = Callable[[int], Any]  # a row, or the bytes of a line, of a number

LINES: list[tuple[Make, str]] = [  # what only a line file can hold
    (lambda i: b'{"question": %d, ' % i, "not JSON"),
    (lambda i: b'{"question": NaN, "n": %d}' % i, "not JSON"),
    (lambda i: b'{"a": 1e999, "text": 1e999, "prompt": 1e999, "messages": 1e999, "question": 1e999, "problem": 1e999, '
               b'"conversations": 1e999, "chosen": 1e999, "instruction": 1e999}', "not JSON"),
    (lambda i: b'{"text": "\xff\xfe%d"}' % i, "not UTF-8"),
    (lambda i: b"[%d]" % i, "not a JSON object"),
    (lambda i: b'{"text": ' + b"[" * 70 + b"%d" % i + b"]" * 70 + b"}", "nested deeper than 64 levels"),
    (lambda i: b'{"text": "%d' % i + b"x" * (1 << 20) + b'"}', "line is longer than 1 MiB"),
]


def ask(i: int) -> dict[str, str]:
    return {"role": "user", "content": f"question {i}?"}


def say(i: int) -> dict[str, str]:
    return {"role": "assistant", "content": f"answer {i}."}


@dataclass(frozen=True)
class Made:
    """A format's name, a good row of a number, and rows that are rejected with a reason."""

    form: str
    good: Make
    bad: list[tuple[Make, str]]
    solved: bool = True  # whether a good row teaches something
    name: str = field(default="")

    def __str__(self) -> str:
        return (self.name or self.form).replace("/", "-")


def turns(key: str) -> list[tuple[Make, str]]:
    return [
        (lambda i: {key: [ask(i)]}, "no assistant turn"),
        (lambda i: {key: []}, f"{key} is not a list of turns"),
        (lambda i: {key: f"hello {i}"}, f"{key} is not a list of turns"),
        (lambda i: {"other": i}, f"{key} is missing"),
        (lambda i: {key: None}, f"{key} is missing"),
        (lambda i: {key: [{"role": "wizard", "content": f"{i}"}, say(i)]}, "a message has an unknown role"),
        (lambda i: {key: [ask(i), {"role": "assistant", "content": None}]}, "a message is malformed"),
        (lambda i: {key: [ask(i), i]}, "a message is malformed"),
        (lambda i: {key: [ask(i), {"role": "assistant", "content": "\ud800"}]}, "a message is not UTF-8"),
        (lambda i: {key: [ask(i), {"role": "assistant", "content": [
            {"type": "image_url", "image_url": {"url": "x.png"}}]}]}, "a message has an image"),
        (lambda i: {key: [ask(i), {**say(i), "tool_calls": [{"id": "1"}]}]}, "a message has tool calls"),
        (lambda i: {key: [ask(i), {**say(i), "weight": 0}]}, "a message has a weight"),
    ]


def asked(key: str, others: dict[str, Any]) -> list[tuple[Make, str]]:
    """What may be wrong with a question and its answer."""
    return [
        (lambda i: {**others, key: f"q {i}", "answer": " "}, "answer is empty"),
        (lambda i: {**others, key: f"q {i}"}, "answer is missing"),
        (lambda i: {**others, key: f"q {i}", "answer": ["5"]}, "answer is not text"),
        (lambda i: {**others, key: f"q {i}", "answer": True}, "answer is not text"),
        (lambda i: {**others, key: {"n": i}, "answer": "5"}, "question is not text"),
        (lambda i: {**others, key: " " * i, "answer": f"{i}"}, "question is empty"),
        (lambda i: {**others, key: f"\udfff {i}", "answer": "5"}, "question is not UTF-8"),
        (lambda i: {**others, key: [{"role": "user", "content": i}], "answer": "5"}, "a message is malformed"),
        (lambda i: {**others, key: [say(i)], "answer": "5"}, "prompt does not end with the user"),
        (lambda i: {**others, key: f"q {i}", "answer": "5" * 1001}, "answer is longer than 1000 characters"),
    ]


def verl(i: int, **changes: Any) -> dict[str, Any]:
    row = {
        "data_source": "openai/gsm8k",
        "prompt": [{"role": "user", "content": f"What is {i} + 1? Think, and output the answer after \"####\"."}],
        "ability": "math", "reward_model": {"style": "rule", "ground_truth": f"{i + 1}"},
        "extra_info": {"split": "train", "index": i, "answer": f"{i}+1=<<{i}+1={i + 1}>>{i + 1}\n#### {i + 1}"},
    }
    return {key: value for key, value in (row | changes).items() if value is not ...}


def hh(i: int, reply: str) -> str:
    return f"\n\nHuman: question {i}?\n\nAssistant: {reply}"


MADE = [
    Made("messages", lambda i: {"messages": [{"role": "system", "content": "s"}, ask(i), say(i)]}, turns("messages")),
    Made("conversations", lambda i: {"conversations": [ask(i), say(i)]}, turns("conversations")),
    Made("sharegpt", lambda i: {"conversations": [
        {"from": "system", "value": "s"}, {"from": "human", "value": f"q {i}"}, {"from": "gpt", "value": f"a {i}"},
        {"from": "tool", "value": "t"}, {"from": "gpt", "value": "done"}]}, [
        (lambda i: {"conversations": [{"from": "human", "value": f"{i}"}]}, "no assistant turn"),
        (lambda i: {"conversations": [{"from": "wizard", "value": f"{i}"}]}, "a message has an unknown role"),
        (lambda i: {"conversations": [{"from": "gpt"}]}, "a message is malformed"),
        (lambda i: {"conversations": [{"from": ["gpt"], "value": f"{i}"}]}, "a message is malformed"),
        (lambda i: {"conversations": []}, "conversations is not a list of turns"),
        (lambda i: {"conversations": {"from": "gpt", "value": f"{i}"}}, "conversations is not a list of turns"),
        (lambda i: {"conversations": [{"from": "gpt", "value": f"\ud800 {i}"}]}, "a message is not UTF-8"),
        (lambda i: {"conversations": [{"from": "gpt", "value": f"{i}"}], "system": 5}, "system is not text"),
        (lambda i: {"id": i}, "conversations is missing")]),
    Made("prompt/completion", lambda i: {"prompt": f"q {i}", "completion": f"a {i}"}, [
        (lambda i: {"prompt": f"{i}", "completion": " "}, "completion is empty"),
        (lambda i: {"prompt": f"{i}", "completion": None}, "completion is missing"),
        (lambda i: {"completion": f"{i}"}, "prompt is missing"),
        (lambda i: {"prompt": i, "completion": "a"}, "prompt is not text"),
        (lambda i: {"prompt": f"{i}", "completion": "\ud800"}, "completion is not UTF-8"),
        (lambda i: {"prompt": f"{i}", "completion": []}, "completion is not a list of turns"),
        (lambda i: {"prompt": f"{i}", "completion": [ask(i)]}, "no assistant turn")]),
    Made("prompt/completion", lambda i: {"prompt": [ask(i)], "completion": [say(i)]}, [
        (lambda i: {"prompt": [ask(i), say(i)], "completion": [say(i)]}, "prompt does not end with the user"),
        (lambda i: {"prompt": [ask(i)], "completion": [ask(i)]}, "no assistant turn"),
        (lambda i: {"prompt": [ask(i)], "completion": [ask(i), say(i)]},
         "completion does not begin with the assistant"),
        (lambda i: {"prompt": [], "completion": [say(i)]}, "prompt is not a list of turns"),
        (lambda i: {"prompt": [{"role": "u", "content": ""}], "completion": [say(i)]}, "a message has an unknown role"),
    ], name="prompt/completion of messages"),
    Made("chosen/rejected", lambda i: {"prompt": f"q {i}", "chosen": f"good {i}", "rejected": f"bad {i}"}, [
        (lambda i: {"prompt": f"q {i}", "chosen": "same", "rejected": "same"}, "chosen equals rejected"),
        (lambda i: {"prompt": f"q {i}", "chosen": "a"}, "rejected is missing"),
        (lambda i: {"prompt": f"q {i}", "chosen": "a", "rejected": ""}, "rejected is empty"),
        (lambda i: {"prompt": f"q {i}", "chosen": 5, "rejected": "b"}, "chosen is not text"),
        (lambda i: {"prompt": f"q {i}", "chosen": "a", "rejected": [ask(i)]},
         "rejected does not end with the assistant"),
        (lambda i: {"chosen": f"plain {i}", "rejected": f"plain {i} too"}, "chosen and rejected share no prompt")]),
    Made("chosen/rejected", lambda i: {
        "prompt": ask(i)["content"], "chosen": [ask(i), say(i)], "rejected": [ask(i), say(-1)]}, [
        (lambda i: {"chosen": [ask(i), say(i)], "rejected": [ask(i), say(i)]}, "chosen equals rejected"),
        (lambda i: {"chosen": [ask(i), say(i)], "rejected": [ask(-i), say(0)]}, "chosen and rejected share no prompt"),
        (lambda i: {"chosen": [ask(i)], "rejected": [ask(i), say(0)]}, "chosen does not end with the assistant"),
        (lambda i: {"prompt": "else", "chosen": [ask(i), say(i)], "rejected": [ask(i), say(0)]},
         "chosen does not begin with the prompt"),
    ], name="chosen/rejected of messages"),
    Made("chosen/rejected", lambda i: {"chosen": hh(i, "good"), "rejected": hh(i, "bad")}, [
        (lambda i: {"chosen": hh(i, "same"), "rejected": hh(i, "same")}, "chosen equals rejected"),
        (lambda i: {"chosen": hh(i, "a"), "rejected": hh(-i, "b")}, "chosen and rejected share no prompt"),
        (lambda i: {"chosen": hh(i, " "), "rejected": hh(i, "b")}, "chosen does not end with the assistant"),
    ], name="chosen/rejected transcripts"),
    Made("alpaca", lambda i: {"instruction": f"do {i}", "input": "x" * (i % 2), "output": f"done {i}", "text": "t"}, [
        (lambda i: {"instruction": f"{i}", "input": "", "output": ""}, "output is empty"),
        (lambda i: {"instruction": f"{i}", "input": ""}, "output is missing"),
        (lambda i: {"instruction": "", "output": f"{i}"}, "instruction is empty"),
        (lambda i: {"instruction": f"{i}", "input": 5, "output": "x"}, "input is not text"),
        (lambda i: {"instruction": [f"{i}"], "output": "x"}, "instruction is not text"),
        (lambda i: {"instruction": f"{i}", "output": "\udfff"}, "output is not UTF-8"),
        (lambda i: {"instruction": f"{i}", "output": "x", "history": [["a", "b"]]}, "history is not read")]),
    Made("text", lambda i: {"text": f"Text {i}."}, [
        (lambda i: {"text": " " * i}, "text is empty"),
        (lambda i: {"text": i}, "text is not text"),
        (lambda i: {"text": f"\ud800 {i}"}, "text is not UTF-8"),
        (lambda i: {"other": i}, "text is missing")]),
    Made("gsm8k", lambda i: {"question": f"{i}+1?", "answer": f"{i}+1=<<{i}+1={i + 1}>>{i + 1}\n#### {i + 1}"}, [
        *asked("question", {})[:9],
        (lambda i: {"question": f"q {i}", "answer": "half"}, "no answer after ####"),
        (lambda i: {"question": f"q {i}", "answer": "5 ####  "}, "no answer after ####"),
        (lambda i: {"question": f"q {i}", "answer": "<think>5\n#### 5"},
         "solution has think or answer tags in disorder")]),
    Made("problem/solution", lambda i: {
        "problem": f"{i}+1?", "level": "Level 1", "type": "Algebra", "solution": rf"It is $\boxed{{{i + 1}}}$."}, [
        (lambda i: {"problem": f"q {i}", "solution": "It is 7."}, "no boxed answer in the solution"),
        (lambda i: {"problem": f"q {i}", "solution": r"\boxed{ }"}, "answer is empty"),
        (lambda i: {"problem": f"q {i}"}, "solution is missing"),
        (lambda i: {"problem": f"q {i}", "solution": ""}, "solution is empty"),
        (lambda i: {"problem": f"q {i}", "solution": [r"\boxed{5}"]}, "solution is not text"),
        (lambda i: {"problem": f"q {i}", "solution": r"\boxed{5}", "answer": [5]}, "answer is not text"),
        (lambda i: {"problem": f"q {i}", "solution": r"\boxed{5}", "level": "\ud800"}, "level is not UTF-8"),
        (lambda i: {"solution": rf"\boxed{{{i}}}"}, "question is missing")]),
    Made("question/solution/answer", lambda i: {"question": f"{i}?", "solution": "count", "answer": f"{i}"}, [
        *asked("question", {"solution": "s"}),
        (lambda i: {"question": f"q {i}", "solution": "</think>", "answer": "5"},
         "solution has think or answer tags in disorder")]),
    Made("verl", verl, [
        (lambda i: verl(-i, reward_model={"style": "rule"}, extra_info={"index": i}), "ground_truth is missing"),
        (lambda i: verl(i + 1000, reward_model=...), "reward_model is missing"),
        (lambda i: verl(i + 2000, reward_model="rule"), "reward_model is not a mapping"),
        (lambda i: verl(i + 3000, reward_model={"style": "rule", "ground_truth": ["5"]}), "ground_truth is not text"),
        (lambda i: verl(i + 4000, reward_model={"style": "rule", "ground_truth": "7"}),
         "ground_truth is not the answer of the solution"),
        (lambda i: verl(i + 5000, ability="code"), "ability is code"),
        (lambda i: verl(i + 6000, extra_info="none"), "extra_info is not a mapping"),
        (lambda i: verl(i + 7000, extra_info={"index": i}), "no worked solution"),
        (lambda i: verl(i, prompt=[say(i)]), "prompt does not end with the user"),
        (lambda i: verl(i, prompt=[]), "prompt is not a list of turns"),
        (lambda i: verl(i, prompt=...), "prompt is missing")]),
    Made("question/answer", lambda i: {"question": f"{i}?", "answer": f"{i}"}, asked("question", {}), solved=False),
    Made("problem/answer", lambda i: {"problem": f"{i}?", "answer": f"{i}"}, asked("problem", {}), solved=False),
    Made("prompt/answer", lambda i: {"prompt": f"{i}?", "answer": f"{i}"}, asked("prompt", {}), solved=False),
]


# Containers: each writes rows and returns the name to read them by.


def lines(path: Path, rows: list[Any]) -> Path:
    content = b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)
    path.write_bytes(gzip.compress(content, 1) if path.name.endswith(".gz") else content)
    return path


def array(path: Path, rows: list[Any]) -> Path:
    path.write_text(json.dumps(rows))
    return path


def parquet(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema(rows)), path, row_group_size=64)
    return path


def schema(rows: list[Any]) -> pa.Schema:
    """Of all keys; `from_pylist` alone takes those of the first row."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return pa.schema([(key, pa.array([row.get(key) for row in rows]).type) for key in keys])


def shards(path: Path, rows: list[Any]) -> Path:
    half = len(rows) // 2
    parquet(path / "data" / "train-00000-of-00002.parquet", rows[:half])
    parquet(path / "data" / "train-00001-of-00002.parquet", rows[half:])
    parquet(path / "data" / "test-00000-of-00001.parquet", rows[:1])
    return path


def carded(path: Path, rows: list[Any]) -> Path:
    (path / "main").mkdir(parents=True)
    half = len(rows) // 2
    lines(path / "main" / "a.jsonl", rows[:half])
    lines(path / "main" / "b.jsonl.gz", rows[half:])
    (path / "README.md").write_text(
        "---\nlicense: mit\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n"
        "    path: main/*\n---\n# Data\n")
    return path


def saved(path: Path, rows: list[Any]) -> Path:
    path.mkdir(parents=True)
    table = pa.Table.from_pylist(rows, schema=schema(rows))
    with pa.OSFile(str(path / "data-00000-of-00001.arrow"), "wb") as sink, \
            pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=64)
    (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    (path / "dataset_info.json").write_text("{}")
    return path


CONTAINERS: dict[str, Callable[[Path, list[Any]], Path]] = {
    "d.jsonl": lines, "d.jsonl.gz": lines, "d.json": array, "d.parquet": parquet, "shards": shards, "carded": carded,
    "saved": saved,
}
TABLES = ("d.parquet", "shards", "saved")


def fits_table(good: Any, bad: Any) -> bool:
    """Whether a bad row can stand in a table of good ones: its values have their types. Keys nobody reads are lost."""
    try:
        schema([good, bad])
    except (pa.ArrowException, UnicodeEncodeError):
        return False
    return not bad.keys() & {"other", "id"}


def bad_rows(made: Made, container: str) -> list[tuple[Any, str]]:
    """Every bad row that a format has in a container, with its reason."""
    extra = LINES if container.endswith((".jsonl", ".gz")) else []
    found = [(make(1000 + i), reason) for i, (make, reason) in enumerate([*made.bad, *extra])]
    if container in TABLES:
        found = [(row, reason) for row, reason in found if fits_table(made.good(0), row)]
    return found


def five_percent(made: Made, container: str) -> tuple[list[Any], Counter[str]]:
    """200 rows in an order of their own, exactly 10 of them bad, and how often each reason is to be given."""
    rng = random.Random(f"{made} {container}")
    pool = bad_rows(made, container)
    rng.shuffle(pool)
    chosen = pool[:10]
    often = [make for make, _ in made.bad if make(1) != make(2) and not isinstance(make(1), bytes)]
    reasons = dict(made.bad)
    usable = [make for make in often if container not in TABLES or fits_table(made.good(0), make(0))]
    while len(chosen) < 10:
        make = rng.choice(usable)
        chosen.append((make(2000 + len(chosen)), reasons[make]))
    rows = [*(made.good(i) for i in range(190)), *(row for row, _ in chosen)]
    rng.shuffle(rows)
    return rows, Counter(reason for _, reason in chosen)

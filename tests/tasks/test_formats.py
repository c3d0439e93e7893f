"""Every format in every container: all good rows are read, every bad one is a named reject, and the ledger balances."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

import made_data
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import CONTAINERS, MADE, Made, verl

from fathom.core.chat import Message
from fathom.core.records import Ledger, RecordStore
from fathom.tasks.examples import BadRow, gather, load_source
from fathom.tasks.formats import FORMATS, Asked, form_of, recognise
from fathom.tasks.maths import FileTask
from fathom.tasks.task import load_task

SHARED = Path("/work/shared/data")
LOG = logging.getLogger("x")


def gathered(tmp_path: Path, path: Path, made: Made) -> tuple[RecordStore, Ledger]:
    """What becomes of a file: examples for formats with something to learn, else problems."""
    store = RecordStore(tmp_path / "records")
    kind = next(form.kind for form in FORMATS if form.name == made.form)
    spec: dict[str, Any] = {"data": str(path)} | ({"test_share": 0} if kind == "problem" else {})
    if made.solved:
        ledger = gather(store, [spec], lambda _: 0, lambda example: {"example": str(example)},
                        LOG, lambda: None)
        return store, ledger
    task = load_task(spec)
    assert isinstance(task, FileTask)
    assert task.format == made.form
    with store:
        for record in store.todo(task.records("train")):
            try:
                store.done(record, [record.child(0, task.parse(record).to_json())])
            except BadRow as bad:
                store.reject(record, str(bad))
    ledger = store.ledger()
    ledger.check()
    return store, ledger


def test_every_format_is_made() -> None:
    assert {made.form for made in MADE} == {form.name for form in FORMATS}


@pytest.mark.property
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("made", MADE, ids=str)
def test_five_percent_of_bad_rows_are_named(made: Made, container: str, tmp_path: Path) -> None:
    rows, reasons = made_data.five_percent(made, container)
    assert (len(rows), sum(reasons.values())) == (200, 10)
    path = CONTAINERS[container](tmp_path / container, rows)
    store, ledger = gathered(tmp_path, path, made)
    assert (ledger.inputs, ledger.done, Counter(ledger.rejected)) == (200, 190, reasons)
    assert all("line" in record.data or "row" in record.data or "escaped" in record.data
               for record, _ in store.rejected())


@pytest.mark.parametrize("made", MADE, ids=str)
def test_every_bad_row_has_its_reason(made: Made, tmp_path: Path) -> None:
    bad = made_data.bad_rows(made, "d.jsonl")
    path = made_data.lines(tmp_path / "d.jsonl", [*(made.good(i) for i in range(40)), *(row for row, _ in bad)])
    _, ledger = gathered(tmp_path, path, made)
    assert Counter(ledger.rejected) == Counter(reason for _, reason in bad)
    assert load_source(str(path), 0).form.startswith((made.form, f"problems ({made.form}"))


@pytest.mark.parametrize("made", MADE, ids=str)
def test_a_row_has_one_name_in_every_container(made: Made, tmp_path: Path) -> None:
    rows = [made.good(i) for i in range(20)]
    names = set()
    for container, write in CONTAINERS.items():
        spec = {"data": str(write(tmp_path / container, rows))}
        source = load_source(spec, 0)
        names.add(tuple(sorted({record.id for record in source.records()})))
    assert len(names) <= 2  # `shards` keeps its test split apart
    assert max(map(len, names)) >= 15


def test_the_rows_in_the_docs_are_of_their_formats() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| `([^`]+)` \| (chat|problem) \|.*\| `(\{.*\})` \|$", page, re.MULTILINE)
    assert [(name, kind) for name, kind, _ in shown] == [(form.name, form.kind) for form in FORMATS]
    for name, _, row in shown:
        (form,) = recognise([json.loads(row)])
        assert form.name == name
        assert form.read(json.loads(row))


def example(row: dict[str, Any]) -> Any:
    (form,) = recognise([row], ("chat",))
    return form.example(row)


def test_what_is_learnt() -> None:
    ask, say = Message("user", "q"), Message("assistant", "a")
    plain, other = [ask.to_json(), say.to_json()], [ask.to_json(), {"role": "assistant", "content": "b"}]
    for row in (
        {"messages": plain},
        {"conversations": plain},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"prompt": "q", "completion": "a"},
        {"prompt": plain[:1], "completion": plain[1:]},
        {"prompt": plain[:1], "completion": "a"},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": plain, "rejected": other},
        {"prompt": plain[:1], "chosen": plain[1:], "rejected": other[1:]},
        {"prompt": plain[:1], "chosen": "a", "rejected": other[1:]},
        {"chosen": plain, "rejected": other},
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        {"instruction": "q", "output": "a", "text": "the whole of it"},
        {"instruction": "q", "input": "", "output": "a"},
    ):
        assert example(row) == (ask, say), row
    assert example({"instruction": "q", "input": "x", "output": "a"}) == (Message("user", "q\n\nx"), say)
    system = Message("system", "s")
    assert example({"instruction": "q", "output": "a", "system": "s"}) == (system, ask, say)
    assert example({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
                    "system": "s"}) == (system, ask, say)
    assert example({"text": " kept as it is\n"}) == " kept as it is\n"


def test_preferences_over_longer_chats() -> None:
    talk = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}, {"role": "user", "content": "3"}]
    good, bad = {"role": "assistant", "content": "4"}, {"role": "assistant", "content": "5"}
    assert [m.text for m in example({"chosen": [*talk, good], "rejected": [*talk, bad]})] == ["1", "2", "3", "4"]
    with pytest.raises(BadRow, match="share no prompt"):
        example({"chosen": [good], "rejected": [bad]})
    with pytest.raises(BadRow, match="share no prompt"):
        example({"chosen": "The answer is 4", "rejected": "The answer is 5"})
    with pytest.raises(BadRow, match="chosen does not end with the assistant"):
        example({"chosen": talk, "rejected": [*talk, bad]})


def test_verl_solutions_stand_as_written(tmp_path: Path) -> None:
    boxed = verl(3, reward_model={"style": "rule", "ground_truth": "4"}, extra_info={"solution": r"So \boxed{4}."})
    bare = verl(4, extra_info={"answer": "5", "index": 0})
    commas = verl(1233, reward_model={"style": "rule", "ground_truth": "1,234"},
                  extra_info={"answer": "Count.\n#### 1,234"})
    task = FileTask(made_data.lines(tmp_path / "d.jsonl", [verl(1), boxed, bare, commas]), test_share=0)
    problems = list(task.problems("train"))
    assert [p.solution for p in problems] == ["1+1=2\n#### 2", r"So \boxed{4}.", None, "Count.\n#### 1234"]
    assert [p.answer for p in problems] == ["2", "4", "5", "1,234"]
    assert problems[0].prompt == (Message("user", verl(1)["prompt"][0]["content"]),)
    outcomes = task.judge([(p, p.solution or "#### 5") for p in problems])
    assert [verdict.outcome.value for verdict in outcomes] == ["right"] * 4


def test_level_and_type_go_with_the_problem(tmp_path: Path) -> None:
    task = FileTask(made_data.lines(tmp_path / "d.jsonl", [MADE[11].good(1)]), test_share=0)
    (problem,) = task.problems("train")
    assert problem.meta == {"level": "Level 1", "type": "Algebra"}


def test_the_first_row_does_not_decide(tmp_path: Path) -> None:
    rows = [{"question": "1?", "answer": "no mark"}, *({"question": f"{i}", "answer": f"#### {i}"} for i in range(5))]
    task = FileTask(made_data.lines(tmp_path / "d.jsonl", rows), test_share=0)
    assert task.format == "gsm8k and question/answer"
    assert len(list(task.problems("train"))) == 5
    assert task.skipped == {"no answer after ####": 1}


def test_chats_of_several_formats_lie_in_one_file(tmp_path: Path) -> None:
    rows = [{"text": "a"}, {"text": "b"}, {"prompt": "q", "completion": "a"}, {"messages": []}]
    source = load_source(str(made_data.lines(tmp_path / "d.jsonl", rows)), 0)
    assert source.form == "text and prompt/completion and messages"
    read = []
    for record in source.records():
        try:
            read.append(source.example(record))
        except BadRow as bad:
            read.append(str(bad))
    assert read == ["a", "b", (Message("user", "q"), Message("assistant", "a")), "messages is not a list of turns"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[]), max_size=8),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(
        st.sampled_from(["role", "content", "from", "value", "ground_truth", "answer", "solution", "type", "weight"]),
        inside, max_size=4),
    max_leaves=8)
some_text = st.sampled_from(["user", "assistant", "human", "gpt", "#### 5", r"\boxed{5}", "text", "\ud800", ""])


@pytest.mark.property
@settings(max_examples=120, deadline=None)
@given(st.data())
def test_any_row_is_read_or_a_bad_row(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(FORMATS))
    keys = ("role", "content", "from", "value")
    turn = st.fixed_dictionaries({}, optional={key: some_text | json_values for key in keys})
    value = some_text | json_values | st.lists(turn, max_size=3)
    row = data.draw(st.fixed_dictionaries({key: value for key in form.needs},
                                          optional={key: value for key in form.may_have}))
    assert form_of(row, form) is form
    try:
        found = form.read(row)
    except BadRow as bad:
        assert len(str(bad)) < 60
        return
    if isinstance(found, Asked):
        json.dumps(found.answer + (found.solution or "")).encode()
        "".join(m.text for m in found.prompt).encode()
    else:
        (found if isinstance(found, str) else "".join(m.text for m in found)).encode()


@pytest.mark.property
@settings(max_examples=40, deadline=None)
@given(values=st.lists(json_values, max_size=20), form=st.sampled_from([made for made in MADE if made.solved]))
def test_any_json_value_as_a_row_is_kept_or_rejected(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], form: Made
) -> None:
    folder = tmp_path_factory.mktemp("any")
    path = made_data.lines(folder / "d.jsonl", [*(form.good(i) for i in range(21)), *values])
    _, ledger = gathered(folder, path, form)
    assert ledger.inputs == 21 + len(values)


@pytest.mark.skipif(not (SHARED / "gsm8k/train.jsonl.gz").exists(), reason="gsm8k is not on this machine")
def test_gsm8k_as_examples(tmp_path: Path) -> None:
    store = RecordStore(tmp_path / "records")
    gsm8k = SHARED / "gsm8k"
    spec = {"task": "gsm8k", "data": str(gsm8k / "train.jsonl.gz"), "test": str(gsm8k / "test_200.jsonl")}
    ledger = gather(store, [spec], lambda _: 0, lambda example: {"n": len(example)}, LOG, lambda: None)
    assert ledger.inputs == 7473
    assert ledger.done + sum(ledger.rejected.values()) == 7473
    assert ledger.done > 7450


@pytest.mark.skipif(not (SHARED / "math/math500_even.jsonl").exists(), reason="MATH is not on this machine")
def test_math_as_examples_and_problems(tmp_path: Path) -> None:
    store = RecordStore(tmp_path / "records")
    spec = {"task": "math", "data": str(SHARED / "math/math500_even.jsonl"), "test_share": 0}
    ledger = gather(store, [spec], lambda _: 0, lambda example: {"n": len(example)}, LOG, lambda: None)
    assert (ledger.inputs, ledger.done) == (253, 253)
    task = load_task({"task": "math", "data": str(SHARED / "math/train_answers.jsonl.gz"),
                      "test": str(SHARED / "math/math500_even.jsonl")})
    problems = list(task.problems("train"))
    assert len(problems) + sum(task.skipped.values()) == 7463  # type: ignore[attr-defined]
    assert {p.task for p in problems} == {"math"}


def test_reasoning_apart_is_joined_and_never_dropped(tmp_path: Path) -> None:
    """DeepSeek's API gives it beside the content; without it a template would train an empty thought."""
    def row(**more: object) -> dict[str, object]:
        return {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes", **more}]}

    [form] = recognise([row(reasoning_content="because")])
    for key in ("reasoning_content", "reasoning"):
        chat = form.example(row(**{key: "because\n"}))
        assert chat[-1].text == "<think>\nbecause\n</think>\n\nyes"
    assert form.example(row(reasoning_content=None))[-1].text == "yes"
    for bad in ({"reasoning_content": 5}, {"reasoning_content": "a", "content": "<think>b</think>c"}):
        with pytest.raises(BadRow, match="reasoning that cannot be joined"):
            form.example(row(**bad))

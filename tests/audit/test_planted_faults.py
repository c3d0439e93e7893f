"""Faults planted in masks, templates, data and rewards: each is found, named, and told with its remedy."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fathom.audit import Check, State, audit, checks
from fathom.core import disk
from fathom.core.errors import AuditFailed, UsageError
from fathom.model.template import FAMILIES
from fathom.model.tokenizer import TEMPLATE, Tokenizer

HERE = Path(__file__).parent
CHATS = [
    {"messages": [
        {"role": "user", "content": f"What is {i} + 1?"}, {"role": "assistant", "content": f"It is {i + 1}."}]}
    for i in range(40)
]
EMPTY = [{"role": role, "content": " "} for role in ("user", "assistant")]
HALF_EMPTY = [{"messages": [*chat["messages"], *EMPTY]} for chat in CHATS]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the faulty modules in reach, to stand in."""
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tokenizer(world: Path, template: str = TEMPLATE) -> str:
    """A directory with a tokenizer that has this chat template."""
    texts = [m["content"] for chat in CHATS for m in chat["messages"]]
    files = Tokenizer.train(texts, 300).files() | {"chat_template.jinja": template.encode()}
    (world / "init").mkdir(exist_ok=True)
    for name, content in files.items():
        (world / "init" / name).write_bytes(content)
    return "init"


def lines(world: Path, rows: list[dict[str, Any]]) -> str:
    (world / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return "rows.jsonl"


def recipe(world: Path, **stages: dict[str, Any]) -> str:
    (world / "recipe.yaml").write_text(json.dumps({"stages": stages}))
    return "recipe.yaml"


def sft(
    world: Path, template: str = TEMPLATE, rows: list[dict[str, Any]] = CHATS, **more: Any
) -> str:
    return recipe(
        world, taught={"run": "sft", "init": tokenizer(world, template), "data": [lines(world, rows)], **more})


def grpo(world: Path, task: str = "Sums", **more: Any) -> str:
    return recipe(
        world, reasoned={"run": "grpo", "init": tokenizer(world), "tasks": [f"own_faulty:{task}"], **more})


NO_STOP = TEMPLATE.replace("{{ m.content }}{{ eos_token }}", "{{ m.content }}")
assert NO_STOP != TEMPLATE
LATE_STOP = TEMPLATE.replace("{{ m.content }}{{ eos_token }}", "{{ m.content }} [end]{{ eos_token }}")
TWICE = TEMPLATE.replace("{{ bos_token }}", "{{ bos_token }}{{ bos_token }}")
assert TWICE != TEMPLATE
THINKS = TEMPLATE.replace("%}<｜Assistant｜>{% endif %}", "%}<｜Assistant｜>Let me think.{% endif %}")
assert THINKS != TEMPLATE
MUTE = TEMPLATE.replace("{% if add_generation_prompt %}<｜Assistant｜>{% endif %}", "")
assert MUTE != TEMPLATE
DROPS = TEMPLATE.replace("<｜User｜>{{ m.content }}", "<｜User｜>")



def edited(world: Path) -> str:
    """A recipe whose model was made whole and changed afterwards."""
    files = {path.name: path.read_bytes() for path in (world / tokenizer(world)).iterdir()}
    with disk.commit(world / "model") as folder:
        for name, content in files.items():
            folder.write(name, content)
    (world / "model" / "chat_template.jinja").write_text(THINKS)
    return recipe(world, taught={"run": "sft", "init": "model", "data": [lines(world, CHATS)]})


FAULTS = {
    # masks and templates
    "untrained stop token": (lambda w: sft(w, NO_STOP), "data 0: untrained stop token", "eos_token right after"),
    "stop token late": (lambda w: sft(w, LATE_STOP), "data 0: trained beyond the answer", "right after the assistant"),
    "double BOS": (lambda w: sft(w, TWICE), "data 0: double BOS", "write bos_token once"),
    "prompt differs": (lambda w: sft(w, THINKS), "data 0: prompt differs", "add_generation_prompt"),
    "no generation prompt": (lambda w: sft(w, MUTE), "data 0: prompt differs", "add_generation_prompt"),
    "template drops the user": (lambda w: sft(w, DROPS), "data 0: template", "correct chat_template.jinja"),
    "empty answers": (lambda w: sft(w, rows=HALF_EMPTY), "data 0: empty answer", "drop or fill"),
    # data
    "answers cut off": (lambda w: sft(w, sequence_length=12), "data 0: truncated answers", "set sequence_length="),
    "rows of another kind": (
        lambda w: sft(w, rows=[*CHATS, *({"messages": [{"role": "user", "content": f"q{i}"}]} for i in range(30))]),
        "data 0: rows", "correct the rows"),
    "reference answers of other rows": (
        lambda w: recipe(w, score={"run": "evaluate", "model": tokenizer(w), "tasks": [lines(w, [
            {"question": f"What is {i} + 1?", "solution": f"The answer is {i + 1}.", "answer": str(i)}
            for i in range(40)])]}),
        "known right", "correct the solutions"),
    "answers of other rows, workings in no form": (
        lambda w: recipe(w, score={"run": "evaluate", "model": tokenizer(w), "tasks": [{"task": lines(w, [
            {"question": f"What is {i} + {i}?", "solution": f"{i}+{i} is {2 * i}.", "answer": str(i + 3)}
            for i in range(60)]), "test_share": 0.5}]}),
        "known right", "of the same row"),
    "no such model": (lambda w: recipe(w, taught={"run": "sft", "init": "taugth", "data": [lines(w, CHATS)]}),
                      "tokenizer", r"did you mean taught\?"),
    "an edited model": (edited, "tokenizer", "mend what is named"),
    "no such data": (lambda w: recipe(w, taught={"run": "sft", "init": tokenizer(w), "data": ["not_there.jsonl"]}),
                     "data 0: rows", "mend what is named"),
    "test problems in training": (
        lambda w: recipe(
            w, reasoned={"run": "grpo", "init": tokenizer(w), "tasks": ["own_faulty:Leaking"]},
            score={"run": "evaluate", "model": "init", "tasks": ["own_faulty:Leaking"]}),
        "test problems in training", "keep them apart"),
    "completions too short": (
        lambda w: recipe(w, score={"run": "evaluate", "model": tokenizer(w), "sampling": {"max_tokens": 8}, "tasks": [
            {"task": "gym:chain_sum", "think": "steps"}]}),
        "truncated answers", "set sampling.max_tokens="),
    # judges
    "judge takes substrings": (lambda w: grpo(w, "Substring"), "hack probes", "tighten the judge"),
    "judge takes box spam": (lambda w: grpo(w, "LastBox"), "hack probes", "tighten the judge"),
    "judge never reads": (lambda w: grpo(w, "Deaf"), "known right", "correct these answers"),
    "judge fails": (lambda w: grpo(w, "Failing"), "judge", "mend the judge"),
    "judge dies": (lambda w: grpo(w, "Dying"), "own_faulty:Dying: problems and judge", "mend what runs there"),
    "no problems": (lambda w: grpo(w, "Empty"), "own_faulty:Empty: judge", "mend the task"),
    "judge of another type": (lambda w: grpo(w, "Untyped"), "own_faulty:Untyped: judge", "mend the task"),
    # rewards
    "hanging reward": (
        lambda w: grpo(w, rewards={"accuracy": 1, "own_faulty:hanging": {"timeout_s": 0.5}}),
        "reward own_faulty:hanging", "mend it"),
    "constant reward": (
        lambda w: grpo(w, rewards={"accuracy": 1, "own_faulty:constant": 1}),
        "reward own_faulty:constant", "teach nothing"),
    "restless reward": (
        lambda w: grpo(w, rewards={"accuracy": 1, "own_faulty:restless": 0.1}), "own_faulty:restless", "replayed"),
    "silent reward": (lambda w: grpo(w, rewards={"own_faulty:silent": 1}), "own_faulty:silent", "mend it"),
    "raising reward": (lambda w: grpo(w, rewards={"own_faulty:raising": 1}), "own_faulty:raising", "mend it"),
    "wrong sign": (lambda w: grpo(w, rewards={"accuracy": -1}), "the sum", "signs of the weights"),
    "form above all": (lambda w: grpo(w, rewards={"accuracy": 0.1, "format": 1}), "the sum", "weigh accuracy"),
    "length above all": (
        lambda w: grpo(w, rewards={"accuracy": 1, "own_faulty:wordy": 1}), "the sum", "weigh accuracy"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_no_family_has_a_fault(name: str, world: Path) -> None:
    """Those that trim, add empty thinking or end turns with another token than EOS are sound too."""
    answers = [{"role": "assistant", "content": f"<think>\nIt is {i}.\n</think>\n\n{i} "} for i in range(40)]
    thinking = [{"messages": [chat["messages"][0], answer]} for chat, answer in zip(CHATS, answers, strict=True)]
    rows = thinking if name == "r1" else [*CHATS, *thinking]  # R1's prompt begins the thinking: no answer is without
    files = Tokenizer.train([m["content"] for chat in rows for m in chat["messages"]], 300, name).files()
    if name == "qwen3":
        files["tokenizer_config.json"] = files["tokenizer_config.json"].replace(
            b'"eos_token": "<|im_end|>"', b'"eos_token": "<|endoftext|>"')
    (world / "init").mkdir()
    for file, content in files.items():
        (world / "init" / file).write_bytes(content)
    told = recipe(world, taught={"run": "sft", "init": "init", "data": [lines(world, rows)]})
    assert [check for check in checks(told) if check.state is State.FAIL] == []


@pytest.mark.parametrize("fault", FAULTS)
def test_each_planted_fault_is_found_by_name_with_its_remedy(fault: str, world: Path) -> None:
    plant, name, remedy = FAULTS[fault]
    found = [check for check in checks(plant(world)) if check.state is State.FAIL]
    assert found, f"{fault}: nothing failed"
    hit = [check for check in found if re.search(name, check.name)]
    assert hit, f"{fault}: found {[(check.name, check.said) for check in found]}"
    assert any(re.search(remedy, check.remedy) for check in hit), hit


def test_sound_recipes_pass(world: Path) -> None:
    for made in (sft(world), grpo(world, rewards={"accuracy": 1.0, "format": 0.1})):
        found = list(checks(made))
        assert len(found) >= 5
        assert [check for check in found if check.state is State.FAIL] == []


def test_the_first_example_is_shown_with_what_is_trained(world: Path) -> None:
    [shown] = [check.shown for check in checks(sft(world)) if check.shown]
    assert [text for text, trained in shown if trained] == ["It is 1.<｜end▁of▁sentence｜>"]
    assert "What is 0 + 1?" in "".join(text for text, trained in shown if not trained)


def test_a_judge_that_hangs_is_a_finding_within_the_time(world: Path) -> None:
    began = time.monotonic()
    found = list(checks(grpo(world, "Hanging"), seconds=6))
    assert time.monotonic() - began < 9
    assert found[-1].state is State.FAIL and "did not end within the 6 s" in found[-1].said
    assert found[-1].name == "own_faulty:Hanging: problems and judge" and found[-1].stage == "reasoned"
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert "own_faulty:Hanging" not in listed and str(world) not in listed


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL, None])
def test_nothing_is_left_of_an_audit(end: signal.Signals | None, world: Path) -> None:
    words = [sys.executable, "-m", "fathom", "audit", grpo(world, "Littering"), "--seconds", "60" if end else "3"]
    (world / "own_faulty.py").write_text((HERE / "own_faulty.py").read_text())
    audited = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (world / "left").exists() or not (world / "left").read_text():
        assert audited.poll() is None
        time.sleep(0.02)
    if end is not None:
        audited.send_signal(end)
    audited.wait()
    before = time.monotonic()
    while Path(f"/proc/{(world / 'left').read_text()}").exists():
        assert time.monotonic() - before < 5
        time.sleep(0.02)


def test_labels(world: Path) -> None:
    good = [
        {"answer": "1/2", "text": "\\boxed{0.5}", "right": True},
        {"answer": "3", "text": "\\boxed{4}", "right": False},
    ]
    made = recipe(world, score={"run": "evaluate", "model": tokenizer(world), "tasks": ["gym:chain_sum"]})
    (world / "labels.jsonl").write_text("\n".join(map(json.dumps, good * 10)))
    [check] = [c for c in checks(made, labels=Path("labels.jsonl")) if c.name.startswith("agreement")]
    assert check.state is State.OK and "20 of 20 (100.0 %)" in check.said
    bad = [*good * 10, {"answer": "3", "text": "\\boxed{3}", "right": False}]
    (world / "labels.jsonl").write_text("\n".join(map(json.dumps, bad)))
    [check] = [c for c in checks(made, labels=Path("labels.jsonl")) if c.name.startswith("agreement")]
    assert check.state is State.FAIL and "taken though wrong 1 of 11: '3' for" in check.said
    (world / "labels.jsonl").write_text('{"answer": "3"}')
    with pytest.raises(UsageError, match=r"labels\.jsonl:1: needs answer and text"):
        list(checks(made, labels=Path("labels.jsonl")))
    with pytest.raises(UsageError, match="no such file"):
        list(checks(made, labels=Path("not_there.jsonl")))


def test_command_line(world: Path) -> None:
    words = [sys.executable, "-m", "fathom", "audit", grpo(world, "Substring")]
    done = subprocess.run(words, capture_output=True, text=True, env=None)
    assert done.returncode == 3 and "no module own_faulty" in done.stdout  # not in this process's path
    (world / "own_faulty.py").write_text((HERE / "own_faulty.py").read_text())
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 3 and "tighten the judge" in done.stdout and "hack probes" in done.stderr
    assert "checks failed" in done.stderr and "Traceback" not in done.stderr
    done = subprocess.run([*words[:-1], grpo(world)], capture_output=True, text=True)
    assert done.returncode == 0 and ", 0 failed" in done.stdout
    done = subprocess.run([*words[:-1], "not/there"], capture_output=True, text=True)
    assert done.returncode == 2 and "no such recipe" in done.stderr


def test_audit_says_everything_that_failed(world: Path) -> None:
    with pytest.raises(AuditFailed, match=r"(?s)3 of \d+ checks failed.*known right.*reward accuracy.*the sum"):
        audit(grpo(world, "Deaf", rewards={"accuracy": 1, "format": 1}))


def test_a_check_survives_json() -> None:
    check = Check("s", "n", State.FAIL, "said", "remedy", (("a", True), ("b", False)))
    assert Check.from_json(json.loads(json.dumps(check.to_json()))) == check

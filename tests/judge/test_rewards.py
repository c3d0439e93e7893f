"""Rewards: what is scored, and None that stays None."""

import json
import time
from pathlib import Path

import pytest

from fathom.core.chat import Message
from fathom.core.errors import FathomError, UsageError
from fathom.judge.own import load_object
from fathom.judge.rewards import Answered, Rewards, accuracy, check_rewards, total
from fathom.judge.shaping import format
from fathom.judge.verdict import Verdict


def answered(text: str, finish: str = "stop", prompt: str = "2+2?", verdict: Verdict | None = None) -> Answered:
    return Answered((Message("user", prompt),), text, verdict or Verdict.right(), finish)


def test_accuracy_is_the_verdicts_score() -> None:
    verdicts = [Verdict.right(), Verdict.wrong("w", score=0.25), Verdict.unread("u"), Verdict.failed("f")]
    assert accuracy([answered("", verdict=verdict) for verdict in verdicts]) == [1.0, 0.25, 0.0, None]


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("<think>a</think><answer>4</answer>", True),
        (" \n<think>\na\n</think>\n\n<answer>4</answer>\n", True),
        ("<think></think><answer></answer>", True),
        ("<think>a</think> so <answer>4</answer>", False),
        ("hm <think>a</think><answer>4</answer>", False),
        ("<think>a</think><answer>4</answer> done", False),
        ("<think>a</think><answer>4</answer><answer>5</answer>", False),
        ("<think>a</think><think>b</think><answer>4</answer>", False),
        ("<think>a<think>b</think><answer>4</answer>", False),
        ("<think>a</think><answer>4</answer></answer>", False),
        ("<answer>4</answer><think>a</think>", False),
        ("<think>a</think>", False),
        ("a</think><answer>4</answer>", False),
        ("", False),
    ],
)
def test_format(text: str, good: bool) -> None:
    assert format([answered(text)]) == [1.0 if good else 0.0]
    assert format([answered(text, finish="length")]) == [0.0]


def test_format_continues_a_prompt_that_opened_the_thinking() -> None:
    opened = "2+2?<|Assistant|><think>\n"
    assert format([answered("a</think><answer>4</answer>", prompt=opened)]) == [1.0]
    assert format([answered("<think>a</think><answer>4</answer>", prompt=opened)]) == [1.0]
    assert format([answered("a</think>4", prompt=opened)]) == [0.0]


def test_total_weighs_and_keeps_none() -> None:
    parts: dict[str, list[float | None]] = {"accuracy": [1.0, 0.0, None], "format": [1.0, 1.0, 1.0]}
    assert total(parts, {}) == [2.0, 1.0, None]
    assert total(parts, {"format": 0.5}) == [1.5, 0.5, None]
    with pytest.raises(UsageError, match="lenght is not among"):
        total(parts, {"lenght": 1.0})
    with pytest.raises(UsageError, match="different numbers of values"):
        total({"a": [1.0], "b": [1.0, 2.0]}, {})


OWN = """
import os, time
import numpy as np

def short(answered):
    return [-len(a.text) for a in answered]

def obey(answered, worth=1.0):
    for a in answered:
        if a.text == "hang": time.sleep(60)
        if a.text == "die": os.kill(os.getpid(), 9)
        if a.text == "eat": bytearray(1 << 31)
        if a.text == "raise": raise ValueError("no")
    return [None if a.text == "unsure" else np.float32(worth) for a in answered]

def always_raises(answered): raise ValueError("never")
def too_few(answered): return [1.0][:0]
def no_numbers(answered): return ["good" for _ in answered]
def infinite(answered): return [float("inf") for _ in answered]
x = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "own_rewards_here.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return "own_rewards_here:"


def values(given: dict[str, object], *texts: str) -> list[float | None]:
    with Rewards(given) as rewards:
        return total(rewards.parts([answered(text) for text in texts]), rewards.weights)


def test_rewards_by_name_with_weights_and_options(own: str) -> None:
    assert values({"accuracy": 1.0, own + "short": 0.5}, "abcd", "ab") == [-1.0, 0.0]
    assert values({own + "obey": {"weight": 2, "worth": 3.0}}, "a", "unsure") == [6.0, None]
    assert values({"language": {"script": "han", "weight": 0.5}}, "你好 hello") == [pytest.approx(1 / 3)]


def test_what_a_reward_of_ones_own_does_costs_only_the_completion_that_it_does_it_to(own: str) -> None:
    with Rewards({own + "obey": {"timeout_s": 1.0, "memory_mb": 512}}) as rewards:
        texts = ["a", "hang", "b", "die", "eat", "raise", "unsure", "c"]
        [got] = rewards.parts([answered(text) for text in texts]).values()
        assert got == [1.0, None, 1.0, None, None, None, None, 1.0]
        assert rewards.broken() == {
            own + "obey": {
                1: "judging passed 1 s", 3: "worker died: signal 9", 4: "out of memory", 5: "raised ValueError: no"
            }
        }
        assert rewards.parts([answered("a")]) == {own + "obey": [1.0]} and rewards.broken() == {}


def test_names_weights_and_options_that_cannot_be_meant(own: str) -> None:
    for given, message in (
        ({"acuracy": 1}, "did you mean accuracy"),
        ({own: 1}, "my_package.module:function"),
        ({"accuracy": "much"}, "weight='much'"),
        ({"overlong": {"bufer": 3}}, "bufer: no such option; it has weight, buffer"),
        ({"format": {"x": 1}}, "it has weight$"),
        ({"cosine_length": {"right": 3}}, r"right=3: must be two numbers"),
        ({"overlong": {"buffer": 0}}, "buffer=0: must be a whole number"),
        ({"language": {"script": "klingon"}}, "script='klingon'"),
    ):
        with pytest.raises(UsageError, match=message):
            check_rewards(given)
    for name, message in {
        "shrot": "did you mean short",
        "x": "this is a int",
        "always_raises": "broke on all of the first 1 completions: raised ValueError: never; mend the function",
        "too_few": "0 values for 1 completions",
        "no_numbers": "'good' is no reward",
        "infinite": "inf.* is no reward",
    }.items():
        with pytest.raises(FathomError, match=message):
            values({own + name: 1.0}, "a")
    with pytest.raises(FathomError, match="no module not_there"):
        values({"not_there:f": 1.0}, "a")


def test_a_reward_that_always_hangs_stops_after_a_few(own: str) -> None:
    began = time.monotonic()
    with Rewards({own + "obey": {"timeout_s": 0.5}}) as rewards, pytest.raises(FathomError, match=r"first 4.*0\.5 s"):
        rewards.parts([answered("hang")] * 40)
    assert time.monotonic() - began < 10


def test_load_object_names_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_broken_rewards.py").write_text("import surely_not_installed\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="surely_not_installed"):  # the module's own error, as it is
        load_object("own_broken_rewards:f", "reward")
    with pytest.raises(UsageError, match="no module not_there"):
        load_object("not_there:f", "task")
    with pytest.raises(UsageError, match=r"written my_package\.module:thing"):
        load_object("own_broken_rewards:", "task")


def test_an_answered_completion_survives_json() -> None:
    for verdict in (Verdict.right("r", "4"), Verdict.failed("f")):
        one = Answered((Message("user", "2+2?"),), "4", verdict, "length", 3, 9, "sums:1")
        assert Answered.from_json(json.loads(json.dumps(one.to_json()))) == one

"""Rewards: what is scored, and None that stays None."""

from pathlib import Path

import pytest

from fathom.core.chat import Message
from fathom.core.errors import UsageError
from fathom.judge.rewards import REWARDS, Answered, accuracy, format, load_reward, total
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


def test_load_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_rewards_here.py").write_text(
        "def short(answered): return [-len(a.text) for a in answered]\nx = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    assert load_reward("accuracy") is REWARDS["accuracy"]
    assert load_reward("own_rewards_here:short")([answered("abc")]) == [-3]
    for name, message in {
        "acuracy": "did you mean accuracy",
        "own_rewards_here:shrot": "did you mean short",
        "own_rewards_here:x": "this is a int",
        "not_there:f": "no module not_there",
        "own_rewards_here:": "written my_package.module:thing",
    }.items():
        with pytest.raises(UsageError, match=message):
            load_reward(name)


def test_an_import_error_inside_the_users_module_is_shown_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_broken_rewards.py").write_text("import surely_not_installed\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="surely_not_installed"):
        load_reward("own_broken_rewards:f")

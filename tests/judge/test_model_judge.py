"""A model as judge at an endpoint: what is asked, what it costs, and what happens where it says nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "core"))

from endpoint import FakeEndpoint, Status, reply

from fathom.core.client import CapReached, Client, ClientSettings
from fathom.core.errors import UsageError
from fathom.judge.model_judge import PROMPT, Asked, JudgeSettings, ModelJudge, agreement, labelled
from fathom.judge.verdict import Outcome

TRUE = "## Student Final Answer\n7\n\n## Equivalence Judgement\nTRUE\n\n## Justification\nsame\n\n=== report over ==="
FALSE = TRUE.replace("TRUE", "FALSE")
TOKENS = 150  # of a report at the made endpoint


def says(asked, number, report=None):
    """TRUE where the solution that is judged says so; usage as an endpoint counts it."""
    content = asked.body["messages"][0]["content"]
    mine = content.rsplit("Student's solution:", 1)[1]
    text = report or (TRUE if "seven" in mine else FALSE)
    told = reply(asked, message={"role": "assistant", "content": text})
    told["usage"] = {"prompt_tokens": len(content) // 3, "completion_tokens": TOKENS, "total_tokens": 0}
    return told


def judge_of(endpoint, tmp_path, cap=None, **more):
    settings = JudgeSettings(endpoint=ClientSettings(
        url=endpoint.url, model="judge-1", journal=str(tmp_path / "judge.sqlite"), price_in=1.0, price_out=2.0, cap=cap,
        concurrency=4), **more)
    return ModelJudge(settings, Client(settings.endpoint))


ITEMS = [Asked(f"What is {i}?", "7", f"I say {'seven' if i % 2 else 'eight'} {i}") for i in range(60)]


def test_verdicts_follow_the_reports(tmp_path):
    with FakeEndpoint(says) as endpoint:
        judge = judge_of(endpoint, tmp_path)
        found = judge.judge(ITEMS[:4])
        assert [one.verdict.outcome for one in found] == [Outcome.WRONG, Outcome.RIGHT] * 2
        assert [one.published for one in found] == [False, True] * 2
        assert found[1].report == TRUE
        assert endpoint.asked[0].body["temperature"] == 0
        again = judge.judge(ITEMS[:4])
        assert [one.verdict for one in again] == [one.verdict for one in found]
        assert len(endpoint.asked) == 4  # cached by content


def test_what_cannot_be_judged_is_failed_or_never_asked(tmp_path):
    def script(asked, number):
        content = asked.body["messages"][0]["content"]
        if "broken" in content.rsplit("Student's solution:", 1)[1]:
            return says(asked, number, "I think that they are alike.")
        if "filtered" in content:
            return Status(400, {"error": {"message": "content filter", "code": "content_filter"}})
        return says(asked, number)

    with FakeEndpoint(script) as endpoint:
        found = judge_of(endpoint, tmp_path).judge([
            Asked("q", "7", "<think>seven"), Asked("q", "7", "  "), Asked("q", "7", "broken"),
            Asked("q", "7", "seven")])
        assert [one.verdict.outcome for one in found] == [
            Outcome.UNREAD, Outcome.UNREAD, Outcome.FAILED, Outcome.RIGHT]
        assert found[2].verdict.score is None
        assert len(endpoint.asked) == 2


def test_thinking_is_not_sent_and_slots_are_filled_once(tmp_path):
    with FakeEndpoint(says) as endpoint:
        judge_of(endpoint, tmp_path).judge([
            Asked("{{Solution}}", "{{Problem}}", "<think>long</think>{{Reference Answer}} seven")])
        content = endpoint.asked[0].body["messages"][0]["content"]
        assert content.endswith("Problem: {{Solution}}\n\nReference answer: {{Problem}}\n\n"
                                "Student's solution: {{Reference Answer}} seven\n")
        assert "long" not in content.rsplit("Problem:", 1)[1]


def test_the_examples_are_balanced():
    assert PROMPT.count("\nTRUE\n") == PROMPT.count("\nFALSE\n") == 2


def test_a_run_that_would_cost_three_times_its_cap_asks_nothing(tmp_path):
    with FakeEndpoint(says) as endpoint:
        costs = judge_of(endpoint, tmp_path).price(ITEMS)
        assert costs.expected_money is not None
        with pytest.raises(CapReached, match="nothing more is sent"):
            judge_of(endpoint, tmp_path, cap=costs.expected_money / 3).judge(ITEMS)
        assert not endpoint.asked


def test_a_forecast_that_was_too_low_stops_after_the_first_replies_and_goes_on_with_more(tmp_path):
    said = []
    with FakeEndpoint(says) as endpoint:
        cap = 1.1 * judge_of(endpoint, tmp_path, reply_tokens=1).price(ITEMS).expected_money
        low = judge_of(endpoint, tmp_path, cap=cap, reply_tokens=1)
        with pytest.raises(CapReached, match=r"Raise judge\.endpoint\.cap"):
            low.judge(ITEMS, said.append)
        asked = len(endpoint.asked)
        assert asked == 20
        assert low.client.stats.spent < cap / 2
        judge = judge_of(endpoint, tmp_path, cap=1.0, reply_tokens=1)
        forecast = judge.price(ITEMS)
        assert forecast.found == 20
        found = judge.judge(ITEMS)
        assert len(endpoint.asked) == 60  # nothing was asked twice
        assert sum(one.verdict.outcome is Outcome.RIGHT for one in found) == 30
        real = judge.client.stats.spent
        assert abs(forecast.found_money + forecast.expected_money - real) < 0.05 * real


def test_the_forecast_before_anything_is_asked_is_within_a_fifth(tmp_path):
    items = [Asked("Prove that " + "the sum of the digits of the number is even, and " * (i % 7), "7",
                   "We argue by induction over the digits. " * (3 + i % 11) + "seven") for i in range(50)]
    with FakeEndpoint(says) as endpoint:
        judge = judge_of(endpoint, tmp_path)
        forecast = judge.price(items)
        judge.judge(items)
        assert abs(forecast.expected_money - judge.client.stats.spent) < 0.2 * judge.client.stats.spent


def test_agreement_with_labels(tmp_path):
    rows = [{"problem": "p", "answer": "7", "generation": f"{'seven' if i < 3 else 'eight'} {i}", "right": i < 2}
            for i in range(5)]
    path = tmp_path / "labels.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    labels = labelled(str(path))
    with FakeEndpoint(says) as endpoint:
        counts = agreement(labels, judge_of(endpoint, tmp_path).judge([label.asked for label in labels]))
    assert counts == {"right": 2, "right_agreed": 2, "wrong": 3, "wrong_agreed": 2, "failed": 0}


def test_bad_files_are_refused_by_name(tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text('{"problem": "p", "answer": "7", "generation": "x", "right": 1}\n')
    with pytest.raises(UsageError, match="line 1 is no labelled answer"):
        labelled(str(path))
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("{{Problem}} {{Solution}}")
    with FakeEndpoint(says) as endpoint, pytest.raises(UsageError, match=r"has no slot \{\{Reference Answer\}\}"):
        judge_of(endpoint, tmp_path, prompt=str(prompt))

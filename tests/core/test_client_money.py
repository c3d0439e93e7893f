"""The client's money: the cap that no request passes, what is estimated, the forecast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from endpoint import Asked, Drop, FakeEndpoint, Status, once, prompts, reply, settings

from fathom.core.chat import Sampling
from fathom.core.client import CapReached, Client, wire
from fathom.core.client.account import Account
from fathom.core.client.wire import Usage


def test_the_cap_is_not_passed_and_more_money_goes_on(tmp_path: Path) -> None:
    # A reply costs 10 + 5 tokens; at the worst (bytes and max_tokens) about 100 + 20.
    prices = {"price_in": 1e4, "price_out": 1e4, "journal": str(tmp_path / "j"), "concurrency": 16}
    with FakeEndpoint(delay=0.01) as at:
        for cap, least in ((2.0, 1), (6.0, 20)):
            with Client(settings(at, **prices, cap=cap)) as client:
                with pytest.raises(CapReached) as caught:
                    client.generate(prompts(50), Sampling(max_tokens=20))
                stats, error = client.stats, caught.value
                assert stats.spent <= cap and stats.spent == pytest.approx(0.15 * len(at.asked))
                worst = Account(client.settings).money(Usage(client._counter.most(wire.messages(prompts(1)[0])), 20))
                assert stats.spent + worst + 0.1 > cap, "it stopped only when the next one might have passed it"
                assert len(at.asked) >= least
                assert (error.spent, error.cap, error.remaining) == (stats.spent, cap, 50 - len(at.asked))
                assert f"cap={cap:g}" in str(error) and f"{error.remaining} completions remain" in str(error)
                assert error.exit_code == 75
        with Client(settings(at, **prices, cap=100.0)) as client:
            client.generate(prompts(50), Sampling(max_tokens=20))
            assert len(at.asked) == 50, "nothing was asked twice"
            assert client.stats.spent == pytest.approx(0.15 * 50)
            client.generate(prompts(50), Sampling(max_tokens=20))
            assert client.stats.spent == pytest.approx(0.15 * 50), "what is found twice has cost once"


def test_the_cap_holds_at_the_worst() -> None:
    """Replies that cost all they may: the sum never passes the cap, whatever is in flight."""
    def script(asked: Asked, number: int) -> Any:
        most = Account(client.settings), client._counter.most(asked.body["messages"])
        return {**reply(asked), "usage": {"prompt_tokens": most[1], "completion_tokens": asked.body["max_tokens"]}}

    with (FakeEndpoint(script, delay=0.01) as at,
          Client(settings(at, price_in=1e6, price_out=1e6, cap=1000.0, concurrency=64)) as client):
        with pytest.raises(CapReached, match="not kept: no journal is set"):
            client.generate(prompts(100), Sampling(max_tokens=20))
        assert 850 < client.stats.spent <= 1000


def test_lost_tries_count_at_their_worst(tmp_path: Path) -> None:
    values = {"price_in": 1e4, "price_out": 1e4, "journal": str(tmp_path / "j")}
    with FakeEndpoint(once(Drop())) as at:
        with Client(settings(at, **values)) as client:
            client.generate(prompts(1), Sampling(max_tokens=20))
            worst = client._account.money(Usage(client._counter.most(wire.messages(prompts(1)[0])), 20))
            assert client.stats.estimated == pytest.approx(worst)
            assert client.stats.money == pytest.approx(worst + 0.15)
        with Client(settings(at, **values, cap=worst + 0.2)) as client:
            client.generate(prompts(1), Sampling(max_tokens=20))
            assert client.stats.money == 0 and client.stats.spent == pytest.approx(worst + 0.15), "the journal knows"
            with pytest.raises(CapReached, match="the next request may cost"):
                client.generate(prompts(2), Sampling(max_tokens=20))
        with (FakeEndpoint(lambda asked, number: Drop()) as broken,
              Client(settings(broken, **values, cap=worst * 2.5)) as client):
            with pytest.raises(CapReached, match="of it estimated"):
                client.generate(prompts(1), Sampling(max_tokens=20))
            assert client.stats.requests == 2
        with FakeEndpoint(once(Status(503))) as busy, Client(settings(busy, **values)) as client:
            client.generate(prompts(1), Sampling(max_tokens=20))
            assert client.stats.estimated == 0, "an endpoint that is busy sends no bill"


def test_a_reply_without_usage_is_estimated() -> None:
    def script(asked: Asked, number: int) -> Any:
        return {**reply(asked), "usage": None}

    with FakeEndpoint(script) as at, Client(settings(at, price_in=1e6, price_out=1e6), count=len) as client:
        (answer,), = client.generate(prompts(1), Sampling())
        assert client.stats.prompt_tokens == len("Add.") + len("0 + 0") + 2 * 4
        assert client.stats.completion_tokens == len(answer.text)
        assert client.stats.estimated == client.stats.money == pytest.approx(len(answer.text) + 17)


def test_a_bill_past_the_worst_case_is_said(caplog: pytest.LogCaptureFixture) -> None:
    def script(asked: Asked, number: int) -> Any:
        return {**reply(asked), "usage": {"prompt_tokens": 10, "completion_tokens": 5000}}

    with FakeEndpoint(script) as at, Client(settings(at, price_in=1, price_out=1, cap=1.0)) as client:
        client.generate(prompts(3), Sampling(max_tokens=20))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "billed with 10 + 5000 tokens" in caplog.text


def test_forecast(tmp_path: Path) -> None:
    with FakeEndpoint() as at:
        asking = settings(at, price_in=1e6, price_out=2e6, journal=str(tmp_path / "j"))
        with Client(asking) as client:
            before = client.forecast(prompts(30), Sampling(max_tokens=50))
            assert at.asked == [], "nothing is asked"
            assert (before.completions, before.found, before.requests) == (30, 0, 30)
            # "Add." is 2 tokens of 3.5 characters, "7 + 7" 2 and "17 + 17" 2 or 3; 4 for each message
            assert before.prompt_tokens == sum(2 + 2 + 8 for _ in range(30))
            assert before.expected_tokens == before.most_tokens == 30 * 50
            assert before.expected_money == before.prompt_tokens + 2 * 1500
            assert before.most_money is not None and before.most_money > before.expected_money
            assert "max_tokens=50: only 0 answers so far" in str(before) and "3.5 characters" in str(before)
            client.generate(prompts(20), Sampling(max_tokens=50))
        with Client(asking) as client:
            after = client.forecast(prompts(30), Sampling(max_tokens=50))
            assert (after.found, after.requests, after.expected_tokens, after.most_tokens) == (20, 10, 50, 500)
            assert "completions of 5.0 tokens, the mean of 20 answers so far" in str(after)
            assert client.stats.found == 0, "a forecast finds nothing"
            assert after.most_money is not None
        with Client(asking.model_copy(update={"cap": after.most_money + 20 * 20})) as client:
            client.generate(prompts(30), Sampling(max_tokens=50))  # 20 a reply found; the rest fits by the forecast
        with Client(settings(at), count=lambda t: 1) as client:
            counted = client.forecast(prompts(2), Sampling(), n=2)
            assert counted.prompt_tokens == 2 * (2 + 8) and counted.expected_money is None
            assert "as the given tokenizer counts" in str(counted) and "price" not in str(counted)

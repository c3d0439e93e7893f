"""Many clients at once on a real server beside others that do all they should not; `python -m bench.soak` is longer."""

from __future__ import annotations

import json
import random

import pytest

from bench.soak import CHAT, Ask, Soak, soak


def answered(ask: Ask, counts: list[int], finish: list[str]) -> bytes:
    """A stream as a server writes it."""
    chunks = [{"choices": [{"index": index, "logprobs": {"tokens": ["x"]}, "finish_reason": None}]}
              for index, count in enumerate(counts) for _ in range(count)]
    chunks += [{"choices": [{"index": index, "logprobs": None, "finish_reason": end}]}
               for index, end in enumerate(finish)]
    chunks.append({"choices": [], "usage": {
        "prompt_tokens": len(ask.body["prompt"]), "completion_tokens": sum(counts)}})
    return b"".join(f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks) + b"data: [DONE]\n\n"


def test_what_is_not_whole_counts_as_lost() -> None:
    ask = Ask.drawn(random.Random(0), plain=True)
    assert ask.path != CHAT
    ask.body |= {"n": 2, "max_tokens": 5, "ignore_eos": False}
    whole = answered(ask, [5, 3], ["length", "stop"])
    assert ask.fault(whole) is None
    for wrong, why in (
        (whole.removesuffix(b"data: [DONE]\n\n"), "no [DONE]"),
        (answered(ask, [4, 3], ["length", "stop"]), "4 tokens of 5"),
        (answered(ask, [5, 0], ["length", "stop"]), "0 tokens of 5"),
        (answered(ask, [5], ["length"]), "finish None"),
        (whole.replace(b'"completion_tokens": 8', b'"completion_tokens": 9'), "usage"),
        (b'data: {"error": {"message": "the engine failed"}}\n\n' + whole, "the engine failed"),
        (whole[: len(whole) // 2].rpartition(b"\n\n")[0] + b"\n\ndata: [DONE]\n\n", "no usage"),
    ):
        found = ask.fault(wrong)
        assert found is not None and why in found, (found, why)


def test_the_slope_is_that_of_the_time_after_the_warm_up() -> None:
    made = Soak(1.0, warm_s=10.0)
    made.resident = [(float(t), 500.0 + 20 * min(t, 10) + 0.05 * t) for t in range(100)]
    assert made.slope == pytest.approx(3.0)


@pytest.mark.long
def test_256_clients_lose_nothing_whatever_others_do() -> None:
    made = soak(seconds=30, rounds=1, warm=20)
    print(made.table())
    assert made.faults() == []
    assert made.whole >= 256 and made.turned_away == 0
    # all that is meant to happen did
    assert made.watch["where"]["waiting"] and made.watch["where"]["writing"] and made.watch["checks"]
    assert made.statuses["413"] and made.statuses["499"]
    for what in ("byte a second", "half of a head", "half of a body", "silent connection", "endless body",
                 "reset at a random token", "reset before the first token"):
        assert made.did[what], what
    if made.vanishing:
        assert made.did["vanished at a random token"]

"""The benches' own arithmetic, and the GPU checks run where there is none."""

import pytest

from bench import gpu, grpo
from bench.measure import Pair, interleave


def test_a_ratio_is_of_medians_and_its_spread_of_rounds() -> None:
    pair = Pair("x", [1.0, 2.0, 4.0], [4.0, 4.0, 4.0], bar=3.0, work=8.0)
    assert pair.ratio == 2.0
    assert pair.spread == (1.0, 4.0)
    assert pair.line() == "| x | 4 tok/s | 2 tok/s | 2.00× (1.00–4.00) | ≥ 3× MISSED |"


def test_sides_take_turns_and_warm_rounds_do_not_count() -> None:
    seen: list[str] = []
    ours, theirs = interleave(lambda: seen.append("a"), lambda: seen.append("b"), rounds=3, warm=2)
    assert "".join(seen) == "ab" * 5
    assert len(ours) == len(theirs) == 3


def test_the_reward_of_the_bench_differs_within_a_group() -> None:
    assert len({grpo.score(text) for text in ("a", "b", "ab")}) == 3


def test_gpu_checks_pass_on_the_cpu() -> None:
    assert [row for row in gpu.checks("cpu") if "MISSED" in row] == []


def test_gpu_checks_can_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    check, _, _ = gpu.CHECKS["grouped product"]
    monkeypatch.setattr(gpu, "CHECKS", {"grouped product": (check, 1e-12, None)})
    assert "MISSED" in gpu.checks("cpu")[0]

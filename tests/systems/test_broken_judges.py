"""Judges that hang, die and eat memory during GRPO: training goes on, groups shrink, nothing is scored 0."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small import Small, kept, plain
from troubles import trouble


def test_training_survives_its_judges(small: Small, tmp_path: Path) -> None:
    own = {"weight": 0.5, "timeout_s": 0.8, "memory_mb": 256}
    settings = small.settings(
        "grpo", tasks=["troubles:Troubled"], rewards={"accuracy": 1.0, "troubles:reward": own}, steps=2, group=6, kl=0)
    ended = plain(tmp_path, "grpo", settings, "--dir", tmp_path / "run", "--seed", 3)
    assert ended.code == 0, ended.said
    seen = set()
    for step in range(1, 3):
        [*lines] = map(json.loads, (tmp_path / "run" / "samples" / f"{step:06d}.jsonl").read_text().splitlines())
        for row in (row for line in lines for row in line["group"]):
            judged, rewarded = trouble(row["text"], 0), trouble(row["text"], 3)
            seen |= {("judge", judged), ("reward", rewarded)}
            digits = sum(c.isdigit() for c in row["text"]) / max(1, len(row["text"]))
            assert (row["outcome"] == "failed") == (judged is not None)
            assert row["rewards"]["accuracy"] == (None if judged else digits)
            assert row["rewards"]["troubles:reward"] == (None if rewarded else digits)
            if judged or rewarded:
                assert row["reward"] is None and row["advantage"] is None  # it left its group
            else:
                assert row["reward"] == pytest.approx(1.5 * digits)
        for line in lines:
            left = [row["advantage"] for row in line["group"] if row["advantage"] is not None]
            assert sum(left) == pytest.approx(0, abs=1e-9)  # the group that is left has its own mean
    assert {what for _, what in seen} == {None, "hang", "die", "eat"}, "the draw of this seed shows too little"
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == 2 and any(0 < row["judge_failed"] < 1 for row in metrics)
    assert all(row["judge_failed"] >= row["failed"] for row in metrics)
    said = (tmp_path / "run" / "logs" / "attempt-1.log").read_text()
    assert "reward troubles:reward:" in said and "judging passed 0.8 s" in said and "worker died: exit 3" in said
    assert plain(tmp_path, "report", "run").code == 0
    assert "left its group" in (tmp_path / "run" / "report.html").read_text()
    assert kept(tmp_path / "run")["summary"]

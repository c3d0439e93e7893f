"""The two pictures of a long-context stage: loss by position, and needles found by depth and length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from made_run import attempt, write_manifest

from fathom.report import write_report
from fathom.report.page import page
from fathom.report.read import read_run

LOSSES = {"0-before": [2.0, 3.1, 3.4], "1-stretched": [2.1, 2.2, 2.2], "2-phase-1": [2.0, 1.9, 1.8]}
FOUND = {"0-before": [[4, 0], [4, 1]], "1-stretched": [[3, 2], [4, 2]], "2-phase-1": [[4, 4], [4, 3]]}


def make_stage(stage: Path) -> Path:
    """A finished stage with three measurements."""
    write_manifest(stage, "extend", {"tokens_per_step": 4096}, [attempt(0, 60)])
    (stage / "proof").mkdir()
    for step, name in enumerate(LOSSES):
        found: dict[str, Any] = {
            "name": name, "step": max(0, 100 * (step - 1)), "original": 256, "target": 1024,
            "curve": {"edges": [0, 256, 512, 1024], "loss": LOSSES[name], "error": [0.01, 0.02, 0.03], "texts": []},
            "needle": {"lengths": [256, 1024], "depths": [0.0, 1.0], "samples": 4, "right": FOUND[name]},
        }
        (stage / "proof" / f"{name}.json").write_text(json.dumps(found))
    return stage


def test_the_page_holds_curves_and_grids(tmp_path: Path) -> None:
    [proof] = page(read_run(make_stage(tmp_path / "long")))["proofs"]
    assert (proof["stage"], proof["original"], proof["target"]) == ("long", 256, 1024)
    series = proof["chart"]["series"]
    assert [line["label"] for line in series] == ["as it came", "stretched, untrained", "after phase 1"]
    assert [line.get("dashed", False) for line in series] == [True, True, False]
    assert series[0]["x"] == [255, 511, 1023]
    assert series[2]["y"] == [2.0, 1.9, 1.8]
    assert series[2]["band"] == [0.01, 0.02, 0.03]
    assert proof["grids"][2]["found"] == [[1.0, 1.0], [1.0, 0.75]]


def test_a_stage_without_measurements_has_no_such_part(made: Path) -> None:
    assert page(read_run(made))["proofs"] == []


def test_the_page_draws_them(tmp_path: Path, browse: Any) -> None:
    seen = browse(write_report(make_stage(tmp_path / "long")))
    assert seen.console == []
    assert seen.urls == set()
    body = seen.dom.split('<div id="page">')[1].split('<script type="application/json"')[0]
    assert '<section id="proof"' in body
    assert "256 → 1\u202f024 tokens" in body
    assert body.count('<table class="needles">') == 3
    assert "1\u202f024 tokens, depth 100\u202f%: 75\u202f% of 4" in body
    assert "at position 255 to 1.8 at position 1023" in body
    assert "undefined" not in body
    assert "NaN" not in body

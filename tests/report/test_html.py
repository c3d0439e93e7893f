"""The report as a file: what it holds, what it leaves out, and that untrusted text stays text."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_run import NASTY, START, attempt, write_evaluation, write_lines, write_manifest

from fathom.core.errors import FathomError, UsageError
from fathom.report import write_report
from fathom.report.completions import completions, evenly
from fathom.report.curves import charts, expert_load, lengths, thin
from fathom.report.html import embed, html
from fathom.report.page import page, timeline
from fathom.report.read import read_run


def data_of(text: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_report_holds_every_part_of_a_run_in_one_small_file(made: Path) -> None:
    path = write_report(made)
    text = path.read_text(encoding="utf-8")
    data = data_of(text)
    assert path == made / "report.html"
    assert len(text) < 3_000_000
    assert [stage["name"] for stage in data["chain"]] == ["base", "cold", "before", "zero", "traces", "final", "score"]
    assert [ledger["stage"] for ledger in data["ledgers"]] == ["traces"]
    assert data["ledgers"][0]["rejected"][0] == ["wrong answer", 286]
    assert data["ledgers"][0]["inputs"] == 824 + 382
    assert {source["stage"] for source in data["completions"]} == {"before", "zero", "score"}
    assert {load["stage"] for load in data["load"]} == {"base", "zero"}
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text), "an address outside the file"
    assert write_report(made).read_text(encoding="utf-8") == text, "the same run gives the same file"


def test_headline_compares_first_and_last_evaluation(made: Path) -> None:
    headline = page(read_run(made))["headline"]
    assert headline["kind"] == "change"
    assert (headline["before"]["model"], headline["after"]["model"]) == ("cold", "final")
    arithmetic = headline["tasks"][0]
    difference = arithmetic["difference"]
    assert difference["mean"] == pytest.approx(arithmetic["after"]["accuracy"] - arithmetic["before"]["accuracy"])
    assert difference["significant"]
    assert difference["low"] < difference["mean"] < difference["high"]


def test_a_completion_cannot_leave_its_place(made: Path) -> None:
    text = write_report(made).read_text(encoding="utf-8")
    assert "</script><img" not in text
    assert text.count("</script>") == 2, "one for the data, one for the page's own script"
    zero = next(source for source in data_of(text)["completions"] if source["stage"] == "zero")
    assert NASTY in [sample["text"] for problem in zero["problems"] for sample in problem["group"]]


@given(st.text(), st.text())
def test_embedded_text_comes_back_as_it_was(a: str, b: str) -> None:
    written = embed({a: [b, "</script>", "<!--", "\u2028"]})
    assert "<" not in written
    assert ">" not in written
    assert "\u2028" not in written
    assert json.loads(written) == {a: [b, "</script>", "<!--", "\u2028"]}


def test_a_lone_surrogate_is_written() -> None:
    assert json.loads(embed("a\ud800b")) == "a\ud800b"


def test_the_name_of_a_run_is_escaped_and_never_a_template(tmp_path: Path) -> None:
    stage = tmp_path / "{{data}}<b>&"
    write_manifest(stage, "sft", {}, [attempt(0, 1)])
    text = html(page(read_run(stage)))
    assert "<title>{{data}}&lt;b&gt;&amp; · Fathom</title>" in text


def test_torn_lines_are_counted_and_said(tmp_path: Path, made: Path) -> None:
    stage = tmp_path / "zero"
    shutil.copytree(made / "zero", stage)
    with (stage / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step":121,"reward":0.7\xc3')
    run = read_run(stage)
    assert run.stages[0].metrics.torn == 1
    assert len(run.stages[0].metrics.rows) == 120
    assert any("metrics.jsonl" in warning for warning in page(run)["warnings"])


def test_missing_parts_are_absent(tmp_path: Path) -> None:
    stage = tmp_path / "cold"
    write_manifest(stage, "sft", {"lr": 1e-4}, [], status="running")
    data = page(read_run(stage))
    assert data["headline"] is None
    assert data["timeline"] is None
    assert not any(data[part] for part in ("curves", "load", "completions", "evaluations", "ledgers", "recipe"))
    assert write_report(stage).exists()


def test_what_is_no_run_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such directory"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="fathom run"):
        read_run(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(FathomError, match=r"manifest\.json: cannot be read"):
        read_run(tmp_path)


def test_stages_that_fresh_moved_aside_are_no_stages(tmp_path: Path, made: Path) -> None:
    root = tmp_path / "r1"
    shutil.copytree(made, root)
    shutil.copytree(root / "cold", root / "cold.1")
    shutil.copytree(root / "cold", root / "cold-other")
    assert [stage.name for stage in read_run(root).stages][-2:] == ["score", "cold-other"]


def test_stages_not_yet_run_wait(tmp_path: Path, made: Path) -> None:
    root = tmp_path / "r1"
    shutil.copytree(made, root)
    shutil.rmtree(root / "score")
    data = page(read_run(root))
    assert data["chain"][-1] == {"name": "score", "system": "evaluate", "status": "waiting"}
    assert data["headline"]["kind"] == "score"
    assert "difference" not in data["headline"]["tasks"][0]


def test_not_a_number_becomes_a_gap(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step":1,"loss":2.0}\n{"step":2,"loss":NaN}\n{"step":3,"loss":Infinity}\n{"step":4,"loss":1.0}\n'
    )
    data = page(read_run(tmp_path))
    assert data["curves"][0]["charts"][0]["series"][0]["x"] == [1, 4]
    assert "NaN" not in embed(data)


def test_one_point_is_a_number_and_not_a_curve() -> None:
    found = charts([{"step": 1, "loss": 2.0, "lr": 0.1}, {"step": 2, "loss": 1.5, "held_out": 1.7, "lr": 0.1}], [])
    assert [chart["title"] for chart in found["charts"]] == ["Loss"]
    assert [series["label"] for series in found["charts"][0]["series"]] == ["train"]
    assert {"label": "Loss, held out", "step": 2, "value": 1.7, "unit": ""} in found["singles"]
    assert {"label": "Learning rate", "value": 0.1, "unit": ""} in found["singles"], "constant: no step"


def test_wrong_is_what_the_recorded_shares_leave() -> None:
    rows = [{"step": s, "right": 0.5 + s / 10, "unread": 0.1, "failed": 0.0, "reward": s / 10} for s in (1, 2)]
    outcomes = next(chart for chart in charts(rows, [])["charts"] if chart["share"])
    wrong = next(series for series in outcomes["series"] if series["label"] == "wrong")
    assert wrong["y"] == pytest.approx([0.3, 0.2])


def test_unknown_metrics_get_a_chart_and_replayed_steps_count_once() -> None:
    found = charts(
        [{"step": 1, "surprise": 1}, {"step": 2, "surprise": 2}],
        [{"step": 1, "seconds": 9}, {"step": 2, "seconds": 3}, {"step": 2, "seconds": 4}],
    )
    by_title = {chart["title"]: chart["series"][0]["y"] for chart in found["charts"]}
    assert by_title == {"Time of a step": [9, 4], "surprise": [1, 2]}


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(1, 50))
def test_thinning_keeps_the_end_and_the_mean(ys: list[float], limit: int) -> None:
    xs = list(range(len(ys)))
    x, y, per = thin(xs, ys, limit)
    assert len(x) == len(y) <= limit
    assert x[-1] == xs[-1]
    if len(ys) % per == 0:
        assert sum(y) / len(y) == pytest.approx(sum(ys) / len(ys), rel=1e-4, abs=1e-4 * max(map(abs, ys)) + 1e-9)


def test_expert_load_is_relative_to_an_even_share() -> None:
    load = expert_load(
        [{"step": 5, "expert_load": [[30, 10, 0, 0], [5, 5, 5, 5]]}, {"step": 6, "expert_load": [[0] * 4] * 2}]
    )
    assert load is not None
    assert load["frames"][0] == [[3.0, 1.0, 0.0, 0.0], [1.0] * 4]
    assert load["frames"][1] == [[1.0] * 4] * 2, "a layer that saw no token has no uneven share"
    assert (load["steps"], load["layers"], load["experts"]) == ([5, 6], 2, 4)
    assert expert_load([{"step": 1, "loss": 1.0}]) is None


def test_lengths_stand_at_a_few_steps_from_first_to_last() -> None:
    rows = [{"step": step, "lengths": {"≤ 8": step, "≤ 16": 100 - step}} for step in range(1, 41)]
    table = lengths([*rows, {"step": 41, "loss": 1.0}])
    assert table is not None and table["columns"] == ["", "≤ 8", "≤ 16"]
    assert len(table["rows"]) == 10
    assert (table["rows"][0][0], table["rows"][-1]) == (
        "step 1", ["step 40", {"right": 40, "of": 100}, {"right": 60, "of": 100}])
    assert lengths([{"step": 1, "loss": 1.0}]) is None


def test_large_models_and_long_runs_stay_within_the_page() -> None:
    rows = [{"step": s, "expert_load": [[1] * 256] * 58} for s in range(100)]
    load = expert_load(rows)
    assert load is not None
    assert len(load["frames"]) * 58 * 256 <= 120_000
    assert (load["steps"][0], load["steps"][-1]) == (0, 99)


def test_a_killed_attempt_ends_with_its_last_sign_of_life(made: Path) -> None:
    zero = read_run(made).stage("zero")
    killed, resumed = zero.attempts
    assert (killed.status, resumed.status) == ("killed", "done")
    assert killed.ended == pytest.approx(START + 316 + 160)
    assert not killed.certain
    line = timeline(read_run(made))
    assert line is not None
    assert line["breaks"][0]["seconds"] == pytest.approx(7900 - 316 - 160)
    positions = [(a["from"], a["to"]) for stage in line["stages"] for a in stage["attempts"]]
    assert all(0 <= start <= end <= 1 for start, end in positions)
    assert positions == sorted(positions)


def test_an_unfinished_attempt_before_another_was_killed(tmp_path: Path) -> None:
    write_manifest(tmp_path, "sft", {}, [attempt(0, None, "running"), attempt(50, None, "running")], status="running")
    first, second = read_run(tmp_path).stages[0].attempts
    assert (first.status, first.ended) == ("killed", START + 50)
    assert (second.status, second.ended) == ("running", None)


def test_completions_stay_within_the_budget_and_say_so(made: Path) -> None:
    whole = completions(read_run(made).stages)
    small = completions(read_run(made).stages, budget=40_000)
    size = sum(len(s["text"]) for source in small for p in source["problems"] for s in p["group"])
    assert size < 40_000
    for source, full in zip(small, whole, strict=True):
        assert 0 < len(source["problems"]) < source["total"] == full["total"] == len(full["problems"])
        assert source["problems"][-1] == full["problems"][-1], "chosen over the whole run"


def test_a_long_completion_loses_its_middle_and_keeps_its_answer(made: Path) -> None:
    zero = next(s for s in completions(read_run(made).stages) if s["stage"] == "zero")
    long = next(s for p in zero["problems"] for s in p["group"] if "cut" in s)
    assert long["text"].endswith("<answer>7</answer>")
    assert len(long["text"]) + long["cut"] == 4000 * 5 + len("<answer>7</answer>")


@given(st.lists(st.integers(), min_size=1, max_size=60, unique=True), st.integers(2, 20))
def test_even_choice_keeps_order_and_both_ends(items: list[int], limit: int) -> None:
    found = evenly(items, limit)
    assert len(found) == min(limit, len(items))
    assert (found[0], found[-1]) == (items[0], items[-1])
    assert [items.index(x) for x in found] == sorted({items.index(x) for x in found})


def test_more_than_one_percent_failed_is_a_warning(tmp_path: Path) -> None:
    write_evaluation(tmp_path, "m", {"t": {"a": ["right", "failed"], "b": ["wrong", "right"]}})
    assert page(read_run(tmp_path))["warnings"] == [f"{tmp_path.name}: 1 of 4 samples of t were not judged (over 1 %)"]


def test_grpo_loss_is_called_objective_and_no_result(made: Path) -> None:
    run = read_run(made / "zero")
    titles = [chart["title"] for chart in page(run)["curves"][0]["charts"]]
    assert titles[:2] == ["Reward", "Outcomes"]
    assert "Loss" not in titles
    assert "Objective" in titles


def test_lines_that_are_no_objects_are_counted(tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 1.0}])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write("[1]\n\n7\n")
    lines = read_run(tmp_path).stages[0].metrics
    assert (len(lines.rows), lines.torn) == (1, 2)

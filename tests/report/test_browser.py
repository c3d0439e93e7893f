"""The page in a browser: it draws without errors, asks the network for nothing, and runs no text of a model."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path

import pytest
from made_run import NASTY, attempt, write_manifest

from fathom.report import write_report


def test_the_page_draws_offline_and_keeps_text_as_text(made: Path, tmp_path: Path, browse) -> None:
    page = tmp_path / "report.html"
    shutil.copy(write_report(made), page)
    seen = browse(page)
    assert seen.console == []
    assert seen.urls == set()
    body = seen.dom.split('<div id="page">')[1].split('<script type="application/json"')[0]
    for part in ("result", "stages", "training", "experts", "evaluation", "completions", "data", "settings"):
        assert f'<section id="{part}"' in body
    assert body.count('<figure class="chart') > 20
    assert "[object" not in body
    assert "undefined" not in body
    assert "NaN" not in body
    assert "<dt>optim.lr</dt><dd>0.003</dd>" in body
    assert "significant" in body
    assert "killed at 2 min 40 s" in body
    assert html.escape(NASTY, quote=False) in body
    assert "<img" not in body
    assert "<title>r1 · Fathom</title>" in seen.dom, "the completion's handler would have renamed the page"


USE = """
const all = (what) => [...document.querySelectorAll(what)];
setTimeout(() => {
  const press = (text) => all(".chip").find((b) => b.textContent.includes(text)).click();
  const said = {};
  press("unread");
  said.outcomes = [...new Set(all(".sample .word").map((w) => w.textContent))];
  const steps = document.querySelector("select");
  steps.value = "100"; steps.dispatchEvent(new Event("change"));
  said.steps = [...new Set(all(".problem .meta span:first-child").map((m) => m.textContent))];
  all("input[type=checkbox]").forEach((box) => box.click());
  all(".legend button").forEach((button) => button.click());
  all(".legend button").forEach((button) => button.click());
  all(".plot").forEach((plot) => {
    ["Home", "ArrowRight", "End", "Escape"].forEach((key) => plot.dispatchEvent(new KeyboardEvent("keydown", { key })));
  });
  all("input[type=range]").forEach((range) => {
    range.value = range.min;
    range.dispatchEvent(new Event("input"));
  });
  said.load = document.querySelector(".heat-foot .controls output").textContent;
  const plot = document.querySelector(".plot");
  plot.dispatchEvent(new KeyboardEvent("keydown", { key: "Home" }));
  said.cursor = plot.parentNode.querySelector(".at").textContent;
  said.width = innerWidth;
  said.wide = document.documentElement.scrollWidth - innerWidth;
  parent.document.title = JSON.stringify(said);
}, 500);
"""


@pytest.mark.parametrize("width", [360, 1280])
def test_the_controls_work(made: Path, tmp_path: Path, browse, width: int) -> None:
    text = write_report(made).read_text(encoding="utf-8")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)  # it forbids the script of this test
    page = tmp_path / "used.html"
    used = html.escape(text.replace("</body>", f"<script>{USE}</script></body>"))
    # In a frame, because a headless window is never narrower than 500 pixels.
    frame = f'<iframe style="width:{width}px;height:1500px;border:0" srcdoc="{used}"></iframe>'
    page.write_text(f"<!doctype html><meta charset=utf-8><title></title>{frame}", encoding="utf-8")
    seen = browse(page)
    assert seen.console == []
    said = json.loads(html.unescape(re.findall(r"<title>(.*?)</title>", seen.dom)[0]))
    assert said["outcomes"] == ["? unread"]
    assert said["steps"] == ["step 100"]
    assert said["load"] == "step 10"
    assert said["cursor"] == "step 1"
    assert said["width"] == width
    assert said["wide"] <= 0, "the page scrolls sideways"


def test_the_policy_forbids_foreign_scripts(made: Path, tmp_path: Path, browse) -> None:
    page = tmp_path / "foreign.html"
    text = write_report(made).read_text(encoding="utf-8")
    page.write_text(text.replace("</body>", "<script>document.title='owned'</script></body>"), encoding="utf-8")
    seen = browse(page)
    assert "<title>r1 · Fathom</title>" in seen.dom
    assert "Content Security Policy" in "".join(seen.console)


def test_a_request_would_be_seen(tmp_path: Path, browse) -> None:
    page = tmp_path / "control.html"
    page.write_text('<!doctype html><img src="http://example.invalid/x.png"><script>nothing.here</script>')
    seen = browse(page)
    assert seen.urls == {"http://example.invalid/x.png"}
    assert "ReferenceError" in "".join(seen.console)


def test_a_bare_stage_draws_only_what_it_has(tmp_path: Path, browse) -> None:
    stage = tmp_path / "cold"
    write_manifest(stage, "sft", {"lr": 1e-4}, [attempt(0, None, "running")], status="running")
    (stage / "metrics.jsonl").write_text('{"step":1,"loss":2.5}\n{"step":2,"lo')
    seen = browse(write_report(stage))
    assert seen.console == []
    assert re.findall(r'<section id="(\w+)"', seen.dom) == ["stages", "training", "settings"]
    assert "<figure" not in seen.dom.split('<script type="application/json"')[0], "one point is no curve"
    assert "could not be read" in seen.dom

"""Every command in README and docs: parsed in the fast tests, run as written in the long ones."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fathom import recipes
from fathom.core.config import build, load_yaml, merge, parse_overrides
from fathom.systems import SYSTEMS, settings_class

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```sh( [a-z]+)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+)[^)]*\)")


def commands(page: Path) -> list[tuple[str, str]]:
    """(mark, command) of each line in the page's sh blocks; the mark is empty, `network` or `gpu`."""
    found = []
    for mark, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        found += [(mark.strip(), line) for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    return found


@pytest.mark.docs
def test_there_are_commands() -> None:
    assert sum(len(commands(page)) for page in PAGES) >= 15


@pytest.mark.docs
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_parse(page: Path) -> None:
    for _, line in commands(page):
        words = shlex.split(line)
        if words[0] == "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert words[1] in targets, line
            continue
        if words[0] in ("pip", "python", "git", "cd", "hf"):
            continue
        assert words[0] == "fathom", line
        if words[1] in SYSTEMS:
            settings = [w for w in words[2:] if "=" in w and not w.startswith("--")]
            build(settings_class(words[1]), merge({}, parse_overrides(settings)), line)
        elif words[1] in ("run", "audit"):
            load_yaml(recipes.find(words[2]))
        else:
            assert words[1] in ("demo", "report", "compare", "show", "inspect", "convert", "push", "doctor", "serve",
                                "chat", "--help"), line


@pytest.mark.docs
@pytest.mark.parametrize("page", ["code.md", "data.md", "rewards.md", "sandbox.md"])
def test_python_runs(page: str) -> None:
    """Blocks of Python are run as they stand, each for itself; README's, which needs the demo, is left out."""
    blocks = PYTHON.findall((ROOT / "docs" / page).read_text(encoding="utf-8"))
    assert blocks
    for block in blocks:
        if page == "sandbox.md" and os.environ.get("LEVEL") == "L0":
            pytest.skip("LEVEL=L0: the page asks for L1")
        exec(compile(block, page, "exec"), {"__name__": page})


@pytest.mark.docs
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.docs
@pytest.mark.parametrize("name", [*recipes.tiny(), "smollm2-gsm8k", "r1-zero"])
def test_recipes_load(name: str) -> None:
    given = [] if name in ("tiny/demo", "tiny/long", "tiny/r1-zero") else ["train=a.jsonl", "test=b.jsonl"]
    given += ["base=m"] if name == "r1-zero" else []
    assert recipes.load(name, given).stages


@pytest.mark.docs
@pytest.mark.long
def test_commands_run(tmp_path: Path) -> None:
    """The pages' commands in reading order in one directory, after the demo they refer to."""
    order = ["README.md", "tokenizer.md", "pretrain.md", "sft.md", "grpo.md", "distill.md", "evaluate.md", "recipes.md",
             "data.md", "audit.md", "inspect.md", "models.md", "templates.md", "extend.md"]
    pages = {page.name: page for page in PAGES}
    fathom = [sys.executable, "-m", "fathom"]
    subprocess.run([*fathom, "demo"], cwd=tmp_path, check=True, capture_output=True)
    for name in order:
        for mark, line in commands(pages[name]):
            words = shlex.split(line)
            if mark in ("network", "gpu") or words[0] != "fathom" or words[1] == "demo":
                continue
            done = subprocess.run([*fathom, *words[1:]], cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, f"{name}: {line}\n{done.stderr[-2000:]}"

"""The command line: what it says, how it ends, and that looking loads no tensor library."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import BaseModel

from fathom import __version__, cli, recipes
from fathom.core.chat import Sampling
from fathom.engine.settings import EngineSettings
from fathom.systems import SYSTEMS, settings_class

VERBS = ["run", "demo", "report", "compare", "show", "inspect", "doctor"]
ROWS = ["train=a.jsonl", "test=b.jsonl"]
# what a recipe asks for on the command line
GIVEN = {"tiny/problems": ROWS, "smollm2-gsm8k": ROWS, "r1-zero": [*ROWS, "base=m"]}
ALONE = {
    "tokenizer": ['data=[{task: "gym:chain_sum", count: 5}]'],
    "pretrain": ["tokenizer=t", "data=[a.jsonl]"],
    "sft": ["init=m", "data=[a.jsonl]"],
    "grpo": ["init=m", 'tasks=["gym:chain_sum"]'],
    "distill": ["init=m", 'tasks=["gym:chain_sum"]'],
    "evaluate": ["model=m", 'tasks=["gym:chain_sum"]'],
    "overlap": ["data=[a.jsonl]", 'tasks=["gym:chain_sum"]'],
    "leakage": ["model=m", 'tasks=["gym:chain_sum"]'],
}


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `fathom WORDS` in this process."""
    monkeypatch.setattr(sys, "argv", ["fathom", *words])
    code = 0
    try:
        cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def looking() -> list[list[str]]:
    """Every command that only looks."""
    commands = [[], ["--help"], ["--version"], *([verb, "--help"] for verb in [*VERBS, *SYSTEMS])]
    commands += [["run", name, *GIVEN.get(name, []), "--dry-run"] for name in shipped()]
    commands += [[system, *words, "--dry-run"] for system, words in ALONE.items()]
    return [*commands, ["demo", "--dry-run"], ["inspect"], ["inspect", "deepseek-v3"], ["inspect", "tiny", "--json"]]


def shipped() -> list[str]:
    """The names of all recipes that ship."""
    return sorted(str(p.relative_to(recipes.SHIPPED).with_suffix("")) for p in recipes.SHIPPED.rglob("*.yaml"))


def test_looking_loads_no_tensor_library(tmp_path: Path) -> None:
    program = """
import json, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "triton", "reasoning_gym", "pyarrow"):
            raise AssertionError("imports " + name)
sys.meta_path.insert(0, Refuse())
from fathom import cli
for words in json.loads(sys.argv[1]):
    sys.argv = ["fathom", *words]
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code, (words, end.code)
    print("<answered>", *words)
"""
    commands = looking()
    done = subprocess.run([sys.executable, "-c", program, json.dumps(commands)], cwd=tmp_path, capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("<answered>") == len(commands) >= 20
    assert list(tmp_path.iterdir()) == [], "looking wrote something"


def test_listing_the_systems_imports_none_of_them() -> None:
    program = "import sys; sys.argv = ['fathom', '--help']\nfrom fathom import cli\ncli.main()\n" \
              "names = [m for m in sys.modules if m.startswith('fathom.systems.')]\n" \
              "print('LOADED', *(m for m in names if m != 'fathom.systems.command'))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.rstrip().endswith("LOADED")


@pytest.mark.parametrize("name", SYSTEMS)
def test_help_of_a_system_names_every_setting_and_reads_well(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = said(monkeypatch, capsys, name, "--help")
    assert (code, err) == (0, "")
    cls = settings_class(name)
    for setting in cls.model_fields:
        assert f"\n  {setting}=" in out or f"\n  {setting}." in out
    about, _, _ = out.partition("Settings, as key=value")
    paragraphs = [" ".join(part.split()) for part in about.split("\n\n")]
    assert paragraphs[0] == f"Usage: fathom {name} [OPTIONS] [settings]"
    for part in (cls.__doc__ or "").split("\n\n"):
        assert " ".join(part.split()) in paragraphs, "a paragraph of the docstring, whole, with blank lines around it"
    assert not [line for line in about.splitlines() if "  " in line.strip()], "runs of spaces"


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_list_says_what_the_docstring_says(name: str) -> None:
    assert " ".join((settings_class(name).__doc__ or "").split()).startswith(SYSTEMS[name].about)


def test_version_and_bare_call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(monkeypatch, capsys, "--version") == (0, f"{__version__}\n", "")
    code, out, _ = said(monkeypatch, capsys)
    assert code == 0
    assert all(f"\n  {name} " in out for name in [*VERBS, *SYSTEMS])


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["reprot"], ["reprot", "'report'", "fathom --help"]),
        (["evalute"], ["evalute", "'evaluate'"]),
        (["run"], ["recipe", "fathom run --help"]),
        (["run", "tiny/nosuch"], ["tiny/nosuch: no such recipe", "tiny/demo"]),
        (["run", "tiny/demo", "nostage.x=1", "--dry-run"], ["nostage", "no such stage"]),
        (["run", "tiny/demo", "base.tokns=1", "--dry-run"], ["tokns", "did you mean tokens"]),
        (["compare", "a"], ["'b'"]),
        (["demo", "--seed", "-1"], ["--seed", "greater than or equal to 0"]),
        (["demo", "--dir"], ["--dir"]),
        (["show", "nosuch"], ["nosuch"]),
        (["report", "nosuch"], ["nosuch"]),
        (["inspect", "deepsek-v3"], ["deepsek-v3: no such directory", "did you mean deepseek-v3"]),
        (["sft", "nosuch.yaml"], ["nosuch.yaml: no such file"]),
        (["sft", "init=m", "data=[a.jsonl]", "learning_rate=1"], ["learning_rate", "optim.lr=0.001"]),
        (["sft", "init=m", "data=[a.jsonl]"], ["init: m: no such directory"]),
        (["grpo", "init=m", "tasks=[x.jsonl]", "group=1", "--dry-run"], ["group=1", "at least 2 samples"]),
        (["pretrain", "tokenizer=t", "data=[a.jsonl]", "model=huge", "--dry-run"], ["model=huge", "tiny, bench-10m"]),
        (["tokenizer", "--data"], ["--data", "no value follows"]),
        (["tokenizer", "data=[gym:nosuch"], ["data", "line 1"]),
    ],
)
def test_a_user_s_mistake_is_one_line_without_traceback(
    words: Sequence[str], parts: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = said(monkeypatch, capsys, *words)
    assert code == 2 or (words[0] in ("show", "report") and code == 1)
    assert out == ""
    assert err.startswith("fathom: ") and err.endswith("\n") and err.count("\n") == 1
    assert "Traceback" not in err
    assert [part for part in parts if part not in err] == []
    assert list(tmp_path.iterdir()) == [], "a mistake left something on disk"


def test_several_mistakes_are_listed_together(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = said(monkeypatch, capsys, "sft", "init=m", "data=[]", "epochs=0", "tokns=1", "--dry-run")
    assert code == 2 and err.count("\n") == 4
    assert all(part in err for part in ("3 settings to correct", "data=[]", "epochs=0", "tokns"))


def wait_for(path: Path, seconds: float = 60.0) -> None:
    """Until something stands in `path`."""
    end = time.monotonic() + seconds
    while not path.exists() or not path.stat().st_size:
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.05)


def test_exit_codes_of_work_done_and_work_stopped(tmp_path: Path) -> None:
    data = 'data=[{task: "gym:chain_sum", count: 20, think: steps}]'
    fathom = [sys.executable, "-m", "fathom"]
    words = [*fathom, "tokenizer", data, "vocab_size=300", "--dir", "words", "--quiet"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "words" / "model" / "tokenizer.json").is_file()
    base = [*fathom, "pretrain", data, "tokenizer=words/model", "tokens=100000000", "tokens_per_step=64",
            "model={hidden_size: 8, num_hidden_layers: 1, n_routed_experts: 0, num_nextn_predict_layers: 0}",
            "--dir", "base", "--quiet"]
    with subprocess.Popen(base, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        wait_for(tmp_path / "base" / "timing.jsonl")
        child.send_signal(signal.SIGTERM)
        out, err = child.communicate(timeout=60)
    assert child.returncode == 75
    assert out == "" and err.startswith("fathom: stopped") and err.count("\n") == 1
    assert "the same command continues" in err
    other = subprocess.run([*base, "mtp=0.5"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert other.returncode == 2
    assert "mtp: 0.3 → 0.5" in other.stderr and "--fresh" in other.stderr and "Traceback" not in other.stderr


def test_a_finished_command_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": f"{i}"}]}
            for i in range(20)]
    data = tmp_path / "chats.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("tokenizer", f"data=[{data}]", "vocab_size=300", "--dir", str(tmp_path / "words"))
    assert said(monkeypatch, capsys, *words)[0] == 0
    code, _, err = said(monkeypatch, capsys, *words)
    assert code == 0 and "words: finished before, nothing to do; --fresh starts over" in err


@pytest.mark.parametrize(("verb", "kind", "wrong", "right"), [
    ("serve", EngineSettings, "--prt", "--port"), ("chat", Sampling, "--sytem", "--system")])
def test_a_misspelt_option_is_told_and_no_setting_is_taken_for_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str, kind: type[BaseModel], wrong: str,
    right: str,
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    code, _, told = said(monkeypatch, capsys, verb, "nowhere", wrong, "1")
    assert code == 2
    assert f"{wrong}: no such option; did you mean {right}?" in told
    for name in kind.model_fields:
        _, _, told = said(monkeypatch, capsys, verb, "nowhere", f"--{name.replace('_', '-')}", "1")
        assert "no such option" not in told, name

"""`fathom inspect`: its facts, its JSON, its tables, its marks, and what a wrong name or a damaged model is told."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from made_models import GQA_DENSE, MLA_MOE, tokenizer
from rich.console import Console

from fathom import cli
from fathom.core.console import trained_text
from fathom.core.errors import FathomError, UsageError
from fathom.model import inspect, rope, weights
from fathom.model.cost import cost
from fathom.model.presets import OWN, PRESETS, PUBLISHED
from fathom.model.transformer import Transformer

# every key that scripts may rely on (docs/inspect.md); None: one value, whatever it is
KEYS: dict[str, Any] = {
    **dict.fromkeys(("name", "source", "family", "note", "config", "files", "tokenizer", "example", "template_family")),
    "layers": {"total", "dense", "experts", "multi_token_prediction"},
    "parameters": {"total", "active", "active_with_embedding", "parts", "selection_biases", "multi_token_prediction"},
    "cache": {"elements_per_token", "elements_per_token_and_layer", "bytes_per_token"},
    "memory": {"context", "batch", "train", "serve"},
    "flops_per_token": {"context", "forward", "training", "decode"},
    "rope": {"type", "theta", "pairs", "channels", "factor", "original_max_position_embeddings", "softmax_scale",
             "cos_sin_factor", "highest_frequency", "lowest_frequency", "longest_turn"},
    "routing": {"scores", "choice", "experts", "per_token", "shared", "groups", "groups_per_token", "renormalised",
                "scaling", "selection_bias"},
    "context": {"max_position_embeddings", "claimed"},
}
FILE_KEYS = {"shards", "bytes", "tensors", "fp8", "problem"}
TOKENIZER_KEYS = {"error", "size", "bos", "bos_id", "eos", "eos_id", "stops", "template"}
EXAMPLE_KEYS = {"error", "pieces", "tokens", "trained"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with every part."""
    place = tmp_path_factory.mktemp("inspected") / "model"
    config = MLA_MOE.model_copy(update={"vocab_size": 320})
    weights.save(place, Transformer(config).initialise(0).bfloat16(), tokenizer())
    return place


def opened(saved: Path, tmp_path: Path) -> Path:
    """A copy of it that may be damaged."""
    place = tmp_path / "model"
    place.mkdir()
    for file in saved.iterdir():
        if file.name not in ("COMPLETE", "checksums.json"):
            (place / file.name).write_bytes(file.read_bytes())
    return place


def printed(what: str | None, terminal: bool = False, **more: Any) -> str:
    """What `show` prints, in colour or not."""
    out = io.StringIO()
    console = Console(file=out, width=160, force_terminal=terminal, color_system="standard" if terminal else None)
    inspect.show(what, **{"context": None, "batch": 1, "as_json": False, **more}, console=console)
    return out.getvalue()


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_the_same_keys(name: str) -> None:
    found = inspect.facts(name)
    assert found.keys() == KEYS.keys()
    for key, inner in KEYS.items():
        if inner and not (key == "routing" and found[key] is None):
            assert found[key].keys() == inner, key
    assert (found["routing"] is None) == (PRESETS[name].n_routed_experts == 0)
    assert json.loads(json.dumps(found)) == found
    assert sum(found["parameters"]["parts"].values()) == found["parameters"]["total"]
    assert printed(name)


def test_facts_of_the_largest() -> None:
    found = inspect.facts("deepseek-v3", context=32768, batch=4)
    assert found["layers"] == {"total": 61, "dense": 3, "experts": 58, "multi_token_prediction": 1}
    assert found["parameters"]["total"] == 671_026_419_200
    assert found["parameters"]["multi_token_prediction"]["own"] == 11_610_068_224
    assert found["cache"]["bytes_per_token"] == {"bf16": 70_272, "fp8": 40_016}
    serve = found["memory"]["serve"]
    assert serve["fp8"]["cache"] == 4 * 32768 * 40_016 and serve["bf16"]["cache"] == 4 * 32768 * 70_272
    assert all(kind["total"] == kind["weights"] + kind["cache"] for kind in serve.values())
    assert found["memory"]["train"]["bf16"] == cost(PRESETS["deepseek-v3"]).training_bytes("bf16")
    assert found["rope"]["softmax_scale"] == pytest.approx(0.1352338, abs=5e-8)
    assert found["context"] == {"max_position_embeddings": 163840, "claimed": 131072}
    assert found["template_family"] == "v3" and found["tokenizer"] is None
    assert inspect.facts("tiny")["memory"]["context"] == 512, "no more than the model has"


@pytest.mark.parametrize("name", ["deepseek-v3", "llama-3.1-8b", "llama-3.2-1b", "qwen2.5-7b", "smollm2-135m", "tiny"])
def test_frequencies_are_those_that_the_model_turns_by(name: str) -> None:
    config = PRESETS[name]
    expected = rope.frequencies(config.rotary_channels, config.rope_theta, config.rope_scaling, torch.float64)
    torch.testing.assert_close(torch.tensor(inspect.frequencies(config), dtype=torch.float64), expected,
                               rtol=1e-13, atol=0)  # FP64: a handful of roundings


def test_yarn_frequencies_to_the_digit() -> None:
    found = inspect.frequencies(PRESETS["deepseek-v3"])
    published = {9: 0.0749894, 10: 0.0562341, 11: 0.0390069, 16: 0.0055, 22: 1.778279e-4, 23: 3.333804e-5,
                 31: 3.333804e-6}
    assert {i: found[i] for i in published} == pytest.approx(published, rel=1e-6)


def test_the_list_has_every_name_once() -> None:
    entries = inspect.presets()
    names = [name for entry in entries for name in (entry["name"], *entry["also"])]
    assert names == [*OWN, *PUBLISHED]
    text = printed(None)
    assert all(entry["name"] in text and f"{entry['parameters']:,}" in text for entry in entries)


def test_a_directory(saved: Path) -> None:
    found = inspect.facts(str(saved))
    assert found.keys() == KEYS.keys()
    assert (found["source"], found["family"], found["template_family"]) == ("files", "deepseek_v3", "v3")
    files, tokens, example = found["files"], found["tokenizer"], found["example"]
    assert files.keys() == FILE_KEYS and tokens.keys() == TOKENIZER_KEYS and example.keys() == EXAMPLE_KEYS
    assert (files["shards"], files["fp8"], files["problem"]) == (1, False, None)
    assert files["bytes"] == (saved / "model.safetensors").stat().st_size
    assert files["tensors"]["F32"] == 3, "the selection biases"
    assert files["tensors"]["BF16"] + 3 == len(weights.outward(Transformer(MLA_MOE)))
    assert (tokens["size"], tokens["template"], tokens["error"]) == (320, "chat_template.jinja", None)
    assert [stop["text"] for stop in tokens["stops"]] == ["<｜end▁of▁sentence｜>"]
    assert [piece["text"] for piece in example["pieces"] if piece["trained"]] == [
        "2 + 3 = 5<｜end▁of▁sentence｜>", "4 + 4 = 8<｜end▁of▁sentence｜>"]
    assert "".join(piece["text"] for piece in example["pieces"]).count("<｜begin▁of▁sentence｜>") == 1


def test_trained_tokens_are_marked_where_there_is_no_colour_and_green_where_there_is(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = printed(str(saved))
    assert "<｜Assistant｜>⟦2 + 3 = 5<｜end▁of▁sentence｜>⟧<｜User｜>" in plain and "\x1b" not in plain
    coloured = printed(str(saved), terminal=True)
    assert "\x1b[32m2 + 3 = 5<｜end▁of▁sentence｜>\x1b[0m" in coloured and "⟦" not in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert "⟦2 + 3 = 5" in printed(str(saved), terminal=True)
    text = trained_text([("a", False), ("b", True)])
    assert [(text.plain[span.start:span.end], span.style) for span in text.spans] == [("a", "dim"), ("b", "green")]


def test_what_is_wrong_with_a_directory_is_shown(saved: Path, tmp_path: Path) -> None:
    place = opened(saved, tmp_path)
    raw = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**raw, "num_hidden_layers": 2}))
    (place / "tokenizer.json").write_text("{}")
    found = inspect.facts(str(place))
    assert "not part of this model" in found["files"]["problem"]
    assert "tokenizer.json: not a tokenizer" in found["tokenizer"]["error"] and found["example"] is None
    text = printed(str(place))
    assert "not part of this model" in text and "not a tokenizer" in text


def test_a_template_that_fails_is_an_entry_and_no_end(saved: Path, tmp_path: Path) -> None:
    place = opened(saved, tmp_path)
    (place / "chat_template.jinja").write_text("{{ raise_exception('no chats here') }}")
    found = inspect.facts(str(place))
    assert "no chats here" in (found["example"] or found["tokenizer"])["error"]
    assert "no chats here" in printed(str(place))


def test_weights_that_are_not_there(saved: Path, tmp_path: Path) -> None:
    place = opened(saved, tmp_path)
    (place / "model.safetensors").unlink()
    found = inspect.facts(str(place))
    assert found["files"]["shards"] == 0 and found["files"]["problem"]
    assert found["parameters"]["total"] > 0, "the config alone says this"


def test_a_config_of_endless_layers_answers_at_once(saved: Path, tmp_path: Path) -> None:
    place = opened(saved, tmp_path)
    raw = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**raw, "num_hidden_layers": 10**12}))
    assert "num_hidden_layers=1000000000000" in inspect.facts(str(place))["files"]["problem"]


def test_a_file_of_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf", reason="pip install 'fathom-reasoning[gguf]'")
    from test_gguf import written

    config = GQA_DENSE.model_copy(
        update={"vocab_size": 330, "hidden_size": 64, "head_dim": 16, "intermediate_size": 96})
    monkeypatch.setenv("FATHOM_CACHE", str(tmp_path / "cache"))
    path = written(tmp_path / "m.gguf", Transformer(config).initialise(3), tokenizer(), "Q8_0")
    found = inspect.facts(str(path))
    assert (found["source"], found["family"]) == ("files", "llama")
    assert found["parameters"]["total"] == cost(config).parameters
    assert found["files"]["bytes"] == path.stat().st_size and found["files"]["tensors"]["Q8_0"] == 3 * 7 + 2
    assert found["example"]["trained"] == 18


def test_what_a_file_says_cannot_drive_the_terminal(saved: Path, tmp_path: Path) -> None:
    place = opened(saved, tmp_path)
    (place / "chat_template.jinja").write_text("\x1b[2Jcleared" + (place / "chat_template.jinja").read_text())
    assert "\x1b" not in printed(str(place)) and "\\x1b[2Jcleared" in printed(str(place))


@pytest.mark.parametrize(("what", "parts"), [
    ("deepsek-v3", ["no such directory, .gguf file or preset", "did you mean deepseek-v3"]),
    ("DeepSeek-V3", ["did you mean deepseek-v3"]),
    ("zzz", ["no such directory", "`fathom inspect` alone lists the presets"]),
    (".", ["no config.json in this directory", "name a model directory"]),
    ("stage", ["no config.json", "did you mean stage/model?"]),
    ("notes.txt", ["neither a model directory nor a .gguf file"]),
    ("none.gguf", ["no such directory, .gguf file or preset"]),
])
def test_a_wrong_name_is_one_line_that_helps(
    what: str, parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("hello")
    Path("stage/model").mkdir(parents=True)
    Path("stage/model/config.json").write_text("{}")
    with pytest.raises(UsageError) as caught:
        inspect.facts(what)
    assert [part for part in parts if part not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


def test_a_model_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gemma3"}')
    with pytest.raises(FathomError, match="gemma3"):
        inspect.facts(str(tmp_path))


def test_a_directory_called_like_a_preset_comes_first(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(saved, tmp_path).rename(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    assert inspect.facts("tiny")["source"] == "files"


def test_the_command_loads_no_torch_for_a_preset(tmp_path: Path) -> None:
    program = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "tokenizers", "safetensors"):
            raise AssertionError("imports " + name)
sys.meta_path.insert(0, Refuse())
from fathom import cli
for words in (["deepseek-v3", "--json"], ["deepseek-v3"], [], ["--json"]):
    sys.argv = ["fathom", "inspect", *words]
    cli.main()
    print("<answered>")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    found, table, names, entries, rest = done.stdout.split("<answered>\n")
    assert json.loads(found) == inspect.facts("deepseek-v3")
    assert "671,026,419,200" in table and "a preset has no tokenizer" in table
    assert "qwen3-32b" in names and len(json.loads(entries)) == len(inspect.presets()) and rest == ""


@pytest.mark.parametrize(("words", "parts"), [
    (["deepsek-v3"], ["did you mean deepseek-v3"]), (["tiny", "--context", "0"], ["--context", "1"]),
    (["tiny", "--batch", "x"], ["--batch"])])
def test_the_command_refuses_in_one_line(
    words: list[str], parts: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fathom", "inspect", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr()
    assert end.value.code == 2 and said.out == "" and said.err.count("\n") == 1
    assert [part for part in parts if part not in said.err] == []

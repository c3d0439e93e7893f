"""Reading and trying checkpoints: what is left out is said, copies must be copies, and a bad write leaves nothing."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from made_models import CONFIGS, sharp, tokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor

from fathom.core import disk
from fathom.core.errors import FathomError, UsageError
from fathom.model import quant, weights
from fathom.model.tokenizer import Tokenizer
from fathom.model.transformer import Transformer
from fathom.model.weights import configs, directory, header, streamed
from fathom.model.weights.stored import Stored

TOKENIZER = tokenizer()
WIDE = {name: config.model_copy(update={"vocab_size": 320}) for name, config in CONFIGS.items()}


def downloaded(path: Path, name: str, change: Callable[[dict[str, Tensor]], object] = lambda t: None,
               **fields: object) -> Transformer:
    """A directory as from elsewhere: no seal, its tensors and config changed."""
    model = sharp(WIDE[name], dtype=torch.float32)
    weights.save(path, model, TOKENIZER)
    for seal in (disk.COMPLETE, disk.CHECKSUMS):
        (path / seal).unlink()
    tensors = load_file(path / weights.WEIGHTS)
    change(tensors)
    save_file(tensors, path / weights.WEIGHTS)
    given = json.loads((path / "config.json").read_text()) | fields
    (path / "config.json").write_text(json.dumps(given))
    return model


def test_a_layer_that_is_not_asked_for_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = downloaded(tmp_path / "m", "mla-moe-mtp", num_nextn_predict_layers=0)
    with caplog.at_level(logging.WARNING):
        loaded, _ = weights.load(tmp_path / "m")
    further = [name for name in weights.outward(model) if name.startswith("model.layers.3.")]
    assert f"{len(further)} tensors not used (model.layers.3." in caplog.text
    assert not len(loaded.mtp)
    assert torch.equal(streamed.probe(loaded), streamed.probe(model)[: len(streamed.probe(loaded))])


def test_a_layer_that_is_missing_has_its_remedy(tmp_path: Path) -> None:
    downloaded(tmp_path / "m", "mla-lite", num_nextn_predict_layers=1)
    with pytest.raises(FathomError, match=r"layers.3.enorm.weight: missing.*set num_nextn_predict_layers=0"):
        weights.load(tmp_path / "m")


def test_a_further_layer_of_another_kind_is_not_left_out(tmp_path: Path) -> None:
    downloaded(tmp_path / "m", "gqa-dense", num_hidden_layers=2)
    with pytest.raises(FathomError, match=r"model.layers.2.input_layernorm.weight: not part of this model"):
        weights.load(tmp_path / "m")


def test_old_files_of_llama_carry_a_buffer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    model = downloaded(tmp_path / "m", "gqa-dense", lambda tensors: tensors.update({name: torch.ones(4)}))
    with caplog.at_level(logging.WARNING):
        loaded, _ = weights.load(tmp_path / "m")
    assert f"1 tensors not used ({name}" in caplog.text
    assert torch.equal(streamed.probe(loaded), streamed.probe(model))


@pytest.mark.parametrize(("name", "copy", "of"), [
    ("gqa-tied", "lm_head.weight", "model.embed_tokens.weight"),
    ("mla-moe-mtp", "model.layers.3.embed_tokens.weight", "model.embed_tokens.weight"),
    ("mla-moe-mtp", "model.layers.3.shared_head.head.weight", "lm_head.weight")])
def test_copies_are_copies_or_absent(name: str, copy: str, of: str, tmp_path: Path) -> None:
    downloaded(tmp_path / "there", name, lambda tensors: tensors.update({copy: tensors[of].clone()}))
    weights.load(tmp_path / "there")
    downloaded(tmp_path / "absent", name, lambda tensors: tensors.pop(copy, None))
    weights.load(tmp_path / "absent")

    def nearly(tensors: dict[str, Tensor]) -> None:
        tensors[copy] = tensors[of].clone()
        tensors[copy][-1, -1] += 1

    downloaded(tmp_path / "other", name, nearly)
    with pytest.raises(FathomError, match=f"{copy} differs from its copy"):
        weights.load(tmp_path / "other")
    downloaded(tmp_path / "kind", name, lambda tensors: tensors.update({copy: tensors[of].bfloat16()}))
    with pytest.raises(FathomError, match=f"{copy} differs from its copy"):
        weights.load(tmp_path / "kind")


def test_a_rounded_bias_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def rounded(tensors: dict[str, Tensor]) -> None:
        name = "model.layers.1.mlp.gate.e_score_correction_bias"
        tensors[name] = tensors[name].bfloat16()

    downloaded(tmp_path / "m", "mla-lite", rounded)
    with caplog.at_level(logging.WARNING):
        loaded, _ = weights.load(tmp_path / "m")
    assert "model.layers.1.mlp.gate.e_score_correction_bias is stored as BF16" in caplog.text
    assert loaded.layers[1].mlp.gate.e_score_correction_bias.dtype == torch.float32


def test_links_to_whole_files_are_followed(tmp_path: Path) -> None:
    """The hub's cache: names in one folder, contents in another."""
    model = downloaded(tmp_path / "m", "gqa-dense")
    (tmp_path / "blobs").mkdir()
    (tmp_path / "m" / weights.WEIGHTS).rename(tmp_path / "blobs/5f2a")
    (tmp_path / "m" / weights.WEIGHTS).symlink_to("../blobs/5f2a")
    assert torch.equal(streamed.probe(weights.load(tmp_path / "m")[0]), streamed.probe(model))


@pytest.mark.equivalence
@pytest.mark.parametrize("many", [0, 1 << 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_one_thread_or_several_straight_or_converted(
    many: int, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = downloaded(tmp_path / "m", "mla-moe-mtp")
    monkeypatch.setattr("fathom.model.weights.stored.MANY", many)
    monkeypatch.setattr("fathom.model.weights.stored.BAND", 100)  # so that bands end inside tensors
    loaded, _ = weights.load(tmp_path / "m", dtype)
    for name, tensor in weights.outward(model).items():
        expected = tensor if name.endswith("bias") else tensor.to(dtype)
        assert torch.equal(weights.outward(loaded)[name], expected), name


def test_a_thread_that_fails_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloaded(tmp_path / "m", "gqa-dense")
    stored = Stored(tmp_path / "m")
    with (tmp_path / "m" / weights.WEIGHTS).open("r+b") as file:
        file.truncate(4000)  # between the look at the headers and the reading
    monkeypatch.setattr("fathom.model.weights.stored.MANY", 0)
    with pytest.raises(FathomError, match="was replaced or written to"):
        stored.fill({name: torch.empty(source.shape) for name, source in stored.sources.items()})


@pytest.mark.equivalence
@pytest.mark.parametrize("name", CONFIGS)
def test_streamed_says_what_the_model_says_and_keeps_nothing(name: str, tmp_path: Path) -> None:
    model = downloaded(tmp_path / "m", name)
    held: list[int] = []
    stored = Stored(tmp_path / "m")

    def fill(targets: dict[str, Tensor]) -> None:
        stored.fill(targets)
        held.append(sum(p.numel() for p in again.parameters() if p.device.type != "meta"))

    again = streamed.streamed(WIDE[name], fill, torch.float32)
    assert torch.equal(streamed.probe(again), streamed.probe(model))
    assert all(parameter.device.type == "meta" for parameter in again.parameters())
    sizes = [sum(p.numel() for p in block.parameters()) for block in model.layers]
    assert 0 < max(held) <= max(*sizes, model.embed_tokens.weight.numel())  # never two parts at once


@pytest.mark.parametrize(("tensor", "message"), [
    ("model.layers.2.mlp.experts.4.up_proj.weight", r"experts.4.up_proj.weight differs from what was to be written"),
    ("model.layers.3.shared_head.head.weight", r"shared_head.head.weight differs from its copy"),
    ("model.layers.1.mlp.gate.e_score_correction_bias", r"e_score_correction_bias differs")])
def test_a_write_that_differs_leaves_nothing(
    tensor: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = sharp(WIDE["mla-moe-mtp"], dtype=torch.float32)
    write = header.write_stream

    def faulty(path: Path, entries: list[header.Entry]) -> None:
        write(path, entries)
        place = header.read_header(path)[tensor].begin + 9
        with path.open("r+b") as file:
            file.seek(place)
            byte = file.read(1)
            file.seek(place)
            file.write(bytes([byte[0] ^ 0x10]))

    monkeypatch.setattr(directory, "write_stream", faulty)
    with pytest.raises(FathomError, match=message):
        weights.save(tmp_path / "m", model, TOKENIZER)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    weights.save(tmp_path / "m", model, TOKENIZER)
    monkeypatch.setattr(directory, "write_stream", faulty)
    with pytest.raises(FathomError, match=message.replace("what was to be written", "the source's")):
        weights.convert(tmp_path / "m", tmp_path / "n", dtype="bfloat16", say=lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("field", ["rope_theta", "rms_norm_eps", "routed_scaling_factor", "num_experts_per_tok"])
def test_a_config_that_says_something_else_is_noticed(
    field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no tensor shows, the logits do."""
    model = sharp(WIDE["mla-moe-mtp"], dtype=torch.float32)
    honest = directory.hugging_face_config
    value = {"rope_theta": 20000.0, "rms_norm_eps": 1e-4, "routed_scaling_factor": 2.4, "num_experts_per_tok": 1}[field]
    monkeypatch.setattr(directory, "hugging_face_config", lambda *given: honest(*given) | {field: value})
    with pytest.raises(FathomError, match="other logits"):
        weights.save(tmp_path / "m", model, TOKENIZER)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("given", "named"), [
    ({"dtype": "int4"}, "dtype=int4: must be bfloat16 or float16"), ({"experts": "half"}, "experts=half"),
    ({"form": "mine"}, "names=mine: must be hf or deepseek"), ({"experts": "fused", "dtype": "fp8"}, "experts=split"),
    ({"form": "deepseek", "dtype": "float32"}, "dtype=bfloat16 or fp8"), ({"form": "deepseek"}, "set dtype")])
def test_wishes_that_do_not_fit_are_refused(given: dict[str, str], named: str, tmp_path: Path) -> None:
    downloaded(tmp_path / "m", "mla-lite")
    with pytest.raises(UsageError, match=named):
        weights.convert(tmp_path / "m", tmp_path / "n", **given, say=lambda line: None)
    assert not (tmp_path / "n").exists()


def test_an_existing_directory_is_never_written_over(tmp_path: Path) -> None:
    downloaded(tmp_path / "m", "gqa-dense")
    with pytest.raises(FathomError, match="exists already"):
        weights.convert(tmp_path / "m", tmp_path / "m", say=lambda line: None)
    with pytest.raises(FathomError, match="nowhere: no such directory"):
        weights.convert(tmp_path / "nowhere", tmp_path / "n", say=lambda line: None)


def test_progress_says_how_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloaded(tmp_path / "m", "gqa-dense")
    monkeypatch.setattr("fathom.model.weights.conversion.EVERY_S", 0.0)
    said: list[str] = []
    weights.convert(tmp_path / "m", tmp_path / "n", say=said.append)
    assert any("GB written, " in line and "minutes left" in line for line in said)
    assert any("comparing the logits" in line for line in said)


class Hub:
    """A hub that writes down what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[object, ...], dict[str, object]]] = []

    def __getattr__(self, name: str) -> Callable[..., object]:
        def ask(*given: object, **named: object) -> object:
            self.asked.append((name, given, named))
            return type("Done", (), {"commit_url": "https://hub/commit/1"})()
        return ask


def test_push(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    weights.save(tmp_path / "m", sharp(WIDE["gqa-dense"], dtype=torch.float32), TOKENIZER)
    with pytest.raises(UsageError, match=r"no token for the hub; set HF_TOKEN"):
        weights.push(tmp_path / "m", "me/model")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "made up")
    assert weights.push(tmp_path / "m", "me/model", private=True, revision="next") == "https://hub/commit/1"
    assert [name for name, _, _ in hub.asked] == ["create_repo", "create_branch", "upload_folder"]
    assert hub.asked[0][1:] == (("me/model",), {"private": True, "exist_ok": True})
    sent = hub.asked[2][2]
    assert (sent["repo_id"], sent["folder_path"], sent["revision"]) == ("me/model", tmp_path / "m", "next")
    from huggingface_hub.utils import filter_repo_objects
    names = [path.name for path in (tmp_path / "m").iterdir()]
    kept = set(filter_repo_objects(names, ignore_patterns=sent["ignore_patterns"]))
    assert set(names) - kept == {disk.COMPLETE, disk.CHECKSUMS}
    shutil.copytree(tmp_path / "m", tmp_path / "unfinished", ignore=shutil.ignore_patterns(disk.COMPLETE))
    with pytest.raises(UsageError, match="unfinished: has no COMPLETE"):
        weights.push(tmp_path / "unfinished", "me/model")
    (tmp_path / "m/README.md").write_text("changed")
    with pytest.raises(FathomError, match=r"README.md: contents changed"):
        weights.push(tmp_path / "m", "me/model")


def test_what_the_hub_answers_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "made up")
    weights.save(tmp_path / "m", sharp(WIDE["gqa-dense"], dtype=torch.float32), TOKENIZER)
    with pytest.raises(UsageError, match="no name of a repository"):
        weights.push(tmp_path / "m", "not/a/name")

    def refuse(*given: object, **named: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(FathomError, match=r"me/model: the hub refused or was not reached \(no route\)"):
        weights.push(tmp_path / "m", "me/model")


F32, BF16 = torch.float32, torch.bfloat16
COPIES = ("model.layers.3.embed_tokens.weight", "model.layers.3.shared_head.head.weight")  # of mla-moe-mtp


def typed(path: Path, name: str, kinds: Callable[[str], torch.dtype], **fields: object) -> dict[str, Tensor]:
    """A downloaded directory whose tensors have the types that `kinds` gives their names; what it holds."""
    def change(tensors: dict[str, Tensor]) -> None:
        for key, tensor in tensors.items():
            if not key.endswith("e_score_correction_bias"):
                tensors[key] = tensor.to(kinds(key))
        for key in COPIES:
            del tensors[key]
    downloaded(path, name, change, **fields)
    return load_file(path / weights.WEIGHTS)



@pytest.mark.parametrize(("odd", "rest", "stated", "expected", "said"), [
    ("embed_tokens", (BF16, F32), "float32", F32, None),
    ("embed_tokens", (BF16, F32), None, F32, None),  # most of the bytes
    ("norm", (F32, BF16), "bfloat16", BF16, "norm"),
    ("norm", (F32, BF16), None, BF16, "norm"),
    ("norm", (F32, BF16), "float32", F32, None),  # the config says so and tensors have it
    ("gate.weight", (F32, BF16), None, BF16, "gate.weight"),
    ("nothing", (F32, BF16), "float32", BF16, None),  # only the bias has it
    ("nothing", (F32, F32), "bfloat16", F32, None),  # no tensor has it
    ("nothing", (F32, torch.float16), "float16", torch.float16, None),
])
def test_one_type_is_chosen_for_mixed_files(
    odd: str, rest: tuple[torch.dtype, torch.dtype], stated: str | None, expected: torch.dtype, said: str | None,
    tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "m"
    held = typed(path, "mla-moe-mtp", lambda key: rest[0] if odd in key else rest[1], torch_dtype=stated, dtype=None)
    with caplog.at_level(logging.WARNING):
        loaded, _ = weights.load(path)
    assert loaded.lm_head.weight.dtype == loaded.norm.weight.dtype == expected
    rounded = [record.getMessage() for record in caplog.records if "rounded to" in record.getMessage()]
    assert bool(rounded) == (said is not None)
    if said is not None:
        number = sum(tensor.dtype == F32 for key, tensor in held.items() if not key.endswith("correction_bias"))
        assert f"{number} tensors are rounded to torch.bfloat16" in rounded[0] and said in rounded[0]
        assert "dtype=torch.float32" in rounded[0]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        exact, _ = weights.load(path, torch.float32)
    assert not caplog.records  # nothing is lost
    for key, tensor in weights.outward(exact).items():
        assert torch.equal(tensor, held.get(key, tensor).float()), key


def test_converting_keeps_the_type_of_each_tensor(tmp_path: Path) -> None:
    held = typed(tmp_path / "m", "mla-moe-mtp", lambda key: F32 if "norm" in key or ".1.gate_proj" in key else BF16)
    for experts in ("split", "fused"):
        weights.convert(tmp_path / "m", tmp_path / experts, experts=experts, say=lambda line: None)
        found = load_file(tmp_path / experts / weights.WEIGHTS)
        for key, tensor in held.items():
            if key in found:
                assert found[key].dtype == tensor.dtype and torch.equal(found[key], tensor), key
    place = "model.layers.1.mlp.experts"
    fused = load_file(tmp_path / "fused" / weights.WEIGHTS)[f"{place}.gate_up_proj"]
    assert fused.dtype == F32  # the widest of what it is made of
    assert torch.equal(fused[1, :12], held[f"{place}.1.gate_proj.weight"])
    assert torch.equal(fused[0, :12], held[f"{place}.0.gate_proj.weight"].float())


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight", "model.layers.1.mlp.gate.weight"])
def test_any_matrix_may_be_fp8(name: str, tmp_path: Path) -> None:
    kept: dict[str, Tensor] = {}

    def change(tensors: dict[str, Tensor]) -> None:
        for key in COPIES:
            del tensors[key]
        for key in tensors:
            if not key.endswith("correction_bias"):
                tensors[key] = tensors[key].bfloat16()
        tensors[name], tensors[f"{name}_scale_inv"] = quant.quantise(tensors[name].float())
        kept.update(tensors)

    downloaded(tmp_path / "m", "mla-moe-mtp", change, quantization_config=configs.Fp8().written())
    loaded, _ = weights.load(tmp_path / "m")
    expected = quant.dequantise(kept[name], kept[f"{name}_scale_inv"]).bfloat16()
    found = weights.outward(loaded)[name]
    assert found.dtype == BF16 and torch.equal(found, expected)
    weights.convert(tmp_path / "m", tmp_path / "again", say=lambda line: None)
    again = weights.outward(weights.load(tmp_path / "again")[0])
    for key, tensor in weights.outward(loaded).items():
        assert torch.equal(again[key], tensor), key
    held = load_file(tmp_path / "again" / weights.WEIGHTS)
    assert torch.equal(held[name].view(torch.uint8), kept[name].view(torch.uint8))


def test_scales_of_a_copy_are_copies_too(tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        number, scale = quant.quantise(tensors["lm_head.weight"])
        for key in ("lm_head.weight", "model.layers.3.shared_head.head.weight"):
            tensors[key], tensors[f"{key}_scale_inv"] = number.clone(), scale * (2 if "3" in key else 1)

    downloaded(tmp_path / "m", "mla-moe-mtp", change, quantization_config=configs.Fp8().written())
    with pytest.raises(FathomError, match=r"shared_head.head.weight differs from its copy"):
        weights.load(tmp_path / "m")


def _other(path: Path) -> None:
    tensors = load_file(path)
    save_file({key: tensor + 1 for key, tensor in tensors.items()}, path.with_name("other"))
    os.replace(path.with_name("other"), path)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _written(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(bytes(4))
    os.utime(path, ns=(1, 1))  # whatever the clock's grain


@pytest.mark.parametrize(("change", "said"), [
    (_other, "was replaced or written to"), (_written, "was replaced or written to"), (_pipe, "not a regular file"),
    (Path.unlink, "no such file")])
def test_a_file_that_changes_after_the_look_is_refused(
    change: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    model = downloaded(tmp_path / "m", "gqa-dense")
    described, stored = directory.opened(tmp_path / "m")
    change(tmp_path / "m" / weights.WEIGHTS)
    with pytest.raises(FathomError, match=said):
        stored.fill(directory.own(streamed.empty(described.config, model.norm.weight.dtype)))


def test_a_file_that_is_written_to_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloaded(tmp_path / "m", "gqa-dense")
    described, stored = directory.opened(tmp_path / "m")
    reading = header.read_into

    def slow(file: int, place: header.Region, memory: memoryview) -> None:
        reading(file, place, memory)
        _written(place.file)

    monkeypatch.setattr("fathom.model.weights.stored.read_into", slow)
    with pytest.raises(FathomError, match="was replaced or written to"):
        stored.fill(directory.own(streamed.empty(described.config, torch.float32)))


def test_a_tokenizer_without_a_first_token_is_saved(tmp_path: Path) -> None:
    bare = tokenizer()
    bare = Tokenizer(bare.backend, bare.template, None, bare.eos)
    weights.save(tmp_path / "m", sharp(WIDE["qwen2"], dtype=torch.float32), bare)
    _, again = weights.load(tmp_path / "m")
    assert (again.bos_id, again.eos_id) == (None, bare.eos_id)
    for name in ("config.json", "generation_config.json"):
        given = json.loads((tmp_path / "m" / name).read_text())
        assert (given["bos_token_id"], given["eos_token_id"]) == (None, bare.eos_id)


def test_what_a_user_names_wrongly_is_answered_with_the_right_name(tmp_path: Path) -> None:
    from fathom.model.weights.hub import push

    stage = tmp_path / "stage"
    (stage / "model").mkdir(parents=True)
    (stage / "model" / "config.json").write_text("{}")
    for ask in (lambda: weights.load(stage), lambda: weights.convert(stage, tmp_path / "out", say=lambda line: None),
                lambda: push(stage, "me/x")):
        with pytest.raises(FathomError, match=r"stage: is a stage, not a model; did you mean .*stage/model\?"):
            ask()
    with pytest.raises(FathomError, match="nowhere: no such directory"):
        push(tmp_path / "nowhere", "me/x")

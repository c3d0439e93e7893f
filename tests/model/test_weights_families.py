"""Every family, every form of a checkpoint: what goes out comes back with the same bits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from made_models import sharp, tokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor

from fathom.core import disk
from fathom.core.errors import FathomError, UsageError
from fathom.model import quant, weights
from fathom.model.config import ModelConfig, RopeScaling
from fathom.model.transformer import Transformer
from fathom.model.weights import names
from fathom.model.weights.streamed import probe

TOKENIZER = tokenizer()
_SMALL = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
          "intermediate_size": 40, "max_position_embeddings": 256, "initializer_range": 0.05}
_EXPERTS = {"n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 3, "moe_intermediate_size": 12}
_MLA = {"attention": "mla", "kv_lora_rank": 20, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6}
_YARN = RopeScaling(factor=8, original_max_position_embeddings=32, mscale=0.707, mscale_all_dim=0.707)
_V2 = {"scoring_func": "softmax", "norm_topk_prob": False}
_GQA = {"attention": "gqa", "num_key_value_heads": 2, "head_dim": 8, "rope_interleave": False}
FAMILIES = {
    "deepseek_v3": ModelConfig(**_SMALL, **_MLA, **_EXPERTS, q_lora_rank=24, num_nextn_predict_layers=1, n_group=4,
                               topk_group=2, routed_scaling_factor=2.5, rope_scaling=_YARN),
    "deepseek_v3 dense": ModelConfig(**_SMALL, **_MLA),
    "deepseek_v2 greedy": ModelConfig(**_SMALL, **_MLA, **_EXPERTS, **_V2, topk_method="greedy"),
    "deepseek_v2 grouped": ModelConfig(**_SMALL, **_MLA, **_EXPERTS, **_V2, q_lora_rank=24, n_group=4, topk_group=2,
                                       topk_method="group_limited_greedy", routed_scaling_factor=16.0,
                                       rope_scaling=_YARN),
    "deepseek": ModelConfig(**_SMALL, **_EXPERTS, **_V2, **{**_GQA, "num_key_value_heads": 4}, topk_method="greedy"),
    "llama": ModelConfig(**_SMALL, **_GQA, rope_theta=5e5, rope_scaling=RopeScaling(
        type="llama3", factor=8, original_max_position_embeddings=64)),
    "llama tied": ModelConfig(**_SMALL, **_GQA, tie_word_embeddings=True),
    "qwen2": ModelConfig(**_SMALL, **_GQA, qkv_bias=True, rope_theta=1e6,
                         rope_scaling=RopeScaling(factor=4, original_max_position_embeddings=64)),
    "qwen3": ModelConfig(**_SMALL, **{**_GQA, "head_dim": 16}, qk_norm=True, tie_word_embeddings=True),
    "fathom": ModelConfig(**_SMALL, **_EXPERTS, **_GQA, num_nextn_predict_layers=1),
    "fathom latent": ModelConfig(**_SMALL, **_MLA, **_EXPERTS, **_V2, rope_interleave=False, topk_method="greedy"),
}
DEMO = ("deepseek_v3", "deepseek_v3 dense", "deepseek_v2 greedy", "deepseek_v2 grouped")


def model(name: str, dtype: torch.dtype = torch.float32) -> Transformer:
    return sharp(FAMILIES[name], dtype=dtype)


def tensors(directory: Path) -> dict[str, Tensor]:
    return {name: t for path in sorted(directory.glob("*.safetensors")) for name, t in load_file(path).items()}


def assert_equal(found: Transformer, expected: Transformer) -> None:
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name


def quiet(line: str) -> None:
    """Progress that nobody reads."""


@pytest.mark.equivalence
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_saved_is_loaded(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    made = model(name, dtype)
    weights.save(tmp_path / "model", made, TOKENIZER)
    loaded, _ = weights.load(tmp_path / "model")
    assert_equal(loaded, made)
    assert torch.equal(probe(loaded), probe(made))
    assert loaded.config.family == FAMILIES[name].family == name.split()[0]
    assert (loaded.config.rope_scaling, loaded.config.rope_theta) == (made.config.rope_scaling, made.config.rope_theta)
    assert loaded.config.max_position_embeddings == made.config.max_position_embeddings


@pytest.mark.equivalence
@pytest.mark.parametrize("name", FAMILIES)
def test_split_fused_sharded_are_one(name: str, tmp_path: Path) -> None:
    made = model(name)
    weights.save(tmp_path / "single", made, TOKENIZER)
    weights.save(tmp_path / "sharded", made, TOKENIZER, shard_bytes=20_000)
    weights.convert(tmp_path / "sharded", tmp_path / "fused", experts="fused", say=quiet)
    weights.convert(tmp_path / "fused", tmp_path / "split", shard_bytes=30_000, say=quiet)
    assert (tmp_path / "single" / weights.WEIGHTS).is_file()
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 3
    assert not list((tmp_path / "sharded").glob(weights.WEIGHTS))
    single = tensors(tmp_path / "single")
    for other in ("sharded", "split"):
        found = tensors(tmp_path / other)
        assert found.keys() == single.keys()
        assert all(torch.equal(found[key], single[key]) for key in single)
    fused = tensors(tmp_path / "fused")
    assert any(key.endswith("experts.gate_up_proj") for key in fused) == (made.config.n_routed_experts > 0)
    for directory in ("single", "sharded", "fused", "split"):
        assert_equal(weights.load(tmp_path / directory)[0], made)
    index = json.loads((tmp_path / "sharded/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.numel() * t.itemsize for t in single.values())


def ranked(source: Path, target: Path, ranks: int) -> None:
    """The demo's files for several ranks from the one for a single rank, as its own converter cuts them."""
    target.mkdir()
    for path in source.iterdir():
        if path.suffix != ".safetensors" and path.name not in (disk.CHECKSUMS, disk.COMPLETE):
            shutil.copy(path, target)
    whole = load_file(source / "model0-mp1.safetensors")
    experts = 1 + max((int(key.split(".experts.")[1].split(".")[0]) for key in whole if ".experts." in key), default=-1)
    for rank in range(ranks):
        own: dict[str, Tensor] = {}
        for key, tensor in whole.items():
            stem = key.split(".")[-2]
            dim = {"embed": 0, "head": 0, "wq": 0, "wq_b": 0, "wkv_b": 0, "wo": 1, "w1": 0, "w2": 1, "w3": 0}.get(stem)
            if ".experts." in key:
                if int(key.split(".experts.")[1].split(".")[0]) // (experts // ranks) == rank:
                    own[key] = tensor
            elif dim is None:
                own[key] = tensor
            else:
                own[key] = tensor.chunk(ranks, dim)[rank].contiguous()
        save_file(own, target / f"model{rank}-mp{ranks}.safetensors")


@pytest.mark.equivalence
@pytest.mark.parametrize("name", DEMO)
def test_the_demos_names_and_ranks(name: str, tmp_path: Path) -> None:
    made = model(name, torch.bfloat16)
    weights.save(tmp_path / "ours", made, TOKENIZER)
    said: list[str] = []
    weights.convert(tmp_path / "ours", tmp_path / "demo", form="deepseek", say=said.append)
    assert any("left out" in line for line in said) == (made.config.num_nextn_predict_layers > 0)
    found = tensors(tmp_path / "demo")
    assert {"embed.weight", "head.weight", "norm.weight", "layers.0.attn.wo.weight", "layers.0.ffn_norm.weight",
            "layers.0.ffn.w2.weight"} <= found.keys()
    assert not any("proj" in key or "model" in key for key in found)
    if made.config.n_routed_experts:
        assert torch.equal(found["layers.1.ffn.experts.3.w2.weight"], made.layers[1].mlp.experts.down_proj[3])
        shared = made.layers[2].mlp.shared_experts.up_proj.weight
        assert torch.equal(found["layers.2.ffn.shared_experts.w3.weight"], shared)
        assert ("layers.1.ffn.gate.bias" in found) == made.config.selection_bias
    ranked(tmp_path / "demo", tmp_path / "ranks", 2)
    without = made.config.model_copy(update={"num_nextn_predict_layers": 0})
    expected = {key: t for key, t in weights.outward(made).items() if not key.startswith("model.layers.3.")}
    for source in ("demo", "ranks"):
        back, _ = weights.load(tmp_path / source)
        assert back.config.family == without.family
        assert torch.equal(probe(back), probe(made)[: len(probe(back))])
        weights.convert(tmp_path / source, tmp_path / f"{source}-back", say=quiet)
        again = tensors(tmp_path / f"{source}-back")
        assert again.keys() == expected.keys()
        assert all(torch.equal(again[key], expected[key]) for key in expected)
    assert back.config.rope_scaling == made.config.rope_scaling


def test_a_demo_without_a_tokenizer_is_given_one(tmp_path: Path) -> None:
    weights.save(tmp_path / "ours", model("deepseek_v2 greedy", torch.bfloat16), TOKENIZER)
    weights.convert(tmp_path / "ours", tmp_path / "demo", form="deepseek", say=quiet)
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model0-mp1.safetensors"):
        shutil.copy(tmp_path / "demo" / name, bare)
    with pytest.raises(UsageError, match=r"bare: has no tokenizer.json; .*--tokenizer"):
        weights.convert(bare, tmp_path / "no", say=quiet)
    weights.convert(bare, tmp_path / "back", tokenizer=tmp_path / "ours", say=quiet)
    assert weights.load(tmp_path / "back")[1].files() == TOKENIZER.files()
    with pytest.raises(FathomError, match=r"bare/tokenizer.json: no such file"):
        weights.load(bare)


@pytest.mark.parametrize("name", ["deepseek_v3", "qwen3"])
@pytest.mark.parametrize("form", ["hf", "deepseek"])
def test_fp8_is_what_quantising_gives(name: str, form: str, tmp_path: Path) -> None:
    if form == "deepseek" and name not in DEMO:
        pytest.skip("the demo has no such family")
    wide = FAMILIES[name].model_copy(update={"hidden_size": 192, "intermediate_size": 130})
    made = sharp(wide, dtype=torch.bfloat16)
    weights.save(tmp_path / "ours", made, TOKENIZER)
    weights.convert(tmp_path / "ours", tmp_path / "fp8", dtype="fp8", form=form, say=quiet)
    stored = tensors(tmp_path / "fp8")
    scales = [key for key in stored if key.endswith((names.SCALE, ".scale"))]
    assert {key for key in stored if stored[key].dtype == quant.FP8} == {
        key.replace(names.SCALE, "").replace(".scale", ".weight") for key in scales}
    back, _ = weights.load(tmp_path / "fp8")
    assert back.embed_tokens.weight.dtype == torch.bfloat16
    found = weights.outward(back)
    for key, tensor in weights.outward(made).items():
        if form == "deepseek" and key.startswith("model.layers.3."):
            continue
        if not names.quantised(key):
            assert torch.equal(found[key], tensor), key
            continue
        expected = quant.dequantise(*quant.quantise(tensor.float()))
        assert torch.equal(found[key], expected.bfloat16()), key
        assert not torch.equal(found[key], tensor)
    exact, _ = weights.load(tmp_path / "fp8", torch.float32)
    key = "model.layers.1.self_attn.o_proj.weight"
    assert torch.equal(weights.outward(exact)[key],
                       quant.dequantise(*quant.quantise(weights.outward(made)[key].float())))
    # FP8 stays FP8 to the bit, whatever the names; what is asked for in BF16 is dequantised
    weights.convert(tmp_path / "fp8", tmp_path / "again", say=quiet)
    there = tensors(tmp_path / "again")
    for key in there:
        theirs = names.to_demo(key) if form == "deepseek" else key
        assert torch.equal(there[key].view(torch.uint8), stored[theirs].view(torch.uint8)), key
    weights.convert(tmp_path / "fp8", tmp_path / "plain", dtype="bfloat16", say=quiet)
    assert not any(key.endswith(names.SCALE) for key in tensors(tmp_path / "plain"))
    assert_equal(weights.load(tmp_path / "plain")[0], back)
    with pytest.raises(UsageError, match="experts=split"):
        weights.convert(tmp_path / "fp8", tmp_path / "no", experts="fused", dtype="fp8", say=quiet)


def test_the_published_tensors_are_the_ones_in_fp8() -> None:
    yes = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
    no = ["self_attn.q_a_layernorm", "self_attn.kv_a_layernorm", "mlp.gate", "eh_proj", "enorm", "input_layernorm",
          "shared_head.head", "embed_tokens"]
    assert all(names.quantised(f"model.layers.4.self_attn.{name}.weight") for name in yes)
    assert all(names.quantised(f"model.layers.4.mlp.{name}.weight")
               for name in ("down_proj", "experts.9.gate_proj", "shared_experts.up_proj"))
    assert not any(names.quantised(f"model.layers.4.{name}.weight") for name in no)
    assert not names.quantised("model.layers.4.mlp.gate.e_score_correction_bias")
    assert not names.quantised("model.layers.4.self_attn.q_proj.bias")


def test_types_change_as_asked(tmp_path: Path) -> None:
    made = model("deepseek_v3")
    weights.save(tmp_path / "ours", made, TOKENIZER)
    for name in ("bfloat16", "float16"):
        weights.convert(tmp_path / "ours", tmp_path / name, dtype=name, say=quiet)
        loaded, _ = weights.load(tmp_path / name)
        assert_equal(loaded, model("deepseek_v3").to(getattr(torch, name)))
    with torch.no_grad():
        made.layers[1].mlp.experts.down_proj[3, 1, 2] = 1e6
    weights.save(tmp_path / "large", made, TOKENIZER)
    with pytest.raises(FathomError, match=r"layers.1.mlp.experts.3.down_proj.weight: holds numbers beyond 65504"):
        weights.convert(tmp_path / "large", tmp_path / "no", dtype="float16", say=quiet)
    assert not (tmp_path / "no").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".tmp")]


def test_a_generation_config_is_kept(tmp_path: Path) -> None:
    weights.save(tmp_path / "ours", model("llama"), TOKENIZER)
    written = json.loads((tmp_path / "ours/generation_config.json").read_text())
    assert written == {"bos_token_id": TOKENIZER.bos_id, "eos_token_id": TOKENIZER.eos_id}
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "ours", other, ignore=shutil.ignore_patterns(disk.CHECKSUMS, disk.COMPLETE))
    (other / "generation_config.json").write_text('{"temperature": 0.6, "top_p": 0.95, "eos_token_id": [1, 5]}')
    weights.convert(other, tmp_path / "converted", say=quiet)
    assert json.loads((tmp_path / "converted/generation_config.json").read_text()) == {
        "bos_token_id": TOKENIZER.bos_id, "eos_token_id": [1, 5], "temperature": 0.6, "top_p": 0.95}


def test_the_card_says_what_it_is(tmp_path: Path) -> None:
    weights.save(tmp_path / "ours", model("deepseek_v3"), TOKENIZER, made="Trained for a test.", license="mit")
    text = (tmp_path / "ours/README.md").read_text()
    front = text.split("---")[1].strip().splitlines()
    assert front == ["license: mit", "library_name: transformers", "pipeline_tag: text-generation", "tags:", "- fathom",
                     "- deepseek_v3"]
    for words in ("Trained for a test.", "| parameters |", "8 routed, 3 of", "weights.load", "AutoModelForCausalLM"):
        assert words in text


@pytest.mark.parametrize("name", ["deepseek_v3", "deepseek_v2 greedy", "llama", "llama tied", "qwen2", "qwen3"])
def test_transformers_opens_it(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    weights.save(tmp_path / "ours", model(name), TOKENIZER)
    theirs, about = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", dtype=torch.float32, output_loading_info=True)
    assert not about["missing_keys"]
    assert not about["mismatched_keys"]
    assert theirs.config.model_type == name.split()[0]
    scaling = FAMILIES[name].rope_scaling
    assert theirs.config.rope_parameters["rope_type"] == (scaling.type if scaling else "default")
    assert theirs.config.rope_parameters["rope_theta"] == FAMILIES[name].rope_theta
    assert torch.equal(theirs.model.norm.weight, model(name).norm.weight)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "ours").bos_token_id == TOKENIZER.bos_id
    theirs.save_pretrained(tmp_path / "theirs")
    for file in TOKENIZER.files():
        shutil.copy(tmp_path / "ours" / file, tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs/config.json").read_text())
    assert "rope_parameters" in config  # the newer spelling, read below
    (tmp_path / "theirs/config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 0}))
    back, _ = weights.load(tmp_path / "theirs")
    assert back.config.rope_scaling == scaling
    expected = sharp(FAMILIES[name].model_copy(update={"num_nextn_predict_layers": 0}), dtype=torch.float32)
    expected.load_state_dict(model(name).state_dict(), strict=False)
    assert_equal(back, expected)

"""config.json of every family: the published files, both spellings of the rotary settings, what is left out."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from made_models import assert_within, deviation, tokenizer

from fathom.core.errors import FathomError
from fathom.model import weights
from fathom.model.config import ModelConfig, RopeScaling
from fathom.model.cost import cost
from fathom.model.layout import Layout
from fathom.model.weights import configs, directory, streamed

PUBLISHED = Path(os.environ.get("FATHOM_SHARED", "/work/shared")) / "data" / "deepseek_configs"
TOKENIZER = tokenizer()
YARN = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1,
        "mscale": 1.0, "mscale_all_dim": 1.0}
# name → family and parameters of the whole model, its layer for multi-token prediction beside
FILES = {
    "DeepSeek-V2-Lite-Chat.config.json": ("deepseek_v2", 15_706_484_224), "DeepSeek-V3.config.json": (
        "deepseek_v3", 671_026_419_200 + 11_610_068_224),
    "DeepSeek-V2.5.config.json": ("deepseek_v2", 235_741_434_880),
    "DeepSeekMoE-16B.config.json": ("deepseek", 16_375_728_128),
}
# the demo's settings → the file that says the same
DEMOS = {"inference_config_16B.json": "DeepSeek-V2-Lite-Chat.config.json",
         "inference_config_236B.json": "DeepSeek-V2.5.config.json",
         "inference_config_671B.json": "DeepSeek-V3.config.json",
         "inference_config_v3.1.json": "DeepSeek-V3.config.json"}


def published(name: str) -> dict[str, Any]:
    if not (PUBLISHED / name).is_file():
        pytest.skip(f"{PUBLISHED / name}: not on this machine")
    given: dict[str, Any] = json.loads((PUBLISHED / name).read_text())
    return given


def described(given: dict[str, Any], path: Path) -> configs.Described:
    (path / "config.json").write_text(json.dumps(given))
    return configs.read(path)


def read(given: dict[str, Any], path: Path) -> ModelConfig:
    return described(given, path).config


@pytest.mark.parametrize("name", FILES)
def test_published_files(name: str, tmp_path: Path) -> None:
    found = described(published(name), tmp_path)
    family, parameters = FILES[name]
    config = found.config
    assert config.family == family
    mtp = 11_610_068_224 if config.num_nextn_predict_layers else 0
    assert cost(config.model_copy(update={"num_nextn_predict_layers": 0})).parameters == parameters - mtp
    assert (found.fp8 == configs.Fp8()) == (family == "deepseek_v3")
    again = weights.hugging_face_config(config, TOKENIZER, torch.bfloat16, found.fp8)
    for key, value in published(name).items():  # what we write says what the published file says
        if key in again and key not in ("bos_token_id", "eos_token_id", "rope_scaling"):
            assert again[key] == value, key
    assert (again["rope_scaling"] is None) == (family == "deepseek")
    if family != "deepseek":
        assert {k: v for k, v in again["rope_scaling"].items() if k != "rope_type"} == published(name)["rope_scaling"]
    assert read(again, tmp_path) == config


@pytest.mark.parametrize("name", DEMOS)
def test_the_demos_settings(name: str, tmp_path: Path) -> None:
    found = described(published(name), tmp_path)
    assert found.demo
    expected = read(published(DEMOS[name]), tmp_path).model_copy(update={"num_nextn_predict_layers": 0})
    if name.endswith("236B.json"):  # the demo's file for V2 has V2.5's 1.0
        assert expected.rope_scaling is not None
        assert expected.rope_scaling.mscale == 1.0
    assert found.config == expected
    fp8 = {"inference_config_671B.json": configs.Fp8(), "inference_config_v3.1.json": configs.Fp8(True)}
    assert found.fp8 == fp8.get(name)
    again = described(configs.demo_config(found.config, found.fp8), tmp_path)
    assert (again.config, again.fp8) == (found.config, found.fp8)
    written = configs.demo_config(found.config, found.fp8)
    for key, value in published(name).items():
        assert written[key] == value, key


LLAMA = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 96, "vocab_size": 320}


@pytest.mark.parametrize(("old", "new", "expected"), [
    ({"rope_theta": 5e5}, {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, None),
    ({"rope_theta": 5e5, "rope_scaling": {"type": "default"}}, {"rope_parameters": {"rope_theta": 5e5}}, None),
    ({"rope_theta": 5e5, "rope_scaling": {"factor": 8.0, "rope_type": "llama3", "low_freq_factor": 1.0,
                                          "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}},
     {"rope_parameters": {"factor": 8.0, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                          "original_max_position_embeddings": 8192, "rope_theta": 5e5}},
     RopeScaling(type="llama3", factor=8, original_max_position_embeddings=8192)),
    ({"rope_theta": 5e5, "rope_scaling": {"type": "yarn", "rope_type": "yarn", "factor": 4.0}},  # the length is implied
     {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 5e5, "attention_factor": None}},
     RopeScaling(factor=4, original_max_position_embeddings=2048)),
])
def test_both_spellings(old: dict[str, Any], new: dict[str, Any], expected: RopeScaling | None, tmp_path: Path) -> None:
    first, second = read(LLAMA | old, tmp_path), read(LLAMA | new, tmp_path)
    assert first == second
    assert (first.rope_scaling, first.rope_theta) == (expected, 5e5)
    both = {"rope_scaling": old.get("rope_scaling"), **new}
    assert read(LLAMA | both | {"rope_theta": 5e5}, tmp_path) == first
    if expected:
        with pytest.raises(FathomError, match="rope_scaling and rope_parameters say different things"):
            read(LLAMA | old | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, tmp_path)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "deepseek_v2", "deepseek_v3"])
def test_what_a_file_leaves_out_is_what_transformers_takes(family: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.CONFIG_MAPPING[family]()
    # V2's own class has no number of experts for a token, V3's predicts further unless it is told not to
    extra = {"num_experts_per_tok": 6} if family == "deepseek_v2" else {}
    found = read({"model_type": family, **extra}, tmp_path)
    given = weights.hugging_face_config(found, TOKENIZER, torch.bfloat16)
    for key in ("bos_token_id", "eos_token_id", "architectures", "torch_dtype", "rope_scaling", "rope_theta", "n_group",
                "topk_group", "num_nextn_predict_layers", "num_experts_per_tok"):
        given.pop(key, None)
    for key, value in given.items():
        assert getattr(theirs, key, value) == value or (key == "head_dim" and getattr(theirs, key, None) is None), key
    assert found.rope_theta == theirs.rope_parameters["rope_theta"] == 10000.0
    if family == "deepseek_v3":
        assert (found.n_group, found.topk_group) == (theirs.n_group, theirs.topk_group)


def test_the_first_upload_of_v2_is_v2(tmp_path: Path) -> None:
    given = published("DeepSeek-V2.5.config.json")
    assert read(given | {"model_type": "deepseek"}, tmp_path) == read(given, tmp_path)


def test_heads_are_derived(tmp_path: Path) -> None:
    config = read(LLAMA, tmp_path)
    assert (config.head_dim, config.num_key_value_heads) == (16, 4)
    assert read(LLAMA | {"head_dim": None, "num_key_value_heads": None}, tmp_path) == config
    assert read(LLAMA | {"model_type": "qwen3", "num_key_value_heads": 2}, tmp_path).head_dim == 128
    assert read(LLAMA | {"model_type": "qwen2", "num_key_value_heads": 2}, tmp_path).qkv_bias


def test_null_means_no_latent_and_a_missing_word_the_familys(tmp_path: Path) -> None:
    latent = {"model_type": "deepseek_v2", "num_experts_per_tok": 2}
    assert read(latent, tmp_path).q_lora_rank == 1536
    assert read(latent | {"q_lora_rank": None}, tmp_path).q_lora_rank is None
    assert read(latent | {"n_group": None, "topk_group": None}, tmp_path).n_group == 1
    assert read(latent | {"n_group": 8, "topk_group": 3}, tmp_path).n_group == 1  # greedy knows no groups


@pytest.mark.parametrize(("family", "field", "value"), [
    ("llama", "attention_bias", True), ("llama", "mlp_bias", True), ("llama", "hidden_act", "gelu"),
    ("qwen2", "use_sliding_window", True), ("qwen3", "attention_bias", True),
    ("qwen3", "layer_types", ["full_attention", "sliding_attention"]), ("llama", "partial_rotary_factor", 0.5),
    ("deepseek_v2", "norm_topk_prob", True), ("deepseek_v2", "topk_method", "noaux_tc"),
    ("deepseek_v2", "scoring_func", "sigmoid"), ("deepseek_v2", "moe_layer_freq", 2),
    ("deepseek_v3", "topk_method", "greedy"), ("deepseek_v3", "scoring_func", "softmax"),
    ("deepseek_v3", "num_nextn_predict_layers", 2), ("deepseek", "topk_method", "noaux_tc"),
    ("llama", "rope_scaling", {"type": "linear", "factor": 2.0}),
    ("llama", "rope_scaling", {"type": "longrope", "factor": 2.0}),
    ("qwen2", "rope_parameters", {"rope_type": "dynamic", "rope_theta": 1e6}),
    ("llama", "rope_parameters", {"partial_rotary_factor": 0.5}),
    ("llama", "quantization_config", {"quant_method": "bitsandbytes"}),
    ("deepseek_v3", "quantization_config", {"quant_method": "fp8", "fmt": "e5m2", "weight_block_size": [128, 128]}),
    ("deepseek_v3", "quantization_config", {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "static",
                                            "weight_block_size": [128, 128]}),
])
def test_what_is_not_computed_is_refused(family: str, field: str, value: object, tmp_path: Path) -> None:
    small = {"model_type": family, "num_experts_per_tok": 6, "num_hidden_layers": 2}
    read(small, tmp_path)
    name = "partial_rotary_factor" if isinstance(value, dict) and "partial_rotary_factor" in value else field
    with pytest.raises(FathomError, match=name) as caught:
        read(small | {field: value}, tmp_path)
    inner = str(next(iter(value.values()))) if isinstance(value, dict) else repr(value)
    assert inner in str(caught.value) or "e5m2" in str(caught.value) or "static" in str(caught.value)


@pytest.mark.parametrize(("change", "named"), [
    ({"rms_norm_eps": 1e-5}, "rms_norm_eps=1e-05"), ({"tie_word_embeddings": True}, "tie_word_embeddings=True"),
    ({"rope_interleave": False}, "family=fathom"), ({"attention": "gqa"}, "family=fathom"),
    ({"rope_scaling": RopeScaling(factor=2, original_max_position_embeddings=512)}, "rope_scaling"),
    ({"rope_scaling": RopeScaling(factor=3, original_max_position_embeddings=512, mscale=1, mscale_all_dim=1)},
     "max_position_embeddings=1024"),
])
def test_what_the_demo_cannot_compute_is_named(change: dict[str, Any], named: str) -> None:
    base = ModelConfig(n_routed_experts=4)
    configs.demo_config(base, None)
    with pytest.raises(FathomError, match=named):
        configs.demo_config(base.model_copy(update=change), None)


@pytest.mark.parametrize(("change", "named"), [
    ({"window": 5}, "window: not a setting"), ({"dtype": "int4"}, "dtype='int4'"),
    ({"scale_fmt": "x"}, "scale_fmt='x'"),
    ({"max_seq_len": "long"}, "max_seq_len='long'"), ({"score_func": "linear"}, "scoring_func"),
])
def test_odd_settings_of_the_demo_are_named(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(FathomError, match=named):
        read({"dim": 64, "n_layers": 2, **change}, tmp_path)


def test_short_sequences_of_the_demo_are_not_stretched(tmp_path: Path) -> None:
    config = read({"dim": 64, "n_layers": 2, "max_seq_len": 4096}, tmp_path)
    assert (config.rope_scaling, config.max_position_embeddings) == (None, 4096)
    assert read(configs.demo_config(config, None), tmp_path) == config
    assert read({"dim": 64, "n_layers": 2}, tmp_path).max_position_embeddings == 163840


ROTARY = {"yarn": {"type": "yarn", "factor": 8.0}, "llama3": {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}}


def test_the_outer_length_of_pretraining_comes_first(tmp_path: Path) -> None:
    for kind, scaling in ROTARY.items():
        outer = {"original_max_position_embeddings": 16}
        for inner in ({}, {"original_max_position_embeddings": 64}):
            for spelling in ("rope_scaling", "rope_parameters"):
                found = read(LLAMA | outer | {spelling: scaling | inner}, tmp_path).rope_scaling
                assert found is not None
                assert (found.type, found.original_max_position_embeddings) == (kind, 16)
        with pytest.raises(FathomError, match="original_max_position_embeddings=null"):
            read(LLAMA | {"original_max_position_embeddings": None, "rope_scaling": scaling}, tmp_path)
    assert read(LLAMA | {"original_max_position_embeddings": 16}, tmp_path).rope_scaling is None


SMALL_V3 = {"model_type": "deepseek_v3", "vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 96, "kv_lora_rank": 32,
            "q_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "n_group": 2,
            "moe_intermediate_size": 32, "n_routed_experts": 8, "num_experts_per_tok": 3, "topk_group": 1,
            "first_k_dense_replace": 1, "num_nextn_predict_layers": 0, "max_position_embeddings": 512}


@pytest.mark.parity
@pytest.mark.parametrize(("base", "change"), [
    *[(base, {"original_max_position_embeddings": 16, "rope_scaling": ROTARY[kind] | inner})
      for base, kind in ((LLAMA, "yarn"), (LLAMA, "llama3"), (SMALL_V3, "yarn"))
      for inner in ({}, {"original_max_position_embeddings": 64})],
    (SMALL_V3, {"norm_topk_prob": None}), (SMALL_V3, {"rope_interleave": None}),
    (LLAMA | {"model_type": "qwen2"}, {"num_key_value_heads": None}),
])
def test_a_config_means_what_it_means_to_transformers(
    base: dict[str, Any], change: dict[str, Any], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    given = base | {"max_position_embeddings": 512} | change
    (tmp_path / "config.json").write_text(json.dumps(given))
    torch.manual_seed(0)
    theirs = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.15 if parameter.dim() > 1 else 1)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(given))
    found, stored = directory.opened(tmp_path)
    ours = streamed.empty(found.config, torch.float32)
    stored.fill(directory.own(ours))
    tokens = torch.arange(300) * 7 % 320
    with torch.no_grad():
        expected = theirs(tokens[None]).logits[0]
        said = ours.logits(ours(tokens, Layout.packed([len(tokens)])))
        assert_within(said, expected, 3e-5)
        if base["model_type"] == "qwen2":
            return  # what the family takes without the word does not fit the weights
        # without the word the model says something else, so the comparison could have failed
        left_out = {key: value for key, value in given.items() if key not in change or key == "rope_scaling"}
        otherwise = streamed.empty(read(left_out, tmp_path), torch.float32)
        stored.fill(directory.own(otherwise))
        assert deviation(otherwise.logits(otherwise(tokens, Layout.packed([len(tokens)]))), expected) > 1e-3


def test_null_is_not_a_missing_word(tmp_path: Path) -> None:
    assert read(SMALL_V3, tmp_path).norm_topk_prob and read(SMALL_V3, tmp_path).rope_interleave
    assert not read(SMALL_V3 | {"norm_topk_prob": None}, tmp_path).norm_topk_prob
    assert not read(SMALL_V3 | {"rope_interleave": None}, tmp_path).rope_interleave
    for family in ("qwen2", "qwen3", "llama"):
        assert read(LLAMA | {"model_type": family, "num_key_value_heads": None}, tmp_path).num_key_value_heads == 4
    for family, field in (("deepseek_v3", "n_group"), ("deepseek_v3", "num_experts_per_tok"), ("llama", "rms_norm_eps"),
                          ("deepseek_v2", "routed_scaling_factor"), ("qwen3", "head_dim"),
                          ("qwen2", "tie_word_embeddings")):
        with pytest.raises(FathomError, match=f"{field}=null: {family} takes no null there; write its value"):
            read({"model_type": family, "num_experts_per_tok": 6, field: None}, tmp_path)


YARN_8 = {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(("change", "named"), [
    ({"rope_theta": 1.0, "rope_scaling": YARN_8}, "rope_theta=1.0: must be > 1"),
    ({"rope_theta": 1e300}, "rope_theta=1e.300"),
    ({"rms_norm_eps": 1e300}, "rms_norm_eps=1e.300"),
    ({"max_position_embeddings": 10**30}, "max_position_embeddings=1000"),
    ({"initializer_range": 1e300}, "initializer_range=1e.300"),
    ({"n_routed_experts": 8, "routed_scaling_factor": 1e300}, "routed_scaling_factor=1e.300"),
    *[({"rope_scaling": YARN_8 | {field: value}}, rf"rope_scaling.{field}=") for field, value in (
        ("original_max_position_embeddings", 10**30), ("factor", 1e300), ("factor", 1e-300), ("mscale", 1e300),
        ("mscale_all_dim", 1e300), ("mscale_all_dim", -20), ("attention_factor", 1e300), ("beta_fast", 1e300))],
    ({"rope_scaling": ROTARY["llama3"] | {"high_freq_factor": 1e300}}, "rope_scaling.high_freq_factor"),
    ({"is_causal": False}, "is_causal=False"),
])
def test_numbers_that_no_model_has_are_refused(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    family = "deepseek_v3" if "n_routed_experts" in change else "llama"
    with pytest.raises(FathomError, match=named):
        read(LLAMA | {"model_type": family} | change, tmp_path)


def test_the_demo_never_scales_cos_and_sin(tmp_path: Path) -> None:
    found = read({"dim": 64, "n_layers": 2, "mscale": 0.0}, tmp_path)
    assert found.rope_scaling is not None
    assert (found.rope_scaling.rotary_factor, found.rope_scaling.softmax_factor) == (1.0, 1.0)
    assert read(configs.demo_config(found, None), tmp_path) == found
    again = weights.hugging_face_config(found, TOKENIZER, torch.bfloat16)
    assert read(again, tmp_path).rope_scaling == found.rope_scaling

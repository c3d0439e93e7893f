"""A model directory: what is saved is what is loaded, and what does not belong is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from made_models import CONFIGS, GQA_TIED, MLA_MOE, sharp, texts, tokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor

from fathom.core.errors import FathomError
from fathom.model import weights
from fathom.model.config import ModelConfig
from fathom.model.layout import Layout
from fathom.model.transformer import Transformer

TOKENIZER = tokenizer()
WIDE = {name: config.model_copy(update={"vocab_size": 320}) for name, config in CONFIGS.items()}


def saved(directory: Path, config: ModelConfig, dtype: torch.dtype = torch.float32) -> Transformer:
    model = sharp(config, dtype=dtype)
    weights.save(directory, model, TOKENIZER)
    return model


@pytest.mark.equivalence
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", WIDE)
def test_loaded_is_saved(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", WIDE[name], dtype)
    loaded, read = weights.load(tmp_path / "model")
    state = loaded.state_dict()
    for key, tensor in model.state_dict().items():
        assert state[key].dtype == tensor.dtype
        assert torch.equal(state[key], tensor), key
    tokens, layout = torch.tensor(texts(WIDE[name], 20)[0]), Layout.packed([20])
    with torch.no_grad():  # the same bits in the same order of operations: equal, not near
        assert torch.equal(loaded.logits(loaded(tokens, layout)), model.logits(model(tokens, layout)))
    assert read.files() == TOKENIZER.files()
    # the config comes back in all that shapes the model: another model of it has the same tensors
    assert weights.outward(Transformer(loaded.config)).keys() == weights.outward(model).keys()
    assert loaded.config.rope_interleave == WIDE[name].rope_interleave


def test_the_bias_stays_single_precision_in_a_bfloat16_model(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", WIDE["mla-moe-mtp"])
    loaded, _ = weights.load(tmp_path / "model", torch.bfloat16)
    assert loaded.embed_tokens.weight.dtype == torch.bfloat16
    for ours, theirs in zip(model.routers().values(), loaded.routers().values(), strict=True):
        assert theirs.gate.e_score_correction_bias.dtype == torch.float32
        assert torch.equal(theirs.gate.e_score_correction_bias, ours.gate.e_score_correction_bias)
        lost = ours.gate.e_score_correction_bias.bfloat16().float()
        assert not torch.equal(lost, ours.gate.e_score_correction_bias)  # the test could fail


def test_names_are_the_published_ones(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", WIDE["mla-moe-mtp"])
    stored = load_file(tmp_path / "model" / weights.WEIGHTS)
    layer, further = "model.layers.1.", "model.layers.3."  # three layers, so the module that predicts further is 3
    shapes = {
        "model.embed_tokens.weight": [320, 32], "lm_head.weight": [320, 32], "model.norm.weight": [32],
        layer + "self_attn.q_a_proj.weight": [24, 32], layer + "self_attn.q_a_layernorm.weight": [24],
        layer + "self_attn.q_b_proj.weight": [48, 24], layer + "self_attn.kv_a_proj_with_mqa.weight": [24, 32],
        layer + "self_attn.kv_a_layernorm.weight": [20], layer + "self_attn.kv_b_proj.weight": [56, 20],
        layer + "self_attn.o_proj.weight": [32, 24], layer + "mlp.gate.weight": [6, 32],
        layer + "mlp.gate.e_score_correction_bias": [6], layer + "mlp.experts.5.gate_proj.weight": [12, 32],
        layer + "mlp.experts.5.down_proj.weight": [32, 12], layer + "mlp.shared_experts.up_proj.weight": [12, 32],
        "model.layers.0.mlp.gate_proj.weight": [40, 32], further + "enorm.weight": [32],
        further + "eh_proj.weight": [32, 64], further + "shared_head.norm.weight": [32],
        further + "mlp.experts.0.up_proj.weight": [12, 32], further + "embed_tokens.weight": [320, 32],
        further + "shared_head.head.weight": [320, 32],
    }
    assert {name: list(stored[name].shape) for name in shapes} == shapes
    experts = model.layers[1].mlp.experts
    assert torch.equal(stored[layer + "mlp.experts.5.gate_proj.weight"], experts.gate_up_proj[5, :12])
    assert torch.equal(stored[layer + "mlp.experts.5.up_proj.weight"], experts.gate_up_proj[5, 12:])
    # the copies that the released layer carries
    assert torch.equal(stored[further + "embed_tokens.weight"], stored["model.embed_tokens.weight"])
    assert torch.equal(stored[further + "shared_head.head.weight"], stored["lm_head.weight"])
    assert not any("mtp" in name or "gate_up" in name for name in stored)


def test_tied_heads_are_stored_once(tmp_path: Path) -> None:
    saved(tmp_path / "model", WIDE["gqa-tied"])
    assert "lm_head.weight" not in load_file(tmp_path / "model" / weights.WEIGHTS)
    loaded, _ = weights.load(tmp_path / "model")
    assert loaded.lm_head.weight is loaded.embed_tokens.weight
    assert loaded.config.tie_word_embeddings


def without(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.pop(name)


def cut(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.update({name: tensors[name][1:].clone()})


@pytest.mark.parametrize(("change", "message"), [
    (without("model.layers.1.mlp.experts.3.up_proj.weight"), "layers.1.mlp.experts.3.up_proj.weight: missing"),
    (without("model.layers.2.mlp.gate.e_score_correction_bias"), "e_score_correction_bias: missing"),
    (lambda t: t.update({"model.layers.9.extra": torch.zeros(1)}), "model.layers.9.extra: not part of this model"),
    (cut("model.layers.0.self_attn.o_proj.weight"),
     r"layers.0.self_attn.o_proj.weight: shape \[31, 24\], the config asks for \[32, 24\]"),
    (dict.clear, r"model.embed_tokens.weight: missing.* \(and \d+ more\)"),
])
def test_what_does_not_belong_is_named(change: Callable, message: str, tmp_path: Path) -> None:
    saved(tmp_path / "model", WIDE["mla-moe-mtp"])
    plain = tmp_path / "plain"  # without checksums, as a download from elsewhere
    plain.mkdir()
    for file in ("config.json", *TOKENIZER.files()):
        (plain / file).write_bytes((tmp_path / "model" / file).read_bytes())
    tensors = load_file(tmp_path / "model" / weights.WEIGHTS)
    change(tensors)
    save_file(tensors, plain / weights.WEIGHTS)
    with pytest.raises(FathomError, match=message):
        weights.load(plain)


def test_damage_is_named(tmp_path: Path) -> None:
    saved(tmp_path / "model", WIDE["gqa-dense"])
    path = tmp_path / "model" / weights.WEIGHTS
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(FathomError, match=weights.WEIGHTS):
        weights.load(tmp_path / "model")
    (tmp_path / "model" / "COMPLETE").unlink()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FathomError, match="not a whole safetensors file"):
        weights.load(tmp_path / "model")
    path.unlink()
    with pytest.raises(FathomError, match=r"model.safetensors: no such file"):
        weights.load(tmp_path / "model")
    with pytest.raises(FathomError, match="nowhere: no such"):
        weights.load(tmp_path / "nowhere")


@pytest.mark.parametrize(("field", "value"), [
    ("model_type", "gpt2"), ("rope_scaling", {"type": "linear"}), ("n_group", 8), ("scoring_func", "softmax"),
    ("quantization_config", {"quant_method": "fp8"}), ("moe_layer_freq", 2)])
def test_what_is_not_computed_is_refused(field: str, value: object, tmp_path: Path) -> None:
    saved(tmp_path / "model", WIDE["mla-moe-mtp"])
    raw = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {field: value}))
    with pytest.raises(FathomError, match=field):
        weights.read_config(tmp_path)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    weights.save(tmp_path / "model", sharp(MLA_MOE), TOKENIZER)  # rows for 61 tokens
    with pytest.raises(FathomError, match="320 tokens, the model has rows for 61"):
        weights.load(tmp_path / "model")


def test_configs_write_what_transformers_reads() -> None:
    moe = weights.hugging_face_config(MLA_MOE, TOKENIZER, torch.bfloat16)
    assert moe["model_type"] == "deepseek_v3"
    assert moe["topk_method"] == "noaux_tc"
    assert moe["torch_dtype"] == "bfloat16"
    assert moe["num_nextn_predict_layers"] == 1
    dense = weights.hugging_face_config(GQA_TIED, TOKENIZER, torch.float32)
    assert dense["model_type"] == "llama"
    assert dense["tie_word_embeddings"] is True
    assert "kv_lora_rank" not in dense

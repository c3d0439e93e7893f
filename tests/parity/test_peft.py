"""DIR/adapter in the real PEFT on transformers' model, DIR/model in transformers alone: our logits, in both.

Weights are scaled as in test_transformers.py; each mutant of the adapter directory must miss the bar by a factor of 10.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_transformers import BAR, FAMILIES, LLAMA, POSITIONS, V3, ours, scaled, tokens_of
from torch import Tensor

from fathom.model import adapter, lora, weights
from fathom.model.config import Lora, ModelConfig
from fathom.model.tokenizer import Tokenizer
from fathom.model.transformer import Transformer

transformers = pytest.importorskip("transformers", reason="the second opinion: pip install 'fathom-reasoning[dev]'")
peft = pytest.importorskip("peft", reason="the second opinion: pip install 'fathom-reasoning[dev]'")
pytestmark = pytest.mark.parity

WITH_MTP = V3.model_copy(update={"num_nextn_predict_layers": 1})
CASES: dict[str, tuple[ModelConfig, Lora]] = {
    **{name: (config, Lora(rank=4, alpha=6)) for name, config in FAMILIES.items()},
    "deepseek_v3 experts alone": (V3, Lora(rank=3, alpha=8, targets=("experts",))),
    "deepseek_v3 all but experts": (V3, Lora(rank=4, targets=("q_a_proj", "kv_b_proj", "o_proj", "down_proj"))),
    "deepseek_v3 with multi-token prediction": (WITH_MTP, Lora(rank=4, alpha=6)),
    "llama by root of rank": (LLAMA, Lora(rank=4, alpha=3, rslora=True, targets=("v_proj", "gate_proj"))),
}


def made(directory: Path, config: ModelConfig, settings: Lora) -> Transformer:
    """A model with drawn adapters; its base, its adapters and the merged model in `directory`."""
    words = Tokenizer.train(["some text to learn a few merges from, some more text"], 290)
    model = scaled(config)
    weights.save(directory / "base", model, words)
    lora.attach(model, settings, 0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
    adapter.save(directory / "adapter", model, settings, directory / "base")
    return model


def base_in_transformers(directory: Path) -> torch.nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager").eval()


def in_peft(base: Path, folder: Path) -> torch.nn.Module:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = peft.PeftModel.from_pretrained(base_in_transformers(base), folder).eval()
    assert [str(w.message) for w in said if "adapter" in str(w.message) or "target" in str(w.message)] == []
    return model


@torch.no_grad()
def logits(model: torch.nn.Module, config: ModelConfig) -> Tensor:
    return model(tokens_of(config)[None]).logits[0]


def apart(a: Tensor, b: Tensor) -> float:
    return max(float((a[p] - b[p]).abs().max()) for p in POSITIONS)


@pytest.mark.parametrize("name", CASES)
def test_peft_and_transformers_agree(name: str, tmp_path: Path) -> None:
    config, settings = CASES[name]
    model = made(tmp_path, config, settings)
    got = ours(model, tokens_of(config))
    with lora.off(model):
        assert apart(ours(model, tokens_of(config)), got) >= 100 * BAR  # the adapters matter
    theirs = in_peft(tmp_path / "base", tmp_path / "adapter")
    expected = logits(theirs, config)
    assert expected.std() >= 1
    assert apart(got, expected) <= BAR
    # every tensor found its place: PEFT's own names and shapes, and what it has no layer for is multi-token prediction
    shapes = {n: t.shape for n, t in peft.get_peft_model_state_dict(theirs).items()}
    stored = {n: t.shape for n, t in load_file(tmp_path / "adapter" / adapter.WEIGHTS).items()}
    further = {n for n in stored if f".layers.{config.num_hidden_layers}." in n}
    assert bool(further) == bool(config.num_nextn_predict_layers)
    assert {n: s for n, s in stored.items() if n not in further} == shapes
    # and the merged model, by transformers alone
    words = Tokenizer.load(tmp_path / "base")
    lora.merge(model)
    weights.save(tmp_path / "model", model, words)
    merged = logits(base_in_transformers(tmp_path / "model"), config)
    assert apart(got, merged) <= BAR


def config_change(**change: object) -> Callable[[Path], None]:
    def mutate(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    return mutate


def tensor_change(change: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    def mutate(folder: Path) -> None:
        tensors = load_file(folder / adapter.WEIGHTS)
        change(tensors)
        save_file({n: t.contiguous() for n, t in tensors.items()}, folder / adapter.WEIGHTS, {"format": "pt"})

    return mutate


def other_layer(tensors: dict[str, Tensor]) -> None:
    """The last layer's attention gets the B of the first's."""
    for name in tensors:
        if "layers.1.self_attn" in name and name.endswith("lora_B.weight"):
            tensors[name] = tensors[name.replace("layers.1.", "layers.0.")].clone()


def experts_outside_rank(tensors: dict[str, Tensor]) -> None:
    """Experts' B with columns (E, R) in place of (R, E)."""
    for name, tensor in tensors.items():
        if "experts" in name and "shared" not in name and name.endswith("lora_B.weight"):
            rows = tensor.shape[0]
            tensors[name] = tensor.reshape(rows, -1, V3.n_routed_experts).transpose(1, 2).reshape(rows, -1)


MUTANTS = {
    "llama: alpha doubled": (LLAMA, config_change(lora_alpha=12)),
    "llama: B of another layer": (LLAMA, tensor_change(other_layer)),
    "llama: scaled by the root": (LLAMA, config_change(use_rslora=True)),
    "deepseek_v3: alpha doubled": (V3, config_change(lora_alpha=12)),
    "deepseek_v3: B of another layer": (V3, tensor_change(other_layer)),
    "deepseek_v3: experts' columns in the other order": (V3, tensor_change(experts_outside_rank)),
    "deepseek_v3: experts left out": (V3, config_change(target_parameters=None)),
}


@pytest.mark.parametrize("name", MUTANTS)
@pytest.mark.filterwarnings("ignore")
def test_mutants_miss(name: str, tmp_path: Path) -> None:
    config, mutate = MUTANTS[name]
    got = ours(made(tmp_path, config, Lora(rank=4, alpha=6)), tokens_of(config))
    shutil.copytree(tmp_path / "adapter", tmp_path / "mutant")
    mutate(tmp_path / "mutant")
    wrong = peft.PeftModel.from_pretrained(base_in_transformers(tmp_path / "base"), tmp_path / "mutant").eval()
    assert apart(got, logits(wrong, config)) >= 10 * BAR


def test_the_config_names_the_base(tmp_path: Path) -> None:
    """PEFT's own short way in: the base is found through adapter_config.json."""
    model = made(tmp_path, LLAMA, Lora(rank=4, alpha=6))
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32).eval()
    assert apart(ours(model, tokens_of(LLAMA)), logits(theirs, LLAMA)) <= BAR
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == str(tmp_path / "base")
    assert (said["peft_type"], said["task_type"], said["r"], said["bias"]) == ("LORA", "CAUSAL_LM", 4, "none")

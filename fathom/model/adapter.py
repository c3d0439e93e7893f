"""An adapter directory as PEFT reads it: adapter_config.json and adapter_model.safetensors."""

# E experts, I in, O out, R rank

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from fathom.core import disk
from fathom.model import weights
from fathom.model.config import Lora
from fathom.model.lora import LoraExperts, adapted, merge
from fathom.model.transformer import Transformer

WEIGHTS = "adapter_model.safetensors"


def save(directory: Path, model: Transformer, settings: Lora, base: Path) -> None:
    """Writes `directory` whole or not at all: the adapters of `model`, which stand beside the weights in `base`."""
    with disk.commit(directory) as folder:
        folder.write("adapter_config.json", json.dumps(peft_config(model, settings, base), indent=2).encode())
        entries = [(name, list(t.shape), t.dtype, lambda t=t: t) for name, t in tensors(model).items()]
        weights.write_stream(folder.path(WEIGHTS), entries)


def export(directory: Path, model: Transformer, settings: Lora, base: Path) -> None:
    """Writes `directory`, unless an earlier attempt did, and merges the adapters into `model`."""
    if not disk.is_complete(directory):
        save(directory, model, settings, base)
    merge(model)


def peft_config(model: Transformer, settings: Lora, base: Path) -> dict[str, Any]:
    """The fields of PEFT's LoraConfig."""
    modules: set[str] = set()
    parameters: set[str] = set()
    for name, module in adapted(model).items():
        place = name.split(".")[2:]  # behind layers.N or mtp.N
        if isinstance(module, LoraExperts):
            parameters |= {f"mlp.experts.{part}" for part in ("gate_up_proj", "down_proj")}
        elif model.config.attention == "mla" and "mlp" in place:
            # PEFT takes these names in target_modules of deepseek_v3 for the experts of before transformers 5 and
            # drops the dense and shared layers; named as parameters they are found, under the same tensor names
            parameters.add(f"{'.'.join(place[place.index('mlp'):])}.weight")
        else:
            modules.add(place[-1])
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "inference_mode": True,
        "r": settings.rank, "lora_alpha": settings.alpha, "use_rslora": settings.rslora, "lora_dropout": 0.0,
        "bias": "none", "fan_in_fan_out": False, "init_lora_weights": True, "modules_to_save": None,
        "target_modules": sorted(modules), "target_parameters": sorted(parameters) or None,
    }


def tensors(model: Transformer) -> dict[str, Tensor]:
    """The adapters under PEFT's names and in its shapes: A [R, I] and B [O, R], experts' flattened to two dimensions.

    PEFT nests one wrapper per adapted tensor of the experts: gate_up_proj's is the inner one, `base_layer`. It keeps
    A as rows (E, R), B as columns (R, E).
    """
    named: dict[str, Tensor] = {}
    for name, module in adapted(model).items():
        stem = f"base_model.model.{outward(model, name)}"
        if isinstance(module, LoraExperts):
            for part, place in (("gate_up_proj", f"{stem}.base_layer"), ("down_proj", stem)):
                a_ERI, b_EOR = module.pair(part)
                named[f"{place}.lora_A.weight"] = a_ERI.detach().flatten(0, 1)
                named[f"{place}.lora_B.weight"] = b_EOR.detach().permute(1, 2, 0).flatten(1)
        else:
            named[f"{stem}.lora_A.weight"], named[f"{stem}.lora_B.weight"] = module.lora_A, module.lora_B
    return named


def outward(model: Transformer, name: str) -> str:
    """A module's name in Hugging Face's model, as `weights.outward` names its tensors."""
    if not name.startswith("mtp."):
        return f"model.{name}"
    _, number, rest = name.split(".", 2)
    return f"model.layers.{model.config.num_hidden_layers + int(number)}.{rest.removeprefix('block.')}"

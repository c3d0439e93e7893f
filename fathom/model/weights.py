"""A model directory: save, load, Hugging Face's names.

The names and the config are those of `deepseek_v3` (latent attention) and `llama` (grouped-query attention, dense), one
tensor per expert, as the published checkpoints have them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fathom.core import disk
from fathom.core.config import build
from fathom.core.errors import FathomError
from fathom.model.config import ModelConfig
from fathom.model.pretrained import locate
from fathom.model.tokenizer import Tokenizer
from fathom.model.transformer import Transformer

WEIGHTS = "model.safetensors"


def save(directory: Path, model: Transformer, tokenizer: Tokenizer, card: str = "") -> None:
    """Writes `directory` whole or not at all: config, weights, tokenizer, chat template, model card."""
    config = hugging_face_config(model.config, tokenizer, model.embed_tokens.weight.dtype)
    with disk.commit(directory) as folder:
        folder.write("config.json", json.dumps(config, indent=2, sort_keys=True).encode())
        for name, content in tokenizer.files().items():
            folder.write(name, content)
        folder.write("README.md", (card or _card(model)).encode())
        entries = [(name, list(t.shape), t.dtype, lambda t=t: t) for name, t in outward(model).items()]
        write_stream(folder.path(WEIGHTS), entries)


def load(directory: Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> tuple[
    Transformer, Tokenizer
]:
    """The model and tokenizer of a directory, a GGUF file or a packaged model (see `resolve`).

    Tensors missing, unexpected or of wrong shape are named; nothing is loaded then.
    """
    directory = resolve(directory)
    if not directory.is_dir():
        raise FathomError(f"{directory}: no such directory; a model directory holds config.json and {WEIGHTS}")
    if disk.is_complete(directory):
        disk.verify(directory)
    config = read_config(directory)
    tokenizer = Tokenizer.load(directory)
    if tokenizer.vocab_size > config.vocab_size:
        raise FathomError(f"{directory}: the tokenizer knows {tokenizer.vocab_size} tokens, the model has rows for "
                          f"{config.vocab_size}; they do not belong together: take both from one model")
    path = directory / WEIGHTS
    if not path.is_file():
        raise FathomError(f"{path}: no such file; copy the weights there, or run the stage that writes them")
    try:
        with safe_open(path, framework="pt") as stored:
            with torch.device("meta"):
                expected = outward(Transformer(config))
            _compare(path, {n: stored.get_slice(n).get_shape() for n in stored.keys()},  # noqa: SIM118
                     {n: list(t.shape) for n, t in expected.items()})
            kind = dtype or stored.get_tensor("model.embed_tokens.weight").dtype
            if not kind.is_floating_point:
                raise FathomError(f"{path}: model.embed_tokens.weight is {kind}, weights must be bfloat16, float16 or "
                                  "float32; if the model is quantised, take its unquantised version")
            model = Transformer(config).to(device=device, dtype=kind)
            with torch.no_grad():
                for name, target in outward(model).items():
                    target.copy_(stored.get_tensor(name))
    except SafetensorError as error:
        raise FathomError(f"{path}: not a whole safetensors file ({error}); copy or write it again") from error
    return model, tokenizer


Entry = tuple[str, list[int], torch.dtype, Callable[[], Tensor]]  # name, shape, type, and how to get the tensor


def write_stream(path: Path, entries: Sequence[Entry]) -> None:
    """A safetensors file whose tensors are fetched one after another, so that only one is in memory at a time."""
    kinds = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
    place = 0
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, shape, dtype, _ in entries:
        if dtype not in kinds:
            raise FathomError(f"{name}: {dtype}: weights are written as {', '.join(map(str, kinds))}; convert it")
        size = math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": kinds[dtype], "shape": shape, "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # data begins at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape, dtype, get in entries:
            tensor = get().detach()
            if list(tensor.shape) != shape or tensor.dtype != dtype:
                raise FathomError(f"{name}: {list(tensor.shape)} {tensor.dtype}, announced was {shape} {dtype}; the "
                                  "file it comes from is damaged: get it again")
            file.write(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)


def resolve(path: Path) -> Path:
    """The model directory behind what a user wrote: itself, or what a GGUF file was converted to, in the cache."""
    place = locate(path)
    if place.suffix == ".gguf":
        from fathom.model import gguf

        return gguf.directory(place)
    return place


def outward(model: Transformer) -> dict[str, Tensor]:
    """The model's tensors under Hugging Face's names; each is a view of the parameter, so writing to it loads it."""
    named: dict[str, Tensor] = {}
    layers = model.config.num_hidden_layers
    for name, tensor in model.state_dict(keep_vars=False).items():
        if name.startswith("mtp."):
            _, k, rest = name.split(".", 2)
            place = f"model.layers.{layers + int(k)}."
            rest = rest.removeprefix("block.")
            name = place + ("shared_head.norm.weight" if rest == "norm.weight" else rest)
        elif name == "lm_head.weight":
            if not model.config.tie_word_embeddings:
                named[name] = tensor
            continue
        else:
            name = f"model.{name}"
        if name.endswith("experts.gate_up_proj"):
            half = tensor.shape[1] // 2
            for e in range(tensor.shape[0]):
                stem = name.replace("gate_up_proj", f"{e}.")
                named[f"{stem}gate_proj.weight"], named[f"{stem}up_proj.weight"] = tensor[e, :half], tensor[e, half:]
        elif name.endswith("experts.down_proj"):
            for e in range(tensor.shape[0]):
                named[name.replace("down_proj", f"{e}.down_proj.weight")] = tensor[e]
        else:
            named[name] = tensor
    for number in range(len(model.mtp)):  # the released layer carries copies of the shared embedding and head
        place = f"model.layers.{layers + number}."
        named[f"{place}embed_tokens.weight"] = model.embed_tokens.weight.detach()
        named[f"{place}shared_head.head.weight"] = model.lm_head.weight.detach()
    return named


def hugging_face_config(config: ModelConfig, tokenizer: Tokenizer, dtype: torch.dtype) -> dict[str, Any]:
    """`config.json` for transformers: the config's own fields and those that it derives."""
    fields = config.model_dump()
    del fields["attention"], fields["rope_interleave"]
    common: dict[str, Any] = {
        **fields, "bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "hidden_act": "silu",
        "attention_bias": False, "attention_dropout": 0.0, "torch_dtype": str(dtype).removeprefix("torch."),
        "rope_interleave": config.rope_interleave,
    }
    if config.attention == "mla":
        drop = ("num_key_value_heads", "head_dim")
        return {
            **{k: v for k, v in common.items() if k not in drop},
            "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"],
            "num_key_value_heads": config.num_attention_heads, "n_group": 1, "topk_group": 1,
            "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True, "moe_layer_freq": 1,
            "first_k_dense_replace": config.first_k_dense_replace if config.n_routed_experts
            else config.num_hidden_layers,
        }
    if config.n_routed_experts or config.rope_interleave or config.num_nextn_predict_layers:
        # no published family has this shape: the file is ours alone and says so
        return {**common, "model_type": "fathom", "attention": "gqa"}
    keep = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
            "intermediate_size", "rope_theta", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings",
            "initializer_range", "bos_token_id", "eos_token_id", "hidden_act", "attention_bias", "attention_dropout",
            "torch_dtype")
    return {**{k: common[k] for k in keep}, "model_type": "llama", "architectures": ["LlamaForCausalLM"],
            "mlp_bias": False}


def read_config(directory: Path) -> ModelConfig:
    """The ModelConfig of a directory; what this version cannot compute is refused by name."""
    path = resolve(directory) / "config.json"
    raw = disk.read_json(path)
    kind = raw.get("model_type")
    if kind not in ("deepseek_v3", "llama", "fathom"):
        raise FathomError(f"{path}: model_type={kind!r:.80}; this version loads deepseek_v3 and llama: choose such a "
                          "model")
    must: dict[str, Any] = {
        "rope_scaling": None, "attention_bias": False, "hidden_act": "silu", "quantization_config": None,
    }
    if kind == "deepseek_v3":
        must |= {"n_group": 1, "topk_group": 1, "scoring_func": "sigmoid", "norm_topk_prob": True}
    for name, value in must.items():
        if raw.get(name, value) != value:
            raise FathomError(f"{path}: {name}={raw[name]!r:.80}; this version computes {name}={value!r} only: choose "
                              "a model with that value")
    fields = {name: raw[name] for name in ModelConfig.model_fields if raw.get(name) is not None}
    fields["attention"] = "mla" if kind == "deepseek_v3" else "gqa"
    fields.setdefault("rope_interleave", kind != "llama")
    return build(ModelConfig, fields, str(path))


def _compare(path: Path, stored: dict[str, list[int]], expected: dict[str, list[int]]) -> None:
    problems = (
        [f"{name}: missing" for name in expected if name not in stored]
        + [f"{name}: not part of this model" for name in stored if name not in expected]
        + [f"{name}: shape {stored[name]}, the config asks for {expected[name]}"
           for name in expected if name in stored and stored[name] != expected[name]]
    )
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        listed = "; ".join(problems[:5]) + more
        raise FathomError(f"{path}: {listed}; config.json and the weights do not belong together: take both from one "
                          "model")


def _card(model: Transformer) -> str:
    parameters = sum(p.numel() for p in model.parameters())
    return f"# A language model trained with Fathom\n\n{parameters:,} parameters; the layout is in `config.json`.\n"

"""Names of tensors: Hugging Face's (one tensor per expert, or fused), and those of DeepSeek's inference demo.

Hugging Face's split names are the ones that everything inside speaks; the others are turned into them and back.
"""

# E experts, I expert width, D model

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import Tensor

from fathom.model.config import ModelConfig
from fathom.model.transformer import Transformer

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BIAS = "e_score_correction_bias"  # FP32 always
SCALE = "_scale_inv"  # FP8 weights have their scales under their own name and this
IGNORED = re.compile(r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq")  # old Llama files carry the buffer
LAYER = re.compile(r"model\.layers\.(\d{1,9})\.")

# Hugging Face's stem → the demo's, and the dimension that its tensor-parallel files cut
_DEMO = {
    "embed_tokens": ("embed", 0), "lm_head": ("head", 0), "norm": ("norm", None),
    "input_layernorm": ("attn_norm", None), "post_attention_layernorm": ("ffn_norm", None),
    "q_proj": ("wq", 0), "q_a_proj": ("wq_a", None), "q_a_layernorm": ("q_norm", None), "q_b_proj": ("wq_b", 0),
    "kv_a_proj_with_mqa": ("wkv_a", None), "kv_a_layernorm": ("kv_norm", None), "kv_b_proj": ("wkv_b", 0),
    "o_proj": ("wo", 1), "gate": ("gate", None), "gate_proj": ("w1", 0), "down_proj": ("w2", 1), "up_proj": ("w3", 0),
}
_BACK = {theirs: (ours, dim) for ours, (theirs, dim) in _DEMO.items()}
_DEMO_NAME = re.compile(
    r"(?:layers\.(?P<layer>\d{1,9})\.)?(?:(?P<room>attn|ffn)\.)?(?:(?P<expert>experts\.\d{1,9})\.|(?P<shared>"
    r"shared_experts)\.)?(?P<stem>\w+)\.(?P<kind>weight|scale|bias)")


def to_demo(name: str) -> str:
    """The demo's name of a tensor that Hugging Face calls `name`; layers for multi-token prediction have none."""
    head, _, kind = name.rpartition(".")
    room, _, stem = head.rpartition(".")
    room = room.removeprefix("model.").removeprefix("model").replace("self_attn", "attn").replace("mlp", "ffn")
    last = {"weight": "weight", f"weight{SCALE}": "scale", BIAS: "bias"}[kind]
    return ".".join(part for part in (room, _DEMO[stem][0], last) if part)


def from_demo(name: str) -> tuple[str, int | None] | None:
    """Hugging Face's name of the demo's tensor `name`, and the dimension that files of several ranks cut.

    None where the demo has no such name. Whole experts lie in one file each, and the rest in every file.
    """
    found = _DEMO_NAME.fullmatch(name)
    if found is None or found["stem"] not in _BACK:
        return None
    stem, dim = _BACK[found["stem"]]
    if found["kind"] == "bias" and stem != "gate":
        return None
    kind = {"weight": "weight", "scale": f"weight{SCALE}", "bias": BIAS}[found["kind"]]
    room = {"attn": "self_attn", "ffn": "mlp", None: None}[found["room"]]
    layer = None if found["layer"] is None else f"layers.{found['layer']}"
    parts = [None if stem == "lm_head" else "model", layer, room, found["expert"] or found["shared"], stem, kind]
    ours = ".".join(part for part in parts if part)
    if found["kind"] == "weight" and to_demo(ours) != name:
        return None
    return ours, None if found["expert"] else dim


def outward(model: Transformer) -> dict[str, Tensor]:
    """The model's tensors under Hugging Face's names; each is a view of the parameter, so writing to it loads it."""
    named = {name: part for inside, tensor in model.state_dict(keep_vars=False).items()
             for name, part in spread(model.config, inside, tensor)}
    tensors = {EMBEDDING: model.embed_tokens.weight, HEAD: model.lm_head.weight}
    return named | {copy: tensors[of].detach() for copy, of in copies(model.config).items() if copy != HEAD}


def copies(config: ModelConfig) -> dict[str, str]:
    """Names of tensors that only repeat another one, and which.

    The released layer for multi-token prediction carries the shared embedding and head; a tied head may be written out.
    """
    head = EMBEDDING if config.tie_word_embeddings else HEAD
    named = {HEAD: EMBEDDING} if config.tie_word_embeddings else {}
    for number in range(config.num_nextn_predict_layers):
        place = f"model.layers.{config.num_hidden_layers + number}."
        named |= {f"{place}embed_tokens.weight": EMBEDDING, f"{place}shared_head.head.weight": head}
    return named


def spread(config: ModelConfig, inside: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Hugging Face's names, and the views, of the tensor that the Transformer's state calls `inside`.

    A tied head has none: it is the embedding.
    """
    if inside == "lm_head.weight":
        if not config.tie_word_embeddings:
            yield inside, tensor
        return
    name = f"model.{inside}"
    if inside.startswith("mtp."):
        _, k, rest = inside.split(".", 2)
        rest = rest.removeprefix("block.")
        rest = "shared_head.norm.weight" if rest == "norm.weight" else rest
        name = f"model.layers.{config.num_hidden_layers + int(k)}.{rest}"
    if name.endswith("experts.gate_up_proj"):
        half = tensor.shape[1] // 2
        for e in range(tensor.shape[0]):
            stem = name.removesuffix("gate_up_proj")
            yield f"{stem}{e}.gate_proj.weight", tensor[e, :half]
            yield f"{stem}{e}.up_proj.weight", tensor[e, half:]
    elif name.endswith("experts.down_proj"):
        for e in range(tensor.shape[0]):
            yield f"{name.removesuffix('down_proj')}{e}.down_proj.weight", tensor[e]
    else:
        yield name, tensor


def quantised(name: str) -> bool:
    """Whether the published FP8 files hold this tensor in FP8: projections of attention, feed-forward and experts."""
    stem = name.rpartition(".")[0].rpartition(".")[2]
    return name.endswith(".weight") and (stem.endswith("_proj") or stem == "kv_a_proj_with_mqa") and stem != "eh_proj"

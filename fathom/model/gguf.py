"""GGUF in: a file of llama.cpp's format becomes a model directory, tensor by tensor, once.

Quantised blocks are taken apart by the `gguf` package's own reference code; what each key means, how the rows of
queries and keys are ordered, and which pre-tokenizer a name stands for is ours.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fathom.core import disk
from fathom.core.config import build
from fathom.core.errors import FathomError
from fathom.model import weights
from fathom.model.config import ModelConfig
from fathom.model.tokenizer import Tokenizer
from fathom.model.weights.directory import opened, same, write_about
from fathom.model.weights.streamed import probe, streamed

if TYPE_CHECKING:
    import tokenizers

ARCHITECTURES = ("llama", "qwen2", "qwen3")
# the GGUF keys of one architecture, {a} standing for its name
FIELDS = {
    "num_hidden_layers": "{a}.block_count", "max_position_embeddings": "{a}.context_length",
    "hidden_size": "{a}.embedding_length", "intermediate_size": "{a}.feed_forward_length",
    "num_attention_heads": "{a}.attention.head_count", "num_key_value_heads": "{a}.attention.head_count_kv",
    "rope_theta": "{a}.rope.freq_base", "rms_norm_eps": "{a}.attention.layer_norm_rms_epsilon",
}
BLOCK = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
CONTROL, USER_DEFINED = 3, 4  # kinds of token in tokenizer.ggml.token_type


def directory(path: Path, dtype: torch.dtype = torch.bfloat16, cache: Path | None = None) -> Path:
    """The model directory that `path` was converted to, converting it now if that was never done.

    It lies in `cache` (FATHOM_CACHE, else ~/.cache/fathom), named by the file's name, size, time and `dtype`.
    """
    about = path.stat() if path.is_file() else None
    if about is None:
        raise FathomError(f"{path}: no such file; give the path of a .gguf file")
    root = cache or Path(os.environ.get("FATHOM_CACHE", Path.home() / ".cache" / "fathom"))
    kind = str(dtype).removeprefix("torch.")
    target = root / f"{path.stem}-{about.st_size}-{about.st_mtime_ns}-{kind}"
    if not disk.is_complete(target):
        convert(path, target, dtype)
    return target


def convert(path: Path, target: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Writes the model directory `target` from a GGUF file of a dense architecture, a tensor at a time.

    What was written is read back and must give the logits of the file's own numbers before it gets its name.
    """
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise FathomError("reading GGUF needs the package gguf; pip install 'fathom-reasoning[gguf]'") from error
    try:
        reader = gguf.GGUFReader(path)
        values = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, OSError, IndexError, KeyError, UnicodeDecodeError) as error:
        if "GGMLQuantizationType" in str(error):
            number = re.findall(r"\d+", str(error))[-1]
            raise FathomError(f"{path}: a tensor is stored as type {number}, which the installed gguf package does not "
                              "know; pip install --upgrade gguf, or use a file in Q4_K_M, Q6_K, Q8_0 or F16") from error
        raise FathomError(f"{path}: not a whole GGUF file ({str(error)[:120]}); download it again") from error
    named = {tensor.name: tensor for tensor in reader.tensors}
    for kind, tensor in {tensor.tensor_type: tensor for tensor in reader.tensors}.items():
        try:  # one block of zeros, so that this is known before anything is written
            gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError as error:
            raise FathomError(f"{path}: tensor {tensor.name} is stored as {kind.name}, which the gguf package cannot "
                              "take apart; use a file in Q4_K_M, Q6_K, Q8_0 or F16") from error
    config = _config(path, values, tied="output.weight" not in named)
    tokenizer = _tokenizer(path, values)

    outside = {_name(path, name): tensor for name, tensor in named.items()}

    def read(name: str) -> Tensor:
        exact = torch.from_numpy(np.array(gguf.quants.dequantize(outside[name].data, outside[name].tensor_type)))
        paired = values["general.architecture"] == "llama"
        return (_reordered(name, exact, config) if paired else exact).to(dtype)

    def fill(targets: Mapping[str, Tensor]) -> None:
        for name, target in targets.items():
            target.copy_(read(name))

    with disk.commit(target) as folder:
        settings = weights.hugging_face_config(config, tokenizer, dtype)
        about = f"{values.get('general.name', path.stem)}, converted from {path.name}."
        write_about(folder, settings, config, tokenizer, {}, about, str(values.get("general.license", "unknown")))
        file = folder.path(weights.WEIGHTS)
        weights.write_stream(file, [
            (name, [int(n) for n in reversed(tensor.shape)], dtype, partial(read, name))
            for name, tensor in outside.items()])
        described, stored = opened(file.parent)
        same(target, probe(streamed(config, fill, dtype)), probe(streamed(described.config, stored.fill, dtype)))


def _config(path: Path, values: dict[str, Any], tied: bool) -> ModelConfig:
    kind = values.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise FathomError(f"{path}: architecture {kind!r}; this version reads {', '.join(ARCHITECTURES)} from GGUF; "
                          "convert another model's Hugging Face directory instead")
    for key in (f"{kind}.rope.scaling.type", f"{kind}.rope.scaling.factor"):
        if values.get(key) not in (None, "none"):
            raise FathomError(f"{path}: {key}={values[key]!r}; this version does not compute scaled rotary positions; "
                              "use the model without them")
    missing = [key for key in (form.format(a=kind) for form in FIELDS.values()) if key not in values]
    if missing:
        raise FathomError(f"{path}: no {missing[0]}; the file is incomplete, download it again")
    fields = {name: values[form.format(a=kind)] for name, form in FIELDS.items()}
    fields["rms_norm_eps"] = float(f"{fields['rms_norm_eps']:.6g}")  # stored as FP32: 1e-5 comes back as 9.9999997e-6
    width = fields["hidden_size"] // fields["num_attention_heads"]
    return build(ModelConfig, fields | {
        "attention": "gqa", "head_dim": values.get(f"{kind}.attention.key_length", width), "rope_interleave": False,
        "vocab_size": len(values["tokenizer.ggml.tokens"]), "tie_word_embeddings": tied, "n_routed_experts": 0,
        "qkv_bias": kind == "qwen2", "qk_norm": kind == "qwen3",
    }, str(path))


def _name(path: Path, name: str) -> str:
    """The Hugging Face name of a GGUF tensor."""
    stem, _, kind = name.rpartition(".")
    if stem in OUTER:
        return f"{OUTER[stem]}.{kind}"
    parts = stem.split(".")
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in BLOCK:
        return f"model.layers.{parts[1]}.{BLOCK[parts[2]]}.{kind}"
    raise FathomError(f"{path}: tensor {name}: not part of the architectures that are read; convert another file")


def _reordered(name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """llama.cpp turns neighbouring channels and has reordered the rows of queries and keys for it; halves come back."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None:
        return tensor
    return tensor.reshape(heads, -1, 2, tensor.shape[-1]).transpose(1, 2).reshape(tensor.shape)


def _tokenizer(path: Path, values: dict[str, Any]) -> Tokenizer:
    from tokenizers import AddedToken, decoders, models
    from tokenizers import Tokenizer as Backend

    if values.get("tokenizer.ggml.model") != "gpt2":
        raise FathomError(f"{path}: tokenizer {values.get('tokenizer.ggml.model')!r}; byte-level BPE (gpt2) is read")
    tokens: list[str] = values["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in values["tokenizer.ggml.merges"]]
    backend = Backend(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = _pre_tokenizer(path, str(values.get("tokenizer.ggml.pre")))
    backend.decoder = decoders.ByteLevel()
    kinds = values["tokenizer.ggml.token_type"]
    for i, token in enumerate(tokens):
        if kinds[i] in (CONTROL, USER_DEFINED):
            added = AddedToken(token, normalized=False, special=kinds[i] == CONTROL)
            backend.add_special_tokens([added]) if kinds[i] == CONTROL else backend.add_tokens([added])
    template = values.get("tokenizer.chat_template")
    if not template:
        raise FathomError(f"{path}: no chat template in the file; take an instruction-tuned model")
    named = [tokens[values[f"tokenizer.ggml.{role}_token_id"]] for role in ("bos", "eos")]
    return Tokenizer(backend, template, *named)


def _pre_tokenizer(path: Path, name: str) -> tokenizers.pre_tokenizers.PreTokenizer:
    """How text is cut before merging, by llama.cpp's name for it."""
    from tokenizers import Regex, pre_tokenizers

    match name:
        case "smollm":
            parts = [pre_tokenizers.Digits(individual_digits=True),
                     pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
        case "qwen2":
            pattern = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                       r"|\s*[\r\n]+|\s+(?!\S)|\s+")
            parts = [pre_tokenizers.Split(Regex(pattern), "isolated"),
                     pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        case _:
            raise FathomError(f"{path}: pre-tokenizer {name!r}; this version knows smollm and qwen2")
    return pre_tokenizers.Sequence(parts)

"""GGUF in: a file of llama.cpp's format becomes a model directory, tensor by tensor, once.

Quantised blocks are taken apart by the `gguf` package's own reference code; what each key means, how the rows of
queries and keys are ordered, and which pre-tokenizer a name stands for is ours.
"""

from __future__ import annotations

import logging
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
from fathom.model.cost import cost
from fathom.model.tokenizer import Tokenizer
from fathom.model.weights.directory import opened, own, same, write_about
from fathom.model.weights.header import shown, valued
from fathom.model.weights.streamed import blank, probe, streamed

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
# keys that would change the numbers, and the values with which they change nothing; in llama.cpp 0 often means unset
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "rope.scaling.type": ("none",), "rope.scaling.factor": (0.0, 1.0), "rope.scale_linear": (0.0, 1.0),
    "rope.scaling.attn_factor": (0.0, 1.0), "attention.scale": (0.0,), "attention.causal": (True,),
    "attention.sliding_window": (0,), "attention.clamp_kqv": (0.0,), "attention.max_alibi_bias": (0.0,),
    "logit_scale": (0.0, 1.0), "residual_scale": (0.0, 1.0), "embedding_scale": (0.0, 1.0), "expert_count": (0,),
    "expert_used_count": (0,), "attn_logit_softcapping": (0.0,), "final_logit_softcapping": (0.0,),
    "use_parallel_residual": (False,), "pooling_type": (0,),
}
# keys that say nothing new about the numbers: rows are counted in the tensors, the others belong to scaled positions
HARMLESS = ("vocab_size", "tensor_data_layout", "rope.scaling.original_context_length", "rope.scaling.finetuned")
WIDTHS = ("attention.key_length", "attention.value_length", "rope.dimension_count")  # all of them one head's
BLOCK = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
CONTROL, USER_DEFINED = 3, 4  # kinds of token in tokenizer.ggml.token_type
_log = logging.getLogger(__name__)


def directory(path: Path, dtype: torch.dtype | None = None, cache: Path | None = None) -> Path:
    """The model directory that `path` was converted to, converting it now if that was never done.

    It lies in `cache` (FATHOM_CACHE, else ~/.cache/fathom), named by the file's name, size, time and `dtype`. Without a
    `dtype` it holds float32 where the file's matrices do, else bfloat16; a warning says when that rounds.
    """
    about = path.stat() if path.is_file() else None
    if about is None:
        raise FathomError(f"{path}: no such file; give the path of a .gguf file")
    root = cache or Path(os.environ.get("FATHOM_CACHE", Path.home() / ".cache" / "fathom"))
    kind = str(dtype).removeprefix("torch.") if dtype else "stored"
    target = root / f"{path.stem}-{about.st_size}-{about.st_mtime_ns}-{kind}"
    if not disk.is_complete(target):
        convert(path, target, dtype)
    return target


def convert(path: Path, target: Path, dtype: torch.dtype | None = None) -> None:
    """Writes the model directory `target` from a GGUF file of a dense architecture, a tensor at a time.

    `dtype` is the type of what is written; None: see `directory`. A key of the architecture that this version does not
    compute, and tensors that are not those of the settings, are refused by name before anything is written.
    What was written is read back and must give the logits of the file's own numbers before it gets its name.
    """
    values, named = _read(path)
    import gguf  # it is there: the file was read with it

    for kind, tensor in {tensor.tensor_type: tensor for tensor in named.values()}.items():
        try:  # one block of zeros, so that this is known before anything is written
            gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except NotImplementedError as error:
            raise FathomError(f"{path}: tensor {shown(tensor.name)} is stored as {kind.name}, which the gguf package "
                              "cannot take apart; use a file in Q4_K_M, Q6_K, Q8_0 or F16") from error
    config = _config(path, values, tied="output.weight" not in named)
    tokenizer = _tokenizer(path, values)
    outside = {_name(path, name): tensor for name, tensor in named.items()}
    _fits(path, config, {name: [int(n) for n in reversed(tensor.shape)] for name, tensor in outside.items()})
    kinds = {tensor.tensor_type.name for tensor in outside.values() if len(tensor.shape) > 1}
    dtype = dtype or _written_as(path, kinds)

    def read(name: str) -> Tensor:
        exact = torch.from_numpy(np.array(gguf.quants.dequantize(outside[name].data, outside[name].tensor_type)))
        paired = values["general.architecture"] == "llama"
        made = (_reordered(name, exact, config) if paired else exact).to(dtype)
        if dtype == torch.float16 and not bool(made.isfinite().all()):
            raise FathomError(f"{path}: {name}: holds numbers beyond 65504, the largest of float16; choose bfloat16 or "
                              "float32")
        return made

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


def read_config(path: Path) -> ModelConfig:
    """The ModelConfig of a GGUF file, which is not converted for it."""
    values, named = _read(path)
    return _config(path, values, tied="output.weight" not in named)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys of a file and its tensors, by their names in it; their numbers stay on the disk."""
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise FathomError("reading GGUF needs the package gguf; pip install 'fathom-reasoning[gguf]'") from error
    if not path.is_file():
        raise FathomError(f"{path}: no such file; give the path of a .gguf file")
    try:
        reader = gguf.GGUFReader(path)
        values = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # the package trusts the file: what is damaged makes it raise anything
        if "GGMLQuantizationType" in str(error):
            number = re.findall(r"\d+", str(error))[-1]
            raise FathomError(f"{path}: a tensor is stored as type {number}, which the installed gguf package does not "
                              "know; pip install --upgrade gguf, or use a file in Q4_K_M, Q6_K, Q8_0 or F16") from error
        raise FathomError(f"{path}: not a whole GGUF file ({str(error)[:120]}); download it again") from error
    return values, {tensor.name: tensor for tensor in reader.tensors}


def _config(path: Path, values: dict[str, Any], tied: bool) -> ModelConfig:
    kind = values.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise FathomError(f"{path}: architecture {kind!r}; this version reads {', '.join(ARCHITECTURES)} from GGUF; "
                          "convert another model's Hugging Face directory instead")
    for key, value in values.items():
        about, _, last = key.partition(".")
        if about != kind or last in (*HARMLESS, *WIDTHS) or key in (form.format(a=kind) for form in FIELDS.values()):
            continue
        if last not in NEUTRAL:
            raise FathomError(f"{path}: {shown(key)}={valued(value)}; this version does not know this key of "
                              f"{kind}, which may change the numbers; convert the model's Hugging Face directory")
        if value not in NEUTRAL[last]:
            raise FathomError(f"{path}: {shown(key)}={valued(value)}; this version computes {last}="
                              f"{NEUTRAL[last][-1]!r} only; use a model with that value")
    missing = [key for key in (form.format(a=kind) for form in FIELDS.values()) if key not in values]
    if missing:
        raise FathomError(f"{path}: no {missing[0]}; the file is incomplete, download it again")
    fields = {name: values[form.format(a=kind)] for name, form in FIELDS.items()}
    for name, form in FIELDS.items():
        whole = name not in ("rope_theta", "rms_norm_eps")
        if type(fields[name]) is not (int if whole else float) or not fields[name] > 0:
            raise FathomError(f"{path}: {form.format(a=kind)}={valued(fields[name])}: must be one "
                              f"{'whole ' if whole else ''}number above 0; download the file again")
    fields["rms_norm_eps"] = float(f"{fields['rms_norm_eps']:.6g}")  # stored as FP32: 1e-5 comes back as 9.9999997e-6
    width = fields["hidden_size"] // fields["num_attention_heads"]
    width = values.get(f"{kind}.attention.key_length", width)
    for key in (f"{kind}.{last}" for last in WIDTHS):
        if values.get(key, width) != width:
            raise FathomError(f"{path}: {key}={valued(values[key])}; this version computes heads whose keys, values "
                              f"and rotary channels have one width, here {valued(width)}; use another model")
    return build(ModelConfig, fields | {
        "attention": "gqa", "head_dim": width, "rope_interleave": False,
        "vocab_size": len(_texts(path, values, "tokens")), "tie_word_embeddings": tied, "n_routed_experts": 0,
        "qkv_bias": kind == "qwen2", "qk_norm": kind == "qwen3",
    }, str(path))


def _written_as(path: Path, kinds: set[str]) -> torch.dtype:
    """The type for a file whose matrices are of these kinds, where none was asked for."""
    if kinds & {"F32", "F64"}:
        return torch.float32
    if kinds != {"BF16"}:
        _log.warning("%s: matrices are %s and are rounded to bfloat16; load with dtype=torch.float32 to keep all "
                     "digits", path, ", ".join(sorted(kinds)))
    return torch.bfloat16


def _fits(path: Path, config: ModelConfig, found: Mapping[str, list[int]]) -> None:
    """FathomError where tensors are not those of the config, by the first that differs."""
    elements = sum(torch.Size(shape).numel() for shape in found.values())
    if config.num_hidden_layers > len(found) or cost(config).parameters > 2 * elements:
        raise FathomError(f"{path}: {config.num_hidden_layers} blocks of width {config.hidden_size} and "
                          f"{config.vocab_size} tokens do not fit {len(found)} tensors of {elements} elements; "
                          "download the file again")
    asked = {name: list(tensor.shape) for name, tensor in own(blank(config)).items()}
    for name in {**asked, **found}:
        if asked.get(name) != found.get(name):
            raise FathomError(f"{path}: {name}: shape {found.get(name, 'missing')}, the file's settings ask for "
                              f"{asked.get(name, 'none such')}; they do not belong together: download it again")


def _name(path: Path, name: str) -> str:
    """The Hugging Face name of a GGUF tensor."""
    stem, _, kind = name.rpartition(".")
    if stem in OUTER:
        return f"{OUTER[stem]}.{kind}"
    parts = stem.split(".")
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in BLOCK:
        return f"model.layers.{parts[1]}.{BLOCK[parts[2]]}.{kind}"
    raise FathomError(f"{path}: tensor {shown(name)}: not part of the architectures that are read; convert another "
                      "file")


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
    tokens = _texts(path, values, "tokens")
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        twice = next(token for i, token in enumerate(tokens) if vocab[token] != i)
        raise FathomError(f"{path}: tokenizer.ggml.tokens: {valued(twice)} stands there twice; download the file again")
    merges = []
    for merge in _texts(path, values, "merges"):
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= vocab.keys():
            raise FathomError(f"{path}: tokenizer.ggml.merges: {valued(merge)}: not two tokens that make a third; "
                              "download the file again")
        merges.append((left, right))
    # Llama 3: a piece that is a token is that token, whatever merges would make of it
    whole = values.get("tokenizer.ggml.pre") == "llama-bpe"
    backend = Backend(models.BPE(vocab=vocab, merges=merges, ignore_merges=whole))
    backend.pre_tokenizer = _pre_tokenizer(path, str(values.get("tokenizer.ggml.pre")))
    backend.decoder = decoders.ByteLevel()
    kinds = values.get("tokenizer.ggml.token_type")
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        raise FathomError(f"{path}: tokenizer.ggml.token_type={valued(kinds)}: must be one number for each of "
                          f"{len(tokens)} tokens; download the file again")
    for i, token in enumerate(tokens):
        if kinds[i] in (CONTROL, USER_DEFINED):
            added = AddedToken(token, normalized=False, special=kinds[i] == CONTROL)
            backend.add_special_tokens([added]) if kinds[i] == CONTROL else backend.add_tokens([added])
    template = values.get("tokenizer.chat_template")
    if not isinstance(template, str) or not template:
        raise FathomError(f"{path}: no chat template in the file; take an instruction-tuned model")
    named = []
    for role in ("bos", "eos"):
        number = values.get(f"tokenizer.ggml.{role}_token_id")
        if type(number) is not int or not 0 <= number < len(tokens):
            raise FathomError(f"{path}: tokenizer.ggml.{role}_token_id={valued(number)}: must be the number of one of "
                              f"{len(tokens)} tokens; download the file again")
        named.append(tokens[number])
    bos, eos = named
    return Tokenizer(backend, template, bos, eos, add_bos=bool(values.get("tokenizer.ggml.add_bos_token", False)))


def _texts(path: Path, values: Mapping[str, Any], key: str) -> list[str]:
    """A list of texts among the tokenizer's keys."""
    found = values.get(f"tokenizer.ggml.{key}")
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise FathomError(f"{path}: tokenizer.ggml.{key}={valued(found)}: must be a list of texts; download the file "
                          "again")
    return found


def _pre_tokenizer(path: Path, name: str) -> tokenizers.pre_tokenizers.PreTokenizer:
    """How text is cut before merging, by llama.cpp's name for it."""
    from tokenizers import Regex, pre_tokenizers

    match name:
        case "smollm":
            parts = [pre_tokenizers.Digits(individual_digits=True),
                     pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
        case "qwen2" | "deepseek-r1-qwen" | "llama-bpe":  # they differ in digits: Llama 3 takes three together
            digits = r"\p{N}{1,3}" if name == "llama-bpe" else r"\p{N}"
            pattern = (rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
                       r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
            parts = [pre_tokenizers.Split(Regex(pattern), "isolated"),
                     pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        case _:
            raise FathomError(f"{path}: pre-tokenizer {name!r}; this version knows smollm, qwen2, "
                              "deepseek-r1-qwen and llama-bpe: convert the model's Hugging Face directory instead")
    return pre_tokenizers.Sequence(parts)

"""A model directory: save and load. What is written is read back and tried before the directory gets its name."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fathom.core import disk
from fathom.core.errors import FathomError
from fathom.model.config import ModelConfig
from fathom.model.cost import cost
from fathom.model.pretrained import locate
from fathom.model.tokenizer import Tokenizer
from fathom.model.transformer import Transformer
from fathom.model.weights import configs, names
from fathom.model.weights.configs import hugging_face_config
from fathom.model.weights.header import Entry, read_object, write_stream
from fathom.model.weights.stored import INDEX, WEIGHTS, Stored
from fathom.model.weights.streamed import blank, empty, probe, streamed

SHARD_BYTES = 5 * 10**9
LARGEST_TOKENIZER = 1 << 28  # bytes of tokenizer.json; the published ones have at most 40 MB
IN_TRANSFORMERS = ("deepseek_v2", "deepseek_v3", "llama", "qwen2", "qwen3")


def save(directory: Path, model: Transformer, tokenizer: Tokenizer, made: str = "", license: str = "unknown",
         shard_bytes: int = SHARD_BYTES) -> None:
    """Writes `directory` whole or not at all: config, weights, tokenizer, chat template, model card.

    Before it gets its name the weights are read back, a block at a time; they must be those of `model`, and with the
    config that was written they must give its logits: the same bits on the CPU. FathomError, and nothing is left, where
    they do not. `made` says on the card how the model came to be.
    """
    config = hugging_face_config(model.config, tokenizer, model.embed_tokens.weight.dtype)
    with disk.commit(directory) as folder:
        write_about(folder, config, model.config, tokenizer, {}, made, license)
        entries: list[Entry] = [
            (name, list(t.shape), t.dtype, partial(t.detach)) for name, t in names.outward(model).items()]
        here = write_shards(folder, entries, shard_bytes)
        described, stored = opened(here)
        weight, wanted = model.embed_tokens.weight, names.outward(model)

        def fill(targets: Mapping[str, Tensor]) -> None:
            stored.fill(targets)
            for name, tensor in targets.items():
                if not torch.equal(tensor, wanted[name]):
                    raise otherwise(directory, f"{name} differs from what was to be written")

        again = probe(streamed(described.config, fill, weight.dtype, weight.device), weight.device)
        same(directory, probe(model, weight.device), again, exact=weight.device.type == "cpu")


def load(directory: Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> tuple[
    Transformer, Tokenizer
]:
    """The model and tokenizer of a directory, a GGUF file or a packaged model (see `resolve`).

    Weights come as `dtype`. Without it they come in one type, the one that the config states (`dtype`, `torch_dtype`)
    if tensors are stored in it, else the one that most of the bytes are stored in; FP8 blocks count as the bfloat16
    that they become, and the routers' selection bias is FP32 always. A warning counts the tensors that this rounds.

    Tensors missing, unexpected or of wrong shape or type are named before anything is allocated, and a file that is
    replaced meanwhile is refused. Beside the model, only a few megabytes are used.
    """
    directory = resolve(Path(directory), dtype)
    if not directory.is_dir():
        raise FathomError(f"{directory}: no such directory; a model directory holds config.json and {WEIGHTS}")
    if disk.is_complete(directory):
        disk.verify(directory)
    described, stored = opened(directory)
    tokenizer = read_tokenizer(directory, described.config)
    if dtype is None:
        stored.warn_of_rounding()
    model = empty(described.config, dtype or stored.dtype, device)
    stored.fill(own(model))
    return model, tokenizer


def read_config(directory: Path) -> ModelConfig:
    """The ModelConfig of a directory; what this version cannot compute is refused by name."""
    place = locate(directory)
    if place.suffix == ".gguf":
        from fathom.model import gguf

        return gguf.read_config(place)
    return configs.read(place).config


def opened(directory: Path) -> tuple[configs.Described, Stored]:
    """What the config of a directory says and its weights, which fit it in names, shapes and types."""
    if not (directory / "config.json").is_file() and (directory / "model" / "config.json").is_file():
        raise FathomError(f"{directory}: is a stage, not a model; did you mean {directory / 'model'}?")
    described = configs.read(directory)
    stored = Stored(directory, described.dtype)
    stored.bounded(described.config)
    stored.check(described.config, {name: t.shape for name, t in own(blank(described.config)).items()})
    if stored.fp8 and described.fp8 is None:
        raise FathomError(f"{stored.where}: holds FP8 blocks, and config.json does not say of what form; add the "
                          "quantization_config of the model that they come from")
    stored.check_copies(described.config)
    return described, stored


def own(model: Transformer) -> dict[str, Tensor]:
    """The tensors that a model reads, by Hugging Face's names: all but copies of others."""
    repeated = names.copies(model.config)
    return {name: tensor for name, tensor in names.outward(model).items() if name not in repeated}


def read_tokenizer(directory: Path, config: ModelConfig) -> Tokenizer:
    """The tokenizer of a directory, which must not know more tokens than the model has rows."""
    path = directory / "tokenizer.json"
    if path.is_file() and path.stat().st_size > LARGEST_TOKENIZER:
        raise FathomError(f"{path}: {path.stat().st_size} bytes; at most {LARGEST_TOKENIZER} are read: is it the right "
                          "file?")
    tokenizer = Tokenizer.load(directory)
    if tokenizer.vocab_size > config.vocab_size:
        raise FathomError(f"{directory}: the tokenizer knows {tokenizer.vocab_size} tokens, the model has rows for "
                          f"{config.vocab_size}; they do not belong together: take both from one model")
    return tokenizer


def resolve(path: Path, dtype: torch.dtype | None = None) -> Path:
    """The model directory behind what a user wrote: itself, or what a GGUF file was converted to, in the cache.

    `dtype` is what a GGUF file's numbers are wanted as, see `gguf.directory`.
    """
    place = locate(path)
    if place.suffix == ".gguf":
        from fathom.model import gguf

        # the file's numbers are dequantised in FP32; what float16 cannot hold is named when the directory is read
        if dtype is not None:
            dtype = {torch.float64: torch.float32, torch.float16: None}.get(dtype, dtype)
        return gguf.directory(place, dtype)
    return place


def same(directory: Path, expected: Tensor, found: Tensor, exact: bool = True) -> None:
    """FathomError where logits of what was written are not those of the model.

    `exact` asks for equal bits; a GPU may choose another kernel for another place in memory, and is allowed 16 units in
    the last place of the largest logit.
    """
    if torch.equal(found, expected):
        return
    largest = float(expected.abs().max())
    off = float((found.double() - expected.double()).abs().max()) if found.shape == expected.shape else math.inf
    if exact or not off <= 16 * torch.finfo(expected.dtype).eps * max(1.0, largest):
        raise otherwise(directory, f"what was written gives other logits than the model (by {off:.3g}, the largest is "
                        f"{largest:.3g})")


def otherwise(directory: Path, what: str) -> FathomError:
    """What is said where a directory does not read back as it should."""
    return FathomError(f"{directory}: {what}, so nothing was kept; the disk or memory may be faulty: check them and "
                       "try again")


def write_about(folder: disk.Commit, config: Mapping[str, Any], shape: ModelConfig, tokenizer: Tokenizer,
                generation: Mapping[str, Any], made: str, license: str) -> None:
    """The small files of a directory: configs, tokenizer, template, card. `generation` is kept beside the token ids."""
    def dump(value: Mapping[str, Any]) -> bytes:
        return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()

    folder.write("config.json", dump(config))
    folder.write("generation_config.json", dump({**configs.token_ids(tokenizer), **generation}))
    for name, content in tokenizer.files().items():
        folder.write(name, content)
    folder.write("README.md", card(shape, made, license, opens="model_type" in config))


def write_shards(folder: disk.Commit, entries: Sequence[Entry], shard_bytes: int) -> Path:
    """The weights, in files of at most `shard_bytes` where no tensor alone is larger, with an index if there are
    several; the directory that they lie in while it is written."""
    shards: list[list[Entry]] = [[]]
    total = held = 0
    for entry in entries:
        size = math.prod(entry[1]) * entry[2].itemsize
        if shards[-1] and held + size > shard_bytes:
            shards.append([])
            held = 0
        shards[-1].append(entry)
        held += size
        total += size
    if len(shards) == 1:
        path = folder.path(WEIGHTS)
        write_stream(path, entries)
        return path.parent
    listed: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        path = folder.path(name)
        write_stream(path, shard)
        listed |= dict.fromkeys((entry[0] for entry in shard), name)
    index = {"metadata": {"total_size": total}, "weight_map": listed}
    folder.write(INDEX, (json.dumps(index, indent=2) + "\n").encode())
    return path.parent


def read_generation(directory: Path) -> dict[str, Any]:
    """The fields of a directory's generation_config.json; none where there is no such file."""
    path = directory / "generation_config.json"
    return read_object(path) if path.is_file() else {}


def card(config: ModelConfig, made: str = "", license: str = "unknown", opens: bool = True) -> str:
    """A model card: what Hugging Face reads between the dashes, then shape, parameters, origin, and how to load it."""
    family = config.family
    known = opens and family in IN_TRANSFORMERS  # the demo's own config is nothing that transformers knows
    bill = cost(config)
    rows: dict[str, object] = {
        "family": family, "layers": config.num_hidden_layers, "width": config.hidden_size,
        "attention":
            f"{'latent' if config.attention == 'mla' else 'grouped-query'}, {config.num_attention_heads} heads",
        "vocabulary": config.vocab_size, "longest sequence": config.max_position_embeddings,
        "parameters": f"{bill.parameters:,}",
        "parameters a token passes": f"{bill.active:,}",
    }
    if config.n_routed_experts:
        rows["experts"] = (f"{config.n_routed_experts} routed, {config.num_experts_per_tok} of them for a token, "
                           f"{config.n_shared_experts} shared")
    if config.num_nextn_predict_layers:
        rows["parameters for predicting one token further"] = f"{bill.mtp_active:,} a token passes"
    lines = ["---", f"license: {license}", f"library_name: {'transformers' if known else 'fathom'}",
             "pipeline_tag: text-generation", "tags:", "- fathom", f"- {family}", "---", "", "# A language model", "",
             made or "Written by Fathom.", "", "| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items()), "",
             "## How to load it", "", "```python", "from pathlib import Path", "from fathom.model import weights", "",
             'model, tokenizer = weights.load(Path("this/directory"))', "```"]
    if known:
        lines += ["", "```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", "",
                  'model = AutoModelForCausalLM.from_pretrained("this/directory")',
                  'tokenizer = AutoTokenizer.from_pretrained("this/directory")', "```"]
    return "\n".join(lines) + "\n"



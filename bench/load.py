"""Reading and writing checkpoints: `python -m bench load [--gb 4] [--dir DIR]`.

The peer is safetensors' own plain read: `load_file` of every shard, each tensor copied out of the mapped file, so that
the bytes are read as ours are. Both read from the page cache, which the rounds that are not counted fill. Memory is the
largest resident size of a fresh process that does one load, over what it had after its imports.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bench.measure import HEAD, Pair, interleave, save
from fathom.core import disk
from fathom.model import weights
from fathom.model.config import ModelConfig
from fathom.model.cost import cost
from fathom.model.tokenizer import Tokenizer
from fathom.model.transformer import Transformer

SHARDS = 8  # a checkpoint is cut into about so many
BAR = 1 / 1.3  # ours may take 1.3 times as long


def config(gb: float) -> ModelConfig:
    """A model with experts whose BF16 weights take about `gb` · 10⁹ bytes."""
    made = ModelConfig(
        vocab_size=32768, hidden_size=2048, num_hidden_layers=1, num_attention_heads=16, kv_lora_rank=512,
        qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, intermediate_size=4096, n_routed_experts=16,
        n_shared_experts=1, num_experts_per_tok=4, moe_intermediate_size=1408, first_k_dense_replace=1,
        max_position_embeddings=4096)
    while 2 * cost(made).parameters < gb * 1e9:
        made = made.model_copy(update={"num_hidden_layers": made.num_hidden_layers + 1})
    return made


def fresh(shape: ModelConfig) -> Transformer:
    """A BF16 model of numbers that are quickly made, no two tensors alike."""
    model = Transformer(shape).bfloat16() if cost(shape).parameters < 10**7 else _empty(shape)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(1 << 20, generator=generator).mul_(0.02).bfloat16()
    with torch.no_grad():
        for number, parameter in enumerate(model.state_dict().values()):
            flat = parameter.view(-1)
            for first in range(0, len(flat), len(drawn)):
                part = drawn.roll(number)[: len(flat) - first]
                flat[first: first + len(part)].copy_(part)
    return model


def _empty(shape: ModelConfig) -> Transformer:
    from fathom.model.weights.streamed import empty

    return empty(shape, torch.bfloat16)


def peak(directory: Path, side: str) -> dict[str, int]:
    """Bytes: the largest resident size of a process that loads `directory`, over that after its imports."""
    code = (
        "import json, sys\nfrom pathlib import Path\nimport bench.load as load\n"
        "base = load.resident()\nkept = getattr(load, sys.argv[2])(Path(sys.argv[1]))\n"
        "print(json.dumps({'base': base, 'grown': load.resident('VmHWM') - base}))")
    command = [sys.executable, "-c", code, str(directory), side]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, int] = json.loads(done.stdout)
    return found


def resident(field: str = "VmRSS") -> int:
    """Bytes of this process that lie in memory now (VmRSS), or lay there at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def ours(directory: Path) -> Any:
    """The model, as Fathom loads it."""
    return weights.load(directory)[0]


def plain(directory: Path) -> Any:
    """Every tensor of every file, copied out of the mapping."""
    return [{name: tensor.clone() for name, tensor in load_file(path).items()}
            for path in sorted(directory.glob("*.safetensors"))]


def exported(directory: Path) -> Any:
    """The model, loaded and written again."""
    model, words = weights.load(directory)
    shard = max(path.stat().st_size for path in directory.glob("*.safetensors"))
    weights.save(directory.with_name("exported"), model, words, shard_bytes=shard)
    return model


def in_order(directory: Path) -> Any:
    """The plain read, and FP8 blocks multiplied by their scales with torch's own conversion."""
    tensors = {name: tensor for part in plain(directory) for name, tensor in part.items()}
    for name in [name for name in tensors if name.endswith("_scale_inv")]:
        scale = tensors.pop(name)
        number = tensors[name.removesuffix("_scale_inv")]
        wide = scale.repeat_interleave(128, 0)[: number.shape[0]].repeat_interleave(128, 1)[:, : number.shape[1]]
        tensors[name.removesuffix("_scale_inv")] = (number.float() * wide).bfloat16()
    return tensors


def measure(gb: float, root: Path, rounds: int = 5) -> list[Pair]:
    """The cases, one after another; the files are removed."""
    need = 5 * gb * 1e9
    if shutil.disk_usage(root).free < need:
        sys.exit(f"{root}: {shutil.disk_usage(root).free / 1e9:.0f} GB free, {need / 1e9:.0f} needed; name another "
                 "--dir")
    folder = Path(tempfile.mkdtemp(dir=root, prefix="bench-load-"))
    try:
        return _measure(config(gb), folder, rounds)
    finally:
        shutil.rmtree(folder)


def _unsealed(directory: Path) -> None:
    """The directory as a download has it: without our checksums, which our load would verify."""
    for name in (disk.COMPLETE, disk.CHECKSUMS):
        (directory / name).unlink()


def _measure(shape: ModelConfig, folder: Path, rounds: int) -> list[Pair]:
    words = Tokenizer.train([f"{a} + {b} = {a + b}" for a in range(30) for b in range(30)], 320)
    size = 2 * cost(shape).parameters
    pairs = [_export(fresh(shape), folder, words, size // SHARDS, rounds)]
    _unsealed(folder / "bf16")
    pairs.append(_load("BF16 shards", folder / "bf16", plain, rounds, size))
    pairs[0].notes = _memory(folder / "bf16", size, "exported")
    shutil.rmtree(folder / "exported")
    half = size // 2 // SHARDS
    weights.convert(folder / "bf16", folder / "fp8", dtype="fp8", shard_bytes=half, say=lambda line: None)
    _unsealed(folder / "fp8")
    pairs.append(_load("FP8 blocks → BF16, peer reads only", folder / "fp8", plain, rounds, size))
    pairs.append(_load("FP8 blocks → BF16, peer converts too", folder / "fp8", in_order, rounds, size))
    return pairs


def _export(model: Transformer, folder: Path, words: Tokenizer, shard: int, rounds: int) -> Pair:
    """Writing and reading back; a directory of ours stays for the other cases."""
    weights.save(folder / "bf16", model, words, shard_bytes=shard)

    def again() -> None:
        shutil.rmtree(folder / "out", ignore_errors=True)
        weights.save(folder / "out", model, words, shard_bytes=shard)
        weights.load(folder / "out")

    named = {name: tensor.contiguous() for name, tensor in weights.outward(model).items()}

    def theirs() -> None:
        shutil.rmtree(folder / "plain", ignore_errors=True)
        (folder / "plain").mkdir()
        keys = list(named)
        step = -(-len(keys) // SHARDS)
        for first in range(0, len(keys), step):
            part = {key: named[key] for key in keys[first: first + step]}
            save_file(part, folder / "plain" / f"{first}.safetensors")
        plain(folder / "plain")

    pair = Pair("export and reload (ours durable, hashed, tried)", *interleave(again, theirs, rounds, 1))
    for name in ("out", "plain"):
        shutil.rmtree(folder / name)
    return pair


def _load(name: str, directory: Path, theirs: Any, rounds: int, size: int) -> Pair:
    pair = Pair(name, *interleave(lambda: void(ours(directory)), lambda: void(theirs(directory)), rounds), bar=BAR)
    pair.notes = {**_memory(directory, size, "ours"), "peer over imports": peak(directory, theirs.__name__)["grown"]}
    return pair


def _memory(directory: Path, size: int, side: str) -> dict[str, Any]:
    """What one side needs beside its imports, and whether that is at most the model and one shard."""
    largest = max(path.stat().st_size for path in directory.glob("*.safetensors"))
    grown = peak(directory, side)["grown"]
    return {"model": size, "largest shard": largest, "ours over imports": grown,
            "within model + one shard": grown <= size + largest}


def void(kept: Any) -> None:
    """Takes what was loaded, and lets it go."""
    del kept


def main(words: list[str]) -> None:
    """Measures, prints and saves."""
    asked = argparse.ArgumentParser(prog="python -m bench load", description=__doc__)
    asked.add_argument("--gb", type=float, default=4.0, help="size of the BF16 checkpoint, in 10⁹ bytes")
    asked.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()), help="where the files are written")
    given = asked.parse_args(words)
    pairs = measure(given.gb, given.dir)
    print(HEAD)
    for pair in pairs:
        notes = (f"{name}: {value / 1e9:.3f} GB" if type(value) is int else f"{name}: {value}"
                 for name, value in pair.notes.items())
        print(pair.line(), *notes)
    print(f"saved in {save('load', pairs, {'gb': given.gb})}")


if __name__ == "__main__":
    main(sys.argv[1:])

"""`fathom convert`: from any form that is read to any form that is written, a tensor at a time."""

# E experts, I expert width, D model

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial, reduce
from pathlib import Path
from zlib import crc32

import torch
from torch import Tensor

from fathom.core import disk
from fathom.core.errors import FathomError, UsageError
from fathom.model import quant
from fathom.model.config import ModelConfig
from fathom.model.pretrained import locate
from fathom.model.weights import configs, names
from fathom.model.weights.configs import Fp8, hugging_face_config
from fathom.model.weights.directory import (
    SHARD_BYTES,
    opened,
    otherwise,
    read_generation,
    read_tokenizer,
    resolve,
    same,
    write_about,
    write_shards,
)
from fathom.model.weights.header import TORCH, Entry, in_bytes, write_stream
from fathom.model.weights.names import BIAS, EMBEDDING, HEAD, SCALE
from fathom.model.weights.stored import Stored
from fathom.model.weights.streamed import blank, probe, streamed

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "fp8": torch.bfloat16}
EVERY_S = 10.0  # between two lines of progress

Say = Callable[[str], None]


def convert(
    source: Path, target: Path, dtype: str | None = None, experts: str = "split",
    form: str = "hf", tokenizer: Path | None = None, shard_bytes: int = SHARD_BYTES,
    license: str = "unknown", say: Say = print,
) -> None:
    """Writes the model in `source` as the directory `target`, whole or not at all.

    `source` is a Hugging Face directory, one of DeepSeek's inference demo, a GGUF file or a packaged name. `dtype` is
    bfloat16, float16, float32 or fp8 (blocks, where the published files have them); None keeps the type that
    each tensor is stored in (of a GGUF file: see `gguf.directory`).
    `experts` are split or fused; `form` is hf, or deepseek for the demo's names, which has no layer for multi-token
    prediction: it is left out, and that is said. One tensor is in memory at a time; then source and target are run a
    block at a time and must give the same bits, else nothing is kept. `tokenizer` is a directory that has one, where
    `source` has none.
    """
    _refuse(dtype, experts, form)
    place = locate(source)
    if place.suffix == ".gguf":
        from fathom.model import gguf

        place = gguf.directory(place, DTYPES[dtype] if dtype else None)
    place = resolve(place)
    if not place.is_dir():
        raise FathomError(f"{source}: no such directory; name a model directory or a .gguf file")
    if disk.is_complete(place):
        disk.verify(place)
    described, stored = opened(place)
    words = read_tokenizer(tokenizer or _with_tokenizer(place), described.config)
    config = described.config
    left_out = form == "deepseek" and config.num_nextn_predict_layers
    if left_out:
        config = config.model_copy(update={"num_nextn_predict_layers": 0})
    fp8 = described.fp8 if stored.fp8 and dtype in (None, "fp8") else Fp8() if dtype == "fp8" else None
    plan = _Plan(stored, config, dtype, fp8)
    run_as = torch.bfloat16 if fp8 else DTYPES[dtype] if dtype else stored.dtype
    written = (configs.demo_config(config, fp8) if form == "deepseek"
               else hugging_face_config(config, words, run_as, fp8))
    if left_out:
        say("DeepSeek's inference demo has no layer for multi-token prediction: it is left out")
    if form == "deepseek" and config.selection_bias and config.hidden_size != 7168:
        say(f"hidden_size={config.hidden_size}: DeepSeek's inference demo has the routers' bias at 7168 only")
    disk.sweep(target.absolute().parent)  # what a killed conversion left there
    with disk.commit(target) as folder:
        write_about(folder, written, config, words, read_generation(place), f"Converted from {source.name}.", license)
        entries = _counted(plan.demo() if form == "deepseek" else plan.hugging_face(experts == "fused"), say)
        if form == "deepseek":
            path = folder.path("model0-mp1.safetensors")
            write_stream(path, entries)
            here = path.parent
        else:
            here = write_shards(folder, entries, shard_bytes)
        say("written; comparing the logits of both, a block at a time")
        again, back = opened(here)
        seen: dict[str, int] = {}

        def noted(targets: Mapping[str, Tensor]) -> None:
            plan.fill(targets)
            seen.update({name: crc32(in_bytes(tensor)) for name, tensor in targets.items()})

        def compared(targets: Mapping[str, Tensor]) -> None:
            back.fill(targets)
            for name, tensor in targets.items():
                if crc32(in_bytes(tensor)) != seen[name]:
                    raise otherwise(target, f"{name} differs from the source's")

        expected = probe(streamed(config, noted, run_as))
        same(target, expected, probe(streamed(again.config, compared, run_as)))


def _refuse(dtype: str | None, experts: str, form: str) -> None:
    for name, value, known in (("dtype", dtype, (None, *DTYPES)), ("experts", experts, ("split", "fused")),
                               ("names", form, ("hf", "deepseek"))):
        if value not in known:
            raise UsageError(f"{name}={value}: must be {' or '.join(str(one) for one in known if one)}")
    if experts == "fused" and dtype == "fp8":
        raise UsageError("experts=fused, dtype=fp8: FP8 blocks are written for one expert at a time; set experts=split")
    if form == "deepseek" and (experts == "fused" or dtype in ("float16", "float32")):
        raise UsageError("names=deepseek: DeepSeek's inference demo has experts apart, in bfloat16 or fp8; set "
                         "experts=split and dtype=bfloat16 or fp8")


def _with_tokenizer(place: Path) -> Path:
    if not (place / "tokenizer.json").is_file():
        raise UsageError(f"{place}: has no tokenizer.json; name a directory that has the model's, with --tokenizer DIR")
    return place


class _Plan:
    """What is written for each tensor: its name, shape, type, and where its numbers come from."""

    def __init__(self, stored: Stored, config: ModelConfig, dtype: str | None, fp8: Fp8 | None):
        self._stored, self._config, self._dtype, self._fp8 = stored, config, dtype, fp8
        self._scales: dict[str, Tensor] = {}  # of the tensor written last
        self._model = blank(config)

    def _kind(self, *parts: str) -> torch.dtype:
        """The type of a tensor that is not FP8, or of several in one, which lose nothing; routers' bias stays FP32."""
        name = parts[0]
        if name.endswith(BIAS):
            return torch.float32
        if self._dtype is not None:
            return DTYPES[self._dtype]
        return reduce(torch.promote_types, (TORCH[self._stored.sources[part].dtype] for part in parts))

    def _again(self, name: str) -> bool:
        """Whether a tensor is FP8 in the source and stays what it is, to the bit."""
        return self._fp8 is not None and self._stored.sources[name].dtype == "F8_E4M3"

    def _new(self, name: str) -> bool:
        """Whether a tensor is made FP8 here."""
        return self._dtype == "fp8" and names.quantised(name) and not self._again(name)

    def _entries(self, name: str, copy: str = "") -> Iterator[Entry]:
        """What is written for a tensor, under its own name or that of its `copy`."""
        shape = self._stored.sources[name].shape
        blocks = [quant.blocks(n) for n in shape]
        to = copy or name
        if self._again(name):
            yield to, shape, quant.FP8, partial(self._stored.tensor, name)
            yield to + SCALE, blocks, torch.float32, partial(self._stored.tensor, name + SCALE, torch.float32)
        elif self._new(name):
            yield to, shape, quant.FP8, partial(self._quantised, name)
            yield to + SCALE, blocks, torch.float32, partial(self._scales.pop, name)
        else:
            kind = self._kind(name)
            yield to, shape, kind, partial(self._stored.tensor, name, kind)

    def _quantised(self, name: str) -> Tensor:
        assert self._fp8 is not None
        number, self._scales[name] = quant.quantise(self._stored.tensor(name, torch.float32), self._fp8.ue8m0)
        if not bool(self._scales[name].isfinite().all()):
            raise FathomError(f"{self._stored.sources[name].parts[0].file}: {name}: holds infinite numbers or NaN, "
                              "which FP8 blocks cannot keep; write bfloat16 instead")
        return number

    def _fused(self, parts: list[str]) -> Iterator[Tensor]:
        for name in parts:
            yield self._stored.tensor(name, self._kind(*parts))

    def hugging_face(self, fused: bool) -> list[Entry]:
        """Entries under Hugging Face's names, experts split or fused."""
        made: list[Entry] = []
        for inside, tensor in self._model.state_dict().items():
            parts = [name for name, _ in names.spread(self._config, inside, tensor)]
            place, _, last = inside.rpartition(".")
            if fused and place.endswith("mlp.experts"):
                stem = parts[0].rsplit(".", 3)[0]
                if any(self._again(part) for part in parts):
                    raise UsageError("experts=fused: the experts are FP8 blocks, which are written one by one; set "
                                     "dtype=bfloat16")
                kind = self._kind(*parts)
                made.append((f"{stem}.{last}", list(tensor.shape), kind, partial(self._fused, parts)))
            else:
                made += [entry for name in parts for entry in self._entries(name)]
        for name, of in names.copies(self._config).items():
            if name != HEAD:
                made += self._entries(of, name)
        return made

    def demo(self) -> list[Entry]:
        """Entries under the names of DeepSeek's inference demo."""
        if self._dtype is None and self._stored.sources[EMBEDDING].dtype not in ("BF16", "F8_E4M3"):
            raise UsageError(f"names=deepseek: the weights are {self._stored.sources[EMBEDDING].dtype}, DeepSeek's "
                             "inference demo has them in bfloat16 or fp8; set dtype")
        return [(names.to_demo(name), shape, dtype, get) for name, shape, dtype, get in self.hugging_face(False)]

    def fill(self, targets: Mapping[str, Tensor]) -> None:
        """Puts the source's tensors where `targets` lie, as they are going to be read from what is written."""
        self._stored.fill({name: tensor for name, tensor in targets.items() if not self._new(name)})
        for name, tensor in targets.items():
            if self._new(name):
                assert self._fp8 is not None
                exact = self._stored.tensor(name, torch.float32)
                tensor.copy_(quant.dequantise(*quant.quantise(exact, self._fp8.ue8m0)))


def _counted(entries: list[Entry], say: Say) -> list[Entry]:
    """The same entries, with a line now and then about how far they are and how long the rest takes."""
    sizes = [torch.Size(shape).numel() * dtype.itemsize for _, shape, dtype, _ in entries]
    whole, began = sum(sizes), time.monotonic()
    done, last = 0, began

    def get(number: int) -> Tensor | Iterator[Tensor]:
        nonlocal done, last
        now = time.monotonic()
        if now - last >= EVERY_S:
            left = (now - began) * (whole - done) / max(done, 1)
            say(f"{done / 1e9:.1f} of {whole / 1e9:.1f} GB written, {left / 60:.0f} minutes left")
            last = now
        done += sizes[number]
        return entries[number][3]()  # type: ignore[return-value]

    return [(name, shape, dtype, partial(get, number)) for number, (name, shape, dtype, _) in enumerate(entries)]

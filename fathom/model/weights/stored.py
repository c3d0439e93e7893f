"""A checkpoint on disk: its files and their headers, checked, and its tensors read straight to where they belong."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fathom.core.errors import FathomError
from fathom.model import quant
from fathom.model.config import ModelConfig
from fathom.model.cost import cost
from fathom.model.weights import names
from fathom.model.weights.header import (
    OTHERS,
    TORCH,
    Region,
    in_bytes,
    open_regular,
    read_header,
    read_into,
    read_object,
    shown,
    valued,
    version,
)
from fathom.model.weights.names import BIAS, SCALE

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DEMO_FILE = re.compile(r"model(\d{1,6})-mp(\d{1,6})\.safetensors")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
FLOATS = ("BF16", "F16", "F32", "F64")
BAND = 1 << 22  # bytes read at once where numbers are converted: they stay in the processor's cache
MANY = 1 << 25  # bytes from which several threads read
LAYERS, TENSORS = 4096, 1 << 21  # what a config may ask for without the files showing it

_log = logging.getLogger(__name__)


class Source(NamedTuple):
    """A tensor of a checkpoint: one region, or several joined along `dim`."""

    parts: tuple[Region, ...]
    dim: int = 0

    @property
    def dtype(self) -> str:
        """Its type by safetensors' name."""
        return self.parts[0].dtype

    @property
    def shape(self) -> list[int]:
        """Its shape, joined."""
        shape = list(self.parts[0].shape)
        if len(self.parts) > 1:
            shape[self.dim] = sum(part.shape[self.dim] for part in self.parts)
        return shape


class Stored:
    """The tensors of a directory under Hugging Face's split names, whatever names and files they lie in.

    One file, shards with an index, or the files of DeepSeek's inference demo, whose ranks are joined. Only headers are
    read at construction; every fault is named by file and tensor. `copies` are regions that must have equal bytes.
    `stated` is the type that the config says.
    """

    def __init__(self, directory: Path, stated: torch.dtype | None = None):
        self.directory = directory
        self._stated = stated
        self.sources: dict[str, Source] = {}
        self.copies: list[tuple[str, Region, Region]] = []
        self.where: Path = directory / WEIGHTS  # what messages about all of the tensors name
        self.demo = False
        if (directory / INDEX).exists() or (directory / INDEX).is_symlink():
            self._shards()
        elif (directory / WEIGHTS).exists() or (directory / WEIGHTS).is_symlink():
            self._take(read_header(directory / WEIGHTS))
        elif ranks := _demo_files(directory):
            self._join(ranks)
        else:
            raise _nothing(directory)

    @property
    def fp8(self) -> bool:
        """Whether tensors lie there in FP8."""
        return any(source.dtype == "F8_E4M3" for source in self.sources.values())

    @property
    def dtype(self) -> torch.dtype:
        """The type of the model's numbers: the stated one where tensors have it, else that of most of the bytes.

        FP8 counts as the bfloat16 that it becomes; the selection bias, FP32 always, and scales do not count.
        """
        sizes: dict[torch.dtype, int] = {}
        for name, kind in self._numbers():
            size = torch.Size(self.sources[name].shape).numel() * kind.itemsize
            sizes[kind] = sizes.get(kind, 0) + size
        if self._stated in sizes:
            return self._stated
        return max(sizes, key=lambda kind: (sizes[kind], kind.itemsize))

    def warn_of_rounding(self) -> None:
        """Logs how many tensors are rounded to `dtype`, by the first's name, where there are some."""
        dtype = self.dtype
        rounded = [name for name, kind in self._numbers() if torch.promote_types(kind, dtype) != dtype]
        if rounded:
            first = rounded[0]
            _log.warning("%s: %d tensors are rounded to %s, the model's type (%s, stored as %s, ...); load with dtype="
                         "%s to keep all digits", self.where, len(rounded), dtype, shown(first),
                         self.sources[first].dtype, reduce(torch.promote_types, (k for _, k in self._numbers())))

    def _numbers(self) -> Iterator[tuple[str, torch.dtype]]:
        """Weights and the types that they have in memory, FP8 multiplied out."""
        for name, source in self.sources.items():
            if source.dtype in (*FLOATS, "F8_E4M3") and not name.endswith((BIAS, SCALE)):
                yield name, torch.bfloat16 if source.dtype == "F8_E4M3" else TORCH[source.dtype]

    def _shards(self) -> None:
        self.where = self.directory / INDEX
        if (self.directory / WEIGHTS).exists():
            raise FathomError(f"{self.where}: {WEIGHTS} lies beside it, and only one of them can be the weights; "
                              "remove the other")
        listed = read_object(self.where).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
            raise FathomError(f"{self.where}: weight_map must name a file for each tensor; download the index again")
        for name, file in listed.items():
            if not re.fullmatch(r"[A-Za-z0-9_][\w.+-]{0,200}\.safetensors", file, re.ASCII):
                raise FathomError(f"{self.where}: {shown(name)}: {valued(file)}: must be the plain name of a "
                                  ".safetensors file in the same directory; download the index again")
        files = sorted(set(listed.values()))
        for file in files:
            if not (self.directory / file).exists():
                raise FathomError(f"{self.directory / file}: no such file, and {INDEX} names it; download it")
        at: dict[str, str] = {}
        found: dict[str, Region] = {}
        for file in files:
            for name, region in read_header(self.directory / file).items():
                if name in at:
                    raise FathomError(f"{self.directory / file}: {shown(name)} stands in {at[name]} too; download both "
                                      "files and the index again")
                at[name], found[name] = file, region
        problems = [f"{shown(name)}: not in {file}" + (f" but in {at[name]}" if name in at else "")
                    for name, file in listed.items() if at.get(name) != file]
        problems += [f"{shown(name)} of {file}: not in the index" for name, file in at.items() if name not in listed]
        if problems:
            raise FathomError(f"{self.where}: {_few(problems)}; download the index and the files again")
        self._take(found)

    def _take(self, found: dict[str, Region]) -> None:
        for name, region in found.items():
            stem, _, last = name.rpartition(".")
            if not name.endswith((".mlp.experts.gate_up_proj", ".mlp.experts.down_proj")):
                self._add(name, Source((region,)))
            elif len(region.shape) != 3 or (last == "gate_up_proj" and region.shape[1] % 2):
                raise FathomError(f"{region.file}: {shown(name)}: shape {list(region.shape)}; fused experts are "
                                  "[experts, rows, columns], gates above ups: write the file again")
            elif region.shape[0] > TENSORS:
                raise FathomError(f"{region.file}: {shown(name)}: {region.shape[0]} experts; at most {TENSORS} are "
                                  "read: is it the right file?")
            else:
                half = region.shape[1] // 2
                for e in range(region.shape[0]):
                    one = region.inside(e)
                    if last == "down_proj":
                        self._add(f"{stem}.{e}.down_proj.weight", Source((one,)))
                    else:
                        self._add(f"{stem}.{e}.gate_proj.weight", Source((one.rows(0, half),)))
                        self._add(f"{stem}.{e}.up_proj.weight", Source((one.rows(half, half),)))

    def _add(self, name: str, source: Source) -> None:
        if name in self.sources:
            raise FathomError(f"{source.parts[0].file}: {shown(name)}: there alone and among fused experts; keep one")
        self.sources[name] = source

    def _join(self, ranks: list[Path]) -> None:
        self.demo = True
        self.where = ranks[0]
        found: dict[str, list[Region]] = {}
        for path in ranks:
            for name, region in read_header(path).items():
                found.setdefault(name, []).append(region)
        for theirs, parts in found.items():
            known = names.from_demo(theirs)
            file = parts[0].file
            if known is None:
                raise FathomError(f"{file}: {shown(theirs)}: not a name of DeepSeek's inference demo, whose files are "
                                  "called like this one; rename the file if it is of another kind")
            name, dim = known
            if ".experts." in theirs:
                if len(parts) > 1:
                    raise FathomError(f"{parts[1].file}: {theirs} stands in {file.name} too; write the files again")
            elif len(parts) != len(ranks):
                raise FathomError(f"{file}: {theirs} stands in {len(parts)} of {len(ranks)} files; it belongs in each: "
                                  "write the files again")
            elif len({(part.dtype, part.shape) for part in parts}) > 1:
                raise FathomError(f"{file}: {theirs} has another type or shape in other files of the set; write the "
                                  "files again")
            if dim is None or len(parts) == 1:
                self.copies += [(theirs, parts[0], other) for other in parts[1:]]
                self.sources[name] = Source((parts[0],))
                continue
            if len(file_shape := parts[0].shape) <= dim:
                raise FathomError(f"{file}: {theirs}: shape {list(file_shape)}; two dimensions are expected: write the "
                                  "files again")
            if parts[0].dtype == "F8_E4M3" and file_shape[dim] % quant.BLOCK:
                raise FathomError(f"{file}: {theirs}: shape {list(file_shape)}; FP8 blocks of {quant.BLOCK} cannot be "
                                  "joined across files there: write the files for fewer ranks")
            self.sources[name] = Source(tuple(parts), dim)

    def check(self, config: ModelConfig, expected: Mapping[str, Iterable[int]]) -> None:
        """Nothing, if the tensors are those that the config asks for; else all that differ are named.

        `expected` are names and shapes of the model without its copies. Called before anything is allocated.
        """
        may = names.copies(config)
        shapes = {name: list(shape) for name, shape in expected.items()}
        missing = [name for name in shapes if name not in self.sources]
        problems = [f"{name}: missing" for name in missing]
        further = f"model.layers.{config.num_hidden_layers}."
        dropped: list[str] = []
        for name, source in self.sources.items():
            weight = name.removesuffix(SCALE)
            if name in shapes or name in may:
                problems += self._wrong(name, source, shapes.get(name) or shapes[may[name]])
            elif name != weight and self.sources.get(weight, source).dtype == "F8_E4M3":
                pass  # looked at with its weight
            elif name != weight and weight in self.sources:
                problems.append(f"{shown(name)}: scales, and {shown(weight)} is {self.sources[weight].dtype}")
            elif names.IGNORED.fullmatch(name) or (
                    name.startswith(further) and not config.num_nextn_predict_layers
                    and f"{further}eh_proj.weight" in self.sources):
                dropped.append(name)
            else:
                problems.append(f"{shown(name)}: not part of this model")
        if problems:
            remedy = "config.json and the weights do not belong together: take both from one model"
            if missing and all(name.startswith(further) for name in missing):
                remedy = ("the layer for multi-token prediction is not there: set num_nextn_predict_layers=0 in "
                          "config.json")
            elif wrong := [problem for problem in problems if ": stored as " in problem]:
                problems = wrong + [problem for problem in problems if problem not in wrong]
                remedy = (f"weights are read as {', '.join(FLOATS)} or FP8 blocks: if the model is quantised, take its "
                          "unquantised version")
            raise FathomError(f"{self.where}: {_few(problems)}; {remedy}")
        if dropped:
            _log.warning("%s: %d tensors not used (%s, ...): the config asks for none of them", self.where,
                         len(dropped), shown(dropped[0]))

    def bounded(self, config: ModelConfig) -> None:
        """Nothing, if a model of this config can be listed at all, beside what the files hold; FathomError if not.

        A config of 10¹² layers must not be built to find that they are missing.
        """
        seen = 1 + max((int(found[1]) for name in self.sources if (found := names.LAYER.match(name))), default=-1)
        layers = config.num_hidden_layers
        if layers > max(seen, LAYERS):
            raise self._beyond("num_hidden_layers", layers, f"{seen} layers")
        if config.n_routed_experts * layers > max(len(self.sources), TENSORS):
            raise self._beyond("n_routed_experts", config.n_routed_experts, f"{len(self.sources)} tensors")
        elements = sum(torch.Size(source.shape).numel() for source in self.sources.values())
        asked = cost(config).parameters
        if asked > max(1 << 40, 2 * elements):
            widths = ("vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "num_attention_heads",
                      "num_key_value_heads", "head_dim", "kv_lora_rank", "q_lora_rank", "qk_nope_head_dim",
                      "qk_rope_head_dim", "v_head_dim", "n_shared_experts")
            most = max(widths, key=lambda name: getattr(config, name) or 0)
            raise self._beyond(most, getattr(config, most), f"{elements} elements, of {valued(asked)} that it asks "
                               "for")

    def _beyond(self, name: str, value: int, held: str) -> FathomError:
        return FathomError(f"{self.directory / 'config.json'}: {name}={valued(value)}: the weights hold {held}; "
                           "config.json and the weights do not belong together: take both from one model")

    def _wrong(self, name: str, source: Source, shape: list[int]) -> list[str]:
        if source.shape != shape:
            return [f"{name}: shape {source.shape}, the config asks for {shape}"]
        if source.dtype in FLOATS:
            if name.endswith(BIAS) and source.dtype in ("BF16", "F16"):
                _log.warning("%s: %s is stored as %s, so it was rounded when it was written; FP32 is the published "
                             "form", self.where, name, source.dtype)
            return []
        if source.dtype != "F8_E4M3":
            kind = OTHERS.get(source.dtype, source.dtype)
            return [f"{name}: stored as {kind}"]
        scale = self.sources.get(name + SCALE)
        if len(shape) != 2:
            return [f"{name}: FP8 of shape {shape}, and blocks are of two dimensions"]
        if scale is None:
            return [f"{name}: FP8 without {name}{SCALE}"]
        blocks = [quant.blocks(n) for n in shape]
        if scale.shape != blocks:
            return [f"{name}{SCALE}: shape {scale.shape}, blocks of {quant.BLOCK} make {blocks}"]
        return [] if scale.dtype in FLOATS else [f"{name}{SCALE}: stored as {scale.dtype}, scales are F32"]

    def check_copies(self, config: ModelConfig) -> None:
        """Nothing, if tensors that are there twice have the same bytes; the differing one is named if not."""
        pairs = list(self.copies)
        for name, of in names.copies(config).items():
            if name in self.sources and of in self.sources:
                one, other = self.sources[name], self.sources[of]
                if one.dtype != other.dtype:
                    raise self._differ(name, of)
                if one.dtype == "F8_E4M3":
                    scales = self.sources[name + SCALE], self.sources[of + SCALE]
                    if scales[0].dtype != scales[1].dtype:
                        raise self._differ(name, of)
                    pairs += [(name, a, b) for a, b in zip(scales[0].parts, scales[1].parts, strict=True)]
                pairs += [(name, a, b) for a, b in zip(one.parts, other.parts, strict=True)]
        memory = [memoryview(bytearray(BAND)) for _ in range(2)] if pairs else []
        with _Files() as files:
            for name, *both in pairs:
                for first in range(0, both[0].size, BAND):
                    size = min(BAND, both[0].size - first)
                    for region, part in zip(both, memory, strict=True):
                        place = replace(region, dtype="U8", shape=(size,), begin=region.begin + first, size=size)
                        read_into(files[region], place, part[:size])
                    if memory[0] != memory[1]:
                        raise self._differ(name, both[1].file.name if name not in self.sources else "the model's own")

    def _differ(self, name: str, of: str) -> FathomError:
        return FathomError(f"{self.where}: {shown(name)} differs from its copy in {of}, and only one of them could be "
                           "used; make them equal, or remove this one")

    def tensor(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """One tensor on the CPU, by default as it is stored."""
        source = self.sources[name]
        made = torch.empty(source.shape, dtype=dtype or TORCH[source.dtype])
        self.fill({name: made}, raw=dtype is None)
        return made

    def fill(self, targets: Mapping[str, Tensor], raw: bool = False) -> None:
        """Reads tensors into memory that is there, in the type that it has.

        Straight into it where the type is the stored one, else through a small buffer; FP8 blocks are multiplied by
        their scales unless they are wanted `raw`. Several threads read at once where that pays.
        """
        order = sorted(targets, key=lambda name: (self.sources[name].parts[0].file, self.sources[name].parts[0].begin))
        size = sum(part.size for name in order for part in self.sources[name].parts)
        with _Files() as files, torch.no_grad():
            readers = threading.local()

            def one(name: str) -> None:
                if not hasattr(readers, "own"):
                    readers.own = _Reader(files)
                readers.own.read(name, self.sources[name], None if raw else self.sources.get(name + SCALE),
                                 targets[name])

            if size < MANY:
                for name in order:
                    one(name)
                return
            with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
                for _ in pool.map(one, order):
                    pass


class _Files(ExitStack):
    """Open files by their regions, closed together; each must be the file whose header was read, to the end."""

    def __enter__(self) -> _Files:
        super().__enter__()
        self._open: dict[Path, int] = {}
        self._lock = threading.Lock()
        return self

    def __getitem__(self, region: Region) -> int:
        with self._lock:
            if region.file not in self._open:
                self._open[region.file] = file = open_regular(region.file)
                self.callback(os.close, file)
                self._unchanged(region, file)
                self.push(lambda kind, error, trace: self._unchanged(region, file) if kind is None else None)
            return self._open[region.file]

    def _unchanged(self, region: Region, file: int) -> None:
        if version(file) != region.version:
            raise FathomError(f"{region.file}: was replaced or written to since its header was read; let no one write "
                              "there, and load again")


class _Reader:
    """Reads tensors one after another through memory of its own."""

    def __init__(self, files: _Files):
        self._files = files
        self._memory: dict[str, Tensor] = {}

    def read(self, name: str, source: Source, scale: Source | None, target: Tensor) -> None:
        """Fills `target` with the tensor, times its scales where it has some."""
        if not target.numel():
            return
        straight = scale is None and TORCH[source.dtype] == target.dtype and target.device.type == "cpu"
        if straight and target.is_contiguous() and (source.dim == 0 or len(source.parts) == 1):
            rest = in_bytes(target)
            for part in source.parts:
                read_into(self._files[part], part, rest[: part.size])
                rest = rest[part.size:]
            return
        rows = source.shape[0] if source.shape else 1
        wide_PI = None
        if scale is not None:
            wide_PI = self._scales(name, scale).repeat_interleave(quant.BLOCK, 1)[:, : source.shape[1]]
        row_bytes = max(1, sum(part.size for part in source.parts) // rows)
        step = max(1, BAND // row_bytes) if wide_PI is None else quant.BLOCK
        flat = target.view(1) if not source.shape else target
        for first in range(0, rows, step):
            count = min(step, rows - first)
            band = self._band(source, first, count)
            if wide_PI is not None:
                band = quant.expand(band, wide_PI[first // quant.BLOCK])
            flat[first: first + count].copy_(band)
            if target.dtype == torch.float16 and not bool(flat[first: first + count].isfinite().all()):
                raise FathomError(f"{source.parts[0].file}: {name}: holds numbers beyond 65504, the largest of "
                                  "float16; choose bfloat16 or float32")

    def _scales(self, name: str, scale: Source) -> Tensor:
        made = torch.empty(scale.shape)
        self.read(f"{name}{SCALE}", scale, None, made)
        if not bool((made.isfinite() & (made >= 0)).all()):
            raise FathomError(f"{scale.parts[0].file}: {name}{SCALE}: a scale is negative, infinite or NaN; download "
                              "the file again")
        return made

    def _band(self, source: Source, first: int, count: int) -> Tensor:
        """Rows of a tensor as they are stored, in memory that the next band takes over."""
        dtype = TORCH[source.dtype]
        if len(source.parts) == 1 or source.dim == 0:
            band = self._room("band", (count, *source.shape[1:]), dtype)
            rest = in_bytes(band)
            start = 0
            for part in source.parts:
                height = part.shape[0] if part.shape else 1
                low, high = max(first, start), min(first + count, start + height)
                if low < high:
                    place = part.rows(low - start, high - low) if part.shape else part
                    read_into(self._files[part], place, rest[: place.size])
                    rest = rest[place.size:]
                start += height
            return band
        band = self._room("band", (count, *source.shape[1:]), dtype)
        edges = [0]
        for part in source.parts:
            edges.append(edges[-1] + part.shape[1])
        for part, (left, right) in zip(source.parts, pairwise(edges), strict=True):
            piece = self._room("piece", (count, right - left, *part.shape[2:]), dtype)
            read_into(self._files[part], part.rows(first, count), in_bytes(piece))
            band[:, left:right].copy_(piece)
        return band

    def _room(self, use: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        size = torch.Size(shape).numel() * dtype.itemsize
        if use not in self._memory or len(self._memory[use]) < size:
            self._memory[use] = torch.empty(size, dtype=torch.uint8)
        return self._memory[use][:size].view(dtype).view(shape)


def _demo_files(directory: Path) -> list[Path]:
    found = {(int(match[2]), int(match[1])): path for path in sorted(directory.iterdir())
             if (match := DEMO_FILE.fullmatch(path.name))}
    if not found:
        return []
    world = next(iter(found))[0]
    if any(other != world or rank >= world for other, rank in found):
        raise FathomError(f"{directory}: files of several sets ({', '.join(sorted(p.name for p in found.values())[:3])}"
                          ", ...); leave one set there")
    for rank in range(world):
        if (world, rank) not in found:
            raise FathomError(f"{directory / f'model{rank}-mp{world}.safetensors'}: no such file, and others of its "
                              "set are there; copy it")
    return [found[world, rank] for rank in range(world)]


def _nothing(directory: Path) -> FathomError:
    pickled = sorted(path.name for path in directory.iterdir() if path.suffix in PICKLED)
    if pickled:
        return FathomError(f"{directory / pickled[0]}: pickled weights can run code when they are read and are never "
                           "opened; save the model as safetensors, or take its safetensors revision")
    return FathomError(f"{directory / WEIGHTS}: no such file; copy the weights there, or run the stage that writes "
                       "them")


def _few(problems: list[str]) -> str:
    more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
    return "; ".join(problems[:5]) + more

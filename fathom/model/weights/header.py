"""The safetensors format: headers read with care before anything is allocated, and files written a tensor at a time.

A file is 8 bytes with the length of the header, the header (JSON: name → dtype, shape, data_offsets), and the data.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fathom.core.config import read_text
from fathom.core.errors import FathomError

LONGEST_HEADER = 1 << 24  # bytes; DeepSeek-V3 in one file would need 11 MB
LONGEST_JSON = {"config.json": 1 << 20, "model.safetensors.index.json": 1 << 24}
MOST = 1 << 62  # elements or bytes of one tensor
# bits of one number; F4 and F6 pack several into a byte
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}
TORCH = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
}
# what torch calls the others, for messages
OTHERS = {"BOOL": "torch.bool", "U8": "torch.uint8", "I8": "torch.int8", "I16": "torch.int16", "I32": "torch.int32",
          "I64": "torch.int64", "F8_E5M2": "torch.float8_e5m2"}
NAMES = {dtype: name for name, dtype in TORCH.items()}
_AGAIN = "copy or download the file again"


@dataclass(frozen=True)
class Region:
    """A tensor, or rows of one, in a file: its type by safetensors' name, shape, first byte and number of bytes."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    size: int
    version: tuple[int, ...] = ()  # of the file, see `open_regular`

    def rows(self, first: int, count: int) -> Region:
        """Some rows of it."""
        row = self.size // self.shape[0] if self.shape[0] else 0
        return replace(self, shape=(count, *self.shape[1:]), begin=self.begin + first * row, size=count * row)

    def inside(self, number: int) -> Region:
        """Element `number` of its first dimension."""
        one = self.rows(number, 1)
        return replace(one, shape=one.shape[1:])


def shown(name: str) -> str:
    """A name from a file, fit for a message: nothing that a terminal would obey, and not endless."""
    text = name if name.isprintable() else ascii(name)
    return text if len(text) <= 160 else f"{text[:157]}..."


def valued(value: object) -> str:
    """A value from a file, fit for a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def parse(text: str, where: object) -> dict[str, Any]:
    """The JSON object in `text`; repeated keys, NaN and infinities are refused beside what is no JSON at all."""
    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(found)
        if len(made) != len(found):
            seen: set[str] = set()
            twice = next(name for name, _ in found if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise FathomError(f"{where}: {shown(twice)} stands there twice; {_AGAIN}")
        return made

    def constant(name: str) -> Any:
        raise FathomError(f"{where}: {name} is no JSON number; {_AGAIN}")

    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise FathomError(f"{where}: is not JSON ({str(error)[:160]}); {_AGAIN}") from error
    if not isinstance(value, dict):
        raise FathomError(f"{where}: holds a {type(value).__name__}; a JSON object is expected: is it the right file?")
    return value


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a small file of a model directory."""
    return parse(read_text(path, LONGEST_JSON.get(path.name, 1 << 20)), path)


def open_regular(path: Path) -> int:
    """A descriptor of a regular file; anything else is refused by name, and a named pipe is not waited for."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise FathomError(f"{path}: no such file; copy the weights there, or run the stage that writes them") from None
    except OSError as error:
        raise FathomError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise FathomError(f"{path}: is not a regular file; put the weights there")
    return file


def version(file: int) -> tuple[int, ...]:
    """What is another number where an open file is another one, or was written to."""
    about = os.fstat(file)
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns


def read_header(path: Path) -> dict[str, Region]:
    """Where each tensor of a file lies. Every fault is named: the tensor, the value, the limit."""
    def broken(what: str) -> FathomError:
        return FathomError(f"{path}: not a whole safetensors file ({what}); {_AGAIN}")

    try:
        with os.fdopen(open_regular(path), "rb") as file:
            seen = version(file.fileno())
            end = seen[2]
            first = file.read(8)
            length = int.from_bytes(first, "little")
            if len(first) < 8:
                raise broken(f"{len(first)} bytes; the length of the header alone takes 8")
            if length > LONGEST_HEADER:
                raise broken(f"its header would be {length} bytes, at most {LONGEST_HEADER} are read")
            if length > end - 8:
                raise broken(f"its header would be {length} bytes, the file has {end}")
            raw = file.read(length)
    except OSError as error:
        raise FathomError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise broken(f"byte {8 + error.start} of the header is not UTF-8") from error
    if not text.startswith("{"):
        raise broken(f"its header begins with {text[:1]!r}, not with a brace")
    header = parse(text, path)
    about_it = header.pop("__metadata__", {})
    if not isinstance(about_it, dict) or not all(isinstance(value, str) for value in about_it.values()):
        raise broken("__metadata__ is not a mapping of text to text")
    found = {name: _region(path, name, entry, 8 + length, seen) for name, entry in header.items()}
    _cover(path, found, 8 + length, end)
    return found


def _region(path: Path, name: str, entry: Any, start: int, seen: tuple[int, ...]) -> Region:
    def broken(what: str) -> FathomError:
        return FathomError(f"{path}: {shown(name)}: {what}; {_AGAIN}")

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise broken("its entry must be dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise broken(f"dtype={valued(dtype)}: no such type; there are {', '.join(BITS)}")
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < MOST for n in shape):
        raise broken(f"shape={valued(shape)}: must be numbers from 0 to below 2^62")
    if len(shape) > 8:
        raise broken(f"shape has {len(shape)} dimensions; at most 8 are read")
    elements = math.prod(shape)
    if elements >= MOST:
        raise broken(f"shape={valued(shape)}: {elements} elements are more than any file holds")
    if (not isinstance(offsets, list) or len(offsets) != 2
            or not all(type(n) is int and 0 <= n < MOST for n in offsets) or offsets[0] > offsets[1]):
        raise broken(f"data_offsets={valued(offsets)}: must be two numbers, from 0, rising")
    size, bits = offsets[1] - offsets[0], elements * BITS[dtype]
    if size * 8 != bits:
        raise broken(f"data_offsets={offsets} span {size} bytes, {dtype} of shape {valued(shape)} takes {bits // 8}")
    return Region(path, dtype, tuple(shape), start + offsets[0], size, seen)


def _cover(path: Path, found: dict[str, Region], start: int, end: int) -> None:
    """Every byte of the data belongs to exactly one tensor."""
    place, before = start, "the header"
    for name, region in sorted(found.items(), key=lambda item: (item[1].begin, item[1].size)):
        if region.begin != place:
            what = "overlaps" if region.begin < place else f"leaves {region.begin - place} bytes behind"
            raise FathomError(f"{path}: {shown(name)}: {what} {shown(before)}, its data_offsets are wrong; {_AGAIN}")
        place, before = region.begin + region.size, name
        if place > end:
            raise FathomError(f"{path}: {shown(name)}: ends at byte {place}, the file has {end}: not a whole "
                              f"safetensors file; {_AGAIN}")
    if place != end:
        raise FathomError(f"{path}: {end - place} bytes after {shown(before)} belong to no tensor: not a whole "
                          f"safetensors file; {_AGAIN}")


# name, shape, type, and how to get the tensor, whole or in pieces that follow one another
Entry = tuple[str, list[int], torch.dtype, Callable[[], Tensor | Iterable[Tensor]]]


def write_stream(path: Path, entries: Sequence[Entry]) -> None:
    """A safetensors file whose tensors are fetched one after another, so that only one is in memory at a time."""
    place = 0
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, shape, dtype, _ in entries:
        if dtype not in NAMES:
            raise FathomError(f"{name}: {dtype}: weights are written as {', '.join(map(str, NAMES))}; convert it")
        size = math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # data begins at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape, dtype, get in entries:
            got = get()
            written = 0
            for piece in (got,) if isinstance(got, Tensor) else got:
                if piece.dtype != dtype or (isinstance(got, Tensor) and list(piece.shape) != shape):
                    raise FathomError(f"{name}: {list(piece.shape)} {piece.dtype}, announced was {shape} {dtype}; the "
                                      "file it comes from is damaged: get it again")
                written += piece.numel()
                file.write(in_bytes(piece.detach().cpu().contiguous()))
            if written != math.prod(shape):
                raise FathomError(f"{name}: {written} elements, announced was {shape}; the file it comes from is "
                                  "damaged: get it again")


def in_bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return memoryview(tensor.detach().view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def read_into(file: int, place: Region, memory: memoryview) -> None:
    """The bytes of `place` in `memory`, which is as large."""
    done = 0
    while done < place.size:
        got = os.preadv(file, [memory[done:]], place.begin + done)
        if not got:
            raise FathomError(f"{place.file}: ends at byte {place.begin + done}, it was longer a moment ago; {_AGAIN}")
        done += got

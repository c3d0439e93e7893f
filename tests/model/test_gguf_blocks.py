"""Quantised blocks of GGUF files, taken apart one number at a time as llama.cpp's block structures lay them down.

The blocks are random bytes with sensible scales, not the output of a quantiser: every bit of a block is used.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_gguf import begun, finished, name_inside, package  # skips where the package is not installed

from fathom.core.errors import FathomError
from fathom.model import gguf, weights
from fathom.model.config import ModelConfig
from fathom.model.tokenizer import Tokenizer
from fathom.model.transformer import Transformer

CONFIG = ModelConfig(  # rows of 256 and 512 numbers, one and two of the largest blocks
    vocab_size=280, hidden_size=256, num_hidden_layers=1, attention="gqa", num_attention_heads=4, num_key_value_heads=2,
    head_dim=64, intermediate_size=512, rope_interleave=False, max_position_embeddings=128, rms_norm_eps=1e-5,
)


def half(block: bytes, at: int) -> float:
    """Two bytes as an FP16 number."""
    return float(struct.unpack_from("<e", block, at)[0])


def q4_0(block: bytes) -> list[float]:
    """d, 16 bytes; low halves first, then high ones; d (q − 8)."""
    d, q = half(block, 0), block[2:]
    return [d * ((q[i] & 15) - 8) for i in range(16)] + [d * ((q[i] >> 4) - 8) for i in range(16)]


def q4_1(block: bytes) -> list[float]:
    """d, m, 16 bytes; d q + m."""
    d, m, q = half(block, 0), half(block, 2), block[4:]
    return [d * (q[i] & 15) + m for i in range(16)] + [d * (q[i] >> 4) + m for i in range(16)]


def q5_0(block: bytes) -> list[float]:
    """d, 32 fifth bits, 16 bytes; d (q − 16)."""
    d, high, q = half(block, 0), int.from_bytes(block[2:6], "little"), block[6:]
    low = [q[i] & 15 for i in range(16)] + [q[i] >> 4 for i in range(16)]
    return [d * ((low[i] | (high >> i & 1) << 4) - 16) for i in range(32)]


def q8_0(block: bytes) -> list[float]:
    """d, 32 signed bytes."""
    return [half(block, 0) * struct.unpack_from("b", block, 2 + i)[0] for i in range(32)]


def scale_and_minimum(packed: bytes, j: int) -> tuple[int, int]:
    """The j-th of eight pairs of six bits in twelve bytes (get_scale_min_k4)."""
    if j < 4:
        return packed[j] & 63, packed[j + 4] & 63
    return (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4, (packed[j + 4] >> 4) | (packed[j] >> 6) << 4


def q4_k(block: bytes) -> list[float]:
    """d, dmin, 12 bytes of scales and minima, 128 bytes; eight groups of 32, two of them in the halves of 32 bytes."""
    d, least, packed, q = half(block, 0), half(block, 2), block[4:16], block[16:]
    out = []
    for j in range(8):
        scale, minimum = scale_and_minimum(packed, j)
        for i in range(32):
            byte = q[j // 2 * 32 + i]
            out.append(d * scale * (byte >> 4 if j % 2 else byte & 15) - least * minimum)
    return out


def q5_k(block: bytes) -> list[float]:
    """As q4_k with 32 bytes before the low bits: bit j of byte i is the fifth bit of number i of group j."""
    d, least, packed, high, q = half(block, 0), half(block, 2), block[4:16], block[16:48], block[48:]
    out = []
    for j in range(8):
        scale, minimum = scale_and_minimum(packed, j)
        for i in range(32):
            byte = q[j // 2 * 32 + i]
            low = byte >> 4 if j % 2 else byte & 15
            out.append(d * scale * (low | (high[i] >> j & 1) << 4) - least * minimum)
    return out


def q6_k(block: bytes) -> list[float]:
    """128 bytes of low four bits, 64 of high two, 16 signed scales, d; d · scale · (q − 32), by halves of 128."""
    low, high, d = block[:128], block[128:192], half(block, 208)
    out = [0.0] * 256
    for n in range(2):
        for i in range(32):
            top = high[32 * n + i]
            a, b = low[64 * n + i], low[64 * n + 32 + i]
            for quarter, q in enumerate((a & 15 | (top & 3) << 4, b & 15 | (top >> 2 & 3) << 4,
                                         a >> 4 | (top >> 4 & 3) << 4, b >> 4 | (top >> 6 & 3) << 4)):
                scale = struct.unpack_from("b", block, 192 + 8 * n + 2 * quarter + i // 16)[0]
                out[128 * n + 32 * quarter + i] = d * scale * (q - 32)
    return out


def f16(block: bytes) -> list[float]:
    return [half(block, 0)]


def bf16(block: bytes) -> list[float]:
    """The upper half of an FP32 number."""
    return [struct.unpack("<f", b"\0\0" + block)[0]]


# by name: the loop, bytes and numbers of a block, where its FP16 scales lie
FORMATS: dict[str, tuple[Callable[[bytes], list[float]], int, int, tuple[int, ...]]] = {
    "Q4_0": (q4_0, 18, 32, (0,)), "Q4_1": (q4_1, 20, 32, (0, 2)), "Q5_0": (q5_0, 22, 32, (0,)),
    "Q8_0": (q8_0, 34, 32, (0,)), "Q4_K": (q4_k, 144, 256, (0, 2)), "Q5_K": (q5_k, 176, 256, (0, 2)),
    "Q6_K": (q6_k, 210, 256, (208,)), "F16": (f16, 2, 1, (0,)), "BF16": (bf16, 2, 1, ()),
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["eight bits are a byte, and eight bytes are a word"], 275)


def random_blocks(rng: np.random.Generator, rows: int, columns: int, size: int, numbers: int, scales: tuple[int, ...],
                  finite: bool) -> np.ndarray:
    """[rows, bytes] of random blocks; scales are FP16 numbers of either sign below 0.1."""
    blocks = rng.integers(0, 256, (rows, columns // numbers, size), dtype=np.uint8)
    for at in scales:
        drawn = rng.uniform(-0.1, 0.1, blocks.shape[:2]).astype(np.float16)
        blocks[:, :, at: at + 2] = drawn[..., None].view(np.uint8)
    if finite:  # BF16 without scales: an exponent of all ones is no number
        blocks[:, :, 1] &= 0xBF
    return blocks.reshape(rows, -1)


def made(path: Path, tokenizer: Tokenizer, kind: str, mixed: str | None = None) -> dict[str, np.ndarray]:
    """A file whose matrices are random blocks of `kind`, every second of `mixed`; the bytes by outside name."""
    writer = begun(path, CONFIG, tokenizer)
    rng = np.random.default_rng(7)
    held: dict[str, np.ndarray] = {}
    for number, (name, tensor) in enumerate(weights.outward(Transformer(CONFIG)).items()):
        if tensor.dim() == 1:
            writer.add_tensor(name_inside(name), np.ones(len(tensor), np.float32))
            continue
        chosen = mixed if mixed and number % 2 else kind
        _, size, numbers, scales = FORMATS[chosen]
        held[name] = random_blocks(rng, *tensor.shape, size, numbers, scales, chosen == "BF16")
        data, stored = held[name], package.GGMLQuantizationType[chosen]
        writer.add_tensor(name_inside(name), data.view(np.float16) if chosen == "F16" else data, raw_dtype=stored)
    finished(writer, path)
    return held


def row_in_file(name: str, row: int) -> int:
    """Where llama.cpp keeps a row: those of queries and keys with the two halves of a head interleaved."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return row
    head, within = divmod(row, CONFIG.head_dim)
    second, i = divmod(within, CONFIG.head_dim // 2)
    return head * CONFIG.head_dim + 2 * i + second


@pytest.mark.parity
@pytest.mark.parametrize(("kind", "mixed"), [*((kind, None) for kind in FORMATS), ("Q4_K", "Q6_K")])
def test_blocks_are_taken_apart_as_they_are_written_down(
    kind: str, mixed: str | None, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    held = made(tmp_path / "m.gguf", tokenizer, kind, mixed)
    gguf.convert(tmp_path / "m.gguf", tmp_path / "model", torch.float32)
    read = load_file(tmp_path / "model" / weights.WEIGHTS)
    names = list(weights.outward(Transformer(CONFIG)))
    for name, data in held.items():
        loop, size, _, _ = FORMATS[mixed if mixed and names.index(name) % 2 else kind]
        rows, columns = read[name].shape
        assert rows == len(data)
        for row in (0, 1, 37, rows - 1):
            line = data[row_in_file(name, row)].tobytes()
            expected = np.array([x for at in range(0, len(line), size) for x in loop(line[at: at + size])])
            assert len(expected) == columns
            # the package multiplies in FP32, in its own order: a few roundings of 6e-8
            scale = max(1e-30, float(np.abs(expected).max()))
            assert np.abs(read[name][row].numpy() - expected).max() <= 1e-6 * scale, (name, row)
    weights.load(tmp_path / "model")


def test_bfloat16_rounds_what_the_blocks_say(tmp_path: Path, tokenizer: Tokenizer) -> None:
    made(tmp_path / "m.gguf", tokenizer, "Q6_K")
    gguf.convert(tmp_path / "m.gguf", tmp_path / "exact", torch.float32)
    gguf.convert(tmp_path / "m.gguf", tmp_path / "model")
    exact, read = (load_file(tmp_path / place / weights.WEIGHTS) for place in ("exact", "model"))
    assert all(torch.equal(read[name], tensor.bfloat16()) for name, tensor in exact.items())


def test_a_quantisation_that_cannot_be_read_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """One that the package lists and cannot take apart, and a number that it has never heard of."""
    path = tmp_path / "m.gguf"
    writer = begun(path, CONFIG, tokenizer)
    stored = package.GGMLQuantizationType.Q8_K
    for name, tensor in weights.outward(Transformer(CONFIG)).items():
        if "k_proj" in name:
            size = tensor.shape[1] // 256 * 292
            writer.add_tensor(name_inside(name), np.zeros((tensor.shape[0], size), np.uint8), raw_dtype=stored)
        else:
            writer.add_tensor(name_inside(name), tensor.detach().numpy())
    finished(writer, path)
    with pytest.raises(FathomError, match=r"tensor blk.0.attn_k.weight is stored as Q8_K, .*use a file in Q4_K_M"):
        gguf.convert(path, tmp_path / "model")

    data = bytearray(path.read_bytes())
    at = data.index(b"blk.0.attn_k.weight") + len(b"blk.0.attn_k.weight") + 4 + 2 * 8  # dimensions: count and sizes
    assert struct.unpack_from("<I", data, at)[0] == stored.value
    struct.pack_into("<I", data, at, 4321)
    path.write_bytes(data)
    with pytest.raises(FathomError, match=r"stored as type 4321, .*--upgrade gguf"):
        gguf.convert(path, tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]

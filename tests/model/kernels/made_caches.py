"""Paged caches of random entries: blocks in no order, and NaN wherever nothing may be read."""

from __future__ import annotations

import torch
from torch import Tensor


def paged(
    lengths: list[int], groups: int, block: int, width: int, seed: int, spare: int = 0,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """A pool [blocks, groups, block, width], the table [rows, blocks + spare], and each row's entries [length, groups,
    width]. Block 0 is nobody's, and padding entries of the table name it."""
    draw = torch.Generator().manual_seed(seed)
    needed = [-(-length // block) for length in lengths]
    order = (torch.randperm(sum(needed), generator=draw) + 1).tolist()
    pool = torch.full((sum(needed) + 1, groups, block, width), float("nan"), dtype=dtype)
    table = torch.zeros(len(lengths), max(needed) + spare, dtype=torch.int32)
    rows = []
    for row, length in enumerate(lengths):
        entries = torch.randn(length, groups, width, generator=draw).to(dtype)
        for number in range(needed[row]):
            table[row, number] = order.pop()
            piece = entries[number * block: (number + 1) * block]
            pool[table[row, number], :, : len(piece)] = piece.transpose(0, 1)
        rows.append(entries)
    return pool, table, rows


def attended(q_C: Tensor, keys_SC: Tensor, values_SV: Tensor, scale: float) -> list[float]:
    """Softmax attention of one query, written out in Python's own floats."""
    scores = [scale * sum(a * b for a, b in zip(q_C.tolist(), key, strict=True)) for key in keys_SC.tolist()]
    most = max(scores)
    weights = [2.718281828459045 ** (score - most) for score in scores]
    return [sum(w * value[v] for w, value in zip(weights, values_SV.tolist(), strict=True)) / sum(weights)
            for v in range(values_SV.shape[1])]


def gap(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest number expected."""
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())

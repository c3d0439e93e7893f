"""Layout: which token is where, in which sequence and cache slot. Tokens lie in one row without padding.

Attention is the only place where sequences matter, so the layout is an argument of the forward pass and nothing else
knows of it. Without a cache a layout holds *rectangles*: sequences of similar length, one row of token numbers each, so
that one attention call serves many sequences. A token may stand in several sequences: a prompt shared by a group of
completions is stored, projected and fed forward once, and is attended to by each of them.

With a cache, what attention keeps of a token goes to a cell of its sequence's blocks, which a table names. `fresh`
sequences are whole prompts: they read nothing from the cache. `onward` pieces continue sequences that have a past
there, several tokens of each. `rows` are single tokens, each with a past of its own: decoding.
"""

# T tokens, S sequences, N sequences in one rectangle, L their padded length, B rows, G heads of the cache, C channels

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fathom.model.config import ModelConfig

LONGEST_GATHERED = 512  # longer sequences go singly: padding them costs more than a call
ROW_PADDING = 1.6  # the same of single tokens: a call more costs as much as a few rows
MOST_PADDING = 1.25  # cells of a rectangle per token in it (a call per short sequence: 20× slower)


class Pages:
    """What attention keeps of past tokens, in blocks: for each layer, tensors [blocks, heads, size, width].

    For latent attention this is one tensor of one head, the normalised latent and the rotated shared key (DeepSeek-V2
    §2.1.2); for grouped-query attention two, rotated keys and values of every key/value head. A table, the numbers of
    a sequence's blocks in order, says where its tokens are: `size` of them to a block.
    """

    def __init__(
        self, config: ModelConfig, blocks: int, size: int, dtype: torch.dtype, device: torch.device | str,
        layers: int | None = None,
    ):
        """`layers`: as many as the model has, where it is not said otherwise."""
        self.size, self.dtype, self.device = size, dtype, torch.device(device)
        shapes = cache_shapes(config)
        self.heads = shapes[0][0]
        self.layers = [
            tuple(_zeros((blocks, heads, size, width), dtype, self.device) for heads, width in shapes)
            for _ in range(config.num_hidden_layers if layers is None else layers)
        ]
        self.by_kernels = kernels_run_on(self.layers[0][0])

    @property
    def bytes(self) -> int:
        """Memory that the cache holds, in bytes."""
        return sum(part.numel() * part.element_size() for layer in self.layers for part in layer)

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copies whole blocks; all are read before any is written."""
        source, target = (torch.tensor(list(blocks), device=self.device) for blocks in (sources, targets))
        for layer in self.layers:
            for part in layer:
                part.index_copy_(0, target, part.index_select(0, source))

    def cells(self, tables: Sequence[Sequence[int]], first: Sequence[int], last: Sequence[int]) -> Tensor:
        """Where each head of the tokens `first[s]` to `last[s]` − 1 of each sequence stands: rows of a layer's tensors
        seen as [blocks · heads · size, width]; [tokens · heads], a token's heads side by side."""
        found = []
        for table, begin, end in zip(tables, first, last, strict=True):
            positions = np.arange(begin, end)
            blocks = np.asarray(table, dtype=np.int64)[positions // self.size]
            found.append(blocks * (self.heads * self.size) + positions % self.size)
        row_T1 = np.concatenate(found)[:, None] if found else np.zeros((0, 1), dtype=np.int64)
        return torch.from_numpy((row_T1 + np.arange(self.heads) * self.size).reshape(-1)).to(self.device)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that, on a CPU, take memory only where they are written: a cache is reserved for more than is used."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.zeros(size, dtype=np.uint8)).view(dtype).view(shape)


def kernels_run_on(tensor: Tensor) -> bool:
    """Whether kernels read the cache's blocks where they lie; else entries are gathered for every step."""
    if not tensor.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return False  # without having imported Triton
    from fathom.model.kernels.launch import uses_kernel

    return uses_kernel(tensor)


def cache_shapes(config: ModelConfig) -> tuple[tuple[int, int], ...]:
    """(heads, width) of each tensor that the cache holds per layer: their product is its elements per token."""
    if config.attention == "mla":
        return ((1, config.kv_lora_rank + config.qk_rope_head_dim),)
    return ((config.num_key_value_heads, config.head_dim),) * 2


@dataclass(frozen=True)
class Onward:
    """Tokens `begin` to `end` − 1 of the layout continue a sequence of which `past` tokens are in the cache."""

    begin: int
    end: int
    past: int
    seen: Tensor  # [end − begin, past + end − begin] bool: what each of them attends to


@dataclass(frozen=True)
class Spans:
    """Where sequences begin and end, for kernels: S of them, of which new tokens are in the layout."""

    start_S: Tensor  # [S + 1]: new tokens, cumulated
    whole_S: Tensor  # [S + 1]: new ones and those in the cache
    past_S: Tensor  # tokens in the cache
    table_SN: Tensor  # blocks of each sequence
    longest: int  # most new tokens of a sequence


@dataclass(frozen=True)
class Alike:
    """Rows `begin` to `end` − 1, which attend to about as many tokens."""

    begin: int
    end: int
    cells: Tensor  # [rows · G · S]: where each head's S entries are, see Pages.cells; or numbers of blocks
    past_BS: Tensor  # 0 where a row attends to a token, else −∞
    whole: bool = False  # the latter, [rows · S / size]: a block is one copy


@dataclass(frozen=True)
class Rows:
    """What single tokens attend to: entries in the cache, their own included."""

    table_BN: Tensor  # int64 blocks of each row's sequence; NOWHERE behind its end
    length_B: Tensor  # tokens that each row attends to
    parts: tuple[Alike, ...]  # none where kernels find the entries by the table
    piece: int  # positions looked at together; 0: all. S is a multiple of it
    numbers: Tensor  # int64: positions, lengths, sequences, cells and table end to end; the tensors above are its views


@dataclass(frozen=True)
class Layout:
    """Positions, sequences and cache cells of T tokens; build one with `packed`, `fresh`, `onward` or `rows`."""

    positions_T: Tensor
    sequence_T: Tensor  # number of the (first) sequence that a token stands in
    sequences: int
    rectangles: tuple[Tensor, ...] = ()  # each [N, L]: token numbers; cells past a sequence's end repeat its last token
    place_T: Tensor | None = None  # cell, over all rectangles laid end to end, that holds a token's attention output
    in_order: bool = False  # the rectangles' cells are the tokens, in their order: nothing need be gathered
    pages: Pages | None = None
    cells: Tensor | None = None  # with pages: where each token's entries go, see Pages.cells
    pieces: tuple[Onward, ...] = ()
    # of all pieces, end to end: cells of what they have in the cache; where kernels attend, of their new tokens too
    past: Tensor | None = None
    spans: Spans | None = None  # instead of rectangles and pieces, where kernels attend
    decoding: Rows | None = None

    @classmethod
    def packed(
        cls, lengths: Sequence[int], device: torch.device | str = "cpu", prefix: Sequence[int | None] | None = None
    ) -> Layout:
        """Sequences of the given lengths end to end, each attending to itself, positions from 0.

        `prefix[s]`, where given, is the number of an earlier sequence that s continues: s attends to all of it, its
        positions go on from there, and the earlier sequence's tokens are not repeated.
        """
        starts = [0]
        for length in lengths:
            starts.append(starts[-1] + length)
        rows: list[list[int]] = []
        offset: list[int] = []
        for s, length in enumerate(lengths):
            before: list[int] = []
            if prefix is not None and (parent := prefix[s]) is not None:
                if parent >= s:
                    raise ValueError(f"prefix[{s}]={parent}: a sequence can only continue an earlier one")
                before = rows[parent]
            rows.append([*before, *range(starts[s], starts[s] + length)])
            offset.append(len(before))
        # a prefix attends within its continuations, so it needs no row of its own
        parents = {p for p in (prefix or ()) if p is not None}
        rectangles, place = _rectangles([row for s, row in enumerate(rows) if s not in parents and row], starts[-1])
        size = torch.tensor(list(lengths), dtype=torch.long)
        sequence = torch.repeat_interleave(torch.arange(len(lengths)), size)
        begin = torch.tensor(starts[:-1], dtype=torch.long) - torch.tensor(offset, dtype=torch.long)
        positions = torch.arange(starts[-1]) - begin[sequence] if len(lengths) else torch.zeros(0, dtype=torch.long)
        return cls(
            positions_T=positions.to(device), sequence_T=sequence.to(device), sequences=len(lengths),
            rectangles=tuple(r.to(device) for r in rectangles), place_T=place.to(device),
            in_order=torch.equal(place, torch.arange(sum(r.numel() for r in rectangles))),
        )

    @classmethod
    def fresh(cls, pages: Pages, tables: Sequence[Sequence[int]], lengths: Sequence[int]) -> Layout:
        """Whole prompts end to end, one for each table."""
        if pages.by_kernels:
            return cls._spanned(pages, tables, [0] * len(lengths), lengths)
        flat = cls.packed(lengths, pages.device)
        cells = pages.cells(tables, [0] * len(lengths), lengths)
        return replace(flat, pages=pages, cells=cells)

    @classmethod
    def onward(
        cls, pages: Pages, tables: Sequence[Sequence[int]], past: Sequence[int], counts: Sequence[int]
    ) -> Layout:
        """`counts[s]` tokens of each sequence, end to end, after `past[s]` that are in the cache already."""
        if pages.by_kernels:
            return cls._spanned(pages, tables, past, counts)
        device = pages.device
        pieces, begin = [], 0
        for before, count in zip(past, counts, strict=True):
            seen = torch.ones(count, before + count, dtype=torch.bool, device=device).tril_(before)
            pieces.append(Onward(begin, begin + count, before, seen))
            begin += count
        positions, numbers, ends = _counted(past, counts)
        return cls(torch.from_numpy(positions).to(device), torch.from_numpy(numbers).to(device), len(counts),
                   pages=pages, cells=pages.cells(tables, past, ends), pieces=tuple(pieces),
                   past=pages.cells(tables, [0] * len(past), past))

    @classmethod
    def _spanned(
        cls, pages: Pages, tables: Sequence[Sequence[int]], past: Sequence[int], counts: Sequence[int]
    ) -> Layout:
        """`fresh` and `onward` for kernels: without any past nothing is recalled."""
        positions, numbers, ends = _counted(past, counts)
        table_SN = np.zeros((len(tables), max(-(-end // pages.size) for end in ends)), dtype=np.int64)
        for row, table in zip(table_SN, tables, strict=True):
            row[: len(table)] = table[: len(row)]
        start_S, whole_S = (np.concatenate(([0], np.cumsum(sizes))) for sizes in (counts, ends))
        parts = (positions, numbers, start_S, whole_S, np.asarray(past), table_SN.reshape(-1))
        there = torch.from_numpy(np.concatenate(parts)).to(pages.device)  # one transfer
        position_T, number_T, start, whole, before, blocks = torch.split(there, [len(part) for part in parts])
        return cls(
            position_T, number_T, len(counts), pages=pages, cells=pages.cells(tables, past, ends),
            past=pages.cells(tables, [0] * len(past), ends) if any(past) else None,
            spans=Spans(start, whole, before, blocks.view(len(tables), -1), max(counts)))

    @classmethod
    def rows(
        cls, pages: Pages, tables: Sequence[Sequence[int]], lengths: Sequence[int], piece: int = 0, split: bool = False,
        width: int = 0,
    ) -> Layout:
        """One token for each table, the last of `lengths[b]` that it attends to. Rows may share a table.

        `piece`, where given, is the number of positions that are looked at together. `split`: rows of similar lengths,
        which should stand together, are attended to by themselves, so that short ones are not padded to the longest.
        `width`: least number of blocks of a row's table, where that should be one of few.
        """
        size, heads = pages.size, pages.heads
        longest = max(lengths) if not piece else -(-max(lengths) // piece) * piece
        table_BN = np.zeros((len(tables), max(-(-longest // size), width)), dtype=np.int64)
        for row, table in zip(table_BN, tables, strict=True):
            row[: len(table)] = table[: len(row)]
        length_B = np.asarray(lengths, dtype=np.int64)
        head_G = np.arange(heads) * size
        block_B = table_BN[np.arange(len(tables)), (length_B - 1) // size]
        own_BG = (block_B * (heads * size) + (length_B - 1) % size)[:, None] + head_G
        numbers = np.concatenate((length_B - 1, length_B, np.arange(len(tables)), own_BG.reshape(-1),
                                  table_BN.reshape(-1)))
        parts = []
        for begin, end in [] if pages.by_kernels else _alike(lengths) if split else [(0, len(tables))]:
            wide = max(lengths[begin:end]) if split else longest
            blocks = table_BN[begin:end, : -(-wide // size)]
            whole = heads == 1 and (not piece or wide % size == 0)
            if whole:
                wide = blocks.shape[1] * size
                cells = torch.from_numpy(blocks.reshape(-1)).to(pages.device)
            else:
                every_BS = (blocks[:, :, None] * (heads * size) + np.arange(size)).reshape(end - begin, -1)[:, :wide]
                cells = torch.from_numpy((every_BS[:, None, :] + head_G[:, None]).reshape(-1)).to(pages.device)
            there_BS = torch.from_numpy(np.arange(wide) < length_B[begin:end, None]).to(pages.device)
            past = torch.zeros(there_BS.shape, dtype=pages.dtype, device=pages.device)
            parts.append(Alike(begin, end, cells, past.masked_fill_(~there_BS, float("-inf")), whole))
        return cls.of_numbers(pages, torch.from_numpy(numbers).to(pages.device), len(tables), tuple(parts), piece)

    @classmethod
    def of_numbers(
        cls, pages: Pages, numbers: Tensor, rows: int, parts: tuple[Alike, ...] = (), piece: int = 0
    ) -> Layout:
        """The layout of so many single tokens whose `Rows.numbers` these are, which are seen and not copied."""
        position_B, length_B, sequence_B, own_BG, table_BN = torch.split(
            numbers, [rows, rows, rows, rows * pages.heads, len(numbers) - rows * (3 + pages.heads)])
        return cls(position_B, sequence_B, rows, pages=pages, cells=own_BG,
                   decoding=Rows(table_BN.view(rows, -1), length_B, parts, piece, numbers))

    def recall(self, layer: int, cells: Tensor) -> tuple[Tensor, ...]:
        """A layer's entries in `cells`, each [cells, width]."""
        assert self.pages is not None
        return tuple(part.view(-1, part.shape[-1]).index_select(0, cells) for part in self.pages.layers[layer])

    def recall_rows(self, layer: int, part: Alike) -> tuple[Tensor, ...]:
        """A layer's entries that these rows attend to, each [rows · G, S, width]."""
        assert self.pages is not None
        if not part.whole:
            past = part.past_BS.shape[1]
            return tuple(entry.view(-1, past, entry.shape[-1]) for entry in self.recall(layer, part.cells))
        return tuple(pool.flatten(1).index_select(0, part.cells).view(len(part.past_BS), -1, pool.shape[-1])
                     for pool in self.pages.layers[layer])

    def to(self, device: torch.device | str) -> Layout:
        """The same layout with its index tensors on `device`; only for layouts without a cache."""
        return Layout(self.positions_T.to(device), self.sequence_T.to(device), self.sequences,
                      tuple(r.to(device) for r in self.rectangles),
                      None if self.place_T is None else self.place_T.to(device), self.in_order)


def _counted(past: Sequence[int], counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Position and sequence of every new token, and where each sequence ends."""
    ends = [before + count for before, count in zip(past, counts, strict=True)]
    positions = np.concatenate([np.arange(before, end) for before, end in zip(past, ends, strict=True)])
    return positions, np.repeat(np.arange(len(counts)), counts), ends


def _alike(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Neighbours that may be padded to the longest of them."""
    found, begin, inside, longest = [], 0, 0, 0
    for row, length in enumerate(lengths):
        longest = max(longest, length)
        if row > begin and longest * (row + 1 - begin) > ROW_PADDING * (inside + length):
            found.append((begin, row))
            begin, inside, longest = row, 0, length
        inside += length
    return [*found, (begin, len(lengths))]


def _rectangles(rows: list[list[int]], tokens: int) -> tuple[list[Tensor], Tensor]:
    """Groups rows of token numbers into padded rectangles; also the cell in which each token's output stands."""
    place = torch.zeros(tokens, dtype=torch.long)
    rectangles: list[Tensor] = []
    cells = 0
    ordered = sorted(rows, key=len, reverse=True)
    first = 0
    while first < len(ordered):
        longest = len(ordered[first])
        last, inside = first + 1, longest
        if longest < LONGEST_GATHERED:
            while last < len(ordered):
                if longest * (last + 1 - first) > MOST_PADDING * (inside + len(ordered[last])):
                    break
                inside += len(ordered[last])
                last += 1
        rectangle = torch.empty(last - first, longest, dtype=torch.long)
        for n, row in enumerate(ordered[first:last]):
            numbers = torch.tensor(row, dtype=torch.long)
            rectangle[n, : len(row)] = numbers
            rectangle[n, len(row):] = row[-1]
            place[numbers] = cells + n * longest + torch.arange(len(row))
        rectangles.append(rectangle)
        cells += rectangle.numel()
        first = last
    return rectangles, place

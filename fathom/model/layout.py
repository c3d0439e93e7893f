"""Layout: which token is where, in which sequence and cache slot. Tokens lie in one row without padding.

Attention is the only place where sequences matter, so the layout is an argument of the forward pass and nothing else
knows of it. Without a cache a layout holds *rectangles*: sequences of similar length, one row of token numbers each, so
that one attention call serves many sequences. A token may stand in several sequences: a prompt shared by a group of
completions is stored, projected and fed forward once, and is attended to by each of them.

With a cache, every token has a slot (its sequence's place in the cache); the cache is written in prefill and in
decoding, and decoding, one token per slot, reads from it.
"""

# T tokens, S sequences, N sequences in one rectangle, L their padded length, B cache slots

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.model.config import ModelConfig

LONGEST_GATHERED = 512  # longer sequences go singly: padding them costs more than a call
MOST_PADDING = 1.25  # cells of a rectangle per token in it (a call per short sequence: 20× slower)


class Cache:
    """What attention keeps of past tokens: for each layer, tensors of shape [slots, heads, length, width].

    For latent attention this is one tensor of one head, the normalised latent and the rotated shared key (DeepSeek-V2
    §2.1.2); for grouped-query attention two, rotated keys and values of every key/value head. `lengths[b]` counts the
    tokens that slot b holds; none holds more than `longest`, a number that is known without asking the device.
    """

    def __init__(self, config: ModelConfig, slots: int, length: int, dtype: torch.dtype, device: torch.device | str):
        self.lengths = torch.zeros(slots, dtype=torch.long, device=device)
        self.longest, self.dtype = 0, dtype
        self.layers = [
            tuple(torch.zeros(slots, heads, length, width, dtype=dtype, device=device)
                  for heads, width in cache_shapes(config))
            for _ in range(config.num_hidden_layers)
        ]

    def cells(self, slot_T: Tensor, positions_T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where each head of each token stands in a layer's tensors: slots, heads, positions, each [T · heads]."""
        heads = self.layers[0][0].shape[1]
        return (slot_T.repeat_interleave(heads), torch.arange(heads, device=slot_T.device).repeat(len(slot_T)),
                positions_T.repeat_interleave(heads))

    @property
    def bytes(self) -> int:
        """Memory that the cache holds, in bytes."""
        return sum(part.numel() * part.element_size() for layer in self.layers for part in layer)

    def keep(self, slots: Tensor) -> None:
        """Only `slots` ([n] numbers, repeats allowed) stay, in this order: copies prompts, drops what is finished."""
        self.lengths = self.lengths[slots]
        self.layers = [tuple(part.index_select(0, slots) for part in layer) for layer in self.layers]


def cache_shapes(config: ModelConfig) -> tuple[tuple[int, int], ...]:
    """(heads, width) of each tensor that the cache holds per layer: their product is its elements per token."""
    if config.attention == "mla":
        return ((1, config.kv_lora_rank + config.qk_rope_head_dim),)
    return ((config.num_key_value_heads, config.head_dim),) * 2


@dataclass(frozen=True)
class Layout:
    """Positions, sequences and cache slots of T tokens; build one with `packed`, `prefill` or `decode`."""

    positions_T: Tensor
    sequence_T: Tensor  # number of the (first) sequence that a token stands in
    sequences: int
    rectangles: tuple[Tensor, ...] = ()  # each [N, L]: token numbers; cells past a sequence's end repeat its last token
    place_T: Tensor | None = None  # cell, over all rectangles laid end to end, that holds a token's attention output
    in_order: bool = False  # the rectangles' cells are the tokens, in their order: nothing need be gathered
    cache: Cache | None = None
    cells: tuple[Tensor, Tensor, Tensor] | None = None  # with a cache: where each token's entries go, see Cache.cells
    past_BS: Tensor | None = None  # decoding: 0 where a slot holds a token, this step's own included, else −∞

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
    def prefill(cls, lengths: Sequence[int], cache: Cache, slots: Sequence[int]) -> Layout:
        """Whole prompts into empty cache slots, one sequence per slot."""
        flat = cls.packed(lengths, cache.lengths.device)
        slot_S = torch.tensor(list(slots), dtype=torch.long, device=cache.lengths.device)
        cache.lengths[slot_S] = torch.tensor(list(lengths), dtype=torch.long, device=cache.lengths.device)
        cache.longest = max(cache.longest, *lengths)
        return cls(flat.positions_T, flat.sequence_T, flat.sequences, flat.rectangles, flat.place_T,
                   flat.in_order, cache, cache.cells(slot_S[flat.sequence_T], flat.positions_T))

    @classmethod
    def decode(cls, cache: Cache) -> Layout:
        """The next token of every cache slot; the slot's length grows by one."""
        positions = cache.lengths.clone()
        cache.lengths += 1
        cache.longest += 1
        slots = torch.arange(len(positions), device=positions.device)
        there_BS = torch.arange(cache.longest, device=positions.device)[None, :] <= positions[:, None]
        past_BS = torch.zeros(there_BS.shape, dtype=cache.dtype, device=positions.device)
        return cls(positions, slots, len(positions), cache=cache, cells=cache.cells(slots, positions),
                   past_BS=past_BS.masked_fill_(~there_BS, float("-inf")))

    def to(self, device: torch.device | str) -> Layout:
        """The same layout with its index tensors on `device`; only for layouts without a cache."""
        return Layout(self.positions_T.to(device), self.sequence_T.to(device), self.sequences,
                      tuple(r.to(device) for r in self.rectangles),
                      None if self.place_T is None else self.place_T.to(device), self.in_order)


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

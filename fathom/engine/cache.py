"""Blocks of the cache: who holds which, what they hold, and which may be had. Loads no torch.

A completion's tokens lie in blocks of `size` tokens, named by a table of block numbers. Blocks are shared: by the n
completions of one prompt, and by prompts that begin alike, found by a hash of everything up to a block's end. A block
that nobody holds keeps its entries until its place is needed, the least recently used first.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

NOWHERE = 0  # a block that is never given away: rows that stand for nothing write into it


@dataclass
class Table:
    """Where the entries of one completion's tokens are."""

    blocks: list[int] = field(default_factory=list)
    length: int = 0  # tokens whose entries are there
    keys: list[bytes] = field(default_factory=list)  # of the leading blocks that are full


@dataclass(frozen=True)
class Copy:
    """A block whose entries must be copied before anything is written."""

    source: int
    target: int


class Blocks:
    """`count` blocks of `size` tokens, of which one, NOWHERE, is never given away."""

    def __init__(self, count: int, size: int):
        if count < 2 or size < 1:
            raise ValueError(f"{count} blocks of {size}: at least 2 of 1 token are needed")
        self.count, self.size = count, size
        self.holders = [0] * count
        self._free = deque(range(1, count))
        self._kept: OrderedDict[int, None] = OrderedDict()  # held by nobody, entries intact; next to go first
        self._block: dict[bytes, int] = {}  # key → block
        self._key: dict[int, bytes] = {}  # and back

    @property
    def available(self) -> int:
        """Blocks that can be had now."""
        return len(self._free) + len(self._kept)

    @property
    def total(self) -> int:
        """Blocks that can be had when nobody holds any."""
        return self.count - 1

    def needed(self, table: Table, length: int) -> int:
        """Blocks that `grow` would take."""
        more = -(-length // self.size) - len(table.blocks)
        return max(more, 0) + (self._shared_end(table, length) is not None)

    def open(self, tokens: Sequence[int]) -> Table:
        """A table that holds the longest beginning of `tokens` that is known, in whole blocks.

        The last token is never among it: somebody must compute what follows.
        """
        table = Table()
        for start in range(0, len(tokens) - self.size, self.size):
            key = self._name(table, tokens[start: start + self.size])
            block = self._block.get(key)
            if block is None:
                break
            if not self.holders[block]:
                del self._kept[block]
            self.holders[block] += 1
            table.blocks.append(block)
            table.keys.append(key)
            table.length += self.size
        return table

    def grow(self, table: Table, length: int) -> list[Copy]:
        """Gives the table room to be written from its own length up to `length` tokens.

        What must be copied first comes back: a block that others hold too is not written to. Raises ValueError where
        `needed` blocks are not available.
        """
        if self.needed(table, length) > self.available:
            raise ValueError(f"{length} tokens: {self.needed(table, length)} blocks needed, {self.available} available")
        copies = []
        shared = self._shared_end(table, length)
        if shared is not None:
            fresh = self._take()
            copies.append(Copy(table.blocks[shared], fresh))
            self._drop(table.blocks[shared])
            table.blocks[shared] = fresh
        while len(table.blocks) * self.size < length:
            table.blocks.append(self._take())
        return copies

    def fork(self, table: Table) -> Table:
        """A second holder of all entries of `table`."""
        blocks = table.blocks[: -(-table.length // self.size)]  # not of room for what is yet to come
        for block in blocks:
            self.holders[block] += 1
        return Table(blocks, table.length, list(table.keys))

    def advance(self, table: Table, tokens: Sequence[int], length: int) -> None:
        """The entries of `tokens[:length]` are there now: blocks that became full can be found by others."""
        table.length = length
        for number in range(len(table.keys), length // self.size):
            key = self._name(table, tokens[number * self.size: (number + 1) * self.size])
            table.keys.append(key)
            block = table.blocks[number]
            if key not in self._block and block not in self._key:  # the first to know it stays the one that is found
                self._block[key] = block
                self._key[block] = key

    def close(self, table: Table) -> None:
        """Gives all blocks back; the last ones are the first to be used again, for others may share the beginning."""
        for block in reversed(table.blocks):
            self._drop(block)
        table.blocks.clear()
        table.keys.clear()
        table.length = 0

    def forget(self) -> None:
        """No block's entries are worth anything any more: the weights changed. Nobody may hold any."""
        if any(self.holders):
            raise ValueError("blocks are held; close every table first")
        self._free.extend(self._kept)
        self._kept.clear()
        self._block.clear()
        self._key.clear()

    def check(self, tables: Sequence[Table]) -> None:
        """AssertionError where the books do not balance with the tables that are open."""
        held = [0] * self.count
        for table in tables:
            assert table.length <= len(table.blocks) * self.size
            for block in table.blocks:
                held[block] += 1
        assert held == self.holders and not held[NOWHERE]
        idle = [*self._free, *self._kept]
        assert len(set(idle)) == len(idle)
        assert sorted(idle) == [block for block in range(1, self.count) if not held[block]]
        assert {key: block for block, key in self._key.items()} == self._block
        assert all(block in self._key for block in self._kept) and not any(block in self._key for block in self._free)

    def _shared_end(self, table: Table, length: int) -> int | None:
        """The place of the partly filled block that would be written to and must not be; None without one."""
        place = table.length // self.size
        if length <= table.length or place >= len(table.blocks):
            return None
        block = table.blocks[place]  # full for others where it is known: what one wrote after the common part
        return place if self.holders[block] > 1 or block in self._key else None

    def _name(self, table: Table, tokens: Sequence[int]) -> bytes:
        before = table.keys[-1] if table.keys else b""
        return hashlib.blake2b(before + np.asarray(tokens, dtype=np.int32).tobytes(), digest_size=16).digest()

    def _take(self) -> int:
        if self._free:
            block = self._free.popleft()
        else:
            block, _ = self._kept.popitem(last=False)
            del self._block[self._key.pop(block)]
        self.holders[block] = 1
        return block

    def _drop(self, block: int) -> None:
        self.holders[block] -= 1
        assert self.holders[block] >= 0
        if self.holders[block]:
            return
        if block in self._key:
            self._kept[block] = None
        else:
            self._free.append(block)

"""Loader: examples in a named random order, epoch after epoch, resumable to the example."""

# n examples, T tokens over all of them

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fathom.core.errors import FathomError
from fathom.train.batch import Example


@dataclass(frozen=True)
class Examples:
    """Tokenised examples in three flat arrays: `tokens` [T] int32, `trained` [T] bool, `starts` [n + 1]."""

    tokens: np.ndarray
    trained: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, i: int) -> Example:
        a, b = self.starts[i], self.starts[i + 1]
        return Example(self.tokens[a:b], self.trained[a:b])

    @classmethod
    def gather(cls, pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> Examples:
        """From (tokens, trained) of each example."""
        tokens, trained = [], []
        for t, m in pairs:
            tokens.append(np.asarray(t, dtype=np.int32))
            trained.append(np.asarray(m, dtype=bool))
        if not tokens:
            raise FathomError("0 examples: nothing to learn from; look at the rejects with `fathom show RUN --rejects`")
        starts = np.concatenate([[0], np.cumsum([len(t) for t in tokens])])
        return cls(np.concatenate(tokens), np.concatenate(trained), starts)

    def split(self, held_out: int, order: np.ndarray) -> tuple[Examples, Examples]:
        """(the rest, `held_out` examples), chosen by the front of the permutation `order`."""
        if not 0 <= held_out < len(self):
            raise FathomError(f"held_out={held_out}: there are {len(self)} examples and one at least must be left to "
                              "train on; hold out fewer")
        aside, rest = np.sort(order[:held_out]), np.sort(order[held_out:])
        return self._some(rest), self._some(aside)

    def _some(self, numbers: np.ndarray) -> Examples:
        chosen = [self[i] for i in numbers]
        if not chosen:
            return Examples(self.tokens[:0], self.trained[:0], np.zeros(1, dtype=np.int64))
        return Examples.gather((e.tokens, e.trained) for e in chosen)


class Loader:
    """Takes examples for one step after another; `state` and `restore` continue exactly where it stood."""

    def __init__(self, examples: Examples, rng: Callable[[int], np.random.Generator]):
        """`rng(epoch)` orders an epoch; it must depend on the epoch alone."""
        if int(np.diff(examples.starts).max()) < 2:
            raise FathomError(f"{len(examples)} examples of one token: there is no next one to learn; use longer ones")
        self.examples, self._rng = examples, rng
        self.epoch, self.cursor = 0, 0
        self._order = rng(0).permutation(len(examples))

    def take(self, tokens: int) -> list[Example]:
        """Examples until `tokens` input tokens are reached, at least one."""
        taken: list[Example] = []
        size = 0
        while size < tokens:
            if self.cursor == len(self._order):
                self._turn(self.epoch + 1)
            example = self.examples[int(self._order[self.cursor])]
            if taken and size + len(example.tokens) - 1 > tokens:
                break
            taken.append(example)
            size += len(example.tokens) - 1
            self.cursor += 1
        return taken

    def _turn(self, epoch: int) -> None:
        self.epoch, self.cursor = epoch, 0
        self._order = self._rng(epoch).permutation(len(self.examples))

    def state(self) -> dict[str, Any]:
        """Where the loader stands."""
        return {"epoch": self.epoch, "cursor": self.cursor, "examples": len(self.examples)}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes where `state` says; the examples must be the same."""
        if state["examples"] != len(self.examples):
            raise FathomError(f"the checkpoint was made with {state['examples']} examples, now there are "
                              f"{len(self.examples)}; put the data back or start with --fresh")
        self._turn(state["epoch"])
        self.cursor = state["cursor"]

"""From examples to tokens: what is kept, what is rejected, and the flat arrays that a loader reads."""

from __future__ import annotations

from typing import Any

import numpy as np

from fathom.core.chat import Message
from fathom.core.records import RecordStore
from fathom.model.tokenizer import Encoded, Tokenizer
from fathom.train.loader import Examples


def schema() -> Any:
    """Columns of a store of tokenised examples."""
    import pyarrow

    return pyarrow.schema([
        pyarrow.field("tokens", pyarrow.list_(pyarrow.int32())),
        pyarrow.field("trained", pyarrow.list_(pyarrow.bool_())),
    ])


def encode(tokenizer: Tokenizer, example: tuple[Message, ...] | str) -> Encoded:
    """A text as a document in which everything is trained, a chat with its assistant turns trained."""
    return tokenizer.document(example) if isinstance(example, str) else tokenizer.chat(example)


def examples(store: RecordStore) -> Examples:
    """The tokenised examples that a store kept."""
    return Examples.gather((r.data["tokens"], r.data["trained"]) for r in store.kept())


def rows(source: Examples, length: int) -> Examples:
    """Documents end to end, in their order, cut into rows of `length` + 1 tokens that overlap by one; the last, shorter
    one is kept. For pre-training without a mask between documents (DeepSeek-V3 §4.2)."""
    starts = np.arange(0, max(1, len(source.tokens) - 1), length)
    return Examples.gather((source.tokens[a: a + length + 1], source.trained[a: a + length + 1]) for a in starts)

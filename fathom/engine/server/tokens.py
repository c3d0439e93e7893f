"""Single tokens as bytes and text, for log-probabilities, and texts as tokens without keeping others waiting."""

from __future__ import annotations

import asyncio
import codecs
import functools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fathom.engine.server.errors import ApiError
from fathom.engine.text import vocabulary
from fathom.model.tokenizer import Tokenizer

T = TypeVar("T")
PER_TOKEN = 16  # characters per token that hardly any text has; a longer one is looked at before it is encoded whole
SLACK = 64  # tokens by which a cut can change the count before it


class TokenTexts:
    """What single tokens write."""

    def __init__(self, tokenizer: Tokenizer):
        self._name, self._control = tokenizer.backend.id_to_token, tokenizer.control_ids
        self._bytes = vocabulary(tokenizer)

    def raw(self, token: int) -> bytes:
        """A token's bytes: part of a character, it may be; a control token's are those of its name."""
        return (self._name(token) or "").encode() if token in self._control else self._bytes[token]

    def shown(self, token: int) -> bytes:
        """A token's bytes in a text: a control token has none."""
        return self._bytes[token]

    def text(self, token: int) -> str:
        """A token's text, parts of characters replaced."""
        return self.raw(token).decode(errors="replace")

    def name(self, token: int) -> str:
        """A token's text, or its bytes spelt out where they are no text: different tokens keep different names."""
        written = self.raw(token)
        try:
            return written.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in written)


class Offsets:
    """Where in a text each token begins, in characters."""

    def __init__(self, texts: TokenTexts, start: int = 0):
        self._texts, self._at = texts, start
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def of(self, tokens: Iterable[int]) -> list[int]:
        """The places of the next tokens."""
        places = []
        for token in tokens:
            places.append(self._at)
            self._at += len(self._decoder.decode(self._texts.shown(token)))
        return places


class Encoder:
    """Makes token ids in a thread of its own: one at a time, since a tokenizer is not to be shared between threads."""

    def __init__(self, tokenizer: Tokenizer, max_length: int):
        self.tokenizer, self.max_length = tokenizer, max_length
        self._thread = ThreadPoolExecutor(1, "fathom-encoder")

    async def run(self, work: Callable[..., T], *args: Any, **named: Any) -> T:
        """What `work` returns, called in the encoder's thread."""
        return await asyncio.get_running_loop().run_in_executor(
            self._thread, functools.partial(work, *args, **named))

    def text(self, text: str, bos: bool | None, param: str) -> list[int]:
        """Token ids of a text, BOS first if `bos`, or if it is None and the tokenizer adds one. In the thread only."""
        self.check(text, param)
        begin = self.tokenizer.bos_id if (self.tokenizer.add_bos if bos is None else bos) else None
        return [*([] if begin is None else [begin]), *self.tokenizer.encode(text)]

    def check(self, text: str, param: str) -> None:
        """Raises ApiError for a text that cannot fit, from its beginning alone where that suffices."""
        longest = PER_TOKEN * self.max_length
        if len(text) > longest and len(self.tokenizer.encode(text[:longest])) > self.max_length + SLACK:
            raise too_long(f"{param}: {len(text)} characters", self.max_length, param)


def too_long(what: str, max_length: int, param: str) -> ApiError:
    """The error for more tokens than the model holds."""
    return ApiError(400, f"{what} do not fit: the model holds {max_length} tokens, prompt and completion together; "
                    "shorten the prompt or ask for fewer tokens", param, "context_length_exceeded")

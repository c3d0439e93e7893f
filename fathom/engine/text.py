"""Text of a completion while its tokens come: characters once they are whole, and nothing of what may become a stop
string."""

from __future__ import annotations

import codecs
import functools
import json
import re
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

from fathom.core.errors import FathomError, UsageError
from fathom.model.tokenizer import Tokenizer


class Detokenizer:
    """The text of one completion, token by token.

    What all `push` and `finish` gave is `tokenizer.decode` of all tokens: control tokens left out, broken UTF-8
    replaced. A token that ends a completion is not text and is not to be pushed: some files do not call it special.
    A push takes the time that its own bytes take.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._bytes = vocabulary(tokenizer)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """What is certain after `token`: all characters that no later token can change."""
        return self._decoder.decode(self._bytes[token])

    def finish(self) -> str:
        """What was left of a character that never became whole, replaced; the end of the text."""
        return self._decoder.decode(b"", True)


class _Vocabulary(dict[int, bytes]):
    """The bytes that each token stands for, filled in as they are asked for."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        decoder = tokenizer.backend.decoder
        read = {"type": None} if decoder is None else json.loads(decoder.__getstate__())
        kinds = [one["type"] for one in read.get("decoders", [read])]
        if kinds != ["ByteLevel"]:
            named = ", ".join(map(str, kinds))
            raise FathomError(f"tokenizer.json: decoder {named}; text is made of byte-level BPE (ByteLevel) only; "
                              "convert the vocabulary")
        self._name = tokenizer.backend.id_to_token
        self._control = tokenizer.control_ids

    def __missing__(self, token: int) -> bytes:
        name = None if token in self._control else self._name(token)
        try:
            found = b"" if name is None else bytes(_BYTES[character] for character in name)
        except KeyError:  # an added token, written as itself
            found = name.encode() if name is not None else b""
        self[token] = found
        return found


def _alphabet() -> dict[str, int]:
    """The character with which byte-level vocabularies write each byte: itself where it is printable Latin-1."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _alphabet()
_known: weakref.WeakKeyDictionary[Tokenizer, _Vocabulary] = weakref.WeakKeyDictionary()


def vocabulary(tokenizer: Tokenizer) -> _Vocabulary:
    """The bytes that each token of a tokenizer stands for, b"" for control tokens and ids that are none."""
    found = _known.get(tokenizer)
    if found is None:
        found = _known[tokenizer] = _Vocabulary(tokenizer)
    return found


class StopStrings:
    """Shows a text as it comes, up to the stop string that is completed first.

    "First" counts characters, so it does not matter how tokens cut the text; of several that are completed by the same
    character the longest is cut off. What is held back is the shortest end of the text that may yet become part of a
    stop string. Each character takes constant time (Aho and Corasick's automaton).
    """

    def __init__(self, stops: Sequence[str]):
        self._automaton = _automaton(tuple(stops))
        self._state = 0
        self._held = ""
        self.stopped = False

    def push(self, text: str, armed: bool = True) -> tuple[str, bool]:
        """What can be shown after `text` came, and whether a stop string was completed; what follows it is dropped.

        Where not `armed`, stop strings that `text` completes do not count (`Sampling.min_tokens`).
        """
        if self.stopped:
            raise ValueError("text after a stop string")
        if not self._automaton.first:
            return text, False
        automaton, state, at = self._automaton, self._state, 0
        while at < len(text):
            if state == 0:  # nothing until a character that begins a stop string
                found = automaton.begins.search(text, at)
                if found is None:
                    break
                at = found.start()
            state = automaton.step(state, text[at])
            at += 1
            if armed and automaton.ends[state]:
                self.stopped = True
                whole = self._held + text[:at]
                self._held = ""
                return whole[: len(whole) - automaton.ends[state]], True
        whole = self._held + text
        shown = len(whole) - automaton.depth[state]
        self._state, self._held = state, whole[shown:]
        return whole[:shown], False

    def finish(self) -> str:
        """What was held back, once it is clear that nothing follows."""
        held, self._held, self._state = self._held, "", 0
        return held


@dataclass
class _Automaton:
    """The tree of the stop strings; a state is the longest end of the text that begins one of them."""

    begins: re.Pattern[str]
    first: bool  # whether there are any
    next: list[dict[str, int]] = field(default_factory=lambda: [{}])
    back: list[int] = field(default_factory=lambda: [0])  # the state of the longest proper end
    depth: list[int] = field(default_factory=lambda: [0])
    ends: list[int] = field(default_factory=lambda: [0])  # length of the longest stop string that a state completes

    def step(self, state: int, character: str) -> int:
        """The state after one more character; amortised constant time."""
        while (found := self.next[state].get(character)) is None and state:
            state = self.back[state]
        return found or 0


@functools.lru_cache(256)
def _automaton(stops: tuple[str, ...]) -> _Automaton:
    if "" in stops:
        raise UsageError("stop: an empty string, which ends every completion before it begins; leave it out")
    made = _Automaton(re.compile("[" + "".join(sorted({re.escape(s[0]) for s in stops})) + "]" if stops else "(?!)"),
                      bool(stops))
    for stop in stops:
        state = 0
        for character in stop:
            if character not in made.next[state]:
                made.next[state][character] = len(made.next)
                made.next.append({})
                made.back.append(0)
                made.depth.append(made.depth[state] + 1)
                made.ends.append(0)
            state = made.next[state][character]
        made.ends[state] = len(stop)
    order = list(made.next[0].values())
    for state in order:  # grows as it goes: breadth first
        for character, child in made.next[state].items():
            made.back[child] = made.step(made.back[state], character)
            made.ends[child] = made.ends[child] or made.ends[made.back[child]]
            order.append(child)
    return made

"""Guided JSON: which tokens may come next so that a completion satisfies a JSON schema.

The grammar is llguidance's (extra `guided`), a library without dependencies. Whatever it cannot hold a completion to,
it refuses, and so does this: a schema is never satisfied in part.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fathom.core.errors import FathomError, UsageError
from fathom.engine.text import vocabulary
from fathom.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance

LONGEST = 32 << 10  # characters of a schema; preparing one of as many properties takes about a second
SECONDS, MEMORY = 2, 1 << 30  # of a processor and bytes: what preparing a schema may take
KEPT = 256  # guides of one tokenizer
_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,40}"  # between the parts of a text; without an end a weak model writes no other
# a step takes about 15 ms at most
_LIMITS = {"initial_lexer_fuel": 200_000, "step_lexer_fuel": 200_000, "max_lexer_states": 50_000,
           "max_grammar_size": 200_000, "verbose_errors": False}


class Guide:
    """A JSON schema on a vocabulary: makes the state of each completion that has to satisfy it."""

    def __init__(self, tokenizer: Tokenizer, schema: str):
        """`schema` is JSON text, "{}" for any JSON. Raises UsageError with the reason where it cannot be had."""
        library = _library()
        text = _checked(schema)
        grammar = library.LLMatcher.grammar_from_json_schema(
            text, overrides={"whitespace_pattern": _WHITESPACE, "lenient": False, "coerce_one_of": False})
        _probe(grammar)
        self._matcher = library.LLMatcher(
            _words(tokenizer), grammar, log_level=0, limits=library.LLParserLimits(**_LIMITS))
        self._stops = tokenizer.stop_ids
        self._matcher.compute_bitmask()  # what is not satisfiable shows here
        if self._matcher.is_error() or (self._matcher.is_stopped() and not self._matcher.is_accepting()):
            raise UsageError(f"json_schema: {_reason(self._matcher) or 'nothing satisfies it'}; correct or simplify it")

    @classmethod
    def of(cls, tokenizer: Tokenizer, schema: str) -> Guide:
        """The guide for this tokenizer and schema, made or refused once; safe to call from any thread.

        A new schema takes a third of a second, a hostile one some seconds, and they are prepared one after another.
        """
        _library()
        with _lock:
            guides = _guides.setdefault(tokenizer, {})
            found = guides.pop(schema, None)
        if found is None:
            try:
                found = cls(tokenizer, schema)
            except UsageError as error:
                found = str(error)
        with _lock:
            guides[schema] = found  # the last one used stands last
            if len(guides) > KEPT:
                del guides[next(iter(guides))]
        if isinstance(found, str):
            raise UsageError(found)
        return found

    def state(self) -> GuideState:
        """Where a completion begins."""
        return GuideState(self._matcher.deep_copy(), self._stops)


class GuideState:
    """How far one completion has come in its guide."""

    def __init__(self, matcher: llguidance.LLMatcher, stops: frozenset[int]):
        self._matcher, self._stops = matcher, stops
        self._stopped = False

    @property
    def complete(self) -> bool:
        """Whether the text so far satisfies the schema, so that a stop token may follow."""
        return bool(self._matcher.is_accepting())

    @property
    def finished(self) -> bool:
        """Whether nothing may follow but a stop token, or one has come."""
        return self._stopped or (bool(self._matcher.is_stopped()) and self.complete)

    def allowed(self) -> Tensor:
        """The tokens that may come next, bits packed in int32, the lowest first; stop tokens exactly where `complete`.

        On the CPU, for `Row.allowed`. Raises FathomError where the grammar became too large to follow.
        """
        mask = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.int32)
        if self._matcher.is_error():
            raise FathomError(f"json_schema: {_reason(self._matcher)}; simplify it")
        return mask

    def accept(self, token: int) -> None:
        """Goes on by a token that `allowed` held. Raises FathomError for any other."""
        if self._stopped or (token in self._stops and not self.complete):
            raise FathomError(f"json_schema: token {token} where the guide does not allow it; draw from what it allows")
        if token in self._stops:
            self._stopped = True
        elif not self._matcher.consume_token(token):
            raise FathomError(f"json_schema: token {token}: {_reason(self._matcher)}; draw from what the guide allows")

    def copy(self) -> GuideState:
        """A state of its own, for tokens that are only proposed."""
        other = GuideState(self._matcher.deep_copy(), self._stops)
        other._stopped = self._stopped
        return other


_lock = threading.Lock()
_probing = threading.Lock()  # one schema at a time, whoever asks
_guides: weakref.WeakKeyDictionary[Tokenizer, dict[str, Guide | str]] = weakref.WeakKeyDictionary()
_tries: weakref.WeakKeyDictionary[Tokenizer, llguidance.LLTokenizer] = weakref.WeakKeyDictionary()


@functools.cache
def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise UsageError("json_schema needs the package llguidance: pip install 'fathom-reasoning[guided]'") from error
    return llguidance


def _words(tokenizer: Tokenizer) -> llguidance.LLTokenizer:
    """The vocabulary as the library wants it: the very bytes that completions are decoded with."""
    with _lock:
        found = _tries.get(tokenizer)
        if found is None:
            library = _library()
            found = _tries[tokenizer] = library.LLTokenizer(
                library.TokenizerWrapper(_Words(tokenizer)), eos_token=sorted(tokenizer.stop_ids))
    return found


class _Words:
    """A vocabulary under the names that the library reads."""

    def __init__(self, tokenizer: Tokenizer):
        raw, size = vocabulary(tokenizer), max(tokenizer.backend.get_vocab(with_added_tokens=True).values()) + 1
        # stop tokens are never text here, whether or not their file calls them special; nor is what has no bytes
        special = tokenizer.control_ids | tokenizer.stop_ids | {i for i in range(size) if not raw[i]}
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, tokenizer.bos_id
        self.tokens = [f"<control {i}>".encode() if i in special else raw[i] for i in range(size)]
        self.special_token_ids = sorted(special)
        self._backend = tokenizer.backend  # not the tokenizer, which what is made for it must not keep

    def __call__(self, text: str | bytes) -> list[int]:
        written = text if isinstance(text, str) else text.decode("utf-8", "replace")
        ids: list[int] = self._backend.encode(written, add_special_tokens=False).ids
        return ids


def _checked(schema: str) -> str:
    """The schema as this module wrote it anew: what the library splices into its grammar is one JSON value."""
    if len(schema) > LONGEST:
        raise UsageError(f"json_schema: {len(schema)} characters; at most {LONGEST}: simplify it")
    try:
        value = json.loads(schema)
        text = json.dumps(value, allow_nan=False)
    except RecursionError as error:
        raise UsageError("json_schema: nested too deeply; use definitions ($defs) or flatten it") from error
    except ValueError as error:
        raise UsageError(f"json_schema: not JSON ({error}); correct it") from error
    if not isinstance(value, (dict, bool)):
        raise UsageError(f"json_schema: {schema[:40]!r} is no schema; write an object, like {{}} for any JSON")
    if value is False:
        raise UsageError("json_schema: false, which nothing satisfies; write {} for any JSON")
    return "{}" if value is True else text


def _probe(grammar: str) -> None:
    """Prepares a grammar in a process of its own first, where it can be ended: some take the library for ever.

    Twenty patterns that must hold together do, or multiples of a large number, whatever limits the library is given.
    """
    limits = {"grammar": grammar, "limits": _LIMITS, "seconds": SECONDS, "bytes": MEMORY}
    try:
        with _probing:
            done = subprocess.run([sys.executable, "-I", "-c", _PROBE], input=json.dumps(limits).encode(),
                                  capture_output=True, timeout=15 * SECONDS)
    except subprocess.TimeoutExpired as error:
        raise UsageError(f"json_schema: not prepared within {15 * SECONDS} s; simplify it") from error
    if done.returncode > 0:
        raise FathomError(f"json_schema: could not be prepared ({done.stderr.decode(errors='replace')[-300:]})")
    if done.returncode:  # ended by a signal: a limit
        raise UsageError(f"json_schema: takes over {SECONDS} s of computing or {MEMORY >> 20} MiB to prepare; simplify "
                         "it: fewer patterns that hold together, smaller multipleOf, fewer properties")


_PROBE = """
import json, sys
asked = json.load(sys.stdin)
import resource
for what, most in ((resource.RLIMIT_CPU, asked["seconds"]), (resource.RLIMIT_AS, asked["bytes"]),
                   (resource.RLIMIT_CORE, 0)):
    try:
        resource.setrlimit(what, (most, most))
    except (ValueError, OSError):  # macOS knows no limit of the address space
        if what != resource.RLIMIT_AS:
            raise
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
limits = LLParserLimits(**asked["limits"])
LLMatcher(LLTokenizer("byte"), asked["grammar"], log_level=0, limits=limits).compute_bitmask()
"""


def _reason(matcher: llguidance.LLMatcher) -> str:
    """The library's words, on one line."""
    words: str = matcher.get_error().replace("<non-verbose/>", "")
    return " ".join(words.split())[:200]

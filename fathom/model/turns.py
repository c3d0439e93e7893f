"""Where the messages of a chat stand in its rendering, whatever the template does with them.

Templates trim contents, drop the thinking of older turns, put system texts first; so contents are rendered as they are,
and what depends on each is found by rendering again with a character in its place that no content can hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fathom.core.errors import FathomError
from fathom.model.template import ChatTemplate

# Three characters that Unicode leaves to private use. In contents they are written ESCAPE and a digit.
CUT, ESCAPE, PROBE = "\U0010fff0", "\U0010fff1", "\U0010fff2"
_ESCAPED = {CUT: ESCAPE + "0", ESCAPE: ESCAPE + "1", PROBE: ESCAPE + "2"}
_PRIVATE = re.compile("[" + "".join(_ESCAPED) + "]")
_BACK = {written: character for character, written in _ESCAPED.items()}
_WRITTEN = re.compile(f"{CUT}|{ESCAPE}[012]")

Plain = Sequence[Mapping[str, str]]  # messages as templates see them: role and content


class Span(NamedTuple):
    """A stretch of a text, in characters."""

    start: int
    end: int


def guard(text: str, control: re.Pattern[str] | None) -> str:
    """`text` for a template: what looks like a control token is broken by CUT after its first character."""
    if _PRIVATE.search(text):
        text = _PRIVATE.sub(lambda found: _ESCAPED[found[0]], text)
    return text if control is None else control.sub(lambda found: found[0][0] + CUT + found[0][1:], text)


def unguard(text: str) -> str:
    """The text that was guarded."""
    return _WRITTEN.sub(lambda found: _BACK.get(found[0], ""), text)


def is_guarded(text: str) -> bool:
    """Whether something in `text` was broken or escaped."""
    return CUT in text or ESCAPE in text


class Part(NamedTuple):
    """A piece of a content: a mark that templates look for, and the text up to the next one."""

    fixed: str
    text: str


def _parts(content: str) -> list[Part]:
    """A content as one piece, or as its thinking and its answer."""
    thinking, end, answer = content.partition("</think>")
    opening = "<think>" if thinking.startswith("<think>") else ""
    thinking = thinking.removeprefix(opening)
    if not end or "</think>" in answer or "<think>" in thinking + answer:
        return [Part("", content)]
    return [Part(opening, thinking), Part(end, answer)]


class _Skeleton(NamedTuple):
    """What a template writes around the pieces of contents: a guess about other contents, which `fill` checks."""

    between: list[str]
    pieces: list[tuple[int, int]]  # message and part that follow each but the last of `between`

    @classmethod
    def of(cls, text: str, contents: Sequence[Sequence[Part]]) -> _Skeleton | None:
        """From a rendering of probes; None where the last piece of a content is not there once and in its turn."""
        split = re.split(f"{PROBE}([0-9]+)[.]([0-9]+){PROBE}", text)
        pieces = [(int(i), int(k)) for i, k in zip(split[1::3], split[2::3], strict=True)]
        last = [i for i, k in pieces if k == len(contents[i]) - 1]
        if sorted(set(pieces)) != pieces or last != list(range(len(contents))) or PROBE in "".join(split[::3]):
            return None
        return cls(split[::3], pieces)

    def fill(self, text: str, contents: Sequence[Sequence[Part]]) -> list[Span] | None:
        """The spans, if `text` is this with the pieces put in, as they are or stripped; None otherwise."""
        spans: list[Span] = []
        at = 0
        for place, (i, k) in enumerate(self.pieces):
            at += len(self.between[place])
            after, piece = self.between[place + 1], contents[i][k].text
            for said in (piece, piece.strip("\n"), piece.lstrip("\n"), piece.strip()):
                if text.startswith(said, at) and text.startswith(after, at + len(said)):
                    break
            else:
                return None
            start = spans.pop().start if len(spans) > i else at
            spans.append(Span(start, at + len(said)))
            at += len(said)
        whole = at + len(self.between[-1]) == len(text) and text.startswith(self.between[0])
        return spans if whole else None


class Turns:
    """Finds the contents of messages in what a template renders."""

    def __init__(self, template: ChatTemplate):
        self.template = template
        self._skeletons: dict[str, _Skeleton | None] = {}

    def locate(self, messages: Plain, generate: bool, extra: Mapping[str, Any]) -> tuple[str, list[Span]]:
        """The rendering, and for each message the stretch of it that depends on its content.

        Raises FathomError where a message is not written, or an assistant's is not in one place after those before it.
        """
        text = self.template.render(messages, generate, extra)
        contents = [_parts(message["content"]) for message in messages]
        skeleton = self._skeleton(messages, contents, generate, extra)
        spans = None if skeleton is None else skeleton.fill(text, contents)
        if spans is None:
            spans = [self._probe(text, messages, i, generate, extra) for i in range(len(messages))]
        reached = 0
        for i, (message, span) in enumerate(zip(messages, spans, strict=True)):
            if message["role"] != "assistant":
                continue
            others = (s for j, s in enumerate(spans) if j != i and s.start < s.end)
            if span.start < reached or any(s.start < span.end and span.start < s.end for s in others):
                raise FathomError(f"chat template: message {i} (assistant) is not written in one place after the turns "
                                  "before it, so what is to be trained cannot be found; change the template")
            reached = span.end
        return text, spans

    def _skeleton(
        self, messages: Plain, contents: Sequence[Sequence[Part]], generate: bool, extra: Mapping[str, Any]
    ) -> _Skeleton | None:
        shape = [[m["role"], [part.fixed for part in parts]] for m, parts in zip(messages, contents, strict=True)]
        key = json.dumps([shape, generate, extra], default=repr, sort_keys=True)
        if key not in self._skeletons:
            if len(self._skeletons) >= 256:
                self._skeletons.clear()
            marked = [
                {**message, "content": "".join(f"{part.fixed}{PROBE}{i}.{k}{PROBE}" for k, part in enumerate(parts))}
                for i, (message, parts) in enumerate(zip(messages, contents, strict=True))]
            self._skeletons[key] = _Skeleton.of(self.template.render(marked, generate, extra), contents)
        return self._skeletons[key]

    def _probe(self, text: str, messages: Plain, i: int, generate: bool, extra: Mapping[str, Any]) -> Span:
        changed = [{**m, "content": PROBE} if i == j else m for j, m in enumerate(messages)]
        other = self.template.render(changed, generate, extra)
        role, times = messages[i]["role"], other.count(PROBE)
        if times == 0 or other == text:
            raise FathomError(f"chat template: message {i} ({role}) does not appear; change the template, or leave "
                              "such messages out")
        if times > 1 and role == "assistant":
            raise FathomError(f"chat template: message {i} (assistant) appears {times} times, so what is to be trained "
                              "cannot be found; change the template")
        start = common(text, other)
        end = len(text) - min(common(text[::-1], other[::-1]), len(text) - start)
        return Span(start, end)


def common(a: str, b: str) -> int:
    """How many characters at the beginning two texts share."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low

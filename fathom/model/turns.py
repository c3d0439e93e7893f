"""Where the messages of a chat stand in its rendering, whatever the template does with them.

Templates trim contents, drop the thinking of older turns, put system texts first; so contents are rendered as they are,
and what depends on each is found by rendering again with a character in its place that no content can hold.
"""

from __future__ import annotations

import bisect
import functools
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
        reached, alone = 0, _alone(spans)
        for i, (message, span) in enumerate(zip(messages, spans, strict=True)):
            if message["role"] != "assistant":
                continue
            if span.start < reached or not alone[i]:
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


def _alone(spans: Sequence[Span]) -> list[bool]:
    """Whether each span shares no character with another, and an empty one does not stand inside another."""
    order = sorted((span.start, span.end, i) for i, span in enumerate(spans) if span.start < span.end)
    starts = [start for start, _, _ in order]
    furthest = [(0, -1, 0)]  # of the first k in order: the end that reaches furthest, whose it is, the next one's
    for _, end, i in order:
        far, whose, next_far = furthest[-1]
        furthest.append((end, i, far) if end > far else (far, whose, max(next_far, end)))
    found = []
    for i, span in enumerate(spans):
        far, whose, next_far = furthest[bisect.bisect_left(starts, span.end)]
        found.append((next_far if whose == i else far) <= span.start)
    return found


class _Ending(NamedTuple):
    """How a prompt ends: the text that add_generation_prompt adds, and where it begins, from the content before it."""

    offset: int
    generation: str


class Prompts:
    """Where in the rendering of one chat the prompt for each assistant turn ends.

    A prompt is rendered for each of the first SURE turns, for each whose surroundings (the role before it, and what the
    template writes between the two contents) are new, for the last, and at each power of two. Other turns take what
    was found between the same surroundings, so that the cost of a long chat grows with its length and not with its
    square. If two that were rendered differ between the same surroundings, all are rendered.
    """

    SURE = 8

    def __init__(self, turns: Turns, text: str, messages: Plain, spans: Sequence[Span], extra: Mapping[str, Any]):
        self._template, self._text, self._messages, self._spans = turns.template, text, messages, spans
        self._extra = extra
        self._ends = sorted(span.end for span in spans)
        self._known: dict[tuple[str, str], _Ending] = {}
        self._differ = False

    def ask(self, i: int) -> str:
        """The prompt for message `i`."""
        return self._template.render(self._messages[:i], True, self._extra) if i else self._first[0]

    def ends(self) -> dict[int, int]:
        """For each assistant turn where its prompt ends, or as much of it as stands in the rendering.

        Raises FathomError where the generation prompt of the first turn or of another one cannot be found.
        """
        turns = [i for i, message in enumerate(self._messages) if message["role"] == "assistant"]
        found: dict[int, int] = {}
        for k, i in enumerate(turns):
            sure = k < self.SURE or k & (k - 1) == 0 or i == turns[-1]
            guess = None if sure else self._guess(i)
            found[i] = self._exact(i) if guess is None else guess
            if self._differ:
                return {i: self._exact(i) for i in turns}
        return found

    def _around(self, i: int) -> tuple[int, tuple[str, str]]:
        """Where the content before message `i` ends; and its role, with what is written between the two."""
        start, end = self._spans[i]
        place = bisect.bisect_right(self._ends, start) - 1
        place -= start == end  # an empty content ends where it begins, but does not stand before itself
        before = self._ends[place] if place >= 0 else 0
        return before, (self._messages[i - 1]["role"] if i else "", self._text[before:start])

    def _guess(self, i: int) -> int | None:
        before, key = self._around(i)
        ending = self._known.get(key)
        return None if ending is None else self._put(i, before, key[1], ending)

    def _put(self, i: int, before: int, gap: str, ending: _Ending) -> int:
        at = before + ending.offset
        if self._text.startswith(ending.generation, at):
            return at + len(ending.generation)
        return self._shown(gap, before, ending.generation, self._spans[i].start)

    @staticmethod
    def _shown(gap: str, before: int, generation: str, start: int) -> int:
        if generation and (at := gap.rfind(generation)) >= 0:
            return before + at + len(generation)
        return start  # a prompt that is not shown like this, such as R1's <think> before an answer without

    def _exact(self, i: int) -> int:
        asked, text = self.ask(i), self._text
        before, key = self._around(i)
        if i == 0:
            return len(asked) if text.startswith(asked) else self._late(key[1], self._first[1])
        told = self._template.render(self._messages[:i], False, self._extra)
        if not asked.startswith(told):
            if text.startswith(asked):
                return len(asked)
            raise FathomError(f"chat template: add_generation_prompt changes what stands before message {i}, so what "
                              "is to be trained cannot be found; change the template")
        generation = asked[len(told):]
        at = len(told) - before if text.startswith(told) else key[1].rfind(generation)
        if at >= 0:
            ending = _Ending(at, generation)
            self._differ |= self._known.setdefault(key, ending) != ending
        return len(asked) if text.startswith(asked) else self._shown(key[1], before, generation, self._spans[i].start)

    def _late(self, front: str, generation: str) -> int:
        """For a first turn before which more is written than in a chat without messages: where its prompt ends."""
        at = self._shown(front, 0, generation, len(front))
        if at == len(front) and generation and not _overlap(front, generation):
            raise self._unfound()
        return at

    @functools.cached_property
    def _first(self) -> tuple[str, str]:
        """The prompt for a chat's first message, and what of it add_generation_prompt adds."""
        try:
            return self._template.render([], True, self._extra), self._generation([])
        except FathomError:  # many templates refuse a chat without messages: what they add to a question is added here
            generation = self._generation([{"role": "user", "content": "a"}])
        front = self._text[: self._spans[0].start]
        if not (shared := _overlap(front, generation)):
            raise self._unfound()
        return front[:-shared] + generation, generation

    def _generation(self, messages: Plain) -> str:
        """What add_generation_prompt adds to `messages`."""
        asked, told = (self._template.render(messages, generate, self._extra) for generate in (True, False))
        if not asked.startswith(told):
            raise self._unfound()
        return asked[len(told):]

    @staticmethod
    def _unfound() -> FathomError:
        return FathomError("chat template: message 0 (assistant) stands first and no generation prompt is found before "
                           "it, so what is to be trained cannot be found; put a question first, or change the template")


def _overlap(front: str, generation: str) -> int:
    """How much of the beginning of `generation` ends `front`, in characters."""
    return next((k for k in range(min(len(front), len(generation)), 0, -1) if front.endswith(generation[:k])), 0)


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

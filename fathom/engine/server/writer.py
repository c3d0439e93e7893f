"""From the engine's pieces to the parts of an answer: the same parts, streamed one by one or joined into a whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fathom.engine.server.backend import Piece, Top
from fathom.engine.server.order import Order, Prompt
from fathom.engine.server.reasoning import Thinking, ThoughtTokens
from fathom.engine.server.tokens import Offsets, TokenTexts

IMPOSSIBLE = -9999.0  # JSON has no infinities; OpenAI writes this for a probability of 0
Scores = tuple[Sequence[float | None], Sequence[Top | None]]


@dataclass
class Choice:
    """One completion under way."""

    index: int
    prompt: Prompt
    count: int = 0  # tokens so far
    cached: int = 0
    finish: str | None = None
    thought: ThoughtTokens = field(default_factory=lambda: ThoughtTokens(False))


class Writer:
    """Writes the parts of one request's choices and counts their tokens. A part is a choice of a streamed chunk."""

    object: str

    def __init__(self, order: Order, texts: TokenTexts, ids: bool):
        self.order, self.texts, self.ids = order, texts, ids
        self.choices = [Choice(p * order.n + i, prompt, thought=ThoughtTokens(prompt.opened))
                        for p, prompt in enumerate(order.prompts) for i in range(order.n)]
        self.head: dict[str, Any] = {}  # id, created, model: what stands before the choices

    @property
    def finished(self) -> bool:
        """Whether nothing is left to write."""
        return all(choice.finish is not None for choice in self.choices)

    def first(self) -> list[dict[str, Any]]:
        """The parts before any token."""
        raise NotImplementedError

    def parts(self, choice: Choice, piece: Piece) -> list[dict[str, Any]]:
        """The parts that a piece brings."""
        raise NotImplementedError

    def take(self, prompt: int, pieces: Iterable[Piece]) -> list[dict[str, Any]]:
        """The parts that the next pieces of a prompt's completions bring."""
        made: list[dict[str, Any]] = []
        for piece in pieces:
            choice = self.choices[prompt * self.order.n + piece.index]
            choice.count += len(piece.tokens)
            choice.cached = piece.cached
            for token in piece.tokens:
                choice.thought.add(self.texts.raw(token))
            if piece.finish is not None:
                choice.finish = piece.finish
            made += self.parts(choice, piece)
        return made

    def whole(self, parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
        """All parts joined into an answer."""
        raise NotImplementedError

    def usage(self) -> dict[str, Any]:
        """The request's tokens. Of a prompt those count as cached that none of its completions computed."""
        n = self.order.n
        prompt, completion = sum(len(p.tokens) for p in self.order.prompts), sum(c.count for c in self.choices)
        cached = sum(min(c.cached for c in self.choices[i: i + n]) for i in range(0, len(self.choices), n))
        return {
            "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": sum(c.thought.count for c in self.choices)},
        }

    def _ids(self, piece: Piece) -> dict[str, Any]:
        return {"token_ids": list(piece.tokens)} if self.ids else {}


class ChatWriter(Writer):
    """Writes a chat's next turn."""

    object = "chat.completion"

    def __init__(self, order: Order, texts: TokenTexts, ids: bool, logprobs: bool, top: int, separate: bool):
        super().__init__(order, texts, ids)
        self.logprobs, self.top = logprobs, top
        self._thinking = [Thinking(c.prompt.opened) for c in self.choices] if separate else []
        if ids:
            self.head["prompt_token_ids"] = list(order.prompts[0].tokens)

    def first(self) -> list[dict[str, Any]]:
        return [self._part(c, {"role": "assistant", "content": ""}) for c in self.choices]

    def parts(self, choice: Choice, piece: Piece) -> list[dict[str, Any]]:
        thought, answer = "", piece.text
        if self._thinking:
            split = self._thinking[choice.index]
            thought, answer = split.feed(piece.text)
            if piece.finish is not None:
                rest = split.close()
                thought, answer = thought + rest[0], answer + rest[1]
        delta: dict[str, Any] = {}
        if thought:
            delta |= {"reasoning": thought, "reasoning_content": thought}
        if answer:
            delta["content"] = answer
        told = {"content": self._told(piece), "refusal": None} if self.logprobs and piece.tokens else None
        if not delta and told is None and piece.finish is None and not self.ids:
            return []
        return [self._part(choice, delta, told, piece.finish) | self._ids(piece)]

    @staticmethod
    def _part(
        choice: Choice, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        return {"index": choice.index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def _told(self, piece: Piece) -> list[dict[str, Any]]:
        tops: Sequence[Top] = piece.top if self.top and piece.top else [()] * len(piece.tokens)
        return [self._one(token, logprob) | {"top_logprobs": [self._one(*rival) for rival in top[: self.top]]}
                for token, logprob, top in zip(piece.tokens, piece.logprobs, tops, strict=True)]

    def _one(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": self.texts.text(token), "logprob": finite(logprob), "bytes": list(self.texts.raw(token))}

    def whole(self, parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
        made: list[dict[str, Any]] = []
        for mine in _by_choice(parts, len(self.choices)):
            deltas = [part["delta"] for part in mine]
            reasoning = "".join(delta.get("reasoning", "") for delta in deltas) or None
            message = {"role": "assistant", "content": "".join(delta.get("content", "") for delta in deltas),
                       "reasoning": reasoning, "reasoning_content": reasoning, "refusal": None}
            told = [one for part in mine if part["logprobs"] for one in part["logprobs"]["content"]]
            made.append({
                "index": len(made), "message": message,
                "logprobs": {"content": told, "refusal": None} if self.logprobs else None,
                "finish_reason": self.choices[len(made)].finish} | _all_ids(mine, self.ids))
        return self.head | {"object": self.object, "choices": made, "usage": self.usage()}


class CompletionWriter(Writer):
    """Writes continuations of prompts, and the prompts before them where they are to be echoed."""

    object = "text_completion"

    def __init__(
        self, order: Order, texts: TokenTexts, ids: bool, top: int | None, echo: bool,
        decode: Callable[[Sequence[int]], str], scores: Sequence[Scores] = (),
    ):
        """`top` rivals are told beside each token, None: no log-probabilities; `scores` are those of echoed prompts."""
        super().__init__(order, texts, ids)
        self.top, self.echo, self._decode, self._scores = top, echo, decode, scores
        self._offsets = [Offsets(texts) for _ in self.choices]

    def finish_at_once(self) -> None:
        """No token is asked for: the first parts are the last ones."""
        for choice in self.choices:
            choice.finish = "length"

    def first(self) -> list[dict[str, Any]]:
        if not self.echo and not self.ids and not self.finished:
            return []
        return [self._prompt(choice) for choice in self.choices]

    def _prompt(self, choice: Choice) -> dict[str, Any]:
        tokens = choice.prompt.tokens
        part = self._part(choice, "", finish=choice.finish)
        if self.echo:
            part["text"] = self._decode(tokens) if choice.prompt.text is None else choice.prompt.text
            if self.top is not None:
                part["logprobs"] = self._told(choice, tokens, *self._scores[choice.index // self.order.n])
        return part | ({"prompt_token_ids": list(tokens), "token_ids": []} if self.ids else {})

    def parts(self, choice: Choice, piece: Piece) -> list[dict[str, Any]]:
        told = self._told(choice, piece.tokens, piece.logprobs, piece.top) if self.top is not None else None
        if not piece.text and piece.finish is None and not self.ids and (told is None or not piece.tokens):
            return []
        return [self._part(choice, piece.text, told, piece.finish) | self._ids(piece)]

    @staticmethod
    def _part(
        choice: Choice, text: str, logprobs: dict[str, Any] | None = None, finish: str | None = None
    ) -> dict[str, Any]:
        return {"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _told(
        self, choice: Choice, tokens: Sequence[int], logprobs: Sequence[float | None], tops: Sequence[Top | None]
    ) -> dict[str, Any]:
        name, top = self.texts.name, self.top or 0
        chosen = [None if logprob is None else finite(logprob) for logprob in logprobs]
        rivals: list[dict[str, float] | None] = []
        for token, logprob, found in zip(tokens, chosen, tops if top else [None] * len(tokens), strict=True):
            # a name that two tokens share keeps the likelier one's figure: the greatest one stays the greatest
            named = {name(token): logprob} if logprob is not None else {}
            for rival, value in (found or ())[:top]:
                named[name(rival)] = max(finite(value), named.get(name(rival), -math.inf))
            rivals.append(named if logprob is not None else None)
        return {"tokens": [name(token) for token in tokens], "token_logprobs": chosen,
                "top_logprobs": rivals if top else None, "text_offset": self._offsets[choice.index].of(tokens)}

    def whole(self, parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
        made: list[dict[str, Any]] = []
        for mine in _by_choice(parts, len(self.choices)):
            choice = self.choices[len(made)]
            told: dict[str, Any] = {
                "tokens": [], "token_logprobs": [], "top_logprobs": [] if self.top else None, "text_offset": []}
            for part in mine:
                for key, values in (part["logprobs"] or {}).items():
                    if values is not None:
                        told[key] += values
            made.append({
                "index": choice.index, "text": "".join(part["text"] for part in mine),
                "logprobs": None if self.top is None else told, "finish_reason": choice.finish,
            } | _all_ids(mine, self.ids) | ({"prompt_token_ids": list(choice.prompt.tokens)} if self.ids else {}))
        return self.head | {"object": self.object, "choices": made, "usage": self.usage()}


def finite(logprob: float) -> float:
    """A log-probability that JSON can write."""
    return logprob if math.isfinite(logprob) else IMPOSSIBLE


def _by_choice(parts: Iterable[dict[str, Any]], count: int) -> list[list[dict[str, Any]]]:
    mine: list[list[dict[str, Any]]] = [[] for _ in range(count)]
    for part in parts:
        mine[part["index"]].append(part)
    return mine


def _all_ids(parts: Iterable[dict[str, Any]], asked: bool) -> dict[str, Any]:
    return {"token_ids": [token for part in parts for token in part.get("token_ids", ())]} if asked else {}

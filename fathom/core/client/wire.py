"""What goes over the wire: requests as OpenAI and vLLM name their fields, and replies read with distrust."""

from __future__ import annotations

import base64
import json
import mimetypes
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

from fathom.core.chat import Image, Message, Sampling
from fathom.core.client.settings import ClientSettings
from fathom.core.console import visible
from fathom.core.errors import UsageError

IMAGE_BYTES = 20 << 20
TOLD = 4096  # characters of what an endpoint says of itself
_FINISHES: Mapping[str, Literal["stop", "length"]] = {
    "stop": "stop", "eos": "stop", "eos_token": "stop", "stop_sequence": "stop", "end_turn": "stop",
    "length": "length", "max_tokens": "length", "model_length": "length",
}
_AGAIN = ("abort", "error")  # finishes of a server that gave up: the reply is no answer
_VERSION = re.compile(r"fathom-[^ ]{1,40}-w(\d{1,15})")  # how our own server names what it computes with
_TOKEN_ID = re.compile(r"token_id:(\d+)")  # how vLLM names tokens where return_tokens_as_token_ids asks for it


class Malformed(Exception):
    """A reply that is not what OpenAI's format promises."""


class Missing(Exception):
    """A reply without the log-probabilities or token ids that the settings demand."""


@dataclass(frozen=True)
class Usage:
    """What a reply says was counted; `estimated` where it said nothing and we counted."""

    prompt: int
    completion: int
    cached: int = 0
    reasoning: int = 0
    estimated: bool = False


@dataclass(frozen=True)
class Choice:
    """One completion of a reply; `failed` names why it is none, and is empty otherwise."""

    text: str
    finish: Literal["stop", "length"]
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    top: tuple[tuple[tuple[int, float], ...], ...] = ()
    failed: str = ""


@dataclass(frozen=True)
class Reply:
    """The completions of one request, in the order of their index, and what they took."""

    choices: tuple[Choice, ...]
    usage: Usage | None
    version: int | None = None  # of the weights, where Fathom's server answered


@dataclass(frozen=True)
class Trouble:
    """What an endpoint said instead of an answer: its status and, as far as told, the reason."""

    status: int
    message: str
    param: str = ""
    code: str = ""

    def __str__(self) -> str:
        return f"{self.status}: {cut(self.message)}" if self.message else str(self.status)


def fields(settings: ClientSettings, sampling: Sampling) -> dict[str, Any]:
    """The fields of a request that are the same for every prompt: everything but messages, n and seed.

    What OpenAI's interface has no name for goes under vLLM's names, and only where it is not at its default.
    Raises UsageError where two settings contradict each other.
    """
    body: dict[str, Any] = {
        "model": settings.model, settings.max_tokens_name: sampling.max_tokens, "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    defaults = Sampling()
    for name in ("presence_penalty", "frequency_penalty", "top_k", "min_p", "repetition_penalty", "min_tokens"):
        if getattr(sampling, name) != getattr(defaults, name):
            body[name] = getattr(sampling, name)
    if sampling.ignore_stop:
        body["ignore_eos"] = True
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.logprobs or settings.logprobs:
        body["logprobs"] = True
        if sampling.logprobs:
            body["top_logprobs"] = sampling.logprobs
    if settings.token_ids:
        body["return_token_ids"] = True
    if sampling.json_schema is not None:
        body["response_format"] = _response_format(sampling.json_schema)
    for name in settings.omit:
        if name in body and body.pop(name) != getattr(defaults, name):
            raise UsageError(f"omit: {name} is left out of requests, sampling sets it to {getattr(sampling, name)}; "
                             "leave it at its default, or out of omit")
    if both := sorted(body.keys() & settings.extra_body.keys()):
        raise UsageError(f"extra_body: {both[0]} is set by sampling too; keep one of the two")
    return {**body, **settings.extra_body}


def _response_format(schema: str) -> dict[str, Any]:
    try:
        value = json.loads(schema)
    except ValueError as error:
        raise UsageError(f"json_schema: not JSON ({error}); give a JSON schema as JSON text") from error
    if not isinstance(value, dict):
        raise UsageError(f"json_schema={schema[:80]}: not a mapping; give a JSON schema, or {{}} for any JSON")
    if not value:
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": value, "strict": True}}


def messages(prompt: Sequence[Message]) -> list[dict[str, Any]]:
    """The prompt as the endpoint takes it; images in local files travel as data URLs."""
    written = []
    for message in prompt:
        if not isinstance(message.content, str):
            parts = tuple(Image(_data_url(p.source)) if isinstance(p, Image) else p for p in message.content)
            message = Message(message.role, parts)
        written.append(message.to_json())
    return written


def _data_url(source: str) -> str:
    if source.startswith(("data:", "http://", "https://")):
        return source
    path = Path(source)
    kind = mimetypes.guess_type(path.name)[0] or ""
    if not kind.startswith("image/"):
        raise UsageError(f"{source}: its name is no image's; name a .png, .jpeg, .webp or .gif file")
    try:
        with open(path, "rb") as file:
            data = file.read(IMAGE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{source}: {error.strerror}; check the path of the image") from error
    if len(data) > IMAGE_BYTES:
        raise UsageError(f"{source}: larger than {IMAGE_BYTES >> 20} MB; make the image smaller")
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def read(data: bytes, settings: ClientSettings, n: int) -> Reply | Trouble:
    """The reply in `data`, at most `n` choices of it, or the trouble that some gateways tell under status 200.

    Raises Malformed for anything else, and Missing where the settings demand what the reply lacks.
    """
    value = _json(data)
    if not isinstance(value, dict):
        raise Malformed(f"JSON, but no mapping: {cut(data)}")
    choices = value.get("choices")
    if value.get("error") and not choices:
        told = trouble(200, data)
        return Trouble(int(told.code) if re.fullmatch(r"[45]\d\d", told.code) else 500, told.message, told.param)
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
        raise Malformed(f"no choices in it: {cut(data)}")
    places = [choice.get("index", place) for place, choice in enumerate(choices)]
    if sorted(places, key=str) != sorted(range(len(choices)), key=str):
        raise Malformed(f"choices with the indexes {str(places)[:80]}")
    ordered = [choice for _, choice in sorted(zip(places, choices, strict=True), key=lambda pair: pair[0])]
    named = _VERSION.fullmatch(str(value.get("system_fingerprint")))
    return Reply(tuple(_choice(choice, settings) for choice in ordered[:n]), _usage(value.get("usage")),
                 int(named[1]) if named else None)


def _choice(choice: dict[str, Any], settings: ClientSettings) -> Choice:
    finish, message = choice.get("finish_reason"), choice.get("message")
    if not isinstance(finish, str) or finish in _AGAIN or not isinstance(message, dict):
        raise Malformed(f"a choice with finish_reason={finish!r} and {'a' if message else 'no'} message")
    if isinstance(refusal := message.get("refusal"), str) and refusal:
        return Choice("", "stop", failed=f"refused: {cut(refusal)}")
    if finish == "content_filter":
        return Choice("", "stop", failed="content_filter: the endpoint withheld the answer")
    if finish in ("tool_calls", "function_call"):
        return Choice("", "stop", failed=f"{finish}: the model called a tool, there is no text")
    if finish not in _FINISHES:
        return Choice("", "stop", failed=f"finish_reason={finish[:40]!r}: of no known meaning")
    tokens, logprobs, top = _tokens(choice)
    if settings.logprobs and not logprobs:
        raise Missing("logprobs")
    if settings.token_ids and not tokens:
        raise Missing("token_ids")
    if tokens and logprobs and len(tokens) != len(logprobs):
        raise Malformed(f"{len(tokens)} token ids and {len(logprobs)} log-probabilities")
    return Choice(_text(message, finish), _FINISHES[finish], tokens, logprobs, top)


def _text(message: dict[str, Any], finish: str) -> str:
    """The text with its reasoning before it, whatever that is called; cut off while reasoning, it stays open."""
    content, reasoning = message.get("content"), message.get("reasoning") or message.get("reasoning_content")
    if not isinstance(content, str | None) or not isinstance(reasoning, str | None):
        raise Malformed("a message whose content is not text")
    if content is None and not reasoning and _FINISHES[finish] == "stop":
        raise Malformed("a message without content")
    text = content or ""
    if reasoning:
        cut_off = not text and _FINISHES[finish] == "length"
        text = f"<think>{reasoning}" if cut_off else f"<think>{reasoning}</think>{text}"
    # A lone half of a surrogate pair is no text: JSON can spell it, UTF-8 and the journal cannot.
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _tokens(choice: dict[str, Any]) -> tuple[
    tuple[int, ...], tuple[float, ...], tuple[tuple[tuple[int, float], ...], ...]
]:
    given = choice.get("token_ids")
    if given is not None and not (isinstance(given, list) and all(_count(token) for token in given)):
        raise Malformed("token_ids that are no list of ids")
    content = (choice.get("logprobs") or {}).get("content") if isinstance(choice.get("logprobs") or {}, dict) else None
    if not content:
        return tuple(given or ()), (), ()
    try:
        logprobs = tuple(float(entry["logprob"]) for entry in content)
        named = [_TOKEN_ID.fullmatch(entry["token"]) for entry in content]
        rivals = [
            [(_TOKEN_ID.fullmatch(r["token"]), float(r["logprob"])) for r in entry.get("top_logprobs") or ()]
            for entry in content
        ]
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise Malformed(f"logprobs that are not OpenAI's ({error!r})") from error
    if given is None and all(named):
        given = [int(match[1]) for match in named if match]
    top: tuple[tuple[tuple[int, float], ...], ...] = ()
    if any(rivals) and all(match for row in rivals for match, _ in row):
        top = tuple(
            tuple(sorted(((int(match[1]), logp) for match, logp in row if match), key=lambda r: (-r[1], r[0])))
            for row in rivals
        )
    return tuple(given or ()), logprobs, top


def _usage(usage: Any) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not _count(prompt) or not _count(completion):
        return None
    cached = _part(usage, "prompt_tokens_details", "cached_tokens") or usage.get("prompt_cache_hit_tokens")
    reasoning = _part(usage, "completion_tokens_details", "reasoning_tokens")
    return Usage(
        prompt, completion, min(cached, prompt) if _count(cached) else 0, reasoning if _count(reasoning) else 0)


def _part(usage: dict[str, Any], group: str, name: str) -> Any:
    details = usage.get(group)
    return details.get(name) if isinstance(details, dict) else None


def _count(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < 1 << 53


def trouble(status: int, data: bytes) -> Trouble:
    """What a reply that is no answer says: OpenAI's error, FastAPI's detail, or the head of whatever came."""
    try:
        value = _json(data)
    except Malformed:
        return Trouble(status, data[:TOLD].decode("utf-8", "replace"))
    error: Any = value
    for name in ("error", "detail"):
        if isinstance(error, dict) and error.get(name):
            error = error[name]
    if isinstance(error, list) and error:
        error = error[0]
    if not isinstance(error, dict):
        return Trouble(status, str(error)[:TOLD])
    place = error.get("loc")
    param = error.get("param") or (place[-1] if isinstance(place, list) and place else "")
    message = error.get("message") or error.get("msg") or json.dumps(error)
    return Trouble(status, str(message)[:TOLD], str(param or ""), str(error.get("code") or ""))


def named(told: Trouble, body: Mapping[str, Any]) -> str:
    """The field of `body` that the endpoint objects to, or nothing where it does not say."""
    if (outermost := re.split(r"[.\[]", told.param)[0]) in body:
        return outermost
    for name in sorted(body, key=len, reverse=True):
        quoted = (
            rf"['\"`]{name}['\"`]|\b(?:parameter|argument|field|supplied)s?:? {name}\b"
            rf"|\b{name} ?(?:=|>|must be|is not)"
        )
        # A name with an underscore is no word of a sentence; `stop`, `seed` and `n` are.
        if re.search(rf"\b{name}\b" if "_" in name else quoted, told.message):
            return name
    return ""


def cut(data: bytes | str) -> str:
    """The head of what an endpoint said, on one line, safe to print."""
    text = data[:TOLD].decode("utf-8", "replace") if isinstance(data, bytes) else data[:TOLD]
    line = visible(" ".join(text.split()))
    return line if len(line) <= 300 else line[:297] + "…"


def _json(data: bytes) -> Any:
    try:
        return json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not JSON: {cut(data)}") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")

"""From a request to what the engine is asked: prompts as tokens, and sampling settings."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fathom.core.chat import Message, Sampling
from fathom.core.errors import FathomError
from fathom.engine.server.errors import ApiError
from fathom.engine.server.protocol import Asked, ChatMessage, ChatRequest, CompletionRequest, JsonObject, JsonSchema
from fathom.engine.server.reasoning import CLOSE, OPEN
from fathom.engine.server.settings import DEEPEST, LARGEST_SCHEMA, MOST_COMPLETIONS
from fathom.engine.server.tokens import Encoder, too_long
from fathom.model.tokenizer import Tokenizer

GREEDY_BELOW = 1e-5  # a temperature that no logit survives; the likeliest token has all the probability there
RESERVED = frozenset(("messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", "pad_token"))
_ENDS_OPEN = re.compile(rf"{OPEN}\s*\Z")


@dataclass(frozen=True)
class Prompt:
    """A prompt as the engine reads it."""

    tokens: tuple[int, ...]
    text: str | None = None  # as the client wrote it, where it wrote text
    opened: bool = False  # it ends inside <think>


@dataclass(frozen=True)
class Order:
    """What a request comes to: its prompts, each with its sampling settings, `n` times."""

    prompts: tuple[Prompt, ...]
    sampling: tuple[Sampling, ...]
    n: int


def chat_order(request: ChatRequest, encoder: Encoder) -> Order:
    """The order behind a chat; raises ApiError. In the encoder's thread only."""
    tokenizer = encoder.tokenizer
    if request.top_logprobs and not request.logprobs:
        raise ApiError(400, f"top_logprobs={request.top_logprobs}: needs logprobs=true; set it", "top_logprobs")
    extra = template_settings(request.chat_template_kwargs, request.enable_thinking, tokenizer)
    tokens, opened = chat_prompt(request.messages, bool(request.continue_final_message), extra, encoder)
    if request.add_generation_prompt is False and not request.continue_final_message:
        raise ApiError(400, "add_generation_prompt=false: a chat is followed by an answer here; leave it out, or set "
                       "continue_final_message to write on an assistant's message", "add_generation_prompt")
    if request.add_generation_prompt and request.continue_final_message:
        raise ApiError(400, "add_generation_prompt=true: a message that is continued is followed by no new turn; set "
                       "one of the two", "add_generation_prompt")
    if opened and schema_of(request) is not None and tokenizer.backend.token_to_id(CLOSE) is None:
        # the engine lets a thought end before it holds to a schema, where it can tell the end by a token
        tokens, opened = [*tokens, *tokenizer.encode(f"{CLOSE}\n\n")], False
    given = [name for name in ("max_tokens", "max_completion_tokens") if getattr(request, name) is not None]
    if len(given) == 2 and request.max_tokens != request.max_completion_tokens:
        raise ApiError(400, f"max_tokens={request.max_tokens} and max_completion_tokens="
                       f"{request.max_completion_tokens}: they mean the same; give one", "max_tokens")
    param = given[-1] if given else "messages"
    limit = getattr(request, given[-1]) if given else None
    fits(len(tokens), limit or 1, encoder.max_length, param if given else "messages")
    sampling = _sampling(request, limit or encoder.max_length - len(tokens), request.top_logprobs or 0, tokenizer,
                         request.seed)
    return Order((Prompt(tuple(tokens), opened=opened),), (sampling,), request.n or 1)


def completion_order(request: CompletionRequest, encoder: Encoder) -> Order:
    """The order behind plain completions; raises ApiError. In the encoder's thread only."""
    n = request.n or 1
    if request.best_of is not None and request.best_of != n:
        raise ApiError(400, f"best_of={request.best_of}: must be n={n}: completions are not ranked; ask for n of them "
                       "and choose", "best_of", "unsupported_parameter")
    prompts = _prompts(request, encoder)
    if len(prompts) * n > MOST_COMPLETIONS:
        raise ApiError(400, f"n={n} of {len(prompts)} prompts: {len(prompts) * n} completions; at most "
                       f"{MOST_COMPLETIONS} are written for one request; split it", "n")
    limit = 16 if request.max_tokens is None else request.max_tokens
    for i, prompt in enumerate(prompts):
        where = "prompt" if len(prompts) == 1 else f"prompt[{i}]"
        if not prompt.tokens:
            raise ApiError(400, f"{where}: empty, and the model has no token that begins a text; write something",
                           "prompt")
        fits(len(prompt.tokens), limit, encoder.max_length, "max_tokens" if request.max_tokens else "prompt", where)
    sampling = tuple(_sampling(request, limit, request.logprobs or 0, encoder.tokenizer, request.seed) for _ in prompts)
    return Order(tuple(prompts), sampling, n)


def fits(prompt: int, completion: int, max_length: int, param: str, where: str = "prompt") -> None:
    """Raises ApiError where prompt and completion are more than the model holds."""
    if prompt + completion > max_length:
        raise too_long(f"{where}: {prompt} tokens and a completion of {completion}", max_length, param)


def _prompts(request: CompletionRequest, encoder: Encoder) -> list[Prompt]:
    given: Any = request.prompt
    if isinstance(given, str) or isinstance(given[0], int):
        given = [given]
    return [_prompt(one, request.add_special_tokens, encoder) for one in given]


def _prompt(given: str | list[int], bos: bool | None, encoder: Encoder) -> Prompt:
    if isinstance(given, str):
        tokens = _as_request("prompt", encoder.text, given, bos, "prompt")
        if not tokens and encoder.tokenizer.bos_id is not None and bos is None:
            tokens = [encoder.tokenizer.bos_id]  # an empty text is begun as documents begin
        return Prompt(tuple(tokens), given)
    if (worst := max(given)) >= encoder.tokenizer.vocab_size:
        raise ApiError(400, f"prompt: no token {worst}; the model has {encoder.tokenizer.vocab_size}: 0 to "
                       f"{encoder.tokenizer.vocab_size - 1}", "prompt")
    return Prompt(tuple(given))


def chat_prompt(
    messages: Sequence[ChatMessage], continued: bool, extra: dict[str, Any], encoder: Encoder
) -> tuple[list[int], bool]:
    """Token ids that ask for the next turn, or for more of the last one, and whether they end inside <think>."""
    turns = [_turn(message) for message in messages]
    for i, turn in enumerate(turns):
        if turn.role != "assistant":  # of those a template may leave out most
            encoder.check(turn.text, f"messages[{i}].content")
    if not continued:
        tokens = _as_request("messages", encoder.tokenizer.prompt, turns, **extra)
        return tokens, _is_open(tokens, encoder.tokenizer)
    if turns[-1].role != "assistant" or len(turns) < 2:
        raise ApiError(400, "continue_final_message=true: the last of two or more messages must be an assistant's; "
                       f"it is {'alone' if len(turns) < 2 else 'of the role ' + turns[-1].role}",
                       "continue_final_message")
    last = turns[-1].text
    encoder.check(last, f"messages[{len(turns) - 1}].content")
    tokens = _as_request("messages", encoder.tokenizer.prompt, turns[:-1], **extra)
    if _is_open(tokens, encoder.tokenizer) and last.startswith(OPEN):  # as in training: the prompt has the mark
        last = last.removeprefix(OPEN).lstrip("\n")
    tokens = [*tokens, *_as_request("messages", encoder.tokenizer.encode, last)]
    return tokens, _is_open(tokens, encoder.tokenizer)


def _turn(message: ChatMessage) -> Message:
    content = message.content
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    return Message("system" if message.role == "developer" else message.role, text)


def _is_open(tokens: Sequence[int], tokenizer: Tokenizer) -> bool:
    """Whether a prompt ends inside <think>. What a user wrote stands before the last control token, and is not read."""
    start = next((i for i in range(len(tokens), 0, -1) if tokens[i - 1] in tokenizer.control_ids), 0)
    text = tokenizer.decode(tokens[start:])
    if start == 0:  # no control token shows where the user's text ends
        return _ENDS_OPEN.search(text) is not None
    return text.rfind(OPEN) > text.rfind(CLOSE)


def _as_request(param: str, function: Any, *args: Any, **named: Any) -> list[int]:
    """What the tokenizer refuses, as the client's error."""
    try:
        tokens: list[int] = function(*args, **named)
    except FathomError as error:
        raise ApiError(400, f"{param}: {error}", param) from error
    return tokens


def template_settings(given: dict[str, Any] | None, thinking: bool | None, tokenizer: Tokenizer) -> dict[str, Any]:
    """What is told to the template beside the messages; raises ApiError for what it does not read."""
    extra = dict(given or {})
    if thinking is not None:
        extra["enable_thinking"] = thinking
    for name in extra:
        param = "enable_thinking" if name not in (given or {}) else f"chat_template_kwargs.{name}"
        if name in RESERVED or not re.search(rf"\b{re.escape(name)}\b", tokenizer.template):
            raise ApiError(400, f"{param}: the model's chat template reads no such setting; leave it out", param,
                           "unsupported_parameter")
    return extra


def schema_of(request: Asked) -> str | None:
    """The JSON schema that a completion is held to, as JSON; raises ApiError for one too large or too deep."""
    form = request.response_format
    if isinstance(form, JsonObject):
        return '{"type":"object"}'
    if not isinstance(form, JsonSchema):
        return None
    where = "response_format.json_schema.schema"
    schema = form.json_schema.json_schema
    if _depth(schema) > DEEPEST:
        raise ApiError(400, f"{where}: more than {DEEPEST} levels deep; flatten it", where)
    text = json.dumps(schema, separators=(",", ":"))
    if len(text) > LARGEST_SCHEMA:
        raise ApiError(400, f"{where}: {len(text)} characters; at most {LARGEST_SCHEMA}; shorten it", where)
    return text


def _depth(value: Any) -> int:
    """How many levels of lists and objects lie inside each other; it stops counting past DEEPEST."""
    level, depth = [value], 0
    while level and depth <= DEEPEST:
        inner: list[Any] = []
        for one in level:
            if isinstance(one, (dict, list)):
                inner.extend(one.values() if isinstance(one, dict) else one)
        if not any(isinstance(one, (dict, list)) for one in level):
            break
        level, depth = inner, depth + 1
    return depth


def _sampling(request: Asked, max_tokens: int, logprobs: int, tokenizer: Tokenizer, seed: int | None) -> Sampling:
    if request.stream_options is not None and not request.stream:
        raise ApiError(400, "stream_options: needs stream=true; set it or leave both out", "stream_options")
    bias = {int(token): value for token, value in (request.logit_bias or {}).items()}
    if bias and (worst := max(bias)) >= tokenizer.vocab_size:
        raise ApiError(400, f"logit_bias: no token {worst}; the model has {tokenizer.vocab_size}: 0 to "
                       f"{tokenizer.vocab_size - 1}", "logit_bias")
    if request.min_tokens is not None and request.min_tokens > max_tokens:
        raise ApiError(400, f"min_tokens={request.min_tokens}: more than max_tokens={max_tokens}; lower it",
                       "min_tokens")
    stop = request.stop if request.stop is not None else []
    temperature = 1.0 if request.temperature is None else request.temperature
    return Sampling(
        max_tokens=max(1, max_tokens), temperature=0.0 if temperature < GREEDY_BELOW else temperature,
        top_p=1.0 if request.top_p is None else request.top_p, top_k=max(0, request.top_k or 0),
        min_p=request.min_p or 0.0,
        repetition_penalty=1.0 if request.repetition_penalty is None else request.repetition_penalty,
        presence_penalty=request.presence_penalty or 0.0, frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=bias, stop=(stop,) if isinstance(stop, str) else tuple(stop), min_tokens=request.min_tokens or 0,
        ignore_stop=bool(request.ignore_eos), logprobs=logprobs, json_schema=schema_of(request),
        seed=secrets.randbits(63) if seed is None else seed % (1 << 63))

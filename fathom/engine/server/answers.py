"""What the server answers with: the schemas of its responses, as /openapi.json tells them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Finish = Literal["stop", "length"]


class Answer(BaseModel):
    """A response, or a part of one: nothing is in it that its schema does not name."""

    model_config = ConfigDict(extra="forbid")


class PromptDetails(Answer):
    """Of a prompt's tokens."""

    cached_tokens: int


class CompletionDetails(Answer):
    """Of the completions' tokens."""

    reasoning_tokens: int


class Usage(Answer):
    """Tokens in and out; a prompt counts once, however many completions it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class TopLogprob(Answer):
    """One of a token's likeliest rivals."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token, its log-probability, and its likeliest rivals."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Answer):
    """Log-probabilities of all tokens of a completion, thinking and stop token included."""

    content: list[TokenLogprob]
    refusal: None = None


class AssistantMessage(Answer):
    """The assistant's turn."""

    role: Literal["assistant"]
    content: str
    reasoning: str | None
    reasoning_content: str | None
    refusal: None = None


class ChatChoice(Answer):
    """One completion of a chat."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish
    token_ids: list[int] | None = None


class ChatAnswer(Answer):
    """The completions of a chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] | None = None


class CompletionLogprobs(Answer):
    """Log-probabilities as the older interface tells them; the first token of a prompt has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(Answer):
    """One completion of a prompt."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Finish
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class CompletionAnswer(Answer):
    """The completions of one or more prompts; those of prompt p are p·n … p·n + n − 1."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class Model(Answer):
    """A model that can be asked."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class Models(Answer):
    """The models that can be asked: one."""

    object: Literal["list"]
    data: list[Model]


class Health(Answer):
    """The server takes requests."""

    status: Literal["ok"]
    model: str
    version: int
    running: int
    waiting: int


class Tokens(Answer):
    """A prompt's tokens."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Updated(Answer):
    """New weights are in use."""

    success: Literal[True]
    message: str


class Detokenized(Answer):
    """The text of tokens, control tokens left out."""

    prompt: str

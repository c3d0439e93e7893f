"""What clients may send: OpenAI's fields as far as they are offered, and what engines like this one add to them.

Unknown fields are refused. Fields whose type here is None are known and not offered: null is accepted, and anything
else is a 400 that says why (`errors.UNSUPPORTED`).
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from fathom.engine.server.settings import (
    LARGEST_SCHEMA,
    LONGEST_STOP,
    MOST_BIASED,
    MOST_MESSAGES,
    MOST_N,
    MOST_PROMPTS,
    MOST_STOPS,
    MOST_TOP,
)

_SURROGATE = re.compile("[\ud800-\udfff]")


def _whole(text: str) -> str:
    if _SURROGATE.search(text):
        raise ValueError("holds half of a surrogate pair, which is no character; send UTF-8")
    return text


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else "one text" if isinstance(value, str) else "a value"


# JSON knows no integers, only numbers without a fraction: 5.0 is one
Whole = Annotated[int, BeforeValidator(lambda v: int(v) if isinstance(v, float) and v.is_integer() else v)]


def _boolean(value: Any) -> Any:
    if not isinstance(value, bool):  # to Python 0 is False
        raise ValueError("must be false")
    return value


False_ = Annotated[Literal[False], BeforeValidator(_boolean)]
Text = Annotated[str, AfterValidator(_whole)]
Id = Annotated[int, Field(ge=0, lt=1 << 31)]
Ids = Annotated[list[Id], Field(fail_fast=True, min_length=1)]
Stop = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP), AfterValidator(_whole)]
Stops = Annotated[
    Annotated[Stop, Tag("one text")]
    | Annotated[list[Stop], Field(fail_fast=True, max_length=MOST_STOPS), Tag("a list")]
    | Annotated[None, Tag("a value")],
    Discriminator(_kind)]
Bias = Annotated[float, Field(ge=-100, le=100)]
BiasedId = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")]
# A template prints such values as they are: no character of a control token is among them.
TemplateValue = Annotated[
    Annotated[str, Field(pattern=r"^[A-Za-z0-9_ .:-]{0,64}$"), Tag("one text")]
    | Annotated[bool | int | None, Tag("a value")],
    Discriminator(lambda value: "one text" if isinstance(value, str) else "a value")]
TemplateName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]


class Body(BaseModel):
    """A request's body."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=(),
                              hide_input_in_errors=True)


def _content(value: Any) -> str:
    return "a list of parts" if isinstance(value, list) else "the text"


def _prompt(value: Any) -> str | None:
    if isinstance(value, str):
        return "one text"
    if not isinstance(value, list):
        return None
    first = value[0] if value else 0
    return "many texts" if isinstance(first, str) else "lists of ids" if isinstance(first, list) else "token ids"


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class ChatMessage(Body):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(description="developer counts as system")
    content: Annotated[
        Annotated[Text, Tag("the text")]
        | Annotated[list[TextPart], Field(min_length=1, max_length=MOST_MESSAGES), Tag("a list of parts")],
        Discriminator(_content)]
    type: Literal["text", "message"] | None = Field(None, description="accepted, as some clients write it; not used")
    reasoning: str | None = Field(None, description="accepted in earlier turns and left out of the prompt, as models "
                                  "are trained; thinking that is to stay goes into content")
    reasoning_content: str | None = Field(None, description="as reasoning")
    tool_call_id: str | None = Field(None, description="accepted; not used")
    refusal: None = None
    name: None = None
    tool_calls: None = None
    function_call: None = None
    audio: None = None


class StreamOptions(Body):
    """How a stream is told."""

    include_usage: bool | None = Field(None, description="a last chunk without choices tells the usage")
    include_obfuscation: False_ | None = None


class AnyText(Body):
    """No form asked for."""

    type: Literal["text"]


class JsonObject(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(Body):
    """A JSON schema and what OpenAI has around it."""

    name: str | None = Field(None, max_length=256)
    description: str | None = None
    strict: bool | None = Field(None, description="accepted; the schema always holds")
    json_schema: dict[str, Any] = Field(
        alias="schema", description=f"at most {LARGEST_SCHEMA} characters of JSON")


class JsonSchema(Body):
    """JSON that a schema describes."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class Asked(Body):
    """What chats and plain completions have in common."""

    model: str | None = Field(None, description="the name that /v1/models tells; it may be left out")
    n: Whole | None = Field(None, ge=1, le=MOST_N, description="completions of each prompt; 1 if left out")
    max_tokens: Whole | None = Field(None, ge=1, lt=1 << 31)
    min_tokens: Whole | None = Field(None, ge=0, lt=1 << 31, description="no stop token or string ends it before")
    temperature: float | None = Field(None, ge=0, le=2, description="0 is greedy; 1 if left out")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: Whole | None = Field(None, ge=-1, lt=1 << 31, description="0 and -1: all")
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[BiasedId, Bias] | None = Field(None, max_length=MOST_BIASED, description="token id: addition")
    stop: Stops = Field(
        None, description="strings that end a completion and are not part of it")
    seed: Whole | None = Field(None, ge=-(1 << 63), lt=1 << 63, description="drawn anew if left out")
    ignore_eos: bool | None = Field(None, description="the model's stop tokens do not end a completion")
    stream: bool | None = None
    stream_options: StreamOptions | None = Field(None, description="needs stream")
    response_format: Annotated[AnyText | JsonObject | JsonSchema, Field(discriminator="type")] | None = Field(
        None, description="what the completion is held to while it is written; thinking is skipped then")
    return_token_ids: bool | None = Field(None, description="tells prompt_token_ids and token_ids as well")
    user: str | None = Field(None, description="accepted; not used")
    metadata: dict[str, str] | None = Field(None, max_length=16, description="accepted; not used")
    store: bool | None = Field(None, description="accepted; nothing is stored")
    service_tier: str | None = Field(None, description="accepted; there is one")
    safety_identifier: str | None = Field(None, description="accepted; not used")
    prompt_cache_key: str | None = Field(None, description="accepted; prompts share their cache anyway")
    use_beam_search: False_ | None = None
    stop_token_ids: None = None
    prompt_logprobs: None = None
    guided_json: None = None


class ChatRequest(Asked):
    """A chat whose next turn is asked for."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_tokens: Whole | None = Field(None, ge=1, lt=1 << 31, description="as max_completion_tokens; all that fits if "
                                   "neither is given")
    max_completion_tokens: Whole | None = Field(None, ge=1, lt=1 << 31)
    logprobs: bool | None = Field(None, description="tells each token's log-probability, thinking and stop token too")
    top_logprobs: Whole | None = Field(None, ge=0, le=MOST_TOP, description="needs logprobs")
    chat_template_kwargs: dict[TemplateName, TemplateValue] | None = Field(
        None, max_length=16, description="settings that the model's template reads, like enable_thinking")
    enable_thinking: bool | None = Field(None, description="short for chat_template_kwargs.enable_thinking")
    separate_reasoning: bool | None = Field(None, description="false: thinking stays in content, with its marks")
    continue_final_message: bool | None = Field(None, description="the last message, an assistant's, is written on")
    add_generation_prompt: bool | None = Field(None, description="false only together with continue_final_message")
    tools: None = None
    tool_choice: Literal["none"] | None = None
    parallel_tool_calls: None = None
    functions: None = None
    function_call: Literal["none"] | None = None
    modalities: list[Literal["text"]] | None = None
    audio: None = None
    prediction: None = None
    web_search_options: None = None
    reasoning_effort: None = None
    verbosity: None = None


class CompletionRequest(Asked):
    """Prompts whose continuations are asked for."""

    prompt: Annotated[
        Annotated[Text, Tag("one text")]
        | Annotated[Ids, Tag("token ids")]
        | Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=MOST_PROMPTS), Tag("many texts")]
        | Annotated[list[Ids], Field(fail_fast=True, min_length=1, max_length=MOST_PROMPTS), Tag("lists of ids")],
        Discriminator(_prompt, custom_error_type="prompt_type",
                      custom_error_message="must be text, a list of texts, token ids or a list of lists of them")] = (
        Field(description="control tokens in texts are text; send ids for them"))
    max_tokens: Whole | None = Field(None, ge=0, lt=1 << 31, description="16 if left out; with 0 the prompt comes back")
    logprobs: Whole | None = Field(None, ge=0, le=MOST_TOP, description="so many rivals beside each token's own")
    echo: bool | None = Field(None, description="the prompt comes back before its completion")
    add_special_tokens: bool | None = Field(None, description="whether BOS begins a text that is sent; if left out, as "
                                            "the model's tokenizer says")
    best_of: Whole | None = Field(None, ge=1, le=MOST_N, description="must be n")
    suffix: Literal[""] | None = None


class TokenizeRequest(Body):
    """A text, or a chat, whose tokens are asked for."""

    model: str | None = None
    prompt: Text | None = Field(None, description="this or messages")
    messages: list[ChatMessage] | None = Field(None, min_length=1, max_length=MOST_MESSAGES)
    add_special_tokens: bool | None = Field(None, description="for a prompt, as in /v1/completions")
    chat_template_kwargs: dict[TemplateName, TemplateValue] | None = Field(None, max_length=16)
    return_token_strs: bool | None = Field(None, description="tells each token's text as well")


class WeightsRequest(Body):
    """New weights of the model that is served."""

    model_path: str = Field(min_length=1, max_length=4096, description="a model directory below the one of --updates")
    weight_version: Annotated[str, Field(pattern=r"^[0-9]{1,15}$")] | None = Field(
        None, description="a number for them; one more than before if left out")


class DetokenizeRequest(Body):
    """Tokens whose text is asked for."""

    model: str | None = None
    tokens: Annotated[list[Id], Field(fail_fast=True, max_length=1 << 20)]

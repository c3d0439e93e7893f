"""Errors in OpenAI's shape, and what is wrong with a body in words that name the field."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import Response

KINDS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
         404: "invalid_request_error", 405: "invalid_request_error", 413: "invalid_request_error",
         429: "rate_limit_error", 500: "server_error", 503: "service_unavailable_error"}

# Fields of OpenAI's interface, or of servers like it, that ask for what is not offered here.
UNSUPPORTED = {
    "tools": "tool calls are not parsed; describe tools in a message and read the text",
    "tool_choice": "tool calls are not parsed", "parallel_tool_calls": "tool calls are not parsed",
    "tool_calls": "tool calls are not parsed; write the call as text in content",
    "functions": "tool calls are not parsed", "function_call": "tool calls are not parsed",
    "audio": "this server writes text only", "modalities": "this server writes text only",
    "prediction": "predicted outputs are not used", "web_search_options": "this server searches nothing",
    "reasoning_effort": "thinking has no degrees here; chat_template_kwargs sets what the model's template reads",
    "verbosity": "the model has no such setting; ask for it in a message",
    "best_of": "completions are not ranked; ask for n of them and choose",
    "suffix": "completions are written after a prompt only; for infilling send a prompt with the model's FIM markers",
    "use_beam_search": "completions are drawn, not searched for", "stop_token_ids": "use stop, with their text",
    "prompt_logprobs": "use /v1/completions with echo and logprobs", "guided_json": "use response_format",
    "name": "chat templates write no names; put it in content",
}
PARTS = {"image_url": "images", "input_audio": "sound", "audio": "sound", "video_url": "video", "file": "files",
         "refusal": "refusals"}


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str = Field(description="value, limit and remedy")
    type: str
    param: str | None = Field(description="the field of the request that is at fault")
    code: str | None


class ErrorBody(BaseModel):
    """How every error is told."""

    error: ErrorDetail


class ApiError(Exception):
    """An answer that is an error; `retry_after` seconds from now the same request may succeed."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None,
        retry_after: float | None = None, headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after)))

    def body(self) -> dict[str, Any]:
        """The error as JSON has it."""
        return {"error": {"message": self.message, "type": KINDS.get(self.status, "invalid_request_error"),
                          "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The error as an HTTP response. Plain ASCII: what a client sent comes back in it, half a surrogate too."""
        return Response(json.dumps(self.body()), self.status, self.headers, "application/json")


def refused(errors: Iterable[Mapping[str, Any]], fields: Sequence[str]) -> ApiError:
    """The 400 for what pydantic says of a body; `fields` are the names that its top level may have."""
    found = list(errors)
    if len(found) > 1:  # of a union's branches, the one that got furthest is the one that was meant
        parts = [e for e in found if e["type"] == "literal_error" and e["loc"][-1] == "type"]
        known = [e for e in found if e["type"] == "extra_forbidden"]
        found = sorted(parts or known or found, key=lambda e: -len(e["loc"]))
    error = found[0]
    kind, path = error["type"], _path(error["loc"])
    if kind == "json_invalid":
        return ApiError(400, f"body: not JSON ({error['ctx']['error']} at character {error['loc'][-1]}); send JSON",
                        code="invalid_json")
    leaf = str(error["loc"][-1]) if error["loc"] else ""
    given = error.get("input")
    if kind == "extra_forbidden":
        return ApiError(400, f"{_short(path)}: {_unknown(leaf, fields)}", path, "unknown_parameter")
    if leaf in UNSUPPORTED and kind in ("none_required", "literal_error", "value_error"):
        return ApiError(400, f"{path}: not supported: {UNSUPPORTED[leaf]}", path, "unsupported_parameter")
    if kind == "literal_error" and leaf == "type" and isinstance(given, str) and given in PARTS:
        return ApiError(400, f"{path}: {given} is not supported: this model reads text, not {PARTS[given]}; send parts "
                        "of type text", path, "unsupported_parameter")
    if kind == "missing" and not path:
        return ApiError(400, "body: empty; send a JSON object with Content-Type: application/json", code="empty_body")
    if not path:
        return ApiError(400, f"body: {_lower(error['msg'])}; send a JSON object", code="invalid_type")
    if kind == "missing":
        return ApiError(400, f"{path}: missing; it is required", path, "missing_required_parameter")
    said = "" if isinstance(given, (dict, list)) or given is None else f"={_short(json.dumps(given, default=str))}"
    return ApiError(400, f"{_short(path)}{said}: {_lower(error['msg'])}", path, "invalid_value")


def _unknown(name: str, fields: Sequence[str]) -> str:
    if name in UNSUPPORTED:
        return f"not supported: {UNSUPPORTED[name]}"
    near = difflib.get_close_matches(name, fields, 1)
    return f"no such field; did you mean {near[0]}?" if near else "no such field; leave it out"


def _path(place: Sequence[Any]) -> str:
    """messages[0].content, of what pydantic calls ("body", "messages", 0, "content", "a list of parts")."""
    parts = list(place[1:] if place and place[0] in ("body", "path", "query") else place)
    if parts[:1] == ["response_format"] and len(parts) > 1:
        del parts[1]  # the name of a union's branch, as are those with spaces
    path = ""
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not any(c in str(part) for c in "[]() "):
            path += f".{part}" if path else str(part)
    return path


def _lower(text: str) -> str:
    text = text.removeprefix("Value error, ")
    return text[:1].lower() + text[1:]


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."

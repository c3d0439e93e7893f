"""What an endpoint's no means, and what the user can do about it."""

from __future__ import annotations

from fathom.core.client.settings import ClientSettings
from fathom.core.client.wire import Trouble
from fathom.core.errors import FathomError, Stopped, UsageError

# Fields of the wire whose settings have other names.
_SETTINGS = {"ignore_eos": "ignore_stop", "response_format": "json_schema", "top_logprobs": "logprobs"}


def of_the_prompt(told: Trouble) -> str:
    """Why this very prompt was refused, while others may not be; nothing if it is not the prompt."""
    if told.status not in (400, 413, 422):
        return ""
    words = f"{told.code} {told.message}".lower()
    if told.status == 413 or any(sign in words for sign in ("context_length", "context length", "string_above_max")):
        return f"too long for the endpoint ({told})"
    if any(sign in words for sign in ("content_filter", "content_policy", "content management policy")):
        return f"content_filter ({told})"
    return ""


def error(settings: ClientSettings, told: Trouble, rejected: str) -> FathomError:
    """What a refusal means for the user, with the remedy."""
    where = f"{settings.base}: {told}"
    match told.status:
        case 401 | 403 if settings.key_env is None:
            return UsageError(f"{where}; no key was sent, set key_env to the variable that holds it")
        case 401:
            return UsageError(f"{where}; the key in {settings.key_env} is not accepted, check it")
        case 403:
            return UsageError(f"{where}; the key in {settings.key_env} has no right to do this, check its rights")
        case 402:
            return Stopped(f"{where}; the account has no credit left: add some and run the same command again")
        case 404:
            return UsageError(f"{where}; check url, which usually ends in /v1, and model={settings.model}")
    if not rejected:
        return UsageError(f"{where}; the endpoint refuses the request, the same one is not sent again")
    if rejected in settings.extra_body:
        remedy = f"take {rejected} out of extra_body"
    elif rejected == "max_tokens" or rejected == "max_completion_tokens":
        other = "max_tokens" if rejected == "max_completion_tokens" else "max_completion_tokens"
        remedy = f"set max_tokens_name={other}, or sampling's max_tokens lower"
    elif rejected in ("temperature", "top_p", "seed"):
        remedy = f"leave it at its default and set omit=[{rejected}]"
    elif rejected in ("model", "messages"):
        remedy = "check model and prompt"
    elif rejected in ("logprobs", "return_token_ids"):
        remedy = f"set {rejected.removeprefix('return_')}=false, and sampling's logprobs to 0"
    else:
        remedy = f"leave sampling's {_SETTINGS.get(rejected, rejected)} at its default"
    return UsageError(f"{settings.base}: the endpoint does not take {rejected} ({told}); {remedy}")

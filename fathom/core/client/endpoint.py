"""One try at an endpoint: a request goes out, the reply's bytes come back or the reason why not."""

from __future__ import annotations

import asyncio
import importlib.util
import ipaddress
import logging
import math
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self
from urllib.parse import urljoin, urlsplit

from fathom.core.client import wire
from fathom.core.client.settings import ClientSettings
from fathom.core.errors import FathomError, UsageError

TROUBLE_BYTES = 1 << 16  # read of a reply that is no answer
CONNECT_S = 10.0
KEY_LENGTH = 8  # from which a key in a text is no coincidence: local servers take EMPTY and the like
_LOST = (408, 504, 524)  # the endpoint, or a gateway before it, gave up waiting: the work may have been done and billed
_NOT_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout")

_log = logging.getLogger(__name__)


class TryAgain(Exception):
    """A try that failed and may succeed later; `lost` if it may be billed all the same."""

    def __init__(self, kind: str, detail: str, *, after: float | None = None, lost: bool = False) -> None:
        super().__init__(detail)
        self.kind, self.detail, self.after, self.lost = kind, detail, after, lost


class Refused(Exception):
    """The endpoint said no: asking the same again is of no use."""

    def __init__(self, told: wire.Trouble) -> None:
        super().__init__(str(told))
        self.told = told


class TooLarge(Exception):
    """A reply past the limit; it may be billed."""


class _NoAnswer(Exception):
    """A status other than 2xx, with the head of its body."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        super().__init__(str(status))
        self.status, self.headers, self.body = status, headers, body


def key(settings: ClientSettings) -> str | None:
    """The key from the environment; raises UsageError where the variable is empty."""
    if settings.key_env is None:
        return None
    found = os.environ.get(settings.key_env, "").strip()
    if not found or not found.isascii() or not found.isprintable():
        what = "not set" if not found else "no key (it holds characters that a header cannot)"
        raise UsageError(f"key_env={settings.key_env}: {what}; export {settings.key_env}=..., or leave key_env out for "
                         "an endpoint without a key")
    host = urlsplit(settings.url).hostname or ""
    if settings.url.startswith("http:") and not _local(host):
        _log.warning("%s: the key travels unencrypted; write https if the endpoint has it", settings.base)
    return found


def check_installed() -> None:
    """Raises UsageError that names the extra, where the openai client is not installed."""
    if importlib.util.find_spec("openai") is None:
        raise UsageError("asking an endpoint needs the package openai; pip install 'fathom-reasoning[client]'")


class Endpoint:
    """The endpoint over the openai client, within one event loop; an asynchronous context manager.

    It follows no redirect, so that the key goes nowhere but to `url`, and repeats nothing by itself.
    """

    def __init__(self, settings: ClientSettings, key: str | None) -> None:
        import openai

        self._settings, self._key, self._openai = settings, key, openai
        omit = openai.Omit()
        self._headers: dict[str, Any] = {} if key else {"Authorization": omit}
        if not (urlsplit(settings.url).hostname or "").endswith(".openai.com"):
            # Taken from the environment by the library; they are nobody else's business.
            self._headers |= {"OpenAI-Organization": omit, "OpenAI-Project": omit}
        timeout = openai.Timeout(None, connect=min(CONNECT_S, settings.timeout_s))
        self._http = openai.DefaultAsyncHttpxClient(
            follow_redirects=False, timeout=timeout, event_hooks={"response": [_stop_at_trouble]})
        self._client = openai.AsyncOpenAI(
            api_key=key or "none", base_url=settings.base, max_retries=0, timeout=timeout, http_client=self._http)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def post(self, body: Mapping[str, Any]) -> bytes:
        """The reply to one chat completion request. Raises TryAgain, Refused or TooLarge."""
        openai = self._openai
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                return await self._post(body)
        except TimeoutError as error:
            raise TryAgain("timeout", f"no whole reply within {self._settings.timeout_s:g} s", lost=True) from error
        except _NoAnswer as answer:
            raise self._failure(answer) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__
            if isinstance(cause, _NoAnswer):
                raise self._failure(cause) from None
            name = type(cause).__name__ if cause else type(error).__name__
            raise self._broken(name, cause or error) from error
        except Exception as error:
            if type(error).__module__.split(".")[0] not in ("httpx", "httpx2", "httpcore", "httpcore2"):
                raise
            raise self._broken(type(error).__name__, error) from error  # broke off while the reply was read

    def clean(self, text: str) -> str:
        """`text` without the key, should the endpoint have repeated it."""
        return text.replace(self._key, "***") if self._key else text

    def refuse_key(self, text: str | bytes | bytearray) -> None:
        """Raises FathomError where a text that is to be kept holds the key."""
        found = text if isinstance(text, str) else text.decode("utf-8", "replace")
        if self._key and len(self._key) >= KEY_LENGTH and self._key in found:
            raise FathomError(f"{self._settings.base}: a reply repeats the key, nothing of it is kept; is url the "
                              "endpoint that is meant? If not, replace the key")

    async def _post(self, body: Mapping[str, Any]) -> bytes:
        rest = {name: value for name, value in body.items() if name not in ("model", "messages")}
        limit, data = int(self._settings.reply_mb * 1e6), bytearray()
        async with self._client.chat.completions.with_streaming_response.create(
            model=body["model"], messages=body["messages"], extra_body=rest, extra_headers=self._headers
        ) as response:
            async for chunk in response.iter_bytes():
                data += chunk
                if len(data) > limit:
                    raise TooLarge
        self.refuse_key(data)
        return bytes(data)

    def _broken(self, name: str, error: BaseException) -> TryAgain:
        detail = wire.cut(self.clean(f"{name}: {error}" if str(error) else name))
        return TryAgain("connection", detail, lost=name not in _NOT_SENT)

    def _failure(self, answer: _NoAnswer) -> Exception:
        if answer.status < 400:
            target = urlsplit(urljoin(self._settings.base, answer.headers.get("location", "")))
            place = wire.cut(self.clean(f"{target.scheme}://{target.hostname}{target.path}"))
            return UsageError(f"{self._settings.base}: redirects ({answer.status}) to {place}; the key is not sent on. "
                              "Write the address that is meant as url")
        told = wire.trouble(answer.status, answer.body)
        return failure(replace(told, message=self.clean(told.message)), answer.headers)


def failure(told: wire.Trouble, headers: Mapping[str, str]) -> TryAgain | Refused:
    """What a status other than 2xx means: another try, or no."""
    status = told.status
    if status in (408, 409, 429) or status >= 500:
        if told.code == "insufficient_quota" or told.code == "billing_hard_limit_reached":
            return Refused(wire.Trouble(402, told.message, told.param, told.code))
        return TryAgain(str(status), str(told), after=retry_after(headers), lost=status in _LOST)
    return Refused(told)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the endpoint asks to wait, told as such or as a date; None where it does not or cannot be read."""
    text = headers.get("retry-after", "").strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


async def _stop_at_trouble(response: Any) -> None:
    """Runs before a reply's body is read: of one that is no answer, only the head is."""
    if response.status_code < 300:
        return
    data = bytearray()
    async for chunk in response.aiter_bytes():
        data += chunk
        if len(data) >= TROUBLE_BYTES:
            break
    raise _NoAnswer(response.status_code, response.headers, bytes(data[:TROUBLE_BYTES]))


def _local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

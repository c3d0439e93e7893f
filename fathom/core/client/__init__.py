"""A TextGenerator over any OpenAI-compatible endpoint, which pays for nothing twice.

`settings` says whom to ask and what it may cost, `wire` writes requests and reads replies, `endpoint` makes one try,
`account` counts tokens and money, `client` brings them together. The names below are loaded when first used, so that
settings alone stay light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fathom.core.client.settings import ClientSettings

if TYPE_CHECKING:
    from fathom.core.client.account import CapReached, Forecast, Stats
    from fathom.core.client.client import Client, EndpointFailed, Failed, ItemsFailed

__all__ = ["CapReached", "Client", "ClientSettings", "EndpointFailed", "Failed", "Forecast", "ItemsFailed", "Stats"]

_ACCOUNT = ("CapReached", "Forecast", "Stats")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    room = "account" if name in _ACCOUNT else "client"
    return getattr(importlib.import_module(f"{__name__}.{room}"), name)

"""New weights named to an endpoint that draws a policy's completions, in the form that SGLang has for it."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from fathom.core.client import endpoint
from fathom.core.client.settings import ClientSettings
from fathom.core.errors import FathomError, Stopped, UsageError

ROUTE = "/update_weights_from_disk"  # beside /v1
TIMEOUT_S = 600.0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key goes nowhere but to the address that was written."""

    def redirect_request(self, *words: Any) -> None:
        return None


def push(settings: ClientSettings, path: Path, version: int) -> None:
    """Makes the endpoint take the model in `path`; returns when it has.

    UsageError where it refuses, Stopped (the same command goes on) where it does not answer.
    """
    url = settings.base.removesuffix("/v1") + ROUTE
    headers = {"Content-Type": "application/json"}
    if (key := endpoint.key(settings)) is not None:
        headers["Authorization"] = f"Bearer {key}"
    body = json.dumps({"model_path": os.path.abspath(path), "weight_version": str(version)}).encode()
    request = urllib.request.Request(url, body, headers, method="POST")
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=TIMEOUT_S) as response:
            told = json.loads(response.read(1 << 20))
    except urllib.error.HTTPError as error:
        said = error.read(2000).decode("utf-8", "replace")
        raise UsageError(f"{url}: refused the weights of {path} ({error.code}: {said[:300]}); Fathom's server takes "
                         f"them where it was started with --updates {path.parent}") from error
    except OSError as error:
        raise Stopped(f"{url}: no answer to new weights ({error}); is the server up? The same command goes "
                      "on") from error
    except ValueError as error:
        raise FathomError(f"{url}: its answer to new weights is not JSON; is that an endpoint that takes weights?"
                          ) from error
    if not (isinstance(told, dict) and told.get("success")):
        raise UsageError(f"{url}: refused the weights of {path} ({str(told)[:300]}); can it read that path?")

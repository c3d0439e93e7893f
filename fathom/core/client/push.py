"""New weights named to an endpoint that draws a policy's completions, in the form that SGLang has for it."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from fathom.core.client import endpoint, wire
from fathom.core.client.settings import ClientSettings
from fathom.core.errors import FathomError, Stopped, UsageError

ROUTE = "/update_weights_from_disk"  # beside /v1


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key goes nowhere but to the address that was written."""

    def redirect_request(self, *words: Any) -> None:
        return None


def push(settings: ClientSettings, path: Path, version: int) -> None:
    """Makes the endpoint take the model in `path`; returns when it has.

    It is asked as often and as patiently as for a completion. UsageError where it refuses, Stopped (the same command
    goes on) where it does not answer.
    """
    url = settings.base.removesuffix("/v1") + ROUTE
    headers = {"Content-Type": "application/json"}
    if (key := endpoint.key(settings)) is not None:
        headers["Authorization"] = f"Bearer {key}"
    body = json.dumps({"model_path": os.path.abspath(path), "weight_version": str(version)}).encode()
    request = urllib.request.Request(url, body, headers, method="POST")
    last = ""
    for number in range(settings.retries + 1):
        if number:
            time.sleep(min(settings.backoff_s * 2 ** (number - 1), settings.wait_max_s))
        try:
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=settings.timeout_s) as response:
                told = json.loads(response.read(1 << 20))
        except urllib.error.HTTPError as error:
            last = f"{error.code}: {wire.cut(error.read(wire.TOLD))}"
            if error.code in (401, 403):
                raise UsageError(f"{url}: refused ({last}); key_env names the variable with its key") from error
            if error.code == 404:
                raise UsageError(f"{url}: no such route ({last}); Fathom's server has it where it was started with "
                                 f"--updates {path.parent}") from error
            if error.code < 500 and error.code != 429:
                raise UsageError(f"{url}: refused the weights of {path} ({last}); is it started with the model of init "
                                 f"and --updates {path.parent}?") from error
        except ValueError as error:
            raise FathomError(f"{url}: its answer to new weights is not JSON; is that an endpoint that takes weights?"
                              ) from error
        except OSError as error:
            last = str(error)
        else:
            if isinstance(told, dict) and told.get("success"):
                return
            raise UsageError(f"{url}: refused the weights of {path} ({str(told)[:300]}); can it read that path?")
    raise Stopped(f"{url}: no answer to new weights after {settings.retries + 1} tries ({last}); is the server up? The "
                  "same command goes on")

"""A made run, written once per session, and a headless browser where one is installed."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from made_run import make_run

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
QUIET += " --disable-component-update --disable-sync --disable-default-apps --disable-extensions --hide-scrollbars"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole made run of seven stages; read it, do not change it."""
    return make_run(tmp_path_factory.mktemp("runs") / "r1", steps=120, problems=60)


@dataclass(frozen=True)
class Seen:
    """What the browser made of a page: elements after the scripts ran, console messages, URLs the page asked for."""

    dom: str
    console: list[str]
    urls: set[str]


@pytest.fixture
def browse(tmp_path: Path):
    """A function from a file to what a browser sees; skips where no Chromium is installed."""
    if BROWSER is None:
        pytest.skip("no chromium on this machine: install it to check the page in a browser")

    def open_page(page: Path) -> Seen:
        log = tmp_path / "net.json"
        result = subprocess.run(
            [
                *(BROWSER, *QUIET.split(), f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={log}"),
                *("--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1400,2000", "--enable-logging=stderr"),
                *("--virtual-time-budget=1500", "--dump-dom", page.as_uri()),
            ],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        console = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
        text = log.read_text()
        events = json.loads(text if text.rstrip().endswith("}") else text.rstrip().rstrip(",") + "]}")["events"]
        # The browser's own requests (updates, clock) have no origin; those of a page name the page's.
        asked = [event["params"] for event in events if "initiator" in event.get("params", {})]
        urls = {params["url"] for params in asked if params["initiator"] != "not an origin"}
        return Seen(result.stdout, console, urls)

    return open_page

"""The process in which an audit runs: one JSON line for every thing that it begins, finds or refuses."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fathom.audit import Check
from fathom.audit.stages import all_checks
from fathom.core.errors import FathomError, UsageError


def main(asked: str) -> None:
    """Audits what the JSON `asked` names; exits with 0 also where checks fail, which the parent counts."""
    said = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what users' code prints must not get between the lines

    def tell(value: dict[str, Any]) -> None:
        said.write(json.dumps(value) + "\n")
        said.flush()

    threading.Thread(target=_end_with_parent, daemon=True).start()
    want = json.loads(asked)
    try:
        found: Iterator[Check | tuple[str, str]] = all_checks(
            want["recipe"], want["overrides"], Path(want["labels"]) if want["labels"] else None)
        for item in found:
            tell({"check": item.to_json()} if isinstance(item, Check) else {"doing": item})
    except FathomError as error:
        tell({"refused": str(error), "usage": isinstance(error, UsageError)})
    tell({"end": True})


def _end_with_parent() -> None:
    """Ends this process and what it started when the parent is gone, which alone holds the other end of the input."""
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1])

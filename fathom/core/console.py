"""Where log lines go: the terminal, coloured when a person watches, and a plain file."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

FILE_ONLY = "file_only"  # records with this attribute stay off the terminal: the command line prints errors itself


def handler() -> logging.Handler:
    """A handler to stderr: through rich on a terminal, plain lines otherwise."""
    made: logging.Handler
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        made = RichHandler(console=Console(stderr=True), show_path=False, markup=False, rich_tracebacks=False)
    else:
        made = logging.StreamHandler(sys.stderr)
        made.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S"))
    made.addFilter(lambda record: not getattr(record, FILE_ONLY, False))
    return made


def file_handler(path: Path) -> logging.Handler:
    """A handler that appends plain lines with full dates to `path`."""
    made = logging.FileHandler(path, encoding="utf-8")
    made.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    return made

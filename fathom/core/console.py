"""Where log lines go: the terminal, coloured when a person watches, and a plain file; and trained text in colour."""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

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


def visible(text: str) -> str:
    """`text` with what a terminal would obey, and whatever else does not print, spelt out; lines and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def trained_pieces(
    decode: Callable[[list[int]], str], tokens: Sequence[int], trained: Sequence[bool]
) -> Iterator[tuple[str, bool]]:
    """The text of each run of tokens that are trained or not, and which it is."""
    for mask, run in itertools.groupby(zip(tokens, trained, strict=True), key=lambda pair: pair[1]):
        yield decode([token for token, _ in run]), mask


def trained_text(pieces: Iterable[tuple[str, bool]], marked: bool = False) -> Text:
    """Pieces of an example one after another: what a model is trained on in green, the rest dim.

    `marked` encloses trained pieces in ⟦ and ⟧ besides, for where colours are not seen.
    """
    from rich.text import Text as Styled

    text = Styled()
    for piece, trained in pieces:
        text.append(f"⟦{piece}⟧" if trained and marked else piece, style="green" if trained else "dim")
    return text

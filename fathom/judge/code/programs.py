"""Which part of a completion is its program. Nothing is guessed: text without a fenced Python block holds none.

Thinking is cut off first and the last block counts. Reasons of `Unread` are few and stable because reports count them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from fathom.judge.extract import Extracted, Unread, after_thinking

Reading = Literal["block", "completion"]
LONGEST_PROGRAM = 100_000  # characters
_FENCE = re.compile(r"([ \t]*)(`{3,}|~{3,})[ \t]*([\w+#-]*)[^`\n]*")
_PYTHON = ("python", "python3", "py")


def program(text: str, read: Reading = "block") -> Extracted | Unread:
    """The program in a completion.

    block: the last fenced block that is marked python, py or python3. A block that is never closed was cut off, and
    then there is no program, whatever stands before. completion: the indented lines with which the text continues the
    beginning of a function; the first line that is not indented ends them.
    """
    shown = after_thinking(text)
    if isinstance(shown, Unread):
        return shown
    found = last_block(shown, _PYTHON) if read == "block" else _body(shown)
    if isinstance(found, Unread):
        return found
    if not found.strip():
        return Unread("code block is empty" if read == "block" else "no indented line")
    if len(found) > LONGEST_PROGRAM:
        return Unread(f"code is longer than {LONGEST_PROGRAM} characters")
    try:
        found.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return Unread("code is not UTF-8")
    return Extracted(found, read)


def last_block(text: str, marks: Sequence[str]) -> str | Unread:
    """The content of the last fenced block that bears one of these marks; Unread where the last one never closes."""
    last: str | None = None
    opened: re.Match[str] | None = None
    lines: list[str] = []
    for line in _lines(text):
        fence = _FENCE.fullmatch(line)
        if opened is None:
            if fence is not None:
                opened, lines = fence, []
        elif fence is not None and not fence[3] and fence[2].startswith(opened[2]):
            if opened[3].lower() in marks:
                last = "\n".join([*lines, ""])
            opened = None
        else:
            lines.append(line.removeprefix(opened[1]))
    if opened is not None and opened[3].lower() in marks:
        return Unread("code block was never closed")
    return Unread("no code block") if last is None else last


def _lines(text: str) -> list[str]:
    """Lines as Python sees them: a form feed or U+2028, where splitlines would cut, may stand in a string."""
    return text.replace("\r\n", "\n").split("\n")


def _body(text: str) -> str:
    lines: list[str] = []
    for line in _lines(text):
        if line.strip() and not line[0].isspace():
            break
        lines.append(line)
    return "\n".join(lines).rstrip() + "\n"

"""The YAML that recipes are written in: YAML 1.2's core schema, no tags, no repeated keys, no bombs.

PyYAML's own reading is YAML 1.1, where `no` is false, `1e6` is text, `12:30` is 750 and `010` is 8. So only its parser
is used, and the values are made here from its events.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NoReturn

import yaml

from fathom.core.errors import UsageError

DEPTH = 64
VALUES = 100_000

_NULL = ("", "~", "null", "Null", "NULL")
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?[0-9][0-9_]*|0x[0-9a-fA-F_]+|0o[0-7_]+")
_FLOAT = re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def read_yaml(text: str, where: str) -> Any:
    """The mappings, lists and scalars of one YAML document, None for an empty one; UsageError with line and column."""
    try:
        return _Document(text, where).value()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise UsageError(f"{where}:{place} {problem}; correct the YAML there") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: not YAML ({' '.join(str(error).split())}); correct it or quote the text") from error


def read_scalar(text: str, where: str) -> Any:
    """What an unquoted YAML scalar means, whatever characters it holds; UsageError for a number past all use."""
    text = text.strip()
    if text in _NULL:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    plain = text.replace("_", "")
    if _INT.fullmatch(text):
        try:
            return int(plain, {"0x": 16, "0o": 8}.get(plain[:2], 10))
        except ValueError as error:
            raise UsageError(
                f"{where}={text[:40]}…: not a whole number of readable size ({error}); shorten it"
            ) from None
    if _FLOAT.fullmatch(text):
        return float(plain)
    if _INFINITE.fullmatch(text):
        return float(plain.replace(".", ""))
    return text


class _Document:
    """Makes the value of one document from the parser's events; every value comes with its size, anchors expanded."""

    def __init__(self, text: str, where: str) -> None:
        self._events: Iterator[Any] = yaml.parse(text, Loader=yaml.SafeLoader)
        self._where = where
        self._anchors: dict[str, tuple[Any, int] | None] = {}  # None while the anchored value is still being made

    def value(self) -> Any:
        """The whole document."""
        next(self._events)  # start of the stream
        start = next(self._events)
        if isinstance(start, yaml.StreamEndEvent):
            return None
        value, _ = self._value(next(self._events), 1)
        next(self._events)  # end of the document
        following = next(self._events)
        if not isinstance(following, yaml.StreamEndEvent):
            self._refuse("another document begins; keep one per file", following)
        return value

    def _value(self, event: Any, depth: int) -> tuple[Any, int]:
        if depth > DEPTH:
            self._refuse(f"nested past {DEPTH} levels; make it flatter", event)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        if event.tag is not None and event.tag != "!":
            self._refuse(f"the tag {event.tag}; write the plain value", event)
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            made: tuple[Any, int] = self._scalar(event), 1
        elif isinstance(event, yaml.SequenceStartEvent):
            made = self._list(depth)
        else:
            made = self._mapping(depth)
        if made[1] > VALUES:
            self._refuse(f"more than {VALUES} values once anchors expand; write fewer of them", event)
        if event.anchor is not None:
            self._anchors[event.anchor] = made
        return made

    def _scalar(self, event: Any) -> Any:
        plain = event.style is None and event.tag is None
        mark = event.start_mark
        return read_scalar(event.value, f"{self._where}: line {mark.line + 1}") if plain else event.value

    def _alias(self, event: yaml.AliasEvent) -> tuple[Any, int]:
        if event.anchor not in self._anchors:
            self._refuse(f"the alias *{event.anchor} has no anchor before it; quote the text if it is none", event)
        made = self._anchors[event.anchor]
        if made is None:
            self._refuse(f"the anchor &{event.anchor} contains itself; write its value out", event)
        return made

    def _list(self, depth: int) -> tuple[list[Any], int]:
        items, size = [], 1
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            item, inside = self._value(event, depth + 1)
            items.append(item)
            size += inside
        return items, size

    def _mapping(self, depth: int) -> tuple[dict[str, Any], int]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        size = 1
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                self._refuse("a key that is not text; write a name there", event)
            # Keys are names, so `1:` and `true:` are the texts "1" and "true".
            key = event.value
            value, inside = self._value(next(self._events), depth + 1)
            size += 1 + inside
            if key == "<<" and event.style is None:
                for base in value if isinstance(value, list) else [value]:
                    if not isinstance(base, dict):
                        self._refuse("<< merges mappings only; put one there", event)
                    merged = {**base, **merged}  # of several, the first wins, and the mapping's own keys before all
            elif key in own:
                self._refuse(f"the key {key!r} occurs twice; keep one of them", event)
            else:
                own[key] = value
        return {**merged, **own}, size

    def _refuse(self, problem: str, event: Any) -> NoReturn:
        mark = event.start_mark
        raise UsageError(f"{self._where}: line {mark.line + 1}, column {mark.column + 1} {problem}")

"""Settings as facts: a frozen class is the only schema; YAML and `key=value` go through it and errors say the remedy.

A settings class stands above the function that reads it. `build` turns plain values into one: it renames `aliases`,
explains the names in `elsewhere`, names the nearest setting for an unknown key, and reports every problem at once.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict

from fathom.core.errors import FathomError, UsageError


class Settings(BaseModel):
    """What a function may be told: frozen, keyword-only, unknown names refused; a field's description is its help.

    `aliases` maps names that users already type to ours where the meaning is equal (`{"learning_rate": "optim.lr"}`;
    a dotted target lies in a nested class). `elsewhere` maps names that mean something different to the sentence that
    explains the difference. Both hold at whatever depth the class appears. Infinite and NaN numbers are refused.
    `manners` names settings that say how the work is done and never what comes out of it, like the most requests in
    flight or the most money: with another value of these a run goes on.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(),
        defer_build=True,  # pydantic makes a class's validator when it is first used: listing settings makes none
    )

    aliases: ClassVar[Mapping[str, str]] = {}
    elsewhere: ClassVar[Mapping[str, str]] = {}
    manners: ClassVar[tuple[str, ...]] = ()


S = TypeVar("S", bound=Settings)

YAML_BYTES = 1 << 20
OVERRIDE_DEPTH = 64
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def build(cls: type[S], values: Mapping[str, Any], where: str) -> S:
    """`cls` from plain values. `where` opens every message ("recipe.yaml: zero"); all problems are named at once.

    Raises UsageError for unknown names (with the nearest one), aliases that collide, and values of the wrong type or
    out of range (with the setting's path, the value, what is allowed and what to write).
    """
    from fathom.core import explain

    return explain.build(cls, values, where)


def describe(cls: type[Settings]) -> list[tuple[str, str, str, str]]:
    """Name, type, default and description of every setting, nested ones under dotted names: the rows of `--help`."""
    from fathom.core import explain

    return explain.describe(cls)


def table(cls: type[Settings]) -> str:
    """Every setting with its default and description, a line each, for `--help`."""
    rows = [(f"{key}={default}" if default else key, text) for key, _, default, text in describe(cls)]
    width = min(34, max(len(left) for left, _ in rows))
    return "\n".join(f"{left:<{width}}  {text}" for left, text in rows)


def load_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The mapping that a YAML file holds; an empty file is an empty mapping.

    Scalars follow YAML 1.2's core schema plus `1e6` and `1_000`: `no` and `12:30` stay text. Raises UsageError for
    anything that is not a regular readable UTF-8 file of at most 1 MiB with one plain mapping: repeated keys, tags,
    nesting past 64 levels and anchors that expand past 100 000 values are refused with their line.
    """
    from fathom.core.yaml_loader import read_yaml

    value = read_yaml(read_text(path, YAML_BYTES), str(path))
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError(f"{path}: holds {kind_of(value)}; must be a mapping; write `name: value` lines")
    return value


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """`["a.b=1", "--c", "[x, y]"]` as a nested mapping `{"a": {"b": 1}, "c": ["x", "y"]}`.

    Values read as YAML scalars; those that open with `[`, `{` or a quote read as YAML. Anything else is text, whole:
    `gym:chain_sum`, `#5` and `*` need no quotes. Raises UsageError for a missing name or value and for a name given
    twice.
    """
    found: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, text = argument.partition("=")
        if name.startswith("--"):
            name = name[2:].replace("-", "_")
            if not equals:
                if not rest or rest[0].startswith("--"):
                    raise UsageError(f"{argument}: no value follows; write {argument}=VALUE or {argument} VALUE")
                text = rest.pop(0)
        elif not equals:
            raise UsageError(f"{_short(argument)}: not a setting; write name=value or --name value")
        _place(found, name, _scalar_or_yaml(text, name), argument)
    return found


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` laid on top: mappings merge at every depth, anything else is replaced. Neither is changed."""
    merged = {key: merge(value, {}) if isinstance(value, Mapping) else value for key, value in base.items()}
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, Mapping):
            value = merge(below if isinstance(below, Mapping) else {}, value)
        merged[key] = value
    return merged


def plain(settings: Settings) -> dict[str, Any]:
    """The settings as JSON-able values, defaults included; `build` reads them back to an equal object."""
    return settings.model_dump(mode="json", serialize_as_any=True)


def identity(settings: Settings) -> dict[str, Any]:
    """As `plain`, without manners at whatever depth: what two runs must have in common to be one."""
    found = {name: value for name, value in plain(settings).items() if name not in settings.manners}
    for name in found:
        if isinstance(inner := getattr(settings, name, None), Settings):
            found[name] = identity(inner)
    return found


def canonical(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces. Raises FathomError for what JSON has no word for."""
    try:
        text = _CANONICAL.encode(value)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise FathomError(f"{_short(value)}: cannot be written as JSON ({error}); use finite, plain values") from error
    return text


def fingerprint(value: Any) -> str:
    """16 hexadecimal characters that name a value: the head of sha256 over its canonical JSON. Settings are welcome."""
    if isinstance(value, Settings):
        value = plain(value)
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


def differences(old: Mapping[str, Any] | Settings, new: Mapping[str, Any] | Settings) -> list[str]:
    """One line per setting that differs, by dotted name: `lr: 0.001 → 0.002`; a side without it says `not set`."""
    before, after = _leaves(old), _leaves(new)
    lines = []
    for name in [*before, *(name for name in after if name not in before)]:
        left = show(before[name]) if name in before else "not set"
        right = show(after[name]) if name in after else "not set"
        if left != right:
            lines.append(f"{name}: {left} → {right}")
    return lines


def show(value: Any) -> str:
    """A value as the user would write it in YAML flow style, for messages; long ones are cut at 120 characters."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):
        text = repr(value)
    if isinstance(value, str) and text == f'"{value}"' and value and value == value.strip():
        text = value
    return text if len(text) <= 120 else text[:117] + "…"


def read_text(path: str | os.PathLike[str], limit: int) -> str:
    """The text of a regular UTF-8 file of at most `limit` bytes; raises UsageError that says what stands in the way."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise UsageError(f"{path}: is a directory; name the file inside it")
        if not stat.S_ISREG(mode):
            raise UsageError(f"{path}: is not a regular file; write its content to a file and name that")
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file{neighbour(Path(path))}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"{path}: cannot be read ({reason}); check the path and its permissions") from error
    if len(data) > limit:
        raise UsageError(f"{path}: larger than {limit} bytes, the most that is read here; is it the right file?")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: byte {error.start} is not UTF-8 text; is it the right file? Save it as UTF-8"
        ) from error
    if "\0" in text:
        raise UsageError(f"{path}: holds zero bytes, so it is not text; is it the right file?")
    return text.removeprefix("\ufeff")


def neighbour(path: Path) -> str:
    """A hint at a file of similar name in the same directory, or the remedy without one."""
    from difflib import get_close_matches

    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return f"; the directory {path.parent} cannot be listed: check the path"
    near = get_close_matches(path.name, names, 1)
    return f"; did you mean {path.parent / near[0]}?" if near else "; check the path"


def _place(found: dict[str, Any], name: str, value: Any, argument: str) -> None:
    parts = name.split(".")
    if not all(parts) or name != name.strip():
        raise UsageError(f"{_short(argument)}: the name {name!r} has an empty part; write name=value or a.b=value")
    if len(parts) > OVERRIDE_DEPTH:
        raise UsageError(f"{_short(argument)}: {len(parts)} dots deep; at most {OVERRIDE_DEPTH} are read")
    at = found
    for depth, part in enumerate(parts[:-1], 1):
        at = at.setdefault(part, {})
        if not isinstance(at, dict):
            raise UsageError(f"{_short(argument)}: {'.'.join(parts[:depth])} was given a value before; give it once")
    if parts[-1] in at:
        raise UsageError(f"{_short(argument)}: {name} is given twice; keep one of the two")
    at[parts[-1]] = value


def _scalar_or_yaml(text: str, name: str) -> Any:
    from fathom.core.yaml_loader import read_scalar, read_yaml

    read = read_yaml if text.strip()[:1] in ("[", "{", '"', "'") else read_scalar
    return read(text, name)


def _leaves(value: Mapping[str, Any] | Settings, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Settings):
        value = plain(value)
    leaves: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Settings):
            item = plain(item)
        if isinstance(item, Mapping) and item:
            leaves.update(_leaves(item, f"{prefix}{key}."))
        else:
            leaves[f"{prefix}{key}"] = item
    return leaves


def kind_of(value: Any) -> str:
    """What a plain value is, in the words of YAML."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int):
        return "a whole number"
    if isinstance(value, float):
        return "a number" if math.isfinite(value) else "an infinite number or NaN"
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, Sequence) else type(value).__name__


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"

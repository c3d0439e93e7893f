"""Data on disk by splits: a file, a directory in Hugging Face's manner, or what `save_to_disk` wrote.

Which file belongs to which split is told, in this order, by `dataset_dict.json` or `state.json` (Arrow), by the
`configs` of README.md, and by names: `data/NAME-00000-of-00002.parquet`, or train, validation, test (and their
synonyms) in a file's or a folder's name. A folder that is none of these is a configuration, as `main/` in gsm8k.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import Any

from fathom.core.config import neighbour, read_text
from fathom.core.errors import FathomError, UsageError
from fathom.tasks.formats import FIELDS, LOOKED_AT, Format, Kind, recognise
from fathom.tasks.rows import SUFFIXES, Row, read

MOST_FILES = 100_000
LARGEST_CARD = 1 << 20  # bytes of README.md and of Arrow's JSON files
_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF = {word: split for split, words in _NAMES.items() for word in words}
_SEPARATOR = re.compile(r"[-._ 0-9]+")
_SHARD = re.compile(r"data/(\w[\w.]*)-\d{5}-of-\d{5}[^/]*")
_PLAIN_NAME = re.compile(r"\w[\w.-]*")
_ABOUT_DATA = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json", "config.json")
_CARD = "README.md"


@dataclass(frozen=True)
class DataFiles:
    """The files of one configuration by split. `about` are those that said so; `revision` is the hub's, if any."""

    name: str
    splits: Mapping[str, tuple[Path, ...]]
    root: Path
    about: tuple[Path, ...] = ()
    left_out: tuple[str, ...] = ()  # data files that belong to no split
    revision: str = ""

    def split(self, name: str) -> tuple[Path, ...]:
        """The files of a split; UsageError names those that there are."""
        if name not in self.splits:
            raise UsageError(f"{self.name}: no split {name}; there are {', '.join(self.splits)}: set split to one")
        return self.splits[name]

    @property
    def test(self) -> tuple[Path, ...] | None:
        """The files of the split to test on: `test`, else `validation`, else None."""
        return self.splits.get("test") or self.splits.get("validation")

    @property
    def note(self) -> str:
        """What a reader should know about what is not read; empty where all is."""
        if not self.left_out:
            return ""
        more = f" and {len(self.left_out) - 1} more" if len(self.left_out) > 1 else ""
        return f"; belongs to no split and is not read: {self.left_out[0]}{more}"


def from_path(path: Path, config: str | None = None) -> DataFiles:
    """The data files behind a path. UsageError says what stands in the way."""
    if path.is_dir():
        return _from_directory(path, config)
    if not path.exists():
        raise UsageError(f"{path}: no such file (from {Path.cwd()}){neighbour(path)}")
    if not path.name.endswith(SUFFIXES):
        raise UsageError(f"{path}: data are read from {', '.join(SUFFIXES)} and directories of them; convert the file")
    if config is not None:
        raise UsageError(f"{path}: config={config}: a file has no configurations; leave config out")
    return DataFiles(str(path), {"train": (path,)}, path.parent)


def rows(files: Iterable[Path]) -> Iterator[tuple[Path, Row]]:
    """Every row of the files, in their order, with the keys that some format reads."""
    for path in files:
        for row in read(path, FIELDS):
            yield path, row


def formats(name: str, files: tuple[Path, ...], kinds: tuple[Kind, ...]) -> tuple[Format, ...]:
    """The formats of the files' first rows, the most frequent first; UsageError where there is none."""
    looked_at = [row.data for _, row in islice(rows(files), LOOKED_AT) if row.data is not None]
    if found := recognise(looked_at, kinds):
        return found
    if not looked_at:
        raise UsageError(f"{name}: none of the first {LOOKED_AT} lines is a JSON object; write one object per line, "
                         "for example with the keys question and answer")
    first = next(row.data for path in files for row in read(path) if row.data is not None)
    there = f"rows have {', '.join(first)[:200]}" if first else "rows have no keys"
    chats = "messages, prompt and completion, or text, or to " if "chat" in kinds else ""
    of = "" if "chat" in kinds else " of problems"
    raise UsageError(
        f"{name}: {there}, which is no known form{of}; rename the keys to {chats}question and answer, problem and "
        "solution (with a box), prompt and answer, or question, solution and answer")


# Directories.


def _from_directory(path: Path, config: str | None) -> DataFiles:
    for name in ("dataset_dict.json", "state.json"):
        if (path / name).is_file():
            if config is not None:
                raise UsageError(f"{path}: config={config}: saved by save_to_disk, which has none; leave config out")
            return _saved_splits(path) if name == "dataset_dict.json" else _saved(path)
    if (path / "records").is_dir():
        raise UsageError(f"{path}: a directory of an earlier stage gives examples, no problems; name it under data")
    if (path / "manifest.json").is_file():
        raise UsageError(f"{path}: the directory of a run that kept no records; name a run that did, or data files")
    found = list(_walk(path))
    if card_configs := configs(path):
        name = chosen(path, config, card_configs)
        return _by_card(path, name, card_configs[name], found)
    return _by_names(path, config, found)


def _walk(root: Path) -> Iterator[str]:
    """Paths of files below `root`, relative to it, in order. Hidden ones are left out; a link must stay inside."""
    inside = [root.resolve()]
    if root.parent.name == "snapshots":  # the hub's cache: names here, contents beside
        inside.append(root.resolve().parent.parent / "blobs")
    found: list[str] = []
    for folder, folders, names in os.walk(root):
        at = Path(folder)
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for name in [*folders, *names]:
            entry = at / name
            if entry.is_symlink() and (
                name in folders or not any(entry.resolve().is_relative_to(place) for place in inside)
            ):
                raise FathomError(f"{entry}: a link to {entry.resolve()}, which is a folder or lies outside of {root}; "
                                  "copy the data there, or name its directory")
        found += [(at / name).relative_to(root).as_posix() for name in names if not name.startswith(".")]
        if len(found) > MOST_FILES:
            raise FathomError(f"{root}: more than {MOST_FILES} files; name a directory of data alone")
    yield from sorted(found)


def _by_names(root: Path, config: str | None, found: list[str]) -> DataFiles:
    data = [name for name in found if name.endswith(SUFFIXES) and Path(name).name not in _ABOUT_DATA]
    if not data:
        others = f" ({found[0]} and others are there)" if found else ""
        raise UsageError(f"{root}: a folder without data files{others}; data are read from {', '.join(SUFFIXES)}: "
                         "convert them, or name another")
    by_config: dict[str, list[str]] = {}
    for name in data:
        top, slash, _ = name.partition("/")
        own = bool(slash) and top != "data" and _keyword(top) is None
        by_config.setdefault(top if own else "default", []).append(name)
    splits: dict[str, list[str]] = {}
    for name in by_config[chosen(root, config, by_config)]:
        splits.setdefault(_split_of(name) or "", []).append(name)
    if list(splits) == [""]:
        splits = {"train": splits[""]}
    left_out = splits.pop("", [])
    return _data_files(root, splits, (), left_out)


def _split_of(name: str) -> str | None:
    """The split that a path's name says it belongs to, the file's own name before its folders'."""
    parts = name.split("/")
    for part in [parts[-1].partition(".")[0], *reversed(parts[:-1])]:
        if (split := _keyword(part)) is not None:
            return split
    return shard.group(1) if (shard := _SHARD.fullmatch(name)) else None


def _keyword(part: str) -> str | None:
    return next((_SPLIT_OF[word] for word in _SEPARATOR.split(part.lower()) if word in _SPLIT_OF), None)


def _data_files(
    root: Path, splits: Mapping[str, list[str]], about: tuple[Path, ...], left_out: Iterable[str] = ()
) -> DataFiles:
    order = sorted(splits, key=lambda split: (list(_NAMES).index(split) if split in _NAMES else len(_NAMES), split))
    return DataFiles(str(root), {split: tuple(root / name for name in splits[split]) for split in order},
                     root, about, tuple(left_out))


def chosen(root: Path, config: str | None, there: Mapping[str, Any]) -> str:
    """The configuration asked for, or the one that stands out; UsageError names those that there are."""
    if config is not None:
        if config not in there:
            raise UsageError(f"{root}: config={config}: no such configuration; there are {', '.join(there)[:200]}: "
                             "set config to one")
        return config
    if len(there) > 1 and "default" not in there:
        marked = [name for name, entry in there.items() if isinstance(entry, Mapping) and entry.get("default") is True]
        if len(marked) != 1:
            raise UsageError(f"{root}: has the configurations {', '.join(there)[:200]}; set config to one of them")
        return marked[0]
    return "default" if "default" in there else next(iter(there))


# README.md.


def configs(root: Path) -> dict[str, dict[str, Any]]:
    """The configurations that README.md lists, by name; none where it lists none."""
    from fathom.core.yaml_loader import read_yaml

    if not (root / _CARD).is_file():
        return {}
    text = read_text(root / _CARD, LARGEST_CARD)
    match = re.match(r"---[ \t]*\n(.*?)\n---[ \t]*(?:\n|\Z)", text.replace("\r\n", "\n"), re.DOTALL)
    if match is None or not re.search(r"^configs:", match.group(1), re.MULTILINE):
        return {}
    listed = read_yaml(match.group(1), str(root / _CARD))["configs"]
    if not isinstance(listed, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("config_name", "default"), str) for entry in listed
    ):
        raise UsageError(f"{root / _CARD}: configs is not a list of mappings with config_name; correct it")
    return {entry.get("config_name", "default"): entry for entry in listed}


def patterns(root: Path, name: str, entry: Mapping[str, Any]) -> dict[str, list[str]]:
    """The file patterns of a configuration of README.md, by split; none where it leaves that to the names."""
    files, folder = entry.get("data_files"), entry.get("data_dir", "")
    if files is None:
        return {}
    wrong = UsageError(f"{root / _CARD}: config {name}: data_files must be a path, or a list of {{split, path}}; "
                       "correct it")
    if isinstance(files, str):
        files = [files]
    if not isinstance(files, list) or not files or not isinstance(folder, str):
        raise wrong
    if all(isinstance(item, str) for item in files):
        files = [{"split": "train", "path": files}]
    found: dict[str, list[str]] = {}
    for item in files:
        if not isinstance(item, dict) or not isinstance(item.get("split"), str):
            raise wrong
        paths = [item.get("path")] if not isinstance(item.get("path"), list) else item["path"]
        for path in paths:
            if not isinstance(path, str):
                raise wrong
            whole = f"{folder.strip('/')}/{path}" if folder.strip("/") else path.removeprefix("./")
            if whole.startswith("/") or "://" in whole or ".." in whole.split("/"):
                raise UsageError(f"{root / _CARD}: config {name}: {whole[:200]} lies outside of the directory; "
                                 "copy the file into it")
            found.setdefault(item["split"], []).append(whole)
    return found


def _by_card(root: Path, name: str, entry: Mapping[str, Any], found: list[str]) -> DataFiles:
    about = (root / _CARD,)
    wanted = patterns(root, name, entry)
    if not wanted:
        folder = str(entry.get("data_dir", "")).strip("/")
        below = [file for file in found if not folder or file.startswith(f"{folder}/")]
        return replace(_by_names(root, None, below), about=about)
    splits: dict[str, list[str]] = {}
    for split, globs in wanted.items():
        matches = [file for glob in globs for file in found if _fits(file.split("/"), glob.split("/"))]
        if not matches:
            raise UsageError(f"{root / _CARD}: config {name}: split {split}: no file fits {', '.join(globs)[:200]}; "
                             "fetch the files, or correct data_files")
        if odd := [file for file in matches if not file.endswith(SUFFIXES)]:
            raise UsageError(f"{root / odd[0]}: data are read from {', '.join(SUFFIXES)}; convert the file")
        splits[split] = list(dict.fromkeys(matches))
    return _data_files(root, splits, about)


def _fits(parts: list[str], glob: list[str]) -> bool:
    """Whether a path fits a pattern, part by part; `**` stands for any number of parts."""
    if not glob:
        return not parts
    if glob[0] == "**":
        return _fits(parts, glob[1:]) or (bool(parts) and _fits(parts[1:], glob))
    return bool(parts) and fnmatchcase(parts[0], glob[0]) and _fits(parts[1:], glob[1:])


# What save_to_disk wrote.


def _saved_splits(root: Path) -> DataFiles:
    names = _json(root / "dataset_dict.json").get("splits")
    if not isinstance(names, list) or not names or not all(_is_plain(name) for name in names):
        raise FathomError(f"{root / 'dataset_dict.json'}: does not list the splits; save the data again")
    parts = {name: _saved(root / name) for name in names}
    return DataFiles(
        str(root), {name: part.splits["train"] for name, part in parts.items()}, root,
        (root / "dataset_dict.json", *(file for part in parts.values() for file in part.about)))


def _saved(root: Path) -> DataFiles:
    state = _json(root / "state.json")
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise FathomError(f"{root}: saved with indices over its rows, which are not read here; save it again after "
                          "flatten_indices()")
    listed = state.get("_data_files")
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in listed or ()]
    if not names or not all(_is_plain(name) for name in names):
        raise FathomError(f"{root / 'state.json'}: does not list the data files; save the data again")
    files = tuple(root / str(name) for name in names)
    for file in files:
        if not file.is_file() or not file.resolve().is_relative_to(root.resolve()):
            raise FathomError(f"{file}: listed in state.json and not there; copy the whole directory again")
    return DataFiles(str(root), {"train": files}, root, (root / "state.json",))


def _is_plain(name: Any) -> bool:
    return isinstance(name, str) and _PLAIN_NAME.fullmatch(name) is not None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_text(path, LARGEST_CARD))
    except (ValueError, RecursionError) as error:
        raise FathomError(f"{path}: not JSON ({str(error)[:80]}); copy the directory again") from error
    if not isinstance(found, dict):
        raise FathomError(f"{path}: not a mapping; copy the directory again")
    return found

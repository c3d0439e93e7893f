"""Tables of shares: who was right how often within each part of a benchmark. Drawn by the report and in plain text."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fathom.tasks.statistics import share_interval

Cell = str | int | float | dict[str, Any] | None


@dataclass(frozen=True)
class Table:
    """Rows of cells under `columns`; a cell is text, a number, nothing, or a share as `cell` makes it.

    `note` says by which rule the rows were made: a number without its rule is not to be quoted. A "heat" table is
    coloured by its shares.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    kind: Literal["table", "heat"] = "table"

    def to_json(self) -> dict[str, Any]:
        """The table as a JSON value; `from_json` restores an equal one."""
        return {"title": self.title, "columns": list(self.columns), "rows": [list(row) for row in self.rows],
                "note": self.note, "kind": self.kind}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Table:
        """Reads what `to_json` wrote."""
        return cls(value["title"], tuple(value["columns"]), tuple(tuple(row) for row in value["rows"]),
                   value.get("note", ""), value.get("kind", "table"))

    def __str__(self) -> str:
        cells = [[_said(cell, self.kind == "heat") for cell in row] for row in self.rows]
        widths = [max(len(column), *(len(row[i]) for row in cells)) if cells else len(column)
                  for i, column in enumerate(self.columns)]
        def line(words: Iterable[str]) -> str:
            first, *rest = (f"{word:<{width}}" if i == 0 else f"{word:>{width}}"
                            for i, (word, width) in enumerate(zip(words, widths, strict=True)))
            return "  ".join([first, *rest]).rstrip()
        head = [self.title, *([f"({self.note})"] if self.note else [])]
        return "\n".join([*head, line(self.columns), *map(line, cells)])


def _said(cell: Cell, short: bool) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, dict):
        if not cell["of"]:
            return "–"
        share = f"{100 * cell['right'] / cell['of']:.1f} %"
        if short:
            return f"{share} of {cell['of']}"
        return f"{cell['right']}/{cell['of']} {share} ({100 * cell['low']:.1f}–{100 * cell['high']:.1f})"
    return f"{cell:.2f}" if isinstance(cell, float) else str(cell)


Right = Sequence[bool]  # of one problem: whether each of its samples was right


def cell(groups: Sequence[Right]) -> dict[str, Any]:
    """The share right over the samples of these problems, with its 95 % interval over problems."""
    right, of = sum(map(sum, groups)), sum(map(len, groups))
    low, high = share_interval([sum(group) for group in groups], [len(group) for group in groups]) if of else (0.0, 1.0)
    return {"right": right, "of": of, "low": low, "high": high}


def by(
    title: str, name: str, keyed: Iterable[tuple[Hashable, Right]], note: str = "",
    order: Callable[[Any], Any] | None = None,
) -> Table:
    """A row for each key: how many problems, and the share of their samples that was right."""
    found: dict[Hashable, list[Right]] = {}
    for key, right in keyed:
        found.setdefault(key, []).append(right)
    keys = sorted(found, key=order) if order else sorted(found, key=lambda key: (-len(found[key]), str(key)))
    return Table(title, (name, "problems", "right"),
                 tuple((str(key), len(found[key]), cell(found[key])) for key in keys), note)


def crossed(
    title: str, corner: str, keyed: Iterable[tuple[str, str, Right]], rows: Sequence[str], columns: Sequence[str],
    note: str = "",
) -> Table:
    """A heat table: the share right where a row's key and a column's meet."""
    found: dict[tuple[str, str], list[Right]] = {}
    for row, column, right in keyed:
        found.setdefault((row, column), []).append(right)
    return Table(title, (corner, *columns), tuple(
        (row, *(cell(found[row, column]) if (row, column) in found else None for column in columns)) for row in rows
    ), note, "heat")

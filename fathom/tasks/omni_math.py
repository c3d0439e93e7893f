"""Omni-MATH: olympiad problems with a tree of domains and a difficulty (Gao et al., arXiv 2410.07985).

Whatever is computed here names its rule: paper and official script draw the tiers of difficulty differently, a problem
of two domains counts in both, and a number without that cannot be compared with anybody else's.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fathom.tasks.tables import Right, Table, by, cell, crossed

Rule = Literal["script", "text"]
RULES: tuple[Rule, ...] = ("script", "text")
TIERS = ("T1", "T2", "T3", "T4")
# Upper ends, each included. The tables of the paper fit the official script, not the paper's own sentence.
_ENDS: dict[Rule, tuple[float, ...]] = {"script": (3, 5, 8, 10), "text": (3, 5, 7, 10)}
_RULE_SAID = {
    "script": "official script: T1 [1,3], T2 (3,5], T3 (5,8], T4 (8,10], T4 without problems that say prove or proof",
    "text": "the paper's text: T1 [1,3], T2 (3,5], T3 (5,7], T4 (7,10]",
}
_PROOF = re.compile(r"prove|proof")
ROOT = "Mathematics"
NO_DOMAIN = "(no domain)"
# First-level nodes of the published tree.
PRIMARIES = ("Algebra", "Precalculus", "Calculus", "Geometry", "Discrete Mathematics", "Number Theory",
             "Applied Mathematics", "Differential Equations", "Other")
_ARROW = re.compile(r"\s*->\s*")

_CONTESTS = {  # contest: (tier of contests, words that its slugs begin with)
    "IMO": ("T0", ("imo",)), "IMO Shortlist": ("T0", ("imo_shortlist",)), "IMO Longlist": ("T0", ("imo_longlist",)),
    "Putnam": ("T0", ("putnam",)), "IMC": ("T0", ("imc",)),
    "USAMO": ("T1", ("usamo", "usomo")), "IZhO": ("T1", ("izho", "international_zhautykov")),
    "China TST": ("T1", ("china_team_selection",)), "CMO": ("T1", ("china_national",)),
    "USA TST": ("T1", ("usa_team_selection",)),
    "APMO": ("T2", ("apmo",)), "USAJMO": ("T2", ("usajmo",)), "Balkan MO": ("T2", ("balkan_mo",)),
    "Balkan Shortlist": ("T2", ("balkan_mo_shortlist",)), "JBMO": ("T2", ("jbmo", "junior_balkan")),
    "JBMO Shortlist": ("T2", ("jbmo_shortlist",)), "Tournament of Towns": ("T2", ("tot", "tournament_of_towns")),
    "Baltic Way": ("T2", ("baltic_way",)), "Alibaba": ("T2", ("alibaba",)),
    "Middle European": ("T2", ("middle_european",)),
    "HMMT February": ("T3", ("hmmt_2",)), "HMMT November": ("T3", ("hmmt_11",)), "Yau": ("T3", ("yau",)),
    "Pascal": ("T4", ("pascal",)), "Cayley": ("T4", ("cayley",)), "Fermat": ("T4", ("fermat",)),
}
_SLUGS = sorted(((word, name) for name, (_, words) in _CONTESTS.items() for word in words),
                key=lambda pair: -len(pair[0]))
OTHER_CONTEST = "other olympiads"


def chain(text: str) -> tuple[str, ...]:
    """The nodes of a domain below the root: "Mathematics -> Algebra -> Prealgebra" is (Algebra, Prealgebra)."""
    nodes = tuple(node for node in _ARROW.split(text.strip()) if node)
    return nodes[1:] if nodes and nodes[0] == ROOT else nodes


def primary(text: str) -> str:
    """The first-level node of a domain, the only one that is reliable: deeper ones hold free text."""
    return next(iter(chain(text)), NO_DOMAIN)


def tier(difficulty: float, rule: Rule, problem: str = "") -> str | None:
    """T1 to T4 by a rule; None for what the rule leaves out."""
    if not 1 <= difficulty <= 10:
        return None
    found = next(name for name, end in zip(TIERS, _ENDS[rule], strict=True) if difficulty <= end)
    return None if rule == "script" and found == "T4" and _PROOF.search(problem) else found


def bucket(difficulty: float) -> int:
    """k of D_k = (k − 1, k]."""
    whole = int(difficulty)
    return whole if difficulty == whole else whole + 1


def contest(source: str) -> tuple[str, str]:
    """Contest and its tier T0 to T4 (those of contests, not of difficulty) of a source slug, however it is spelt."""
    slug = re.sub(r"[^a-z0-9]+", "_", source.strip().lower()).strip("_")
    for word, name in _SLUGS:
        if slug == word or slug.startswith((f"{word}_", f"{word}s")) or (word == "apmo" and slug.startswith("apmo")):
            return name, _CONTESTS[name][0]
    return OTHER_CONTEST, "T2"


def trend_intensity(percent: Sequence[float]) -> float:
    """How steadily accuracy falls over tiers (paper, analysis section): sum of falls, rises counted double against.

    Each fall counts at most 100/n; in [-200, 75] for four tiers. 75 is the steadiest fall there can be.
    """
    most = 100 / len(percent)
    return sum(
        2 * (now - later) if later > now else min(most, now - later) for now, later in itertools.pairwise(percent))


@dataclass(frozen=True)
class Item:
    """One judged problem: what the tables need to know."""

    domains: tuple[str, ...]
    difficulty: float
    source: str
    problem: str
    right: Right


def item(row: Mapping[str, Any]) -> Item:
    """The problem of an evaluation's record (`about`, `prompt` and `samples`)."""
    about = row["about"]
    text = next((str(m["content"]) for m in reversed(row["prompt"]) if m["role"] == "user"), "")
    return Item(tuple(about.get("domain") or ()), float(about["difficulty"]), str(about.get("source", "")),
                str(about.get("problem", text)), [sample["outcome"] == "right" for sample in row["samples"]])


def tables(items: Sequence[Item], rule: Rule = "script") -> list[Table]:
    """All tables of a result; those of tiers by both rules, the map of domains and tiers by `rule`."""
    found = [_domains(items)]
    for name in (rule, *(other for other in RULES if other != rule)):
        found.append(_tiers(items, name, used=name == rule))
    found += [
        crossed(
            "Domain × difficulty", "domain",
            ((domain, tier(one.difficulty, rule, one.problem) or "left out", one.right)
             for one in items for domain in map(primary, one.domains or (NO_DOMAIN,))),
            _primaries(items), TIERS, f"{_RULE_SAID[rule]}; every chain of a problem counts"),
        by("Difficulty in whole steps", "D", ((bucket(one.difficulty), one.right) for one in items),
           "D_k = (k − 1, k]", order=int),
        by("Contest tier", "tier", ((contest(one.source)[1], one.right) for one in items),
           "T0 influential international, T1 hard, T2 intermediate, T3 transitional, T4 introductory; tiers of "
           "contests, not of difficulty", order=str),
        by("Contest", "contest", ((contest(one.source)[0], one.right) for one in items)),
        _tree(items),
    ]
    return found


def _domains(items: Sequence[Item]) -> Table:
    chains = [(primary(text), one.right) for one in items for text in one.domains or (NO_DOMAIN,)]
    once = [(name, one.right) for one in items
            for name in dict.fromkeys(map(primary, one.domains or (NO_DOMAIN,)))]
    rows = []
    for name in _primaries(items):
        counted, single = [r for n, r in chains if n == name], [r for n, r in once if n == name]
        rows.append((name, len(single), cell(counted), cell(single)))
    return Table("Domain", ("domain", "problems", "every chain counts", "each problem once"), tuple(rows),
                 "published convention: a problem with two chains of one domain counts twice in it")


def _primaries(items: Sequence[Item]) -> list[str]:
    found = dict.fromkeys(primary(text) for one in items for text in one.domains or (NO_DOMAIN,))
    known = [name for name in PRIMARIES if name in found]
    return known + sorted(name for name in found if name not in PRIMARIES)


def _tiers(items: Sequence[Item], rule: Rule, used: bool) -> Table:
    keyed = [(tier(one.difficulty, rule, one.problem), one.right) for one in items]
    groups = {name: [right for key, right in keyed if key == name] for name in TIERS}
    left_out = sum(key is None for key, _ in keyed)
    rows: list[tuple[Any, ...]] = [(name, len(groups[name]), cell(groups[name])) for name in TIERS]
    notes = [_RULE_SAID[rule], "used above" if used else "not used above"]
    if left_out:
        rows.append(("left out", left_out, cell([right for key, right in keyed if key is None])))
    shares = [cell(groups[name]) for name in TIERS]
    if all(share["of"] for share in shares):
        percent = [100 * share["right"] / share["of"] for share in shares]
        notes.append(f"consistency with difficulty A = {trend_intensity(percent):.2f}, at best 75")
    return Table(f"Difficulty tier ({rule})", ("tier", "problems", "right"), tuple(rows), "; ".join(notes))


def _tree(items: Sequence[Item]) -> Table:
    """Every node with the problems at or below it, in the order of the tree, indented by its depth."""
    found: dict[tuple[str, ...], list[Right]] = {}
    for one in items:
        nodes = {nodes[:depth] for nodes in map(chain, one.domains) for depth in range(1, len(nodes) + 1)}
        for node in nodes:
            found.setdefault(node, []).append(one.right)
    rows = [("  " * (len(node) - 1) + node[-1], len(found[node]), cell(found[node])) for node in _in_order(found)]
    return Table("Domain tree", ("node", "problems", "right"), tuple(rows), "each problem once at every node")


def _in_order(nodes: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    def place(node: tuple[str, ...]) -> tuple[Any, ...]:
        first = PRIMARIES.index(node[0]) if node[0] in PRIMARIES else len(PRIMARIES)
        return (first, *((name == "Other", name) for name in node))
    return sorted(nodes, key=place)

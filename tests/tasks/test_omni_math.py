"""Omni-MATH's rules: tiers by both conventions, the tree, contests, and tables whose totals were worked out by hand."""

from __future__ import annotations

import pytest

from fathom.tasks import omni_math
from fathom.tasks.omni_math import Item, bucket, chain, contest, primary, tables, tier, trend_intensity


@pytest.mark.parametrize("difficulty,script,text", [
    (1, "T1", "T1"), (3, "T1", "T1"), (3.5, "T2", "T2"), (5, "T2", "T2"), (5.25, "T3", "T3"), (7, "T3", "T3"),
    (7.5, "T3", "T4"), (8, "T3", "T4"), (8.5, "T4", "T4"), (10, "T4", "T4"), (0.5, None, None), (10.5, None, None),
])
def test_tiers_by_both_rules(difficulty, script, text):
    assert tier(difficulty, "script") == script
    assert tier(difficulty, "text") == text


def test_the_script_leaves_proofs_of_the_last_tier_out():
    assert tier(9, "script", "Find x and prove that it is unique") is None
    assert tier(9, "text", "Find x and prove that it is unique") == "T4"
    assert tier(7, "script", "Find x and prove that it is unique") == "T3"


@pytest.mark.parametrize("model,percent,published", [
    ("o1-mini", (82.23, 63.10, 49.11, 42.69), 39.54), ("o1-preview", (80.11, 50.83, 42.25, 37.71), 38.12),
    ("GPT-4o", (68.38, 25.01, 21.83, 15.81), 34.20), ("Qwen2.5-Math-72B", (70.96, 31.37, 27.75, 22.29), 34.08),
    ("Llama-3.1-70B", (62.66, 16.82, 16.95, 13.71), 27.98), ("Numina", (65.63, 23.70, 20.33, 21.08), 26.87),
    ("DeepSeekMath-7B", (49.07, 9.11, 11.49, 7.80), 23.93),
])
def test_trend_intensity_is_the_published_one(model, percent, published):
    assert trend_intensity(percent) == pytest.approx(published, abs=0.011)


def test_the_range_of_trend_intensity():
    assert trend_intensity((100, 75, 50, 25)) == 75
    assert trend_intensity((100, 0, 0, 0)) == 25
    assert trend_intensity((0, 0, 0, 100)) == -200


def test_domains_and_buckets():
    assert chain("Mathematics -> Algebra -> Prealgebra -> Integers") == ("Algebra", "Prealgebra", "Integers")
    assert chain("Algebra -> Number Theory -> Other") == ("Algebra", "Number Theory", "Other")
    assert primary("Mathematics -> Geometry") == "Geometry"
    assert primary("Mathematics") == omni_math.NO_DOMAIN
    assert [bucket(value) for value in (1, 1.5, 2, 2.25, 4.375, 10)] == [1, 2, 2, 3, 5, 10]


@pytest.mark.parametrize("slug,name,of", [
    ("HMMT_2", "HMMT February", "T3"), ("HMMT_11", "HMMT November", "T3"), ("usomo", "USAMO", "T1"),
    ("apmoapmo_sol", "APMO", "T2"), ("jbmo_shortlists", "JBMO Shortlist", "T2"), ("jbmo", "JBMO", "T2"),
    ("junior_balkan_mo", "JBMO", "T2"), ("imo_longlists", "IMO Longlist", "T0"), ("imo", "IMO", "T0"),
    ("imor", "other olympiads", "T2"), ("international_zhautykov_olympiad", "IZhO", "T1"),
    ("usa_team_selection_test_for_imo", "USA TST", "T1"), ("ToT", "Tournament of Towns", "T2"),
    ("bero_American", "other olympiads", "T2"), ("all_levels", "other olympiads", "T2"), ("usajmo", "USAJMO", "T2"),
])
def test_contests_behind_dirty_slugs(slug, name, of):
    assert contest(slug) == (name, of)


def made() -> list[Item]:
    """Eight problems, two samples each, so that every total can be counted by hand."""
    algebra, number, geometry = ("Mathematics -> Algebra -> Prealgebra -> Integers", "Mathematics -> Number Theory",
                                 "Mathematics -> Geometry -> Plane Geometry -> Area")
    both = "Mathematics -> Algebra -> Algebra -> Other"
    rows = [
        ((algebra,), 1.5, "pascal", "p1", (True, True)),
        ((algebra, both), 3.0, "pascal", "p2", (True, False)),  # two chains of Algebra: counts twice
        ((number,), 4.5, "HMMT_2", "p3", (False, False)),
        ((geometry, number), 5.0, "HMMT_11", "p4", (True, True)),
        ((geometry,), 7.5, "usamo", "p5", (True, False)),  # T3 by the script, T4 by the text
        ((algebra,), 8.0, "imo", "p6", (False, False)),  # the same
        ((number,), 9.0, "imo", "prove that p7 is even", (True, False)),  # left out by the script
        ((), 9.5, "imor", "p8", (False, True)),
    ]
    return [Item(domains, difficulty, source, problem, list(right))
            for domains, difficulty, source, problem, right in rows]


def shares(table, column: int) -> dict[str, tuple[int, int]]:
    return {row[0]: (row[column]["right"], row[column]["of"]) for row in table.rows if row[column] is not None}


def test_tables_have_the_totals_worked_out_by_hand():
    found = {table.title: table for table in tables(made())}
    assert shares(found["Domain"], 2) == {  # every chain counts
        "Algebra": (2 + 2 * 1 + 0, 8), "Geometry": (2 + 1, 4), "Number Theory": (0 + 2 + 1, 6), "(no domain)": (1, 2)}
    assert shares(found["Domain"], 3) == {
        "Algebra": (3, 6), "Geometry": (3, 4), "Number Theory": (3, 6), "(no domain)": (1, 2)}
    assert shares(found["Difficulty tier (script)"], 2) == {
        "T1": (3, 4), "T2": (2, 4), "T3": (1, 4), "T4": (1, 2), "left out": (1, 2)}
    assert shares(found["Difficulty tier (text)"], 2) == {"T1": (3, 4), "T2": (2, 4), "T3": (0, 0), "T4": (3, 8)}
    # 75, 50, 25, 50 %: falls of 25 and 25, a rise of 25 that counts twice
    assert "A = 0.00" in found["Difficulty tier (script)"].note
    assert "used above" in found["Difficulty tier (script)"].note
    assert "(5,8]" in found["Difficulty tier (script)"].note and "(5,7]" in found["Difficulty tier (text)"].note
    assert shares(found["Contest tier"], 2) == {"T0": (1, 4), "T1": (1, 2), "T2": (1, 2), "T3": (2, 4), "T4": (3, 4)}
    heat = found["Domain × difficulty"]
    assert heat.columns == ("domain", "T1", "T2", "T3", "T4")
    by_domain = {row[0]: [cell and (cell["right"], cell["of"]) for cell in row[1:]] for row in heat.rows}
    assert by_domain["Algebra"] == [(2 + 2, 6), None, (0, 2), None]
    assert by_domain["Number Theory"] == [None, (2, 4), None, None]
    tree = shares(found["Domain tree"], 2)
    assert tree["Algebra"] == (3, 6)  # each problem once, whatever its chains
    assert tree["    Integers"] == (3, 6)
    assert tree["    Other"] == (1, 2)


def test_the_rule_of_the_map_can_be_chosen():
    heat = next(table for table in tables(made(), "text") if table.kind == "heat")
    by_domain = {row[0]: [cell and (cell["right"], cell["of"]) for cell in row[1:]] for row in heat.rows}
    assert by_domain["Algebra"] == [(4, 6), None, None, (0, 2)]


def test_tables_are_read_by_people():
    text = "\n\n".join(map(str, tables(made())))
    assert "official script" in text
    assert "3/4 75.0 % (" in text

"""Cases of functions, and what travels to a solution and back in a real sandbox."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fathom.judge.code import AssertTests, CaseTests, CodeJudge
from fathom.judge.sandbox import Limits
from fathom.judge.verdict import Outcome


@pytest.fixture(scope="module")
def judge() -> Iterator[CodeJudge]:
    with CodeJudge(limits=Limits(cpu_s=1.0, wall_s=10.0, memory_mb=256)) as judge:
        yield judge


def said(judge: CodeJudge, tests: AssertTests | CaseTests, code: str) -> str:
    """The outcome, and where it is not RIGHT the reason."""
    (verdict,) = judge.judge([(tests, f"```python\n{code}\n```")])
    return "right" if verdict.outcome is Outcome.RIGHT else f"{verdict.outcome}: {verdict.reason}"


VALUES = """[None, True, 0, -7, 2**63, -2**200, 0.1, -0.0, float("inf"), 1j, "", "naïve \\ud800", b"\\x00\\xff",
    [], (), (1, (2,)), {1, 2}, frozenset({"a"}), {}, {(1, 2): [3], None: {}}, int, list,
    datetime.datetime(2024, 2, 29, 1, 2, 3, 4), datetime.date(1, 1, 1), datetime.timedelta(1, 2, 3),
    decimal.Decimal("1.10"), fractions.Fraction(1, 3)]"""


def test_values_come_back_as_they_were_sent(judge: CodeJudge) -> None:
    test = f"import datetime, decimal, fractions\nfor value in {VALUES}:\n    back = same(value)\n"
    test += "    assert type(back) is type(value) and repr(back) == repr(value), value\n"
    test += "assert same(float('nan')) != same(float('nan'))"
    assert said(judge, AssertTests.of([test]), "def same(x):\n    return x") == "right"


ITERABLES = """
from collections import *
import itertools
class Own:
    def __iter__(self):
        return iter('ab')
class Items:
    def __getitem__(self, i):
        return [5, 6][i]
def f(n):
    return [deque([1]), range(n), {1: 2}.keys(), Own(), Items(), ChainMap({3: 4}), [zip('a', 'b')]]
def rows(n):
    yield from range(n)
def count():
    return itertools.count(5)
"""


def test_what_can_be_iterated_over_comes_as_data(judge: CodeJudge) -> None:
    tests = AssertTests.of([
        "from collections import deque\nd, r, k, own, items, chain, [pairs] = f(3)",
        "assert d == deque([1]) and r == range(3) and k == [1] and chain == {3: 4}",
        "assert own == ['a', 'b'] and items == [5, 6] and list(pairs) == [('a', 'b')]",
        "assert [x for x in rows(3)] == [0, 1, 2] and sorted(rows(2)) == [0, 1] and list(rows(0)) == []",
        "it = rows(2)\nassert next(it) == 0 and next(it) == 1 and next(it, None) is None",
        "try:\n    next(rows(0))\nexcept StopIteration:\n    pass\nelse:\n    assert False",
        "it = count()\nassert [next(it), next(it)] == [5, 6]",
        "assert f(x for x in [1]) and total(iter([1, 2])) == 3 and total(rows(4)) == 6",
    ])  # fmt: skip
    code = ITERABLES.replace("range(n), {", "range(3), {") + "total = sum"
    assert said(judge, tests, code) == "right"
    assert said(judge, AssertTests.of(["assert sum(count()) > 0"]), ITERABLES) == "wrong: answer is endless"
    twice = AssertTests.of(["it = rows(2)\nassert sum(it) == 1 and sum(it) == 0"])
    assert said(judge, twice, ITERABLES) == "wrong: answer is an iterator and was read twice"
    slow = "def rows(n):\n    while True:\n        sum(range(10_000))\n        yield 0"
    assert said(judge, AssertTests.of(["assert next(rows(1)) == 0"]), slow) == "wrong: time limit"


REVERSE = CaseTests("turn", (([[1, 2, 3]], [3, 2, 1]), ([[]], [])), ("ListNode",), "ListNode")
TURN = """
class Solution:
    def turn(self, head):
        last = None
        while head:
            {}
        return last
"""


def test_cases_with_lists_of_nodes(judge: CodeJudge) -> None:
    assert said(judge, REVERSE, TURN.format("head.next, last, head = last, head, head.next")) == "right"
    assert said(judge, REVERSE, TURN.format("last, head = head, head.next")) == "wrong: wrong output"
    endless = "class Solution:\n    def turn(self, head):\n        head.next = head\n        return head"
    assert said(judge, REVERSE, endless) == "wrong: answer is an endless list"


def test_cases_with_trees_in_place_and_unwrapped(judge: CodeJudge) -> None:
    tree = [5, 4, 8, 11, None, 13, 4, 7, 2, None, None, None, 1]
    turned = [5, 8, 4, 4, 13, None, 11, 1, None, None, None, 2, 7]
    mirror = CaseTests("f", (([tree], turned),), ("TreeNode",), "TreeNode")
    code = "def f(t):\n    if t:\n        t.left, t.right = f(t.right), f(t.left)\n    return t"
    assert said(judge, mirror, code) == "right"
    assert said(judge, mirror, "def f(t):\n    return t") == "wrong: wrong output"
    in_place = CaseTests("f", (([[3, 1], 0], [1, 3]),), result=0)
    assert said(judge, in_place, "def f(x, y):\n    x.sort()") == "right"
    assert said(judge, in_place, "def f(x, y):\n    return sorted(x)") == "wrong: wrong output"
    wrapped = CaseTests("f", (([1], [2]), ([2], [3])), unwrap=True)
    assert said(judge, wrapped, "def f(x):\n    return x + 1") == "right"
    assert said(judge, wrapped, "def f(x):\n    return (x + 1,)") == "right"
    assert said(judge, CaseTests("f", wrapped.cases), "def f(x):\n    return x + 1") == "wrong: wrong output"
    near = CaseTests("f", (([1], {"a": [0.3]}),), tolerance=1e-6)
    assert said(judge, near, "def f(x):\n    return {'a': (0.1 + 0.2,)}") == "right"
    assert said(judge, near, "def f(x):\n    return {'a': [0.31]}") == "wrong: wrong output"
    assert said(judge, near, "def g(x):\n    return 1") == "wrong: does not define the name asked for"


def test_cases_compare_as_json_does(judge: CodeJudge) -> None:
    def verdict(returned: str, expected: object, tolerance: float | None = None) -> str:
        code = f"from collections import *\ndef f():\n    return {returned}"
        return said(judge, CaseTests("f", (([], expected),), tolerance=tolerance), code)

    assert verdict("{1: 2, 2.5: {True: None}, None: 3}", {"1": 2, "2.5": {"true": None}, "null": 3}) == "right"
    assert verdict("{1: 2}", {1: 2}) == verdict("{'1': 2}", {"1": 2}) == "right"
    for wrong in ("{1: 2, '1': 2}", "{1: 3}", "{2: 2}", "{(1,): 2}", "{1: 2, 2: 2}", "[1]"):
        assert verdict(wrong, {"1": 2}) == "wrong: wrong output"
    for given in ("range(1, 3)", "deque([1, 2])", "map(int, '12')", "(n for n in (1, 2))", "{1: 0, 2: 0}.keys()"):
        assert verdict(given, [1, 2]) == "right"
    assert verdict("{1, 2}", [1, 2]) == verdict("range(3)", [1, 2]) == "wrong: wrong output"
    inf = float("inf")
    assert verdict("5", inf, tolerance=1e-6) == verdict("float('nan')", inf, tolerance=1e-6) == "wrong: wrong output"
    assert verdict("float('inf')", inf, tolerance=1e-6) == verdict("10**400", 10**400, tolerance=1e-6) == "right"
    assert verdict("1.5", 10**400, tolerance=1e-6) == "wrong: wrong output"


def test_cases_know_the_names_of_annotations(judge: CodeJudge) -> None:
    code = "class Solution:\n    def f(self, x: List[int]) -> Optional[Dict[str, int]]:\n        return x[0]"
    assert said(judge, CaseTests("f", (([[1]], 1),)), code) == "right"


def test_a_million_numbers_travel_and_more_are_named(judge: CodeJudge) -> None:
    million = list(range(1_000_000))
    with CodeJudge(limits=Limits(cpu_s=10.0, wall_s=40.0)) as patient:
        assert said(patient, CaseTests("f", (([million], million),)), "def f(x):\n    return x") == "right"
        too_large = CaseTests("f", ((["x" * 40_000_000], 0),))
        assert said(patient, too_large, "def f(x):\n    return 0") == "failed: arguments are too large"

r"""Whether two answers are the same: True, False, or None where that takes more mathematics than this.

False is said only where it is certain under the policy of docs/answers.md. Structures are compared here; values by
`same_value`, or by a stronger function that the caller passes.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fractions import Fraction

from fathom.judge.answers.answer import (
    Answer,
    Chain,
    Items,
    Matrix,
    Named,
    Ratio,
    Reals,
    Record,
    Segment,
    Value,
    Words,
    infinity,
    position,
    reals,
)  # fmt: skip
from fathom.judge.answers.expressions import QUICK, Budget, Node, TooDear, num, renamed
from fathom.judge.answers.forms import constant_log, form, proportional, same, symbols_of, value, whole_only
from fathom.judge.answers.units import DEGREE, PERCENT

Leaf = Callable[[Value, Value], bool | None]
_ROUNDING = 1e-4
_DECIMAL = re.compile(r"(\d*)\.(\d+)")
_YES_NO = ("yes", "no", "true", "false")
_FUNCTION = re.compile(r"(\w+)\((\w)\)")
_WHOLE_NAMES = frozenset("nkmjlNK")  # variables that stand for whole numbers more often than not


def same_readings(golds: Sequence[Answer], answers: Sequence[Answer], leaf: Leaf) -> bool | None:
    """Whether some reading of the answer is the same as some reading of the gold; None where one has no reading."""
    return _any(same_answer(gold, answer, leaf) for gold in golds for answer in answers) if golds and answers else None


def same_answer(gold: Answer, answer: Answer, leaf: Leaf) -> bool | None:
    """The comparison of structures. Symmetric but for rounding, which only a decimal gold allows."""
    match gold, answer:
        case Named(), Named():
            return _named(gold, answer, leaf)
        case Record(), Record():
            return _records(gold, answer, leaf)
        case Record(), Named(name, Items("(", items)) if "," in name:
            return _records(gold, _unpacked(name, items), leaf)
        case Named(name, Items("(", items)), Record() if "," in name:
            return _records(_unpacked(name, items), answer, leaf)
        case Named(), Chain(("=",)):
            return _equations(_sides(gold), _sides(answer))
        case Chain(("=",)), Named():
            return _equations(_sides(gold), _sides(answer))
        case Named(_, inside), _:
            return same_answer(inside, answer, leaf)
        case _, Named(_, inside):
            return same_answer(gold, inside, leaf)
        case Record(_, answers), Items("" | "(") | Value():
            return _in_order(answers, _members(answer), leaf)
        case Items("" | "(") | Value(), Record(_, answers):
            return _in_order(_members(gold), answers, leaf)
        case Words(a), Words(b):
            return b.split()[0] == a if a in _YES_NO else a == b
        case (Words(a), Value(text=b)) | (Value(text=b), Words(a)) if b.isalpha():
            return a == b.casefold()
        case Matrix(), Matrix():
            return _matrices(gold, answer, leaf)
        case Ratio(), Ratio() | Value():
            return _ratios(gold, answer, leaf)
        case Value(), Ratio():
            return _ratios(gold, answer, leaf)
        case Chain(), Chain():
            return _chains(gold, answer, leaf)
        case Value(), Value():
            return leaf(gold, answer)
        case (Reals(), _) | (_, Reals()):
            return _reals(gold, answer, leaf)
        case (Items(), _) | (_, Items()):
            return _items(gold, answer, leaf)
    # An unread value may be anything; two things of different kinds that were both read are not the same.
    return None if _unread(gold) or _unread(answer) else False


def _unread(answer: Answer) -> bool:
    return isinstance(answer, Value) and answer.tree is None and answer.base is None


def _members(answer: Answer) -> tuple[Answer, ...]:
    return answer.items if isinstance(answer, Items) else (answer,)


def _unpacked(name: str, items: tuple[Answer, ...]) -> Record:
    return Record(tuple(name.strip("()").split(",")), items)


def _named(gold: Named, answer: Named, leaf: Leaf) -> bool | None:
    if gold.name == answer.name:
        return same_answer(gold.answer, answer.answer, leaf)
    a, b = _FUNCTION.fullmatch(gold.name), _FUNCTION.fullmatch(answer.name)
    if a and b and a[1] == b[1] and isinstance(inside := answer.answer, Value) and inside.tree is not None:
        if a[2] in symbols_of(inside.tree):
            return False
        tree = renamed(inside.tree, b[2], a[2])  # f(x) = x + 1 and f(n) = n + 1 are one function
        return same_answer(gold.answer, replace(inside, text=f"{b[2]} for {a[2]} in {inside.text}", tree=tree), leaf)
    # y = 2x and x = y/2 are one equation, k = 5 and x = 5 are not.
    return _equations(_sides(gold), _sides(answer)) if _mentions(gold) and _mentions(answer) else False


def _mentions(named: Named) -> bool:
    return isinstance(named.answer, Value) and (named.answer.tree is None or bool(symbols_of(named.answer.tree)))


def _records(gold: Record, answer: Record, leaf: Leaf) -> bool | None:
    if set(gold.names) != set(answer.names):
        return False
    given = dict(zip(answer.names, answer.answers, strict=True))
    return _all(same_answer(one, given[name], leaf) for name, one in zip(gold.names, gold.answers, strict=True))


def _sides(answer: Named | Chain) -> tuple[Node | None, Node | None]:
    if isinstance(answer, Chain):
        left, right = answer.members
    else:
        name = answer.name.replace("\\", "")
        left, right = Value(name, Node("symbol", (name,))), answer.answer
    return tuple(side.tree if isinstance(side, Value) else None for side in (left, right))  # type: ignore[return-value]


def _equations(gold: tuple[Node | None, Node | None], answer: tuple[Node | None, Node | None]) -> bool | None:
    """Equations of one curve: their sides' differences are equal up to a factor."""
    try:
        a, b = (
            form(Node("+", (left, Node("*", (num(-1), right)))), QUICK)
            for left, right in (gold, answer)
            if left is not None and right is not None
        )
        return proportional(a, b, QUICK)
    except (TooDear, ValueError):
        return None


def _chains(gold: Chain, answer: Chain, leaf: Leaf) -> bool | None:
    both_equations = gold.relations == answer.relations == ("=",)
    if both_equations and (found := _equations(_sides(gold), _sides(answer))) is not None:
        return found
    if len(gold.members) != len(answer.members):
        return None
    found = _any(
        _in_order(gold.members, way.members, leaf)
        for way in (answer, _turned(answer))
        if gold.relations == way.relations
    )
    return None if found is False and len(gold.members) == 2 else found  # x - y > 0 may be y < x


def _turned(chain: Chain) -> Chain:
    flipped = {"<": ">", ">": "<", "\\leq": "\\geq", "\\geq": "\\leq"}
    return Chain(tuple(flipped.get(relation, relation) for relation in reversed(chain.relations)), chain.members[::-1])


def _matrices(gold: Matrix, answer: Matrix, leaf: Leaf) -> bool | None:
    if [len(row) for row in gold.rows] != [len(row) for row in answer.rows]:
        return False
    return _all(
        same_answer(a, b, leaf)
        for left, right in zip(gold.rows, answer.rows, strict=True)
        for a, b in zip(left, right, strict=True)
    )


def _ratios(gold: Answer, answer: Answer, leaf: Leaf) -> bool | None:
    left, right = (one.members if isinstance(one, Ratio) else (one,) for one in (gold, answer))
    if any(isinstance(one, Value) and one.tree == num(0) for one in (*left[1:], *right[1:])):  # 5:00 is a time of day
        return _in_order(left, right, leaf)
    if len(left) > 2 or len(right) > 2:
        if len(left) != len(right):
            return False
        return _all(leaf(_quotient(a, left[0]), _quotient(b, right[0])) for a, b in zip(left, right, strict=True))
    return leaf(_quotient(*left), _quotient(*right))


def _quotient(top: Answer, bottom: Answer | None = None) -> Value:
    assert isinstance(top, Value)
    if bottom is None:
        return top
    assert isinstance(bottom, Value)
    if top.tree is None or bottom.tree is None:
        return Value(f"{top.text}/{bottom.text}", None)
    return Value(
        f"\\frac{{{top.text}}}{{{bottom.text}}}", Node("*", (top.tree, Node("^", (bottom.tree, num(-1))))), top.unit
    )


def _items(gold: Answer, answer: Answer, leaf: Leaf) -> bool | None:
    left, right = (one if isinstance(one, Items) else None for one in (gold, answer))
    fences = {one.fence for one in (left, right) if one is not None}
    if left is None or right is None:
        items = (left or right).items  # type: ignore[union-attr]
        if fences <= {"", "{"} and len(items) == 1:
            return same_answer(items[0], answer, leaf) if left else same_answer(gold, items[0], leaf)
        other = answer if left else gold
        return None if _unread(other) else False
    if len(left.items) != len(right.items):
        return False
    if fences <= {"", "{"}:
        return _matched(left.items, right.items, leaf)
    # A bare list has no brackets that could contradict; of two numbers [a, b] is an interval.
    if len(fences) == 1 or fences == {"(", ""} or (fences == {"[", ""} and len(left.items) > 2):
        return _in_order(left.items, right.items, leaf)
    return False


def _in_order(left: Sequence[Answer], right: Sequence[Answer], leaf: Leaf) -> bool | None:
    if len(left) != len(right):
        return False
    return _all(same_answer(a, b, leaf) for a, b in zip(left, right, strict=True))


def _matched(left: Sequence[Answer], right: Sequence[Answer], leaf: Leaf) -> bool | None:
    """Whether the items can be paired off, each with an equal one."""
    common = Counter(left) & Counter(right)  # spelled alike: out of the way before every item meets every other
    left, right = list((Counter(left) - common).elements()), list((Counter(right) - common).elements())
    table = [[same_answer(a, b, leaf) for b in right] for a in left]
    if _pairing([[found is True for found in row] for row in table]):
        return True
    return None if _pairing([[found is not False for found in row] for row in table]) else False


def _pairing(allowed: list[list[bool]]) -> bool:
    partner: dict[int, int] = {}

    def place(row: int, seen: set[int]) -> bool:
        for column, possible in enumerate(allowed[row]):
            if possible and column not in seen:
                seen.add(column)
                if column not in partner or place(partner[column], seen):
                    partner[column] = row
                    return True
        return False

    return all(place(row, set()) for row in range(len(allowed)))


def _reals(gold: Answer, answer: Answer, leaf: Leaf) -> bool | None:
    if isinstance(gold, Value) or isinstance(answer, Value):
        return None if _unread(gold) or _unread(answer) else _points_only(gold, answer, leaf)
    left, right = reals(gold), reals(answer)
    if left is None or right is None:
        unread = any(_unread(item) for one in (gold, answer) for item in _members(one))
        return None if unread else False
    if left.name and right.name and left.name != right.name:
        return False
    a, b = _ordered(left.segments), _ordered(right.segments)
    if a is None or b is None:
        a, b = list(left.segments), list(right.segments)
        if len(a) != len(b):
            return None
        return True if _all(_same_segment(x, y, leaf) for x, y in zip(a, b, strict=True)) else None
    if len(a) != len(b):
        return False
    return _all(_same_segment(x, y, leaf) for x, y in zip(a, b, strict=True))


def _points_only(gold: Answer, answer: Answer, leaf: Leaf) -> bool | None:
    sets = [one if isinstance(one, Reals) else reals(one) for one in (gold, answer)]
    if any(one is None or len(one.segments) != 1 or one.segments[0].low is None for one in sets):
        return False
    left, right = (one.segments[0] for one in sets if one is not None)
    return _same_segment(left, right, leaf) if left.low is left.high and right.low is right.high else False


def _ordered(segments: Iterable[Segment]) -> list[Segment] | None:
    """From left to right, touching ones joined; None where an end has no known place."""
    placed = []
    for one in segments:
        low, high = position(one.low, -math.inf), position(one.high, math.inf)
        if low is None or high is None:
            return None
        placed.append((low, high, one))
    placed.sort(key=lambda entry: entry[:2])
    found: list[tuple[float, Segment]] = []
    for low, high, one in placed:
        if found and abs(found[-1][0] - low) <= 1e-12 * max(1.0, abs(low)) and (found[-1][1].has_high or one.has_low):
            found[-1] = (high, replace(found[-1][1], high=one.high, has_high=one.has_high))
        else:
            found.append((high, one))
    return [one for _, one in found]


def _same_segment(a: Segment, b: Segment, leaf: Leaf) -> bool | None:
    if (a.low is None, a.high is None, a.has_low, a.has_high) != (b.low is None, b.high is None, b.has_low, b.has_high):
        return False
    ends = [(x, y) for x, y in ((a.low, b.low), (a.high, b.high)) if x is not None and y is not None]
    return _all(leaf(x, y) for x, y in ends)


def _all(found: Iterable[bool | None]) -> bool | None:
    verdict: bool | None = True
    for one in found:
        if one is False:
            return False
        if one is None:
            verdict = None
    return verdict


def _any(found: Iterable[bool | None]) -> bool | None:
    verdict: bool | None = False
    for one in found:
        if one:
            return True
        if one is None:
            verdict = None
    return verdict


def same_value(gold: Value, answer: Value, budget: Budget = QUICK) -> bool | None:
    """Whether two quantities are equal. A base that is given must be the same; a unit that is missing is supplied."""
    if gold.base is not None or answer.base is not None:
        return gold.base == answer.base and gold.text == answer.text
    if gold.text == answer.text and gold.unit == answer.unit:
        return True
    if infinity(gold) or infinity(answer):
        return None if _unread(gold) or _unread(answer) else infinity(gold) == infinity(answer)
    if gold.tree is None or answer.tree is None:
        return None
    pairs = in_common_unit(gold, answer)
    allowed = rounding(gold.text, exact=not answer.decimal) if gold.decimal else 0.0
    return _any(same_tree(a, b, allowed, budget) for a, b in pairs)


def rounding(gold: str, exact: bool) -> float:
    """The relative error that a decimal gold forgives: 1e-4, or what rounding did to it where the answer is exact.

    A gold of fewer than three digits is taken as exact: too many fractions round to 0.5.
    """
    match = _DECIMAL.search(gold)
    if match is None:
        return 0.0
    digits = (match[1] + match[2]).lstrip("0")
    if not exact or len(digits) < 3:
        return _ROUNDING
    return max(_ROUNDING, 0.5 / int(digits))


def in_common_unit(gold: Value, answer: Value) -> list[tuple[Node, Node]]:
    """The pairs of pure numbers of which one must be equal; none where the units measure different things."""
    a, b = gold.tree, answer.tree
    assert a is not None and b is not None
    if gold.unit == answer.unit:
        return [(a, b)]
    if gold.unit is not None and answer.unit is not None:
        if gold.unit.kind != answer.unit.kind:
            return []
        return [(Node("*", (num(gold.unit.size), a)), Node("*", (num(answer.unit.size), b)))]
    pairs = [(a, b)]
    for one, side in ((gold, 0), (answer, 1)):
        if one.unit == PERCENT:
            factor = num(Fraction(1, 100))
        elif one.unit == DEGREE:
            factor = Node("*", (num(Fraction(1, 180)), Node("symbol", ("pi",))))
        else:
            continue
        pairs.append((Node("*", (factor, a)), b) if side == 0 else (a, Node("*", (factor, b))))
    return pairs


def same_tree(gold: Node, answer: Node, allowed: float = 0.0, budget: Budget = QUICK) -> bool | None:
    """Equality of two formulas by their forms, then by their values, then up to the relative error `allowed`."""
    if gold == answer:
        return True
    verdict: bool | None = None
    whole = False
    try:
        a, b = form(gold, budget), form(answer, budget)
        verdict = same(a, b, budget)
        exact = b.rational()
        whole = exact is not None and exact.denominator == 1
    except (TooDear, RecursionError):
        pass
    if verdict:
        return True
    if verdict is None and _differ(gold, answer):
        verdict = None if constant_log(gold) or constant_log(answer) else False
    if allowed and not whole and (x := value(gold, {})) is not None and not symbols_of(answer):
        y = value(answer, {})
        if y is not None and abs(x[0] - y[0]) <= allowed * abs(x[0]):
            return True
    return verdict


def points(a: Node, b: Node) -> list[dict[str, float]]:
    """Where to compare two formulas: values for their variables, whole ones where the names suggest it."""
    names = sorted(symbols_of(a) | symbols_of(b))
    if not names:
        return [{}]
    if _WHOLE_NAMES.issuperset(names) or whole_only(a) or whole_only(b):
        return [
            {name: float(start + step * i) for i, name in enumerate(names)}
            for start, step in ((12, -2), (2, 1), (17, -3))
        ]
    rising = [{name: start + 0.173 * i for i, name in enumerate(names)} for start in (1.37, 0.29, 5.83)]
    return [*rising, {name: 7.31 / (1 + i) ** 2 for i, name in enumerate(names)}]


def _differ(a: Node, b: Node) -> bool:
    """Whether the values differ by more than their errors at the first point where both are real."""
    for point in points(a, b):
        x, y = value(a, point), value(b, point)
        if x is None or y is None:
            continue
        if any(symbols_of(side) and abs(at[0].imag) > 10 * at[1] for side, at in ((a, x), (b, y))):
            continue  # outside the domain branches are a matter of convention
        return abs(x[0] - y[0]) > 10 * (x[1] + y[1]) + 1e-300
    return False

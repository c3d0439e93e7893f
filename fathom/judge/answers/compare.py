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

from fathom.judge.answers.answer import (
    Answer,
    Cases,
    Chain,
    Items,
    Matrix,
    Named,
    Ratio,
    Reals,
    Record,
    Residue,
    Segment,
    Time,
    Value,
    Words,
    position,
    reals,
)  # fmt: skip
from fathom.judge.answers.equality import any_of
from fathom.judge.answers.expressions import QUICK, Node, TooDear, num, renamed
from fathom.judge.answers.forms import form, proportional
from fathom.judge.answers.sampling import factor
from fathom.judge.answers.values import rational, symbols_of

Leaf = Callable[[Value, Value], bool | None]
_OPPOSITE = {"yes": "no", "no": "yes", "true": "false", "false": "true"}
_FUNCTION = re.compile(r"([A-Za-z]\w*)\(([a-z])\)")
_LETTER = re.compile(r"[A-Za-z](?:_\w)?")
_CLOCK = re.compile(r"\d{1,2}:[0-5]\d")


def same_readings(golds: Sequence[Answer], answers: Sequence[Answer], leaf: Leaf) -> bool | None:
    """Whether some reading of the answer is the same as some reading of the gold; None where one has no reading."""
    if not golds or not answers:
        return None
    return any_of(same_answer(gold, answer, leaf) for gold in golds for answer in answers)


def same_answer(gold: Answer, answer: Answer, leaf: Leaf) -> bool | None:
    """The comparison of structures. Symmetric but for rounding, which only a decimal gold allows."""
    match gold, answer:
        case Named(name, Items("(", items)), Named(other, Items("(", others)) if (
            "," in name and name != other and sorted(name) == sorted(other)
        ):
            return _records(_unpacked(name, items), _unpacked(other, others), leaf)
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
        case Record(), Items("" | "(") | Value():
            return _in_order(_by_name(gold), _members(answer), leaf)
        case Items("" | "(") | Value(), Record():
            return _in_order(_members(gold), _by_name(answer), leaf)
        case Time() | Ratio(), Time() | Ratio() if (x := _time(gold)) and (y := _time(answer)):
            return _same_time(x, y)
        case (Time(hour, 0), Value()) | (Value(), Time(hour, 0)):
            plain = gold if isinstance(gold, Value) else answer
            return isinstance(plain, Value) and plain.unit is None and plain.tree == num(hour)
        case (Ratio(members), Value()) | (Value(), Ratio(members)) if members[0].tree == num(0):
            return False
        case Residue(), Residue():
            return _residues(gold, answer, leaf)
        case Residue(inside), _:
            return same_answer(inside, answer, leaf)
        case _, Residue(inside):
            return same_answer(gold, inside, leaf)
        case Cases(), Cases():
            return _cases(gold, answer, leaf)
        case (Matrix(), Items("(" | "[")) | (Items("(" | "["), Matrix()):
            return _vectors(gold, answer, leaf)
        case Words(a), Words(b):
            return _same_words(a, b)
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
        case (Reals(), Chain()) | (Chain(), Reals()):
            left, right = _as_chain(gold), _as_chain(answer)
            return False if left is None or right is None else _chains(left, right, leaf)
        case (Reals(), _) | (_, Reals()):
            return _reals(gold, answer, leaf)
        case (Items(), _) | (_, Items()):
            return _items(gold, answer, leaf)
    # An unread value may be anything; two things of different kinds that were both read are not the same.
    return None if _unread(gold) or _unread(answer) else False


def _same_words(gold: str, answer: str) -> bool:
    """The same words; of an answer to yes or no the first one, where the other one does not follow."""
    if gold == answer or gold not in _OPPOSITE:
        return gold == answer
    said = answer.split()
    return said[0] == gold and not {_OPPOSITE[gold], "or", "maybe", "perhaps"}.intersection(said)


def _unread(answer: Answer) -> bool:
    return isinstance(answer, Value) and answer.tree is None and answer.base is None


def _members(answer: Answer) -> tuple[Answer, ...]:
    return answer.items if isinstance(answer, Items) else (answer,)


def _unpacked(name: str, items: tuple[Answer, ...]) -> Record:
    return Record(tuple(name.strip("()").split(",")), items)


def _by_name(record: Record) -> list[Answer]:
    """The answers by the alphabet, where the names are letters: y = 2, x = 1 is (1, 2)."""
    entries = list(zip(record.names, record.answers, strict=True))
    if all(_LETTER.fullmatch(name) for name in record.names):
        entries.sort(key=lambda entry: entry[0])
    return [answer for _, answer in entries]


def _time(answer: Answer) -> Time | None:
    if isinstance(answer, Time):
        return answer
    if isinstance(answer, Ratio) and _CLOCK.fullmatch(":".join(member.text for member in answer.members)):
        hour, minute = (int(member.text) for member in answer.members)
        return Time(hour, minute)
    return None


def _same_time(a: Time, b: Time) -> bool:
    if a.minute != b.minute:
        return False
    if a.half and b.half:
        return a.half == b.half and a.hour == b.hour
    return any(_hour(x) == _hour(y) for x, y in ((a, b), (replace(a, half=""), replace(b, half=""))))


def _hour(time: Time) -> int:
    return time.hour if not time.half else time.hour % 12 + 12 * (time.half == "p")


def _residues(gold: Residue, answer: Residue, leaf: Leaf) -> bool | None:
    if gold.modulus.tree != answer.modulus.tree:
        return False

    def congruent(a: Value, b: Value) -> bool | None:
        m, x, y = (rational(one.tree, {}) if one.tree is not None else None for one in (gold.modulus, a, b))
        return (x - y) % m == 0 if m and x is not None and y is not None else leaf(a, b)

    return same_answer(gold.answer, answer.answer, congruent)


def _cases(gold: Cases, answer: Cases, leaf: Leaf) -> bool | None:
    """Branch by branch, in any order."""
    if len(gold.branches) != len(answer.branches):
        return False
    table = [
        [_all(same_answer(x, y, leaf) for x, y in zip(a, b, strict=True)) for b in answer.branches]
        for a in gold.branches
    ]
    if _pairing([[found is True for found in row] for row in table]):
        return True
    return None if _pairing([[found is not False for found in row] for row in table]) else False


def _vectors(gold: Answer, answer: Answer, leaf: Leaf) -> bool | None:
    """A matrix of one column is a tuple; brackets in brackets are a matrix."""
    matrix, items = (gold, answer) if isinstance(gold, Matrix) else (answer, gold)
    assert isinstance(matrix, Matrix)
    assert isinstance(items, Items)
    if all(isinstance(row, Items) and row.fence in ("(", "[") for row in items.items):
        other = Matrix(tuple(row.items for row in items.items if isinstance(row, Items)))
    elif items.fence == "(":
        other = Matrix(tuple((item,) for item in items.items))
    else:
        other = Matrix((items.items,))
    return _matrices(*((matrix, other) if matrix is gold else (other, matrix)), leaf)


def _named(gold: Named, answer: Named, leaf: Leaf) -> bool | None:
    if gold.name == answer.name:
        return same_answer(gold.answer, answer.answer, leaf)
    a, b = _FUNCTION.fullmatch(gold.name), _FUNCTION.fullmatch(answer.name)
    if a and b and a[1] == b[1] and isinstance(inside := answer.answer, Value) and inside.tree is not None:
        body = symbols_of(inside.tree)
        if a[2] in body or b[2] not in body:  # P(A) is not P(B), nor f(1) f(2)
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
    a, b = (_difference(*sides) for sides in (gold, answer))
    if a is None or b is None:
        return None
    try:
        found = proportional(form(a, QUICK), form(b, QUICK), QUICK)
    except (TooDear, ValueError):
        found = None
    return False if found is None and factor(a, b) == "none" else found


def _difference(left: Node | None, right: Node | None) -> Node | None:
    return None if left is None or right is None else Node("+", (left, Node("*", (num(-1), right))))


def _chains(gold: Chain, answer: Chain, leaf: Leaf) -> bool | None:
    both_equations = gold.relations == answer.relations == ("=",)
    if both_equations and (found := _equations(_sides(gold), _sides(answer))) is not None:
        return found
    if len(gold.members) != len(answer.members):
        return None
    found = any_of(
        _in_order(gold.members, way.members, leaf)
        for way in (answer, _turned(answer))
        if gold.relations == way.relations
    )
    if found is not False or len(gold.members) != 2:
        return found
    return _inequalities(gold, answer)


def _inequalities(gold: Chain, answer: Chain) -> bool | None:
    """x - y > 0 and 2y < 2x: the differences of the sides are equal up to a positive factor."""
    sides = []
    for chain in (gold, answer):
        if chain.relations[0] in (">", "\\geq"):
            chain = _turned(chain)
        a, b = (member.tree if isinstance(member, Value) else None for member in chain.members)
        sides.append((chain.relations[0], _difference(a, b)))
    (relation, left), (other, right) = sides
    if relation != other:
        return False
    if left is None or right is None or relation not in ("<", "\\leq"):
        return None
    sign = factor(left, right)
    if sign in ("none", "negative"):
        return False
    try:
        return True if proportional(form(left, QUICK), form(right, QUICK), QUICK) else None
    except (TooDear, ValueError):
        return None


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
    table = [[False if _other_thing(a, b) else same_answer(a, b, leaf) for b in right] for a in left]
    if _pairing([[found is True for found in row] for row in table]):
        return True
    return None if _pairing([[found is not False for found in row] for row in table]) else False


def _other_thing(a: Answer, b: Answer) -> bool:
    """In `3 boys, 5 girls` the names of what is counted tell the numbers apart."""
    if not isinstance(a, Value) or not isinstance(b, Value):
        return False
    return bool(a.thing and b.thing) and a.thing.rstrip("s") != b.thing.rstrip("s")


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
        a, b = _as_chain(left), _as_chain(right)
        return _chains(a, b, leaf) if a and b and _open(left) and _open(right) else False
    ours, theirs = _ordered(left.segments), _ordered(right.segments)
    if ours is None or theirs is None:
        ours, theirs = list(left.segments), list(right.segments)
        if len(ours) != len(theirs):
            return None
        if len(ours) > 1:
            return True if _all(_same_segment(x, y, leaf) for x, y in zip(ours, theirs, strict=True)) else None
    if len(ours) != len(theirs):
        return False
    return _all(_same_segment(x, y, leaf) for x, y in zip(ours, theirs, strict=True))


def _as_chain(answer: Answer) -> Chain | None:
    """`c <= a + b` was read as a set of numbers c."""
    if isinstance(answer, Chain):
        return answer
    if not isinstance(answer, Reals) or len(answer.segments) != 1 or not answer.name:
        return None
    (one,) = answer.segments
    name = Value(answer.name, Node("symbol", (answer.name.lstrip("\\"),)))
    if one.low is None and one.high is not None:
        return Chain(("\\leq" if one.has_high else "<",), (name, one.high))
    if one.high is None and one.low is not None:
        return Chain(("\\leq" if one.has_low else "<",), (one.low, name))
    return None


def _open(answer: Reals) -> bool:
    """Whether an end depends on another variable."""
    ends = [end for one in answer.segments for end in (one.low, one.high)]
    return any(end is not None and end.tree is not None and bool(symbols_of(end.tree)) for end in ends)


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

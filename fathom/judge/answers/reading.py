r"""Answers read from text: taken apart as far as brackets, commas and relations go, never guessed, never evaluated.

`expressions.parse` reads the leaves. A leaf that is no formula for us stays as its text (`Value` without a tree) and is
left to a computer algebra system.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

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
    Value,
    Words,
    interval,
    position,
    reals,
    segment,
    without,
)  # fmt: skip
from fathom.judge.answers.expressions import QUICK, Budget, Node, TooDear, num
from fathom.judge.answers.forms import line
from fathom.judge.answers.notation import balanced, clean, fenced, split
from fathom.judge.answers.quantities import TEXT_MACRO, single, words
from fathom.judge.answers.values import symbols_of, value

_AND = r"\s(?:[aA]nd|AND|&)\s|[和、]|\\(?:text|mathrm)\{\s*,?\s*and\s*\}|\\&"
_OR = r"\s(?:or|OR)\s|或|\\(?:text|mathrm)\{\s*,?\s*(?:or|OR)\s*\}"
_LIST = re.compile(rf",?\s*(?:{_AND}|{_OR})\s*|,")
_SEMICOLON = re.compile(r";")
_ONLY_OR = re.compile(rf",?\s*(?:{_OR})\s*")
_ONLY_AND = re.compile(rf",?\s*(?:{_AND})\s*")
_CUP = re.compile(r"\\cup(?![A-Za-z])")
_MINUS_SET = re.compile(r"\\setminus(?![A-Za-z])|-(?=\s*\\\{)")
_BAR = re.compile(r"\\mid(?![A-Za-z])|\||:")
_RELATION = re.compile(r"=|<|>|\\(?:leq|geq|neq|in|approx|equiv|to|Rightarrow)(?![A-Za-z])")
_COLON = re.compile(r":")
_COMMA = re.compile(r",")
_TURNED_BELOW = {"<": True, "\\leq": True, ">": False, "\\geq": False}
_FLIPPED = {"<": ">", ">": "<", "\\leq": "\\geq", "\\geq": "\\leq", "\\neq": "\\neq"}
_CONDITION = re.compile(  # `for all x` up to the next item or the end
    r"[,\s]{0,3}(?:\\text\{\s*,?\s*(?:for|where|with)\s|(?<=\s)(?:for (?:all|some|any|every|each)|where)\s"
    r"|(?<=.)\\forall(?![A-Za-z])).*?"
    r"(?=,?\s*\\text\{\s*,?\s*(?:and|or)\s*\}|$)",
    re.DOTALL,
)
_CASES = re.compile(r"\b(?:for|where|with|if|otherwise)\b")
_ONLY = re.compile(r"^(?:\\text\{\s*only\s*\}|only\s)\s*")
_INDEX = r"(?:_(?:\w|\\[a-z]+|\{[^{}]*\}))"
_SYMBOL_NAME = re.compile(
    rf"(?:[A-Za-z]{{1,4}}|\\[a-zA-Z]+)'*{_INDEX}?(?:\^(?:\*|\{{\*\}}|\{{\(\w\)\}}|\{{-1\}}(?=\s*\()))?(?:\s*\([^()=]*\))?"
)
_QUANTITY = re.compile(
    r"\\(?:angle|triangle|lim|max|min|sup|inf|sum|int|prod|Pr|mathbb|operatorname)(?![A-Za-z]).*", re.DOTALL
)
_YES_NO = re.compile(r"(?:\\text\{)?\s*(?:yes|no|true|false)\b", re.IGNORECASE)
_WORD_NAME = re.compile(r"(?:\\text\{)?\s*[A-Za-z][A-Za-z ]{3,40}\}?")
_MATRIX = re.compile(r"\\begin\{([pbBv]?matrix|array)\}(?:\{[lcr|]*\})?((?:(?!\\begin).)*)\\end\{\1\}", re.DOTALL)
_PROSE = re.compile(  # a word before a word, or a word that begins the text and names nothing
    r"(?<![\\A-Za-z])[A-Za-z]{2,}(?:'[a-z]{1,3})? +\$?(?:[A-Za-z]{2,}|[A-Za-z] )"
    r"|^\s*[A-Za-z]{2,}(?:'[a-z]{1,3})? +(?![=<>\\])"
)
_THOUSANDS = re.compile(r"(?<![\d,.(\[{])\d{1,3}(?:,\d{3})+(?!\d|,\d)")  # not inside brackets
_MOST_NESTED = 12
_LONGEST_NAME = 200  # of what regular expressions look for from the end
_PLUS_MINUS = re.compile(r"\\(?:pm|mp)(?![A-Za-z])")
_MODULUS = re.compile(
    r"(.+?)[,\s]*(?:\\pmod|\(\s*\\?mod|\\text\{\s*\(mod|\(\s*\\text\{\s*mod)(?![A-Za-z])"
    r"\s*\}?\s*\{?\s*(\d+|[a-z])\s*\}?\s*\)?\}?",
    re.DOTALL,
)
_CONGRUENT = re.compile(r"[A-Za-z](?:_\w)?\s*\\equiv(?![A-Za-z])")
_BRANCHES = re.compile(r"\\begin\{cases\}((?:(?!\\begin).)*)\\end\{cases\}", re.DOTALL)
_IF = re.compile(r"^(?:\\text\{\s*)?(?:if|when|for|where)\s*\}?\s*")
_WHOLE_TAIL = re.compile(  # `, k \in \mathbb{Z}`
    r"[,;:\s]+\(?\s*[a-z]\s*\\in\s*(?:\\mathbb\s*\{?[ZN]\}?|\\text\{[ZN]\}|[ZN])(?:[_^]\{?[+*0]\}?)?\s*\)?$"
)
_ALL_REALS = re.compile(r"(?:\\text\{)?\s*(?:all|every|any)?\s*(?:real numbers?|reals)\s*\}?", re.IGNORECASE)
_ALL_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_CLOCK = re.compile(r"\d{1,2}:[0-5]\d\s*(?:\\text\{)?\s*[apAP]\.? ?[mM]\.?\s*\}?")
_NUMBERS = ("e", "\\pi", "\\infty")
_SIZE = re.compile(r"\|([^|]+)\|")


def readings(text: str, budget: Budget = QUICK) -> tuple[Answer, ...]:
    """The structures that a text may be: one, none, or two for `100,200`, which is a number or a list of two."""
    first = read(text, budget)
    if first is None:
        return ()
    if _THOUSANDS.search(text) and not re.search(r",0", text):
        second = read(text.replace(",", ", "), budget)
        return (first,) if second is None else (first, second)
    return (first,)


def read(text: str, budget: Budget = QUICK) -> Answer | None:
    """The structure of an answer; None where it is empty or its brackets do not balance. TooDear beyond the budget."""
    if len(text) > budget.characters:
        raise TooDear(f"answer is longer than {budget.characters} characters")
    text = clean(text)
    for _ in range(3):
        if match := re.fullmatch(r"\\(?:boxed|fbox)\{(.*)\}", text, re.DOTALL):
            text = clean(match[1])
    if match := _ALL_TEXT.fullmatch(text):
        text = clean(match[1])
    if not text or not balanced(text):
        return None
    text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    if _YES_NO.match(text):
        return words(text, shortest=2)
    if "\\in" in text[-_LONGEST_NAME:]:
        text = text[:-_LONGEST_NAME] + _WHOLE_TAIL.sub("", text[-_LONGEST_NAME:]) or text
    return _Reader(budget).answer(_CONDITION.sub(_unless_cases, text) or text)


def _unless_cases(condition: re.Match[str]) -> str:
    # Of several conditions each belongs to a value of its own, and a value without its condition is another answer.
    return condition[0] if len(_CASES.findall(condition[0])) > 1 else ""


class _Reader:
    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.depth = 0

    def answer(self, text: str) -> Answer:
        self.depth += 1
        if self.depth > _MOST_NESTED:
            raise TooDear("answer is nested too deeply")
        found = self._answer(_ONLY.sub("", text).strip())
        self.depth -= 1
        return found

    def _answer(self, text: str) -> Answer:
        if text.count("mod") == 1 and (residue := self._residue(text)) is not None:
            return residue
        for separator, join in ((_SEMICOLON, _collected), (_ONLY_OR, _either), (_ONLY_AND, _both), (_LIST, _collected)):
            pieces = [piece for _, piece in split(text, separator) if piece]
            if len(pieces) > self.budget.terms:
                raise TooDear("answer has too many items")
            if len(pieces) > 1 and (found := join([self.answer(piece) for piece in pieces])) is not None:
                return found
        outer = fenced(text)
        if _PLUS_MINUS.search(text) and (outer is None or outer[0] not in ("{", "\\{")):
            return _collected([self.answer(_signed(text, sign)) for sign in "+-"])
        if (found := self._related(text)) is not None:
            return found
        if (found := self._united(text)) is not None:
            return found
        if (found := self._fenced(text)) is not None:
            return found
        if match := _MATRIX.fullmatch(text):
            return self._matrix(match[2])
        if match := _BRANCHES.fullmatch(text):
            return self._branches(match[1])
        if (found := self._ratio(text)) is not None:
            return found
        return single(text, self.budget)

    def _residue(self, text: str) -> Residue | None:
        if (end := _MODULUS.fullmatch(text[-_LONGEST_NAME:])) is None:
            return None
        head, modulus = text[:-_LONGEST_NAME] + end[1], single(end[2], self.budget)
        if not isinstance(modulus, Value) or not balanced(head):
            return None
        named = _CONGRUENT.match(head)
        return Residue(self.answer((head[named.end() :] if named else head).strip()), modulus)

    def _related(self, text: str) -> Answer | None:
        pieces = split(text, _RELATION)
        if len(pieces) == 1 or len(pieces) > 20:
            return None
        relations = [relation for relation, _ in pieces[1:]]
        members = [piece for _, piece in pieces]
        if "\\approx" in relations:
            # What comes after ≈ only illustrates the exact value before it, unless there is but a name before it.
            cut = relations.index("\\approx")
            if cut == 0 and (not members[0] or _is_name(members[0])):
                relations[0] = "="
            else:
                return self.answer(text[: text.index("\\approx")].strip())
        if not members[0]:
            return self.answer(members[1]) if relations == ["="] and members[1] else None
        if not all(members):
            return None
        if set(relations) == {"="}:
            return self._equation(members)
        if len(members) == 2 and (match := _SIZE.fullmatch(members[0])) and relations[0] in _TURNED_BELOW:
            return self._size(match[1], relations[0], members[1]) or self._chain(relations, members)
        if relations == ["\\in"]:
            inside = self.answer(members[1])
            return replace(inside, name=members[0]) if isinstance(inside, Reals) else Named(_bare(members[0]), inside)
        if (found := self._inequality(relations, members)) is not None:
            return found
        if (
            len(members) == 2
            and relations[0] in _FLIPPED
            and (found := self._linear(relations[0], members)) is not None
        ):
            return found
        return self._chain(relations, members)

    def _chain(self, relations: list[str], members: list[str]) -> Chain:
        return Chain(tuple(relations), tuple(self.answer(member) for member in members))

    def _size(self, inside: str, relation: str, bound: str) -> Answer | None:
        """`|x - 2| < 5`, where the bound is a number that is not negative."""
        limit = single(bound, self.budget)
        if not isinstance(limit, Value) or (place := position(limit)) is None or place < 0:
            return None
        above = self.answer(f"{inside} {relation} {bound}")
        below = self.answer(f"{inside} {_FLIPPED[relation]} -({bound})")
        if not isinstance(above, Reals) or not isinstance(below, Reals):
            return None
        return _both([above, below]) if _TURNED_BELOW[relation] else _union([above, below])

    def _equation(self, members: list[str]) -> Answer:
        name, last = members[0], members[-1]
        if _is_name(name) and name not in _NUMBERS:
            return Named(_bare(name), self.answer(last))
        read = [self.answer(member) for member in members]
        constant = [isinstance(one, Value) and one.tree is not None and not symbols_of(one.tree) for one in read]
        left = read[0]
        if isinstance(left, Value) and left.tree is None:
            return Named(_bare(name), read[-1])  # `\\lim a_n = 5`: a quantity that we need not understand
        if not any(constant[:-1]) or _contradict([one for one, known in zip(read, constant, strict=True) if known]):
            return Chain(("=",) * (len(members) - 1), tuple(read))
        return read[-1]

    def _inequality(self, relations: list[str], members: list[str]) -> Reals | None:
        """One variable beside numbers, or between two."""
        if any(relation not in _FLIPPED for relation in relations):
            return None
        names = [
            _is_name(member) and not _is_constant(member) and not _WORD_NAME.fullmatch(member) for member in members
        ]
        if names.count(True) != 1 or len(members) > 3 or (len(members) == 3 and not names[1]):
            return None
        where = names.index(True)
        name = _bare(members[where])
        low: tuple[Value | None, bool] = (None, False)
        high = low
        for i, relation in enumerate(relations):
            other = single(members[i] if i < where else members[i + 1], self.budget)
            if not isinstance(other, Value):
                return None
            towards = relation if i >= where else _FLIPPED[relation]  # as in `name relation other`
            if towards == "\\neq":
                return Reals((Segment(None, other, False, False), Segment(other, None, False, False)), name)
            if towards in ("<", "\\leq"):
                if high[0] is not None:
                    return None
                high = (other, towards == "\\leq")
            else:
                if low[0] is not None:
                    return None
                low = (other, towards == "\\geq")
        return Reals((segment(low[0], high[0], low[1], high[1]),), name)

    def _linear(self, relation: str, members: list[str]) -> Reals | None:
        """`-x > -1`, `2x + 1 < 5`: one variable, to the first power, with rational coefficients."""
        left, right = (single(member, self.budget) for member in members)
        if not isinstance(left, Value) or not isinstance(right, Value) or left.tree is None or right.tree is None:
            return None
        difference = Node("+", (left.tree, Node("*", (num(-1), right.tree))))
        names = symbols_of(difference)
        if len(names) != 1:
            return None
        (name,) = names
        if (found := line(difference, name, self.budget)) is None:
            return None
        slope, at_zero = found
        bound = num(-at_zero / slope)
        text = f"{bound.args[0]}"
        return self._inequality(
            [relation if slope > 0 else _FLIPPED[relation]], [name if len(name) == 1 else f"\\{name}", text]
        )

    def _united(self, text: str) -> Answer | None:
        if text in ("\\mathbb{R}", "\\mathbb R", "\\R") or _ALL_REALS.fullmatch(text):
            return Reals((Segment(None, None, False, False),))
        pieces = [piece for _, piece in split(text, _CUP)]
        if len(pieces) > 1 and all(pieces):
            return _union([self.answer(piece) for piece in pieces])
        pieces = [piece for _, piece in split(text, _MINUS_SET)]
        if len(pieces) == 2 and all(pieces):
            whole, taken = reals(self.answer(pieces[0])), self.answer(pieces[1])
            if whole is not None and isinstance(taken, Items) and taken.fence == "{":
                return without(whole, [item for item in taken.items if isinstance(item, Value)])
        return None

    def _fenced(self, text: str) -> Answer | None:
        if text == "\\emptyset":
            return Items("{", ())
        if (outer := fenced(text)) is None:
            return None
        opening, inside, closing = outer
        if opening == "{":
            return self.answer(inside) if inside else None
        if opening == "\\{":
            if not inside:
                return Items("{", ())
            described = [piece for _, piece in split(inside, _BAR)]
            if len(described) == 2 and all(described):
                if _WHOLE_TAIL.fullmatch(", " + described[1]):
                    return self.answer(described[0])
                condition = self.answer(described[1])
                return condition if isinstance(condition, Reals) else None
            found = self.answer(inside)
            return replace(found, fence="{") if isinstance(found, Items) and not found.fence else Items("{", (found,))
        pieces = [piece for _, piece in split(inside, _COMMA)]
        if len(pieces) < 2 or not all(pieces):
            return None
        if len(pieces) > self.budget.terms:
            raise TooDear("answer has too many items")
        items = tuple(self.answer(piece) for piece in pieces)
        if (opening, closing) in (("(", ")"), ("[", "]"), ("\\langle", "\\rangle")):
            return Items("(" if opening == "\\langle" else opening, items)
        if len(items) == 2 and opening in "([" and closing in ")]":
            return interval(items, opening == "[", closing == "]")
        return None

    def _matrix(self, inside: str) -> Matrix:
        rows = [row.strip() for row in re.split(r"\\\\|\\cr", inside) if row.replace("\\hline", "").strip()]
        if sum(row.count("&") + 1 for row in rows) > self.budget.terms:
            raise TooDear("matrix is too large")
        return Matrix(tuple(tuple(self.answer(cell.strip()) for cell in row.split("&")) for row in rows))

    def _branches(self, inside: str) -> Answer:
        rows = [row.strip(" ,;.") for row in re.split(r"\\\\", inside) if row.strip()]
        if len(rows) > self.budget.terms:
            raise TooDear("too many cases")
        if not any("&" in row for row in rows):
            return _collected([self.answer(row) for row in rows])  # a system
        branches = []
        for row in rows:
            branch, _, condition = row.partition("&")
            condition = _IF.sub("", condition.strip(" ,;.&"))
            when = self.answer(condition) if condition else Words("otherwise")
            branches.append((self.answer(branch.strip(" ,;")), when))
        return Cases(tuple(branches))

    def _ratio(self, text: str) -> Answer | None:
        pieces = [piece for _, piece in split(text, _COLON)]
        if not 2 <= len(pieces) <= 10 or not all(pieces):
            return None
        if _CLOCK.fullmatch(text):
            return single(text, self.budget)
        members = [single(piece, self.budget) for piece in pieces]
        values = tuple(member for member in members if isinstance(member, Value) and member.tree is not None)
        return Ratio(values) if len(values) == len(members) else None


def _signed(text: str, upper: str) -> str:
    lower = "-" if upper == "+" else "+"
    text = re.sub(r"\\pm(?![A-Za-z])", lambda _: upper + " ", text)
    return re.sub(r"\\mp(?![A-Za-z])", lambda _: lower + " ", text)


def _contradict(constants: list[Answer]) -> bool:
    """Whether numbers that a chain of equations connects differ: `4 = 5`."""
    found = [value(one.tree, {}) for one in constants if isinstance(one, Value) and one.tree is not None]
    known = [one for one in found if one is not None]
    return any(abs(a[0] - b[0]) > 10 * (a[1] + b[1]) for a, b in pairwise(known))


def _bare(name: str) -> str:
    return re.sub(r"\s+|[{}]", "", TEXT_MACRO.sub(r"\1", name))


def _is_name(text: str) -> bool:
    text = text.strip()
    if any(pattern.fullmatch(text) for pattern in (_SYMBOL_NAME, _WORD_NAME, _QUANTITY)):
        return True
    parts = [piece for _, piece in split(text, _COLON)]
    if len(parts) > 1:
        return all(_is_name(part) for part in parts)
    if (outer := fenced(text)) is not None and outer[0] == "(":
        parts = [piece for _, piece in split(outer[1], _COMMA)]
        return len(parts) > 1 and all(_is_name(part) for part in parts)
    return False


def _is_constant(text: str) -> bool:
    return text.strip() in ("e", "\\pi", "\\infty", "i")


def _collected(items: list[Answer]) -> Answer:
    """A bare list; names given to all or to the first of its items are taken out."""
    flat: list[Answer] = []
    for item in items:
        flat.extend(item.items if isinstance(item, Items) and not item.fence else [item])
    if (holes := _holes(flat)) is not None:
        return holes
    named = [item for item in flat if isinstance(item, Named)]
    if len(named) == len(flat):
        names = tuple(item.name for item in named)
        if len(set(names)) == 1:
            return Named(names[0], _collected([item.answer for item in named])) if len(flat) > 1 else flat[0]
        if len(set(names)) == len(names):
            return Record(names, tuple(item.answer for item in named))
    elif len(named) == 1 and isinstance(flat[0], Named):
        return Named(flat[0].name, _collected([flat[0].answer, *flat[1:]]))
    return Items("", tuple(flat))


def _holes(items: list[Answer]) -> Reals | None:
    """`x ≠ 1, x ≠ 2`: all numbers but these."""
    points: list[Value] = []
    for item in items:
        if not isinstance(item, Reals) or len(item.segments) != 2 or item.name != getattr(items[0], "name", None):
            return None
        left, right = item.segments
        if left.low is not None or right.high is not None or left.high is not right.low or left.high is None:
            return None
        points.append(left.high)
    return without(Reals((Segment(None, None, False, False),), getattr(items[0], "name", "")), points)


def _either(items: list[Answer]) -> Answer | None:
    """`x < 1 or x = 3` is a set of reals; other alternatives are a list."""
    if any(isinstance(item, Reals) for item in items) and isinstance(found := _union(items), Reals):
        return found
    return None


def _both(items: list[Answer]) -> Answer | None:
    """`x > 1 and x < 3`."""
    if len(items) == 2 and all(isinstance(item, Reals) and len(item.segments) == 1 for item in items):
        a, b = items
        assert isinstance(a, Reals) and isinstance(b, Reals)
        (left,), (right,) = a.segments, b.segments
        if left.low is not None:
            (left,), (right,) = b.segments, a.segments
        if left.low is None and right.high is None and a.name == b.name:
            return Reals((segment(right.low, left.high, right.has_low, left.has_high),), a.name)
    return None


def _union(items: list[Answer]) -> Answer | None:
    segments: list[Segment] = []
    names: set[str] = set()
    for item in items:
        if isinstance(item, Named):
            names.add(item.name)
            item = item.answer
        if isinstance(item, Reals):
            names |= {item.name} - {""}
        if (found := reals(item)) is None:
            return None
        segments.extend(found.segments)
    return Reals(tuple(segments), names.pop() if len(names) == 1 else "") if len(names) < 2 else None


def is_formula(text: str) -> bool:
    """Whether every part of a text reads as mathematics: no words, nothing that is unknown to the parser."""
    if len(text) > QUICK.characters or _PROSE.search(TEXT_MACRO.sub(" ", text)) is not None:
        return False
    try:
        found = read(text)
    except TooDear:
        return False
    return found is not None and all(isinstance(value, Value) and value.tree is not None for value in _leaves(found))


def _leaves(answer: Answer) -> Iterator[Answer]:
    match answer:
        case Items(_, items) | Chain(_, items) | Record(_, items):
            for item in items:
                yield from _leaves(item)
        case Named(_, inside):
            yield from _leaves(inside)
        case Matrix(rows):
            for row in rows:
                for cell in row:
                    yield from _leaves(cell)
        case Value() | Words():
            yield answer

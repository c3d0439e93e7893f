r"""Answers read from text: taken apart as far as brackets, commas and relations go, never guessed, never evaluated.

`expressions.parse` reads the leaves. A leaf that is no formula for us stays as its text (`Value` without a tree) and is
left to a computer algebra system.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

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
    interval,
    reals,
    segment,
    without,
)  # fmt: skip
from fathom.judge.answers.expressions import QUICK, Budget, Node, NotRead, TooDear, num, parse
from fathom.judge.answers.forms import line, symbols_of
from fathom.judge.answers.notation import balanced, clean, fenced, split
from fathom.judge.answers.numerals import numeral
from fathom.judge.answers.units import DEGREE, PERCENT, Unit, unit

_AND = r"\s(?:[aA]nd|AND|&)\s|\\(?:text|mathrm)\{\s*,?\s*and\s*\}|\\&"
_OR = r"\s(?:or|OR)\s|\\(?:text|mathrm)\{\s*,?\s*(?:or|OR)\s*\}"
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
    rf"(?:[A-Za-z]{{1,4}}|\\[a-zA-Z]+)'*{_INDEX}?(?:\^(?:\*|\w|\{{[^{{}}]*\}}))?(?:\s*\([^()=]*\))?"
)
_QUANTITY = re.compile(
    r"\\(?:angle|triangle|lim|max|min|sup|inf|sum|int|prod|Pr|mathbb|operatorname)(?![A-Za-z]).*", re.DOTALL
)
_YES_NO = re.compile(r"(?:\\text\{)?\s*(?:yes|no|true|false)\b", re.IGNORECASE)
_WORD_NAME = re.compile(r"(?:\\text\{)?\s*[A-Za-z][A-Za-z ]{3,40}\}?")
_MATRIX = re.compile(r"\\begin\{([pbBv]?matrix|array)\}(?:\{[lcr|]*\})?((?:(?!\\begin).)*)\\end\{\1\}", re.DOTALL)
_DECIMAL = re.compile(r"[+-]?\s*(?:\d+\.\d*|\.\d+)")
_TEXT_TAIL = re.compile(r"\\(?:text|mathrm)\{([^{}]*)\}((?:\^\{?\d\}?)?)$")
_PLAIN_TAIL = re.compile(r"(?<=[\d}).])\s*(%|€|£|[A-Za-z][A-Za-z./ ]{0,40}(?:\^\{?\d\}?)?)$")
_DEGREES = re.compile(r"\^(?:\{\s*\\circ\s*\}|\s*\\circ)\s*C?$")
_ANGLE_INSIDE = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_MONEY = re.compile(r"^([+-]?)\s*(?:\\\$|[€£])\s*")
_TEXT_MACRO = re.compile(r"\\(?:text|mathrm|operatorname\*?)\{([^{}]*)\}")
_OPTION = re.compile(r"\(?\s*(?:\\text\{)?\s*\(?\s*([A-J])\s*\)?\s*\.?\s*\}?\s*\)?\.?")
_LABEL = re.compile(r"(?:\\text\{\s*\(([A-J])\)\s*:?\s*\}|\(([A-J])\)|(?:\\text\{\s*)?([A-J])[.):]\s*\}?)\s*(?=\S)")
_PROSE = re.compile(  # a word before a word, or a word that begins the text and names nothing
    r"(?<![\\A-Za-z])[A-Za-z]{2,}(?:'[a-z]{1,3})? +\$?(?:[A-Za-z]{2,}|[A-Za-z] )"
    r"|^\s*[A-Za-z]{2,}(?:'[a-z]{1,3})? +(?![=<>\\])"
)
_THOUSANDS = re.compile(r"(?<![\d,.(\[{])\d{1,3}(?:,\d{3})+(?![\d,])")  # not inside brackets
_ONE_WORD = re.compile(r"[A-Za-z]{4,}")
_OTHER_LABEL = re.compile(r"(?<![A-Za-z\\])[A-J][).]|\b(?:and|or)\b")
_PURE = re.compile(r"(?:[^A-Za-z]|\\(?:frac|sqrt|pi|times|cdot)(?![A-Za-z]))*")
_COUNTED = re.compile(r"(?!(?:or|and|not|is|to|if|but|mod)\b)[A-Za-z][A-Za-z' -]*[A-Za-z]{2}[A-Za-z' .-]*")
_MOST_NESTED = 12


def option(text: str, labelled: bool = False) -> str | None:
    r"""The letter of a multiple-choice answer: `B`, `(B)`, `\text{(B)}`, `B.`; with `labelled` also `(B) 12`."""
    text = clean(text)
    if match := _OPTION.fullmatch(text):
        return match[1]
    if labelled and (match := _LABEL.match(text)) and not _OTHER_LABEL.search(text, match.end()):
        return match[1] or match[2] or match[3]
    return None


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
    if not text or not balanced(text):
        return None
    text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    if _YES_NO.match(text):
        return _words(text, shortest=2)
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
        for separator, join in ((_SEMICOLON, _collected), (_ONLY_OR, _either), (_ONLY_AND, _both), (_LIST, _collected)):
            pieces = [piece for _, piece in split(text, separator) if piece]
            if len(pieces) > self.budget.terms:
                raise TooDear("answer has too many items")
            if len(pieces) > 1 and (found := join([self.answer(piece) for piece in pieces])) is not None:
                return found
        outer = fenced(text)
        if ("\\pm" in text or "\\mp" in text) and (outer is None or outer[0] not in ("{", "\\{")):
            return _collected([self.answer(_signed(text, sign)) for sign in "+-"])
        if (found := self._related(text)) is not None:
            return found
        if (found := self._united(text)) is not None:
            return found
        if (found := self._fenced(text)) is not None:
            return found
        if match := _MATRIX.fullmatch(text):
            return self._matrix(match[2])
        if (found := self._ratio(text)) is not None:
            return found
        return self.single(text)

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
        return Chain(tuple(relations), tuple(self.answer(member) for member in members))

    def _equation(self, members: list[str]) -> Answer:
        name, last = members[0], members[-1]
        if _is_name(name):
            return Named(_bare(name), self.answer(last))
        if len(members) > 2:
            return self.answer(last)
        left = self.answer(name)
        if isinstance(left, Value) and left.tree is None:
            return Named(_bare(name), self.answer(last))  # `\\lim a_n = 5`: a quantity that we need not understand
        if isinstance(left, Value) and left.tree is not None and not symbols_of(left.tree):
            return self.answer(last)
        return Chain(("=",), (left, self.answer(last)))

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
            other = self.single(members[i] if i < where else members[i + 1])
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
        left, right = (self.single(member) for member in members)
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
        if text in ("\\mathbb{R}", "\\mathbb R", "\\R"):
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

    def _ratio(self, text: str) -> Ratio | None:
        pieces = [piece for _, piece in split(text, _COLON)]
        if not 2 <= len(pieces) <= 10 or not all(pieces):
            return None
        members = [self.single(piece) for piece in pieces]
        values = tuple(member for member in members if isinstance(member, Value) and member.tree is not None)
        return Ratio(values) if len(values) == len(members) else None

    def single(self, text: str) -> Value | Words:
        """A value with its unit, or words."""
        if (found := numeral(text)) is not None:
            return found
        if _ONE_WORD.fullmatch(text):
            return Words(text.casefold())
        bare, measure = _without_unit(text)
        if (found := numeral(bare)) is not None:
            return replace(found, unit=measure)
        try:
            tree = parse(bare, self.budget)
        except NotRead:
            return _words(text) or Value(text, None, measure)
        return Value(text, tree, measure, _DECIMAL.fullmatch(bare) is not None)


def _signed(text: str, upper: str) -> str:
    lower = "-" if upper == "+" else "+"
    text = re.sub(r"\\pm(?![A-Za-z])", lambda _: upper + " ", text)
    return re.sub(r"\\mp(?![A-Za-z])", lambda _: lower + " ", text)


def _bare(name: str) -> str:
    return re.sub(r"\s+|[{}]", "", _TEXT_MACRO.sub(r"\1", name))


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


def _without_unit(text: str) -> tuple[str, Unit | None]:
    """The formula in front of a unit, and the unit; words that are none we know are left out: `7 apples` is 7."""
    measure: Unit | None = None
    if match := _MONEY.match(text):
        sign = "€" if "€" in match[0] else "£" if "£" in match[0] else "dollar"
        text, measure = match[1] + text[match.end() :], unit(sign)
    if (match := _DEGREES.search(text)) and not _ANGLE_INSIDE.search(text):
        return text[: match.start()].strip(), DEGREE
    for pattern in (_TEXT_TAIL, _PLAIN_TAIL):
        match = pattern.search(text)
        if match is None or not text[: match.start()].strip():
            continue
        name = match[1] + (match[2] if pattern is _TEXT_TAIL else "")
        known = unit(name)
        # A bare letter is a variable, and so is what stands behind one: no unit without a macro there.
        if known is not None and (
            pattern is _TEXT_TAIL or name in "%€£" or (len(name) > 1 and _PURE.fullmatch(text[: match.start()]))
        ):
            return text[: match.start()].strip(" ("), known
        if _COUNTED.fullmatch(name.strip()) and any(c.isdigit() for c in text[: match.start()]):
            return text[: match.start()].strip(), measure
    if text.rstrip().endswith("%"):
        return text.rstrip()[:-1], PERCENT
    return text, measure


def _words(text: str, shortest: int = 3) -> Words | None:
    """Words where a text has a run of so many letters outside macros and no sign of a formula."""
    plain = _TEXT_MACRO.sub(r" \1 ", text)
    without_macros = re.sub(r"\\[A-Za-z]+", " ", plain)
    longest = max(map(len, re.findall(r"[A-Za-z]+", without_macros)), default=0)
    if longest < shortest or (shortest > 2 and any(sign in without_macros for sign in "=^_{}")):
        return None
    return Words(" ".join(re.findall(r"[^\W_]+(?:[./:][^\W_]+)*", plain.casefold())))


def is_formula(text: str) -> bool:
    """Whether every part of a text reads as mathematics: no words, nothing that is unknown to the parser."""
    if len(text) > QUICK.characters or _PROSE.search(_TEXT_MACRO.sub(" ", text)) is not None:
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

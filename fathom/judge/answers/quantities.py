"""One quantity or words: numbers with their units, multipliers and names of things counted, times of day, prose."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction

from fathom.judge.answers.answer import Time, Value, Words
from fathom.judge.answers.expressions import FUNCTIONS, QUICK, Budget, Node, NotRead, num, parse
from fathom.judge.answers.numerals import MULTIPLIERS, numeral, spoken_number
from fathom.judge.answers.units import DEGREE, PERCENT, Unit, unit

TEXT_MACRO = re.compile(r"\\(?:text|mathrm|operatorname\*?)\{([^{}]*)\}")
_DECIMAL = re.compile(r"[+-]?\s*(?:\d+\.\d*|\.\d+)")
_TEXT_TAIL = re.compile(r"\(?\s*\\(?:text|mathrm)\{([^{}]*)\}((?:\^\{?\d\}?)?)\s*\)?$")
_PLAIN_TAIL = re.compile(
    r"(?<=[\d}).])\s*\(?(%|€|£|¥|[A-Za-z][A-Za-z./ ]{0,60}(?:\^\{?\d\}?)?|[㐀-鿿]{1,4}|\\Omega)\)?$"
)
_SPOKEN_TAIL = re.compile(r"([a-z]+(?:[ -][a-z]+){0,5}?) ([a-z]+(?: [a-z]+){0,2})")
_DEGREES = re.compile(r"\^(?:\{\s*\\circ\s*\}|\s*\\circ)\s*(?:\\text\{)?\s*([CF]?)\s*\}?$")
_ANGLE_INSIDE = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_MONEY = re.compile(r"^([+-]?)\s*(?:\\\$|[€£¥]|\\pounds(?![A-Za-z]))\s*")
_ONE_WORD = re.compile(r"[A-Za-z]{4,}")
_PURE = re.compile(r"(?:[^A-Za-z]|\\(?:frac|sqrt|pi|times|cdot)(?![A-Za-z]))*")
_TIME = re.compile(r"(\d{1,2})(?::([0-5]\d))? *([ap])\.? ?m\.?", re.IGNORECASE)
_SUM = re.compile(r"(\d+(?:\.\d+)?) *([A-Za-z]+)\.? +(?:and +)?(\d+(?:\.\d+)?) *([A-Za-z]+)\.?")
_LETTER_UNIT = re.compile(r"([+-]?\d+(?:\.\d+)?(?:\s*\\(?:times|cdot)\s*10\^\{?-?\d+\}?)?) ?([mgshtlLNVWJK])")
_NOUN = re.compile(r"[a-z][a-z'-]+[a-z]|[a-z]+s")
# What may follow a number and changes it: no name of a thing counted.
_NO_NOUNS = frozenset(
    """minus plus over under divided times multiplied factorial squared cubed choose base root roots square sqrt below
    above percent halves half thirds third fourths quarters fifths sixths sevenths eighths ninths tenths hundredths
    thousandths less more or and if not maybe but mod modulo with without to from in by of is are was than except power
    powers exponent raised log cosine sine pi theta alpha beta remainder negative positive zero one two three four five
    six seven eight nine ten eleven twelve thirteen fifteen sixteen twenty thirty forty fifty hundred thousand million
    billion trillion dozen score double triple twice thrice plusminus infinity approximately about almost at least most
    between some any other otherwise then else so sin cos tan cot sec csc exp ln lim max min gcd lcm det abs probably
    perhaps either neither nor unless while instead false true yes no wrong right unknown degrees radians""".split()  # noqa: SIM905
)
_SHORT_NOUNS = frozenset(
    "men man way day box car egg dog cat bag hen pen cup pie toy kid boy sec per old new red".split()  # noqa: SIM905
)
_ENGLISH = frozenset(
    """is are the not and or if of for to any all no be can then with there we it that this was has have an so as by
    from does""".split()  # noqa: SIM905
)
_NO_PROSE = re.compile(
    r"\\(?:begin|end)\{[a-z]+\*?\}|\\(?:text|mathrm|operatorname\*?)\{|\\[A-Za-z]+|[_^]\{[^{}]*\}|_\w+"
)
_LONGEST_PHRASE = 200
_LETTERS = re.compile(r"[^\W\d_]+")


def single(text: str, budget: Budget = QUICK) -> Value | Words | Time:
    """A value with its unit, a time of day, or words."""
    if (found := numeral(text)) is not None:
        return found
    plain = " ".join(TEXT_MACRO.sub(r" \1 ", text).split())
    if match := _TIME.fullmatch(plain):
        return Time(int(match[1]), int(match[2] or 0), match[3].casefold())
    if plain.casefold() in ("infinity", "+infinity", "positive infinity"):
        return Value(text, Node("symbol", ("infty",)))
    if plain.casefold() in ("-infinity", "negative infinity"):
        return Value(text, Node("*", (num(-1), Node("symbol", ("infty",)))))
    if _ONE_WORD.fullmatch(text):
        return Words(text.casefold())
    if len(plain) <= _LONGEST_PHRASE and (found := _spoken(plain) or _sum(plain)) is not None:
        return found
    bare, measure, factor, thing = _without_unit(text)
    found = numeral(bare)
    if found is None and (prose(bare) or _changed(bare)):
        return words(text) or Words(" ".join(re.findall(r"[^\W_]+", plain.casefold())))
    if found is None:
        try:
            found = Value(text, parse(bare, budget), decimal=_DECIMAL.fullmatch(bare) is not None)
        except NotRead:
            return words(text) or Value(text, None, measure)
    if factor > 1 and found.tree is not None:
        found = replace(found, tree=Node("*", (num(factor), found.tree)))
    return replace(found, unit=measure, thing=thing)


def _changed(bare: str) -> bool:
    """Whether words that change a number are left behind it, or letters in a macro for text: `12 factorial`."""
    upright = [word for inside in TEXT_MACRO.findall(bare) for word in _LETTERS.findall(inside)]
    outside = _LETTERS.findall(re.sub(r"\\[A-Za-z]+|[_^]\{[^{}]*\}", " ", bare))
    return any(len(word) > 1 and word not in FUNCTIONS for word in upright) or any(
        len(word) > 2 and word in _NO_NOUNS and word not in FUNCTIONS for word in outside
    )


def _spoken(plain: str) -> Value | None:
    """`twelve apples`, `one half inch`."""
    if not (match := _SPOKEN_TAIL.fullmatch(plain.casefold())):
        return None
    number = spoken_number(match[1].replace("-", " ").split())
    if number is None:
        return None
    measure = unit(match[2])
    return Value(plain, num(number), measure) if measure is not None or _counted(match[2]) else None


def _sum(plain: str) -> Value | None:
    """`5 feet 6 inches`, `1 hour 30 minutes`."""
    if not (match := _SUM.fullmatch(plain)):
        return None
    large, small = unit(match[2]), unit(match[4])
    if large is None or small is None or large.kind != small.kind or large.size <= small.size:
        return None
    total = Fraction(match[1]) * large.size + Fraction(match[3]) * small.size
    return Value(plain, num(total), Unit(large.kind, Fraction(1)))


def letter_unit(value: Value) -> Value | None:
    """`540 m` as metres: a letter behind a plain number, where it can be no variable."""
    if value.unit is not None or not (match := _LETTER_UNIT.fullmatch(value.text)):
        return None
    known = unit(match[2])
    try:
        return None if known is None else Value(match[1], parse(match[1]), known)
    except NotRead:
        return None


def _without_unit(text: str) -> tuple[str, Unit | None, int, str]:
    """The formula in front of a unit, the unit, a multiplier like `million`, and the name of what is counted."""
    measure: Unit | None = None
    if match := _MONEY.match(text):
        sign = next((sign for sign in "€£¥" if sign in match[0]), "£" if "pound" in match[0] else "dollar")
        text, measure = match[1] + text[match.end() :], unit(sign)
    if (match := _DEGREES.search(text)) and not _ANGLE_INSIDE.search(text):
        return text[: match.start()].strip(), unit(f"°{match[1]}") if match[1] else DEGREE, 1, ""
    factor, thing = 1, ""
    for pattern in (_TEXT_TAIL, _PLAIN_TAIL, _TEXT_TAIL, _PLAIN_TAIL):
        match = pattern.search(text)
        before = text[: match.start()].strip() if match else ""
        if match is None or not before or (not any(c.isdigit() for c in before) and pattern is _PLAIN_TAIL):
            continue
        name = (match[1] + (match[2] if pattern is _TEXT_TAIL else "")).strip()
        first, _, rest = name.partition(" ")
        if first.casefold() in MULTIPLIERS:
            factor, name = factor * MULTIPLIERS[first.casefold()], rest.strip()
            if not name:
                text = before
                continue
        known = unit(name)
        # A bare letter is a variable, and so is what stands behind one: no unit without a macro there.
        if known is not None and (
            pattern is _TEXT_TAIL or name in "%€£¥" or (len(name) > 1 and _PURE.fullmatch(before)) or not name.isascii()
        ):
            return before.strip(" ("), measure or known, factor, ""
        if any(c.isdigit() for c in before) and _counted(name):
            text, thing = before, name.strip(" .")
    if text.rstrip().endswith("%"):
        return text.rstrip()[:-1], PERCENT, factor, ""
    return text, measure, factor, thing


def _counted(name: str) -> bool:
    """Whether a name is that of things counted: plain nouns, lower-case, none that changes the number before it."""
    if name and not name.isascii():
        return all("㐀" <= c <= "鿿" for c in name) and len(name) <= 3
    parts = name.strip(" .").split()
    return 0 < len(parts) <= 5 and all(
        _NOUN.fullmatch(part) and part not in _NO_NOUNS and (len(part) > 3 or part in _SHORT_NOUNS or part[-1] == "s")
        for part in parts
    )


def prose(text: str) -> bool:
    """Whether words stand in a text that are no functions: four letters in a row, or a short word of English."""
    outside = _NO_PROSE.sub(" ", text)
    return any(
        (len(run) > 3 and run not in FUNCTIONS) or (run.casefold() in _ENGLISH and len(run) > 1)
        for run in _LETTERS.findall(outside)
    )


def words(text: str, shortest: int = 3) -> Words | None:
    """Words where a text has a run of so many letters outside macros and no sign of a formula."""
    plain = TEXT_MACRO.sub(r" \1 ", text)
    without_macros = re.sub(r"\\[A-Za-z]+", " ", plain)
    runs = _LETTERS.findall(without_macros)
    longest = max((len(run) if run.isascii() else shortest for run in runs), default=0)
    if longest < shortest or (shortest > 2 and any(sign in without_macros for sign in "=^_{}")):
        return None
    return Words(" ".join(re.findall(r"[^\W_]+(?:[./:][^\W_]+)*", plain.casefold())))

"""Units of measurement: which words are some, and what they are of each other."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

_LENGTH = {
    "mm": "1/1000", "cm": "1/100", "dm": "1/10", "m": "1", "km": "1000", "in": "254/10000", "ft": "3048/10000",
    "yd": "9144/10000", "mi": "1609344/1000",
}  # fmt: skip
_MASS = {
    "mg": "1/1000000",
    "g": "1/1000",
    "kg": "1",
    "t": "1000",
    "lb": "45359237/100000000",
    "oz": "45359237/1600000000",
}
_TIME = {"s": "1", "min": "60", "h": "3600", "day": "86400", "week": "604800"}
_VOLUME = {"ml": "1/1000", "l": "1"}
_MONEY = {"dollar": "1", "cent": "1/100"}
_KINDS = {"length": _LENGTH, "mass": _MASS, "time": _TIME, "volume": _VOLUME, "dollar": _MONEY,
          "euro": {"euro": "1"}, "£": {"£": "1"}, "month": {"month": "1"}, "year": {"year": "1"}}  # fmt: skip
_BASE = {name: (kind, Fraction(size)) for kind, table in _KINDS.items() for name, size in table.items()}
_NAMES = {
    "millimeter": "mm", "millimetre": "mm", "centimeter": "cm", "centimetre": "cm", "meter": "m", "metre": "m",
    "kilometer": "km", "kilometre": "km", "inch": "in", "inche": "in", "foot": "ft", "feet": "ft", "yard": "yd",
    "mile": "mi", "gram": "g", "kilogram": "kg", "kilo": "kg", "ton": "t", "tonne": "t", "pound": "lb", "lbs": "lb",
    "ounce": "oz", "second": "s", "sec": "s", "minute": "min", "hour": "h", "hr": "h", "liter": "l", "litre": "l",
    "milliliter": "ml", "millilitre": "ml", "usd": "dollar", "€": "euro", "eur": "euro",
}  # fmt: skip
_SQUARE = re.compile(r"^(?:square|sq\.?) +|[ -]+squared$")
_CUBIC = re.compile(r"^(?:cubic|cu\.?) +|[ -]+cubed$")


@dataclass(frozen=True)
class Unit:
    """`size` of one in the base unit of its `kind`; a kind is e.g. `length^2`, `percent`, `angle`."""

    kind: str
    size: Fraction


PERCENT = Unit("percent", Fraction(1, 100))
DEGREE = Unit("angle", Fraction(1))  # its size is irrational: the comparison multiplies by pi/180
RADIAN_PER_DEGREE = math.pi / 180


def unit(text: str) -> Unit | None:
    """The unit that a text names; None where it is none that we know, such as `apples` or `units`."""
    text = text.strip(" .").replace("{", "").replace("}", "")
    if text.casefold() in ("%", "percent", "pct", "per cent"):
        return PERCENT
    if text.casefold() in ("degree", "degrees", "deg"):
        return DEGREE
    if "/" in text or " per " in text:
        top, _, bottom = text.replace(" per ", "/").partition("/")
        above, below = unit(top), unit(bottom)
        if above is None or below is None:
            return None
        return Unit(f"{above.kind} per {below.kind}", above.size / below.size)
    power = 1
    if match := re.search(r"\^(\d)$", text):
        power, text = int(match[1]), text[: match.start()]
    for pattern, exponent in ((_SQUARE, 2), (_CUBIC, 3)):
        if pattern.search(text.casefold()):
            power, text = exponent, pattern.sub("", text.casefold())
    name = text.strip(" .")
    name = name if name in _BASE else name.casefold()
    if name not in _BASE:
        name = _NAMES.get(name) or (name[:-1] if name.endswith("s") and len(name) > 3 else name)
        name = _NAMES.get(name, name)
    if name not in _BASE:
        return None
    kind, size = _BASE[name]
    return Unit(kind if power == 1 else f"{kind}^{power}", size**power)

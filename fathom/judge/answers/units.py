"""Units of measurement: which words are some, and what they are of each other."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_KINDS = {
    "length": {
        "mm": "1/1000", "cm": "1/100", "dm": "1/10", "m": "1", "km": "1000", "in": "254/10000", "ft": "3048/10000",
        "yd": "9144/10000", "mi": "1609344/1000", "light year": "9460730472580800", "nm": "1/1000000000",
    },
    "mass": {
        "mg": "1/1000000", "g": "1/1000", "kg": "1", "t": "1000", "lb": "45359237/100000000",
        "oz": "45359237/1600000000",
    },
    "time": {"ms": "1/1000", "s": "1", "min": "60", "h": "3600", "day": "86400", "week": "604800"},
    "length^3": {"ml": "1/1000000", "l": "1/1000", "gallon": "3785411784/1000000000000",
                 "quart": "946352946/1000000000000", "pint": "473176473/1000000000000"},
    "length per time": {"mph": "1609344/3600000", "km/h": "1000/3600", "knot": "1852/3600"},
    "energy": {"J": "1", "kJ": "1000", "cal": "4184/1000", "kcal": "4184"},
    "power": {"W": "1", "kW": "1000"},
    "dollar": {"dollar": "1", "cent": "1/100"},
    "pound": {"£": "1", "pence": "1/100"},
    "byte": {"byte": "1", "kilobyte": "1000", "megabyte": "1000000"},
    **{name: {name: "1"} for name in (
        "N", "V", "Ω", "Hz", "K", "mol", "Pa", "euro", "yen", "yuan", "rupee", "ruble", "month", "year", "°C", "°F",
        "radian", "square unit", "cubic unit",
    )},
}  # fmt: skip
_BASE = {name: (kind, Fraction(size)) for kind, table in _KINDS.items() for name, size in table.items()}
_NAMES = {
    "millimeter": "mm", "millimetre": "mm", "centimeter": "cm", "centimetre": "cm", "meter": "m", "metre": "m",
    "kilometer": "km", "kilometre": "km", "inch": "in", "inche": "in", "foot": "ft", "feet": "ft", "yard": "yd",
    "mile": "mi", "gram": "g", "kilogram": "kg", "kilo": "kg", "ton": "t", "tonne": "t", "lbs": "lb",
    "ounce": "oz", "second": "s", "sec": "s", "minute": "min", "hour": "h", "hr": "h", "liter": "l", "litre": "l",
    "milliliter": "ml", "millilitre": "ml", "usd": "dollar", "€": "euro", "eur": "euro", "¥": "yen", "jpy": "yen",
    "rmb": "yuan", "inr": "rupee", "kmh": "km/h", "kph": "km/h", "joule": "J", "watt": "W", "newton": "N",
    "volt": "V", "ohm": "Ω", "\\omega": "Ω", "hertz": "Hz", "kelvin": "K", "mole": "mol", "pascal": "Pa",
    "rad": "radian", "gal": "gallon", "metres": "m", "penny": "pence", "millisecond": "ms", "kilowatt": "kW",
    "kilojoule": "kJ", "calorie": "cal", "units^2": "square unit", "unit^2": "square unit",
    "units^3": "cubic unit", "unit^3": "cubic unit", "gbp": "£", "米": "m", "厘米": "cm", "千米": "km", "克": "g",
    "千克": "kg", "秒": "s", "分钟": "min", "小时": "h", "元": "yuan", "美元": "dollar", "升": "l", "天": "day",
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
RADIAN = Unit("radian", Fraction(1))
POUND_OF_MASS = Unit("mass", _BASE["lb"][1])


def unit(text: str) -> Unit | None:
    """The unit that a text names; None where it is none that we know, such as `apples` or `units`."""
    text = text.strip(" .").replace("{", "").replace("}", "")
    if text.casefold() in ("%", "percent", "pct", "per cent", "percentage points"):
        return PERCENT
    if text.casefold() in ("degree", "degrees", "deg"):
        return DEGREE
    if text.casefold() in ("pound", "pounds"):
        return Unit("pound", Fraction(1))  # of money or of mass
    if (whole := _known(text)) is not None:
        return Unit(*whole)
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
    if (known := _known(text)) is None or (power > 1 and known[0] not in ("length", "time")):
        return None
    kind, size = known
    return Unit(kind if power == 1 else f"{kind}^{power}", size**power)


def _known(text: str) -> tuple[str, Fraction] | None:
    name = text.strip(" .")
    name = name if name in _BASE else name.casefold()
    if name not in _BASE:
        name = _NAMES.get(name) or (name[:-1] if name.endswith("s") and len(name) > 3 else name)
        name = _NAMES.get(name, name)
    return _BASE.get(name)

"""Answers that are right by construction and keep a naive judge busy for ever: towers, factorials, deep nesting."""

from __future__ import annotations

import random
from collections.abc import Callable
from fractions import Fraction

Family = Callable[[random.Random], tuple[str, str]]  # (gold, answer), equal by construction


def _tower(r: random.Random) -> tuple[str, str]:
    a, b, c = (r.randint(2_000, 2_100) for _ in range(3))
    return f"{a}^{{{b}^{{{c}}}}}", f"{a}^{{({b}^{{{c}}})}}"


def _tall_tower(r: random.Random) -> tuple[str, str]:
    a, height = r.randint(2, 9), r.randint(4, 30)
    text = str(a)
    for _ in range(height):
        text = f"{a}^{{{text}}}"
    return text, f"1 \\cdot {text}"


def _cancelled_tower(r: random.Random) -> tuple[str, str]:
    a, n = r.randint(7, 9), r.randint(2, 99)
    return str(n), f"{a}^{{{a}^{{{a}^{{{a}}}}}}} - {a}^{{{a}^{{{a}^{{{a}}}}}}} + {n}"


def _factorials(r: random.Random) -> tuple[str, str]:
    n = r.randint(20, 90)
    return f"(({n}!)!)!", f"(((({n})!)!)!)"


def _large_factorial(r: random.Random) -> tuple[str, str]:
    n = r.randint(10**6, 10**9)
    return f"{n}!", f"{n} \\cdot ({n - 1})!"


def _long_sum(r: random.Random) -> tuple[str, str]:
    terms = [r.randint(1, 9) for _ in range(50_000)]
    return str(sum(terms)), "+".join(map(str, terms))


def _alternating(r: random.Random) -> tuple[str, str]:
    terms = [r.randint(1, 999) for _ in range(r.randint(5_000, 20_000))]
    return str(sum(terms[::2]) - sum(terms[1::2])), "".join(
        f"{'-' if i % 2 else '+'}{term}" for i, term in enumerate(terms)
    ).lstrip("+")


def _deep_fraction(r: random.Random) -> tuple[str, str]:
    value, text = Fraction(1), "1"
    for _ in range(500):
        digit = r.randint(1, 9)
        value, text = digit + 1 / value, f"{digit}+\\frac{{1}}{{{text}}}"
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}", text


def _brackets(r: random.Random) -> tuple[str, str]:
    depth, name = r.randint(400, 5_000), r.choice("xyz")
    return f"{name}+1", "(" * depth + f"{name}+1" + ")" * depth


def _braces(r: random.Random) -> tuple[str, str]:
    depth, n = r.randint(400, 5_000), r.randint(2, 99)
    return str(n), "{" * depth + str(n) + "}" * depth


def _expansion(r: random.Random) -> tuple[str, str]:
    names, power = list("abcdefgh"), r.randint(30, 60)
    r.shuffle(names)
    return f"({'+'.join(sorted(names))})^{{{power}}}", f"({'+'.join(names)})^{{{power}}}"


def _quotient(r: random.Random) -> tuple[str, str]:
    n = r.randint(5_000, 90_000)
    return "x+1", f"\\frac{{(x+1)^{{{n}}}}}{{(x+1)^{{{n - 1}}}}}"


def _radicals(r: random.Random) -> tuple[str, str]:
    text = "x"
    for _ in range(r.randint(60, 400)):
        text = f"\\sqrt{{{r.randint(1, 9)}+{text}}}"
    return text, f"\\left({text}\\right)"


def _digits(r: random.Random) -> tuple[str, str]:
    digits = str(r.randint(1, 9)) + "".join(r.choice("0123456789") for _ in range(r.randint(20_000, 99_000)))
    return digits, f"{digits}.0"


def _list(r: random.Random) -> tuple[str, str]:
    items = [str(r.randint(1, 10**6)) for _ in range(r.randint(300, 3_000))]
    return ", ".join(items), ", ".join(r.sample(items, len(items)))


def _series(r: random.Random) -> tuple[str, str]:
    n = r.randint(10**7, 10**9)
    return str(n * (n + 1) // 2), f"\\sum_{{k=1}}^{{{n}}} k"


def _product(r: random.Random) -> tuple[str, str]:
    n = r.randint(10**5, 10**7)
    return f"{n}!", f"\\prod_{{k=1}}^{{{n}}} k"


def _binomial(r: random.Random) -> tuple[str, str]:
    n = r.randint(10**6, 10**9)
    k = r.randint(n // 3, n // 2 - 1)
    return f"\\binom{{{n}}}{{{k}}}", f"\\binom{{{n}}}{{{n - k}}}"


def _sines(r: random.Random) -> tuple[str, str]:
    depth = r.randint(100, 600)
    return "\\sin(" * depth + "x" + ")" * depth, "\\sin(" * depth + "x+0" + ")" * depth


def _logarithm(r: random.Random) -> tuple[str, str]:
    n = r.randint(30, 60)
    return f"2^{{{n}}}", f"\\log_2(2^{{2^{{{n}}}}})"


def _integral(r: random.Random) -> tuple[str, str]:
    n = r.randint(10**4, 10**6)
    return f"\\frac{{1}}{{{n + 1}}}", f"\\int_0^1 x^{{{n}}} dx"


FAMILIES: tuple[Family, ...] = (
    _tower, _tall_tower, _cancelled_tower, _factorials, _large_factorial, _long_sum, _alternating, _deep_fraction,
    _brackets, _braces, _expansion, _quotient, _radicals, _digits, _list, _series, _product, _binomial, _sines,
    _logarithm, _integral,
)  # fmt: skip


def pathological(count: int, seed: int = 0) -> list[tuple[str, str, str]]:
    """(family, gold, answer), the families taking turns."""
    r = random.Random(seed)
    made = []
    for i in range(count):
        family = FAMILIES[i % len(FAMILIES)]
        made.append((family.__name__.strip("_"), *family(r)))
    return made

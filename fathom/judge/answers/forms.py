r"""Canonical forms of formulas: what settles most comparisons without a computer algebra system.

A form is a quotient of two sums of monomials over the rationals. Roots of numbers are split into powers of primes,
which are linearly independent over the rationals (Besicovitch 1940): where nothing else but symbols occurs, different
forms are different values. Whatever the form cannot open (`\sin x`, `\sqrt{1+\sqrt2}`) is one atom in it.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

from fathom.judge.answers.expressions import Budget, Node, TooDear

Monomial = tuple[tuple[str, Fraction], ...]
Sum = dict[Monomial, Fraction]

_ONE: Monomial = ()
_UNIT_I = re.compile(r"(?<![A-Za-z_])i(?![A-Za-z_])")
_LARGEST_PRIME = 2_000  # for splitting the radicand; what is left beyond its square cannot be told to be prime


@dataclass(frozen=True)
class Form:
    """top / bottom, and whether different forms of this kind are known to be different values."""

    top: Sum
    bottom: Sum
    decided: bool

    def rational(self) -> Fraction | None:
        """The value where it is a rational number."""
        top, bottom = _constant(self.top), _constant(self.bottom)
        return None if top is None or not bottom else top / bottom


def form(node: Node, budget: Budget) -> Form:
    """The canonical form. TooDear beyond the budget or where a value does not exist (a zero denominator)."""
    return _Former(budget).form(node)


def same(a: Form, b: Form, budget: Budget) -> bool | None:
    """Whether two forms are equal; None where they differ and nothing follows from it."""
    maker = _Former(budget)
    if maker.product(a.top, b.bottom) == maker.product(b.top, a.bottom):
        return True
    return False if a.decided and b.decided else None


def proportional(a: Form, b: Form, budget: Budget) -> bool | None:
    """Whether the tops are equal up to a rational factor that is not 0: equations of one and the same solution set."""
    if not a.top or not b.top:
        return a.top == b.top
    key = min(a.top)
    if key not in b.top:
        return False if a.decided and b.decided else None
    factor = b.top[key] / a.top[key]
    if {monomial: value * factor for monomial, value in a.top.items()} == b.top:
        return True
    return False if a.decided and b.decided else None


def line(node: Node, name: str, budget: Budget) -> tuple[Fraction, Fraction] | None:
    """(slope, value at 0) where a formula is linear in `name` with rational coefficients, slope not 0; else None."""
    try:
        found = form(node, budget)
    except TooDear:
        return None
    variable: Monomial = ((name, Fraction(1)),)
    if found.bottom != {_ONE: Fraction(1)} or variable not in found.top or not {_ONE, variable}.issuperset(found.top):
        return None
    return found.top[variable], found.top.get(_ONE, Fraction(0))


def _constant(terms: Sum) -> Fraction | None:
    if not terms:
        return Fraction(0)
    return terms[_ONE] if len(terms) == 1 and _ONE in terms else None


class _Former:
    def __init__(self, budget: Budget) -> None:
        self.budget = budget

    def form(self, node: Node) -> Form:
        match node:
            case Node("number", (Fraction() as value,)):
                return Form({_ONE: value} if value else {}, {_ONE: Fraction(1)}, True)
            case Node("symbol", (str() as name,)):
                if name == "infty":
                    raise TooDear("infinity has no form")
                # e and pi are transcendental; that both together are independent is not known.
                return Form({((name, Fraction(1)),): Fraction(1)}, {_ONE: Fraction(1)}, name != "e")
            case Node("+", terms):
                return self._add([self.form(term) for term in terms if isinstance(term, Node)])
            case Node("*", factors):
                found = Form({_ONE: Fraction(1)}, {_ONE: Fraction(1)}, True)
                letters = Counter(one.args[0] for one in factors if isinstance(one, Node) and one.op == "symbol")
                for letter, times in letters.items():
                    one = self.form(Node("symbol", (letter,)))
                    found = self._multiply(found, one if times == 1 else self._whole_power(one, times))
                for factor in factors:
                    assert isinstance(factor, Node)
                    if factor.op != "symbol":
                        found = self._multiply(found, self.form(factor))
                return found
            case Node("^", (Node() as base, Node() as exponent)):
                return self._power(base, exponent)
            case Node("root", (Node() as inside, Node() as degree)):
                return self._root(self.form(inside), self.form(degree).rational())
            case Node("factorial", (Node() as inside,)):
                return self._factorial(self.form(inside))
            case Node("binom", (Node() as n, Node() as k)):
                return self._binomial(self.form(n), self.form(k))
            case Node("abs" | "floor" | "ceil" as name, (Node() as inside,)):
                return self._rounded(name, self.form(inside))
            case Node(name, arguments):
                return self._opaque(
                    name, *(self.form(argument) for argument in arguments if isinstance(argument, Node))
                )

    def _add(self, forms: list[Form]) -> Form:
        total, bottom = dict[Monomial, Fraction](), {_ONE: Fraction(1)}
        for one in forms:
            if one.bottom == bottom:
                _into(total, one.top)
            else:
                total = self.product(total, one.bottom)
                _into(total, self.product(one.top, bottom))
                bottom = self.product(bottom, one.bottom)
            self._check(total)
        return self._reduced(total, bottom, all(one.decided for one in forms))

    def _multiply(self, a: Form, b: Form) -> Form:
        return self._reduced(self.product(a.top, b.top), self.product(a.bottom, b.bottom), a.decided and b.decided)

    def product(self, a: Sum, b: Sum) -> Sum:
        if len(a) * len(b) > 4 * self.budget.terms:
            raise TooDear("formula has too many terms")
        if len(a) == 1 and _ONE in a:
            return {monomial: value * a[_ONE] for monomial, value in b.items()}
        if len(b) == 1 and _ONE in b:
            return {monomial: value * b[_ONE] for monomial, value in a.items()}
        found: Sum = {}
        for left, x in a.items():
            for right, y in b.items():
                monomial, factor = _merged(left, right)
                _into(found, {monomial: x * y * factor})
        self._check(found)
        return found

    def _check(self, terms: Sum) -> None:
        if len(terms) > self.budget.terms:
            raise TooDear("formula has too many terms")
        for value in terms.values():
            if value.numerator.bit_length() + value.denominator.bit_length() > 2 * self.budget.bits:
                raise TooDear("number has too many digits")

    def _reduced(self, top: Sum, bottom: Sum, decided: bool) -> Form:
        """Single denominators are divided out, so that equal values meet in one form more often."""
        if not bottom:
            raise TooDear("division by zero")
        if len(bottom) == 1:
            ((monomial, value),) = bottom.items()
            inverse, factor = _merged(tuple((name, -power) for name, power in monomial), _ONE)
            top = self.product(top, {inverse: factor / value})
            bottom = {_ONE: Fraction(1)}
        return Form(top, bottom, decided)

    def _power(self, base: Node, exponent: Node) -> Form:
        power = self.form(exponent)
        value = power.rational()
        if base == Node("symbol", ("e",)) and (value is None or value.denominator > 1):
            return self._opaque("exp", power)
        found = self.form(base)
        if value is None:
            return self._opaque("^", found, power)
        if value.denominator > 1:
            rational = found.rational()
            if rational is None and not _imaginary(found):
                return self._root(self._whole_power(found, value.numerator), Fraction(value.denominator))
            if rational is None or rational < 0:  # a power of a negative number has several values
                return self._opaque("^", found, power)
            return self._root(self._whole_power(found, value.numerator), Fraction(value.denominator))
        return self._whole_power(found, value.numerator)

    def _whole_power(self, base: Form, power: int) -> Form:
        if power < 0:
            base, power = self._reduced(base.bottom, base.top, base.decided), -power
        if not base.top:
            if power == 0:
                raise TooDear("0^0")
            return base
        size = max(
            value.numerator.bit_length() + value.denominator.bit_length()
            for terms in (base.top, base.bottom)
            for value in terms.values()
        )
        trivial = base.rational() in (1, -1)
        if not trivial and (size - 2 if base.rational() is not None else size) * power > 2 * self.budget.bits:
            return self._opaque("^", base, self._number(Fraction(power)))  # a tower is equal to itself
        if base.rational() is not None:
            value = base.rational()
            assert value is not None
            return self._number(value ** (power % 2 if trivial else power))
        found = Form({_ONE: Fraction(1)}, {_ONE: Fraction(1)}, base.decided)
        while power:
            if power & 1:
                found = self._multiply(found, base)
            power >>= 1
            if power:
                base = self._multiply(base, base)
        return found

    def _number(self, value: Fraction) -> Form:
        return Form({_ONE: value} if value else {}, {_ONE: Fraction(1)}, True)

    def _root(self, inside: Form, degree: Fraction | None) -> Form:
        if degree is None or degree.denominator > 1 or not 2 <= degree <= 64:
            return self._opaque("root", inside, self._number(degree or Fraction(0)))
        value = inside.rational()
        if value is None:
            return self._opaque("root", inside, self._number(degree))
        if value == 0:
            return inside
        if value < 0 and degree % 2 == 0 and degree > 2:
            return self._opaque("root", inside, self._number(degree))
        exponents: dict[str, Fraction] = {}
        for number, sign in ((abs(value).numerator, 1), (value.denominator, -1)):
            if (factors := _factors(number)) is None:
                return self._opaque("root", inside, self._number(degree))
            for prime, times in factors.items():
                exponents[str(prime)] = Fraction(sign * times, degree.numerator)
        if value < 0 and degree == 2:
            exponents["i"] = Fraction(1)
        monomial, factor = _merged(tuple(sorted(exponents.items())), _ONE)
        sign = -1 if value < 0 and degree % 2 else 1
        found = {monomial: factor * sign}
        self._check(found)
        return Form(found, {_ONE: Fraction(1)}, True)

    def _factorial(self, inside: Form) -> Form:
        value = inside.rational()
        if value is None or value.denominator > 1 or value < 0:
            return self._opaque("factorial", inside)
        if value > self.budget.bits // 4:
            return self._opaque("factorial", inside)
        return self._number(Fraction(math.factorial(value.numerator)))

    def _binomial(self, n: Form, k: Form) -> Form:
        top, bottom = n.rational(), k.rational()
        if top is None or bottom is None or top.denominator > 1 or bottom.denominator > 1 or top < 0 or bottom < 0:
            return self._opaque("binom", n, k)
        if min(bottom, top - bottom) * top.numerator.bit_length() > 2 * self.budget.bits:
            return self._opaque("binom", n, self._number(min(bottom, top - bottom)))
        return self._number(Fraction(math.comb(top.numerator, bottom.numerator)))

    def _rounded(self, name: str, inside: Form) -> Form:
        value = inside.rational()
        if value is None:
            return self._opaque(name, inside)
        whole = math.floor(value) if name == "floor" else math.ceil(value)
        return self._number(abs(value) if name == "abs" else Fraction(whole))

    def _opaque(self, name: str, *arguments: Form) -> Form:
        inside = ",".join(f"{_shown(one.top)}/{_shown(one.bottom)}" for one in arguments)
        if len(inside) > 2 * self.budget.characters:
            raise TooDear("formula is too long")
        return Form({((f"{name}({inside})", Fraction(1)),): Fraction(1)}, {_ONE: Fraction(1)}, False)


def _imaginary(form: Form) -> bool:
    return any(_UNIT_I.search(name) for terms in (form.top, form.bottom) for monomial in terms for name, _ in monomial)


def _shown(terms: Sum) -> str:
    shown = []
    for monomial, coefficient in sorted(terms.items()):
        powers = "".join(f"*{name}^{power}" for name, power in monomial)
        shown.append(f"{coefficient.numerator:x}/{coefficient.denominator:x}{powers}")
    return "+".join(shown)


def _into(total: Sum, terms: Sum) -> None:
    for monomial, value in terms.items():
        if new := total.get(monomial, 0) + value:
            total[monomial] = new
        else:
            total.pop(monomial, None)


def _merged(a: Monomial, b: Monomial) -> tuple[Monomial, Fraction]:
    """The product of two monomials; whole powers of primes and i² leave it as a factor."""
    powers = dict(a)
    for name, power in b:
        powers[name] = powers.get(name, Fraction(0)) + power
    factor = Fraction(1)
    for name in [name for name in powers if name.isdecimal() or name == "i"]:
        whole = math.floor(powers[name])
        if name == "i":
            if whole % 4 in (2, 3):
                factor = -factor
            powers[name] = Fraction(whole % 2)
        else:
            if abs(whole) > 4_096:
                raise TooDear("number has too many digits")
            factor *= Fraction(int(name)) ** whole
            powers[name] -= whole
    return tuple(sorted((name, power) for name, power in powers.items() if power)), factor


@functools.lru_cache(maxsize=1024)
def _factors(number: int) -> dict[int, int] | None:
    """Prime factors and their powers; None where they are too large to be found quickly."""
    if number.bit_length() > 128:
        return None
    found: dict[int, int] = {}
    prime = 2
    while prime <= _LARGEST_PRIME and prime * prime <= number:
        while number % prime == 0:
            found[prime] = found.get(prime, 0) + 1
            number //= prime
        prime += 1 if prime == 2 else 2
    times = 1
    if number >= _LARGEST_PRIME**2 and (root := math.isqrt(number)) ** 2 == number:
        number, times = root, 2
    if number >= _LARGEST_PRIME**2:
        return None
    if number > 1:
        found[number] = found.get(number, 0) + times
    return found

r"""Formulas as trees: a parser for the LaTeX and plain notation of answers. It evaluates nothing and runs no code.

What is ambiguous (`2 3`, `f(x)`, `\sqrt12`) or unknown to it (`\sum`) is not guessed at: `parse` raises `NotRead`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction


class NotRead(Exception):
    """This text is no formula that we read without guessing."""


class TooDear(Exception):
    """A formula whose value or form costs more than the budget allows."""


@dataclass(frozen=True)
class Budget:
    """What one answer may have: characters, depth of nesting, terms of a sum or items of a list, bits of a number."""

    characters: int
    depth: int
    terms: int
    bits: int


QUICK = Budget(characters=1_000, depth=40, terms=60, bits=4_096)  # milliseconds: for the caller's process
THOROUGH = Budget(characters=200_000, depth=1_500, terms=2_000, bits=400_000)  # for a process that can be killed


@dataclass(frozen=True)
class Node:
    """`op` is number, symbol, +, *, ^ or the name of a function; `args` are Nodes, a Fraction or a name."""

    op: str
    args: tuple[Node | Fraction | str, ...]


def num(value: Fraction | int) -> Node:
    """A number as a leaf."""
    return Node("number", (Fraction(value),))


MINUS_ONE = num(-1)
_DEGREE = Node("*", (num(Fraction(1, 180)), Node("symbol", ("pi",))))


def renamed(tree: Node, old: str, new: str) -> Node:
    """The tree with another name for one variable."""
    if tree == Node("symbol", (old,)):
        return Node("symbol", (new,))
    return Node(tree.op, tuple(renamed(part, old, new) if isinstance(part, Node) else part for part in tree.args))


FUNCTIONS = {
    **{name: name for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "ln", "log", "exp")},
    **{name: name for name in ("asin", "acos", "atan")},
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arccot": "acot", "tg": "tan", "ctg": "cot", "arctg": "atan",
}  # fmt: skip
_INVERSE = {"sin": "asin", "cos": "acos", "tan": "atan", "cot": "acot"}
_GREEK = frozenset(
    [
        "alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta", "iota",
        "kappa", "lambda", "mu", "nu", "xi", "pi", "rho", "sigma", "tau", "phi", "varphi", "chi", "psi", "omega",
        "Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega", "infty", "ell", "hbar",
    ]
)  # fmt: skip
_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d+)?|\.\d+)|\\([A-Za-z]+)|([A-Za-z])|(\S))")
_CLOSING = {"(": ")", "[": "]", "{": "}", "lfloor": "rfloor", "lceil": "rceil", "|": "|", "lvert": "rvert"}
_FENCES = {"lfloor": "floor", "lceil": "ceil", "|": "abs", "lvert": "abs"}
_APPLIED = frozenset("fghFGHP")  # a letter before a bracket that is likelier a function than a factor

Token = tuple[str, str]  # kind (number, command, letter, sign, end) and text


def parse(text: str, budget: Budget = QUICK) -> Node:
    """The tree of a formula. NotRead where it is none, or none without guessing; TooDear beyond the budget."""
    if len(text) > budget.characters:
        raise TooDear(f"formula is longer than {budget.characters} characters")
    reader = _Reader(_tokens(text), budget.depth)
    tree = reader.sum()
    if reader.kind != "end":
        raise NotRead(reader.text)
    return tree


def _tokens(text: str) -> list[Token]:
    found: list[Token] = []
    for number, command, letter, sign in _TOKEN.findall(text):
        if number:
            found.append(("number", number))
        elif command:
            found.append(("command", command))
        elif letter:
            found.append(("letter", letter))
        else:
            found.append(("sign", sign))
    found.append(("end", ""))
    return found


class _Reader:
    """Recursive descent over tokens; sums and products are loops, so that only nesting costs depth."""

    def __init__(self, tokens: list[Token], depth: int) -> None:
        self.tokens, self.position, self.left = tokens, 0, depth
        self.fences: list[str] = []

    @property
    def kind(self) -> str:
        return self.tokens[self.position][0]

    @property
    def text(self) -> str:
        return self.tokens[self.position][1]

    def _take(self) -> str:
        if self.kind == "end":
            raise NotRead("end of the formula")
        self.position += 1
        return self.tokens[self.position - 1][1]

    def _expect(self, text: str) -> None:
        if self.text != text:
            raise NotRead(f"{text} is missing")
        self.position += 1

    def _descend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise TooDear("formula is nested too deeply")

    def sum(self) -> Node:
        self._descend()
        terms = [self._signed()]
        while self.kind == "sign" and self.text in "+-":
            terms.append(self._signed())
        self.left += 1
        return terms[0] if len(terms) == 1 else Node("+", tuple(terms))

    def _signed(self) -> Node:
        negative = False
        while self.kind == "sign" and self.text in "+-":
            negative ^= self._take() == "-"
        term = self._product()
        return Node("*", (MINUS_ONE, term)) if negative else term

    def _product(self) -> Node:
        factors = [self._factor()]
        while True:
            kind, text = self.kind, self.text
            named = kind in ("letter", "command") and text not in _NO_FACTOR and text not in self.fences
            opened = kind == "sign" and (text in "({" or (text == "|" and "|" not in self.fences))
            if text in ("*", "cdot", "times"):
                self._take()
                factors.append(self._negatable())
            elif text in ("/", "div"):
                self._take()
                factors.append(_inverse(self._negatable()))
            elif text in ("bmod", "mod"):
                self._take()
                factors = [_remainder(Node("*", tuple(factors)), self._negatable())]
            elif named or opened or (kind == "number" and factors[-1].op not in ("number", "symbol")):
                factors.append(self._factor())
            elif kind == "number":
                raise NotRead("number after a number or a letter")
            else:
                return factors[0] if len(factors) == 1 else Node("*", tuple(factors))

    def _negatable(self) -> Node:
        if self.kind == "sign" and self.text == "-":
            self._take()
            return Node("*", (MINUS_ONE, self._factor()))
        return self._factor()

    def _factor(self) -> Node:
        whole = self.kind == "number" and self.text.isdecimal()
        base = self._atom()
        if whole and self.kind == "command" and self.text == "frac":
            return self._mixed(base)
        return self._powers(base)

    def _mixed(self, whole: Node) -> Node:
        """`1\\frac{3}{4}` is 7/4, `2\\frac{\\pi}{3}` a product; what `1\\frac{4}{3}` is nobody knows."""
        part = self._atom()
        if (quotient := _plain_quotient(part)) is None:
            return Node("*", (whole, self._powers(part)))
        if not 0 < quotient[0] < quotient[1]:
            raise NotRead("whole number beside a fraction")
        if self.kind == "sign" and self.text in "^!":
            raise NotRead("power of a mixed number")
        return Node("+", (whole, part))

    def _powers(self, base: Node) -> Node:
        while self.kind == "sign" and self.text in "^!":
            if self._take() == "!":
                if self.text == "!":
                    raise NotRead("double factorial")
                base = Node("factorial", (base,))
                continue
            if self.text == "circ":
                self._take()
                base = Node("*", (base, _DEGREE))
                continue
            base = Node("^", (base, self._exponent()))
            if self.kind == "sign" and self.text == "^":
                raise NotRead("double exponent")
        return base

    def _exponent(self) -> Node:
        if self.kind == "sign" and self.text == "-":
            self._take()
            return Node("*", (MINUS_ONE, self._atom()))
        base = self._atom()
        return Node("^", (base, self._power_of_power())) if self.kind == "sign" and self.text == "^" else base

    def _power_of_power(self) -> Node:
        self._descend()
        self._take()
        found = self._exponent()
        self.left += 1
        return found

    def _atom(self) -> Node:
        kind, text = self.kind, self._take()
        if kind == "number":
            if self.kind == "number":
                raise NotRead("number beside a number")
            return num(Fraction(text))
        if kind == "letter":
            if text in _APPLIED and self.text == "(":
                raise NotRead("function or factor")
            return self._symbol(text)
        if kind == "command":
            return self._command(text)
        if kind == "sign" and text in _CLOSING and text != "[":
            return self._fenced(text)
        if text == "∞":
            return Node("symbol", ("infty",))
        raise NotRead(text)

    def _fenced(self, opening: str) -> Node:
        self.fences.append(_CLOSING[opening])
        inside = self.sum()
        self._expect(_CLOSING[opening])
        self.fences.pop()
        return Node(_FENCES[opening], (inside,)) if opening in _FENCES else inside

    def _symbol(self, name: str) -> Node:
        while self.kind == "sign" and self.text == "'":
            name += self._take()
        if self.text == "_":
            self._take()
            name += "_" + self._subscript()
        return Node("symbol", (name,))

    def _subscript(self) -> str:
        if self.text != "{":
            return self._take()
        self._take()
        parts = []
        while self.text != "}":
            if self.kind == "end" or self.text == "{":
                raise NotRead("subscript")
            parts.append(self._take())
        self._take()
        return "".join(parts)

    def _command(self, name: str) -> Node:
        self._descend()
        found = self._macro(name)
        self.left += 1
        return found

    def _macro(self, name: str) -> Node:
        if name in _GREEK:
            return self._symbol(name)
        if name in _FENCES:
            return self._fenced(name)
        if name == "frac":
            return Node("*", (self._argument(), _inverse(self._argument())))
        if name == "sqrt":
            return self._root()
        if name in ("binom", "dbinom", "tbinom"):
            return Node("binom", (self._argument(), self._argument()))
        if name in ("mathrm", "text", "operatorname"):
            return self._upright()
        if name in FUNCTIONS:
            return self._function(FUNCTIONS[name])
        raise NotRead(name)

    def _upright(self) -> Node:
        self._expect("{")
        letters = ""
        while self.kind == "letter":
            letters += self._take()
        self._expect("}")
        if letters in FUNCTIONS:
            return self._function(FUNCTIONS[letters])
        if len(letters) == 1:
            return self._symbol(letters)
        raise NotRead(letters)

    def _argument(self) -> Node:
        """What follows a macro: a group, or one single character as TeX has it."""
        if self.kind == "number" and len(self.text) > 1:
            if not self.text.isdecimal():
                raise NotRead("decimal without braces")
            digit, rest = self.text[0], self.text[1:]
            self.tokens[self.position] = ("number", rest)
            return num(int(digit))
        if self.kind == "number":
            return num(int(self._take()))
        if self.text == "{":
            self._take()
            self.fences.append("}")
            inside = self.sum()
            self._expect("}")
            self.fences.pop()
            return inside
        if self.kind == "letter" or self.text in _GREEK:
            return Node("symbol", (self._take(),))
        return self._atom()

    def _root(self) -> Node:
        degree: Node | None = None
        if self.text == "[":
            self._take()
            self.fences.append("]")
            degree = self.sum()
            self._expect("]")
            self.fences.pop()
        if self.kind == "number" and len(self.text) > 1:
            raise NotRead("root of several digits without braces")
        inside = self._atom() if self.text == "(" else self._argument()
        return Node("root", (inside, num(2) if degree is None else degree))

    def _function(self, name: str) -> Node:
        power: Node | None = None
        base: Node | None = None
        while self.kind == "sign" and self.text in ("^", "_"):
            if self._take() == "_":
                if name != "log":
                    raise NotRead("subscript of a function")
                base = self._argument()
            else:
                power = self._exponent()
        if power is not None and power in (MINUS_ONE, Node("*", (MINUS_ONE, num(1)))):
            if name not in _INVERSE:
                raise NotRead("inverse or reciprocal")
            name, power = _INVERSE[name], None
        if self.kind == "sign" and self.text in "([{":
            argument = self._fenced(self._take()) if self.text != "[" else self._bracketed()
            if self.kind == "sign" and self.text in "^!":
                raise NotRead("power after a function")
        else:
            argument = self._bare()
        if base is not None:
            value = Node("*", (Node("ln", (argument,)), _inverse(Node("ln", (base,)))))
        else:
            value = Node(name, (argument,))
        return value if power is None else Node("^", (value, power))

    def _bracketed(self) -> Node:
        self._take()
        self.fences.append("]")
        inside = self.sum()
        self._expect("]")
        self.fences.pop()
        return inside

    def _bare(self) -> Node:
        """The argument of `\\sin 2x`: factors up to the next sign, operator or function."""
        factors = [self._factor()]
        while (self.kind == "letter" or self.text in _GREEK) and self.text not in self.fences:
            factors.append(self._factor())
        if self.kind == "sign" and self.text == "/":
            raise NotRead("quotient after a function without brackets")
        return factors[0] if len(factors) == 1 else Node("*", tuple(factors))


_NO_FACTOR = frozenset(
    [
        "rfloor", "rceil", "rvert", "cup", "cap", "in", "le", "ge", "leq", "geq", "lt", "gt", "neq", "ne", "mid",
        "to", "approx", "equiv", "bmod", "mod", "pmod", "pm", "mp", "setminus", "quad", "circ",
    ]
)  # fmt: skip


def _inverse(node: Node) -> Node:
    return Node("^", (node, MINUS_ONE))


def _remainder(of: Node, by: Node) -> Node:
    whole = Node("floor", (Node("*", (of, _inverse(by))),))
    return Node("+", (of, Node("*", (MINUS_ONE, by, whole))))


def _plain_quotient(node: Node) -> tuple[Fraction, Fraction] | None:
    match node:
        case Node("*", (Node("number", (Fraction() as top,)), Node("^", (Node("number", (Fraction() as bottom,)), _)))):
            return top, bottom
    return None

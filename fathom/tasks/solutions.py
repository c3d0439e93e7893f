"""Written-out solutions of arithmetic problems, for supervised training: one operation a line, or none at all."""

from __future__ import annotations

import hashlib
import re
from typing import Literal

from fathom.core.errors import FathomError, UsageError

Manner = Literal["steps", "columns", "direct"]
MANNERS: tuple[Manner, ...] = ("steps", "columns", "direct")
SOLVED_BY_HAND = ("chain_sum", "basic_arithmetic")  # the gym tasks whose questions are one expression of + - * / ( )

_EXPRESSION = re.compile(r"[-(\d](?:[\d\s+\-*/().]*[\d)])?")
_TOKEN = re.compile(r"\s*(\d+|[-+*/()])")


def step_line(left: int, operator: str, right: int, result: int) -> str:
    """One line of working: the only place that decides how an operation is written."""
    return f"{left}{operator}{right}={result}"


def answer_format(thinking: str, answer: str) -> str:
    """A completion in the one format that every task teaches: thinking, then the answer, each in its tags."""
    inside = f"\n{thinking}\n" if thinking else "\n"
    return f"<think>{inside}</think>\n<answer>{answer}</answer>"


def manner_of(problem_id: str, think: str) -> Manner:
    """How this problem is worked under `think`: a manner, or two as "columns/direct", half and half by its id's hash.

    UsageError where it is neither.
    """
    named = think.split("/") if isinstance(think, str) else []
    manners = [manner for manner in MANNERS if manner in named]
    if not 1 <= len(named) <= 2 or len(manners) != len(named):
        raise UsageError(
            f"think={think!r}: no such manner; use one of {', '.join(MANNERS)}, or two as steps/direct for half of each"
        )
    if len(manners) == 1:
        return manners[0]
    return manners[hashlib.sha256(f"manner:{problem_id}".encode()).digest()[0] % 2]


def expression_of(problem_text: str) -> str:
    """The one arithmetic expression of a question, e.g. "347 + 285 - 96"; FathomError where there is none."""
    found = max(_EXPRESSION.findall(problem_text), key=len, default="")
    if not found or "." in found:
        raise FathomError(
            f"{problem_text[:80]!r}: no whole-number expression of + - * / ( ) in it; "
            f"worked solutions exist for {', '.join('gym:' + name for name in SOLVED_BY_HAND)}"
        )
    return found


def evaluate(expression: str) -> tuple[int, list[str]]:
    """Value and working of an expression of whole numbers: brackets first, then * and /, then + and -.

    Division must come out even; anything else raises FathomError.
    """
    return _Reduction(expression).run()


class _Reduction:
    """Recursive descent that writes a line for each operation that it carries out."""

    def __init__(self, expression: str) -> None:
        self.expression = expression
        self.tokens = _TOKEN.findall(expression)
        if "".join(self.tokens) != re.sub(r"\s+", "", expression):
            raise FathomError(f"{expression[:80]!r}: only whole numbers and + - * / ( ) can be worked")
        self.at = 0
        self.lines: list[str] = []

    def run(self) -> tuple[int, list[str]]:
        value = self.sum()
        if self.at != len(self.tokens):
            raise self.broken()
        return value, self.lines

    def broken(self) -> FathomError:
        return FathomError(f"{self.expression[:80]!r}: not an expression (stuck at token {self.at + 1})")

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        if not token:
            raise self.broken()
        self.at += 1
        return token

    def sum(self) -> int:
        # All products of this level are worked before its first sum, as on paper.
        terms: list[tuple[str, int]] = [("+", self.product())]
        while self.peek() in ("+", "-"):
            terms.append((self.take(), self.product()))
        value = terms[0][1]
        for operator, right in terms[1:]:
            value = self.step(value, operator, right)
        return value

    def product(self) -> int:
        value = self.factor()
        while self.peek() in ("*", "/"):
            value = self.step(value, self.take(), self.factor())
        return value

    def factor(self) -> int:
        token = self.take()
        if token == "-":
            return -self.factor()
        if token == "(":
            value = self.sum()
            if self.take() != ")":
                raise self.broken()
            return value
        if not token.isdecimal():
            raise self.broken()
        return int(token)

    def step(self, left: int, operator: str, right: int) -> int:
        match operator:
            case "+":
                result = left + right
            case "-":
                result = left - right
            case "*":
                result = left * right
            case _:
                if right == 0 or left % right:
                    raise FathomError(f"{self.expression[:80]!r}: {left}/{right} does not come out even")
                result = left // right
        self.lines.append(step_line(left, operator, right, result))
        return result


def worked(problem_text: str, answer: str, manner: Manner) -> str:
    """A full completion for an arithmetic question, checked against the known `answer`.

    "direct" thinks nothing; "steps" thinks one operation a line; "columns" adds digit by digit (sums only). FathomError
    where the question is not one expression, or where the working does not arrive at `answer`.
    """
    value, lines = evaluate(expression_of(problem_text))
    if str(value) != answer.strip():
        raise FathomError(f"{problem_text[:80]!r}: the working arrives at {value}, the stored answer is {answer}")
    if manner == "direct":
        return answer_format("", str(value))
    if manner == "steps":
        return answer_format("\n".join(lines), str(value))
    if manner == "columns":
        return answer_format("\n".join(columns(expression_of(problem_text))), str(value))
    raise UsageError(f"manner={manner!r}: a single solution is written in {', '.join(MANNERS)}")


def columns(expression: str) -> list[str]:
    """A sum worked as on paper: a line per column from the right, a running total after each digit, the carry last.

    47 + 85 + 19 gives "7+5=12+9=21" and "4+8=12+1=13+2=15": the answer is the last total, then the last digits of the
    totals before it. Sums of numbers ≥ 0 only.
    """
    terms = [term.strip() for term in expression.split("+")]
    if len(terms) < 2 or not all(term.isdecimal() for term in terms):
        raise FathomError(f"{expression[:80]!r}: only sums of whole numbers from 0 are worked in columns; "
                          "use think=steps, or operators=['+']")
    lines, carry = [], 0
    for place in range(1, max(map(len, terms)) + 1):
        digits = [int(term[-place]) for term in terms if len(term) >= place] + ([carry] if carry else [])
        value, line = digits[0], str(digits[0])
        for digit in digits[1:]:
            value += digit
            line += f"+{digit}={value}"
        lines.append(line)
        carry = value // 10
    return lines

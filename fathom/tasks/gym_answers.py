"""What reasoning-gym 0.1.25 does with answers that must not happen here: tasks refused, answers not evaluated."""

from __future__ import annotations

import ast
import re

_ORACLE = "it stores no answer of its own, so nothing shows that its judge accepts a right one"
REFUSED = {
    "boxnet": _ORACLE,
    "graph_color": _ORACLE,
    "propositional_logic": _ORACLE,
    "rubiks_cube": _ORACLE,
    "rush_hour": _ORACLE,
    "composite": "it mixes other tasks; list those tasks themselves",
    "puzzle24": "its judge accepts any four numbers that make 24, not only the four that were given",
}

# Their judges call eval() on the answer to see whether it is a Python list. Literals only.
_EVALUATED = ("binary_matrix", "n_queens", "spiral_matrix", "string_insertion")
# Their judges give the answer to sympy.parse_expr, which is eval() as well.
_SYMPY = ("countdown", "intermediate_integration", "polynomial_multiplication", "simple_integration")
_NAMES = "exp|log|ln|sin|cos|tan|sqrt|pi"
_FORMULA = re.compile(
    rf"(?:[\d\s+\-*/^()]|(?<=\d)\.(?=\d)|(?<![A-Za-z_.])(?:[A-Za-z]|{_NAMES})(?![A-Za-z_]))*",
)
_FOUR_OPERATIONS = re.compile(r"(?:[\d\s+\-/()]|(?<!\*)\*(?!\*))*")  # countdown offers no powers, and they can hang
_LITERAL = (ast.Expression, ast.List, ast.Tuple, ast.Constant, ast.Load, ast.UnaryOp, ast.USub, ast.Name)


def unsafe(task: str, answer: str) -> str | None:
    """Why `answer` must not reach the task's own judge, or None. An answer of the right form is never refused."""
    if task in _SYMPY:
        form = _FOUR_OPERATIONS if task == "countdown" else _FORMULA
        return None if form.fullmatch(answer) else "not a formula"
    if task in _EVALUATED:
        try:
            tree = ast.parse(answer.strip(), mode="eval")
        except (SyntaxError, ValueError, MemoryError, RecursionError):
            return None  # eval() stops at the same place
        if not all(isinstance(node, _LITERAL) for node in ast.walk(tree)):
            return "not a literal"
    return None

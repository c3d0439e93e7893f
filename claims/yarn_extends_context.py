"""YaRN and a twentieth of the tokens make a model read eight times as far.

DeepSeek-V3 §4.3 (two phases of YaRN; needles found at every depth up to the new length). Experiment: a small model
learns from texts of at most 256 tokens in which codes of people are said over and over, then reads on to 2,048 tokens
with at most 5 % of the tokens that it had: with YaRN, and with the frequencies as they are. A grid of 4 lengths × 5
depths × 8 haystacks asks for one of four codes, each said once; greedy, all four digits must be right. Holds where on
every seed at most 30 % are found at 2,048 tokens before, and with YaRN at least 95 % over the grid after.

    python -m claims.yarn_extends_context [--device cuda] [--seed 1] [--kind gqa]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from fathom.core.disk import write_atomic
from fathom.core.errors import AuditFailed
from fathom.core.run import read_manifest
from fathom.systems import start

SEEDS = (1, 2, 3)
RESULTS = Path(__file__).parent / "results"
BEFORE, AFTER, SHARE = 0.30, 0.95, 0.05  # the bars
ORIGINAL, TARGET = 256, 2048
TOKENS = 40_000_000  # of pre-training
NEEDLE = "fathom.tasks.needle:NeedleTask"
MODELS = {
    "gqa": {"attention": "gqa", "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 64,
            "rope_interleave": False},
    "mla": {"attention": "mla", "num_attention_heads": 4, "kv_lora_rank": 64, "qk_nope_head_dim": 32,
            "qk_rope_head_dim": 32, "v_head_dim": 32},
}
SHAPE = {"preset": "tiny", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "n_routed_experts": 0,
         "num_nextn_predict_layers": 0, "initializer_range": 0.06, "max_position_embeddings": ORIGINAL}
ARMS: dict[str, tuple[str, dict[str, Any] | None]] = {
    "gqa-yarn": ("gqa", {}), "gqa-plain": ("gqa", None), "mla-yarn": ("mla", {}), "mla-plain": ("mla", None)}


def texts(length: int, count: int, facts: float, names: int) -> dict[str, Any]:
    """A source of texts about codes; two tokens of `length` are for beginning and end."""
    return {"task": NEEDLE, "learn": "document", "use": "solution", "length": length - 1, "facts": facts,
            "names": names, "count": count}


def pretrained(root: Path, seed: int, kind: str, device: str) -> Path:
    """The directory of a model that has read texts of at most ORIGINAL tokens."""
    words = root / f"words-{seed}"
    start("tokenizer", {"data": [texts(ORIGINAL, 500, 0.5, 6)], "vocab_size": 560}, words, seed, "claim")
    base = root / f"{kind}-{seed}"
    start("pretrain", {
        "model": SHAPE | MODELS[kind], "tokenizer": str(words / "model"), "tokens": TOKENS, "tokens_per_step": 1024,
        # one name far back teaches to look far, one close by to copy, several whose code to copy
        "data": [
            *(texts(64, 15_000, facts, names) for facts, names in ((0.95, 1), (0.3, 1), (0.95, 2), (0.5, 2))),
            *(texts(128, 10_000, facts, names) for facts, names in ((0.2, 1), (0.5, 2), (0.9, 3))),
            *(texts(ORIGINAL, 5000, facts, names) for facts, names in ((0.1, 1), (0.3, 3), (0.9, 4), (0.4, 6)))],
        "sequence_length": ORIGINAL, "optim": {"lr": 3e-3, "warmup": 50, "decay": 0.3},
        "held_out_every": 500, "log_every": 50, "checkpoints": {"every": 2000}, "device": device,
    }, base, seed, "claim")
    return base


def one(root: Path, seed: int, arm: str, device: str) -> dict[str, Any]:
    """One model extended in one way: grids before and after, losses, and what the stage said of its own proof."""
    kind, scaling = ARMS[arm]
    base = pretrained(root, seed, kind, device)
    spent = read_manifest(base)["summary"]["tokens"]
    allowed = int(SHARE * spent)
    first = allowed // 5
    directory = root / f"{arm}-{seed}"
    refused = None
    try:
        start("extend", {
            "init": str(base / "model"), "scaling": scaling, "tokens_per_step": 4096, "tokens_per_batch": 4096,
            "phases": [{"length": 512, "steps": first // 4096}, {"length": TARGET, "steps": (allowed - first) // 4096}],
            "data": [texts(TARGET + 20, 500, 0.3, 8), texts(TARGET + 20, 300, 0.05, 8)],  # none is shorter than TARGET
            "optim": {"lr": 1e-3, "warmup": 5, "schedule": "wsd", "decay": 0.5, "bias_speed": 0.0},
            "proof": {"samples": 8}, "device": device,
        }, directory, seed, "claim")
    except AuditFailed as error:
        refused = str(error)
    measured = {path.stem: json.loads(path.read_text()) for path in sorted((directory / "proof").glob("*.json"))}
    last = json.loads((directory / "metrics.jsonl").read_text().splitlines()[-1])
    for found in measured.values():
        del found["curve"]["texts"]
    return {"arm": arm, "seed": seed, "pretrain_tokens": spent, "extend_tokens": last["tokens"],
            "refused": refused, "measured": measured}


def measure(
    root: Path = Path("runs/claims/yarn"), device: str = "auto", seeds: tuple[int, ...] = SEEDS,
    kinds: tuple[str, ...] = tuple(MODELS),
) -> None:
    """Runs the arms and seeds that have no result yet, one JSON each."""
    for seed in seeds:
        for arm in (arm for arm, (kind, _) in ARMS.items() if kind in kinds):
            path = RESULTS / f"yarn_extends_context-{arm}-{seed}.json"
            if not path.exists():
                write_atomic(path, json.dumps(one(root, seed, arm, device), indent=1, sort_keys=True) + "\n")


def found(measurement: dict[str, Any], length: int | None = None) -> float:
    """Share of needles found, over the grid or at one length."""
    needle = measurement["needle"]
    columns = [n for n, one in enumerate(needle["lengths"]) if length in (None, one)]
    cells = [float(row[n] / needle["samples"]) for row in needle["right"] for n in columns]
    return sum(cells) / len(cells)


def ledger() -> str:
    """The verdict with its figures, from the committed results."""
    lines, holds = ["YaRN with 5 % of the tokens reads 2,048 where 256 were learnt (DeepSeek-V3 §4.3):"], []
    for seed in SEEDS:
        for arm in ARMS:
            path = RESULTS / f"yarn_extends_context-{arm}-{seed}.json"
            if not path.exists():
                return "\n".join([*lines, f"  undecided: {arm}, seed {seed} is not measured"])
            result = json.loads(path.read_text())
            names = list(result["measured"])
            first, last = result["measured"][names[0]], result["measured"][names[-1]]
            share = result["extend_tokens"] / result["pretrain_tokens"]
            before, after = found(first, TARGET), found(last)
            if arm == "gqa-yarn":
                holds.append(before <= BEFORE and after >= AFTER and share <= SHARE)
            worst = min(count for row in last["needle"]["right"] for count in row) / last["needle"]["samples"]
            lines.append(
                f"  seed {seed}, {arm}: at 2,048 {100 * before:.0f} % before, "
                f"{100 * found(result['measured'].get('1-stretched', first), TARGET):.0f} % untrained, "
                f"{100 * found(last, TARGET):.0f} % after {100 * share:.1f} % of the tokens; grid "
                f"{100 * found(first):.0f} → {100 * after:.1f} %, worst cell {100 * worst:.0f} %"
                f"{'; the stage refused it' if result['refused'] else ''}")
    return "\n".join([*lines, f"  {'holds' if all(holds) else 'fails'} on {sum(holds)} of {len(holds)} seeds (gqa)"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Two models of one seed or kind need not wait for each other.")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, choices=SEEDS, help="one seed alone")
    parser.add_argument("--kind", choices=list(MODELS), help="one kind of attention alone")
    asked = parser.parse_args()
    measure(device=asked.device, seeds=(asked.seed,) if asked.seed else SEEDS,
            kinds=(asked.kind,) if asked.kind else tuple(MODELS))
    print(ledger())

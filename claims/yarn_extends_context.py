"""YaRN and a twentieth of the tokens make a model read eight times as far.

DeepSeek-V3 §4.3 (two phases of YaRN; needles found at every depth up to the new length). Experiment: a model of three
layers learns from texts of at most 256 tokens, in which codes of people are said over and over or a short passage of
random words is repeated, then reads on to 2,048 tokens with at most 5 % of the tokens that it had: with YaRN, and with
the frequencies as they are. A grid of 4 lengths × 5 depths × 8 haystacks asks for one of four codes, each said once;
greedy, all four digits must be right. Holds where on every seed at most 30 % are found at 2,048 tokens before, and with
YaRN at least 95 % over the grid after. A seed takes a quarter of an hour on one core of a CPU.

    python -m claims.yarn_extends_context [--seed 1] [--arm yarn] [--device cuda]
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
TOKENS, TOKENS_PER_STEP = 8_000_000, 1100  # of pre-training; many small steps teach more than few large ones
STEP, LR = 2100, 1e-3  # of the extension: one sequence of TARGET, and room for what is left of texts a little longer
NEEDLE = "fathom.tasks.needle:NeedleTask"
MODEL = {
    "preset": "tiny", "attention": "gqa", "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 64, "rope_interleave": False, "intermediate_size": 128, "n_routed_experts": 0,
    "num_nextn_predict_layers": 0, "initializer_range": 0.06, "max_position_embeddings": ORIGINAL,
}
ARMS: dict[str, dict[str, Any] | None] = {"yarn": {}, "plain": None}
PRETRAIN: tuple[dict[str, Any], ...] = (
    # in these, what stood after the same words before is right nearly everywhere: they teach to look back
    {"length": 48, "learn": "repeated", "count": 60_000},
    {"length": 64, "facts": 0.95, "names": 4, "count": 21_000},
    {"length": 128, "facts": 0.8, "names": 4, "count": 10_500},
    {"length": ORIGINAL, "facts": 0.4, "names": 6, "count": 10_500},
)
# longer than TARGET by less than a sentence; the more people, the further back a code was said
LONG: tuple[dict[str, Any], ...] = (
    {"length": TARGET + 12, "facts": 0.6, "names": 44, "count": 120},
    {"length": TARGET + 12, "facts": 0.3, "names": 44, "count": 120},
    {"length": TARGET + 12, "facts": 0.1, "names": 20, "count": 60},
)


def texts(length: int, **options: Any) -> dict[str, Any]:
    """A source of texts to learn from; two tokens of `length` are for beginning and end."""
    return {"task": NEEDLE, "learn": "document", "use": "solution", "length": length - 1, **options}


def pretrained(root: Path, seed: int, device: str) -> Path:
    """The directory of a model that has read texts of at most ORIGINAL tokens."""
    words, base = root / f"words-{seed}", root / f"base-{seed}"
    start("tokenizer", {"data": [texts(ORIGINAL, count=500)], "vocab_size": 560}, words, seed, "claim")
    start("pretrain", {
        "model": MODEL, "tokenizer": str(words / "model"), "tokens": TOKENS, "tokens_per_step": TOKENS_PER_STEP,
        "data": [texts(**kind) for kind in PRETRAIN], "sequence_length": ORIGINAL,
        "optim": {"lr": 2e-3, "warmup": 100, "schedule": "wsd", "decay": 0.3, "final": 0.05},
        "held_out_every": 500, "log_every": 100, "checkpoints": {"every": 2000, "keep": 1, "best": False},
        "device": device, "dtype": "float32",
    }, base, seed, "claim")
    return base


def one(root: Path, seed: int, arm: str, device: str) -> dict[str, Any]:
    """One model extended in one way: grids before and after, losses, and what the stage said of its own proof."""
    base = pretrained(root, seed, device)
    spent = read_manifest(base)["summary"]["tokens"]
    allowed = int(SHARE * spent)
    first = allowed // 5
    directory = root / f"{arm}-{seed}"
    refused = None
    try:
        start("extend", {
            "init": str(base / "model"), "scaling": ARMS[arm], "tokens_per_step": STEP, "tokens_per_batch": STEP,
            "phases": [{"length": 512, "steps": first // STEP}, {"length": TARGET, "steps": (allowed - first) // STEP}],
            "data": [texts(**kind) for kind in LONG],
            "optim": {"lr": LR, "warmup": 5, "schedule": "wsd", "decay": 0.5, "final": 0.05, "bias_speed": 0.0},
            "proof": {"samples": 8}, "device": device, "dtype": "float32",
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
    root: Path = Path("runs/claims/yarn"), device: str = "cpu", seeds: tuple[int, ...] = SEEDS,
    arms: tuple[str, ...] = tuple(ARMS),
) -> None:
    """Runs the arms and seeds that have no result yet, one JSON each."""
    for seed in seeds:
        for arm in arms:
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
    lines = ["YaRN with 5 % of the tokens reads 2,048 where 256 were learnt (DeepSeek-V3 §4.3):"]
    holds, missing = [], []
    for seed in SEEDS:
        for arm in ARMS:
            path = RESULTS / f"yarn_extends_context-{arm}-{seed}.json"
            if not path.exists():
                missing.append(f"seed {seed}, {arm}")
                continue
            result = json.loads(path.read_text())
            names = list(result["measured"])
            first, last = result["measured"][names[0]], result["measured"][names[-1]]
            share = result["extend_tokens"] / result["pretrain_tokens"]
            before, after = found(first, TARGET), found(last)
            if arm == "yarn":
                holds.append(before <= BEFORE and after >= AFTER and share <= SHARE)
            worst = min(count for row in last["needle"]["right"] for count in row) / last["needle"]["samples"]
            lines.append(
                f"  seed {seed}, {arm}: at 2,048 {100 * before:.0f} % before, "
                f"{100 * found(result['measured'].get('1-stretched', first), TARGET):.0f} % untrained, "
                f"{100 * found(last, TARGET):.0f} % after {100 * share:.1f} % of the tokens; grid "
                f"{100 * found(first):.0f} → {100 * after:.1f} %, worst cell {100 * worst:.0f} %"
                f"{'; the stage refused it' if result['refused'] else ''}")
    if missing:
        lines.append(f"  undecided: not measured are {'; '.join(missing)}")
    if holds:
        lines.append(f"  {'holds' if all(holds) else 'fails'} on {sum(holds)} of {len(holds)} seeds")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Seeds need not wait for each other.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--root", type=Path, default=Path("runs/claims/yarn"), help="where the runs lie")
    parser.add_argument("--seed", type=int, choices=SEEDS, help="one seed alone")
    parser.add_argument("--arm", choices=list(ARMS), help="one arm alone")
    asked = parser.parse_args()
    seeds = (asked.seed,) if asked.seed else SEEDS
    measure(asked.root, asked.device, seeds, (asked.arm,) if asked.arm else tuple(ARMS))
    print(ledger())

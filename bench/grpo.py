"""GRPO seconds per step and peak memory against TRL's GRPOTrainer: 8 prompts × 8 completions × 64 tokens, FP32.

Each side runs in processes of its own, in turns, so that its peak memory is its own; the first steps of a process are
not counted. `python -m bench.grpo fathom|trl DIR` is one such process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import models
from bench.measure import Pair
from bench.reward import score
from fathom.core import machine
from fathom.core.chat import Message
from fathom.judge.verdict import Verdict
from fathom.tasks.task import Problem

PROMPTS, GROUP, TOKENS = 8, 8, 64
STEPS, WARM = 5, 2  # per process
LR = 1e-6


def questions() -> list[str]:
    """Prompts of about 14 tokens."""
    return [f"{17 * n % 90 + 10} + {31 * n % 90 + 10} = ?" for n in range(PROMPTS * (STEPS + 1))]


class Sums:
    """The same prompts as a task; what is judged is left to the reward."""

    name = "bench"

    def problems(self, split: str, limit: int | None = None, seed: int = 0) -> Iterator[Problem]:
        for number, text in enumerate(questions()[:limit]):
            yield Problem(str(number), (Message("user", text),), "0", self.name)

    def judge(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        return [Verdict.wrong("not asked") for _ in items]


def measure(rounds: int = 5) -> list[Pair]:
    """Seconds per step and peak resident memory of both."""
    seconds: dict[str, list[float]] = {"fathom": [], "trl": []}
    memory: dict[str, list[float]] = {"fathom": [], "trl": []}
    shares: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        models.ours(Path(folder) / "model")
        for number in range(rounds):
            for side in seconds:
                done = subprocess.run(
                    [sys.executable, "-m", "bench.grpo", side, folder, str(number)], capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"bench.grpo {side}: {done.stderr[-2000:]}")
                found = json.loads(done.stdout.splitlines()[-1])
                seconds[side] += found["seconds"]
                memory[side].append(found["peak"])
                for name, value in found.get("shares", {}).items():
                    shares.setdefault(name, []).append(value)
    notes = {name: round(sum(v) / len(v), 3) for name, v in shares.items()}
    return [
        Pair("GRPO step, 8 × 8 × 64", seconds["fathom"], seconds["trl"], bar=2.5, notes=notes),
        Pair("GRPO peak memory", memory["fathom"], memory["trl"], bar=1 / 0.7, unit="GB"),
    ]


def fathom(folder: Path, number: str, device: str = "cpu", dtype: str = "float32") -> dict[str, Any]:
    """Steps of our own system, as a user runs it."""
    from fathom.systems import start

    directory = folder / f"fathom-{number}"
    start("grpo", {
        "init": str(folder / "model"), "tasks": ["bench.grpo:Sums"], "rewards": {"bench.reward:reward": 1.0},
        "steps": STEPS, "problems": PROMPTS, "group": GROUP, "sampling": {"max_tokens": TOKENS, "temperature": 1.0},
        "weigh": "token_mean", "optim": {"lr": LR, "schedule": "constant", "warmup": 0, "weight_decay": 0.0,
                                         "betas": [0.9, 0.999], "clip": 1.0},
        "checkpoints": {"every": 1000}, "device": device, "dtype": dtype,
    }, directory, 1, "bench", console=False)
    lines = [json.loads(line) for line in (directory / "timing.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "generate_s" in line][WARM:]
    seconds = [line["seconds"] for line in lines if "seconds" in line][WARM:STEPS]
    total = sum(seconds)
    return {"seconds": seconds, "shares": {
        name: sum(s[f"{name}_s"] for s in steps) / total for name in ("generate", "judge", "train")}}


def trl(folder: Path, number: str) -> dict[str, Any]:
    """Steps of TRL's trainer on the same directory, with the same optimiser settings."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    peer = models.theirs(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    settings = GRPOConfig(
        output_dir=str(folder / f"trl-{number}"), per_device_train_batch_size=PROMPTS * GROUP, num_generations=GROUP,
        max_completion_length=TOKENS, generation_kwargs={"min_new_tokens": TOKENS}, max_steps=STEPS, beta=0.0,
        learning_rate=LR, lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0, adam_beta2=0.999,
        max_grad_norm=1.0, optim="adamw_torch_fused", use_cpu=True, bf16=False, gradient_checkpointing=False,
        save_strategy="no", report_to=[], logging_steps=1000, disable_tqdm=True,
    )
    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    rows = [{"prompt": [{"role": "user", "content": text}]} for text in questions()]
    trainer = GRPOTrainer(
        model=peer, reward_funcs=lambda completions, **_: [score(c[0]["content"]) for c in completions],
        args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, callbacks=[Clock()],
    )
    torch.manual_seed(int(number))
    trainer.train()
    # from one step's end to the next one's: everything that a step takes, the loader too
    return {"seconds": [b - a for a, b in zip(ends[WARM - 1:], ends[WARM:], strict=False)]}


if __name__ == "__main__":
    side, where, which = sys.argv[1:]
    found = {"fathom": fathom, "trl": trl}[side](Path(where), which)
    found["peak"] = machine.peak_memory() / 1e9
    print(json.dumps(found))

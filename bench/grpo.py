"""GRPO seconds per step and peak memory against TRL's GRPOTrainer, in FP32.

Two cases: bench-10m with 8 prompts × 8 completions × 64 tokens, and SmolLM2-135M with 4 × 8 × 96 on GSM8K questions of
at least 100 tokens. Both sides sample every token that was asked for. Each runs in processes of its own, in turns, so
that its peak memory is its own; the first steps of a process are not counted. `python -m bench.grpo fathom|trl CASE
FOLDER ROUND` is one such process.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import models
from bench.harness import records
from bench.measure import Pair
from bench.reward import score
from fathom.core import machine
from fathom.core.chat import Message
from fathom.core.run import read_manifest
from fathom.judge.verdict import Verdict
from fathom.model import weights
from fathom.model.tokenizer import Tokenizer
from fathom.tasks.task import Problem

LR = 1e-6
QUESTIONS = "questions.json"  # in a case's folder, beside the model


@dataclass(frozen=True)
class Case:
    """A model, and how much of what a step asks of it."""

    prompts: int
    group: int
    tokens: int  # of each completion
    steps: int  # per process
    warm: int  # of those, not counted
    rounds: int


CASES = {"small": Case(8, 8, 64, 5, 2, 5), "real": Case(4, 8, 96, 4, 1, 2)}


def sums(case: Case) -> list[str]:
    """Prompts of about 14 tokens."""
    return [f"{17 * n % 90 + 10} + {31 * n % 90 + 10} = ?" for n in range(case.prompts * (case.steps + 1))]


def long_questions(file: Path, case: Case, tokenizer: Tokenizer, least: int = 100) -> list[str]:
    """The first questions of a file of GSM8K whose prompts have at least so many tokens."""
    texts = (row["question"] for row in records(file))
    long = (text for text in texts if len(tokenizer.prompt((Message("user", text),))) >= least)
    return list(itertools.islice(long, case.prompts * (case.steps + 1)))


class Given:
    """The case's prompts as a task; what is judged is left to the reward."""

    name = "bench"

    def __init__(self, file: str):
        self.file = Path(file)

    def problems(self, split: str, limit: int | None = None, seed: int = 0) -> Iterator[Problem]:
        for number, text in enumerate(json.loads(self.file.read_text())[:limit]):
            yield Problem(str(number), (Message("user", text),), "0", self.name)

    def judge(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        return [Verdict.wrong("not asked") for _ in items]


def measure(data: Path | None = None) -> list[Pair]:
    """Seconds per step and peak resident memory of both; with GSM8K at hand for SmolLM2, else for bench-10m."""
    name = "small" if data is None else "real"
    case = CASES[name]
    seconds: dict[str, list[float]] = {"fathom": [], "trl": []}
    memory: dict[str, list[float]] = {"fathom": [], "trl": []}
    notes: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        prepare(case, Path(folder), data)
        for number in range(case.rounds):
            for side in seconds:
                done = subprocess.run(
                    [sys.executable, "-m", "bench.grpo", side, name, folder, str(number)], capture_output=True,
                    text=True)
                if done.returncode:
                    sys.exit(f"bench.grpo {side}: {done.stderr[-2000:]}")
                found = json.loads(done.stdout.splitlines()[-1])
                seconds[side] += found["seconds"]
                memory[side].append(found["peak"])
                for note, value in found.get("notes", {}).items():
                    notes.setdefault(note, []).append(value)
    title = f"{'bench-10m' if data is None else 'SmolLM2-135M'}, {case.prompts} × {case.group} × {case.tokens}"
    means = {note: round(sum(values) / len(values), 3) for note, values in notes.items()}
    return [
        Pair(f"GRPO step, {title}", seconds["fathom"], seconds["trl"], bar=2.5, notes=means),
        Pair(f"GRPO peak memory, {title}", memory["fathom"], memory["trl"], bar=1 / 0.7, unit="GB"),
    ]


def prepare(case: Case, folder: Path, data: Path | None = None) -> None:
    """Writes the case's model and questions."""
    if data is None:
        models.ours(folder / "model")
        asked = sums(case)
    else:
        weights.convert(Path("smollm2"), folder / "model", "float32")
        asked = long_questions(data, case, Tokenizer.load(folder / "model"))
    (folder / QUESTIONS).write_text(json.dumps(asked))


def fathom(case: Case, folder: Path, number: str, device: str = "cpu", dtype: str = "float32") -> dict[str, Any]:
    """Steps of our own system, as a user runs it."""
    from fathom.systems import start

    directory = folder / f"fathom-{number}"
    start("grpo", {
        "init": str(folder / "model"), "tasks": [{"task": "bench.grpo:Given", "file": str(folder / QUESTIONS)}],
        "rewards": {"bench.reward:reward": 1.0}, "steps": case.steps, "problems": case.prompts, "group": case.group,
        "sampling": {"max_tokens": case.tokens, "temperature": 1.0, "ignore_stop": True},
        "weigh": "token_mean", "optim": {"lr": LR, "schedule": "constant", "warmup": 0, "weight_decay": 0.0,
                                         "betas": [0.9, 0.999], "clip": 1.0},
        "checkpoints": {"every": 1000}, "device": device, "dtype": dtype,
    }, directory, 1, "bench", console=False)
    lines = [json.loads(line) for line in (directory / "timing.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "generate_s" in line][case.warm:]
    seconds = [line["seconds"] for line in lines if "seconds" in line][case.warm: case.steps]
    total = sum(seconds)
    tokenizer = Tokenizer.load(folder / "model")
    prompts = json.loads((folder / QUESTIONS).read_text())
    length = sum(len(tokenizer.prompt((Message("user", text),))) for text in prompts) / len(prompts)
    prefilled = read_manifest(directory)["summary"]["prefilled_tokens"] / case.steps
    return {"seconds": seconds, "notes": {
        **{name: sum(s[f"{name}_s"] for s in steps) / total for name in ("generate", "judge", "train")},
        "sampled per step": sum(s["sampled_tokens"] for s in steps) / len(steps),
        "tokens of a prompt": length, "prompt tokens computed per prompt to sample": prefilled / case.prompts}}


def trl(case: Case, folder: Path, number: str) -> dict[str, Any]:
    """Steps of TRL's trainer on the same directory, with the same optimiser settings."""
    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    peer = models.theirs(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    settings = GRPOConfig(
        output_dir=str(folder / f"trl-{number}"), per_device_train_batch_size=case.prompts * case.group,
        num_generations=case.group, max_completion_length=case.tokens,
        generation_kwargs={"min_new_tokens": case.tokens}, max_steps=case.steps, beta=0.0,
        learning_rate=LR, lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0, adam_beta2=0.999,
        max_grad_norm=1.0, optim="adamw_torch_fused", use_cpu=True, bf16=False, gradient_checkpointing=False,
        save_strategy="no", report_to=[], logging_steps=1000, disable_tqdm=True,
    )
    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            ends.append(time.perf_counter())

    rows = [{"prompt": [{"role": "user", "content": text}]} for text in json.loads((folder / QUESTIONS).read_text())]
    trainer = GRPOTrainer(
        model=peer, reward_funcs=lambda completions, **_: [score(c[0]["content"]) for c in completions],
        args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, callbacks=[Clock()],
    )
    torch.manual_seed(int(number))
    trainer.train()
    # from one step's end to the next one's: everything that a step takes, the loader too
    seconds = [b - a for a, b in zip(ends[case.warm - 1:], ends[case.warm:], strict=False)]
    return {"seconds": seconds}


if __name__ == "__main__":
    side, which, where, round_ = sys.argv[1:]
    found = {"fathom": fathom, "trl": trl}[side](CASES[which], Path(where), round_)
    found["peak"] = machine.peak_memory() / 1e9
    print(json.dumps(found))

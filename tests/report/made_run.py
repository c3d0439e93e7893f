"""A made run on disk in the layout that the systems write: seven stages of a small R1-like recipe, no training.

`python tests/report/made_run.py DIR` writes one to look at.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fathom.core.records import Record, RecordStore

RECIPE = """\
seed: 7
stages:
  base:   {run: pretrain, model: tiny, data: [gym:basic_arithmetic], tokens: 2e6}
  cold:   {run: sft,      init: base,  data: [worked.jsonl]}
  before: {run: evaluate, init: cold,  tasks: [gym:basic_arithmetic, gym:chain_sum]}
  zero:   {run: grpo,     init: cold,  tasks: [gym:basic_arithmetic], group: 8, steps: 300}
  traces: {run: distill,  init: zero,  tasks: [gym:basic_arithmetic], n: 4, keep: right}
  final:  {run: sft,      init: base,  data: [traces]}
  score:  {run: evaluate, init: final, tasks: [gym:basic_arithmetic, gym:chain_sum]}
"""
START = 1_770_000_000.0
NASTY = "</script><img src=x onerror=\"document.title='owned'\"><b>bold</b> <!-- \u2028 & {{data}}"


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows), encoding="utf-8")


def write_manifest(
    stage: Path,
    system: str,
    settings: dict[str, Any],
    attempts: list[dict[str, Any]],
    status: str = "done",
    **more: Any,
) -> None:
    stage.mkdir(parents=True, exist_ok=True)
    manifest = {
        "format": 1,
        "system": system,
        "settings": settings,
        "seed": 7,
        "inputs": {},
        "fingerprint": "9f31c07ab2d4e865",
        "commit": "3b1f0c2ad97e4f5566a1b2c3d4e5f60718293a4b",
        "versions": {"python": "3.11.7", "torch": "2.13.0+cpu", "numpy": "2.4.6", "pyarrow": "26.0.1"},
        "device": "x86_64, 2 cores (made for tests)",
        "attempts": attempts,
        "status": status,
        "summary": {},
        **more,
    }
    (stage / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def attempt(started: float, seconds: float | None, status: str = "done") -> dict[str, Any]:
    ended = None if seconds is None else START + started + seconds
    return {"started": START + started, "ended": ended, "status": status, "host": "bench-1", "pid": 4242}


def write_records(
    stage: Path, kept: Sequence[Record], rejected: Sequence[tuple[Record, str]] = (), commit_every: int = 1000
) -> None:
    """The stage's records: every kept one from an input of its own, and the rejected inputs."""
    with RecordStore(stage / "records", commit_every=commit_every) as store:
        for record in kept:
            store.done(Record(f"in:{record.id}", {}, record.source), [record])
        for record, reason in rejected:
            store.reject(record, reason)


def evaluated(task: str, problem: str, outcomes: Sequence[str], prompt: str = "", answer: str = "42") -> Record:
    """The record of one evaluated problem."""
    texts = {
        "right": f"<think>half of 84</think>The answer is {answer}.",
        "wrong": "It is 41.",
        "unread": "Well, …",
        "failed": "\\boxed{x",
    }
    samples = [
        {"text": texts[o], "outcome": o, "reason": f"made {o}", "extracted": answer if o == "right" else None}
        | {"finish": "stop", "tokens": len(texts[o])}
        for o in outcomes
    ]
    asked = prompt or f"A made problem, number {problem}: what is half of {2 * int(answer)}?"
    messages = [{"role": "user", "content": asked}]
    data = {"task": task, "problem": problem, "prompt": messages, "answer": answer, "samples": samples}
    return Record(f"{task}/{problem}", data, task)


def score(task: str, groups: Sequence[Sequence[str]]) -> dict[str, Any]:
    """What scores.json says of a task, given the outcomes of every problem's samples."""
    flat = [o for group in groups for o in group]
    n, k = len(flat), len(groups[0])
    counts = {o: flat.count(o) for o in ("right", "wrong", "unread", "failed")}
    share = counts["right"] / n
    half = 1.96 * math.sqrt(max(share * (1 - share), 1e-4) / len(groups))
    return {"task": task, "problems": len(groups), "k": k, "samples": n, **counts, "accuracy": share} | {
        "low": max(0.0, share - half),
        "high": min(1.0, share + half),
        "range": [share, (counts["right"] + counts["failed"]) / n],
        "pass_at": {"1": share, str(k): sum("right" in g for g in groups) / len(groups)},
        "maj_at": {str(k): sum(g.count("right") * 2 > k for g in groups) / len(groups)},
        "mean_tokens": 61.4,
    }


def write_evaluation(
    stage: Path,
    model: str,
    tasks: dict[str, dict[str, list[str]]],
    started: float = 0.0,
    settings: dict[str, Any] | None = None,
) -> None:
    """An evaluate stage: {task: {problem: outcomes}}."""
    used = settings or {"init": model, "tasks": list(tasks), "k": 4, "temperature": 0.6}
    write_manifest(stage, "evaluate", used, [attempt(started, 38)])
    scores = {"model": model, "tasks": [score(task, list(problems.values())) for task, problems in tasks.items()]}
    (stage / "scores.json").write_text(json.dumps(scores))
    write_records(stage, [evaluated(task, name, o) for task, problems in tasks.items() for name, o in problems.items()])


def outcomes(
    rng: np.random.Generator, problems: int, right: float, k: int = 4, failed: float = 0.0
) -> dict[str, list[str]]:
    """Made outcomes: every problem has its own difficulty, so that samples of one problem are not independent."""
    found = {}
    for i in range(problems):
        p = float(rng.beta(4 * right, 4 * (1 - right)))
        rest = (1 - p - failed * (1 - p)) / 1
        shares = np.array([p, rest * 0.8, rest * 0.2, max(0.0, 1 - p - rest)])
        found[f"{i:04d}"] = [
            str(o) for o in rng.choice(["right", "wrong", "unread", "failed"], size=k, p=shares / shares.sum())
        ]
    return found


def load(rng: np.random.Generator, t: float, layers: int = 4, experts: int = 16) -> list[list[int]]:
    """Expert counts that start skewed and even out with time t in [0, 1]."""
    skew = np.random.default_rng(3).normal(size=(layers, experts))
    logits = skew * (1.1 * math.exp(-4 * t) + 0.12) + 0.06 * rng.normal(size=(layers, experts))
    share = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return [[int(x) for x in row] for row in np.round(share * 32768)]


def language_metrics(
    rng: np.random.Generator, steps: int, start: float, floor: float, experts: bool
) -> list[dict[str, Any]]:
    rows = []
    for step in range(1, steps + 1):
        t = step / steps
        loss = floor + (start - floor) * math.exp(-7 * t) + 0.05 * float(rng.normal()) * (0.4 + math.exp(-4 * t))
        row: dict[str, Any] = {"step": step, "loss": loss, "loss_balance": 0.002 + 0.01 * math.exp(-6 * t)}
        row |= {"lr": 3e-3 * min(1, step / 40) * (0.1 + 0.45 * (1 + math.cos(math.pi * t))), "tokens": step * 4096}
        row["grad_norm"] = 0.4 + 2.5 * math.exp(-9 * t) + abs(0.12 * float(rng.normal()))
        if step % 25 == 0:
            row["held_out"] = floor + 0.06 + (start - floor) * math.exp(-6.6 * t)
        if experts and step % 10 == 0:
            row["expert_load"] = load(rng, t)
        rows.append(row)
    return rows


def group_metrics(rng: np.random.Generator, steps: int) -> list[dict[str, Any]]:
    rows = []
    for step in range(1, steps + 1):
        t = step / steps
        right = 0.18 + 0.62 / (1 + math.exp(-9 * (t - 0.38))) + 0.03 * float(rng.normal())
        right = min(0.97, max(0.02, right))
        unread, failed = (
            max(0.01, 0.22 * math.exp(-6 * t) + 0.01 * abs(float(rng.normal()))),
            (0.004 if step % 37 == 0 else 0.0),
        )
        unread = min(unread, 1 - right - failed)
        length = 42 + 70 * t + 4 * float(rng.normal())
        row = {
            "step": step,
            "loss": 0.002 * float(rng.normal()),
            "kl": 0.001 + 0.06 * t * t + 0.003 * abs(float(rng.normal())),
        }
        row |= {
            "clip_share": 0.004 + 0.01 * abs(float(rng.normal())),
            "grad_norm": 0.3 + 0.1 * abs(float(rng.normal())),
        }
        row |= {
            "lr": 1e-5,
            "reward": right + 0.2 * (1 - unread),
            "reward_std": 0.42 * math.sqrt(right * (1 - right)) + 0.1,
        }
        row |= {
            "reward_accuracy": right,
            "reward_format": 1 - unread,
            "right": right,
            "unread": unread,
            "failed": failed,
        }
        row |= {
            "truncated": 0.12 * math.exp(-5 * t),
            "length": length,
            "length_p95": length * 1.7 + 6 * abs(float(rng.normal())),
            "lengths": {"≤ 64": round(100 * (1 - t)), "≤ 128": round(60 * t), "≤ 192": round(40 * t)},
        }
        row |= {
            "flat_groups": min(0.9, 0.1 + 0.45 * t * t + 0.03 * abs(float(rng.normal()))),
            "entropy": 0.2 + 0.7 * math.exp(-2.5 * t),
        }
        if step % 10 == 0:
            row["expert_load"] = load(rng, 0.6 + 0.4 * t)
        rows.append(row)
    return rows


def sampled_group(rng: np.random.Generator, step: int, steps: int, i: int) -> dict[str, Any]:
    a, b, c = (int(x) for x in rng.integers(3, 97, size=3))
    gold, right = a + b - c, 0.2 + 0.6 * step / steps
    group = []
    for k in range(8):
        outcome = str(rng.choice(["right", "wrong", "unread"], p=[right, (1 - right) * 0.75, (1 - right) * 0.25]))
        if step == 100 and i == 0 and k == 3:
            outcome = "failed"
        said = gold if outcome == "right" else gold + int(rng.integers(1, 12))
        middle = f"First {a} + {b} = {a + b}.\nThen {a + b} - {c} = {said}." + (
            "\nLet me check: yes." if rng.random() < 0.3 else ""
        )
        text = (
            f"<think>{middle}</think>\n<answer>{said}</answer>" if outcome != "unread" else f"<think>{middle} So maybe"
        )
        reason = {
            "right": "equal numbers",
            "wrong": f"{said} is not {gold}",
            "unread": "no answer tag",
            "failed": "judge passed 5 s",
        }[outcome]
        entry: dict[str, Any] = {
            "text": text,
            "tokens": len(text) // 2,
            "finish": "length" if outcome == "unread" else "stop",
        }
        entry |= {
            "outcome": outcome,
            "reason": reason,
            "reward": None if outcome == "failed" else 1.2 * (outcome == "right"),
        }
        if outcome in ("right", "wrong"):
            entry["extracted"] = str(said)
        entry["rewards"] = {
            "accuracy": None if outcome == "failed" else float(outcome == "right"),
            "format": float(outcome != "unread"),
        }
        group.append(entry)
    known = [e["reward"] for e in group if e["reward"] is not None]
    for e in group:
        e["advantage"] = (
            None if e["reward"] is None else (e["reward"] - np.mean(known)) / (np.std(known, ddof=1) + 1e-4)
        )
    return {"step": step, "problem": f"basic_arithmetic/{step * 8 + i}", "answer": str(gold), "group": group} | {
        "prompt": [{"role": "user", "content": f"Calculate {a} + {b} - {c}. Put the answer in <answer> tags."}]
    }


def make_run(root: Path, steps: int = 300, problems: int = 200) -> Path:
    """The whole made run at `root`; the same bytes for the same arguments."""
    rng = np.random.default_rng(11)
    root.mkdir(parents=True, exist_ok=True)
    (root / "recipe.yaml").write_text(RECIPE)

    base = root / "base"
    write_manifest(
        base,
        "pretrain",
        {"model": "tiny", "data": ["gym:basic_arithmetic"], "tokens": 2e6, "optim": {"lr": 3e-3, "betas": [0.9, 0.95]}},
        [attempt(0, 214)],
    )
    write_lines(base / "metrics.jsonl", language_metrics(rng, steps, 5.6, 1.42, experts=True))
    write_lines(
        base / "timing.jsonl",
        [{"step": s, "seconds": 0.7, "tokens_per_s": 5800 + 300 * float(rng.normal())} for s in range(1, steps + 1)],
    )

    cold = root / "cold"
    write_manifest(cold, "sft", {"init": "base", "data": ["worked.jsonl"], "epochs": 2}, [attempt(215, 61)])
    write_lines(cold / "metrics.jsonl", language_metrics(rng, max(3, steps // 3), 1.9, 0.74, experts=False))

    tasks = ("gym:basic_arithmetic", "gym:chain_sum")
    write_evaluation(
        root / "before",
        "runs/r1/cold/model",
        {tasks[0]: outcomes(rng, problems, 0.29), tasks[1]: outcomes(rng, problems, 0.42)},
        277,
    )

    zero = root / "zero"
    settings = {"init": "cold", "tasks": ["gym:basic_arithmetic"], "group": 8, "steps": steps, "clip": 0.2, "kl": 0.04}
    write_manifest(zero, "grpo", settings, [attempt(316, None, "killed"), attempt(7900, 312)])
    (zero / "logs").mkdir()
    (zero / "logs" / "attempt-1.log").write_text("…")
    os.utime(zero / "logs" / "attempt-1.log", (START + 316 + 160, START + 316 + 160))
    write_lines(zero / "metrics.jsonl", group_metrics(rng, steps))
    write_lines(
        zero / "timing.jsonl",
        [
            {
                "step": s,
                "seconds": 1.5 + 0.1 * float(rng.normal()),
                "generate_s": 0.9 + 0.05 * float(rng.normal()),
                "judge_s": 0.05 + 0.01 * float(rng.random()),
                "train_s": 0.5 + 0.03 * float(rng.normal()),
            }
            for s in range(1, steps + 1)
        ],
    )
    for step in range(50, steps + 1, 50):
        groups = [sampled_group(rng, step, steps, i) for i in range(8)]
        if step == 50:
            groups[0]["group"][0]["text"] = NASTY
            groups[0]["group"][1]["text"] = "long " * 4000 + "<answer>7</answer>"
        write_lines(zero / "samples" / f"{step:06d}.jsonl", groups)

    traces = root / "traces"
    write_manifest(traces, "distill", {"init": "zero", "n": 4, "keep": "right"}, [attempt(8213, 95)])
    messages = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "<answer>2</answer>"}]
    kept = [Record(f"t-{i}", {"messages": messages}, "zero") for i in range(824)]
    reasons = (
        ["wrong answer"] * 286
        + ["no answer in the text"] * 62
        + ["cut off at the token limit"] * 24
        + ["same completion again"] * 10
    )
    rejected = [(Record(f"r-{i}", {"text": "2 + 2 = 5"}, "zero"), reason) for i, reason in enumerate(reasons)]
    write_records(traces, kept, rejected, commit_every=700)

    final = root / "final"
    write_manifest(
        final,
        "sft",
        {"init": "base", "data": ["traces"], "epochs": 3},
        [attempt(8309, 30, "stopped"), attempt(8345, 74)],
    )
    write_lines(final / "metrics.jsonl", language_metrics(rng, max(3, steps // 2), 1.8, 0.41, experts=False))

    write_evaluation(
        root / "score",
        "runs/r1/final/model",
        {tasks[0]: outcomes(rng, problems, 0.77), tasks[1]: outcomes(rng, problems, 0.40, failed=0.02)},
        8420,
    )
    return root


if __name__ == "__main__":
    print(make_run(Path(sys.argv[1])))

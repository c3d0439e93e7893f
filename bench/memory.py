"""Bytes of weights, gradients and optimiser states, summed from tensors: GRPO with less and less beside it, and PPO.

`python -m bench memory`: the model of all benches in BF16 with FP32 masters and moments, as each method holds it after
an update and the next gradient. A reward model is a critic that is not trained. Every method runs in a process of its
own; its resident memory stands beside, less what the process held before there was a model. The rule of 36, 20, 18 and
16 bytes takes all models to be as large; critic and reward model have no head, which is a fifth of this small model.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.measure import RESULTS
from fathom.core import machine
from fathom.model.presets import PRESETS
from fathom.model.transformer import Transformer
from fathom.train.optim import Optimiser
from fathom.train.schedule import AdamW

# method: models beside the policy, and bytes by parameter: 16 of a trained model (BF16 weights and gradients; FP32
# masters and two moments), 2 of one that is not
METHODS = {
    "PPO, reward model, reference": (("critic", "reward", "reference"), 36),
    "GRPO, reward model, reference": (("reward", "reference"), 20),
    "GRPO, rule, reference": (("reference",), 18),
    "GRPO, β = 0": ((), 16),
}


def main() -> None:
    """Measures every method and prints the table; saved in bench/results/memory.json."""
    rows = []
    for name in METHODS:
        done = subprocess.run([sys.executable, "-m", "bench.memory", name], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"bench.memory {name}: {done.stderr[-2000:]}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    print("| method | weights | gradients | states | all | 16 or 2 × each model's parameters | bytes by parameter of "
          "the policy (rule) | share of PPO's (rule) | resident |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        part = " | ".join(f"{row[kind] / 1e6:.1f} MB" for kind in ("weights", "gradients", "states", "all"))
        share, rule = row["all"] / rows[0]["all"], row["rule"] / rows[0]["rule"]
        print(f"| {row['method']} | {part} | {row['counted'] / 1e6:.1f} MB | {row['all'] / row['parameters']:.2f} "
              f"({row['rule']}) | {share:.3f} ({rule:.3f}) | {row['resident'] / 1e6:.0f} MB |")
    about = {"device": machine.device(), "commit": machine.commit(), "versions": machine.versions()}
    (RESULTS / "memory.json").write_text(json.dumps({**about, "rows": rows}, indent=1, ensure_ascii=False) + "\n")


def measure(name: str) -> dict[str, object]:
    """One method's bytes, and this process's."""
    import numpy as np

    from fathom.train.batch import Example, pack, token_mean
    from fathom.train.critic import Critic, value_loss, with_values
    from fathom.train.objective import grpo, with_reference
    from fathom.train.variants import PolicyRule

    before = resident()
    beside, rule_bytes = METHODS[name]
    policy = fresh()
    optimisers = [Optimiser(policy, AdamW(lr=1e-6))]
    models: dict[str, nn.Module] = {"policy": policy}
    critic = None
    for which in beside:
        made = fresh()
        model = made if which == "reference" else Critic(made)
        models[which] = model
        if isinstance(model, Critic) and which == "critic":
            critic = model
            optimisers.append(Optimiser(model, AdamW(lr=1e-6)))
        else:
            model.requires_grad_(False)
    rng = np.random.default_rng(0)
    examples = [
        Example(rng.integers(0, 300, 64, dtype=np.int32), np.arange(64) >= 16, float(i % 2), np.full(64, -6.0))
        for i in range(8)]
    rule = PolicyRule(kl=0.01 if "reference" in models and critic is None else 0.0)

    def backward() -> None:
        for batch in pack(examples, token_mean, 4096):
            reference = models.get("reference")
            if isinstance(reference, Transformer):
                batch = with_reference(reference, batch)
            if critic is not None:
                batch = with_values(critic, batch, kl=0.01)
                value_loss(critic, batch).total.backward()
            grpo(policy, batch, rule).total.backward()

    backward()
    for optimiser in optimisers:
        optimiser.step(1e-6, optimiser.gradient_norm())
    backward()
    tensors = [t for model in models.values() for t in (*model.parameters(), *model.buffers())]
    gradients = [p.grad for model in models.values() for p in model.parameters() if p.grad is not None]
    states = [t for optimiser in optimisers for t in optimiser.state().values()]
    sums = {"weights": size(tensors), "gradients": size(gradients), "states": size(states)}
    counted = sum((16 if p.requires_grad else 2) * p.numel() for model in models.values() for p in model.parameters())
    return {"method": name, "parameters": sum(p.numel() for p in policy.parameters()), **sums, "counted": counted,
            "all": sum(sums.values()), "rule": rule_bytes, "resident": resident() - before}


def fresh() -> Transformer:
    """The bench's model in BF16, without the module for multi-token prediction, which GRPO does not train."""
    config = PRESETS["bench-10m"].model_copy(update={"num_nextn_predict_layers": 0})
    return Transformer(config).initialise(0).to(torch.bfloat16)


def size(tensors: list[Tensor]) -> int:
    """Bytes, of shared memory once."""
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())


def resident() -> int:
    """This process's resident memory, in bytes."""
    return int(re.search(r"VmRSS:\s*(\d+)", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))

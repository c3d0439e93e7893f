"""What DeepSeekMath says of the family of GRPO, and DAPO of its clip, each with as many samples.

Statements, in the papers' order: offline rejection sampling < online < GRPO (§5.2.1, figure 5); process supervision at
least outcome supervision (the same figure); maj@k rises more than pass@k (§5.2.2, figure 7); the group's mean as
baseline against none; a higher upper clip keeps entropy (DAPO, arXiv 2503.14476, figure 2b); GRPO above PPO with λ =
0.95 (DeepSeek-R1's supplement, where λ = 1 came close). Experiment: the demo's
model, taught to add in two manners, then each arm with 40 rollouts of 32 problems × 8 samples from the same start;
accuracy on 300 held-out problems × 8 samples. A statement holds where its difference, paired over the problems, lies
above 0 with its 95 % interval on all seeds, fails where it lies below on all, and is undecided else.

    python -m claims.grpo_family [--seed 1] [--arm grpo]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fathom import recipes
from fathom.core.disk import write_atomic
from fathom.core.records import RecordStore
from fathom.systems import start
from fathom.tasks.statistics import Difference, maj_at_k, paired_difference, pass_at_k

SEEDS = (1, 2, 3)
RESULTS = Path(__file__).parent / "results"
ROLLOUTS, PROBLEMS, GROUP, SCORED, K = 40, 32, 8, 300, 8
PLAIN: dict[str, Any] = {
    "rewards": {"accuracy": 1.0}, "steps": ROLLOUTS, "problems": PROBLEMS, "group": GROUP,
    "optim": {"lr": 1e-4, "warmup": 5}, "checkpoints": {"every": 20}}
FOUR: dict[str, Any] = {**PLAIN, "steps": 4 * ROLLOUTS, "updates": 4}
ARMS: dict[str, dict[str, Any]] = {
    "start": {},
    "rft": {},
    "online_rft": {**PLAIN, "variant": "online_rft"},
    "mean_baseline": {**PLAIN, "normalise": "none", "clip_rule": "none"},  # online_rft with the group's mean taken off
    "grpo": PLAIN,
    "process": {**PLAIN, "process": "arithmetic"},
    "ppo_95": {**PLAIN, "variant": "ppo", "critic": {"lam": 0.95}},
    "ppo_1": {**PLAIN, "variant": "ppo", "critic": {"lam": 1.0}},
    "clip": FOUR,
    "clip_higher": {**FOUR, "clip_high": 0.28},
}


def measure(root: Path = Path("runs/claims"), seeds: tuple[int, ...] = SEEDS, arms: tuple[str, ...] = ()) -> None:
    """Runs the arms and seeds that have no result yet, one JSON each as it finishes."""
    for seed in seeds:
        for arm in arms or tuple(ARMS):
            path = RESULTS / f"grpo_family-{arm}-{seed}.json"
            if not path.exists():
                write_atomic(path, json.dumps(one(root / f"family-{seed}", seed, arm), sort_keys=True) + "\n")


def one(root: Path, seed: int, arm: str) -> dict[str, Any]:
    """One arm under one seed: each problem's outcomes and answers, and how the policy's entropy went."""
    recipe = recipes.load("tiny/demo", (), root, seed)
    stages = {stage.name: stage.values for stage in recipe.stages}
    for name in ("words", "base", "taught"):
        stage = next(stage for stage in recipe.stages if stage.name == name)
        start(stage.system, stage.values, root / name, seed, name, console=False)
    taught, tasks = str(root / "taught" / "model"), stages["reasoned"]["tasks"]
    sampling, model, entropy = stages["reasoned"]["sampling"], taught, []
    if arm == "rft":
        start("distill", {"init": taught, "tasks": tasks, "problems": ROLLOUTS * PROBLEMS, "n": GROUP, "keep": "right",
                          "sampling": sampling}, root / "rft-samples", seed, arm, console=False)
        start("sft", {"init": taught, "data": [str(root / "rft-samples")], "epochs": 1, "tokens_per_step": 8192,
                      "optim": {"lr": 1e-4, "warmup": 5}}, root / arm, seed, arm, console=False)
        model = str(root / arm / "model")
    elif arm != "start":
        start("grpo", {"init": taught, "tasks": tasks, "sampling": sampling, **ARMS[arm]}, root / arm, seed, arm,
              console=False)
        model = str(root / arm / "model")
        rows = [json.loads(line) for line in (root / arm / "metrics.jsonl").read_text().splitlines()]
        entropy = [row["entropy"] for row in rows if "entropy" in row]
    start("evaluate", {"model": model, "tasks": tasks, "problems": SCORED, "k": K, "sampling": sampling},
          root / f"{arm}-scored", seed, arm, console=False)
    found = {record.data["problem"]: [[s["outcome"] == "right", s["extracted"]] for s in record.data["samples"]]
             for record in RecordStore(root / f"{arm}-scored" / "records").kept()}
    return {"arm": arm, "seed": seed, "problems": found, "entropy": entropy}


# What each statement compares: for a seed's arms, the difference that the paper says is above 0.


def _shares(arm: dict[str, Any], value: Callable[[list[Any]], float]) -> dict[str, float]:
    return {problem: value(samples) for problem, samples in arm["problems"].items()}


def _accuracy(samples: list[Any]) -> float:
    return sum(right for right, _ in samples) / len(samples)


def _maj(samples: list[Any]) -> float:
    return float(maj_at_k([answer for _, answer in samples], [right for right, _ in samples]))


def _pass(samples: list[Any]) -> float:
    return pass_at_k(len(samples), sum(right for right, _ in samples), len(samples))


def _more_accurate(a: str, b: str) -> Callable[[dict[str, Any]], Difference]:
    return lambda arms: paired_difference(_shares(arms[a], _accuracy), _shares(arms[b], _accuracy))


def _maj_over_pass(arms: dict[str, Any]) -> Difference:
    before, after = arms["start"], arms["grpo"]
    lifts = []
    for value in (_maj, _pass):
        first, then = _shares(before, value), _shares(after, value)
        lifts.append({problem: then[problem] - first[problem] for problem in first})
    return paired_difference(*lifts)


def _entropy(arms: dict[str, Any]) -> Difference:
    """Over the last ten rollouts, paired: not problems but rollouts vary here."""
    return paired_difference(arms["clip_higher"]["entropy"][-10:], arms["clip"]["entropy"][-10:])


STATEMENTS: dict[str, tuple[tuple[str, ...], Callable[[dict[str, Any]], Difference]]] = {
    "online RFT > RFT": (("online_rft", "rft"), _more_accurate("online_rft", "rft")),
    "GRPO > online RFT": (("grpo", "online_rft"), _more_accurate("grpo", "online_rft")),
    "process supervision > outcome supervision": (("process", "grpo"), _more_accurate("process", "grpo")),
    "maj@8 rises more than pass@8": (("start", "grpo"), _maj_over_pass),
    "the group's mean as baseline > none": (("mean_baseline", "online_rft"),
                                            _more_accurate("mean_baseline", "online_rft")),
    "a higher upper clip keeps entropy": (("clip_higher", "clip"), _entropy),
    "GRPO > PPO with λ = 0.95": (("grpo", "ppo_95"), _more_accurate("grpo", "ppo_95")),
    "GRPO > PPO with λ = 1": (("grpo", "ppo_1"), _more_accurate("grpo", "ppo_1")),
}


def ledger() -> str:
    """The statements with every seed's difference, for people."""
    found = {(path.stem.split("-")[1], int(path.stem.split("-")[2])): json.loads(path.read_text())
             for path in sorted(RESULTS.glob("grpo_family-*.json"))}
    lines = ["claims/grpo_family: RFT, online RFT, GRPO and its parts with as many samples"]
    for arm in ARMS:
        reached = [f"{_mean(found[arm, seed]):.1%}" for seed in SEEDS if (arm, seed) in found]
        lines.append(f"  {arm}: {', '.join(reached) or 'not measured'}")
    for name, (needs, differ) in STATEMENTS.items():
        seeds = [seed for seed in SEEDS if all((arm, seed) in found for arm in needs)]
        told = [differ({arm: found[arm, seed] for arm in needs}) for seed in seeds]
        lines.append(f"  {name}: {verdict(told)} on {len(told)} of {len(SEEDS)} seeds: "
                     + "; ".join(f"{d.mean:+.3f} ({d.low:+.3f} to {d.high:+.3f})" for d in told))
    return "\n".join(lines)


def verdict(told: list[Difference]) -> str:
    """holds, fails or undecided."""
    if len(told) < len(SEEDS):
        return "not measured" if not told else "undecided (seeds are missing)"
    if all(d.low > 0 for d in told):
        return "holds"
    return "fails" if all(d.high < 0 for d in told) else "undecided"


def _mean(result: dict[str, Any]) -> float:
    return sum(map(_accuracy, result["problems"].values())) / len(result["problems"])


def main() -> None:
    """Measures what the command line names, or all that is missing, and prints the ledger."""
    asked = argparse.ArgumentParser(prog="python -m claims.grpo_family", description=__doc__)
    asked.add_argument("--seed", type=int, choices=SEEDS)
    asked.add_argument("--arm", choices=tuple(ARMS))
    given = asked.parse_args()
    measure(seeds=SEEDS if given.seed is None else (given.seed,), arms=() if given.arm is None else (given.arm,))
    print(ledger())


if __name__ == "__main__":
    main()

"""Guesses by multi-token prediction: how often they are right, and what they save at batch 1.

`python -m bench speculation [--minutes 4] [--rounds 5]`: a model of the benches' shape with one module for multi-token
prediction reads texts made from seeds (fathom.tasks.needle) for a few minutes; then the same completions are made with
guesses and without, in turns, greedy and drawn, and the first tokens of 100,000 drawn completions are counted both
ways.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.measure import Pair, interleave, save
from fathom.core.chat import Sampling
from fathom.engine.engine import Engine
from fathom.engine.settings import EngineSettings
from fathom.model import weights
from fathom.systems import start
from fathom.tasks.needle import document

NEW, BAR = 128, 1.3
MODEL = {"preset": "bench-10m", "num_nextn_predict_layers": 1, "vocab_size": 560}
TEXTS = {"task": "fathom.tasks.needle:NeedleTask", "learn": "document", "use": "solution", "length": 255}


def trained(root: Path, minutes: float) -> Path:
    """A model directory; the learning rate falls by the number of tokens that so many minutes are expected to allow."""
    tokens = int(minutes * 60 * 2500)
    start("tokenizer", {"data": [{**TEXTS, "count": 500}], "vocab_size": 560}, root / "words", 0, "bench")
    start("pretrain", {
        "model": MODEL, "tokenizer": str(root / "words" / "model"), "data": [{**TEXTS, "count": 4000}],
        "tokens": tokens, "tokens_per_step": 4096, "sequence_length": 256,
        "optim": {"lr": 2e-3, "warmup": 20, "decay": 0.3},
        "held_out_every": 1000, "log_every": 20}, root / "base", 0, "bench")
    return root / "base" / "model"


def main(words: Sequence[str] = ()) -> None:
    """Prints and saves the table."""
    parser = argparse.ArgumentParser(prog="python -m bench speculation", description=__doc__)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--draws", type=int, default=100_000)
    asked = parser.parse_args(list(words))
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = weights.load(trained(Path(folder), asked.minutes))
        plain, guessing = (Engine(model, tokenizer, EngineSettings(cache_gb=0.5, speculate=on)) for on in (False, True))
        assert guessing.drafter is not None
        prompts = [tokenizer.encode(document(60, f"prompt {i}")) for i in range(4)]
        pairs = []
        for name, temperature in (("greedy", 0.0), ("temperature 1", 1.0)):
            sampling = Sampling(max_tokens=NEW, temperature=temperature, ignore_stop=True)
            said: dict[str, list[tuple[int, ...]]] = {}

            def run(engine: Engine, side: str, sampling: Sampling = sampling, said: dict = said) -> None:
                said[side] = [engine.complete([prompt], sampling)[0][0].tokens for prompt in prompts]

            checked, accepted = guessing.drafter.checked, guessing.drafter.accepted
            seconds = interleave(lambda: run(guessing, "with"), lambda: run(plain, "without"), asked.rounds)
            same = float(np.mean([a == b for a, b in zip(said["with"], said["without"], strict=True)]))
            share = (guessing.drafter.accepted - accepted) / (guessing.drafter.checked - checked)
            pairs.append(Pair(f"guesses beside none, batch 1, {name}", *seconds, bar=BAR, work=NEW * len(prompts),
                              notes={"equal completions": same, "guesses that were right": share}))
            print(pairs[-1].line(), f"right: {share:.3f}, equal completions: {same}", flush=True)
        counts = []
        for engine in (plain, guessing):
            sampling = Sampling(max_tokens=3, seed=1)
            counts.append(Counter(c.tokens for c in engine.complete(prompts[:1], sampling, n=asked.draws)[0]))
        statistic, degrees = _chi_square(*counts)
        pairs[-1].notes |= {"draws": asked.draws, "chi-square": statistic, "degrees of freedom": degrees}
        print(f"{asked.draws} draws of three tokens each way: chi-square {statistic:.1f} with {degrees} degrees of "
              f"freedom, {len(counts[0])} different ones, {'equal' if counts[0] == counts[1] else 'not equal'} counts")
    print(f"saved in {save('speculation', pairs, {})}")


def _chi_square(one: Counter[tuple[int, ...]], two: Counter[tuple[int, ...]]) -> tuple[float, int]:
    """Of two samples of the same size, cells of fewer than 10 in all put together."""
    cells = [(one[key], two[key]) for key in one.keys() | two.keys()]
    large = [cell for cell in cells if sum(cell) >= 10]
    rest = [cell for cell in cells if sum(cell) < 10]
    if rest:
        large.append((sum(a for a, _ in rest), sum(b for _, b in rest)))
    return sum((a - b) ** 2 / (a + b) for a, b in large), len(large) - 1


if __name__ == "__main__":
    main()

"""Mixed load: requests of all lengths arrive by chance, half as many again as the engine can serve.

`python -m bench serving [--requests 300] [--rounds 5]`, on the model of all benches. The steady state: the batch is
always full, every prompt and every completion has 260 tokens, a finished one is replaced at once. The mixed load:
prompts and completions of 8 to 512 tokens (260 on average) arrive with exponential gaps at 1.5 × the steady state's
rate, until all are served. Both count completion tokens while the batch is full, and both compute their prompts on the
way. How fast a full batch decodes when no prompt has to be computed is told beside.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bench import models
from bench.measure import Pair, save
from fathom.core.chat import Sampling
from fathom.engine.engine import Engine
from fathom.engine.request import Request
from fathom.engine.settings import EngineSettings

BATCH, SHORTEST, LONGEST = 32, 8, 512
OVERLOAD, BAR = 1.5, 0.85


def decoding(engine: Engine, seed: int, tokens: int = 260) -> float:
    """Completion tokens a second of a full batch whose prompts are there."""
    rng = np.random.default_rng(seed)
    engine.reset()
    for _ in range(BATCH):
        _ask(engine, rng, tokens, tokens)
    while engine.scheduler.waiting or any(not job.drawn for job in _running(engine)):
        engine.step()
    return _rate(engine, until=lambda: len(engine.scheduler.running) < BATCH)


def steady(engine: Engine, seed: int, tokens: int = 260, counted: int = 8000) -> float:
    """Completion tokens a second while every request that is finished is replaced at once."""
    rng = np.random.default_rng(seed)
    engine.reset()
    for _ in range(BATCH):  # so that they do not all end together
        _ask(engine, rng, tokens, int(rng.integers(SHORTEST, tokens)))
    old = set(engine.scheduler.waiting)

    def refill() -> None:
        for _ in range(BATCH - len(engine.scheduler.running) - len(engine.scheduler.waiting)):
            _ask(engine, rng, tokens, tokens)

    while old & {*engine.scheduler.running, *engine.scheduler.waiting}:
        engine.step()
        refill()
    first = engine.decoded
    rate = _rate(engine, until=lambda: engine.decoded - first > counted, after=refill)
    engine.reset()
    return rate


def _ask(engine: Engine, rng: np.random.Generator, prompt: int, completion: int) -> Request:
    (request,) = engine.prepare(rng.integers(400, 8192, prompt).tolist(), Sampling(
        max_tokens=completion, ignore_stop=True, seed=int(rng.integers(1 << 30))))
    engine.submit([request])
    return request


def _running(engine: Engine) -> list[Request]:
    return [job for job in engine.scheduler.running if isinstance(job, Request)]


def _rate(engine: Engine, until: Callable[[], bool], after: Callable[[], None] = lambda: None) -> float:
    first, began = engine.decoded, time.perf_counter()
    while not until():
        engine.step()
        after()
    return (engine.decoded - first) / (time.perf_counter() - began)


def mixed(engine: Engine, rate: float, requests: int, seed: int) -> dict[str, float]:
    """Tokens a second while at least a batch is there, and how long first tokens take."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(SHORTEST, LONGEST + 1, (requests, 2))
    per_second = OVERLOAD * rate / lengths[:, 1].mean()
    arrivals = np.cumsum(rng.exponential(1 / per_second, requests))
    asked: dict[Request, float] = {}
    first: dict[Request, float] = {}
    engine.reset()
    prefilled, decoded = engine.prefilled, engine.decoded
    began = time.perf_counter()
    full_from = full_to = None
    counted = (0, 0)
    sent = 0
    while sent < requests or engine.busy:
        now = time.perf_counter() - began
        while sent < requests and arrivals[sent] <= now:
            asked[_ask(engine, rng, int(lengths[sent, 0]), int(lengths[sent, 1]))] = float(arrivals[sent])
            sent += 1
        if not engine.busy:
            time.sleep(0.001)
            continue
        got = engine.step()
        now = time.perf_counter() - began
        for request in got:
            first.setdefault(request, now)
        full = len(engine.scheduler.running) == BATCH
        if full and full_from is None:
            full_from, counted = now, (engine.decoded, engine.prefilled)
        if full:
            full_to = now
            last = (engine.decoded, engine.prefilled)
    assert full_from is not None and full_to is not None
    waited = np.array([first[request] - at for request, at in asked.items()])
    return {
        "completion tokens/s": (last[0] - counted[0]) / (full_to - full_from),
        "prompt tokens/s": (last[1] - counted[1]) / (full_to - full_from),
        "all tokens": engine.decoded - decoded + engine.prefilled - prefilled,
        "first token, median s": float(np.median(waited)),
        "first token, p99 s": float(np.quantile(waited, 0.99)),
        "preemptions": engine.scheduler.preemptions,
    }


def main(words: Sequence[str] = ()) -> None:
    """Prints and saves the table."""
    parser = argparse.ArgumentParser(prog="python -m bench serving", description=__doc__)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prefill-tokens", type=int, default=512, help="engine.prefill_tokens")
    asked = parser.parse_args(list(words))
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = models.ours(Path(folder) / "model")
        engine = Engine(model, tokenizer, EngineSettings(
            batch=BATCH, cache_gb=1, prefill_tokens=asked.prefill_tokens))
        steady(engine, 0)
        rates, alone, found = [], [], []
        for number in range(asked.rounds):
            alone.append(decoding(engine, number))
            rates.append(steady(engine, number))
            found.append(mixed(engine, rates[-1], asked.requests, number))
            print(f"decoding alone {alone[-1]:,.0f} tok/s, steady {rates[-1]:,.0f} tok/s; mixed",
                  {k: round(v, 2) for k, v in found[-1].items()}, flush=True)
    tokens = [1 / one["completion tokens/s"] for one in found]
    pairs = [Pair("mixed load beside the steady state", tokens, [1 / r for r in rates], bar=BAR, work=1,
                  notes={"rounds": found}),
             Pair("mixed load beside decoding alone", tokens, [1 / r for r in alone], work=1)]
    for pair in pairs:
        print(pair.line())
    for name in ("first token, median s", "first token, p99 s"):
        print(f"{name}: {statistics.median(one[name] for one in found):.2f}")
    print(f"saved in {save('serving', pairs, {})}")


if __name__ == "__main__":
    main()

"""Leakage: whether a model continues test problems word for word, as if it had read them (Omni-MATH, analysis)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from fathom.core.config import Settings
from fathom.core.run import Run


class Leakage(Settings):
    """Asks a model for the next tokens at a few places of every test problem, and counts what it knows.

    A problem counts as contaminated where the predicted tokens are the true ones at all places (`match`: or at any).
    Writes DIR/records and DIR/leakage.json. Rates below 1 % are a handful of problems: they are printed as counts.
    """

    model: Path = Field(description="the model directory")
    tasks: tuple[str | dict[str, Any], ...] = Field(min_length=1, description="tasks whose test problems are tried")
    problems: int | None = Field(None, ge=1, description="most problems per task; default: all")
    places: int = Field(5, ge=1, description="positions drawn in each text")
    tokens: int = Field(5, ge=1, description="tokens that must be predicted at each position")
    match: Literal["all", "any"] = Field("all", description="at how many places; the paper does not say")
    scored: Path | None = Field(None, description="an evaluation of this model: how many of these it had right")
    most_tokens: int = Field(4096, ge=32, description="what is read of a longer text")
    device: str = Field("auto", description="auto, cpu, cuda or mps")
    dtype: str = Field("auto", description="auto, float32 or bfloat16")


def leakage(cfg: Leakage, run: Run) -> None:
    """Tries every problem of `cfg`; one with too short a text is a reject."""
    import json

    import numpy as np
    import pyarrow

    from fathom.core import disk
    from fathom.core.errors import FathomError, Stopped
    from fathom.core.records import Record, RecordStore
    from fathom.model import weights
    from fathom.model.cost import cost
    from fathom.model.device import place
    from fathom.tasks.overlap import asked
    from fathom.tasks.task import load_task

    tasks = [load_task(spec) for spec in cfg.tasks]
    device, dtype = place(cfg.device, cfg.dtype, cost(weights.read_config(cfg.model)).parameters)
    model, tokenizer = weights.load(cfg.model, dtype, device)
    model.eval()
    right = _right(cfg.scored, cfg.model)
    schema = pyarrow.schema([("task", pyarrow.string()), ("problem", pyarrow.string()), ("places", pyarrow.int64()),
                             ("predicted", pyarrow.int64()), ("difficulty", pyarrow.float64())])
    with RecordStore(run.dir / "records", schema, commit_every=100) as store:
        problems = [(task.name, problem) for task in tasks for problem in task.problems("test", cfg.problems)]
        records = {f"{name}:{problem.id}": Record(f"{name}:{problem.id}", problem.to_json(), name)
                   for name, problem in problems}
        todo = {record.id for record in store.todo(records.values())}
        for number, (name, problem) in enumerate(problems):
            record = records[f"{name}:{problem.id}"]
            if record.id not in todo:
                continue
            tokens = tokenizer.encode(asked(problem, solutions=True))[: cfg.most_tokens]
            if len(tokens) < 2 * cfg.tokens + 1:
                store.reject(record, "text is too short")
                continue
            # never at the very beginning, where there is nothing to remember it by
            last = len(tokens) - cfg.tokens
            drawn = run.rng("places", name, problem.id).permutation(np.arange(cfg.tokens, last + 1))[: cfg.places]
            known = _known(model, tokens, [int(at) for at in drawn], cfg.tokens)
            about = problem.meta.get("about") or problem.meta
            difficulty = about.get("difficulty")
            store.done(record, [record.child(0, {
                "task": name, "problem": problem.id, "places": len(known), "predicted": sum(known),
                "difficulty": float(difficulty) if isinstance(difficulty, int | float) else None})])
            if number % 20 == 0:
                run.timing(number, total=len(problems))
                if reason := run.stop_requested:
                    raise Stopped(f"stopped after {number} of {len(problems)} problems ({reason}); the same command "
                                  "continues")
    ledger = store.ledger()
    ledger.check()
    if ledger.rejected:
        run.log.warning("left out: %s", ", ".join(f"{reason} ({n})" for reason, n in ledger.rejected.items()))
    if not ledger.done:
        raise FathomError(f"none of {ledger.inputs} problems has a text long enough for {cfg.tokens} tokens at a "
                          "place; lower tokens, or give problems with solutions")
    found: dict[str, Any] = {"model": str(cfg.model), "places": cfg.places, "tokens": cfg.tokens, "match": cfg.match,
                             "tasks": {}}
    for task in tasks:
        rows = [record.data for record in store.kept() if record.data["task"] == task.name]
        hit = [row for row in rows
               if (row["predicted"] == row["places"] if cfg.match == "all" else row["predicted"] > 0)]
        both = [row for row in hit if (task.name, row["problem"]) in right]
        found["tasks"][task.name] = told = {
            "problems": len(rows), "contaminated": len(hit), "difficulty": _mean(hit),
            "ids": [row["problem"] for row in hit],
            "places predicted": sum(row["predicted"] for row in rows), "places": sum(row["places"] for row in rows)}
        said = ""
        if cfg.scored is not None:
            told |= {"contaminated and right": len(both), "difficulty of these": _mean(both)}
            said = f"; {len(both)} of them were answered right"
        run.log.info("%s: %d of %d problems are continued word for word at %s of %d places%s (single places: %d of %d)",
                     task.name, len(hit), len(rows), cfg.match, cfg.places, said, told["places predicted"],
                     told["places"])
    disk.write_atomic(run.dir / "leakage.json", json.dumps(found, indent=2, ensure_ascii=False))
    run.finish(ledger=str(ledger), contaminated={name: told["contaminated"] for name, told in found["tasks"].items()})


def _known(model: Any, tokens: list[int], places: list[int], length: int) -> list[bool]:
    """At which places greedy continuation gives the true tokens.

    One pass over the true text tells: a continuation that is right so far has the true text as its context.
    """
    import torch

    from fathom.model.layout import Layout

    device = model.embed_tokens.weight.device
    tokens_T = torch.tensor(tokens, device=device)
    with torch.inference_mode():
        hidden_TD = model(tokens_T, Layout.packed([len(tokens)]).to(device))
        wanted_PL = torch.tensor([[at + i for i in range(length)] for at in places], device=device)
        guessed_PL = model.logits(hidden_TD[(wanted_PL - 1).flatten()]).argmax(-1).view_as(wanted_PL)
        known_P = (guessed_PL == tokens_T[wanted_PL]).all(-1)
    return [bool(known) for known in known_P.tolist()]


def _right(scored: Path | None, model: Path) -> set[tuple[str, str]]:
    """(task, problem) of an evaluation whose samples were right, at least one of them."""
    from fathom.core import disk
    from fathom.core.errors import UsageError
    from fathom.core.records import RecordStore

    if scored is None:
        return set()
    if not (scored / "scores.json").is_file():
        raise UsageError(f"scored={scored}: holds no scores.json; name the directory of a finished evaluation")
    scored_model = disk.read_json(scored / "scores.json").get("model")
    if scored_model != str(model):
        raise UsageError(f"scored={scored}: is an evaluation of {scored_model}, not of {model}; name one of this model")
    return {(record.data["task"], record.data["problem"]) for record in RecordStore(scored / "records").kept()
            if any(sample["outcome"] == "right" for sample in record.data["samples"])}


def _mean(rows: list[dict[str, Any]]) -> float | None:
    values = [row["difficulty"] for row in rows if row["difficulty"] is not None]
    return sum(values) / len(values) if values else None

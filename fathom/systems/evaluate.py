"""Evaluate: how often a model is right on problems kept apart, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from fathom.core.chat import Sampling
from fathom.core.config import Settings
from fathom.core.run import Run
from fathom.engine.settings import COMPILING, EngineSettings


class Evaluate(Settings):
    """Asks a model the test problems of tasks and scores what comes back.

    Writes DIR/scores.json (accuracy with its 95 % interval, pass@k, maj@k, outcomes) and every answer to DIR/records.
    The headline is right / all asked; over 1 % not judged exits with 3.
    """

    aliases: ClassVar[Mapping[str, str]] = {"num_samples": "k", "limit": "problems"}
    elsewhere: ClassVar[Mapping[str, str]] = {
        "temperature": "it belongs to sampling; write sampling.temperature=0.6",
        "max_tokens": "it belongs to sampling; write sampling.max_tokens=256",
    }

    model: Path = Field(description="the model directory to evaluate")
    tasks: tuple[str | dict[str, Any], ...] = Field(min_length=1, description="tasks whose test problems are asked")
    problems: int = Field(500, ge=1, description="most problems per task")
    k: int = Field(1, ge=1, description="completions per problem")
    sampling: Sampling = Sampling(max_tokens=128)
    engine: EngineSettings = EngineSettings()
    chunk: int = Field(250, ge=1, description="problems answered and saved at a time; a kill loses at most these")
    device: str = Field("auto", description="auto, cpu, cuda or mps")
    dtype: str = Field("auto", description="auto, float32 or bfloat16")

    def plan(self) -> dict[str, Any]:
        """What this will cost, for --dry-run."""
        return {"completions": self.problems * self.k * len(self.tasks),
                "most sampled tokens": self.problems * self.k * len(self.tasks) * self.sampling.max_tokens}


MOST_FAILED = 0.01


def evaluate(cfg: Evaluate, run: Run) -> None:
    """Scores the model of `cfg`; raises AuditFailed, everything written, where over 1 % could not be judged."""
    import json
    import math
    import sys

    import pyarrow

    from fathom.core import disk
    from fathom.core.errors import AuditFailed, Stopped
    from fathom.core.records import Record, RecordStore, json_field
    from fathom.engine.engine import Engine
    from fathom.model import weights
    from fathom.model.cost import cost
    from fathom.model.device import place
    from fathom.tasks.judging import judge_groups, tell_left_out
    from fathom.tasks.scores import score_task
    from fathom.tasks.task import Problem, load_task

    tasks = [load_task(spec) for spec in cfg.tasks]
    names = [task.name for task in tasks]
    labels = [name if names.count(name) == 1 else f"{name} #{i + 1}" for i, name in enumerate(names)]
    device, dtype = place(cfg.device, cfg.dtype, cost(weights.read_config(cfg.model)).parameters)
    model, tokenizer = weights.load(cfg.model, dtype, device)
    if cfg.engine.compile:
        run.log.info(COMPILING)
    engine = Engine(model, tokenizer, cfg.engine)
    sampling = cfg.sampling.model_copy(update={"seed": run.seed("sample")})
    schema = pyarrow.schema([("task", pyarrow.string()), ("problem", pyarrow.string()), json_field("prompt"),
                             ("answer", pyarrow.string()), json_field("samples")])
    # problems and randomness are the same for every model under one seed, so that two evaluations compare in pairs
    # One commit per chunk and none inside it: what a batch holds moves the last bits of its logits, so what a kill
    # leaves must be asked in the same chunks again.
    with RecordStore(run.dir / "records", schema, commit_every=sys.maxsize, commit_seconds=math.inf) as store:
        waiting = [
            (label, task, problem, Record(f"{label}:{problem.id}", problem.to_json(), task.name))
            for label, task in zip(labels, tasks, strict=True)
            for problem in task.problems("test", cfg.problems, seed=run.seed("problems"))
        ]
        tell_left_out(tasks, run.log)
        for label, task in zip(labels, tasks, strict=True):
            if (found := sum(item[0] == label for item in waiting)) < cfg.problems:
                run.log.warning("%s: problems=%d were asked for, its test split has %d%s", label, cfg.problems, found,
                                f"; {apart}" if (apart := getattr(task, "apart", "")) else "")
        todo = {record.id for record in store.todo(item[3] for item in waiting)}
        left = [item for item in waiting if item[3].id in todo]
        done = len(waiting) - len(left)
        for first in range(0, len(left), cfg.chunk):
            chunk = left[first: first + cfg.chunk]
            asked: list[Problem] = [problem for _, _, problem, _ in chunk]
            groups = engine.generate([p.prompt for p in asked], sampling, cfg.k)
            verdicts = judge_groups(list({id(task): task for _, task, _, _ in chunk}.values()), asked, groups, None)
            for (label, _, problem, record), group, judged in zip(chunk, groups, verdicts, strict=True):
                samples = [{"text": c.text, "outcome": v.outcome.value, "reason": v.reason, "extracted": v.answer,
                            "finish": c.finish, "tokens": len(c.tokens)} for c, v in zip(group, judged, strict=True)]
                store.done(record, [record.child(0, {
                    "task": label, "problem": problem.id, "prompt": [m.to_json() for m in problem.prompt],
                    "answer": problem.answer, "samples": samples})])
            store.commit()
            done += len(chunk)
            run.timing(done, total=len(waiting))
            if (reason := run.stop_requested) and done < len(waiting):
                raise Stopped(f"stopped after {done} of {len(waiting)} problems ({reason}); the same command continues")
    ledger = store.ledger()
    ledger.check()
    rows: dict[str, list[dict[str, Any]]] = {label: [] for label in labels}
    for record in store.kept():
        rows[record.data["task"]].append(record.data)
    scores = [score_task(label, rows[label]) for label in labels]
    text = json.dumps({"model": str(cfg.model), "tasks": scores}, indent=2, allow_nan=False)
    disk.write_atomic(run.dir / "scores.json", text)
    for score in scores:
        run.log.info("%s: %s", score["task"], score["text"])
    failed = max(score["failed"] / score["samples"] for score in scores)
    if failed > MOST_FAILED:  # never finished then: the same command, and a recipe that goes on, must hear it again
        raise AuditFailed(f"{100 * failed:.1f} % of the answers could not be judged, more than "
                          f"{100 * MOST_FAILED:.0f} %: the score is not to be trusted; the reasons are in "
                          f"`fathom show {run.dir}`")
    run.finish(ledger=str(ledger), scores={score["task"]: score["accuracy"] for score in scores})

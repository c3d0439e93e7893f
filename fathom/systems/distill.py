"""Distill: completions sampled from a teacher, judged, and the right ones kept as examples (DeepSeek-R1 §2.3.3)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from fathom.core.chat import Sampling
from fathom.core.config import Settings
from fathom.core.run import Run
from fathom.engine.settings import COMPILING, EngineSettings


class Distill(Settings):
    """Samples completions of a model on training problems, judges them and keeps what is right.

    Writes DIR/records: chats ready for `fathom sft data=[DIR]`, and every problem that gave none, by reason.
    """

    aliases: ClassVar[Mapping[str, str]] = {"num_generations": "n"}

    init: Path = Field(description="the teacher's model directory")
    tasks: tuple[str | dict[str, Any], ...] = Field(min_length=1, description="where the training problems come from")
    problems: int = Field(500, ge=1, description="problems asked in all")
    n: int = Field(4, ge=1, description="completions per problem")
    keep: Literal["right", "first_right", "all"] = Field(
        "right", description="every right one, the first right one of a problem, or all that were judged")
    sampling: Sampling = Sampling(max_tokens=128)
    engine: EngineSettings = EngineSettings()
    chunk: int = Field(250, ge=1, description="problems answered and saved at a time; a kill loses at most these")
    device: str = Field("auto", description="auto, cpu, cuda or mps")
    dtype: str = Field("auto", description="auto, float32 or bfloat16")


def distill(cfg: Distill, run: Run) -> None:
    """Makes the data set of `cfg`; the result is DIR/records."""
    import math
    import sys

    import pyarrow

    from fathom.core.chat import Message
    from fathom.core.errors import Stopped
    from fathom.core.records import Record, RecordStore
    from fathom.engine.engine import Engine
    from fathom.judge.verdict import Outcome
    from fathom.model import weights
    from fathom.model.cost import cost
    from fathom.model.device import place
    from fathom.tasks.judging import Problems, judge_groups, tell_left_out
    from fathom.tasks.task import load_task

    tasks = [load_task(spec) for spec in cfg.tasks]
    device, dtype = place(cfg.device, cfg.dtype, cost(weights.read_config(cfg.init)).parameters)
    model, tokenizer = weights.load(cfg.init, dtype, device)
    if cfg.engine.compile:
        run.log.info(COMPILING)
    engine = Engine(model, tokenizer, cfg.engine)
    sampling = cfg.sampling.model_copy(update={"seed": run.seed("sample")})
    asked = Problems(tasks, run.seed("problems")).take(cfg.problems)
    tell_left_out(tasks, run.log)
    schema = pyarrow.schema([("messages", pyarrow.string()), ("outcome", pyarrow.string()),
                             ("answer", pyarrow.string()), ("tokens", pyarrow.int32())])
    # One commit per chunk and none inside it: what a batch holds moves the last bits of its logits, so what a kill
    # leaves must be asked in the same chunks again.
    with RecordStore(run.dir / "records", schema, commit_every=sys.maxsize, commit_seconds=math.inf) as store:
        problems = {f"{p.task}:{p.id}": p for p in asked}
        left = list(store.todo(Record(f"{p.task}:{p.id}", p.to_json(), p.task) for p in asked))
        for first in range(0, len(left), cfg.chunk):
            chunk = left[first: first + cfg.chunk]
            some = [problems[record.id] for record in chunk]
            groups = engine.generate([p.prompt for p in some], sampling, cfg.n)
            verdicts = judge_groups(tasks, some, groups, None)
            for record, problem, group, judged in zip(chunk, some, groups, verdicts, strict=True):
                kept = [(c, v) for c, v in zip(group, judged, strict=True)
                        if v.outcome is Outcome.RIGHT or (cfg.keep == "all" and v.outcome is not Outcome.FAILED)]
                if not kept:
                    failed = all(v.outcome is Outcome.FAILED for v in judged)
                    store.reject(record, "no completion could be judged" if failed else "no right completion")
                    continue
                if cfg.keep == "first_right":
                    kept = kept[:1]
                store.done(record, [
                    record.child(i, {
                        "messages": [m.to_json() for m in (*problem.prompt, Message("assistant", c.text))],
                        "outcome": v.outcome.value, "answer": problem.answer, "tokens": len(c.tokens)})
                    for i, (c, v) in enumerate(kept)])
            store.commit()
            run.timing(first + len(chunk), total=len(left))
            if (reason := run.stop_requested) and first + len(chunk) < len(left):
                raise Stopped(f"stopped after {first + len(chunk)} of {len(left)} problems ({reason}); "
                              "the same command continues")
    ledger = store.ledger()
    ledger.check()
    run.log.info("records: %s", ledger)
    if not ledger.outputs:
        run.log.warning("nothing was kept: the teacher was never right; teach it more, or ask easier problems")
    run.finish(ledger=str(ledger))

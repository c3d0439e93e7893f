"""Overlap: which training texts hold test problems, each of them listed."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from fathom.core.config import Settings
from fathom.core.run import Run


class Overlap(Settings):
    """Looks for the test problems of tasks in training data, by n-grams, and lists every text that holds one.

    Writes DIR/records (one record for each pair of training text and test problem) and DIR/overlap.json.
    """

    data: tuple[str | dict[str, Any], ...] = Field(
        min_length=1, description="training data: files, directories, hub names, whatever format their rows have")
    tasks: tuple[str | dict[str, Any], ...] = Field(
        min_length=1, description="tasks whose test problems are looked for")
    n: int = Field(10, ge=3, description="words that must stand in both in the same order; shorter problems whole")
    solutions: bool = Field(False, description="look for worked solutions too, not for questions alone")
    problems: int | None = Field(None, ge=1, description="most problems per task; default: all")

    @property
    def needed(self) -> tuple[str, ...]:
        """Packages without which this cannot run: none beyond the base."""
        return ()


def overlap(cfg: Overlap, run: Run) -> None:
    """Lists what `cfg` finds; a row that cannot be read is a reject by name."""
    import json

    import pyarrow

    from fathom.core import disk
    from fathom.core.errors import Stopped
    from fathom.core.records import RecordStore
    from fathom.tasks.hub import locate
    from fathom.tasks.overlap import Index, asked, texts
    from fathom.tasks.rows import BadRow, data_of, read
    from fathom.tasks.task import load_task

    index = Index(cfg.n)
    counts: dict[str, int] = {}
    for spec in cfg.tasks:
        task = load_task(spec)
        if apart := getattr(task, "apart", ""):
            run.log.warning("%s: only its test split is looked for, and %s; name the file as test for all its rows",
                            task.name, apart)
        for problem in task.problems("test", cfg.problems):
            index.add(task.name, problem.id, asked(problem, cfg.solutions))
            counts[task.name] = counts.get(task.name, 0) + 1
    if index.too_short:
        run.log.warning("%d problems have under 3 words and are not looked for, the first is %s of %s",
                        len(index.too_short), index.too_short[0][1], index.too_short[0][0])
    schema = pyarrow.schema([(name, pyarrow.string()) for name in ("task", "problem", "words", "where")]
                            + [("share", pyarrow.float64())])
    with RecordStore(run.dir / "records", schema) as store:
        for entry in cfg.data:
            options = {"data": entry} if isinstance(entry, str) else dict(entry)
            name = str(options.get("data", options.get("task")))
            found = locate(name, options.get("config"), options.get("revision"))
            for path in found.split(options.get("split", "train")):
                rows = (row.record(path, f"{path.name}:{i}:{row.id}") for i, row in enumerate(read(path), 1))
                for number, record in enumerate(store.todo(rows)):
                    try:
                        text = "\n".join(texts(data_of(record)))
                    except BadRow as bad:
                        store.reject(record, str(bad))
                        continue
                    store.done(record, [record.child(i, {
                        "task": index.items[hit.item][0], "problem": index.items[hit.item][1], "words": hit.words,
                        "where": record.source, "share": hit.share}) for i, hit in enumerate(index.hits(text))])
                    if number % 1000 == 0:
                        run.timing(number)
                        if reason := run.stop_requested:
                            raise Stopped(f"stopped in {path} ({reason}); the same command continues")
    ledger = store.ledger()
    ledger.check()
    seen: dict[str, dict[str, float]] = {name: {} for name in counts}
    inputs: set[str] = set()
    for hit in store.kept():
        found_in = seen[hit.data["task"]]
        found_in[hit.data["problem"]] = max(hit.data["share"], found_in.get(hit.data["problem"], 0.0))
        inputs.add(hit.data["where"])
    summary: dict[str, Any] = {
        "n": cfg.n, "texts": ledger.inputs, "texts with a test problem": len(inputs),
        "tasks": {name: {"problems": counts[name], "found": len(found_in),
                         "found half": sum(share >= 0.5 for share in found_in.values()),
                         "found whole": sum(share == 1 for share in found_in.values()),
                         "ids": sorted(found_in)} for name, found_in in seen.items()},
    }
    disk.write_atomic(run.dir / "overlap.json", json.dumps(summary, indent=2, ensure_ascii=False))
    for name, told in summary["tasks"].items():
        run.log.info("%s: %d of %d test problems share %d words in a row with the training data, %d at least half of "
                     "theirs, %d all", name, told["found"], told["problems"], cfg.n, told["found half"],
                     told["found whole"])
    run.log.info("%d of %d training texts hold a test problem; each is listed by `fathom show %s`", len(inputs),
                 ledger.inputs, run.dir)
    run.finish(ledger=str(ledger), texts=len(inputs), found={name: len(found_in) for name, found_in in seen.items()})

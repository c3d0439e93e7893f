"""Evaluate: how often a model is right on problems kept apart, how sure that is, and what could not be judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from fathom.core.chat import Completion, Sampling
from fathom.core.client.settings import ClientSettings
from fathom.core.config import Settings
from fathom.core.run import Run
from fathom.engine.settings import COMPILING, EngineSettings
from fathom.judge.model_judge import JudgeSettings
from fathom.tasks.answers import Given, as_given, client
from fathom.tasks.export import Formats
from fathom.tasks.stored import StoredSettings

if TYPE_CHECKING:
    from fathom.core.records import Record
    from fathom.judge.model_judge import Judgement, ModelJudge
    from fathom.tasks.answers import Source
    from fathom.tasks.task import Problem, Task

Protocols = Literal["own", "r1"]
R1_K = 16  # where DeepSeek-R1's protocol names no number for a task
R1_TOKENS = 32_768
MOST_FAILED = 0.01
MOST_UNREAD = 0.5  # from where the reader is told how answers may be found
NO_ANSWERS = "no stored answer, or too few"


class Evaluate(Settings):
    """Asks a model the test problems of tasks and scores what comes back.

    The model is a directory (`model`), an endpoint (`endpoint.url=…`) or a file of answers (`stored`). Writes
    DIR/scores.json and scores.txt (accuracy with its 95 % interval, pass@k, maj@k, outcomes, tables) and every answer
    to DIR/records. The headline is right / all asked; over 1 % not judged exits with 3.
    """

    aliases: ClassVar[Mapping[str, str]] = {"num_samples": "k", "limit": "problems"}
    elsewhere: ClassVar[Mapping[str, str]] = {
        "temperature": "it belongs to sampling; write sampling.temperature=0.6",
        "max_tokens": "it belongs to sampling; write sampling.max_tokens=256",
    }
    manners: ClassVar[tuple[str, ...]] = ("format",)

    model: Path | None = Field(None, description="the model directory to evaluate")
    endpoint: ClientSettings | None = Field(None, description="an OpenAI-compatible endpoint to evaluate")
    stored: StoredSettings | None = Field(None, description="a file of answers, or an evaluation, to judge (anew)")
    tasks: tuple[str | dict[str, Any], ...] = Field(min_length=1, description="tasks whose test problems are asked")
    problems: int = Field(500, ge=1, description="most problems per task")
    k: int = Field(1, ge=1, description="completions per problem; of stored answers, where it is not given, all")
    protocol: Protocols = Field(
        "own", description="r1: temperature 0.6, top-p 0.95, 32,768 tokens, k as DeepSeek-R1 has it for the task")
    sampling: Sampling = Sampling(max_tokens=128)
    judge: JudgeSettings | None = Field(None, description="a model that judges; the task's own judge stands beside it")
    best_by: str | None = Field(
        None, description="by what the best of N is chosen: logprob (mean of the tokens'), or my_package.module:score")
    format: Formats | None = Field(None, description="write the results as lm-eval or lighteval would, into DIR/export")
    engine: EngineSettings = EngineSettings()
    chunk: int = Field(250, ge=1, description="problems answered and saved at a time; a kill loses at most these")
    device: str = Field("auto", description="auto, cpu, cuda or mps")
    dtype: str = Field("auto", description="auto, float32 or bfloat16")

    @model_validator(mode="after")
    def _fit(self) -> Evaluate:
        given = [name for name in ("model", "endpoint", "stored") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"model, endpoint, stored: {len(given)} of them are given; give one, whom to evaluate")
        if self.protocol == "r1":
            for name in ("temperature", "top_p"):
                if getattr(self.sampling, name) != getattr(Sampling(), name):
                    raise ValueError(f"sampling.{name}: protocol=r1 sets it; leave one of the two out")
        if self.stored is not None and (self.protocol != "own" or "sampling" in self.model_fields_set):
            raise ValueError("protocol and sampling: stored answers were drawn before; leave both out")
        if self.best_by == "logprob" and self.stored is not None:
            raise ValueError("best_by=logprob: stored answers have no log-probabilities; name their stored.score")
        return self

    @property
    def needed(self) -> tuple[str, ...]:
        """Packages without which this cannot run: only a model of one's own needs torch."""
        from fathom.systems import NEEDED

        return NEEDED if self.model is not None else ()

    @property
    def subject(self) -> str:
        """What is evaluated, in words."""
        if self.endpoint is not None:
            return f"{self.endpoint.model} at {self.endpoint.base}"
        return str(self.model if self.stored is None else self.stored.path)

    def check(self) -> None:
        """Raises UsageError for what would otherwise be found when every answer is paid for, or in a run begun."""
        from fathom.judge.model_judge import labelled, template
        from fathom.tasks.stored import Stored

        _scorer(self.best_by)
        if self.judge is not None:
            template(self.judge.prompt)
            if self.judge.labelled is not None:
                labelled(self.judge.labelled)
        if self.stored is not None:
            Stored(self.stored)

    def asked(self, task: object) -> tuple[int, Sampling]:
        """Completions per problem of a task and how they are drawn, by the protocol."""
        if self.protocol == "own":
            return self.k, self.sampling
        k = self.k if "k" in self.model_fields_set else getattr(task, "k", None) or R1_K
        tokens = self.sampling.max_tokens if "sampling" in self.model_fields_set else R1_TOKENS
        return k, self.sampling.model_copy(update={"temperature": 0.6, "top_p": 0.95, "max_tokens": tokens})

    def plan(self) -> dict[str, Any]:
        """What this will cost, for --dry-run."""
        found: dict[str, Any] = {"evaluated": self.subject}
        if self.stored is None:
            most = self.problems * self.k * len(self.tasks)
            if self.protocol == "own":
                found |= {"completions, at most": most, "most sampled tokens": most * self.sampling.max_tokens}
                if self.endpoint is not None and self.endpoint.price_out is not None:
                    found["price of these tokens, at most"] = round(
                        most * self.sampling.max_tokens * self.endpoint.price_out / 1e6, 4)
            else:
                found |= {"completions": "as many as the protocol asks for each task (k)"}
        if self.judge is not None:
            found["judged by"] = self.judge.endpoint.model
        return found


class Waiting(NamedTuple):
    """One problem to be answered and judged: under which label, and its key in the stores."""

    label: str
    task: Task
    problem: Problem
    key: str


def evaluate(cfg: Evaluate, run: Run) -> None:
    """Scores what `cfg` names; raises AuditFailed, everything written, where over 1 % could not be judged."""
    from fathom.core import disk
    from fathom.core.errors import AuditFailed
    from fathom.core.records import RecordStore
    from fathom.tasks.task import load_task

    judge = None if cfg.judge is None else _judge(cfg.judge, run)
    tasks = [load_task(spec) for spec in cfg.tasks]
    names = [task.name for task in tasks]
    labels = [name if names.count(name) == 1 else f"{name} #{i + 1}" for i, name in enumerate(names)]
    # problems and randomness are the same for every model under one seed, so that two evaluations compare in pairs
    waiting = _problems(cfg, run, tasks, labels)
    _answer(cfg, run, waiting)
    with RecordStore(run.dir / "answers") as answers:
        given = {record.data["key"]: record.data for record in answers.kept()}
    judged = _judged(cfg, run, judge, waiting, given)
    judged.check()
    scores, about = _scores(cfg, run, labels, tasks, judge)
    disk.write_atomic(run.dir / "scores.json", _json({"model": cfg.subject, **about, "tasks": scores}))
    _tell(cfg, run, scores, about)
    failed = max(score["failed"] / score["samples"] for score in scores)
    if failed > MOST_FAILED:  # never finished then: the same command, and a recipe that goes on, must hear it again
        raise AuditFailed(f"{100 * failed:.1f} % of the answers could not be judged, more than "
                          f"{100 * MOST_FAILED:.0f} %: the score is not to be trusted; the reasons are in "
                          f"`fathom show {run.dir} --outcome failed`")
    run.finish(ledger=str(judged), scores={score["task"]: score["accuracy"] for score in scores})


def _problems(cfg: Evaluate, run: Run, tasks: Sequence[Task], labels: Sequence[str]) -> list[Waiting]:
    from fathom.tasks.judging import tell_left_out

    waiting = [
        Waiting(label, task, problem, f"{label}:{problem.id}")
        for label, task in zip(labels, tasks, strict=True)
        for problem in task.problems("test", cfg.problems, seed=run.seed("problems"))
    ]
    tell_left_out(tasks, run.log)
    for label, task in zip(labels, tasks, strict=True):
        if (found := sum(item.label == label for item in waiting)) < cfg.problems:
            apart = getattr(task, "apart", "")
            run.log.warning("%s: problems=%d were asked for, its test split has %d%s", label, cfg.problems, found,
                            f"; {apart}" if apart else "")
    return waiting


# First all answers, then all judgements: what a judging model will cost is known before it is asked anything.


def _answer(cfg: Evaluate, run: Run, waiting: Sequence[Waiting]) -> None:
    """Every problem's answers to DIR/answers. A problem without stored answers is a reject."""
    import math
    import sys
    import time

    from fathom.core.errors import Stopped, UsageError
    from fathom.core.records import Record, RecordStore

    # One commit per chunk and none inside it: what a batch holds moves the last bits of its logits, so what a kill
    # leaves must be asked in the same chunks again.
    with RecordStore(run.dir / "answers", commit_every=sys.maxsize, commit_seconds=math.inf) as store:
        records = {item.key: Record(item.key, {"key": item.key}, item.task.name) for item in waiting}
        todo = {record.id for record in store.todo(records.values())}
        left = [item for item in waiting if item.key in todo]
        done, began, tokens = len(waiting) - len(left), time.monotonic(), 0
        if not left:
            return
        source, beyond, counts = _source(cfg, run), 0, list[int]()
        every = cfg.stored is not None and "k" not in cfg.model_fields_set
        for chunk in _chunks(left, len(left) if source.whole else cfg.chunk):
            k, sampling = cfg.asked(chunk[0].task)
            sampling = sampling.model_copy(update={"seed": run.seed("sample")})
            progress = _progress(run, done, len(chunk), len(waiting), "answers", source.whole)
            groups = source.answers([item.problem for item in chunk], sampling, k, progress)
            for item, group in zip(chunk, groups, strict=True):
                wanted = len(group) if every else k
                counts.append(len(group))
                if not group or len(group) < wanted:
                    store.reject(records[item.key], "no stored answer" if not group else f"fewer than k={k} answers")
                    continue
                beyond += len(group) - wanted
                store.done(records[item.key], [records[item.key].child(0, {
                    "key": item.key, "samples": [one._asdict() for one in group[:wanted]]})])
                tokens += sum(one.tokens or 0 for one in group[:wanted])
            store.commit()
            done += len(chunk)
            run.timing(done, total=len(waiting), tokens=tokens)
            if (reason := run.stop_requested) and done < len(waiting):
                raise Stopped(f"stopped after {done} of {len(waiting)} problems ({reason}); the same command continues")
        if cfg.stored is not None and counts and max(counts) < (1 if every else cfg.k):
            raise UsageError(
                f"stored={cfg.stored.path}: " + (
                    f"no problem has k={cfg.k} answers, at most {max(counts)}; lower k" if max(counts) else
                    "holds an answer to none of the problems that are asked; give the tasks that were answered"))
        if beyond:
            run.log.warning("k=%d: %d stored answers beyond it are not judged; leave k out for all", cfg.k, beyond)
        seconds = time.monotonic() - began
        told = {**({"tokens": f"{tokens:,}"} if tokens else {}), **source.summary()}
        run.log.info("answered: %d problems in %.0f s%s", len(left), seconds,
                     "".join(f", {name} {value}" for name, value in told.items()))


def _progress(run: Run, done: int, chunk: int, total: int, what: str, may_stop: bool) -> Callable[[int, int], None]:
    """Tells of single answers where the panel looks; raises Stopped where what is done is journalled."""
    import time

    from fathom.core.errors import Stopped

    last = [time.monotonic()]

    def progress(finished: int, all: int) -> None:
        if time.monotonic() - last[0] >= 1:
            last[0] = time.monotonic()
            run.timing(done + finished * chunk // all, total=total)
        if may_stop and finished < all and (reason := run.stop_requested):
            raise Stopped(f"stopped after {finished} of {all} {what} ({reason}); the same command continues")

    return progress


def _chunks(left: Sequence[Waiting], size: int) -> Iterator[Sequence[Waiting]]:
    """At most `size` problems at a time, all of one task: another may be sampled in another way."""
    first = 0
    while first < len(left):
        last = first
        while last < len(left) and last - first < size and left[last].label == left[first].label:
            last += 1
        yield left[first:last]
        first = last


def _judged(
    cfg: Evaluate, run: Run, judge: ModelJudge | None, waiting: Sequence[Waiting], given: Mapping[str, Any]
) -> Any:
    """Every answer's verdict to DIR/records; returns the ledger. A problem without answers is a reject there too."""
    import math
    import sys

    import pyarrow

    from fathom.core.errors import Stopped
    from fathom.core.records import Record, RecordStore, json_field

    schema = pyarrow.schema([("task", pyarrow.string()), ("problem", pyarrow.string()), json_field("prompt"),
                             ("answer", pyarrow.string()), json_field("about"), json_field("samples")])
    with RecordStore(run.dir / "records", schema, commit_every=sys.maxsize, commit_seconds=math.inf) as store:
        records = {item.key: Record(item.key, item.problem.to_json(), item.task.name) for item in waiting}
        for label, record, why in _left_out(waiting):
            named = Record(f"{label}:row {record.source}", {"source": record.source}, record.source)
            for fresh in store.todo([named]):
                store.reject(fresh, why)
        todo = {record.id for record in store.todo(records.values())}
        left = [item for item in waiting if item.key in todo]
        done = len(waiting) - len(left)
        score = _scorer(cfg.best_by)
        for chunk in _chunks(left, len(left) if judge is not None else cfg.chunk):
            there = [item for item in chunk if item.key in given]
            groups = [[Given(**sample) for sample in given[item.key]["samples"]] for item in there]
            judged = iter(_samples(there, groups, judge, run, score))
            for item in chunk:
                if item.key not in given:
                    store.reject(records[item.key], NO_ANSWERS)
                    continue
                store.done(records[item.key], [records[item.key].child(0, {
                    "task": item.label, "problem": item.problem.id,
                    "prompt": [message.to_json() for message in item.problem.prompt],
                    "answer": item.problem.answer, "about": _about(item.problem), "samples": next(judged)})])
            store.commit()
            done += len(chunk)
            if (reason := run.stop_requested) and done < len(waiting):
                raise Stopped(f"stopped after {done} of {len(waiting)} problems were judged ({reason}); the same "
                              "command continues")
        return store.ledger()


def _left_out(waiting: Sequence[Waiting]) -> Iterator[tuple[str, Record, str]]:
    """Rows of files that are no problems: label, record, reason."""
    for label, task in {item.label: item.task for item in waiting}.items():
        for record, reason in getattr(task, "left_out", ()):
            yield label, record, reason


def _samples(
    there: Sequence[Waiting], groups: Sequence[Sequence[Given]], judge: ModelJudge | None, run: Run,
    score: Callable[[Waiting, Given], float | None],
) -> list[list[dict[str, Any]]]:
    """What the records hold of every answer: its text and what was found out about it."""
    from fathom.judge.verdict import Outcome, Verdict
    from fathom.tasks.judging import judge_groups

    completions = [[Completion(one.text, (), (), "length" if one.finish == "length" else "stop") for one in group]
                   for group in groups]
    tasks = list({id(item.task): item.task for item in there}.values())
    ruled = judge_groups(tasks, [item.problem for item in there], completions, None)
    judgements: list[list[Judgement]] | None = None
    if judge is not None or any(one.report for group in groups for one in group):
        judgements = _by_model(there, groups, judge, run)
    found = []
    for i, (item, group) in enumerate(zip(there, groups, strict=True)):
        samples = []
        for j, one in enumerate(group):
            verdict = ruled[i][j] if judgements is None else judgements[i][j].verdict
            if one.failed:
                verdict = Verdict.failed(f"no answer came: {one.failed[:100]}")
            sample: dict[str, Any] = {
                "text": one.text, "outcome": verdict.outcome.value, "reason": verdict.reason,
                "extracted": verdict.answer, "finish": one.finish, "tokens": one.tokens}
            if judgements is not None:
                sample |= {"rule": ruled[i][j].outcome.value, "report": judgements[i][j].report,
                           "published": judgements[i][j].published}
                if verdict.outcome is not Outcome.FAILED and ruled[i][j].answer is not None:
                    sample["extracted"] = ruled[i][j].answer  # what votes: a judge retells answers in its own words
            if one.label is not None:
                sample["label"] = one.label
            if (value := score(item, one)) is not None:
                sample["score"] = value
            samples.append(sample)
        found.append(samples)
    return found


def _by_model(
    there: Sequence[Waiting], groups: Sequence[Sequence[Given]], judge: ModelJudge | None, run: Run
) -> list[list[Judgement]]:
    """Judgements of the judging model, or those of the reports that are stored with the answers."""
    from fathom.judge.model_judge import Asked, Judgement, judged
    from fathom.judge.verdict import Verdict
    from fathom.tasks.maths import question

    if judge is None:
        return [[judged(one.report) if one.report else Judgement(Verdict.failed("no stored report")) for one in group]
                for group in groups]

    asked = [Asked(question(item.problem) or "", item.problem.answer, one.text)
             for item, group in zip(there, groups, strict=True) for one in group]
    progress = _progress(run, 0, len(asked), len(asked), "judgements", True)
    found = iter(judge.judge(asked, run.log.info, progress))
    return [[next(found) for _ in group] for group in groups]


def _about(problem: Problem) -> dict[str, Any]:
    """What a score is broken down by: what the problem says of itself."""
    if isinstance(about := problem.meta.get("about"), dict):
        return about
    return {name: problem.meta[name] for name in ("level", "type", "subject") if name in problem.meta}


def _scorer(best_by: str | None) -> Callable[[Waiting, Given], float | None]:
    """How good a sample is said to be: what came with it, or a function of one's own of (prompt, text)."""
    if best_by in (None, "logprob"):
        return lambda item, one: one.score
    from fathom.core.errors import UsageError
    from fathom.judge.own import load_object

    function = load_object(str(best_by), "score")
    if not callable(function):
        raise UsageError(f"best_by={best_by}: is no function; name one of (prompt, text) that returns a number")
    return lambda item, one: float(function(item.problem.prompt, one.text))


# Scores.


def _scores(
    cfg: Evaluate, run: Run, labels: Sequence[str], tasks: Sequence[Task], judge: ModelJudge | None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One entry per task, and what stands beside all of them: protocol, missing answers, judge and agreement."""
    from fathom.core import disk
    from fathom.core.records import RecordStore
    from fathom.tasks.scores import differs, score_task

    rows: dict[str, list[dict[str, Any]]] = {label: [] for label in labels}
    store = RecordStore(run.dir / "records")
    for record in store.kept():
        rows[record.data["task"]].append(record.data)
    about: dict[str, Any] = {"protocol": cfg.protocol, "sampling": _sampled(cfg, tasks, labels)}
    if parted := [f"{label}: {apart}" for label, task in zip(labels, tasks, strict=True)
                  if (apart := getattr(task, "apart", ""))]:
        about["parted"] = parted
    if missing := store.ledger().rejected.get(NO_ANSWERS, 0):
        about["without_answers"] = missing
    if left_out := {reason: n for reason, n in store.ledger().rejected.items() if reason != NO_ANSWERS}:
        about["left_out"] = left_out
    if judge is not None:
        about["judge"] = _about_judge(judge)
    differences = [
        {"task": label, "problem": row["problem"], "answer": row["answer"],
         **{name: sample.get(name) for name in ("outcome", "reason", "extracted", "label", "text")}}
        for label in labels for row in rows[label] for sample in row["samples"] if differs(sample)]
    if any(sample.get("label") is not None for label in labels for row in rows[label] for sample in row["samples"]):
        disk.write_atomic(run.dir / "differences.jsonl", "".join(f"{_json(one, None)}\n" for one in differences))
    return [score_task(label, rows[label], task) for label, task in zip(labels, tasks, strict=True)], about


def _sampled(cfg: Evaluate, tasks: Sequence[Task], labels: Sequence[str]) -> dict[str, Any]:
    """How each task was asked and sampled; of stored answers nobody knows."""
    if cfg.stored is not None:
        return {}
    found: dict[str, Any] = {}
    for label, task in zip(labels, tasks, strict=True):
        k, sampling = cfg.asked(task)
        found[label] = {"k": k, "temperature": sampling.temperature, "top_p": sampling.top_p,
                        "max_tokens": sampling.max_tokens}
        if (prompting := getattr(task, "prompting", None)) is not None:
            found[label] |= prompting.told()
    return found


def _about_judge(judge: ModelJudge) -> dict[str, Any]:
    from fathom.judge.model_judge import agreement, labelled
    from fathom.tasks.statistics import wilson

    found: dict[str, Any] = {"model": judge.settings.endpoint.model, "prompt": judge.prompt_sha}
    if judge.settings.labelled is not None:
        labels = labelled(judge.settings.labelled)
        counts = agreement(labels, judge.judge([label.asked for label in labels]))
        agreed = counts["right_agreed"] + counts["wrong_agreed"]
        low, high = wilson(agreed, len(labels))
        found["agreement"] = {**counts, "agreed": agreed, "of": len(labels), "low": low, "high": high,
                              "labelled": judge.settings.labelled}
    found["cost"] = judge.client.stats.spent if judge.settings.endpoint.price_in is not None else None
    return found


def _tell(cfg: Evaluate, run: Run, scores: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> None:
    """The scores to the log and to scores.txt, and the export where one is asked for."""
    from fathom.core import disk
    from fathom.tasks.scores import judged_by, lines, rendered

    head = [f"evaluated: {cfg.subject}, protocol {cfg.protocol}"]
    for label, sampled in about["sampling"].items():
        head.append(f"{label}: {', '.join(f'{name} {value}' for name, value in sampled.items())}")
    if missing := about.get("without_answers"):
        head.append(f"{missing} problems have no stored answer, or too few; they are in no score")
    if left_out := about.get("left_out"):
        head.append(f"{sum(left_out.values())} rows are no problems and in no score: "
                    + ", ".join(f"{reason} ({n})" for reason, n in left_out.items()))
    head += about.get("parted", ())
    if judge := about.get("judge"):
        head.append(judged_by(judge))
        if agreed := judge.get("agreement"):
            head.append(
                f"judge and labels ({agreed['labelled']}) agree on {agreed['agreed']} of {agreed['of']} "
                f"({100 * agreed['low']:.1f}–{100 * agreed['high']:.1f} %): known right {agreed['right_agreed']} of "
                f"{agreed['right']}, known wrong {agreed['wrong_agreed']} of {agreed['wrong']}, not judged "
                f"{agreed['failed']}")
    for line in head[1:]:
        run.log.info("%s", line)
    for score in scores:
        run.log.info("%s: %s", score["task"], score["text"])
        for line in lines(score):
            run.log.info("%s", line)
        if score["unread"] > MOST_UNREAD * score["samples"]:
            run.log.warning("%s: most answers could not be found in their texts; the task's options `ask` (how to "
                            "answer) and `final: any` (texts of models that were not told) may help", score["task"])
    disk.write_atomic(run.dir / "scores.txt", rendered(scores, ["\n".join(head)]))
    run.log.info("tables: %s; pages: fathom report %s", run.dir / "scores.txt", run.dir)
    if cfg.format is not None:
        from fathom.tasks.export import export

        run.log.info("exported: %s", export(run.dir, cfg.format))


def _json(value: Any, indent: int | None = 2) -> str:
    import json

    return json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False)


# Where answers come from.


def _source(cfg: Evaluate, run: Run) -> Source:
    """Where the answers of an evaluation come from."""
    from fathom.tasks.answers import EndpointSource, StoredSource

    if cfg.stored is not None:
        return StoredSource(cfg.stored, run)
    if cfg.endpoint is not None:
        return EndpointSource(cfg.endpoint, run, cfg.best_by == "logprob")
    return _Local(cfg, run)


class _Local:
    """A model directory, in our own engine."""

    whole = False

    def __init__(self, cfg: Evaluate, run: Run) -> None:
        from fathom.engine.engine import Engine
        from fathom.model import weights
        from fathom.model.cost import cost
        from fathom.model.device import place

        assert cfg.model is not None
        device, dtype = place(cfg.device, cfg.dtype, cost(weights.read_config(cfg.model)).parameters)
        model, tokenizer = weights.load(cfg.model, dtype, device)
        if cfg.engine.compile:
            run.log.info(COMPILING)
        self._engine, self._scored = Engine(model, tokenizer, cfg.engine), cfg.best_by == "logprob"

    def answers(
        self, problems: Sequence[Problem], sampling: Sampling, k: int, progress: Callable[[int, int], None]
    ) -> list[list[Given]]:
        groups = self._engine.generate([problem.prompt for problem in problems], sampling, k, progress)
        return [[as_given(one, self._scored) for one in group] for group in groups]

    def summary(self) -> dict[str, Any]:
        return {}


def _judge(settings: JudgeSettings, run: Run) -> ModelJudge:
    from fathom.judge.model_judge import ModelJudge

    return ModelJudge(settings, client(settings.endpoint, run, "judge.sqlite"))

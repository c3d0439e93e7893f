"""Which checks the stages of a recipe need, in their order; what earlier stages have not made yet is stood in for."""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fathom.audit import Check, State
from fathom.audit.examples import check_control, check_source
from fathom.audit.labels import check_labels, read_labels
from fathom.audit.rewards import Tried, check_rewards, check_task
from fathom.core import disk
from fathom.core.errors import FathomError
from fathom.model.pretrained import locate
from fathom.model.tokenizer import Tokenizer
from fathom.recipes import Recipe, Stage, load
from fathom.tasks.examples import Example, load_source
from fathom.tasks.rows import BadRow
from fathom.tasks.task import Split, Task, load_task

Doing = tuple[str, str]  # stage and what begins there
STAND_IN_TEXTS = 2_000
QUESTIONS = 2_000  # of each data set and test split that are compared


def all_checks(recipe: str, overrides: list[str], labels: Path | None) -> Iterator[Check | Doing]:
    """Every check of every stage, and before each what is about to be looked at."""
    loaded = load(recipe, overrides)
    rows = None if labels is None else read_labels(labels)
    audited = _Audit(loaded)
    for stage in loaded.stages:
        yield from audited.stage(stage)
    yield from _found(audited.leaks(), loaded.source.stem, "test problems")
    if labels is not None and rows is not None:
        yield loaded.source.stem, "labels"
        judging = next(iter(audited.tasks.values()), None)
        yield check_labels(loaded.source.stem, labels.name, rows, judging)


def _found(checks: Iterator[Check | Doing], stage: str, name: str) -> Iterator[Check | Doing]:
    """The checks; what cannot be read or asked at all is one that failed."""
    try:
        yield from checks
    except FathomError as error:
        yield Check(stage, name, State.FAIL, str(error), "mend what is named there; its other checks were not made")


class _Audit:
    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.stages = {recipe.directory / stage.name / "model": stage for stage in recipe.stages}
        self.tasks: dict[str, Task] = {}
        self.tried: dict[str, Tried | FathomError] = {}
        self.tokenizers: dict[Path, Tokenizer | None] = {}
        self.looked_at: set[str] = set()

    def stage(self, stage: Stage) -> Iterator[Check | Doing]:
        cfg: Any = stage.settings
        tokenizer = None
        if stage.system != "tokenizer":
            yield stage.name, "tokenizer"
            place = getattr(cfg, {"pretrain": "tokenizer", "evaluate": "model"}.get(stage.system, "init"))
            yield from _found(self._tokenizer(stage.name, place), stage.name, "tokenizer")
            tokenizer = self.tokenizers.get(place)
        if stage.system in ("tokenizer", "pretrain", "sft"):
            # the tokenizer's stage needs its rows alone
            longest = getattr(cfg, "sequence_length", None)
            for number, entry in enumerate(cfg.data):
                yield stage.name, f"data {number}"
                if _records_to_come(entry):
                    said = f"{entry}: what an earlier stage will make is not there yet"
                    yield Check(stage.name, f"data {number}: rows", State.NOTE, said, "audit again when it has run")
                    continue
                found = check_source(stage.name, entry, number, tokenizer, longest)
                new = self._once(found, stage.system, entry, longest)
                yield from _found(new, stage.name, f"data {number}: rows")
        for entry in getattr(cfg, "tasks", ()):
            name = entry if isinstance(entry, str) else str(entry.get("task", entry.get("data")))
            yield stage.name, f"{name}: problems and judge"
            tried = self._tried(entry, "test" if stage.system == "evaluate" else "train")
            if isinstance(tried, FathomError):
                remedy = "mend the task, or what names it: its judge cannot be trusted so"
                yield Check(stage.name, f"{name}: judge", State.FAIL, str(tried), remedy)
                continue
            found = check_task(stage.name, name, tried, tokenizer, cfg.sampling.max_tokens)
            yield from self._once(found, "task", entry, cfg.sampling.max_tokens)
            if stage.system == "grpo":
                yield from check_rewards(stage.name, name, tried, cfg, tokenizer)

    def _once(self, found: Iterator[Check], *key: Any) -> Iterator[Check | Doing]:
        """The checks, unless the same were made for an earlier stage."""
        name = json.dumps(key, sort_keys=True)
        if name not in self.looked_at:
            self.looked_at.add(name)
            yield from found

    def _task(self, entry: str | Mapping[str, Any]) -> Task:
        key = json.dumps(entry, sort_keys=True)
        if key not in self.tasks:
            self.tasks[key] = load_task(entry)
        return self.tasks[key]

    def _tried(self, entry: str | Mapping[str, Any], split: Split) -> Tried | FathomError:
        """A task on its probes, which are judged once, or why they cannot be."""
        key = json.dumps([entry, split], sort_keys=True)
        if key not in self.tried:
            try:
                self.tried[key] = Tried(self._task(entry), split)
            except FathomError as error:
                self.tried[key] = error
        return self.tried[key]

    def _tokenizer(self, stage: str, place: Path) -> Iterator[Check | Doing]:
        """Finds the tokenizer behind a model directory, or one that stands in for it, and looks at it once."""
        if place in self.tokenizers:
            return
        found, said = self._find(place)
        self.tokenizers[place] = found
        if found is None:
            near = difflib.get_close_matches(str(place), [made.name for made in self.recipe.stages], n=1)
            hint = f"did you mean {near[0]}?" if near else "name a stage, or a directory that is there"
            yield Check(stage, "tokenizer", State.FAIL, said, f"{hint} Masks were not looked at")
            return
        if said not in self.looked_at:  # the same one behind several stages
            self.looked_at.add(said)
            yield Check(stage, "tokenizer", State.OK, said)
            yield check_control(stage, found)

    def _find(self, place: Path) -> tuple[Tokenizer | None, str]:
        made, located = self.stages.get(place), locate(place)
        if located.suffix == ".gguf":
            from fathom.model import gguf

            located = gguf.directory(located)
        if (located / "tokenizer.json").is_file():
            if disk.is_complete(located):
                disk.verify(located)
            found = Tokenizer.load(located)
            return found, f"{located}: {found.vocab_size} tokens"
        if made is None:
            return None, f"{place}: no tokenizer.json there"
        cfg: Any = made.settings
        if made.system == "tokenizer":
            texts = itertools.islice(_texts(cfg.data), STAND_IN_TEXTS)
            return Tokenizer.train(texts, cfg.vocab_size), (
                f"stage {made.name} has not run: one learnt from {STAND_IN_TEXTS} of its texts stands in")
        return self._find(cfg.tokenizer if made.system == "pretrain" else cfg.init)

    def leaks(self) -> Iterator[Check | Doing]:
        """Whether questions that are tested are trained on."""
        tested: dict[str, str] = {}
        for stage in self.recipe.stages:
            cfg: Any = stage.settings
            if stage.system == "evaluate":
                yield stage.name, "test problems"
                for entry in cfg.tasks:
                    for problem in self._task(entry).problems("test", min(cfg.problems, QUESTIONS)):
                        tested[_normal(problem.prompt[-1].text)] = stage.name
        if not tested:
            return
        for stage in self.recipe.stages:
            cfg = stage.settings
            entries = cfg.tasks if stage.system in ("grpo", "distill") else getattr(cfg, "data", ())
            if stage.system in ("evaluate", "tokenizer") or not entries:
                continue
            yield stage.name, "test problems in training"
            questions = [question for entry in entries for question in self._questions(stage, entry)]
            yield _leak(stage.name, questions, tested)

    def _questions(self, stage: Stage, entry: str | Mapping[str, Any]) -> Iterator[str]:
        if stage.system in ("grpo", "distill"):
            problems = self._task(entry).problems("train", QUESTIONS)
            yield from (problem.prompt[-1].text for problem in problems)
            return
        if _records_to_come(entry):
            return
        for example in _examples(entry, QUESTIONS):
            if not isinstance(example, str):
                yield from (message.text for message in example if message.role == "user")


def _leak(stage: str, questions: list[str], tested: Mapping[str, str]) -> Check:
    name = "test problems in training"
    found = [question for question in questions if _normal(question) in tested]
    if not found:
        said = f"none among the first {len(questions):,} questions ({len(tested):,} are tested)"
        return Check(stage, name, State.OK, said)
    shown, where = " ".join(found[0].split())[:80], tested[_normal(found[0])]
    return Check(
        stage, name, State.FAIL,
        f"{len(found)} of the first {len(questions):,} questions are asked in {where}, like {shown!r}",
        "keep them apart: another test file, or the option `test` where you train")


def _normal(question: str) -> str:
    return " ".join(question.casefold().split())


def _records_to_come(entry: str | Mapping[str, Any]) -> bool:
    """Whether `entry` names a stage of the recipe that has kept nothing yet."""
    name = entry if isinstance(entry, str) else entry.get("task", entry.get("data"))
    path = Path(str(name))
    return path.parent.name != "" and not path.suffix and ":" not in str(name) and not path.exists()


def _texts(data: tuple[Any, ...]) -> Iterator[str]:
    for entry in data:
        for example in _examples(entry, None):
            yield example if isinstance(example, str) else "\n".join(message.text for message in example)


def _examples(entry: str | Mapping[str, Any], rows: int | None) -> Iterator[Example]:
    """What the first `rows` rows of a source give; bad ones are counted where the rows are looked at."""
    source = load_source(entry, 0)
    for record in itertools.islice(source.records(), rows):
        with suppress(BadRow):
            yield source.example(record)

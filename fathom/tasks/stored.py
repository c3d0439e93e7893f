"""Answers that somebody else produced: read from a file, or from an earlier evaluation, and matched to problems.

Known as they are: Omni-MATH's files (judge input, GPT-4o and Omni-Judge results, rule results), lm-evaluation-harness's
samples, rows with one text or a list of them, and the directory of an evaluation. Anything else by naming its fields.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from fathom.core.config import Settings, neighbour
from fathom.core.errors import UsageError
from fathom.core.records import RecordStore
from fathom.tasks import rows
from fathom.tasks.task import Problem

_QUESTIONS = ("problem", "question", "prompt", "input", "puzzle", "text")
_TEXTS = ("model_generation", "generation", "generations", "completion", "completions", "response", "responses",
          "output", "outputs", "samples", "resps", "code")
_REPORTS = ("judge_report", "omni_judge", "gen")
_LABELS = ("right", "correct", "is_correct", "judge_verdict", "gpt4o_correct", "score")
_SCORES = ("pred_score", "rm_score", "reward")


class StoredSettings(Settings):
    """A file of stored answers; fields that are no known ones are named, with dots: 6b_finetuning.solution."""

    path: str = Field(description="JSON lines, JSON, Parquet, or the directory of an evaluation")
    question: str | None = Field(None, description="field with the problem's text")
    text: str | None = Field(None, description="field with the model's text, or a list of them")
    label: str | None = Field(None, description="field with true or false: what somebody said of the answer")
    report: str | None = Field(None, description="field with a judging model's report")
    score: str | None = Field(None, description="field with a number by which the best of N is chosen")
    where: dict[str, str] = Field(
        default_factory=dict, description="only rows with these values, as where.model=NAME, where a file holds more")

    @model_validator(mode="before")
    @classmethod
    def _from_path(cls, value: Any) -> Any:
        return {"path": str(value)} if isinstance(value, str | Path) else value


@dataclass(frozen=True)
class StoredAnswer:
    """One stored text, with what its row says of it."""

    text: str
    finish: str = "stop"
    tokens: int | None = None
    report: str = ""
    label: bool | None = None
    score: float | None = None


class Stored:
    """The answers of a file by problem. UsageError where the file is none; `bad` counts rows that hold no answer."""

    def __init__(self, settings: StoredSettings) -> None:
        self.settings, self.bad = settings, dict[str, int]()
        self._by_question: dict[str, list[StoredAnswer]] = {}
        self._by_id: dict[str, list[StoredAnswer]] = {}
        path = Path(settings.path)
        if (path / "records").is_dir():
            self._read_run(path)
        elif path.is_file() and path.name.endswith(rows.SUFFIXES):
            self._read_file(path)
        else:
            raise UsageError(f"stored={path}: neither a data file ({', '.join(rows.SUFFIXES)}) nor an evaluation's "
                             f"directory{neighbour(path)}")
        if not self._by_question and not self._by_id:
            why = ", ".join(f"{reason} ({count})" for reason, count in self.bad.items())
            raise UsageError(f"stored={path}: holds no answer: {why or 'it has no row'}. Name the fields: "
                             "stored.question, stored.text")

    def of(self, problem: Problem) -> list[StoredAnswer]:
        """The answers to a problem, in the order of the file; none where it has none."""
        if problem.id in self._by_id:
            return self._by_id[problem.id]
        texts = [str(problem.meta["question"])] if "question" in problem.meta else []
        texts += [message.text for message in reversed(problem.prompt) if message.role == "user"]
        return next((self._by_question[key] for key in map(_key, texts) if key in self._by_question), [])

    def __len__(self) -> int:
        return len(self._by_question) + len(self._by_id)

    def _read_run(self, path: Path) -> None:
        for record in RecordStore(path / "records").kept():
            samples = record.data.get("samples")
            samples = json.loads(samples) if isinstance(samples, str) else samples
            if not isinstance(samples, list):
                raise UsageError(f"stored={path}: its records hold no samples; name the directory of an evaluation")
            self._by_id[str(record.data["problem"])] = [
                StoredAnswer(str(sample["text"]), str(sample.get("finish", "stop")), sample.get("tokens"))
                for sample in samples]

    def _read_file(self, path: Path) -> None:
        for row in rows.read(path):
            try:
                question, answers = self._answers(_unwrapped(row.data))
            except _Bad as bad:
                self.bad[str(bad)] = self.bad.get(str(bad), 0) + 1
                continue
            self._by_question.setdefault(_key(question), []).extend(answers)

    def _answers(self, row: Mapping[str, Any]) -> tuple[str, list[StoredAnswer]]:
        given = self.settings
        for name, value in given.where.items():
            if str(_field(row, name, ())) != value:
                raise _Bad(f"another {name}")
        question = _field(row, given.question, _QUESTIONS)
        text = _field(row, given.text, _TEXTS)
        if not isinstance(question, str) or not question.strip():
            raise _Bad("no question")
        texts = list(_texts(text))
        if not texts:
            raise _Bad("no text")
        labels = _aligned(_field(row, given.label, _LABELS), len(texts))
        reports = _aligned(_field(row, given.report, _REPORTS), len(texts))
        scores = _aligned(_field(row, given.score, _SCORES), len(texts))
        return question, [
            StoredAnswer(text, report=report if isinstance(report, str) else "",
                         label=label if isinstance(label, bool) else None,
                         score=float(score) if isinstance(score, int | float) and not isinstance(score, bool) else None)
            for text, label, report, score in zip(texts, labels, reports, scores, strict=True)]


class _Bad(Exception):
    """Why a row holds no answer."""


def _unwrapped(row: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The row with the one that it carries as JSON text (`original_json`) or as `doc`, whose keys come second."""
    if row is None:
        raise _Bad("not a JSON object")
    inner = row.get("original_json") or row.get("doc")
    if isinstance(inner, str):
        try:
            inner = json.loads(inner)
        except ValueError:
            raise _Bad("original_json is not JSON") from None
    if not isinstance(inner, Mapping):
        return row
    return {**inner, **{key: value for key, value in row.items() if key not in ("original_json", "doc")}}


def _field(row: Mapping[str, Any], named: str | None, known: Sequence[str]) -> Any:
    if named is None:
        return next((row[name] for name in known if row.get(name) is not None), None)
    value: Any = row
    for part in named.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise _Bad(f"no field {named}")
        value = value[part]
    return value


def _texts(value: Any) -> Iterator[str]:
    """One text, a list of them, of lists (lm-eval's `resps`) or of objects with `text` or `content`."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(value.get("text", value.get("content")))
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def _aligned(value: Any, count: int) -> list[Any]:
    """One value per text; a list of as many, whose one-element lists are opened; else the same for a single text."""
    if isinstance(value, list) and len(value) == count:
        return [one[0] if isinstance(one, list) and len(one) == 1 else one for one in value]
    return [value if count == 1 else None] * count


def _key(question: str) -> str:
    return " ".join(question.split())

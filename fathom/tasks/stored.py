"""Answers that somebody else produced: read from a file, or from an earlier evaluation, and matched to problems.

Known as they are: Omni-MATH's files (judge input, GPT-4o and Omni-Judge results, rule results), lm-evaluation-harness's
samples, rows with one text or a list of them, and the directory of an evaluation. Anything else by naming its fields.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from fathom.core.config import Settings, neighbour
from fathom.core.errors import UsageError
from fathom.core.records import RecordStore
from fathom.tasks import rows
from fathom.tasks.task import Problem

_QUESTIONS = ("problem", "question", "prompt", "input", "puzzle")
_TEXTS = ("model_generation", "generation", "generations", "completion", "completions", "response", "responses",
          "output", "outputs", "samples", "resps", "code", "text")
_REPORTS = ("judge_report", "omni_judge", "gen")
_LABELS = ("right", "correct", "is_correct", "judge_verdict", "gpt4o_correct", "score")
_SCORES = ("pred_score", "rm_score", "reward")
LONGEST_ROW = 64 << 20  # bytes of a line: many samples of 32,768 tokens


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
    """The answers of a file by problem. UsageError where the file holds none.

    `bad` counts rows without an answer, and labels and scores that are none, by reason; `kinds` are the models that the
    rows name, should they name more than one.
    """

    def __init__(self, settings: StoredSettings) -> None:
        self.settings, self.bad = settings, Counter[str]()
        self.kinds: set[str] = set()
        self.asked: set[str] = set()  # keys that some problem asked for
        self._by_question: dict[str, list[StoredAnswer]] = {}
        self._by_id: dict[str, list[StoredAnswer]] = {}
        self._keys: Counter[str] = Counter()
        path = Path(settings.path)
        if (path / "records").is_dir():
            self._read_run(path)
        elif path.is_file() and path.name.endswith(rows.SUFFIXES):
            self._read_file(path)
        else:
            raise UsageError(f"stored={path}: neither a data file ({', '.join(rows.SUFFIXES)}) nor the directory of a "
                             f"finished evaluation{'' if path.exists() else neighbour(path)}")
        if not self._by_question and not self._by_id:
            why = ", ".join(f"{reason} ({count})" for reason, count in self.bad.items())
            keys = ", ".join(name for name, _ in self._keys.most_common(12))
            raise UsageError(f"stored={path}: holds no answer: {why or 'it has no row'}."
                             + (f" Its rows have {keys}: name stored.question and stored.text" if keys else ""))
        for field in ("label", "report", "score"):
            named = getattr(settings, field)
            given = (getattr(one, field) for group in self._by_question.values() for one in group)
            if named is not None and all(value in (None, "") for value in given):
                raise UsageError(f"stored.{field}={named}: no row has a {field} there that can be read (a label is "
                                 "true or false, a score a number); correct the name or the rows")

    def of(self, problem: Problem) -> list[StoredAnswer]:
        """The answers to a problem, in the order of the file; none where it has none."""
        if problem.id in self._by_id:
            self.asked.add(problem.id)
            return self._by_id[problem.id]
        texts = [str(problem.meta["question"])] if "question" in problem.meta else []
        texts += [message.text for message in reversed(problem.prompt) if message.role == "user"]
        key = next((key for key in map(_key, texts) if key in self._by_question), None)
        if key is None:
            return []
        self.asked.add(key)
        return self._by_question[key]

    @property
    def unasked(self) -> int:
        """Problems with stored answers that no problem of the tasks was so far."""
        return len(self._by_question) + len(self._by_id) - len(self.asked)

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
        for row in rows.read(path, longest=LONGEST_ROW):
            try:
                if row.data is None:
                    raise _Bad(row.reason)
                data = _unwrapped(row.data)
                self._keys.update(list(data))
                question, answers = self._answers(data)
            except _Bad as bad:
                self.bad[str(bad)] += 1
                continue
            if isinstance(data.get("model"), str) and "model" not in self.settings.where:
                self.kinds.add(data["model"])
            self._by_question.setdefault(_key(question), []).extend(answers)

    def _answers(self, row: Mapping[str, Any]) -> tuple[str, list[StoredAnswer]]:
        given = self.settings
        for name, value in given.where.items():
            if (found := str(_field(row, name, ()))) != value:
                raise _Bad(f"its {name} is {found[:40]}")
        question = _field(row, given.question, _QUESTIONS)
        if not isinstance(question, str) or not question.strip():
            raise _Bad("no question" if given.question is None else f"no text in its field {given.question}")
        texts = list(_texts(_field(row, given.text, _TEXTS)))
        if not texts:
            raise _Bad("no answer" if given.text is None else f"no text in its field {given.text}")
        labels = self._aligned(_field(row, given.label, _LABELS), len(texts), "label", _label)
        reports = self._aligned(_field(row, given.report, _REPORTS), len(texts), "report", _report)
        scores = self._aligned(_field(row, given.score, _SCORES), len(texts), "score", _score)
        return question, [
            StoredAnswer(text, report=report or "", label=label, score=score)
            for text, label, report, score in zip(texts, labels, reports, scores, strict=True)]

    def _aligned(self, value: Any, count: int, what: str, read: Callable[[Any], Any]) -> list[Any]:
        """One value per text: of a list of as many, whose one-element lists are opened, or of a single text's.

        What cannot be read as one is None, and counted.
        """
        if isinstance(value, list) and len(value) == count:
            values = [one[0] if isinstance(one, list) and len(one) == 1 else one for one in value]
        else:
            values = [value if count == 1 else None] * count
            if value is not None and count > 1 and getattr(self.settings, what) is not None:
                self.bad[f"no {what} for each of its answers"] += 1
        found = [read(one) for one in values]
        if getattr(self.settings, what) is not None or (what == "label" and "score" not in self._keys):
            self.bad[f"a {what} that is none"] += sum(
                one is not None and made is None for one, made in zip(values, found, strict=True))
            self.bad = +self.bad
        return found


class _Bad(Exception):
    """Why a row holds no answer."""


def _unwrapped(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with the one that it carries as JSON text (`original_json`) or as `doc`, whose keys come second."""
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
    """The value of the named field, or of the first known one; None where it is not there."""
    if named is None:
        return next((row[name] for name in known if row.get(name) is not None), None)
    value: Any = row
    for part in named.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def _texts(value: Any, inside: bool = False) -> Iterator[str]:
    """One text, a list of them, of lists (lm-eval's `resps`) or of objects with `text` or `content`.

    A null among others is an answer that is empty: it was asked, and counts.
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(value.get("text", value.get("content")), inside)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one, True)
    elif inside:
        yield ""


def _label(value: Any) -> bool | None:
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    return bool(value) if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)) else None


def _report(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _score(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _key(question: str) -> str:
    return " ".join(question.split())

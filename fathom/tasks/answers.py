"""Answers of the model that is evaluated: of an endpoint, or stored before; our own engine's are the system's part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from fathom.core.chat import Completion, Sampling
from fathom.core.client.settings import ClientSettings
from fathom.core.run import Run
from fathom.tasks.stored import StoredSettings

if TYPE_CHECKING:
    from fathom.tasks.task import Problem


class Given(NamedTuple):
    """One answer of the evaluated model, or why there is none."""

    text: str
    finish: str = "stop"
    tokens: int | None = None
    failed: str = ""
    report: str = ""
    label: bool | None = None
    score: float | None = None


class Source(Protocol):
    """The evaluated model, wherever it is. `whole` asks for all of a task at once, since it keeps a journal itself."""

    whole: bool

    def answers(
        self, problems: Sequence[Problem], sampling: Sampling, k: int, progress: Callable[[int, int], None]
    ) -> list[list[Given]]:
        """`k` answers to each problem; fewer only where fewer are stored. `progress(finished, all)` counts answers."""
        ...

    def summary(self) -> dict[str, Any]:
        """What it took, for the log."""
        ...


def as_given(one: Completion, scored: bool) -> Given:
    """A completion as an answer; `scored` by the mean log-probability of its tokens."""
    tokens = len(one.tokens) or len(one.logprobs) or None
    mean = sum(one.logprobs) / len(one.logprobs) if scored and one.logprobs else None
    return Given(one.text, one.finish, tokens, score=mean)


class EndpointSource:
    """An endpoint. What was answered is in DIR/answers.sqlite, or the journal that the settings name."""

    whole = True

    def __init__(self, settings: ClientSettings, run: Run, scored: bool) -> None:
        self._client, self._run, self._scored = client(settings, run, "answers.sqlite", scored), run, scored

    def answers(
        self, problems: Sequence[Problem], sampling: Sampling, k: int, progress: Callable[[int, int], None]
    ) -> list[list[Given]]:
        from fathom.core.client import Failed

        prompts = [problem.prompt for problem in problems]
        for line in str(self._client.forecast(prompts, sampling, k)).splitlines():
            self._run.log.info("%s", line)
        return [
            [Given("", failed=one.reason) if isinstance(one, Failed) else as_given(one, self._scored) for one in group]
            for group in self._client.answers(prompts, sampling, k, progress)]

    def summary(self) -> dict[str, Any]:
        stats = self._client.stats
        lost = sum(stats.retries.values())
        told = {"requests": stats.requests, "prompt tokens": stats.prompt_tokens,
                "completion tokens": stats.completion_tokens}
        if self._client.settings.price_in is not None:
            told["cost in all, earlier attempts included"] = f"{stats.spent:.4g}"
        if lost:
            told["of the requests tried again"] = lost
        if stats.estimated:
            told["of the cost estimated, where no reply told it"] = f"{stats.estimated:.4g}"
        return told


class StoredSource:
    """Answers that were there before."""

    whole = True

    def __init__(self, settings: StoredSettings, run: Run) -> None:
        from fathom.tasks.stored import Stored

        self._stored = Stored(settings)
        if bad := self._stored.bad:
            run.log.warning("%s: rows that hold less than they should: %s", settings.path,
                            ", ".join(f"{reason} ({count})" for reason, count in bad.items()))
        if len(kinds := sorted(self._stored.kinds)) > 1:
            run.log.warning("%s: answers of %d models (%s) are scored together; choose one by stored.where.model=%s",
                            settings.path, len(kinds), ", ".join(kinds[:4]), kinds[0])

    def answers(
        self, problems: Sequence[Problem], sampling: Sampling, k: int, progress: Callable[[int, int], None]
    ) -> list[list[Given]]:
        return [[Given(one.text, one.finish, one.tokens, report=one.report, label=one.label, score=one.score)
                 for one in self._stored.of(problem)] for problem in problems]

    def summary(self) -> dict[str, Any]:
        return {"stored problems that no task asks": self._stored.unasked}


def client(settings: ClientSettings, run: Run, journal: str, logprobs: bool = False) -> Any:
    """A client whose journal is in the run's directory where the settings name none."""
    from fathom.core.client import Client

    update: dict[str, Any] = {} if settings.journal else {"journal": str(run.dir / journal)}
    if logprobs:
        update["logprobs"] = True
    return Client(settings.model_copy(update=update))

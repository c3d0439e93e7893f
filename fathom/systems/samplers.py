"""Who draws a policy's completions: the module that is trained, or an endpoint that is sent its weights."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import Field

from fathom.core.client.settings import ClientSettings
from fathom.core.errors import FathomError

if TYPE_CHECKING:
    from fathom.core.chat import Completion, Message, Sampling
    from fathom.core.run import Run
    from fathom.engine.engine import Engine
    from fathom.model.tokenizer import Tokenizer
    from fathom.model.transformer import Transformer
    from fathom.train.parallel import Team

Groups = list[list["Completion"]]


class PolicyEndpoint(ClientSettings):
    """An endpoint that draws the completions; every policy is sent to it before it is asked."""

    manners: ClassVar[tuple[str, ...]] = (*ClientSettings.manners, "url")  # a server may come back elsewhere

    behind: int = Field(
        0, ge=0, le=1, description="rollouts that it may lag: at 1 it draws the next one while this one is learnt from")


class Sampler(Protocol):
    """Draws completions, and tells the probabilities that it drew them with. `state` and `restore`: what was computed.

    `looks_ahead`: whether `ahead` does anything; `prefilled` and `decoded`: tokens of prompts and completions so far.
    """

    prefilled: int
    decoded: int

    @property
    def looks_ahead(self) -> bool: ...

    def draw(
        self, step: int, prompts: Sequence[Sequence[Message]], seeds: Sequence[int], sampling: Sampling, n: int
    ) -> Groups:
        """`n` completions of each prompt for the rollout that `step` begins with."""
        ...

    def ahead(
        self, step: int, prompts: Sequence[Sequence[Message]], seeds: Sequence[int], sampling: Sampling, n: int
    ) -> None:
        """Begins with the rollout of a later step, whose first `draw` will be for the same; may do nothing."""
        ...

    def state(self) -> dict[str, int]: ...
    def restore(self, state: dict[str, int]) -> None: ...
    def close(self) -> None: ...


class OwnModel:
    """The module that is trained, through the engine; in a team each process completes its share of the prompts."""

    looks_ahead = False

    def __init__(self, engine: Engine, team: Team):
        self._engine, self._team = engine, team
        self.prefilled = self.decoded = 0  # tokens, of the whole team

    def draw(
        self, step: int, prompts: Sequence[Sequence[Message]], seeds: Sequence[int], sampling: Sampling, n: int
    ) -> Groups:
        """See Sampler."""
        engine, mine = self._engine, self._team.share([1] * len(prompts))
        engine.version = step - 1
        prefilled, decoded = engine.prefilled, engine.decoded
        groups = engine.generate(prompts[mine], sampling, n, seeds=seeds[mine])
        engine.release()  # training needs the memory
        every = self._team.gather([(groups, engine.prefilled - prefilled, engine.decoded - decoded)])
        self.prefilled += sum(prompt_tokens for _, prompt_tokens, _ in every)
        self.decoded += sum(completion_tokens for _, _, completion_tokens in every)
        return [group for part, _, _ in every for group in part]

    def ahead(
        self, step: int, prompts: Sequence[Sequence[Message]], seeds: Sequence[int], sampling: Sampling, n: int
    ) -> None:
        """Nothing: the module is needed for training."""

    def state(self) -> dict[str, int]:
        """Tokens so far."""
        return {"prefilled": self.prefilled, "decoded": self.decoded}

    def restore(self, state: dict[str, int]) -> None:
        """Counts on from there."""
        self.prefilled, self.decoded = state["prefilled"], state["decoded"]

    def close(self) -> None:
        """Nothing to close."""


class OnEndpoint:
    """An OpenAI-compatible endpoint. Each policy that it is to draw with is written to `served/` and named to it.

    Answers are in the run's journal, so a killed rollout goes on where it was. What a rollout `behind` needs of the
    policy before the newest checkpoint's stays in `served/` until the next one.
    """

    def __init__(
        self, settings: PolicyEndpoint, run: Run, team: Team, policy: Transformer, tokenizer: Tokenizer, stride: int
    ):
        from fathom.tasks.answers import client

        wanted = settings.model_copy(update={"token_ids": True, "logprobs": True})
        self._client: Any = client(wanted, run, "answers.sqlite") if team.leads else None
        self._settings, self._team, self._policy, self._tokenizer = settings, team, policy, tokenizer
        self._folder, self._lag = run.dir / "served", settings.behind * stride
        self.prefilled = self.decoded = 0
        self._served: int | None = None  # the step after which the endpoint's weights were, as far as known
        self._kept = 0  # the version that the newest checkpoint's next rollout is drawn with
        self._pending: tuple[int, Future[Groups]] | None = None

    @property
    def looks_ahead(self) -> bool:
        """Whether it lags, and draws while there is training."""
        return self._lag > 0

    def draw(
        self, step: int, prompts: Sequence[Sequence[Message]], seeds: Sequence[int], sampling: Sampling, n: int
    ) -> Groups:
        """See Sampler."""
        groups = self._team.tell(lambda: self._drawn(step, prompts, seeds, sampling, n))
        self.prefilled += sum(len(self._tokenizer.prompt(prompt)) for prompt in prompts)
        self.decoded += sum(len(completion.tokens) for group in groups for completion in group)
        return groups

    def _drawn(
        self, step: int, prompts: Sequence[Sequence[Message]], seeds: Sequence[int], sampling: Sampling, n: int
    ) -> Groups:
        if self._pending is not None and self._pending[0] == step:
            begun, self._pending = self._pending[1], None
            return begun.result()
        self._serve(max(step - 1 - self._lag, 0), step - 1)
        groups: Groups = self._client.generate(prompts, sampling, n, seeds=seeds)
        return groups

    def ahead(
        self, step: int, prompts: Sequence[Sequence[Message]], seeds: Sequence[int], sampling: Sampling, n: int
    ) -> None:
        """Draws in a thread, with the policy as it is now."""
        if self._lag and self._team.leads:
            now = step - 1 - self._lag
            self._serve(now, now)
            begun: Future[Groups] = Future()

            def draw() -> None:
                try:
                    begun.set_result(self._client.generate(prompts, sampling, n, seeds=seeds))
                except BaseException as error:  # raised again where the result is asked for
                    begun.set_exception(error)

            # a daemon: who stops does not wait for it, and what it had not yet is asked for again
            threading.Thread(target=draw, name="next rollout", daemon=True).start()
            self._pending = step, begun

    def state(self) -> dict[str, int]:
        """Tokens so far, and the version last served."""
        self._kept = self._served or 0
        return {"prefilled": self.prefilled, "decoded": self.decoded, "served": self._kept}

    def restore(self, state: dict[str, int]) -> None:
        """Counts on from there; what the endpoint holds now is not known."""
        self.prefilled, self.decoded, self._kept = state["prefilled"], state["decoded"], state["served"]
        self._served = None

    def close(self) -> None:
        """Closes the journal."""
        if self._client is not None:
            self._client.close()

    def _serve(self, version: int, now: int) -> None:
        """Makes the endpoint draw with the policy of after step `version`; `now` is the one in memory."""
        from fathom.core import disk
        from fathom.core.client.push import push
        from fathom.model import weights

        if self._served == version:
            return
        path = self._folder / f"{version:06d}"
        if version == now:
            if path.exists():  # of an attempt that was killed
                disk.remove(path)
            weights.save(path, self._policy, self._tokenizer)
        elif not disk.is_complete(path):
            raise FathomError(f"{path}: the policy that the next rollout is drawn with is not there; restore it from a "
                              "copy, or start over with --fresh")
        push(self._settings, path, version)
        self._served = self._client.version = version
        for known in self._folder.iterdir():
            if known.name.isdigit() and int(known.name) not in (version, self._kept):
                disk.remove(known)

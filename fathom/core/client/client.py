"""Client: completions of an endpoint, asked for at most once, within a cap, through whatever goes wrong on the way."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from fathom.core.chat import Completion, Message, Sampling
from fathom.core.client import endpoint, refusal, wire
from fathom.core.client.account import OBSERVED, Account, Counter, Forecast, Stats
from fathom.core.client.endpoint import Endpoint, Refused, TooLarge, TryAgain
from fathom.core.client.settings import ClientSettings
from fathom.core.client.wire import Choice, Trouble, Usage
from fathom.core.client.writer import Writer
from fathom.core.errors import FathomError, Stopped, UsageError
from fathom.core.journal import Journal

FORMAT = 1  # of journal entries; part of every key
_SEEDS = 1 << 31  # every server takes as many

_LISTEN_S = 0.2
_MOST_LOST = 10  # completions that fail alone in any case, and a tenth of those that came

T = TypeVar("T")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Failed:
    """In place of a completion that there is none of, and why: withheld, refused, too long for the endpoint."""

    reason: str


class EndpointFailed(Stopped):
    """The endpoint gave no answer within the allowed tries; what is done is kept, the same call continues."""


class ItemsFailed(FathomError):
    """Single completions failed for good, all others are done: `answers` holds both."""

    def __init__(self, message: str, answers: list[list[Completion | Failed]]) -> None:
        super().__init__(message)
        self.answers = answers


class _Ending(Exception):
    """Why a call ends early; what it says counts what is done when everything in flight has ended."""

    def __init__(self, say: Callable[[], FathomError]) -> None:
        super().__init__()
        self.say = say


@dataclass
class _Ask:
    """A request to be: completions `indexes` of prompt `prompt`, as one request with n choices."""

    prompt: int
    indexes: tuple[int, ...]


@dataclass
class _Call:
    """One call of generate: what is asked, what is answered and why it stops."""

    prompts: Sequence[Sequence[Message]]
    sampling: Sampling
    fields: dict[str, Any]
    names: list[tuple[str, int]]  # per prompt: a hash of all that is sent, and how often that came before
    seeds: list[int]
    all: int  # completions
    answers: list[list[Completion | Failed | None]]
    work: deque[_Ask]
    progress: Progress | None
    lengths: str  # the journal's key of what completions of this kind took
    done: int = 0
    told: dict[int, int] = field(default_factory=dict)  # prompts found in the journal: their tokens, as the reply says
    paid: list[Usage] = field(default_factory=list)  # what the answers found there had cost
    seed_limit: int = _SEEDS
    lost: int = 0  # completions whose requests failed alone
    stop: BaseException | None = None
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    not_before: float = 0.0  # the endpoint asked everyone to wait

    def key(self, prompt: int, index: int) -> str:
        """The journal's key of a completion."""
        return Journal.key(*self.names[prompt], index)

    def halt(self, error: BaseException) -> None:
        if self.stop is None:
            self.stop = error
        self.stopped.set()


class Client:
    """A TextGenerator on an OpenAI-compatible endpoint; a context manager that closes its journal.

    `count` tells a text's tokens for forecast and cap; without it characters are counted. `stats` says what was done
    and spent so far. Calls of several threads wait for each other. Raises UsageError where the extra `client` or the
    key is missing.
    """

    def __init__(self, settings: ClientSettings, count: Callable[[str], int] | None = None) -> None:
        endpoint.check_installed()
        self.settings = settings
        self._key = endpoint.key(settings)
        self._counter = Counter(settings, count)
        self._account = Account(settings)
        self._several: bool | None = None  # whether the endpoint takes n > 1; None: not tried yet
        self._observed: dict[str, tuple[int, int]] = {}  # answers and their tokens, by kind, where there is no journal
        self._random = random.Random()
        self._one_call = threading.Lock()
        self.version: int | None = None  # of the weights that were sent to it: no answer of others is taken
        self._journal = None if settings.journal is None else Journal(settings.journal)

    @property
    def stats(self) -> Stats:
        """What was done and spent so far, by all calls."""
        return self._account.stats

    def generate(
        self, prompts: Sequence[Sequence[Message]], sampling: Sampling, n: int = 1, progress: Progress | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[list[Completion]]:
        """`n` completions per prompt, in the order of `prompts`; text holds reasoning as <think>…</think> before it.

        `progress(finished, all)` hears of every completion once it is in the journal; what it raises stops the call
        when the requests in flight have ended. So do CapReached and EndpointFailed, both resumable: what is done is in
        the journal. Raises ItemsFailed, after everything else was done, where the endpoint withheld single answers.
        `seeds`, one for each prompt, are sent as they are; without them a request's seed is named by `sampling.seed`
        and its prompt.
        """
        answers = self.answers(prompts, sampling, n, progress, seeds)
        failed = [(p, a.reason) for p, row in enumerate(answers) for a in row if isinstance(a, Failed)]
        if failed:
            place, reason = failed[0]
            raise ItemsFailed(
                f"{self.settings.base}: {len(failed)} of {len(prompts) * n} completions failed, the first of prompt "
                f"{place}: {reason}. What else was asked is done{self._kept()}; leave these prompts out, or call "
                "answers(), which names them in their places", answers)
        return [[answer for answer in row if isinstance(answer, Completion)] for row in answers]

    def answers(
        self, prompts: Sequence[Sequence[Message]], sampling: Sampling, n: int = 1, progress: Progress | None = None,
        seeds: Sequence[int] | None = None,
    ) -> list[list[Completion | Failed]]:
        """As `generate`, with a Failed in the place of each completion that the endpoint withheld."""
        with self._one_call:
            call = self._call(prompts, sampling, n, progress, seeds, book=True)
            if call.done and progress:
                progress(call.done, call.all)
            if call.work:
                _run(lambda: self._ask_all(call))
            return [[answer for answer in row if answer is not None] for row in call.answers]

    def forecast(
        self, prompts: Sequence[Sequence[Message]], sampling: Sampling, n: int = 1, reply_tokens: int | None = None,
    ) -> Forecast:
        """What `generate` with the same arguments would still send and cost; nothing is asked.

        `reply_tokens` is how long a completion is taken to be before enough came, else sampling.max_tokens. Once
        enough of these prompts were answered, the endpoint's own count of them corrects ours of the others.
        """
        call = self._call(prompts, sampling, n, None, book=False)
        whole = self._several is not False
        requests = completions = prompt_tokens = most_prompt = 0
        for ask in call.work:
            messages, width = wire.messages(prompts[ask.prompt]), len(ask.indexes)
            times = 1 if whole else width
            requests += times
            completions += width
            prompt_tokens += times * self._counter.expected(messages)
            # At the worst the endpoint takes no n > 1, and every completion pays for the prompt again.
            again = 1 if self._several else width
            most_prompt += again * self._counter.most(messages)
        most = Usage(most_prompt, completions * sampling.max_tokens)
        answers, tokens = self._lengths(call.lengths)
        assumptions = [self._counter.assumption]
        if len(call.told) >= OBSERVED and (ours := sum(self._counter.expected(wire.messages(prompts[p]))
                                                       for p in call.told)):
            ratio = sum(call.told.values()) / ours
            prompt_tokens = round(prompt_tokens * ratio)
            assumptions.append(f"{ratio:.2f} times as many, as the endpoint counted {len(call.told)} of these prompts")
        if answers >= OBSERVED:
            expected = round(completions * tokens / answers)
            assumptions.append(f"completions of {tokens / answers:.1f} tokens, the mean of {answers} answers so far")
        else:
            length = min(reply_tokens or sampling.max_tokens, sampling.max_tokens)
            expected = completions * length
            named = "max_tokens=" if reply_tokens is None else ""
            assumptions.append(f"completions of {named}{length}{'' if named else ' tokens'}: only {answers} answers so "
                               f"far, their mean is used from {OBSERVED}")
        if n > 1 and self._several is None:
            assumptions.append("the endpoint takes n > 1; if not, the prompt is paid for with each completion")
        priced = self.settings.price_in is not None
        return Forecast(
            call.all, call.done, requests, prompt_tokens, expected, most.completion,
            self._account.money(Usage(prompt_tokens, expected)) if priced else None,
            self._account.money(most) if priced else None, tuple(assumptions),
            sum(map(self._account.money, call.paid)))

    def close(self) -> None:
        """Closes the journal; closing twice is harmless."""
        if self._journal is not None:
            self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.settings!r})"

    # What is asked, and what the journal knows of it.

    def _call(
        self, prompts: Sequence[Sequence[Message]], sampling: Sampling, n: int, progress: Progress | None,
        given: Sequence[int] | None = None, *, book: bool,
    ) -> _Call:
        if n < 1:
            raise UsageError(f"n={n}: at least one completion per prompt is needed; set n ≥ 1")
        fields = wire.fields(self.settings, sampling)
        times: Tally[str] = Tally()
        names, seeds = [], []
        for place, prompt in enumerate(prompts):
            if not prompt:
                raise UsageError(f"prompt {place}: holds no message; give at least one")
            asked = wire.messages(prompt)
            seed = sampling.seed if given is None else given[place]
            digest = Journal.key("completion", FORMAT, self.settings.base, fields, seed, asked)
            names.append((digest, times[digest]))
            seeds.append(int(Journal.key(seed, asked, times[digest])[:8], 16) if given is None else seed)
            times[digest] += 1
        call = _Call(
            prompts, sampling, fields, names, seeds, len(prompts) * n, [[None] * n for _ in prompts], deque(), progress,
            Journal.key("lengths", FORMAT, self.settings.base, fields),
            seed_limit=_SEEDS if given is None else 1 << 63)
        for p in range(len(prompts)):
            if self._journal is not None:
                self._look_up(call, p, self._journal, book)
            if missing := tuple(i for i in range(n) if call.answers[p][i] is None):
                call.work.append(_Ask(p, missing))
        return call

    def _look_up(self, call: _Call, prompt: int, journal: Journal, book: bool) -> None:
        for i in range(len(call.answers[prompt])):
            entry = call.key(prompt, i)
            if (stored := journal.get(entry)) is not None:
                call.answers[prompt][i] = _answer(stored)
                call.done += 1
                usages = [Usage(**usage) for usage in stored["usages"]]
                call.paid += usages
                if usages and not usages[-1].estimated:
                    call.told[prompt] = usages[-1].prompt
                if book:
                    self._account.found(entry, usages)

    def _lengths(self, kind: str) -> tuple[int, int]:
        """Answers of this kind so far, and their tokens."""
        if self._journal is None:
            return self._observed.get(kind, (0, 0))
        stored = self._journal.get(kind)
        return (0, 0) if stored is None else (stored["answers"], stored["tokens"])

    def _kept(self) -> str:
        return " and journalled" if self._journal is not None else ", but not kept: no journal is set"

    # Asking.

    async def _ask_all(self, call: _Call) -> None:
        self._account.begin()
        active: set[asyncio.Task[None]] = set()
        writer = Writer(self._journal, call.lengths)
        async with Endpoint(self.settings, self._key) as at:
            try:
                while True:
                    while call.work and call.stop is None and len(active) < self.settings.concurrency:
                        active.add(asyncio.create_task(self._ask(call, call.work.popleft(), at, writer)))
                    if not active:
                        break
                    _, active = await asyncio.wait(active, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in active:
                    task.cancel()
                await asyncio.gather(*active, return_exceptions=True)
                await writer.close()
        if isinstance(call.stop, _Ending):
            raise call.stop.say() from call.stop.__cause__
        if call.stop is not None:
            raise call.stop

    async def _ask(self, call: _Call, ask: _Ask, at: Endpoint, writer: Writer) -> None:
        """Asks for one request's answer; what goes wrong for good stops the call, the first such thing is raised."""
        try:
            await self._until_answered(call, ask, at, writer)
        except Exception as error:
            call.halt(error)

    async def _until_answered(self, call: _Call, ask: _Ask, at: Endpoint, writer: Writer) -> None:
        """Asks until there is an answer, the tries are used up or the call stops."""
        if len(ask.indexes) > 1 and self._several is False:
            call.work.extendleft(_Ask(ask.prompt, (i,)) for i in reversed(ask.indexes))
            return
        width = len(ask.indexes)
        messages = wire.messages(call.prompts[ask.prompt])
        worst = Usage(self._counter.most(messages), width * call.sampling.max_tokens, estimated=True)
        body = {**call.fields, "messages": messages}
        if "seed" not in self.settings.omit:
            body["seed"] = (call.seeds[ask.prompt] + ask.indexes[0]) % call.seed_limit
        if width > 1:
            body["n"] = width
        lost: list[Usage] = []
        tries = 0
        while await self._may_try(call, worst):
            tries += 1
            self.stats.requests += 1
            began = time.monotonic()
            used: Usage | None = None
            try:
                reply = await self._try(at, body, width)
                self.stats.latencies.append(time.monotonic() - began)
                used = reply.usage or self._estimate(messages, reply)
            except TryAgain as failure:
                if failure.lost:
                    used = worst
                    lost.append(worst)
                if tries > self.settings.retries:
                    if self._fails_alone(call, ask, f"no answer after {tries} tries: {failure.detail}"):
                        return
                    raise _Ending(partial(self._gave_up, call, tries, failure.detail)) from failure
                self.stats.retries[failure.kind] = self.stats.retries.get(failure.kind, 0) + 1
                await self._wait(call, tries, failure.after)
                continue
            except asyncio.CancelledError:
                used = worst
                raise
            except Refused as no:
                self._refused(call, ask, no.told, body)
                return
            except wire.Missing as missing:
                used = worst
                raise UsageError(f"{self.settings.base}: replies hold no {missing}, which {missing}=true asks for; "
                                 "leave it at false, or ask an endpoint that tells them") from missing
            except TooLarge:
                used = worst
                raise FathomError(f"{self.settings.base}: a reply of more than reply_mb={self.settings.reply_mb:g}; "
                                  "raise reply_mb, or ask for fewer tokens, choices or logprobs") from None
            finally:
                self._account.settle(worst, used)
            await self._store(call, ask, reply, [*lost, used], writer)
            return

    async def _may_try(self, call: _Call, worst: Usage) -> bool:
        """Waits for the endpoint's leave and the cap's; false when the call stops meanwhile."""
        while call.stop is None and (wait := call.not_before - time.monotonic()) > 0:
            await _sleep(call, wait)
        if call.stop is not None:
            return False
        if not await self._account.reserve(worst):
            raise _Ending(lambda: self._account.reached(worst, call.all - call.done))
        if call.stop is None:
            return True
        self._account.settle(worst, None)
        return False

    def _gave_up(self, call: _Call, tries: int, last: str) -> EndpointFailed:
        return EndpointFailed(
            f"{self.settings.base}: no answer after {tries} tries, the last: {last}. {call.done} of {call.all} "
            f"completions are done{self._kept()}; run the same command again to go on")

    async def _try(self, at: Endpoint, body: Mapping[str, Any], width: int) -> wire.Reply:
        try:
            told = wire.read(await at.post(body), self.settings, width)
        except wire.Malformed as error:
            raise TryAgain("malformed", at.clean(f"a reply that is no answer ({error})"), lost=True) from error
        if isinstance(told, Trouble):
            raise endpoint.failure(told, {})
        if self.version is not None and told.version not in (None, self.version):
            raise Stopped(f"{self.settings.base}: draws with weights of version {told.version}, version {self.version} "
                          "was sent: was it started again, or does it serve two runs? The same command sends them anew")
        for choice in told.choices:
            at.refuse_key(choice.text + choice.failed)
        return told

    async def _wait(self, call: _Call, tries: int, after: float | None) -> None:
        """Exponential backoff with full jitter; where the endpoint says how long, everyone waits as long."""
        longest = self.settings.wait_max_s
        if after is not None:
            call.not_before = max(call.not_before, time.monotonic() + min(after, longest))
        bound = min(self.settings.backoff_s * 2.0 ** min(tries - 1, 60), longest)
        begin = max(call.not_before - time.monotonic(), 0.0) if after is not None else 0.0
        await _sleep(call, begin + self._random.uniform(0.0, bound if after is None else self.settings.backoff_s))

    def _refused(self, call: _Call, ask: _Ask, told: Trouble, body: Mapping[str, Any]) -> None:
        """Answers a no: with single requests where it is n, with Failed where it is the prompt, else it raises."""
        rejected = wire.named(told, body) if told.status in (400, 422) else ""
        if rejected == "n" and len(ask.indexes) > 1:
            self._several = False
            call.work.extendleft(_Ask(ask.prompt, (i,)) for i in reversed(ask.indexes))
            return
        if reason := refusal.of_the_prompt(told):
            for i in ask.indexes:
                call.answers[ask.prompt][i] = Failed(reason)
            self._count(call, len(ask.indexes))
            return
        if self._fails_alone(call, ask, f"refused with {told.status}: {wire.cut(told.message)}"):
            return
        raise refusal.error(self.settings, told, rejected)

    def _fails_alone(self, call: _Call, ask: _Ask, reason: str) -> bool:
        """Whether a request's failure is its own (after_retries=fail): not in the journal, so asked again next time.

        Not where as many fail as are answered: then it is the endpoint.
        """
        call.lost += len(ask.indexes)
        if self.settings.after_retries != "fail" or call.lost > max(_MOST_LOST, call.done // 10):
            return False
        for i in ask.indexes:
            call.answers[ask.prompt][i] = Failed(reason[:300])
        self._count(call, len(ask.indexes))
        return True

    async def _store(
        self, call: _Call, ask: _Ask, reply: wire.Reply, usages: list[Usage], writer: Writer
    ) -> None:
        """Journals a reply, then counts it as done; choices that did not come are asked for singly."""
        came, used = ask.indexes[: len(reply.choices)], usages[-1]
        if len(ask.indexes) > 1:
            if len(came) < len(ask.indexes):
                self._several = False
                call.work.extendleft(_Ask(ask.prompt, (i,)) for i in reversed(ask.indexes[len(came):]))
            elif self._several is None:
                self._several = True
        entries = {}
        for place, (i, choice) in enumerate(zip(came, reply.choices, strict=False)):
            # The request's cost stands with its first answer, that of lost tries before it included.
            entries[call.key(ask.prompt, i)] = _entry(choice, used.cached, usages if place == 0 else [])
        answers, tokens = self._observed.get(call.lengths, (0, 0))
        self._observed[call.lengths] = (answers + len(came), tokens + used.completion)
        await writer.put(entries, used.completion)
        for i, entry in zip(came, entries.values(), strict=True):
            call.answers[ask.prompt][i] = _answer(entry)
        self._account.answered(len(came), next(iter(entries)))
        self._count(call, len(came))

    def _count(self, call: _Call, completions: int) -> None:
        call.done += completions
        if call.progress and call.stop is None:
            call.progress(call.done, call.all)

    def _estimate(self, messages: Sequence[Mapping[str, Any]], reply: wire.Reply) -> Usage:
        texts = sum(self._counter.text(choice.text) for choice in reply.choices)
        return Usage(self._counter.expected(messages), texts, estimated=True)


def _entry(choice: Choice, cached: int, usages: Sequence[Usage]) -> dict[str, Any]:
    return {
        "text": choice.text, "finish": choice.finish, "tokens": choice.tokens, "logprobs": choice.logprobs,
        "top": choice.top, "failed": choice.failed, "cached": cached, "usages": [vars(usage) for usage in usages],
    }


def _answer(entry: Mapping[str, Any]) -> Completion | Failed:
    if entry["failed"]:
        return Failed(entry["failed"])
    top = tuple(tuple((token, logp) for token, logp in row) for row in entry["top"])
    return Completion(
        entry["text"], tuple(entry["tokens"]), tuple(entry["logprobs"]), entry["finish"], top=top,
        cached=entry["cached"])


async def _sleep(call: _Call, seconds: float) -> None:
    """Sleeps, but no longer than the call goes on."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(call.stopped.wait(), seconds)


def _run(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """The coroutine's result, from a loop of its own: in a thread where this one runs one, as notebooks do."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(make())
    results: list[T] = []
    errors: list[BaseException] = []
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []
    begun = threading.Event()

    async def main() -> T:
        task = asyncio.current_task()
        assert task is not None
        running.append((asyncio.get_running_loop(), task))
        begun.set()
        return await make()

    def work() -> None:
        try:
            results.append(asyncio.run(main()))
        except BaseException as error:  # raised again in the thread that called
            errors.append(error)

    thread = threading.Thread(target=work, name="fathom-client")
    thread.start()
    ours = asyncio.current_task()
    try:
        while thread.is_alive():
            thread.join(_LISTEN_S)
            # Ctrl-C reaches the loop that waits here as a request to cancel its task, which nobody else can hear.
            if ours is not None and ours.cancelling():
                raise asyncio.CancelledError
    except BaseException:
        begun.wait()
        with contextlib.suppress(RuntimeError):  # its loop has ended by itself
            running[0][0].call_soon_threadsafe(running[0][1].cancel)
        thread.join()
        raise
    if errors:
        raise errors[0]
    return results[0]

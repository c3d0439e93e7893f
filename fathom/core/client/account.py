"""What asking costs: tokens, money, the cap that no request may pass, and the forecast before anything is asked."""

from __future__ import annotations

import asyncio
import logging
import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fathom.core.client.settings import ClientSettings
from fathom.core.client.wire import Usage
from fathom.core.errors import Stopped

CHARACTERS = 3.5  # of a token, on the average of English text: what is assumed where no tokenizer counts
TURN_TOKENS = 4  # a chat template's marks around one message, on the average
MOST_TURN_TOKENS = 16  # the same at the worst, and once more for the prompt as a whole
OBSERVED = 20  # answers from which their mean length says more than max_tokens

_log = logging.getLogger(__name__)


class CapReached(Stopped):
    """The next request could have cost more than the cap leaves: nothing was sent, what is done is kept."""

    def __init__(self, message: str, spent: float, cap: float, remaining: int) -> None:
        super().__init__(message)
        self.spent, self.cap, self.remaining = spent, cap, remaining


@dataclass
class Stats:
    """What a client did so far, over all its calls: requests are tries, tokens and money those of this process."""

    requests: int = 0
    answers: int = 0  # completions that came
    found: int = 0  # completions that the journal had
    retries: dict[str, int] = field(default_factory=dict)  # by what went wrong: "429", "503", "timeout", ...
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    money: float = 0.0
    estimated: float = 0.0  # the part of `money` that no reply told: lost tries, replies without usage
    found_money: float = 0.0  # what the answers from the journal had cost
    latencies: array[float] = field(default_factory=lambda: array("d"), repr=False)  # seconds of every answered try

    @property
    def spent(self) -> float:
        """What is held against the cap."""
        return self.money + self.found_money

    @property
    def p50(self) -> float | None:
        """The median of the answered tries' seconds; None before the first."""
        return self._quantile(0.5)

    @property
    def p95(self) -> float | None:
        """Seconds within which 95 % of the answered tries ended; None before the first."""
        return self._quantile(0.95)

    def _quantile(self, q: float) -> float | None:
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, math.ceil(q * len(ordered)) - 1)] if ordered else None


@dataclass(frozen=True)
class Forecast:
    """What a call would send and cost: as expected, and at most if every try succeeds. Money is None without prices."""

    completions: int  # asked for
    found: int  # of them, in the journal already
    requests: int
    prompt_tokens: int
    expected_tokens: int  # of completions
    most_tokens: int
    expected_money: float | None
    most_money: float | None  # a cap of as much is never met
    assumptions: tuple[str, ...]
    found_money: float = 0.0  # what the answers found in the journal had cost

    def __str__(self) -> str:
        lines = [
            f"{self.completions} completions, {self.found} found in the journal; {self.requests} requests",
            f"tokens: {self.prompt_tokens:,} in, {self.expected_tokens:,} out, at most {self.most_tokens:,} out",
        ]
        if self.expected_money is not None and self.most_money is not None:
            lines.append(f"price: {price(self.expected_money)}, at most {price(self.most_money)}")
        return "\n".join([*lines, *(f"assumed: {text}" for text in self.assumptions)])


class Counter:
    """Counts a prompt's tokens before the endpoint does: by `count`, or by its characters where that is None."""

    def __init__(self, settings: ClientSettings, count: Callable[[str], int] | None) -> None:
        self._count, self._image_tokens = count, settings.image_tokens

    @property
    def assumption(self) -> str:
        """How tokens are counted, for the forecast."""
        how = f"{CHARACTERS} characters are a token" if self._count is None else "tokens as the given tokenizer counts"
        return f"{how}, and {TURN_TOKENS} more for each message"

    def text(self, text: str) -> int:
        """Tokens of a text, as expected."""
        return self._count(text) if self._count else math.ceil(len(text) / CHARACTERS)

    def expected(self, messages: Sequence[Mapping[str, Any]]) -> int:
        """Tokens of a prompt, as expected."""
        texts, images = _contents(messages)
        return sum(map(self.text, texts)) + TURN_TOKENS * len(messages) + images * self._image_tokens

    def most(self, messages: Sequence[Mapping[str, Any]]) -> int:
        """Tokens of a prompt at the worst: no tokenizer makes more tokens of a text than it has bytes."""
        texts, images = _contents(messages)
        words = sum(self._count(text) if self._count else len(text.encode("utf-8", "replace")) for text in texts)
        return words + MOST_TURN_TOKENS * (len(messages) + 1) + images * self._image_tokens


def _contents(messages: Sequence[Mapping[str, Any]]) -> tuple[list[str], int]:
    texts, images = [], 0
    for message in messages:
        if isinstance(message["content"], str):
            texts.append(message["content"])
        else:
            texts += [part["text"] for part in message["content"] if part["type"] == "text"]
            images += sum(part["type"] == "image_url" for part in message["content"])
    return texts, images


class Account:
    """What was spent and what is in flight; after `reserve` no try can pass the cap."""

    def __init__(self, settings: ClientSettings) -> None:
        self._settings, self.stats = settings, Stats()
        self._reserved, self._flying = 0.0, 0
        self._said = False
        self._known: set[str] = set()  # journal entries whose cost is in the stats
        self.begin()

    def begin(self) -> None:
        """Before each event loop: nothing is in flight."""
        self._reserved, self._flying = 0.0, 0
        self._changed = asyncio.Event()

    def money(self, usage: Usage) -> float:
        """The price of what a reply took; 0 without prices."""
        prices = self._settings
        if prices.price_in is None or prices.price_out is None:
            return 0.0
        cached = prices.price_in if prices.price_cached is None else prices.price_cached
        plain = (usage.prompt - usage.cached) * prices.price_in + usage.completion * prices.price_out
        return (plain + usage.cached * cached) / 1e6

    async def reserve(self, worst: Usage) -> bool:
        """Waits until the worst case fits under the cap beside all in flight; false if it never will."""
        money, cap = self.money(worst), self._settings.cap
        while cap is not None and self.stats.spent + self._reserved + money > cap * (1 + 1e-12):
            if not self._flying:
                return False
            await self._changed.wait()
        self._reserved, self._flying = self._reserved + money, self._flying + 1
        return True

    def settle(self, worst: Usage, used: Usage | None) -> None:
        """The try is over: `used` is what it took, None where it took nothing."""
        self._reserved, self._flying = self._reserved - self.money(worst), self._flying - 1
        if not self._flying:
            self._reserved = 0.0
        if used is not None:
            self._book(worst, used)
        self._changed.set()
        self._changed = asyncio.Event()

    def found(self, entry: str, usages: Sequence[Usage]) -> None:
        """The journal held an answer; what it had cost counts once, whichever call of ours paid it or found it."""
        self.stats.found += 1
        if usages and entry not in self._known:
            self.stats.found_money += sum(map(self.money, usages))
            self._known.add(entry)

    def answered(self, completions: int, entry: str) -> None:
        """A request's completions came; its cost, booked when it was settled, stands in the journal's `entry`."""
        self.stats.answers += completions
        self._known.add(entry)

    def _book(self, worst: Usage, used: Usage) -> None:
        stats, money = self.stats, self.money(used)
        stats.prompt_tokens += used.prompt
        stats.completion_tokens += used.completion
        stats.cached_tokens += used.cached
        stats.reasoning_tokens += used.reasoning
        stats.money += money
        stats.estimated += money if used.estimated else 0.0
        if self._settings.cap is not None and money > self.money(worst) * (1 + 1e-9) and not self._said:
            self._said = True
            _log.warning(
                "%s: a reply is billed with %d + %d tokens, at most %d + %d were expected: the cap may be passed by as "
                "much per request", self._settings.base, used.prompt, used.completion, worst.prompt, worst.completion)

    def reached(self, worst: Usage, remaining: int) -> CapReached:
        """The error that says why a request with this worst case was not sent."""
        stats, cap, money = self.stats, self._settings.cap or 0.0, self.money(worst)
        told = f", {price(stats.estimated)} of it estimated" if stats.estimated else ""
        return CapReached(
            f"{self._settings.base}: {price(stats.spent)} spent{told}, cap={cap:g}: the next request may cost "
            f"{price(money)}; {remaining} completions remain. Raise cap and run the same command again; what is done "
            f"is {'kept' if self._settings.journal else 'not kept: no journal is set'}", stats.spent, cap, remaining)


def price(money: float) -> str:
    """Money with as many digits as matter."""
    return f"{money:.2f}" if money >= 10 else f"{money:.4g}"

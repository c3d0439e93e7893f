"""A model as judge: whether an answer means what the reference answer means, asked of any endpoint, within a cap.

The report's structure is that of Omni-MATH's judge (arXiv 2410.07985, appendix); wording and examples are ours. The
published examples are all FALSE, which teaches a judge what to say; of ours half are TRUE. An unreadable reply is
FAILED, never a wrong answer.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from fathom.core.chat import Message, Sampling
from fathom.core.client.settings import ClientSettings
from fathom.core.config import Settings
from fathom.core.errors import UsageError
from fathom.judge import reports
from fathom.judge.extract import Unread, after_thinking
from fathom.judge.verdict import Outcome, Verdict

if TYPE_CHECKING:
    from fathom.core.client import Client, Forecast

PILOT = 20  # replies from which lengths are known
_SLOTS = ("{{Problem}}", "{{Reference Answer}}", "{{Solution}}")
_LONGEST_SOLUTION = 24_000  # characters; of what is longer the middle is left out

PROMPT = r"""You compare a student's final answer with a reference answer to the same problem.

Decide one thing: do the two say the same? The reference answer is right by definition; do not solve the problem, and do
not grade the way to the answer. Read the final answer that the student commits to: what is boxed, or else what is
plainly called the answer. Another notation, order of a set, unreduced form or missing unit that the problem implies is
the same answer. Another value, a missing or additional solution, a wrong interval end or no final answer is not.

Write exactly this report and nothing else:

## Student Final Answer
(the answer that you read, or None)

## Equivalence Judgement
(TRUE or FALSE)

## Justification
(one or two sentences)

=== report over ===

Four reports for other problems:

Problem: Find all real $x$ with $x^2 - 5x + 6 = 0$.
Reference answer: $\{2, 3\}$
Student's solution: Factoring gives $(x-3)(x-2)=0$, so the roots are \boxed{x = 3 \text{ or } x = 2}.

## Student Final Answer
x = 3 or x = 2

## Equivalence Judgement
TRUE

## Justification
The same two numbers, written as equations and in another order.

=== report over ===

Problem: In how many ways can 4 people sit around a round table?
Reference answer: 6
Student's solution: There are $4! = 24$ orders, and each seating is counted 4 times over. I answer \boxed{24}.

## Student Final Answer
24

## Equivalence Judgement
FALSE

## Justification
The student commits to 24, which is not 6.

=== report over ===

Problem: What is the probability that a fair die shows a multiple of 3?
Reference answer: $\frac{1}{3}$
Student's solution: Two of the six faces, 3 and 6, so the answer is 2/6.

## Student Final Answer
2/6

## Equivalence Judgement
TRUE

## Justification
2/6 is one third, not reduced.

=== report over ===

Problem: Determine all functions $f$ with $f(x+y) = f(x) + f(y)$ and $f$ continuous.
Reference answer: $f(x) = cx$ for any real $c$
Student's solution: Put $y = 0$: then $f(0) = 0$. Next we look at rational numbers, where

## Student Final Answer
None

## Equivalence Judgement
FALSE

## Justification
The solution stops before it gives any function.

=== report over ===

Now the one to judge.

Problem: {{Problem}}

Reference answer: {{Reference Answer}}

Student's solution: {{Solution}}
"""


class JudgeSettings(Settings):
    """A model that judges answers in place of a task's own judge, which then stands beside it."""

    manners: ClassVar[tuple[str, ...]] = ("reply_tokens",)

    endpoint: ClientSettings = Field(description="whom to ask; pin the model by its full name")
    prompt: str | None = Field(
        None, description=f"a text file in place of our prompt, with the slots {', '.join(_SLOTS)}")
    max_tokens: int = Field(500, ge=1, description="most tokens of a report")
    reply_tokens: int = Field(
        200, ge=1, description=f"how long the forecast takes a report to be, before {PILOT} came")
    labelled: str | None = Field(
        None, description="JSON lines with problem, answer, generation and right: how far judge and labels agree")


@dataclass(frozen=True)
class Asked:
    """One answer to judge: the problem's text, the reference answer, and what the model under test wrote."""

    problem: str
    reference: str
    text: str


@dataclass(frozen=True)
class Judgement:
    """The verdict, the judge's reply as it came ("" where none was asked for), and the published reading of it."""

    verdict: Verdict
    report: str = ""
    published: bool | None = None


class ModelJudge:
    """Judges by a model at an endpoint. Greedy; every reply is in the client's journal, so none is paid for twice.

    `client` is made from `settings.endpoint`. With a cap, `judge` asks nothing at all where the forecast passes it, and
    looks again after the first replies, whose lengths it then knows; the client holds the cap itself in any case.
    """

    def __init__(self, settings: JudgeSettings, client: Client) -> None:
        self.settings, self.client = settings, client
        self.template = template(settings.prompt)
        self.prompt_sha = hashlib.sha256(self.template.encode()).hexdigest()[:16]
        self._sampling = Sampling(max_tokens=settings.max_tokens, temperature=0)

    @property
    def name(self) -> str:
        """Model and prompt, as they stand beside a score."""
        return f"{self.settings.endpoint.model} with prompt {self.prompt_sha}"

    def price(self, items: Sequence[Asked]) -> Forecast:
        """What judging all of `items` will take and cost; asks nothing."""
        return self._price([prompt for prompt in map(self._prompt, items) if not isinstance(prompt, Verdict)])

    def judge(
        self, items: Sequence[Asked], say: Callable[[str], None] = lambda line: None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Judgement]:
        """One judgement per item, in order. CapReached (exit code 75) where the forecast passes the cap.

        UNREAD without asking: no text, or thinking that never ends. UNREAD too: the judge found no final answer.
        FAILED: a reply that gives no verdict, or that the endpoint withheld.
        """
        from fathom.core.client import Failed

        prompts = [self._prompt(item) for item in items]
        asked = [prompt for prompt in prompts if not isinstance(prompt, Verdict)]
        self._hold(asked, say)
        if len(asked) > PILOT and self.settings.endpoint.cap is not None:
            self.client.answers(asked[:PILOT], self._sampling)
            self._hold(asked, say)
        replies = iter(self.client.answers(asked, self._sampling, progress=progress))
        found = []
        for prompt in prompts:
            if isinstance(prompt, Verdict):
                found.append(Judgement(prompt))
                continue
            [reply] = next(replies)
            if isinstance(reply, Failed):
                found.append(Judgement(Verdict.failed(f"judge gave no reply: {reply.reason[:100]}")))
            else:
                found.append(judged(reply.text))
        return found

    def _hold(self, asked: Sequence[Sequence[Message]], say: Callable[[str], None]) -> None:
        """Says the forecast; raises CapReached where it passes the cap."""
        from fathom.core.client import CapReached

        price, cap = self._price(asked), self.settings.endpoint.cap
        whole = None if price.expected_money is None else price.found_money + price.expected_money
        money = "" if whole is None else f", about {whole:.4g} in all, {price.found_money:.4g} of it spent before"
        told = (f"judge: {price.completions} answers, {price.found} judged before{money} "
                f"(assumed: {'; '.join(price.assumptions)})")
        if cap is None or whole is None or whole <= cap:
            say(told)
            return
        raise CapReached(
            f"{told}. That passes cap={cap:g}, so nothing more is sent to be judged; the answers and what was judged "
            f"are kept. Raise judge.endpoint.cap to {1.2 * whole:.3g}, which leaves a margin, and run the same command "
            "again", price.found_money, cap, price.completions - price.found)

    def _price(self, asked: Sequence[Sequence[Message]]) -> Forecast:
        return self.client.forecast(asked, self._sampling, reply_tokens=self.settings.reply_tokens)

    def _prompt(self, item: Asked) -> tuple[Message, ...] | Verdict:
        text = after_thinking(item.text)
        if isinstance(text, Unread):
            return Verdict.unread(text.reason)
        if not text.strip():
            return Verdict.unread("text is empty")
        if len(text) > _LONGEST_SOLUTION:
            half = _LONGEST_SOLUTION // 2
            text = f"{text[:half]}\n[… {len(text) - 2 * half} characters are left out …]\n{text[-half:]}"
        values = dict(zip(_SLOTS, (item.problem, item.reference, text), strict=True))
        # in one pass: a solution that holds a slot's name is a text like any other
        asked = re.sub("|".join(map(re.escape, _SLOTS)), lambda slot: values[slot[0]].strip(), self.template)
        return (Message("user", asked),)


def judged(reply: str) -> Judgement:
    """The judgement in a reply."""
    report = reports.read(reply)
    if report.equal is None:
        verdict = Verdict.failed("judge's reply gives no verdict", report.answer)
    elif report.equal:
        verdict = Verdict.right("judged the same", report.answer)
    elif report.nothing_answered:
        verdict = Verdict.unread("judge found no answer", report.answer)
    else:
        verdict = Verdict.wrong("judged different", report.answer)
    return Judgement(verdict, reply, reports.published(reply))


def template(path: str | None) -> str:
    """The prompt in a file, or ours; UsageError where it lacks a slot."""
    if path is None:
        return PROMPT
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"judge.prompt={path}: cannot be read as text ({error}); name a text file") from error
    if missing := [slot for slot in _SLOTS if slot not in text]:
        raise UsageError(f"judge.prompt={path}: has no slot {missing[0]}; write all of {', '.join(_SLOTS)} into it")
    return text


@dataclass(frozen=True)
class Labelled:
    """An answer whose verdict is known, from people or from another judge."""

    asked: Asked
    right: bool


_LABELS = ("right", "correct", "is_correct", "judge_verdict", "gpt4o_correct")


def labelled(path: str) -> list[Labelled]:
    """The rows of a labelled file: problem (or question), answer, generation, and right as true or false.

    UsageError names the first row that is none.
    """
    found = []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"judge.labelled={path}: cannot be read ({error}); name a file of JSON lines") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            label = next(row[name] for name in _LABELS if isinstance(row.get(name), bool))
            texts = row.get("problem") or row["question"], row["answer"], row["generation"]
        except (ValueError, KeyError, StopIteration, AttributeError):
            texts, label = (None, None, None), False
        if not all(isinstance(text, str) for text in texts):
            raise UsageError(f"judge.labelled={path}: line {number} is no labelled answer; each has problem, answer, "
                             "generation (texts) and right (true or false)")
        found.append(Labelled(Asked(*texts), label))
    if not found:
        raise UsageError(f"judge.labelled={path}: holds no row; give some, or leave judge.labelled out")
    return found


def agreement(labels: Sequence[Labelled], judgements: Sequence[Judgement]) -> dict[str, int]:
    """Counts: of what is labelled right and wrong, how many the judge calls the same, and how many it did not judge."""
    counts = dict.fromkeys(("right", "right_agreed", "wrong", "wrong_agreed", "failed"), 0)
    for label, judgement in zip(labels, judgements, strict=True):
        kind, outcome = "right" if label.right else "wrong", judgement.verdict.outcome
        counts[kind] += 1
        counts["failed"] += outcome is Outcome.FAILED
        counts[f"{kind}_agreed"] += outcome is not Outcome.FAILED and (outcome is Outcome.RIGHT) is label.right
    return counts

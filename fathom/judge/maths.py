r"""Mathematical answers against a known one: settled here where that is quick, else in processes that can be killed.

The policy is the table of docs/answers.md: values must be equal; only where the gold answer is a decimal, and the
answer is no integer, a relative 1e-4 is allowed for rounding. No factor of 100, no mixing of bracket kinds, no absolute
tolerance. Every leniency of that sort is a reward that training finds.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Self

from fathom.core.errors import FathomError, UsageError
from fathom.judge.answers.answer import Answer, Cases, Value, Words
from fathom.judge.answers.compare import same_readings
from fathom.judge.answers.equality import rounding, same_value
from fathom.judge.answers.expressions import TooDear
from fathom.judge.answers.notation import clean
from fathom.judge.answers.options import option
from fathom.judge.answers.reading import readings
from fathom.judge.extract import Extracted, Unread, extract
from fathom.judge.pool import Broken, Pool
from fathom.judge.verdict import Verdict

LONGEST_ANSWER = 1_000  # of a gold answer in a data set
_LONGEST_READ = 200_000

_NUMBER = re.compile(r"([+-]?)(\d{1,3}(?:,\d{3})+|\d+)?(?:\.(\d*))?")
_COMMA_LATEX = re.compile(r"(?<=\d)(?:\{,\}|\\[,!;: ]|\\,)(?=\d{3}(?!\d))")
_SLASH = re.compile(r"([+-]?)(\d+)\s*/\s*(\d+)")
_FRAC = re.compile(r"([+-]?)\s*\\[dtc]?frac\s*(?:\{\s*([+-]?\d+)\s*\}|(\d))\s*(?:\{\s*([+-]?\d+)\s*\}|(\d))")
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
_EMPTY = re.compile(r"\\left(?![A-Za-z])|\\right(?![A-Za-z])|\\[!,;: ]|\\displaystyle(?![A-Za-z])")
_OWN_SPELLING = ("same spelling", "same option", "equal numbers", "equal numbers but for rounding")
_PLAIN_ANSWER = re.compile(  # numbers, names, points and words: no operation
    r"(?:(?:^|(?<=[(,;=\[{]))[+-]|\\text\{[^{}]*\}|\\[{}$]|\^\\circ|\\(?:pi|infty|alpha|beta|theta)(?![A-Za-z])"
    r"|[A-Za-z]+|\d+(?:\.\d+)?|[,;:()\[\]{}=%$ ])*"
)
_MOST_DIGITS = 4_000  # Python refuses longer integers from 4,300 digits on


def number(text: str, whole: bool = False) -> Fraction | None:
    r"""The exact value of a plain number, else None.

    Plain is: an integer, a decimal, thousands in commas or LaTeX's `{,}`, `1/2`, `\frac{1}{2}`; around it `$…$`, a
    currency `$`, a final period. With `whole` fractions do not count: for a whole answer a quotient is unfinished work.
    """
    bare = _bare(text)
    if len(bare) > _MOST_DIGITS:
        return None
    match = _NUMBER.fullmatch(bare)
    if match and (match[2] or match[3]):
        digits = (match[2] or "0").replace(",", "")
        value = Fraction(f"{digits}.{match[3]}" if match[3] else digits)
        return -value if match[1] == "-" else value
    if whole:
        return None
    if slash := _SLASH.fullmatch(bare):
        return _quotient(slash[1], slash[2], slash[3])
    if frac := _FRAC.fullmatch(bare):
        return _quotient(frac[1], frac[2] or frac[3], frac[4] or frac[5])
    return None


def _quotient(sign: str, top: str, bottom: str) -> Fraction | None:
    if int(bottom) == 0:
        return None
    value = Fraction(int(top), int(bottom))
    return -value if sign == "-" else value


def _bare(text: str) -> str:
    bare = text.strip()
    if len(bare) > 1 and bare.endswith(".") and not bare.endswith(".."):
        bare = bare[:-1].rstrip()
    for left, right in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if len(bare) > len(left) + len(right) and bare.startswith(left) and bare.endswith(right):
            bare = bare[len(left) : -len(right)].strip()
            break
    bare = bare.replace("\\$", "$").replace("−", "-").replace("\\dollar", "$")
    if match := re.fullmatch(r"([+-]?)\$\s*([\d.].*)", bare, re.DOTALL):
        bare = match[1] + match[2]
    bare = _COMMA_LATEX.sub(",", bare)
    return re.sub(r"^([+-])\s+", r"\1", bare.strip())


def normal_form(answer: str) -> str:
    r"""A spelling in which equal answers often meet: exact for numbers, blanks and LaTeX dressing removed for others.

    Equal forms mean equal answers; unequal forms mean nothing. Used for voting and before the slow comparison.
    """
    if (value := number(answer)) is not None:
        return str(value)
    form = _bare(answer)
    form = _TEXT.sub(r" \1 ", form)
    form = _EMPTY.sub(" ", form)
    form = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", form)
    form = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", form)
    form = re.sub(r"\s+", " ", form.strip())
    return _without_blanks(form)


def judge_number(gold: str, answer: str, whole: bool = False) -> Verdict | None:
    """RIGHT or WRONG where gold and answer are both plain numbers, else None. `whole` as in `number`."""
    expected, given = number(gold), number(answer, whole)
    if expected is None or given is None:
        return None
    if expected == given:
        return Verdict.right("equal numbers", answer)
    allowed = rounding(_bare(gold), exact="." not in answer) if min(expected.denominator, given.denominator) > 1 else 0
    if allowed and abs(expected - given) <= abs(expected) * Fraction(allowed):
        return Verdict.right("equal numbers but for rounding", answer)
    return Verdict.wrong("different numbers", answer)


class MathsJudge:
    """Verdicts on completions with mathematical answers; a context manager, or `close` it.

    What takes no algebra is settled here. The rest goes to `workers` processes running mpmath and math-verify, which
    start when first needed. An item that hangs beyond `timeout_s` seconds, kills its worker or runs out of `memory_mb`
    MiB is FAILED, and the rest is judged by a new worker.
    """

    def __init__(self, workers: int = 1, timeout_s: float = 5.0, memory_mb: int = 1024) -> None:
        self._pool = Pool("fathom.judge.answers.symbolic:compare", workers, timeout_s, memory_mb)
        self._known: dict[tuple[str, str], str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers; a later `judge` starts new ones."""
        self._pool.close()

    def judge(
        self, pairs: Sequence[tuple[str, str]], final: str = "auto", questions: Sequence[str | None] | None = None
    ) -> list[Verdict]:
        """One verdict per (gold answer, completion text), in order. `final` is `extract`'s.

        UNREAD: no answer in the text, or one that is no expression. FAILED: the judge broke, the comparison
        is too dear, or the gold answer itself makes no sense to it. FathomError when math-verify is needed and missing.
        With `questions`, one text per pair or None, an equal formula that stands in the question is WRONG: to repeat
        what was to be computed is no answer.
        """
        if questions is not None and len(questions) != len(pairs):
            raise UsageError(f"questions={len(questions)} texts for {len(pairs)} pairs: give one, or None, per pair")
        verdicts = self._judge([(gold, extract(text, final)) for gold, text in pairs])
        if questions is None:
            return verdicts
        return [
            Verdict.wrong("copied from the question", verdict.answer)
            if question is not None and _copied(verdict, question)
            else verdict
            for verdict, question in zip(verdicts, questions, strict=True)
        ]

    def equal(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """As `judge`, for answers that stand alone, without a text to extract them from."""
        return self._judge([(gold, Extracted(answer.strip(), "given")) for gold, answer in pairs])

    def _judge(self, pairs: Sequence[tuple[str, Extracted | Unread]]) -> list[Verdict]:
        verdicts: list[Verdict | None] = []
        asked: list[tuple[int, str, str]] = []
        for position, (gold, found) in enumerate(pairs):
            verdict = Verdict.unread(found.reason) if isinstance(found, Unread) else _at_once(gold, found.answer)
            if verdict is None and isinstance(found, Extracted):
                asked.append((position, gold, found.answer))
            verdicts.append(verdict)
        for (position, _, answer), said in zip(asked, self._compare([pair[1:] for pair in asked]), strict=True):
            verdicts[position] = _SAID[said](answer) if said in _SAID else Verdict.failed(said, answer)
        return [verdict for verdict in verdicts if verdict is not None]

    def _compare(self, pairs: Sequence[tuple[str, str]]) -> list[str]:
        if len(self._known) > 200_000:
            self._known.clear()
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        found: dict[tuple[str, str], str] = {}
        if new:
            if importlib.util.find_spec("math_verify") is None:
                raise FathomError(
                    f"comparing {new[0][1][:40]!r} with {new[0][0][:40]!r} needs math-verify: "
                    "pip install 'fathom-reasoning[judge]'"
                )
            for pair, value in zip(new, self._pool.map(new), strict=True):
                found[pair] = value.reason if isinstance(value, Broken) else value
                # Not remembered: what broke, for the next attempt may find an idle machine, and what fills the memory.
                if not isinstance(value, Broken) and max(map(len, pair)) <= LONGEST_ANSWER:
                    self._known[pair] = value
        return [found[pair] if pair in found else self._known[pair] for pair in pairs]


_SAID = {
    "equal": lambda answer: Verdict.right("equal expressions", answer),
    "different": lambda answer: Verdict.wrong("different expressions", answer),
    "answer": lambda answer: Verdict.unread("answer is not an expression", answer),
    "gold": lambda answer: Verdict.failed("gold answer cannot be read", answer),
    "dear": lambda answer: Verdict.failed("comparison is too dear", answer),
}


def _at_once(gold: str, answer: str) -> Verdict | None:
    """The verdict where it takes no algebra."""
    if not answer:
        return Verdict.unread("answer is empty")
    if verdict := judge_number(gold, answer):
        return verdict
    if max(len(gold), len(answer)) > LONGEST_ANSWER:
        return _of_long(gold, answer)
    if normal_form(gold) == normal_form(answer) or _spelling(gold) == _spelling(answer):
        return Verdict.right("same spelling", answer)
    if letter := option(gold):
        if chosen := option(answer, labelled=True):
            return (
                Verdict.right("same option", answer) if letter == chosen else Verdict.wrong("different options", answer)
            )
        if len(gold) > 1:  # a bare letter may also be a variable
            return Verdict.wrong("no option named", answer)
    try:
        golds, answers = _readings(gold), readings(answer)
    except TooDear:
        return None
    if answers and isinstance(answers[0], Words) and golds and not isinstance(golds[0], Words | Value | Cases):
        return Verdict.unread("answer is not an expression", answer)
    same = same_readings(golds, answers, same_value)
    if same is None:
        return None
    if same:
        return Verdict.right("equal answers", answer)
    if isinstance(answers[0], Words) and isinstance(golds[0], Value):
        return Verdict.unread("answer is not an expression", answer)
    return Verdict.wrong("different answers", answer)


def _spelling(answer: str) -> str:
    return _without_blanks(clean(answer))


def _without_blanks(text: str) -> str:
    """A blank between letters or digits tells "1 2" from "12" and stays, as does that of "1, 000"."""
    text = re.sub(r"(?<=\d), +(?=\d{3}(?!\d))", ";", text)
    return re.sub(r"(?<![0-9A-Za-z]) | (?![0-9A-Za-z])", "", text)


def _copied(verdict: Verdict, question: str) -> bool:
    """Whether a right answer is a formula to be computed that stands in the question."""
    if verdict.outcome != "right" or verdict.answer is None or verdict.reason in _OWN_SPELLING:
        return False
    answer = _compact(verdict.answer)
    if not answer or _PLAIN_ANSWER.fullmatch(answer):
        return False
    before = r"(?<![0-9A-Za-z])" if answer[0].isalnum() else ""
    after = r"(?![0-9A-Za-z])" if answer[-1].isalnum() else ""
    return re.search(before + re.escape(answer) + after, _compact(question)) is not None


def _compact(text: str) -> str:
    return re.sub(r"\{(\w)\}", r"\1", _spelling(text))


@functools.lru_cache(maxsize=4096)
def _readings(gold: str) -> tuple[Answer, ...]:
    return readings(gold)


def _of_long(gold: str, answer: str) -> Verdict | None:
    if gold == answer:
        return Verdict.right("same spelling", answer[:100])
    if max(len(gold), len(answer)) > _LONGEST_READ:
        return Verdict.failed(f"answer is longer than {_LONGEST_READ} characters", answer[:100])
    return None

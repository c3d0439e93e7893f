"""Needle in a haystack: a code stated once in a long text is asked for at its end; texts of such facts to learn from.

Everything is made from seeds: no text is read. Loads no torch.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fathom.core.chat import Message
from fathom.core.errors import UsageError
from fathom.judge.verdict import Verdict
from fathom.tasks.task import Problem, Split

NAMES = (
    "anna", "arno", "bela", "boris", "carla", "cyrus", "dana", "david", "edith", "emil", "fiona", "felix", "greta",
    "gustav", "hanna", "hugo", "irene", "ivan", "julia", "jonas", "karin", "kurt", "laura", "leon", "maria", "milan",
    "nora", "noah", "olga", "oscar", "paula", "peter", "rosa", "robert", "sara", "simon", "tessa", "tobias", "ursula",
    "viktor", "wanda", "walter", "yvonne", "zeno",
)
_ADJECTIVES = ("old", "quiet", "young", "tired", "clever", "slow", "happy", "pale")
_NOUNS = ("miller", "farmer", "sailor", "teacher", "baker", "hunter", "singer", "doctor")
_VERBS = ("walks", "returns", "looks", "comes", "travels", "drives", "turns", "hurries")
_PLACES = ("river", "village", "market", "forest", "harbour", "bridge", "garden", "mountain")
_WORDS = (*NAMES, *_ADJECTIVES, *_NOUNS, *_VERBS, *_PLACES, "The", "badge", "reads", "to", "the")
_PIECES = re.compile(r"\d|\s(?=\d)|[^\W\d_]+|[^\w\s]|_")
_NUMBER = re.compile(r"\d+")
_LONGEST = 1_000_000
AGAIN = 0.15  # chance that a text to learn from says the latest code once more
PASSAGE = (4, 32)  # words of a passage that `repeated` says over and over
DIGITS = 0.1  # chance that one of them is a digit: most are words, which seldom stand in a passage twice


def pieces(text: str) -> int:
    """How many words, digits, spaces before a digit and signs `text` has: tokens, where every word is one."""
    return len(_PIECES.findall(text))


@dataclass(frozen=True)
class Haystack:
    """A text that states facts; `text` + `cue` is what a model completes, `name`'s code being the right continuation.

    `question` asks for the same in a chat.
    """

    text: str
    name: str
    code: str

    @property
    def cue(self) -> str:
        """The fact's sentence up to where its code begins."""
        return f" {_opening(self.name)}"

    @property
    def question(self) -> str:
        """The text and a question about it."""
        return f"{self.text}\nWhich number does the badge of {self.name} bear? Answer with the number alone."


def haystack(
    length: int, depth: float, seed: str, *, others: int = 3, digits: int = 4,
    measure: Callable[[str], int] = pieces,
) -> Haystack:
    """Filler in which one fact stands at `depth` (0: first sentence, 1: last) and `others` about other names at random.

    Text and cue together have at most `length` units of `measure`, short of it by less than a sentence. Depends on the
    arguments alone. Raises UsageError where the facts do not fit.
    """
    rng = random.Random(seed)
    names = rng.sample(NAMES, others + 1)
    codes = rng.sample(range(10**digits), others + 1)  # no two alike: an answer names one fact
    facts = [fact(name, f"{code:0{digits}}") for name, code in zip(names, codes, strict=True)]
    made = Haystack("", names[0], f"{codes[0]:0{digits}}")
    room = length - measure(made.cue)
    filler: list[str] = []
    size = measure(" ".join(facts))
    if size > room:
        raise UsageError(f"length={length}: {others + 1} facts and the question take {size + length - room}; ask for "
                         "longer texts, or fewer others")
    while True:  # in strides first: measuring the whole text after every sentence would take squared time
        one = _filler(rng)
        size += measure(f" {one}")
        if size > room:
            break
        filler.append(one)
    sentences = list(filler)
    for other in facts[1:]:
        sentences.insert(rng.randint(0, len(sentences)), other)
    sentences.insert(round(depth * len(sentences)), facts[0])
    while measure(" ".join(sentences) + made.cue) > length and filler:  # sentences joined may measure more than alone
        sentences.remove(filler.pop())
    return Haystack(" ".join(sentences), made.name, made.code)


def document(length: int, seed: str, *, facts: float = 0.5, names: int = 6, digits: int = 4) -> str:
    """A text of at most `length` pieces to learn from: filler, and in a share `facts` of its sentences the codes of up
    to `names` people, each said over and over: all but its first mention can be known from what stands before.
    """
    rng = random.Random(seed)
    chosen = rng.sample(NAMES, rng.randint(min(3, names), names))
    known = {name: f"{rng.randrange(10**digits):0{digits}}" for name in chosen}
    turn: list[str] = []
    last = ""
    sentences: list[str] = []
    size = 0
    while True:
        if rng.random() < facts:
            if not last or rng.random() >= AGAIN:  # in turn, so that repeating the latest code is seldom right
                if not turn:
                    turn = rng.sample(chosen, len(chosen))
                    if turn[-1] == last:
                        turn.reverse()
                last = turn.pop()
            said = fact(last, known[last])
        else:
            said = _filler(rng)
        size += pieces(said)
        if size > length and sentences:
            return " ".join(sentences)
        sentences.append(said)


def repeated(length: int, seed: str) -> str:
    """A text of at most `length` pieces in which one passage of random words and a few digits is said over and over.

    What stood after the same words before is the only way to know a word, and it is right at nearly all of them. A
    model that reads such texts among `document`s learns to look back first here, and then for codes by their names.
    No space stands between a passage and its next time: with one the same takes several times the tokens
    (docs/log.md).
    """
    rng = random.Random(seed)
    passage = [
        str(rng.randrange(10)) if rng.random() < DIGITS else rng.choice(_WORDS) for _ in range(rng.randint(*PASSAGE))]
    words: list[str] = []
    size = 0
    while True:
        at = len(words) % len(passage)
        word = f" {passage[at]}" if at else passage[at]
        size += pieces(word)
        if size > length and words:
            return "".join(words)
        words.append(word)


def fact(name: str, code: str) -> str:
    """The sentence that states a code."""
    return f"{_opening(name)}{code}."


def _opening(name: str) -> str:
    return f"The badge reads {name}"  # the code follows the name at once: what stood after it is what is asked for


def _filler(rng: random.Random) -> str:
    return (f"The {rng.choice(_ADJECTIVES)} {rng.choice(_NOUNS)} {rng.choice(_VERBS)} to the {rng.choice(_PLACES)}.")


def judge_code(code: str, text: str) -> Verdict:
    """RIGHT where the first number of `text` is `code`, digit for digit; without a number it is UNREAD."""
    found = _NUMBER.search(text)
    if not found:
        return Verdict.unread("no number")
    answer = found.group()
    if answer == code:
        return Verdict.right("the code", answer[:40])
    return Verdict.wrong("another number", answer[:40])


class NeedleTask:
    """Problems with a code to find: `NeedleTask(length=1024, depths=[0, 0.5, 1])`.

    length: longest text, in pieces (words, digits, signs). depths: where the fact stands, in turn; null draws it anew.
    others: facts about other names beside it. digits: of a code.
    learn: what a training problem's solution is: `answer`, or a text to pre-train on (the data option `use: solution`
        takes it alone): with `document` its sentences are facts to the share `facts`, about up to `names` people, with
        `repeated` a passage of random words is said over and over.
    """

    def __init__(
        self, *, length: int = 256, depths: Sequence[float] | None = None, others: int = 3, digits: int = 4,
        learn: str = "answer", facts: float = 0.5, names: int = 6,
    ) -> None:
        self.name = "needle"
        _whole("length", length, 16, _LONGEST)
        _whole("others", others, 0, len(NAMES) - 1)
        _whole("digits", digits, 1, 12)
        _whole("names", names, 1, len(NAMES))
        if 10**digits <= others:
            raise UsageError(f"digits={digits}: {others + 1} different codes do not exist; allow more digits")
        if learn not in ("answer", "document", "repeated"):
            raise UsageError(f"learn={learn!r:.80}: use answer, document or repeated")
        _share("facts", facts)
        if depths is not None:
            if not isinstance(depths, list | tuple) or not depths:
                raise UsageError(f"depths={depths!r:.80}: shares of the text from 0 to 1; write depths: [0, 0.5, 1]")
            for depth in depths:
                _share("depths", depth)
        self.length, self.depths, self.others, self.digits = length, depths, others, digits
        self.learn, self.facts, self.names = learn, facts, names
        haystack(length, 0.0, "fits", others=others, digits=digits)

    def problems(self, split: Split, limit: int | None = None, seed: int = 0) -> Iterator[Problem]:
        """Problems without end, at most `limit`; those of train and test are drawn apart."""
        if split not in ("train", "test"):
            raise UsageError(f"split={split!r}: use train or test")
        number = 0
        while limit is None or number < limit:
            name = f"{split} {seed} {number}"
            depth = random.Random(f"depth {name}").random()
            if self.depths is not None:
                depth = self.depths[number % len(self.depths)]
            made = haystack(self.length, depth, name, others=self.others, digits=self.digits)
            text, solution = made.question, made.code
            if self.learn == "document" and split == "train":
                solution = document(self.length, name, facts=self.facts, names=self.names, digits=self.digits)
            elif self.learn == "repeated" and split == "train":
                solution = repeated(self.length, name)
            number += 1
            yield Problem(
                hashlib.sha256(f"{text}\n{solution}".encode()).hexdigest()[:16], (Message("user", text),), made.code,
                self.name, solution, {"depth": depth, "name": made.name},
            )

    def judge(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """RIGHT where a completion's first number is the code."""
        return [judge_code(problem.answer, text) for problem, text in items]


def _whole(name: str, value: Any, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UsageError(f"{name}={value!r:.80}: must be a whole number from {least} to {most}; set it so")


def _share(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UsageError(f"{name}={value!r:.80}: must be a number from 0 to 1; give a share")

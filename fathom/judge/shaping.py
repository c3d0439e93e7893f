"""What a reward may say beside right and wrong: form, language, length. None of them looks at the answer's value."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

from fathom.core.errors import UsageError
from fathom.judge.verdict import Answered, Outcome

_FORMAT = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
_TAG = re.compile(r"</?(?:think|answer)>")
_OPENED = re.compile(r"<think>\s*$")

# what is no prose: mathematics and code count in no language (rl.md §11: they would all be English)
_NO_PROSE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$[^$]*\$\$|\$[^$\n]*\$|\\\[.*?(?:\\\]|\Z)|\\\(.*?(?:\\\)|\Z)"
    r"|\\[A-Za-z]+(?:\{[^{}]*\})*|</?[A-Za-z]+>|https?://\S+",
    re.DOTALL,
)
_WORD = re.compile(r"[^\W\d_]+")
# first and last code points of the scripts that can be told apart; a character of _EACH is a word by itself
SCRIPTS: dict[str, tuple[tuple[int, int], ...]] = {
    "latin": ((0x41, 0x24F), (0x1E00, 0x1EFF)),
    "greek": ((0x370, 0x3FF), (0x1F00, 0x1FFF)),
    "cyrillic": ((0x400, 0x52F),),
    "hebrew": ((0x590, 0x5FF),),
    "arabic": ((0x600, 0x6FF), (0x750, 0x77F)),
    "devanagari": ((0x900, 0x97F),),
    "thai": ((0xE00, 0xE7F),),
    "hangul": ((0x1100, 0x11FF), (0xAC00, 0xD7AF)),
    "kana": ((0x3040, 0x30FF),),
    "han": ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0x20000, 0x2FA1F)),
}
_EACH = ("han", "kana", "thai")
_VARIABLES = ("latin", "greek")  # whose single letters are no words
_WRITTEN_WITH = {"han": ("han",), "kana": ("kana", "han"), "hangul": ("hangul", "han")}


def format(answered: Sequence[Answered]) -> list[float | None]:
    """1 for exactly one think pair, then exactly one answer pair, only blanks around, ended by the model; else 0.

    DeepSeek-R1 §2.2.2. Blanks between tags are free: demanding newlines would be a rule that the prompt never states.
    Where the prompt itself ends in `<think>`, the completion starts inside the pair.
    """
    return [1.0 if _well_formed(one) else 0.0 for one in answered]


def _well_formed(one: Answered) -> bool:
    if one.finish != "stop":
        return False
    opened = bool(one.prompt) and _OPENED.search(one.prompt[-1].text) is not None
    text = "<think>" + one.text if opened and "<think>" not in one.text else one.text
    return len(_TAG.findall(text)) == 4 and _FORMAT.fullmatch(text) is not None


def language(answered: Sequence[Answered], *, script: str = "prompt") -> list[float | None]:
    """The share of the completion's words that are in the prompt's script, or in `script` (DeepSeek-R1 §2.3.2).

    Words of prose only: mathematics, code and tags count in no language, nor do single Latin and Greek letters.
    Chinese, Japanese and Thai characters are a word each. Languages of one script, like English and French, are not
    told apart. A completion without a word is 1: nothing in it is in another language; other rewards are to judge it.
    """
    if script != "prompt" and script not in SCRIPTS:
        raise UsageError(f"language: script={script!r:.80}: not a script; use prompt or one of {', '.join(SCRIPTS)}")
    return [_share(one, script) for one in answered]


def _share(one: Answered, script: str) -> float:
    wanted = script
    if script == "prompt":
        asked = words(one.prompt[-1].text if one.prompt else "")
        if not asked:
            return 1.0
        # Japanese prose has both scripts; one kana tells it from Chinese
        wanted = "kana" if asked["kana"] else asked.most_common(1)[0][0]
    said = words(one.text)
    total = said.total()
    return sum(said[name] for name in _WRITTEN_WITH.get(wanted, (wanted,))) / total if total else 1.0


def words(text: str) -> Counter[str]:
    """Number of words of prose in `text`, by script; "other" for scripts that are not listed."""
    found: Counter[str] = Counter()
    for match in _WORD.finditer(_NO_PROSE.sub(" ", text)):
        run = Counter(_script(character) for character in match.group())
        for name in _EACH:
            found[name] += run.pop(name, 0)
        if run:
            name = run.most_common(1)[0][0]
            found[name] += run.total() > 1 or name not in _VARIABLES
    return +found


def _script(character: str) -> str:
    point = ord(character)
    return next(
        (name for name, ranges in SCRIPTS.items() if any(first <= point <= last for first, last in ranges)), "other"
    )


def overlong(answered: Sequence[Answered], *, buffer: int | None = None) -> list[float | None]:
    """0 up to `buffer` tokens below the limit, falling to −1 at the limit (DAPO, arXiv 2503.14476).

    `buffer` is a fifth of the limit unless given, as 4,096 of 20,480 in the paper.
    """
    if buffer is not None and (isinstance(buffer, bool) or not isinstance(buffer, int) or buffer < 1):
        raise UsageError(f"overlong: buffer={buffer!r:.80}: must be a whole number ≥ 1; leave it out for a fifth")
    values: list[float | None] = []
    for one in answered:
        limit = _limit(one, "overlong")
        width = max(1, limit // 5) if buffer is None else buffer
        if width > limit:
            raise UsageError(f"overlong: buffer={width}: must lie in 1–{limit}, the most tokens of a completion")
        values.append(max(-1.0, min(0.0, (limit - width - one.tokens) / width)))
    return values


def cosine_length(
    answered: Sequence[Answered], *, right: tuple[float, float] = (1.0, 0.5), wrong: tuple[float, float] = (-1.0, -0.5)
) -> list[float | None]:
    """Short right answers earn most, long wrong ones lose least, along half a cosine (arXiv 2502.03373).

    `right` and `wrong` are the values at length 0 and at the limit. None where the judge failed.
    """
    for name, pair in (("right", right), ("wrong", wrong)):
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(v, int | float) for v in pair):
            raise UsageError(f"cosine_length: {name}={pair!r:.80}: must be two numbers, as in {name}: [1.0, 0.5]")
    values: list[float | None] = []
    for one in answered:
        if one.verdict.outcome is Outcome.FAILED:
            values.append(None)
            continue
        short, long = right if one.verdict.outcome is Outcome.RIGHT else wrong
        share = min(1.0, one.tokens / _limit(one, "cosine_length"))
        values.append(long + 0.5 * (short - long) * (1 + math.cos(math.pi * share)))
    return values


def group_length(answered: Sequence[Answered]) -> list[float | None]:
    """½ for the shortest completion of a problem to −½ for the longest; wrong ones never above 0 (Kimi k1.5).

    None where the judge failed; such completions still count among the lengths. 0 where all are equally long.
    """
    lengths: dict[str, list[int]] = {}
    for one in answered:
        lengths.setdefault(one.problem, []).append(one.tokens)
    values: list[float | None] = []
    for one in answered:
        if one.verdict.outcome is Outcome.FAILED:
            values.append(None)
            continue
        shortest, longest = min(lengths[one.problem]), max(lengths[one.problem])
        value = 0.5 - (one.tokens - shortest) / (longest - shortest) if longest > shortest else 0.0
        values.append(value if one.verdict.outcome is Outcome.RIGHT else min(0.0, value))
    return values


def _limit(one: Answered, reward: str) -> int:
    if one.limit < 1:
        raise UsageError(f"{reward}: limit={one.limit}: needs the most tokens of a completion; set Answered.limit")
    return one.limit

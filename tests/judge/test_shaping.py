"""Language and length rewards against numbers worked out by hand."""

import math
import time

import pytest

from fathom.core.chat import Message
from fathom.core.errors import UsageError
from fathom.judge.shaping import cosine_length, group_length, language, overlong, words
from fathom.judge.verdict import Answered, Verdict

RIGHT, WRONG, FAILED = Verdict.right(), Verdict.wrong("w"), Verdict.failed("f")


def said(text: str, prompt: str = "How many apples are left?") -> Answered:
    return Answered((Message("user", prompt),), text, RIGHT)


def long(tokens: int, limit: int = 0, verdict: Verdict = RIGHT, problem: str = "p") -> Answered:
    return Answered((), "", verdict, tokens=tokens, limit=limit, problem=problem)


@pytest.mark.parametrize(
    ("text", "prompt", "share"),
    [
        ("There are three apples", "How many apples?", 1.0),
        ("three 苹果", "How many apples?", 1 / 3),
        ("苹果 three", "有几个苹果?", 2 / 3),
        ("りんごは三つ", "りんごはいくつ?", 1.0),  # Japanese is written with kana and han
        ("苹果三个", "りんごはいくつ?", 1.0),  # what cannot be told apart is not punished
        ("Три яблока left", "Сколько яблок?", 2 / 3),
        ("사과 세 개 left", "사과가 몇 개?", 3 / 4),
        ("$x = 三$ ```python\nprint('яблоко')\n``` \\text{яблок} three", "How many?", 1.0),  # no prose
        ("2 + 2 = 4", "How many apples?", 1.0),
        ("", "How many apples?", 1.0),
        ("x 三", "y = 2", 1.0),  # a prompt without words asks for no language
    ],
)
def test_language_counts_words_of_prose(text: str, prompt: str, share: float) -> None:
    assert language([said(text, prompt)]) == [pytest.approx(share)]


def test_language_by_option() -> None:
    assert language([said("три apples")], script="cyrillic") == [0.5]
    with pytest.raises(UsageError, match="script='klingon'"):
        language([said("a")], script="klingon")


def test_words_take_linear_time() -> None:
    for piece in ("$", "`", "\\(", "\\a{", "{", "<a", "```", "\\[ $$ ", "http://"):
        before = time.monotonic()
        words(piece * (200_000 // len(piece)))
        assert time.monotonic() - before < 1.0, piece


def test_overlong_at_the_numbers_of_dapo() -> None:
    lengths = [16_384, 18_432, 20_480, 21_000, 1]
    assert overlong([long(n, 20_480) for n in lengths], buffer=4096) == [0, -0.5, -1, -1, 0]
    assert overlong([long(n, 20_480) for n in lengths]) == [0, -0.5, -1, -1, 0]  # a fifth is what DAPO takes
    with pytest.raises(UsageError, match="buffer=0: must be a whole number"):
        overlong([long(1, 8)], buffer=0)
    with pytest.raises(UsageError, match="limit=0"):
        overlong([long(1)])


def test_cosine_length() -> None:
    ends = [long(0, 100), long(50, 100), long(100, 100), long(200, 100)]
    assert cosine_length(ends) == pytest.approx([1.0, 0.75, 0.5, 0.5])
    assert cosine_length([long(n, 100, WRONG) for n in (0, 50, 100)]) == pytest.approx([-1.0, -0.75, -0.5])
    quarter = 0.5 + 0.25 * (1 + math.cos(math.pi / 4))
    assert cosine_length([long(25, 100), long(9, 9, FAILED)]) == [pytest.approx(quarter), None]
    assert cosine_length([long(0, 100)], right=(2.0, 0.0)) == [2.0]


def test_group_length_compares_within_a_problem() -> None:
    group = [long(10), long(20), long(30), long(10, verdict=WRONG), long(30, verdict=WRONG), long(15, verdict=FAILED)]
    other = [long(500, problem="q"), long(500, problem="q")]
    assert group_length([*group, *other]) == [0.5, 0.0, -0.5, 0.0, -0.5, None, 0.0, 0.0]

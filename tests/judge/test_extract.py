"""Extraction: only what a text commits to is its answer."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.core.errors import UsageError
from fathom.judge.extract import FINALS, Extracted, Unread, boxes, extract


@pytest.mark.parametrize(
    ("text", "answer", "how"),
    [
        ("<think>\\boxed{3}</think> so \\boxed{5}", "5", "boxed"),
        ("<think>a</think><think>b</think><answer> 7 </answer>", "7", "answer_tag"),
        ("<answer>7</answer> and again <answer>7</answer>", "7", "answer_tag"),
        ("<answer>It is \\boxed{8}.</answer>", "8", "answer_tag"),
        ("<answer>7</answer> \\boxed{9}", "7", "answer_tag"),
        (r"\boxed{\frac{1}{2}} then \boxed{\text{if } x > {y}}", r"\text{if } x > {y}", "boxed"),
        (r"\boxed{\left\{ 1, 2 \right.}", r"\left\{ 1, 2 \right.", "boxed"),
        (r"\boxed{\boxed{5}}", "5", "boxed"),
        (r"\fbox{5}", "5", "boxed"),
        (r"so $\boxed 5$.", "5", "boxed"),
        (r"\boxed{3} and, cut off, \boxed{5", "3", "boxed"),
        (r"\boxed{1} so \boxed{1} so \boxed{2}", "2", "boxed"),
        (r"\boxed{1} and \boxed{1}, \boxed{2} \boxed{3}", "1, 2, 3", "boxed"),
        (r"$\boxed{(98, 2)} \quad \text{and} \quad \boxed{(99, 503)}$", "(98, 2), (99, 503)", "boxed"),
        (r"$x = \boxed{1}$ or $x = \boxed{2}$, as $\boxed{1}, \boxed{2}$", "1, 2", "boxed"),
        ("working\n#### 1,234", "1,234", "hash"),
        ("#### 3\n#### 4", "4", "hash"),
        ("The answer is 12.5. I hope it helps.", "12.5", "phrase"),
        ("**Final Answer:** $x = 3$", "$x = 3$", "phrase"),
        ("the answer is 3, no, the answer is: **4**", "4", "phrase"),
        ("The final answer to this maths problem is 2.", "2", "phrase"),
        ("The correct answer is (C).", "(C)", "phrase"),
        ("The answers are $1$ and $2$.", "$1$ and $2$", "phrase"),
        ("**Final Answer**\n\n\\[\n5\n\\]", "\\[\n5\n\\]", "phrase"),
        ("The answer is 4. No: $x = 5$ is the final answer.", "$x = 5$", "phrase"),
        ("## Answer\n8", "8", "phrase"),
        ("The right choice is (D).", "(D)", "phrase"),
        ("The answer is roughly 8.", "8", "phrase"),
        ("答案：8", "8", "phrase"),
        ("答案是 8。", "8", "phrase"),
        ("Die Antwort lautet 8.", "8", "phrase"),
        ("La respuesta es 8.", "8", "phrase"),
        ("La réponse est 8.", "8", "phrase"),
        (r"\boxed{\text{Answer: } 8}", "8", "boxed"),
        (r"\boxed{\text{The answer is 8}}", "8", "boxed"),
        (r"\boxed{8}, as asked in \boxed{}", "8", "boxed"),
        ("<answer>The final answer is 8.</answer>", "8", "answer_tag"),
        ("#### Answer: 8", "8", "hash"),
    ],
)
def test_found(text: str, answer: str, how: str) -> None:
    assert extract(text) == Extracted(answer, how)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "text is empty"),
        ("<think>x</think>  ", "text is empty"),
        ("I think 5 or 6", "no answer found"),
        ("<think>the answer is 5", "thinking was never closed"),
        ("<think>a</think> 5 <think> \\boxed{5}", "thinking was never closed"),
        ("<think>\\boxed{5}</think> done", "no answer found"),
        ("<answer>5", "answer tag was never closed"),
        ("<answer>5</answer><answer>6", "answer tag was never closed"),
        ("<answer>5</answer><answer>6</answer>", "answer tags disagree"),
        ("<answer>  </answer>", "answer is empty"),
        ("####   \n", "answer is empty"),
        (r"\boxed{1} hm \boxed{2} hm \boxed{3}", "box spam"),
        (r"\boxed{1}, \boxed{2} or rather \boxed{3}, or rather \boxed{4}", "box spam"),
        (r"\boxed{}", "answer is empty"),
        ("I wonder what the answer is: 8", "no answer found"),
        ("So the answer is 8?", "no answer found"),
    ],
)
def test_unread(text: str, reason: str) -> None:
    assert extract(text) == Unread(reason)


def test_a_named_form_looks_for_nothing_else() -> None:
    text = "<answer>1</answer> \\boxed{2}\n#### 3\nanswer: 4"
    found = {final: extract(text, final) for final in ("answer_tag", "boxed", "hash", "phrase")}
    assert found == {
        "answer_tag": Extracted("1", "answer_tag"),
        "boxed": Extracted("2", "boxed"),
        "hash": Extracted("3", "hash"),
        "phrase": Extracted("4", "phrase"),
    }
    assert extract("#### 3", "boxed") == Unread("no answer found")
    with pytest.raises(UsageError, match="final='last'"):
        extract(text, "last")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("She makes 9 * 2 = $18\nA: 18", "18"),
        ("it's not 10, it's 1,000.99€", "1,000.99"),
        ("$28$ %", "$28$ %"),
        ("Thus $x \\leq 2$ it is.", "x \\leq 2"),
        ("Final Answer: Jane started 3 hours ago.", "3"),
        ("so -5 there", "-5"),
        (r"\boxed{4}, not 5", "4"),
    ],
)
def test_anything_will_do_where_it_is_asked_for(text: str, answer: str) -> None:
    found = extract(text, "any")
    assert isinstance(found, Extracted)
    assert found.answer == answer


def test_a_number_inside_a_word_is_none() -> None:
    assert extract("AZYUK2A", "any") == Unread("no answer found")


NASTY = (
    "\\boxed{", "<answer>", "answer to ", "$", "\\(", "1,", "answer is ", "1", "{", "\\boxed{1} and ", "<think>",
    "a = ", " ", "#### ", "\\[ ", "1,000", "x is ", "answer:", "a", "\\text{and}", " and", "is the answer ", "$ $",
    "-", "*", "\n",
)  # fmt: skip


@pytest.mark.parametrize("piece", NASTY)
def test_a_hundred_thousand_characters_take_less_than_a_second(piece: str) -> None:
    text = piece * (100_000 // len(piece))
    for nasty in (text, f"\\boxed{{1}}{text}\\boxed{{2}}", f"the answer is {text}"):
        for final in FINALS:
            start = time.perf_counter()
            extract(nasty, final)
            assert time.perf_counter() - start < 1.0


balanced = st.recursive(
    st.text(st.characters(exclude_characters="{}\\", exclude_categories=["Cs"]), max_size=5),
    lambda inside: st.tuples(inside, inside, inside).map(lambda t: t[0] + "{" + t[1] + "}" + t[2]),
    max_leaves=8,
)


@given(balanced, st.text(st.characters(exclude_characters="{}\\<>", exclude_categories=["Cs"]), max_size=20))
def test_balanced_braces_come_back_whole(content: str, around: str) -> None:
    text = f"{around}\\boxed{{{content}}}{around}"
    assert boxes(text) == [content.strip()]


@given(st.text(alphabet="{}\\boxed<think>/answer#: \n5", max_size=200))
def test_never_raises_and_never_returns_nothing(text: str) -> None:
    found = extract(text)
    assert isinstance(found, Unread) or found.answer.strip()


@given(st.text(max_size=50))
def test_nothing_inside_thinking_counts(thought: str) -> None:
    closed = thought.replace("<think>", "").replace("</think>", "")
    assert extract(f"<think>{closed}</think>") == Unread("text is empty")

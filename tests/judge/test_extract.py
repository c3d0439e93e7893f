"""Extraction: only what a text commits to is its answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.core.errors import UsageError
from fathom.judge.extract import Extracted, Unread, boxes, extract


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
        (r"\boxed{1} \boxed{1} \boxed{2} \boxed{3}", "3", "boxed"),
        ("working\n#### 1,234", "1,234", "hash"),
        ("#### 3\n#### 4", "4", "hash"),
        ("The answer is 12.5. I hope it helps.", "12.5", "phrase"),
        ("**Final Answer:** $x = 3$", "$x = 3$", "phrase"),
        ("the answer is 3, no, the answer is: **4**", "4", "phrase"),
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
        (r"\boxed{1}\boxed{2}\boxed{3}\boxed{4}", "box spam"),
        (r"\boxed{}", "answer is empty"),
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

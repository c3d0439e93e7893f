"""Thinking and answer, whatever pieces the text comes in."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.engine.server.reasoning import CLOSE, OPEN, Thinking, ThoughtTokens

# what a split can go wrong at: marks, halves of marks, line ends
TEXTS = st.lists(st.sampled_from([OPEN, CLOSE, "<", "</", "<thi", "nk>", "</think", ">", "\n", "\n\n", " ", "a", "日",
                                  "b c"]), max_size=12).map("".join)


def split(pieces: list[str], opened: bool) -> tuple[str, str]:
    thinking = Thinking(opened)
    parts = [*(thinking.feed(piece) for piece in pieces), thinking.close()]
    return "".join(thought for thought, _ in parts), "".join(answer for _, answer in parts)


def cut(text: str, places: list[int]) -> list[str]:
    marks = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in itertools.pairwise(marks)]


def plainly(text: str, opened: bool) -> tuple[str, str]:
    """The same in words: of the whole text, with no state."""
    if not opened:
        begin = text.lstrip(" \t\r\n")
        if not begin.startswith(OPEN):
            return "", text
        text = begin[len(OPEN):]
    thought, mark, answer = text.partition(CLOSE)
    thought = thought.lstrip("\r\n")
    return (thought.rstrip("\r\n"), answer.lstrip("\r\n")) if mark else (thought, "")


@pytest.mark.property
@settings(max_examples=400, deadline=None)
@given(TEXTS, st.lists(st.integers(0, 200), max_size=12), st.booleans())
def test_borders_do_not_matter(text: str, places: list[int], opened: bool) -> None:
    assert split(cut(text, places), opened) == split(list(text), opened) == plainly(text, opened)


@pytest.mark.property
@settings(max_examples=400, deadline=None)
@given(TEXTS, st.lists(st.integers(0, 400), max_size=30), st.booleans())
def test_thinking_tokens_are_those_up_to_its_end(text: str, places: list[int], opened: bool) -> None:
    written = text.encode()
    tokens = [piece.encode("latin-1") for piece in cut(written.decode("latin-1"), places)]
    counted = ThoughtTokens(opened)
    for token in tokens:
        counted.add(token)
    begin = text.lstrip(" \t\r\n")
    if not opened and not begin.startswith(OPEN):
        assert counted.count == 0
        return
    start = 0 if opened else written.index(OPEN.encode()) + len(OPEN)
    end = written.find(CLOSE.encode(), start)
    reached, expected = 0, 0
    for token in tokens:
        if end >= 0 and reached >= end + len(CLOSE):
            break
        expected, reached = expected + 1, reached + len(token)
    assert counted.count == expected


def test_what_is_certain_is_told_at_once() -> None:
    thinking = Thinking(True)
    assert thinking.feed("so") == ("so", "")
    assert thinking.feed(" it is\n") == (" it is", "")
    assert thinking.feed("</th") == ("", "")
    assert thinking.feed("ink>\n\n5") == ("", "5")
    assert thinking.feed(" <think>") == ("", " <think>")
    plain = Thinking(False)
    assert plain.feed("<b>") == ("", "<b>")

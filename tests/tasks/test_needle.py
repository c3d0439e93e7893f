"""Haystacks and documents made from seeds, and the judge of what a model found in them."""

from __future__ import annotations

import re

import pytest

from fathom.core.errors import UsageError
from fathom.judge.verdict import Outcome
from fathom.tasks.examples import load_source
from fathom.tasks.needle import NeedleTask, document, fact, haystack, judge_code, pieces, repeated
from fathom.tasks.task import load_task

TASK = "fathom.tasks.needle:NeedleTask"
FACT = re.compile(r"The badge reads ([a-z]+)(\d+)\.")


@pytest.mark.parametrize("depth", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("length", [96, 256, 2000])
def test_a_haystack_has_its_length_and_its_needle_at_its_depth(length: int, depth: float) -> None:
    made = haystack(length, depth, "seed")
    assert length - 12 < pieces(made.text + made.cue) <= length
    facts = FACT.findall(made.text)
    assert len(facts) == 4
    assert facts.count((made.name, made.code)) == 1
    assert len({name for name, _ in facts}) == len({code for _, code in facts}) == 4
    sentences = made.text.split(". ")
    at = next(i for i, s in enumerate(sentences) if s.startswith(f"The badge reads {made.name}"))
    assert at == round(depth * (len(sentences) - 1))
    assert made.cue == f" The badge reads {made.name}"
    assert f"{made.text}{made.cue}{made.code}.".endswith(fact(made.name, made.code))


def test_it_depends_on_its_arguments_alone() -> None:
    assert haystack(300, 0.5, "a") == haystack(300, 0.5, "a")
    assert haystack(300, 0.5, "a") != haystack(300, 0.5, "b")
    assert document(200, "a") == document(200, "a") != document(200, "b")
    made = haystack(200, 0.5, "fixed", others=0)  # the same on every machine and version: a score names its problems
    assert (made.name, made.code) == ("dana", "8609")


def test_it_is_measured_by_what_the_caller_counts() -> None:
    made = haystack(2000, 0.5, "a", measure=len)
    assert 1900 < len(made.text + made.cue) <= 2000


def test_facts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match=r"length=30: 4 facts and the question take \d+; ask for longer texts"):
        haystack(30, 0.5, "a")


def test_a_document_says_the_same_of_everybody_all_along() -> None:
    for seed in map(str, range(50)):
        text = document(400, seed, facts=0.7, names=4)
        assert 380 < pieces(text) <= 400
        facts = FACT.findall(text)
        assert len(facts) > len(set(facts)), "nothing is said twice, so nothing can be known"
        assert len(set(facts)) == len({name for name, _ in facts}) <= 4
    assert not FACT.search(document(400, "a", facts=0.0))


def test_a_repeated_passage_can_be_known_from_its_first_time() -> None:
    sizes = set()
    for seed in map(str, range(200)):
        text = repeated(300, seed)
        assert 200 < pieces(text) <= 300
        period = next(n for n in range(1, len(text)) if text[n:] == text[:-n])
        assert len(text) >= 2 * period
        sizes.add(len(text[:period].split()))
    assert sizes == set(range(4, 33)), "every length of a passage, and no other"
    assert len({repeated(300, seed) for seed in map(str, range(200))}) == 200
    assert repeated(300, "a") == repeated(300, "a")


@pytest.mark.parametrize(("text", "outcome"), [
    (" 4711.", Outcome.RIGHT), ("The code is 4711", Outcome.RIGHT), ("**4711**, I think, not 1234", Outcome.RIGHT),
    ("4712", Outcome.WRONG), ("47115", Outcome.WRONG), ("471", Outcome.WRONG), ("1234, no, 4711", Outcome.WRONG),
    ("no idea", Outcome.UNREAD), ("", Outcome.UNREAD),
])
def test_the_first_number_must_be_the_code(text: str, outcome: Outcome) -> None:
    assert judge_code("4711", text).outcome is outcome
    task = NeedleTask(length=128)
    problem = next(task.problems("test", 1))
    assert [v.outcome for v in task.judge([(problem, problem.answer), (problem, "x"), (problem, "7")])] == [
        Outcome.RIGHT, Outcome.UNREAD, Outcome.WRONG]


def test_a_code_keeps_its_zeros() -> None:
    assert judge_code("0042", " 0042.").outcome is Outcome.RIGHT
    assert judge_code("0042", " 42.").outcome is Outcome.WRONG


def test_a_task_gives_the_same_problems_and_none_of_training_in_test() -> None:
    task = load_task({"task": TASK, "length": 200, "depths": [0, 1]})
    first, again, train = (list(task.problems(split, 8)) for split in ("test", "test", "train"))
    assert first == again
    assert not {p.id for p in first} & {p.id for p in train}
    assert [p.meta["depth"] for p in first] == [0, 1] * 4
    assert all(p.solution == p.answer and p.prompt[0].text.endswith("Answer with the number alone.") for p in first)


def test_documents_to_learn_from_come_as_texts() -> None:
    source = load_source({"task": TASK, "length": 200, "learn": "document", "use": "solution", "count": 5}, 3)
    texts = [source.example(record) for record in source.records()]
    assert len(set(texts)) == 5
    assert all(isinstance(text, str) and FACT.search(text) for text in texts)
    source = load_source({"task": TASK, "length": 200, "learn": "repeated", "use": "solution", "count": 5}, 3)
    texts = [source.example(record) for record in source.records()]
    assert texts == [repeated(200, f"train 3 {n}") for n in range(5)]


@pytest.mark.parametrize(("options", "said"), [
    ({"length": 3}, "length=3: must be a whole number from 16"), ({"length": True}, "length=True"),
    ({"depths": [2]}, "depths=2: must be a number from 0 to 1"), ({"depths": 0.5}, "depths=0.5: shares of the text"),
    ({"others": 99}, "others=99"), ({"digits": 1, "others": 12}, "digits=1: 13 different codes do not exist"),
    ({"learn": "all"}, "learn='all': use answer, document or repeated"), ({"facts": 1.5}, "facts=1.5"),
    ({"names": 0}, "names=0"), ({"length": 30}, "length=30: 4 facts and the question take"),
])
def test_wrong_options_are_refused_by_name(options: dict, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        NeedleTask(**options)
    with pytest.raises(UsageError, match="split='dev'"):
        next(NeedleTask().problems("dev"))


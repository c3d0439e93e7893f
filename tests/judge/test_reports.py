"""Reports of judging models: every spelling that leaves no doubt is read, and nothing else."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from fathom.judge.model_judge import judged
from fathom.judge.reports import published, read
from fathom.judge.verdict import Outcome

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "omni_math_judged" / "gpt4o_judged.jsonl.gz"
WHOLE = ("## Student Final Answer\n{answer}\n\n## Equivalence Judgement\n{said}\n\n## Justification\nbecause\n\n"
         "=== report over ===")


@pytest.mark.parametrize("said", ["TRUE", "**TRUE**", "True", "TRUE.", "`true`", "TRUE (they are equal)", "  TRUE  "])
def test_true_in_every_spelling(said):
    report = read(WHOLE.format(answer="7", said=said))
    assert report.equal is True
    assert report.answer == "7"
    assert report.reason == "because"


@pytest.mark.parametrize("said", ["FALSE", "_False_", "FALSE, since 7 is not 8"])
def test_false_in_every_spelling(said):
    assert read(WHOLE.format(answer="7", said=said)).equal is False


@pytest.mark.parametrize("said", ["TRUE or FALSE", "not TRUE", "", "maybe", "(TRUE or FALSE)", "It isn't true"])
def test_what_leaves_a_doubt_is_no_verdict(said):
    assert read(WHOLE.format(answer="7", said=said)).equal is None
    assert judged(WHOLE.format(answer="7", said=said)).verdict.outcome is Outcome.FAILED


@pytest.mark.parametrize("text", [
    "**Equivalence Judgement:** TRUE",
    "### Equivalence Judgment\n\nTRUE",
    "Equivalence Judgement: TRUE",
    "3\n\n## Equivalence Judgement\nTRUE",  # the first heading was part of the prompt
    "<think>## Equivalence Judgement\nFALSE</think>## Equivalence Judgement\nTRUE",
    "## Equivalence Judgement\nTRUE\n\n## Justification\nSee ## 2 and the ## FALSE start; not false at all",
    "## Equivalence Judgement\nTRUE\n=== report over ===\n\n## Equivalence Judgement\nFALSE",
])
def test_other_forms_of_a_report(text):
    assert read(text).equal is True


@pytest.mark.parametrize("text", [
    "", "TRUE", "<think>## Equivalence Judgement\nTRUE",
    "## Equivalence Judgement\nTRUE\n## Equivalence Judgement\nFALSE", "## Equivalence Judgement",
])
def test_no_report_no_verdict(text):
    assert read(text).equal is None


def test_an_answer_that_the_judge_did_not_find_is_unread():
    verdict = judged(WHOLE.format(answer="None (missing)", said="FALSE")).verdict
    assert verdict.outcome is Outcome.UNREAD
    assert judged(WHOLE.format(answer="9", said="FALSE")).verdict.outcome is Outcome.WRONG


def test_the_published_reading_takes_one_spelling():
    assert published(WHOLE.format(answer="7", said="TRUE")) is True
    assert published(WHOLE.format(answer="7", said="**TRUE**")) is False
    assert published(WHOLE.format(answer="7", said="True")) is False
    assert published("no report") is None


def test_reports_take_time_linear_in_their_length():
    read("## Equivalence Judgement " * 20_000)
    read("#" * 200_000)
    read(" " * 200_000)
    read("student's final answer" * 10_000)


@pytest.mark.skipif(not SHARED.exists(), reason="needs shared/data/omni_math_judged")
def test_the_parser_agrees_with_every_published_verdict():
    rows = [json.loads(line) for line in gzip.decompress(SHARED.read_bytes()).decode().splitlines()]
    assert len(rows) == 104
    assert [read(row["judge_report"]).equal for row in rows] == [row["judge_verdict"] for row in rows]
    assert [published(row["judge_report"]) for row in rows] == [row["judge_verdict"] for row in rows]

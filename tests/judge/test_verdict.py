"""A broken judge is None, never 0."""

import pytest

from fathom.judge.verdict import Outcome, Verdict


def test_constructors_give_the_score_that_belongs_to_the_outcome() -> None:
    assert (Verdict.right("r").score, Verdict.wrong("w").score, Verdict.unread("u").score) == (1.0, 0.0, 0.0)
    assert Verdict.failed("f").score is None
    assert Verdict.wrong("close", score=0.4).score == 0.4
    assert Verdict("right", 1.0, "from JSON").outcome is Outcome.RIGHT  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("outcome", "score"),
    [
        (Outcome.FAILED, 0.0),
        (Outcome.RIGHT, None),
        (Outcome.UNREAD, None),
        (Outcome.WRONG, 1.5),
        (Outcome.WRONG, float("nan")),
    ],
)
def test_a_score_that_contradicts_the_outcome_is_refused(outcome: Outcome, score: float | None) -> None:
    with pytest.raises(ValueError, match="score"):
        Verdict(outcome, score, "reason")

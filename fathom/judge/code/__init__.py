"""Programs judged by running them: against tests (`judge`), and predictions of what a function does (`prediction`).

`programs` finds the program in a text, `calls` joins a solution to its tests, `guest` is what runs in the sandbox.
"""

from fathom.judge.code.judge import (
    WALL,
    AssertTests,
    CaseTests,
    CodeJudge,
    Credit,
    StdinTests,
    Tests,
    from_json,
    same_words,
    to_json,
)

__all__ = [
    "WALL",
    "AssertTests",
    "CaseTests",
    "CodeJudge",
    "Credit",
    "StdinTests",
    "Tests",
    "from_json",
    "same_words",
    "to_json",
]

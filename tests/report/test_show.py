"""`show`: completions with verdicts, records, rejects with reasons."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from fathom.core.errors import UsageError
from fathom.report import show
from fathom.report.show import cut


def shown(path: Path, **options) -> str:
    console = Console(file=io.StringIO(), force_terminal=False, width=200)
    show(path, console=console, **options)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_completions_with_verdicts(made: Path) -> None:
    text = shown(made / "zero", n=1, step=100)
    assert text.startswith("zero  grpo\n── step 100  basic_arithmetic/800\nCalculate ")
    assert text.count("✓ right") + text.count("✕ wrong") + text.count("? unread") + text.count("! failed") == 8
    assert "! failed  judge passed 5 s" in text


def test_one_outcome(made: Path) -> None:
    text = shown(made / "score", n=3, outcome="wrong")
    assert "✕ wrong  made wrong" in text
    assert "✓ right" not in text


def test_records_and_rejects(made: Path) -> None:
    assert "assistant: <answer>2</answer>" in shown(made / "traces", n=1)
    text = shown(made, n=2, rejects=True)
    assert text.count("rejected: wrong answer") == 2
    assert "1206 in = 824 done + 382 rejected" in text


def test_nothing_to_show_says_what_is_there(made: Path) -> None:
    assert "no rejected records" in shown(made / "zero", rejects=True)  # an answer, not an error
    with pytest.raises(UsageError, match="no completion fits"):
        shown(made / "zero", step=7)
    with pytest.raises(UsageError, match="use one of right, wrong, unread, failed"):
        shown(made, outcome="correct")


def test_markup_and_control_characters_of_a_model_stay_text(made: Path) -> None:
    assert cut("a\x1b[31mred\x07", 100) == "a\\x1b[31mred\\x07"
    assert cut("x" * 100, 10).startswith("xxxxxx … 90 characters left out")
    assert "</script><img src=x onerror=" in shown(made / "zero", n=1, step=50)

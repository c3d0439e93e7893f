"""Which part of a completion is its program."""

import pytest

from fathom.judge.code.programs import LONGEST_PROGRAM, program
from fathom.judge.extract import Extracted, Unread

CODE = "def f():\n    return 1\n"


@pytest.mark.parametrize(
    "text",
    [
        f"```python\n{CODE}```",
        f"So:\n\n```python\n{CODE}```\nIt returns 1.",
        f"```Python3\r\n{CODE}```  \n",
        f"````py\n{CODE}````",
        f"~~~python\n{CODE}~~~",
        f'```python title="a.py"\n{CODE}```',
        f"```python\nx = 0\n```\nbetter:\n```python\n{CODE}```",
        f"<think>\n```python\nx = 0\n```\n</think>\n```python\n{CODE}```",
        f"```python\n{CODE}```\nprints\n```\n1\n```\n```json\n{{}}\n```",
        "1. Write\n   ```python\n   def f():\n       return 1\n   ```",
    ],
)
def test_the_last_python_block_counts(text: str) -> None:
    assert program(text) == Extracted(CODE, "block")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("The answer is 5.", "no code block"),
        ("", "no code block"),
        (CODE, "no code block"),
        (f"```\n{CODE}```", "no code block"),
        (f"```rust\n{CODE}```", "no code block"),
        ("```python\n\n```", "code block is empty"),
        (f"```python\n{CODE}```\n```python\ndef g(", "code block was never closed"),
        (f"<think>\n```python\n{CODE}```", "thinking was never closed"),
        (f"<think>\n```python\n{CODE}```\n</think>\nDone.", "no code block"),
        (f"```python\n{'x = 1;' * LONGEST_PROGRAM}\n```", f"code is longer than {LONGEST_PROGRAM} characters"),
        ("```python\nx = '\ud800'\n```", "code is not UTF-8"),
    ],
)
def test_nothing_is_guessed(text: str, reason: str) -> None:
    assert program(text) == Unread(reason)


def test_what_is_in_strings_stays() -> None:
    code = 'A = """a\x0cb\u2028c\n    \n\td"""\n'
    assert program(f"```python\n{code}```") == Extracted(code, "block")


def test_fences_inside_of_a_longer_fence_are_text() -> None:
    code = 'TEXT = """\n```python\n```\n"""\n'
    assert program(f"````python\n{code}````") == Extracted(code, "block")


def test_a_completion_goes_on_while_it_is_indented() -> None:
    body = "    total = 1\n\n    return total\n"
    assert program(body + "\n\nprint(f())\n", "completion") == Extracted(body, "completion")
    assert program(body + "```\nSo", "completion") == Extracted(body, "completion")
    assert program("def f():\n    return 1", "completion") == Unread("no indented line")

"""Untrusted Python programs, run where they can neither hurt the machine nor write their own verdict.

    with Sandbox(preload=("numpy",)) as sandbox:
        ran = sandbox.run([Program("print(int(input()) + 1)", stdin="41")])[0]
    assert ran.ended is End.EXITED and ran.code == 0 and ran.stdout == b"42\\n"

What each level stops, and what it does not, stands in docs/sandbox.md, each sentence with its test.
"""

from __future__ import annotations

from fathom.judge.sandbox.parent import Sandbox, SandboxError, reached_level
from fathom.judge.sandbox.program import End, Level, Limits, Program, Ran

__all__ = ["End", "Level", "Limits", "Program", "Ran", "Sandbox", "SandboxError", "reached_level"]

"""What runs inside the sandbox: a solution that answers calls, and tests that make them. Standard library only.

The text of these files begins both programs of a pair (`fathom.judge.code.calls` writes them); nothing else of
Fathom is there.
"""

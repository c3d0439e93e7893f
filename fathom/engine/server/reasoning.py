"""Thinking and answer told apart, whatever pieces a completion's text comes in."""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"
BLANK = " \t\r\n"


class Thinking:
    """Splits a completion into what it thinks and what it answers.

    Thinking is what stands before the first </think>, if the prompt has opened it or the completion begins with
    <think>. The marks and the line ends beside them belong to neither. What may yet become a mark is held back until
    it is clear; `close` gives what is left. The same text in other pieces gives the same two texts.
    """

    def __init__(self, opened: bool):
        """`opened`: the prompt ends inside <think>."""
        self.state = "thinking begins" if opened else "start"
        self.thought = opened  # whether there is thinking
        self._held = ""

    @property
    def answers(self) -> bool:
        """Whether nothing that comes can be thinking any more."""
        return self.state in ("answer begins", "answer")

    def feed(self, text: str) -> tuple[str, str]:
        """(thinking, answer) that `text` makes certain."""
        text, self._held = self._held + text, ""
        thought = ""
        if self.state == "start":
            begin = text.lstrip(BLANK)
            if begin.startswith(OPEN):
                self.state, self.thought, text = "thinking begins", True, begin[len(OPEN):]
            elif OPEN.startswith(begin):
                self._held, text = text, ""
            else:
                self.state = "answer"
        if self.state == "thinking begins":
            text = text.lstrip("\r\n")
            if text:
                self.state = "thinking"
        if self.state == "thinking":
            thought, mark, after = text.partition(CLOSE)
            if mark:
                thought, text, self.state = thought.rstrip("\r\n"), after, "answer begins"
            else:
                sure = len(text) - next(k for k in range(len(CLOSE) - 1, -1, -1) if text.endswith(CLOSE[:k]))
                sure = len(text[:sure].rstrip("\r\n"))
                thought, self._held, text = text[:sure], text[sure:], ""
        if self.state == "answer begins":
            text = text.lstrip("\r\n")
            if text:
                self.state = "answer"
        return thought, text

    def close(self) -> tuple[str, str]:
        """(thinking, answer) that was held back, now that no more comes."""
        held, self._held = self._held, ""
        return (held, "") if self.state == "thinking" else ("", held)


class ThoughtTokens:
    """Counts the tokens of a completion up to the one that ends its thinking; 0 if it does not think."""

    def __init__(self, opened: bool):
        self.count = 0
        self._seen, self._thinking = 0, Thinking(opened)

    def add(self, written: bytes) -> None:
        """One more token, by its bytes."""
        if self._thinking.answers:
            return
        self._seen += 1
        self._thinking.feed(written.decode("latin-1"))  # the marks are ASCII, so any one-byte reading finds them
        if self._thinking.thought:
            self.count = self._seen

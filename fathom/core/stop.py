"""Polite endings: SIGTERM and the first Ctrl-C ask for a stop, the second Ctrl-C stops."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any


class StopSignals:
    """Listens from construction until `restore`; `reason` says why to stop, or is None.

    Signal handlers belong to the main thread: made in another thread, this listens to nothing. `talk` writes one line
    to the terminal at Ctrl-C.
    """

    def __init__(self, talk: bool) -> None:
        self.reason: str | None = None
        self._talk, self._interrupts = talk, 0
        self._before: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._hear)

    def restore(self) -> None:
        """Puts the earlier handlers back; harmless when done twice."""
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt
            if self._talk:
                # Not through logging or print: the signal may have come while either holds its lock.
                os.write(2, b"\nCtrl-C: saving and stopping; once more stops at once\n")
        self.reason = self.reason or ("Ctrl-C" if number == signal.SIGINT else "SIGTERM")

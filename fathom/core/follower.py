"""Follower: a run as the other processes of a team see it, who write nothing into its directory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fathom.core.run import Run
from fathom.core.stop import StopSignals


class Follower(Run):
    """Opened as a Run: the same directory, and the same randomness under the same names. It holds no lock, and what is
    written to it goes nowhere; the team's first process writes the same."""

    def _start(self, fresh: bool) -> None:
        self._signals = StopSignals(talk=False)

    def metrics(self, step: int, **values: Any) -> None:
        """Nothing."""

    def timing(self, step: int, **values: Any) -> None:
        """Nothing."""

    def mark(self) -> dict[str, Any]:
        """Nothing to return to."""
        return {}

    def rewind(self, mark: Mapping[str, Any] | None) -> None:
        """Nothing."""

    def finish(self, **summary: Any) -> None:
        """Marks the work as done, here alone."""
        self.finished = True

"""Looking at runs: an offline HTML report, a live terminal panel, comparison of two runs, records in the terminal."""

from fathom.report.compare import Comparison, compare, render
from fathom.report.html import write_report
from fathom.report.panel import Follower, LivePanel, follow
from fathom.report.show import show

__all__ = ["Comparison", "Follower", "LivePanel", "compare", "follow", "render", "show", "write_report"]

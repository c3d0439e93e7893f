"""Is this answer right? Verdicts, extraction, comparison of mathematics, rewards. No torch."""

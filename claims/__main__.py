"""Measures every claim whose results are not there yet, and prints the ledger: `python -m claims [--print]`."""

from __future__ import annotations

import sys

from claims import grpo_family, grpo_lifts_accuracy, yarn_extends_context

CLAIMS = (grpo_lifts_accuracy, grpo_family, yarn_extends_context)


def main() -> None:
    """Measures what is missing (each arm and seed is saved as it finishes), then prints every verdict."""
    for claim in CLAIMS:
        if "--print" not in sys.argv:
            claim.measure()
        print(claim.ledger())


if __name__ == "__main__":
    main()

"""Fathom and a peer side by side in one run, on the same weights: `python -m bench train decode grpo`."""

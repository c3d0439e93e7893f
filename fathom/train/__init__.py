"""Learning: batches with final weights, objectives as plain sums, one optimiser step shared by every system."""

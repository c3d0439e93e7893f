"""Claims: what a paper says, the smallest honest experiment, and what came out; `make claims` measures and prints."""

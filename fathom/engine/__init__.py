"""Generation: batches of prompts in, completions with exact log-probabilities out."""

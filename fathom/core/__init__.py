"""The nouns on disk: settings, records, runs, messages, journals, and the writes they survive by. No torch."""

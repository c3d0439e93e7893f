"""Problems with a judge: gym tasks, a user's own problem files, and the statistics of their scores. No torch."""

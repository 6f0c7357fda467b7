"""Ways to score a batch of candidates; all give the same perf."""

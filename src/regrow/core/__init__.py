"""General tools: checks of values, names, seeds, random numbers, digests, processes."""

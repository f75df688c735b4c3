"""General tools: checks of values, registries, seeds, random numbers, digests, processes."""

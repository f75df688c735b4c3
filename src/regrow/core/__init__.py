"""Tools without a subject: checks of values, names, seeds, random numbers, digests, processes."""

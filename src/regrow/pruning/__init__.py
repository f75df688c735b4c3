"""Pruning methods as values, the data that criteria use, and the choice of units to keep."""

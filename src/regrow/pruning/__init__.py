"""Pruning methods as values, what criteria look at, and the choice of what stays."""

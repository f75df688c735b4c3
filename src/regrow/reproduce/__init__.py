"""The paper as data: its printed numbers, its claims and the layouts of its tables."""

"""What pruning methods remove, one file for each kind: the registry of units."""

"""Units, the things that pruning methods remove; one file for each kind."""

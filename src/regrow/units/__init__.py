"""Units, the parts of a network that pruning methods remove; one file for each kind."""

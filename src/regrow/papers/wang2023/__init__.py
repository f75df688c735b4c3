"""Wang et al., Why is the State of Neural Network Pruning so Confusing?, arXiv:2301.05219, 2023."""

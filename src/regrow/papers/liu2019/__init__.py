"""Liu et al., Rethinking the Value of Network Pruning, ICLR 2019, arXiv:1810.05270."""

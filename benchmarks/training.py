"""Compare images per second of a plain PyTorch loop and of regrow: runs `regrow bench train`.

    uv run python benchmarks/training.py --data hf:../shared/data/cifar10-jpeg

Its results are in `docs/results/speed`.

Tried for 8x8 digits on the same machine, and rejected: a convolution as a copy of its windows and a
matrix product (im2col) takes 0.9 to 3.4 times as long as PyTorch's own (forward and backward), and
PyTorch's own without oneDNN 2.8 times.
"""

import sys

from regrow.cli.main import main

if __name__ == "__main__":
    sys.argv[1:1] = ["bench", "train"]
    main()

"""Images a second, a plain PyTorch loop against ours: `regrow bench train`, and its record.

    uv run python benchmarks/training.py --data hf:../shared/data/cifar10-jpeg

What it printed is in `docs/results/speed`.

Tried for 8x8 digits and left out, on the same machine: a convolution as a copy of its windows and
one matrix product takes 0.9 to 3.4 times as long as the library's (forward and backward), and the
library without oneDNN 2.8 times.
"""

import sys

from regrow.cli.main import main

if __name__ == "__main__":
    sys.argv[1:1] = ["bench", "train"]
    main()

"""Images a second, a plain PyTorch loop against ours: `regrow bench train`, and its record.

    uv run python benchmarks/training.py --data hf:../shared/data/cifar10-jpeg

Measured on 2 cores of a Sapphire Rapids (AMX), torch 2.15, batch 64, real CIFAR-10 images, median
of 3 rounds of 5 s. Other programs used the same cores meanwhile, most of all during the first row
and during the column of two trainings, so rates are low and only the ratios mean something:

    images/s         plain    fp32    bf16  two bf16  two/plain
    resnet-56           23      28      54        64      2.82x
    vgg-16              61      57     113       223      3.67x
    densenet-40         18      28      65        70      3.99x

Tried for 8x8 digits and left out, on the same machine: a convolution as a copy of its windows and
one matrix product takes 0.9 to 3.4 times as long as the library's (forward and backward), and the
library without oneDNN 2.8 times.
"""

import sys

from regrow.bench.command import app

if __name__ == "__main__":
    app(["train", *sys.argv[1:]])

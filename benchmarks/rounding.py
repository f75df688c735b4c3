"""Compare gradients of the fused and the exact engine, next to the effect of rounding alone.

    uv run python -P benchmarks/rounding.py --data hf:../shared/data/cifar10-jpeg

Prints distances between gradients of one batch of real images in float32, at a network's initial
weights: between the two engines; between two runs of the exact engine whose images differ randomly
in their last bit; and of each engine from float64. All are relative to the gradient's norm.

(Without -P, the compiler would import the `coverage.py` in this folder as the package `coverage`.)
"""

import argparse
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.core.seeds import seeded
from regrow.data import DataSpec, load
from regrow.models import ModelSpec, build
from regrow.train.recipe import EngineName
from regrow.train.step import forward

NETS = ("resnet-56", "vgg-16", "densenet-40", "preresnet-164")
LAST_BIT = 2.0**-23


def gradient(model: nn.Module, x: Tensor, labels: Tensor, engine: EngineName) -> Tensor:
    model = deepcopy(model).to(x.dtype)
    F.cross_entropy(forward(model, x, "fp32", engine=engine), labels).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return torch.cat([g.flatten().double() for g in gradients])


def truth(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    model = deepcopy(model).double()
    F.cross_entropy(model(x.double()), labels).backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return torch.cat([g.flatten() for g in gradients])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--nets", nargs="+", default=list(NETS))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = load(DataSpec(arguments.data, subset=arguments.batch * arguments.seeds, test_subset=64))
    head = "fused - exact", "exact, last bits", "exact - fp64", "fused - fp64"
    print(f"{'network':14}{'seed':>5}" + "".join(f"{name:>18}" for name in head))
    for net in arguments.nets:
        for seed in range(arguments.seeds):
            torch.manual_seed(seed)
            fitting = {"classes": len(data.classes), "input_size": data.size}
            model = build(ModelSpec(net, fitting)).train().to(memory_format=torch.channels_last)
            places = torch.arange(arguments.batch) + arguments.batch * seed
            labels, pixels = data.train.labels[places], data.train.batch(places).float() / 128 - 1
            x = pixels.contiguous(memory_format=torch.channels_last)
            signs = torch.randint(0, 2, x.shape, generator=seeded(seed, "bits")) * 2 - 1
            exact, fused = (gradient(model, x, labels, way) for way in ("exact", "fused"))
            moved = gradient(model, x * (1 + LAST_BIT * signs), labels, "exact")
            right = truth(model, x, labels)
            pairs = (fused, exact), (moved, exact), (exact, right), (fused, right)
            shares = [float((a - b).norm() / right.norm()) for a, b in pairs]
            print(f"{net:14}{seed:>5}" + "".join(f"{share:>18.1e}" for share in shares), flush=True)


if __name__ == "__main__":
    main()

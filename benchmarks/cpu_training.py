"""Images a second on a CPU: a plain PyTorch loop against ours, alone and two at a time.

    uv run python benchmarks/cpu_training.py --data hf:../shared/data/cifar10-jpeg

The plain loop is what the paper's code does: a DataLoader with one worker, torchvision transforms
image by image, fp32, NCHW; with one thread or with one for each core, whichever is faster (the
second collapses where tiny networks or other programs make threads wait for each other). Ours is
``regrow.train.Training`` with one thread and ``precision="bf16"``, once alone and once in two
processes. All run in turns, round after round, in one run, so that what else the machine does hits
them alike; figures are medians over rounds and ratios are of these medians.

Measured on 2 cores of a Sapphire Rapids (AMX), torch 2.15, batch 64, real CIFAR-10 images, median
of 3 rounds of 5 s. Other programs used the same cores meanwhile, most of all during the first row
and during the column of two trainings, so rates are low and only the ratios mean something:

    images/s         plain    fp32    bf16  two bf16  two/plain
    resnet-56           23      28      54        64      2.82x
    vgg-16              61      57     113       223      3.67x
    densenet-40         18      28      65        70      3.99x
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Generator
from multiprocessing.connection import Connection

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms

from regrow.data import Dataset, DataSpec, load
from regrow.models import ModelSpec, build
from regrow.train import Precision, Recipe, Training

NETS = ("resnet-56", "vgg-16", "densenet-40", "preresnet-164")
SMALL = {"plan": [16, 16, "M", 32, 32, "M", 64, 64]}  # the quickstart's, for 8x8 digits
BATCH = 64
SUBSET = 2560


class PerImage(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """PIL images and transforms, one by one."""

    def __init__(self, data: Dataset) -> None:
        pixels = data.train.batch(torch.arange(len(data.train))).permute(0, 2, 3, 1)  # [N, H, W, C]
        self.images = [Image.fromarray(p.squeeze(-1).numpy()) for p in pixels]
        self.labels = data.train.labels.tolist()
        flip = [transforms.RandomHorizontalFlip()] if "flip" in data.augmentation else []
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(data.size, padding=data.size // 8),
                *flip,
                transforms.ToTensor(),
                transforms.Normalize(data.mean, data.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def plain_steps(model: nn.Module, data: Dataset) -> Generator[int, None, None]:
    """Train as the paper's code does; yield the images of each step."""
    loader = DataLoader(PerImage(data), batch_size=BATCH, shuffle=True, num_workers=1)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    while True:
        for pixels, labels in loader:
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(model(pixels), labels)
            loss.backward()
            optimiser.step()
            loss.item()
            yield len(labels)


def our_steps(model: nn.Module, data: Dataset, precision: Precision) -> Generator[int, None, None]:
    recipe = Recipe(epochs=10**6, batch=BATCH, lr=0.01, precision=precision)
    training = Training(model, data, recipe, seed=0)
    before = 0
    while True:
        training.step()
        yield training.samples - before
        before = training.samples


def work(pipe: Connection, kind: str, net: str, data_name: str) -> None:
    """Serve one loop: for each number of seconds received, train so long and send the rate."""
    if kind != "plain, all threads":
        torch.set_num_threads(1)
    subset = None if data_name == "digits" else SUBSET
    data = load(DataSpec(data_name, subset=subset))
    arguments = {"classes": len(data.classes), "in_channels": data.channels}
    extra = SMALL if net == "vgg" else {}
    model = build(ModelSpec(net, {**arguments, "input_size": data.size, **extra}))
    plain = kind.startswith("plain")
    steps = plain_steps(model, data) if plain else our_steps(model, data, kind)  # type: ignore[arg-type]
    for _ in range(2):
        next(steps)  # caches and the allocator warm up
    pipe.send("ready")
    while seconds := pipe.recv():
        start, images, num = time.perf_counter(), 0, 0
        while time.perf_counter() - start < seconds:
            images += next(steps)
            num += 1
        pipe.send((images / (time.perf_counter() - start), num))
    steps.close()


class Worker:
    def __init__(self, kind: str, net: str, data_name: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=work, args=(other, kind, net, data_name))
        self.process.start()
        self.pipe.recv()

    def stop(self) -> None:
        self.pipe.send(0)
        self.process.join()


def together(workers: list[Worker], seconds: float) -> float:
    for worker in workers:
        worker.pipe.send(seconds)
    return float(sum(worker.pipe.recv()[0] for worker in workers))


def measure(net: str, data_name: str, *, rounds: int, seconds: float) -> dict[str, float]:
    """Return median images a second of each way to train."""
    workers = {
        "plain": Worker("plain", net, data_name),
        "plain, all threads": Worker("plain, all threads", net, data_name),
        "fp32": Worker("fp32", net, data_name),
        "bf16": Worker("bf16", net, data_name),
        "second": Worker("bf16", net, data_name),
    }
    ways: dict[str, Callable[[], float]] = {
        "plain": lambda: together([workers["plain"]], seconds),
        "plain, all threads": lambda: together([workers["plain, all threads"]], seconds),
        "fp32": lambda: together([workers["fp32"]], seconds),
        "bf16": lambda: together([workers["bf16"]], seconds),
        "two": lambda: together([workers["bf16"], workers["second"]], seconds),
    }
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in ways.items():
            rates[way].append(run())
    for worker in workers.values():
        worker.stop()
    medians = {way: statistics.median(values) for way, values in rates.items()}
    medians["plain"] = max(medians["plain"], medians.pop("plain, all threads"))
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="cifar10", help="32x32 images, by regrow's names")
    parser.add_argument("--nets", default=",".join((*NETS, "digits")))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = {}
    if not options.json:
        print(f"{'images/s':14}{'plain':>8}{'fp32':>8}{'bf16':>8}{'two bf16':>10}{'two/plain':>11}")
    for net in options.nets.split(","):
        names = ("vgg", "digits") if net == "digits" else (net, options.data)
        row = measure(*names, rounds=options.rounds, seconds=options.seconds)
        results[net] = row
        if not options.json:
            ratio = row["two"] / row["plain"]
            rates = "".join(f"{row[way]:>8.0f}" for way in ("plain", "fp32", "bf16"))
            print(f"{net:14}{rates}{row['two']:>10.0f}{ratio:>10.2f}x", flush=True)
    if options.json:
        print(json.dumps({"threads": torch.get_num_threads(), "images_per_second": results}))


if __name__ == "__main__":
    main()

"""Measure after how many updates networks end clearly above chance, whole schedules each.

    uv run python benchmarks/least_steps.py
    uv run python benchmarks/least_steps.py --data '{name: "hf:PATH", subset: 1600}' --updates 400

A line a training: the network at a quarter of its width, its updates, its accuracy and chance. The
numbers behind ``LEAST_STEPS`` of ``regrow.run.hours`` are in docs/reproduce.md.
"""

import argparse
from dataclasses import replace

import torch

from regrow.data import DataSpec, load
from regrow.models import ModelSpec, build
from regrow.studies.expand import material
from regrow.studies.yaml_file import read_value
from regrow.train import Recipe, Training, evaluate

WIDTH, BATCH = 0.25, 64
PLAIN_RATE = 0.01  # of VGGs for large images, as the paper trains them; others have the recipe's
NETWORKS = {
    "vgg-16": Recipe().lr,
    "resnet-20": Recipe().lr,
    "resnet-56": Recipe().lr,
    "resnet-110": Recipe().lr,
    "imagenet-resnet-50": Recipe().lr,
    "imagenet-vgg-16-bn": PLAIN_RATE,
    "imagenet-vgg-16": PLAIN_RATE,
}


def measure(name: str, data: DataSpec, updates: int) -> None:
    """Train a network for about so many updates, and print what it scores."""
    dataset, known = load(data), material(data)
    per_epoch = -(-known.num_train // BATCH)
    recipe = replace(
        Recipe(), batch=BATCH, epochs=max(1, round(updates / per_epoch)), lr=NETWORKS[name]
    )
    network = build(known.model(ModelSpec(name, {"width": WIDTH})), seed=0)
    training = Training(network, dataset, recipe, seed=0)
    while not training.done:
        training.step()
    score = 100 * evaluate(network, dataset.test, dataset).score
    print(
        f"{name}: {training.num_steps} updates, {score:.1f} %, chance {known.chance:.1f} %",
        flush=True,
    )


def main() -> None:
    """Measure every network after every number of updates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits", help="a data set as in a study")
    parser.add_argument("--updates", type=int, nargs="+", default=[100, 200, 400, 800, 1600])
    parser.add_argument("--network", action="append", choices=NETWORKS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    value = read_value(options.data)
    data = DataSpec.from_json(value if isinstance(value, dict) else {"name": value})
    for name in options.network or NETWORKS:
        for updates in options.updates:
            measure(name, data, updates)


if __name__ == "__main__":
    main()

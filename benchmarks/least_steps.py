"""Measure how many updates networks need to end clearly above chance, each with a full schedule.

    uv run python benchmarks/least_steps.py
    uv run python benchmarks/least_steps.py --data '{name: "hf:PATH", subset: 1600}' --updates 400

Prints a line for each training: the network (at a quarter of its width), its updates, its accuracy
and chance, and how far its weights could move in so many updates with the gradient of the first.
``plain-K`` are K convolutions with 12 channels, without norms. The measurements behind
``LEAST_STEPS`` and ``LEAST_WAY`` of ``regrow.run.hours`` are in docs/reproduce.md.
"""

import argparse
from dataclasses import replace

import torch

from regrow.data import DataSpec, load
from regrow.models import ModelSpec, build
from regrow.run.hours import first_gradient
from regrow.studies.expand import material
from regrow.studies.yaml_file import read_value
from regrow.train import Recipe, Training, evaluate
from regrow.train.material import Setting

WIDTH, BATCH = 0.25, 64
PLAIN_RATE = 0.01  # for VGGs on large images, as in the paper; other networks use the recipe's
NETWORKS = {
    "vgg-16": Recipe().lr,
    "resnet-20": Recipe().lr,
    "resnet-56": Recipe().lr,
    "resnet-110": Recipe().lr,
    "imagenet-resnet-50": Recipe().lr,
    "imagenet-vgg-16-bn": PLAIN_RATE,
    "imagenet-vgg-16": PLAIN_RATE,
    **{f"plain-{num}": Recipe().lr for num in (2, 4, 6, 8, 10)},
}


def spec(name: str) -> ModelSpec:
    """Return the spec of a network of ``NETWORKS``."""
    if not name.startswith("plain-"):
        return ModelSpec(name, {"width": WIDTH})
    num = int(name.removeprefix("plain-"))
    plan = [step for i in range(num) for step in ([12, "M"] if i in (1, 3) else [12])]
    return ModelSpec("vgg-conv", {"plan": plan, "head": "linear"})


def measure(name: str, data: DataSpec, updates: int, *, lr: float) -> None:
    """Train a network for about ``updates`` updates, and print its test accuracy."""
    dataset, known = load(data), material(data)
    per_epoch = -(-known.num_train // BATCH)
    recipe = replace(Recipe(), batch=BATCH, epochs=max(1, round(updates / per_epoch)), lr=lr)
    model = known.model(spec(name))
    network = build(model, seed=0)
    training = Training(network, dataset, recipe, seed=0)
    while not training.done:
        training.step()
    score = 100 * evaluate(network, dataset.test, dataset).score
    gradient = first_gradient(Setting.of(model, known, recipe))
    way = training.num_steps * lr / (1 - recipe.momentum) * gradient
    print(
        f"{name}: {training.num_steps} updates at {lr:g}, {score:.1f} %, chance "
        f"{known.chance:.1f} %, way {way:.2g}",
        flush=True,
    )


def main() -> None:
    """Measure every network after every number of updates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits", help="a data set as in a study")
    parser.add_argument("--updates", type=int, nargs="+", default=[100, 200, 400, 800, 1600])
    parser.add_argument("--network", action="append", choices=NETWORKS)
    parser.add_argument("--lr", type=float, help="learning rate for all networks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    value = read_value(options.data)
    data = DataSpec.from_json(value if isinstance(value, dict) else {"name": value})
    for name in options.network or NETWORKS:
        for updates in options.updates:
            measure(name, data, updates, lr=options.lr or NETWORKS[name])


if __name__ == "__main__":
    main()

"""Test whether bf16 or the fused engine changes accuracy: paired equivalence tests on real images.

    uv run python -P benchmarks/precision.py --data hf:../shared/data/cifar10-jpeg --seeds 30
    uv run python -P benchmarks/precision.py --data ... --other fused --nets members --margin 1

(Without -P, the compiler would import the `coverage.py` in this folder as the package `coverage`.)

Trains networks on CIFAR-10 in fp32 with the exact engine, and in the other way with the same seeds
(the same initial weights, order and augmentation). Trainings are kept in the given store, so a
stopped run can be resumed. ``members`` are small networks of four families, which contain all that
the fused engine computes differently: norm and ReLU as one operation (`regrow/models/fused.py`),
dense and pre-activation blocks as one (`regrow/train/blocks.py`), convolutions over small maps as
products (`regrow/train/small_maps.py`), and 3x3 ones by minimal filtering
(`regrow/train/fast_convolutions.py`).

Prints for each network the paired difference, its 95 % interval, and whether it is equivalent to
zero within the margin (two one-sided tests): that of ``--margin``, or one standard deviation of a
single training over seeds. Then the same for all differences together.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regrow.report.statistics import equivalence, mean_and_std, paired
from regrow.run import run
from regrow.run.display import display
from regrow.store import Store
from regrow.studies.study import Study

WAYS = {
    "exact": {"precision": "fp32"},
    "fused": {"precision": "fp32", "engine": "fused"},
    "bf16": {"precision": "bf16"},
}
MEMBERS: dict[str, dict[str, Any]] = {
    "resnet-14": {"name": "resnet-20", "depth": 14},
    "vgg-7": {"name": "vgg", "plan": [32, 32, "M", 64, 64, "M", 128, 128]},
    "densenet-13": {"name": "densenet-40", "depth": 13},
    "preresnet-20": {"name": "preresnet-56", "depth": 20, "width": 0.5},
}


def study(arguments: argparse.Namespace, model: dict[str, Any], way: str) -> Study:
    return Study.from_json(
        {
            "name": f"precision-{way}",
            "data": {
                "name": arguments.data,
                "subset": arguments.subset,
                "test_subset": arguments.tested,
                **({} if arguments.size is None else {"size": arguments.size}),
            },
            "models": model,
            "arms": ["unpruned"],
            "seeds": arguments.seeds,
            "recipe": {
                "name": "cifar",
                "epochs": arguments.epochs,
                "batch": arguments.batch,
                "lr": arguments.lr,
                **WAYS[way],
            },
        }
    )


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--nets", nargs="+", default=["resnet-20"])
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--size", type=int)
    parser.add_argument("--subset", type=int, default=5000)
    parser.add_argument("--tested", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--margin", type=float, help="in points (default: one std over seeds)")
    parser.add_argument("--other", choices=("bf16", "fused"), default="bf16")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--store", type=Path, default=Path("regrow-store"))
    return parser.parse_args()


def compare(
    name: str, before: Sequence[float], after: Sequence[float], *, other: str, margin: float | None
) -> None:
    _, noise = mean_and_std(before)
    assert noise is not None
    found = paired(after, before)
    print(f"\n{name}: exact {mean_and_std(before)}, {other} {mean_and_std(after)}")
    print(found)
    print(f"one standard deviation over seeds: {noise:.2f} points")
    print(equivalence(found, margin=noise if margin is None else margin))


def main() -> None:
    arguments = parsed()
    nets = list(MEMBERS) if arguments.nets == ["members"] else arguments.nets
    ways = ("exact", arguments.other)
    store = Store.open(arguments.store)
    studies = {
        (net, way): study(arguments, MEMBERS.get(net, {"name": net, "width": arguments.width}), way)
        for net in nets
        for way in ways
    }
    jobs = [job for asked in studies.values() for job in asked.jobs()]
    with display() as show:
        run(jobs, store, on_event=show, workers=arguments.workers)
    accuracy = {
        key: [100 * store.record(cell.job.key)["accuracy"] for cell in asked.cells()]
        for key, asked in studies.items()
    }
    both: dict[str, list[float]] = {way: [] for way in ways}
    for net in nets:
        columns = [accuracy[net, way] for way in ways]
        compare(net, *columns, other=arguments.other, margin=arguments.margin)
        for way, column in zip(ways, columns, strict=True):
            both[way] += column
    if len(nets) > 1:
        compare("all", *both.values(), other=arguments.other, margin=arguments.margin)


if __name__ == "__main__":
    main()

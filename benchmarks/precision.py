"""Does bf16, or the fused engine, change accuracy? A paired equivalence test on real images.

    uv run python benchmarks/precision.py --data hf:../shared/data/cifar10-jpeg --seeds 30
    uv run python benchmarks/precision.py --data ... --other fused --subset 2000 --epochs 6

Trains a ResNet-20 of half the width (or `--net vgg-16 --width 0.25`) on CIFAR-10 in fp32 by the
exact engine and in another way from the same seeds (the same first weights, order and
augmentation), in the store given, so that it can be stopped and goes on. In bf16 the norms and
ReLUs of ResNets run as one operation (`regrow/models/fused.py`), convolutions of VGG-16 over small
maps as products (`regrow/train/small_maps.py`); fused fp32 has both, and 3x3 convolutions by
minimal filtering (`regrow/train/fast_convolutions.py`). Prints the paired difference, its 95 %
interval, and whether it is equivalent to zero within the margin (two one-sided tests). The margin
is one standard deviation of a single training over seeds.
"""

import argparse
from pathlib import Path

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


def study(arguments: argparse.Namespace, way: str) -> Study:
    return Study.from_json(
        {
            "name": f"precision-{way}",
            "data": {
                "name": arguments.data,
                "subset": arguments.subset,
                "test_subset": 5000,
                **({} if arguments.size is None else {"size": arguments.size}),
            },
            "models": {"name": arguments.net, "width": arguments.width},
            "arms": ["unpruned"],
            "seeds": arguments.seeds,
            "recipe": {"name": "cifar", "epochs": arguments.epochs, "lr": 0.05, **WAYS[way]},
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--net", default="resnet-20")
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--size", type=int)
    parser.add_argument("--subset", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--other", choices=("bf16", "fused"), default="bf16")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--store", type=Path, default=Path("regrow-store"))
    arguments = parser.parse_args()
    store = Store.open(arguments.store)
    studies = {way: study(arguments, way) for way in ("exact", arguments.other)}
    jobs = [job for asked in studies.values() for job in asked.jobs()]
    with display() as show:
        run(jobs, store, on_event=show, workers=arguments.workers)
    accuracy = {
        way: [100 * store.record(cell.job.key)["accuracy"] for cell in asked.cells()]
        for way, asked in studies.items()
    }
    before, after = accuracy["exact"], accuracy[arguments.other]
    found = paired(after, before)
    (_, noise), (mean, _) = mean_and_std(before), mean_and_std(after)
    assert noise is not None
    print(f"exact {mean_and_std(before)}, {arguments.other} {mean_and_std(after)}")
    print(found)
    print(f"margin {noise:.2f} points (one standard deviation over seeds); other mean {mean:.2f}")
    print(equivalence(found, margin=noise))


if __name__ == "__main__":
    main()

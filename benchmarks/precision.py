"""Does bf16 change accuracy? A paired equivalence test on real images, many seeds.

    uv run python benchmarks/precision.py --data hf:../shared/data/cifar10-jpeg --seeds 30

Trains a ResNet-20 of half the width (or `--net vgg-16 --width 0.25`) on CIFAR-10 in fp32 and in
bf16 from the same seeds (the same first weights, order and augmentation), in the store given, so
that it can be stopped and goes on. In bf16 the norms and ReLUs of ResNets run as one operation
(`regrow/models/fused.py`), convolutions of VGG-16 over small maps as products
(`regrow/train/small_maps.py`). Prints the paired difference, its 95 % interval, and whether it is
equivalent to zero within the margin (two one-sided tests). The margin is one standard deviation of
a single training over seeds.
"""

import argparse
from pathlib import Path

from regrow.report.statistics import equivalence, mean_and_std, paired
from regrow.run import run
from regrow.run.display import display
from regrow.store import Store
from regrow.studies.study import Study


def study(data: str, net: str, width: float, seeds: int, precision: str) -> Study:
    return Study.from_json(
        {
            "name": f"precision-{precision}",
            "data": {"name": data, "subset": 5000, "test_subset": 5000},
            "models": {"name": net, "width": width},
            "arms": ["unpruned"],
            "seeds": seeds,
            "recipe": {"name": "cifar", "epochs": 8, "lr": 0.05, "precision": precision},
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--net", default="resnet-20")
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--store", type=Path, default=Path("regrow-store"))
    arguments = parser.parse_args()
    store = Store.open(arguments.store)
    asked_for = arguments.data, arguments.net, arguments.width, arguments.seeds
    studies = {p: study(*asked_for, p) for p in ("fp32", "bf16")}
    with display() as show:
        run([job for asked in studies.values() for job in asked.jobs()], store, on_event=show)
    accuracy = {
        precision: [100 * store.record(cell.job.key)["accuracy"] for cell in asked.cells()]
        for precision, asked in studies.items()
    }
    found = paired(accuracy["bf16"], accuracy["fp32"])
    (_, noise), (mean, _) = mean_and_std(accuracy["fp32"]), mean_and_std(accuracy["bf16"])
    assert noise is not None
    print(f"fp32 {mean_and_std(accuracy['fp32'])}, bf16 {mean_and_std(accuracy['bf16'])}")
    print(found)
    print(f"margin {noise:.2f} points (one standard deviation over seeds); bf16 mean {mean:.2f}")
    print(equivalence(found, margin=noise))


if __name__ == "__main__":
    main()

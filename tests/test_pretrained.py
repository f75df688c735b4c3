"""Networks that come with published weights: taken as they are, pruned and trained from there."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from regrow.data import DATASETS, DataSpec, Normalisation, Raw, Split, load, register_data
from regrow.data.normalisation import IMAGENET, recognised
from regrow.errors import ConfigError
from regrow.jobs.retrain import Retrain
from regrow.jobs.train import Train
from regrow.models import ModelSpec, build, register_model
from regrow.report.collect import collect
from regrow.report.rows import fairness
from regrow.run import run
from regrow.store import Store
from regrow.studies.expand import material
from regrow.studies.study import Study
from regrow.train import evaluate

NUM_CLASSES = 1000


@pytest.fixture(autouse=True)
def _names(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A data set of a thousand classes, and a network whose published weights know some of them."""
    for kind in ("_values", "_origins"):
        monkeypatch.setattr(DATASETS, kind, dict(getattr(DATASETS, kind)))

    def images(num: int) -> Split:
        """Make classes of one colour each."""
        labels = torch.arange(num) % NUM_CLASSES
        colours = torch.stack([labels % 10, labels // 10 % 10, labels // 100], dim=1) * 28
        pixels = colours[:, :, None, None].expand(num, 3, 8, 8).to(torch.uint8)
        return Split(images=pixels, labels=labels)

    @register_data("thousand")
    def thousand(spec: DataSpec) -> Raw:
        own = {"imagenet": IMAGENET, "other": Normalisation(mean=(0.5,) * 3, std=(0.5,) * 3)}
        return Raw(
            classes=tuple(map(str, range(NUM_CLASSES))),
            train=images(1000),
            test=images(200),
            normalisations=own,
        )

    @register_model("published", family="test")
    def published(
        *, classes: int, in_channels: int = 3, input_size: int = 8, weights: str = "random"
    ) -> nn.Module:
        model = nn.Sequential(
            nn.Conv2d(in_channels, 4, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 3, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(3, classes),
        )
        if weights == "torchvision":
            with torch.no_grad():
                for number, parameter in enumerate(model.parameters()):
                    generator = torch.Generator().manual_seed(number)
                    parameter.copy_(torch.randn(parameter.shape, generator=generator))
        return model

    material.cache_clear()
    yield
    material.cache_clear()


def study(**changes: Any) -> Study:
    value = {
        "data": {"name": "thousand", "normalisation": "imagenet"},
        "models": {"name": "published", "weights": "torchvision", "label": "zoo"},
        "methods": {"name": "l1-filter", "sparsity": 0.5},
        "arms": ["unpruned", "pruned", {"name": "fine-tune", "epochs": 1}, "scratch-e"],
        "seeds": 1,
        "recipe": {"epochs": 2, "batch": 500, "lr": 0.05, "precision": "bf16"},
    }
    return Study.from_json({**value, **changes})


def jobs(asked: Study) -> dict[str, Any]:
    return {cell.arm.name: cell.job for cell in asked.cells()}


def test_weights_are_published_to_the_last_layer_for_their_own_classes_only() -> None:
    for arguments, published in (
        ({"weights": "torchvision", "classes": 1000}, True),
        ({"weights": "torchvision", "classes": 20}, False),
        ({"weights": "random", "classes": 1000}, False),
        ({"classes": 1000}, False),
    ):
        assert ModelSpec("published", arguments).is_published == published


def test_a_taken_network_is_scored_pruned_and_trained_from_there(tmp_path: Path) -> None:
    asked, store = study(), Store.open(tmp_path / "store")
    found = jobs(asked)
    parent = found["unpruned"]
    summary = run(asked.jobs(), store, workers=0)
    assert summary.complete, [store.failure(job.key) for job in asked.jobs()]
    record = store.record(parent.key)
    spec = parent.model
    network = build(spec)
    data = load(asked.experiments[0].data)
    scored = evaluate(network, data.test, data, precision="bf16")
    assert record["accuracy"] == scored.score
    assert (record["epochs"], record["samples"], record["training_flops"]) == (0, 0, 0)
    kept = store.tensors(parent.key)
    assert all(torch.equal(kept[name], value) for name, value in network.state_dict().items())
    tuned = store.record(found["fine-tune"].key)
    assert tuned["epochs"] == 1
    assert store.record(found["scratch-e"].key)["epochs"] == 2
    # What was cut is the published network, and what fine-tuning began from.
    assert found["fine-tune"].parent == parent
    cut = store.record(found["fine-tune"].prune.key)
    assert cut["before"]["parameters"] == sum(p.numel() for p in network.parameters())


def test_rows_say_that_weights_were_trained_elsewhere(tmp_path: Path) -> None:
    asked, store = study(), Store.open(tmp_path / "store")
    summary = run(asked.jobs(), store, workers=0)
    assert summary.complete, [store.failure(job.key) for job in asked.jobs()]
    runs, _ = collect(asked, store)
    assert [fairness([one]) for one in runs] == [
        "weights trained elsewhere",
        "no training after pruning",
        "1 epoch after weights trained elsewhere",
        "the recipe's 2 epochs",
    ]


def test_how_a_network_would_be_trained_is_no_part_of_a_taken_one() -> None:
    parent = jobs(study())["unpruned"]
    assert parent.spec["recipe"] == {"epochs": 0, "precision": "bf16"}
    assert parent.flops == 0
    assert replace(parent, recipe=replace(parent.recipe, epochs=9, lr=3.0)).key == parent.key
    assert replace(parent, recipe=replace(parent.recipe, precision="fp32")).key != parent.key


def test_scratch_arms_are_shared_with_a_network_that_is_trained_here() -> None:
    methods = {"name": "l1-filter", "shares": [0.5, 0.5]}
    taken, trained = (
        jobs(study(methods=methods, models={"name": "published", "label": "zoo", **weights}))
        for weights in ({"weights": "torchvision"}, {})
    )
    assert taken["scratch-e"].key == trained["scratch-e"].key
    assert taken["fine-tune"].key != trained["fine-tune"].key
    assert isinstance(taken["scratch-e"], Retrain)
    assert not taken["scratch-e"].prune.model.is_published


@pytest.mark.parametrize("pretrained", [False, True])
def test_what_a_method_trains_starts_from_published_weights_where_it_says_so(
    pretrained: bool,
) -> None:
    uses = {"name": "soft-filter", "sparsity": 0.5, "pretrained": pretrained}
    pruned = jobs(study(methods=uses))["pruned"]
    trained = pruned.prune.parent
    assert isinstance(trained, Train)
    assert not trained.is_published
    assert trained.spec["recipe"]["epochs"] == 2
    assert (trained.initial is not None and trained.initial.is_published) == pretrained


def test_on_other_classes_a_network_is_trained_on_from_the_weights() -> None:
    asked = study(
        data={"name": "digits", "subset": 100},
        models={"name": "published", "weights": "torchvision"},
    )
    parent = jobs(asked)["unpruned"]
    assert not parent.is_published
    assert parent.spec["recipe"]["epochs"] == 2
    assert parent.model.arguments["weights"] == "torchvision"


@pytest.mark.parametrize(
    "changes",
    [
        {"arms": ["unpruned", "winning-ticket"]},
        {"arms": [{"name": "late", "start": "rewound", "epoch": 1}]},
        {"methods": {"name": "lottery", "rounds": 2, "sparsity": 0.2}},
    ],
)
def test_what_weights_were_before_they_were_published_is_not_known(changes: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"'zoo' had before .*unknown for 'weights'.*leave out 'wei"
    ):
        study(**changes).jobs()


def test_images_that_the_weights_were_not_made_for_are_refused(tmp_path: Path) -> None:
    asked = study(data={"name": "thousand", "normalisation": "other"}, arms="unpruned", methods=[])
    store = Store.open(tmp_path / "store")
    summary = run(asked.jobs(), store, workers=0)
    assert not summary.complete
    (job,) = asked.jobs()
    failure = store.failure(job.key)
    assert failure is not None
    assert "add 'normalisation: imagenet' to the data" in failure["message"]


def test_imagenet_is_recognised_by_ids_and_by_words() -> None:
    by_words = ("tench, Tinca tinca", "goldfish, Carassius auratus", *map(str, range(998)))
    assert recognised(by_words, 224) == {"imagenet": IMAGENET}
    assert recognised(("n01440764", "n01443537"), 224) == {"imagenet": IMAGENET}
    assert recognised(by_words, 32) == {}
    assert recognised(("cat", "dog"), 224) == {}


def test_weights_that_are_given_have_no_budget() -> None:
    with pytest.raises(ConfigError, match=r"'budgets' are epochs.*'zoo' comes with trained"):
        study(budgets=[1, 2]).cells()
    elsewhere = {"name": "thousand", "normalisation": "other", "label": "others"}
    drawn = study(
        budgets=[1, 2],
        data=elsewhere,
        models={"name": "published", "weights": "random", "label": "zoo"},
    )
    assert {cell.experiment.budget for cell in drawn.cells()} == {1, 2}

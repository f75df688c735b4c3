"""The engine of a recipe in fp32: its keys, exact resume, and what ``auto`` stands for."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from regrow.data import DataSpec, load
from regrow.errors import ConfigError, StoreError
from regrow.models import ModelSpec, build
from regrow.run import precision as room
from regrow.run.precision import Decision, PrecisionChoice
from regrow.store import Store
from regrow.studies.study import Study
from regrow.studies.yaml_file import decided
from regrow.train import Computing, Recipe, Training, evaluate

FUSED = Computing(precision="fp32", engine="fused")
PLAN = [16, 16, "M", 16]
RECIPE = Recipe(epochs=2, batch=16, lr=0.05)
STUDY: dict[str, Any] = {
    "name": "engines",
    "data": {"name": "digits", "subset": 64, "test_subset": 40},
    "models": {"name": "vgg", "plan": PLAN},
    "arms": ["unpruned"],
    "seeds": 1,
    "recipe": {"epochs": 1, "batch": 10},
}


def training(engine: Any) -> Training:
    data = load(DataSpec("digits", subset=64, test_subset=40))
    torch.manual_seed(0)
    model = build(ModelSpec("resnet-20", {"classes": 10, "in_channels": 1, "input_size": 8}))
    return Training(model, data, replace(RECIPE, engine=engine), seed=0)


def weights(of: Training) -> torch.Tensor:
    return torch.cat([value.double().flatten() for value in of.model.state_dict().values()])


def test_a_training_resumes_bitwise_and_is_close_to_the_exact_one() -> None:
    whole, first, second, exact = (training(e) for e in ("fused", "fused", "fused", "exact"))
    for _ in range(3):
        first.step()
    tensors, meta = first.state()
    second.restore({name: value.clone() for name, value in tensors.items()}, meta)
    for each in (whole, exact):
        each.step()
    off = (weights(whole) - weights(exact)).norm() / weights(exact).norm()
    assert 0 < off < 1e-3  # of one step: rounding grows from step to step
    for each, steps in ((whole, 7), (second, 5)):
        for _ in range(steps):
            each.step()
    assert torch.equal(weights(whole), weights(second))


def test_an_evaluation_counts_the_same_by_either_engine() -> None:
    one = training("exact")
    scores = {
        engine: evaluate(one.model, one.dataset.test, one.dataset, engine=engine)
        for engine in ("exact", "fused")
    }
    assert scores["exact"].score == scores["fused"].score
    assert scores["exact"].loss == pytest.approx(scores["fused"].loss, rel=1e-4)


def test_keys_tell_engines_apart_and_those_of_exact_stay() -> None:
    def key(**fields: Any) -> str:
        (job,) = Study.from_json({**STUDY, "recipe": {**STUDY["recipe"], **fields}}).jobs()
        return job.key

    assert key() == key(engine="exact") == key(precision="fp32")
    assert key() != key(engine="fused")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"engine": "fast"}, "engine 'fast'"),
        ({"engine": "auto"}, r"The engine 'auto' is decided for a store.*Give 'exact' or 'fused'"),
        ({"engine": "fused", "precision": "bf16"}, "'engine' of a recipe is for fp32"),
    ],
)
def test_what_cannot_be_meant_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe(**fields)


@pytest.mark.parametrize(
    ("said", "chosen", "found"),
    [
        ({}, FUSED, {"precision": "fp32", "engine": "fused"}),
        ({"precision": "auto"}, FUSED, {"precision": "fp32", "engine": "fused"}),
        ({"engine": "exact"}, FUSED, {"precision": "fp32", "engine": "exact"}),
        ({"precision": "fp32"}, FUSED, {"precision": "fp32"}),
        ({"precision": "fp32", "engine": "auto"}, FUSED, {"precision": "fp32", "engine": "fused"}),
        ({"engine": "fused"}, "bf16", {"precision": "bf16"}),
        ({"precision": "bf16", "engine": "auto"}, FUSED, {"precision": "bf16"}),
    ],
)
def test_recipes_take_what_they_leave_open(
    said: dict[str, Any], chosen: Any, found: dict[str, Any]
) -> None:
    assert decided({"recipe": said}, lambda: chosen)["recipe"] == found
    Recipe.from_json(found)


def test_a_store_keeps_the_engine_and_one_from_before_means_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def here(engine: Any, device: str = "cpu") -> Decision:
        names = {"why": "measured", "machine": "here", "date": "2026-11-26"}
        return Decision(precision="fp32", engine=engine, **names)

    store = Store.open(tmp_path / "store")
    choices = []
    for engine in ("fused", "exact"):
        monkeypatch.setattr(room, "decide", partial(here, engine))
        choices.append(PrecisionChoice(store))
        choices[-1]()
    choices[0].keep(store)
    assert PrecisionChoice(store)() == FUSED
    assert str(choices[0].decision).startswith("fp32 by fused kernels, which 'auto' became on")
    with pytest.raises(StoreError, match=r"'auto' is fp32 by fused kernels in this store"):
        choices[1].keep(store)
    kept = json.loads(json.dumps(vars(here("exact"))))
    del kept["engine"]
    assert Decision.from_json(kept).engine == "exact"
    with pytest.raises(StoreError, match=r"engine of the store's precision.json.*Got 'x'"):
        Decision.from_json({**kept, "engine": "x"})

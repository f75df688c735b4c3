"""Published methods added by a user: one new file and a study each, nothing else edited.

Some of them became built-in since; a user's copy of such a file, under a name of its own, is held
to the same.
"""

import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import regrow
import small
from regrow.core.choice import Choice
from regrow.core.registry import load_file
from regrow.cost import count, measure
from regrow.data import load, normalise
from regrow.errors import ConfigError
from regrow.jobs.base import all_jobs
from regrow.jobs.prune import Prune
from regrow.jobs.retrain import Retrain
from regrow.jobs.train import Train
from regrow.models import build
from regrow.report.collect import collect
from regrow.report.rows import Run, fairness
from regrow.run import run
from regrow.store import MASKS, Store
from regrow.studies.expand import Cell
from regrow.studies.study import Study
from regrow.surgery.mask import Mask
from regrow.train import make_objective

EXAMPLES = Path(__file__).parents[1] / "examples" / "extend"
STUDY: dict[str, Any] = {**small.STUDY, "recipe": {"epochs": 3, "batch": 32, "lr": 0.05}}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Ran:
    """A study of three arms that was run with a user's file."""

    store: Store
    cells: dict[str, Cell]  # by arm
    runs: dict[str, Run]

    def job(self, arm: str) -> Retrain:
        job = self.cells[arm].job
        assert isinstance(job, Retrain)
        return job

    @property
    def prune(self) -> Prune:
        return self.job("pruned").prune

    def record(self, job: Train | Prune | Retrain) -> dict[str, Any]:
        return self.store.record(job.key, spec=job.spec)

    @property
    def kept(self) -> dict[str, Tensor]:
        return self.store.tensors(self.prune.key)


BUILT_IN = Path(regrow.__file__).parent / "methods"


def own(name: str, folder: Path) -> Path:
    """Copy a user's file into a folder; of a built-in one, all that it registers is ``own-...``."""
    if (EXAMPLES / name).exists():
        return Path(shutil.copy(EXAMPLES / name, folder))
    text = (BUILT_IN / name).read_text(encoding="utf-8")
    file = folder / name
    file.write_text(re.sub(r'((?:criterion|register_method)\(\s*)"', r'\1"own-', text))
    return file


def ran(tmp_path: Path, file: str | None, **changes: Any) -> Ran:
    """Copy a file into a folder of its own, load it from there, and run a study that names it."""
    if file is not None:
        load_file(own(file, tmp_path))
    study = Study.from_json({**STUDY, **changes})
    store = Store.open(tmp_path / "store")
    assert run(study.jobs(), store, workers=0).complete
    cells = {cell.arm.name: cell for cell in study.cells()}
    runs = {each.arm: each for each in collect(study, store)[0]}
    assert all(each.done for each in runs.values())
    return Ran(store, cells, runs)


def density(kept: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(mask.float().mean()) for name, mask in kept.items()}


# Methods that change masks while a network trains


def test_rigl_moves_its_masks_and_keeps_their_density(tmp_path: Path) -> None:
    arms = ["pruned", "scratch-e", {"name": "moving", "start": "initial", "treatment": "own-rigl"}]
    found = ran(tmp_path, "rigl.py", methods={"name": "own-rigl", "sparsity": 0.8}, arms=arms)
    parent = found.prune.parent
    assert isinstance(parent, Train)
    record, masks = found.record(parent), found.store.tensors(parent.key, MASKS)
    sizes = {name: mask.numel() for name, mask in masks.items()}
    assert {n: int(m.sum()) for n, m in masks.items()} == {
        name: round(size * 0.2) for name, size in sizes.items()
    }
    # What is pruned is the mask that the training ended with, and the trained weights are under it.
    assert {n: m.tolist() for n, m in found.kept.items()} == {
        n: m.tolist() for n, m in masks.items()
    }
    weights = found.store.tensors(parent.key)
    assert all(not bool(weights[name][~mask].any()) for name, mask in masks.items())
    # It moved: the arm that begins with these masks ends with others of the same density.
    ended = found.store.tensors(found.job("moving").key, MASKS)
    assert density(ended) == density(masks)
    assert any(not torch.equal(ended[name], masks[name]) for name in masks)
    assert found.record(found.job("moving"))["sparsity"] == found.record(found.prune)["sparsity"]
    assert fairness([found.runs["moving"]]) == "equal epochs, with the treatment of own-rigl"
    # 3 passes of each image as sparse as the masks, and dense gradients on the two steps that move.
    model, example = build(parent.model), torch.zeros(parent.data.shape)
    sparse = measure(model, example, Mask(unit="weight", kept=masks)).flops
    dense = count(model, example).cost.flops
    assert record["training_flops"] == pytest.approx(3 * 384 * sparse + 2 * 32 * (dense - sparse))
    assert record["macs"] == measure(model, example, Mask(unit="weight", kept=masks)).macs
    assert found.runs["pruned"].training_flops == record["training_flops"]


def test_agp_follows_its_cubic_schedule_to_the_target(tmp_path: Path) -> None:
    found = ran(tmp_path, "agp.py", methods={"name": "own-agp", "sparsity": 0.9})
    parent = found.prune.parent
    assert isinstance(parent, Train)
    masks = found.store.tensors(parent.key, MASKS)
    assert {n: int((~m).sum()) for n, m in masks.items()} == {
        name: int(0.9 * mask.numel()) for name, mask in masks.items()
    }
    assert all(torch.equal(found.kept[name], mask) for name, mask in masks.items())
    # 12 steps: masks change after the backward passes of steps 1, 3, 5, 7 and 8 (the end).
    at = {step: 0.9 * (1 - (1 - (step - 1) / 7) ** 3) for step in (1, 3, 5, 7, 8)}
    model, example = build(parent.model), torch.zeros(parent.data.shape)
    network = count(model, example)
    total, gone = 0.0, 0.0
    for step in range(12):
        absent = sum(
            2 * network.by_parameter[name] * int(gone * mask.numel()) / mask.numel()
            for name, mask in masks.items()
        )
        total += 3 * 32 * (network.cost.flops - absent)
        gone = at.get(step, gone)
    assert found.record(parent)["training_flops"] == pytest.approx(total)
    assert math.isclose(gone, 0.9)


# Criteria


def layers(kept: Mapping[str, Tensor]) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in kept.items()}


def test_fpgm_removes_the_filters_nearest_to_all_others(tmp_path: Path) -> None:
    found = ran(tmp_path, "fpgm.py", methods={"name": "own-fpgm", "sparsity": 0.5})
    parent = found.prune.parent
    assert isinstance(parent, Train)
    weights = found.store.tensors(parent.key)
    for name, kept in found.kept.items():
        filters = weights[f"{name}.weight"]
        sums = [sum(float((one - other).norm()) for other in filters) for one in filters]
        largest = sorted(range(len(sums)), key=lambda unit: -sums[unit])[: len(sums) // 2]
        assert sorted(largest) == kept.nonzero().flatten().tolist()


def test_snip_scores_connections_by_hand(tmp_path: Path) -> None:
    found = ran(tmp_path, "snip.py", methods={"name": "own-snip", "sparsity": 0.8})
    assert found.prune.parent is None  # it needs no training
    model, data = build(found.prune.model, seed=0), load(found.prune.data.spec)
    images = normalise(data.train.batch(torch.arange(len(data.train))), data.mean, data.std)
    F.cross_entropy(model.eval()(images), data.train.labels).backward()  # type: ignore[no-untyped-call]
    scores = {}
    for name in found.kept:
        weight = model.get_parameter(name)
        assert weight.grad is not None
        scores[name] = (weight * weight.grad).detach().abs()
    flat = torch.cat([score.flatten() for score in scores.values()])
    threshold = flat.sort().values[int(0.8 * len(flat))]
    kept = torch.cat([mask.flatten() for mask in found.kept.values()])
    assert int(kept.sum()) == len(flat) - int(0.8 * len(flat))
    sure = (flat - threshold).abs() > 1e-6 * threshold  # the batches of the probe sum otherwise
    assert torch.equal(kept[sure], (flat >= threshold)[sure])


def test_synflow_keeps_every_layer_alive_by_its_hundred_rounds(tmp_path: Path) -> None:
    methods = [
        {"name": "own-synflow", "sparsity": 0.97},
        {"name": "own-synflow", "sparsity": 0.97, "rounds": 1, "label": "at once"},
    ]
    arms = ["pruned", "scratch-e", "winning-ticket"]
    load_file(own("synflow.py", tmp_path))
    study = Study.from_json({**STUDY, "methods": methods, "arms": arms})
    store = Store.open(tmp_path / "store")
    assert run(study.jobs(), store, workers=0).complete
    assert len(all_jobs(study.jobs())) == 9  # 1 training, 2 prunings and 6 arms
    prunings = {job.key: job for job in map(prune_of, study.cells())}
    hundred, once = prunings.values()
    assert (hundred.spec["rounds"], once.spec.get("rounds")) == (100, None)
    kept, at_once = store.tensors(hundred.key), store.tensors(once.key)
    assert min(layers(kept).values()) > 0
    assert layers(kept) != layers(at_once)
    assert sum(layers(kept).values()) == sum(layers(at_once).values())
    assert {n: m.tolist() for n, m in kept.items()} == {
        n: m.tolist() for n, m in by_hand(build(hundred.model, seed=0), rounds=100).items()
    }


def prune_of(cell: Cell) -> Prune:
    assert isinstance(cell.job, Retrain)
    return cell.job.prune


def by_hand(model: nn.Module, *, rounds: int) -> dict[str, Tensor]:
    """Do what SynFlow's algorithm says, in ten lines."""
    weights = {n: p for n, p in model.double().eval().named_parameters() if p.dim() > 1}
    masks = {name: torch.ones_like(p) for name, p in weights.items()}
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.abs_()
    total = sum(mask.numel() for mask in masks.values())
    for number in range(1, rounds + 1):
        with torch.no_grad():
            for name, weight in weights.items():
                weight.mul_(masks[name])
        model.zero_grad()
        model(torch.ones(1, 1, 8, 8, dtype=torch.float64)).sum().backward()
        scores = {n: (p * p.grad).abs() if p.grad is not None else p for n, p in weights.items()}
        flat = torch.cat([scores[name].flatten() for name in weights])
        gone = int(total * (1 - 0.03 ** (number / rounds)) + 1e-9)
        threshold = flat.sort().values[gone]
        masks = {name: (score >= threshold).double() for name, score in scores.items()}
    return {name: mask.bool() for name, mask in masks.items()}


def test_a_criterion_may_have_a_loss_of_its_own(tmp_path: Path) -> None:
    found = ran(tmp_path, "entropy.py", methods={"name": "entropy-taylor", "sparsity": 0.5})
    parent = found.prune.parent
    assert isinstance(parent, Train)
    model, data = build(parent.model), load(parent.data.spec)
    model.load_state_dict(found.store.tensors(parent.key))
    images = normalise(data.train.batch(torch.arange(len(data.train))), data.mean, data.std)
    log_p = model.eval()(images).log_softmax(1)
    (-(log_p.exp() * log_p).sum(1).mean()).backward()
    scores = {}
    for name in found.kept:
        weight = model.get_parameter(f"{name}.weight")
        assert weight.grad is not None
        scores[name] = (weight * weight.grad).sum((1, 2, 3)).abs().detach()
    flat = torch.cat(list(scores.values()))
    threshold = flat.sort().values[len(flat) // 2]
    for name, kept in found.kept.items():
        assert torch.equal(kept, scores[name] >= threshold)


# Arms and objectives


def test_an_arm_rewinds_the_learning_rate_and_keeps_the_weights(tmp_path: Path) -> None:
    arms = ["pruned", "lr-rewind", "lr-rewind-2"]
    recipe = {**STUDY["recipe"], "drop_at": [0.4, 0.7]}
    methods = {"name": "magnitude", "sparsity": 0.5}
    found = ran(tmp_path, "rewind.py", methods=methods, arms=arms, recipe=recipe)
    assert all(found.job(arm).parent == found.prune.parent for arm in arms)
    rates = {
        arm: [line["lr"] for line in found.record(found.job(arm))["history"]] for arm in arms[1:]
    }
    assert rates == {"lr-rewind": [0.05, 0.005, 0.0005], "lr-rewind-2": [0.0005]}


def test_an_arm_learns_from_the_unpruned_network(tmp_path: Path) -> None:
    arms = ["pruned", "scratch-e", "taught"]
    methods = {"name": "l1-filter", "sparsity": 0.5}
    found = ran(tmp_path, "distil.py", methods=methods, arms=arms)
    job, plain = found.job("taught"), found.record(found.job("scratch-e"))
    record = found.record(job)
    assert (job.parent, job.teacher) == (found.prune.parent, found.prune.parent)
    assert job.spec["arm"]["objective"] == {
        "name": "distillation",
        "temperature": 2.0,
        "weight": 0.5,
    }
    assert record["epochs"] == 1
    before = found.record(found.prune)["before"]["flops"]
    of_network = plain["training_flops"] / plain["samples"]
    assert record["training_flops"] == record["samples"] * (before + of_network)


def test_an_objective_of_ones_own_is_descended(tmp_path: Path) -> None:
    recipe = {**STUDY["recipe"], "objective": {"name": "focal", "gamma": 1.5}}
    methods = {"name": "l1-filter", "sparsity": 0.5}
    found = ran(tmp_path, "focal.py", methods=methods, recipe=recipe)
    assert found.job("fine-tune").recipe.to_json()["objective"] == {"name": "focal", "gamma": 1.5}
    logits = torch.randn(5, 10, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(5)
    for gamma in (0.0, 1.5):
        p = logits.softmax(1)[torch.arange(5), targets]
        focal = make_objective(Choice("focal", gamma=gamma))
        torch.testing.assert_close(
            focal.mean(logits, targets), (-((1 - p) ** gamma) * p.log()).mean()
        )


def test_a_treatment_is_part_of_an_arms_key_and_nothing_elses(tmp_path: Path) -> None:
    load_file(own("rigl.py", tmp_path))
    arms = ["winning-ticket", {"name": "moving", "like": "winning-ticket", "treatment": "own-rigl"}]
    methods = {"name": "magnitude", "sparsity": 0.5}
    plain, moving = (
        cell.job for cell in Study.from_json({**STUDY, "arms": arms, "methods": methods}).cells()
    )
    assert isinstance(plain, Retrain)
    assert isinstance(moving, Retrain)
    assert plain.key != moving.key
    assert plain.prune == moving.prune
    assert moving.spec == {**plain.spec, "treatment": moving.spec["treatment"]}
    assert moving.spec["treatment"].keys() == {"method", "revision", "code"}


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        (
            {"name": "a", "like": "fine-tune", "treatment": "l1-filter"},
            "so it cannot be a 'treatment'",
        ),
        ({"name": "a", "like": "fine-tune", "treatment": "rigel"}, "Unknown method 'rigel'"),
        ({"name": "a", "like": "fine-tune", "strength": 1.0}, "a 'strength', but no 'treatment'"),
        (
            {"name": "a", "like": "fine-tune", "treatment": "soft-filter", "strength": 1.0},
            "the treatment 'soft-filter' takes no 'strength'",
        ),
        (
            {"name": "a", "like": "fine-tune", "treatment": "network-slimming", "strength": -1},
            "must be at least 0. Got -1",
        ),
        ({"name": "pruned", "treatment": "soft-filter"}, "measured, not trained"),
    ],
)
def test_a_treatment_that_cannot_be_meant_is_refused(arm: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Study.from_json({**STUDY, "methods": {"name": "magnitude", "sparsity": 0.5}, "arms": [arm]})

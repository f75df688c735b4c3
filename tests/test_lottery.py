"""The lottery ticket in rounds, and tickets that are rewound to an epoch of the training."""

import math
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from regrow.errors import ConfigError
from regrow.jobs.arms import WINNING_TICKET
from regrow.jobs.prune import Prune
from regrow.jobs.retrain import Retrain
from regrow.jobs.train import Train, advance
from regrow.models import build
from regrow.report.collect import Reader, collect
from regrow.report.rows import fairness
from regrow.run import run
from regrow.store import Store, after_epoch
from regrow.studies.expand import Cell
from regrow.studies.study import Study
from regrow.surgery.mask import Mask, apply_
from regrow.train import Recipe, Training, fit
from small import digits, equal, first_weights, snapshot

ROUNDS = 4
REWOUND = {"name": "rewound", "start": "rewound", "epoch": 1}
STUDY: dict[str, Any] = {
    "data": {"name": "digits", "subset": 128, "test_subset": 64},
    "models": {"name": "vgg", "plan": [6, "M", 8, "M", 8], "label": "net"},
    "methods": {"name": "lottery", "rounds": ROUNDS, "sparsity": 0.2},
    "arms": ["winning-ticket", "random-init", "scratch-e", "pruned"],
    "seeds": 1,
    "recipe": {"epochs": 2, "batch": 32, "lr": 0.05},
}
Rows = dict[str, list[Retrain]]


def rows(cells: list[Cell]) -> Rows:
    """Return the jobs of each arm, by round."""
    found: Rows = {}
    for cell in cells:
        if isinstance(cell.job, Retrain):
            found.setdefault(cell.arm.name, []).append(cell.job)
    return found


def study(**changes: Any) -> Study:
    return Study.from_json({**STUDY, **changes})


@cache
def _rows() -> Rows:
    return rows(study().cells())


@dataclass(frozen=True)
class World:
    """A store in which the rounds were run, and what every training began with, by key."""

    store: Store
    starts: dict[str, dict[str, Tensor]]

    def mask(self, job: Retrain) -> dict[str, Tensor]:
        return self.store.tensors(job.prune.key)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    starts: dict[str, dict[str, Tensor]] = {}
    store = Store.open(tmp_path_factory.mktemp("lottery") / "store")
    with pytest.MonkeyPatch.context() as patch:
        latest = first_weights(patch)
        for number in range(ROUNDS):
            for jobs in _rows().values():
                latest.clear()
                assert run([jobs[number]], store, workers=0).complete
                if latest:
                    starts[jobs[number].key] = latest[-1]
    return World(store, starts)


def _first() -> Train:
    parent = _rows()["winning-ticket"][0].prune.parent
    assert isinstance(parent, Train)
    return parent


# Rounds -----------------------------------------------------------------------------------------


def test_each_round_prunes_what_the_ticket_of_the_one_before_was_trained_to() -> None:
    tickets = _rows()["winning-ticket"]
    for before, after in pairwise(tickets):
        assert after.prune.parent == before
        assert after.prune.inputs == (before, before.prune)
        assert after.prune.sparsity == 0.2
    for jobs in _rows().values():
        assert [job.prune.key for job in jobs] == [job.prune.key for job in tickets]


def test_masks_are_nested_and_each_removes_a_fifth_of_the_rest(world: World) -> None:
    masks = [world.mask(job) for job in _rows()["winning-ticket"]]
    left = sum(kept.numel() for kept in masks[0].values())
    for mask in masks:
        left -= math.floor(left * 0.2 + 1e-9)
        assert sum(int(kept.sum()) for kept in mask.values()) == left
    for before, after in pairwise(masks):
        assert all(bool((before[name] | ~kept).all()) for name, kept in after.items())


def test_those_of_least_trained_magnitude_go(world: World) -> None:
    tickets = _rows()["winning-ticket"]
    for before, after in pairwise(tickets):
        weights = world.store.tensors(before.key)
        gone, stays = [], []
        for name, kept in world.mask(after).items():
            earlier = world.mask(before)[name]
            gone.append(weights[name][earlier & ~kept].abs())
            stays.append(weights[name][kept].abs())
        assert torch.cat(gone).max() <= torch.cat(stays).min()


def test_survivors_start_at_their_first_values_bit_by_bit(world: World) -> None:
    first = snapshot(build(_first().model, seed=_first().seed))
    for job in _rows()["winning-ticket"]:
        start, mask = world.starts[job.key], world.mask(job)
        for name, value in first.items():
            kept = mask.get(name, torch.ones_like(value, dtype=torch.bool))
            assert torch.equal(start[name][kept], value[kept])
            assert not start[name][~kept].any()


def test_masks_hold_through_training(world: World) -> None:
    for arm in ("winning-ticket", "random-init", "scratch-e"):
        for job in _rows()[arm]:
            state = world.store.tensors(job.key)
            for name, kept in world.mask(job).items():
                assert not state[name][~kept].any()
                assert state[name][kept].count_nonzero() == kept.sum()


def test_controls_use_each_rounds_mask_and_draw_anew(world: World) -> None:
    name = "features.conv2.weight"
    for arm in ("random-init", "scratch-e"):
        for job, ticket in zip(_rows()[arm], _rows()["winning-ticket"], strict=True):
            ours, theirs = world.starts[job.key][name], world.starts[ticket.key][name]
            assert torch.equal(ours != 0, theirs != 0)
            assert not torch.equal(ours, theirs)
    # The same draw in all rounds, but for scratch, whose spread follows the density.
    draws = [world.starts[job.key][name] for job in _rows()["random-init"]]
    last = draws[-1] != 0
    assert all(torch.equal(draw[last], draws[-1][last]) for draw in draws)


def test_the_pruned_row_of_a_round_is_the_ticket_before_it(world: World) -> None:
    second = _rows()["pruned"][1]
    assert second.parent == _rows()["winning-ticket"][0]
    record = world.store.record(second.key)
    choice = world.store.record(second.prune.key)
    assert record["parameters"] == choice["after"]["parameters"]
    assert choice["before"]["parameters"] == _parameters(second)


def _parameters(job: Retrain) -> int:
    return sum(p.numel() for p in build(job.prune.model).parameters())


def test_rows_carry_what_is_gone_in_all(world: World) -> None:
    runs, failures = collect(study(), world.store)
    assert not failures
    tickets = [run for run in runs if run.arm == WINNING_TICKET.name]
    assert [run.sparsity for run in tickets] == [0.2, 0.36, 0.488, 0.5904]
    records = [world.store.record(job.prune.key) for job in _rows()["winning-ticket"]]
    for ticket, record in zip(tickets, records, strict=True):
        assert record["sparsity"] == pytest.approx(ticket.sparsity, abs=2e-3)
    # A row costs all the rounds that lead to it.
    costs = [run.training_flops for run in tickets]
    assert all(a is not None and b is not None and a < b for a, b in pairwise(costs))


def test_the_published_sparsities_of_fourteen_rounds() -> None:
    methods = {"name": "lottery", "sparsity": 0.2}
    cells = study(methods=methods, arms=["winning-ticket"]).cells()
    printed = [20, 36, 48.8, 59, 67.2, 73.8, 79, 83.2, 86.6, 89.3, 91.4, 93.1, 94.5, 95.6]
    found = [100 * cell.cut.sparsity for cell in cells if cell.cut and cell.cut.sparsity]
    assert found == pytest.approx(printed, abs=0.051)
    assert len({cell.job.key for cell in cells}) == 14


def test_one_round_is_magnitude_pruning() -> None:
    def key(method: dict[str, Any]) -> str:
        return rows(study(methods=method).cells())["winning-ticket"][0].key

    once = {"name": "lottery", "rounds": 1, "sparsity": 0.2}
    assert key(once) == key({"name": "magnitude", "sparsity": 0.2})
    assert key(once) == _rows()["winning-ticket"][0].key


# Rewinding --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rewound(world: World) -> tuple[World, Rows]:
    arms = ["winning-ticket", REWOUND, "unpruned"]
    cells = study(methods={**STUDY["methods"], "rounds": 2, "ticket": "rewound"}, arms=arms).cells()
    starts: dict[str, dict[str, Tensor]] = {}
    with pytest.MonkeyPatch.context() as patch:
        latest = first_weights(patch)
        for cell in cells:
            assert run([cell.job], world.store, workers=0).complete
            starts[cell.job.key] = latest[-1]
    return World(world.store, starts), rows(cells)


def test_rewound_weights_are_those_after_the_epoch_bit_by_bit(rewound: tuple[World, Rows]) -> None:
    world, found = rewound
    recipe = Recipe(epochs=2, batch=32, lr=0.05)
    one = Training(build(_first().model, seed=0), digits(), recipe, seed=0)
    for _ in range(one.steps_per_epoch):
        one.step()
    after = snapshot(one.model)
    assert len(found["rewound"]) == 2
    for job in found["rewound"]:
        start, mask = world.starts[job.key], world.mask(job)
        for name, value in after.items():
            kept = mask.get(name, torch.ones_like(value, dtype=torch.bool))
            assert torch.equal(start[name][kept], value[kept])
            assert not start[name][~kept].any()


def test_a_rewound_ticket_trains_the_epochs_that_are_left(rewound: tuple[World, Rows]) -> None:
    world, found = rewound
    for job in found["rewound"]:
        record = world.store.record(job.key)
        assert [line["epoch"] for line in record["history"]] == [1]
        assert (record["epochs"], record["samples"]) == (1, 128)


def test_rounds_follow_the_ticket_that_is_asked_for(rewound: tuple[World, Rows]) -> None:
    _, found = rewound
    assert found["rewound"][1].prune.parent == found["rewound"][0]
    assert found["winning-ticket"][1].prune == found["rewound"][1].prune


def test_the_learning_rate_is_rewound_under_inherited_weights(tmp_path: Path) -> None:
    """Rounds of pruning and training on, each on the whole schedule, and arms that begin later."""
    recipe = {"epochs": 2, "batch": 32, "lr": 0.05, "drop_at": [0.5]}
    arms = ["lr-rewind", {"name": "tail", "like": "lr-rewind", "schedule_epoch": 1}]
    asked = {"name": "lottery", "rounds": 2, "sparsity": 0.2, "ticket": "lr-rewind"}
    cells = study(recipe=recipe, arms=arms, methods=asked).cells()
    found, store = rows(cells), Store.open(tmp_path)
    run([cell.job for cell in cells], store, workers=0)
    assert found["lr-rewind"][1].prune.parent == found["lr-rewind"][0]
    for number, parent in ((0, found["tail"][0].prune.parent), (1, found["lr-rewind"][0])):
        assert parent is not None
        mask = store.tensors(found["tail"][number].prune.key)
        start = build(_first().model)
        start.load_state_dict(store.tensors(parent.key))
        apply_(start, Mask(unit="weight", kept=mask))
        for name, first, rates in (("lr-rewind", 0, [0.05, 0.005]), ("tail", 1, [0.005])):
            job = found[name][number]
            assert job.parent == parent
            network = deepcopy(start)
            plain = Training(
                network,
                digits(),
                Recipe(epochs=2, batch=32, lr=0.05, drop_at=(0.5,)),
                seed=0,
                masks=mask,
                first_epoch=first,
            )
            fit(plain)
            assert [line["lr"] for line in store.record(job.key)["history"]] == rates
            assert equal(store.tensors(job.key), snapshot(network))
    tail = next(cell for cell in cells if cell.arm.name == "tail")
    words = "1 epoch after the unpruned network's 2, entering the schedule at epoch 1"
    assert fairness([Reader(store).run(tail)]) == words


def test_a_plan_counts_the_epochs_that_an_arm_trains() -> None:
    arms = ["lr-rewind", {"name": "tail", "like": "lr-rewind", "schedule_epoch": 1}]
    found = rows(study(arms=arms).cells())
    pace: Any = SimpleNamespace(
        ratio=lambda prune: 2.0,
        cutting=lambda model, data: 0.0,
        training=lambda setting, *, epochs, ratio, taught: epochs,
    )
    whole, tail = found["lr-rewind"][0], found["tail"][0]
    assert (whole.estimate(pace), tail.estimate(pace)) == (2, 1)
    assert tail.estimate_flops(pace) == whole.estimate_flops(pace) / 2


def test_weights_are_kept_and_keys_change_only_where_an_arm_asks(
    rewound: tuple[World, Rows],
) -> None:
    world, found = rewound
    root = found["rewound"][0].parent
    assert isinstance(root, Train)
    assert root.keep == (1,)
    assert root.spec == {**_first().spec, "keep": [1]}
    assert root.key != _first().key
    assert replace(root, keep=()).key == _first().key
    kept, plain = (world.store.tensors(job.key) for job in (root, _first()))
    assert equal(kept, plain)
    assert world.store.tensors(root.key, after_epoch(1)).keys() == plain.keys()
    assert world.store.tensors(root.key, after_epoch(2)) == {}


def test_weights_on_the_way_survive_an_interruption(rewound: tuple[World, Rows]) -> None:
    world, found = rewound
    root = found["rewound"][0].parent
    assert isinstance(root, Train)

    class Stopped(Exception):
        pass

    class Interrupting:
        """A context that stops the job at a step, once."""

        def __init__(self, at: int) -> None:
            self.left = at
            self.saved: Any = None

        def load_checkpoint(self) -> Any:
            return self.saved

        def save_checkpoint(self, tensors: Any, meta: Any) -> None:
            self.saved = ({name: value.clone() for name, value in tensors.items()}, meta)

        def checkpoint_due(self) -> bool:
            return True

        def tick(self, fraction: float, note: str = "") -> None:
            self.left -= 1
            if self.left == 0:
                raise Stopped

    def training() -> Training:
        model = build(root.model, seed=root.seed)
        return Training(model, digits(), root.recipe, seed=root.seed)

    context: Any = Interrupting(6)
    with pytest.raises(Stopped):
        advance(training(), context, keep=root.keep)
    kept = advance(training(), context, keep=root.keep)
    assert list(kept) == [after_epoch(1)]
    assert equal(kept[after_epoch(1)], world.store.tensors(root.key, after_epoch(1)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": {"name": "l1-filter", "rounds": 2, "sparsity": 0.2}}, "removes channels, and"),
        (
            {"methods": {"name": "lottery", "rounds": 0, "sparsity": 0.2}},
            "an int from 1 to 100. Got 0",
        ),
        ({"methods": {"name": "lottery"}}, r"number in \[0, 1\). Got None"),
        ({"methods": {"name": "lottery", "sparsity": [0.2, 0.3]}}, r"Got \[0.2, 0.3\]"),
        ({"methods": {"name": "lottery", "sparsity": 0}}, "need one 'sparsity' above 0"),
        ({"methods": {**STUDY["methods"], "ticket": "wining"}}, "Unknown arm 'wining'. Did you"),
        ({"methods": {**STUDY["methods"], "ticket": "scratch-e"}}, "starts from random ones"),
        ({"methods": {**STUDY["methods"], "ticket": "pruned"}}, "'pruned' trains nothing"),
        (
            {"arms": [{"name": "lr-rewind", "schedule_epoch": 2}]},
            "enters its schedule of 2 epochs at epoch 2",
        ),
        ({"arms": [{"name": "late", "start": "rewound"}]}, "needs an 'epoch' to rewind to"),
        ({"arms": [{**REWOUND, "epoch": 2}]}, "rewinds to epoch 2, and the recipe has 2"),
        ({"arms": [{**REWOUND, "start": "initial"}]}, "'start' must be rewound. Got 'initial'"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        study(**changes).cells()


def test_a_round_is_known_by_all_that_led_to_it() -> None:
    second = _rows()["winning-ticket"][1].prune
    assert isinstance(second.parent, Retrain)
    once = replace(second.parent.prune, sparsity=0.3)
    assert replace(second, parent=replace(second.parent, prune=once)).key != second.key
    assert isinstance(second, Prune)
    assert second.expected_kept == pytest.approx(0.64)

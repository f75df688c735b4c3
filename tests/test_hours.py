"""``--hours``: the largest budget that fits, what it leaves out, and that it stays the same."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from commands import STUDY, Command, write_study
from regrow.errors import ConfigError, StoreError
from regrow.jobs.train import Train
from regrow.run import estimate as room
from regrow.run import hours as hours_room
from regrow.run.estimate import _Line
from regrow.run.hours import Fit, fit, least_steps, moving_steps, steps_of
from regrow.store import Store
from regrow.studies.expand import Cell
from regrow.studies.study import Study

SECONDS_A_STEP = 10.0
SPEED = room._Speed(step=_Line(SECONDS_A_STEP, 0.0), image=_Line(0.0, 0.0), cut_seconds=0.0)
WIDE = {"name": "vgg", "plan": [8, "M", 8], "label": "wide VGG"}
NARROW = {"name": "vgg", "plan": [4, "M", 4], "label": "narrow VGG"}


@contextmanager
def _nobody(num: int) -> Iterator[None]:
    yield


@pytest.fixture(autouse=True)
def pace(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let every step take so many seconds, and starts and reports none; call it to change that."""

    def change(seconds: float) -> None:
        speed = replace(SPEED, step=_Line(seconds, 0.0))
        monkeypatch.setattr(room, "_calibrate", lambda setting: speed)

    change(SECONDS_A_STEP)
    monkeypatch.setattr(room, "_neighbours", _nobody)
    monkeypatch.setattr(room, "REPORT_SECONDS", 0.0)
    monkeypatch.setattr(time, "process_time", lambda: 0.0)
    monkeypatch.setattr(hours_room, "LEAST_STEPS", 3)
    monkeypatch.setattr(hours_room, "LEAST_WAY", 1e-9)
    return change


def unpruned(epochs: int, **changes: Any) -> list[Cell]:
    """Expand trainings of 60 images in batches of 20: three steps an epoch."""
    recipe = {**STUDY["recipe"], "epochs": epochs}
    changes = {"arms": ["unpruned"], "methods": [], **changes}
    return Study.from_json({**STUDY, "recipe": recipe, **changes}).cells()


def test_the_largest_budget_that_fits_is_taken() -> None:
    # Two seeds of 30 seconds an epoch, one after another.
    found = fit(unpruned, epochs=100, hours=0.17, workers=1)
    assert (found.epochs, found.of, found.left_out) == (10, 100, ())
    assert found.seconds == 600.0
    longer = fit(unpruned, epochs=100, hours=1.0, workers=1)
    assert longer.epochs == 60
    assert " fits into 1 hour: " in str(longer)
    assert fit(unpruned, epochs=100, hours=1.0, workers=2).epochs == 100
    assert str(found) == (
        "Budget: 10 of 100 epochs, 10 % of the recipes' own, the largest that fits into 0.17 "
        f"hours: 10 minutes with 1 worker expected on {found.date}."
    )


def test_the_costliest_network_goes_first_where_updates_are_too_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hours_room, "LEAST_STEPS", 30)
    slow = replace(SPEED, step=_Line(100.0, 0.0))
    monkeypatch.setattr(
        room, "_calibrate", lambda s: slow if s.model.arguments["plan"][0] == 8 else SPEED
    )

    def cells(epochs: int) -> list[Cell]:
        return unpruned(epochs, models=[WIDE, NARROW], seeds=1)

    # An epoch of both takes 330 seconds: three fit, with nine updates. The narrow one alone has 36.
    found = fit(cells, epochs=100, hours=0.3, workers=1)
    assert found.epochs == 36
    assert [str(left) for left in found.left_out] == [
        "wide VGG on digits (60 images) is left out: with it 3 epochs would fit into 0.3 hours, 9 "
        "updates, and it needs 30 to end clearly above chance"
    ]
    assert fit(cells, epochs=100, hours=1.0, workers=1).left_out == ()


def test_where_nothing_fits_the_least_hours_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hours_room, "LEAST_STEPS", 30)
    expected = (
        r"the cheapest network, tiny VGG on .*, needs 10 epochs, about 10 minutes with 1 worker\."
    )
    with pytest.raises(ConfigError, match=expected):
        fit(unpruned, epochs=100, hours=0.1, workers=1)


def test_a_study_with_budgets_keeps_the_largest_that_fit() -> None:
    def cells(most: int) -> list[Cell]:
        return unpruned(1, budgets=[b for b in (1, 2, 4, 8) if b <= most])

    # One epoch of both seeds is a minute: 1 + 2 + 4 = 7 minutes fit into ten, 15 do not.
    found = fit(cells, epochs=8, hours=10 / 60, workers=1, axis=(1, 2, 4, 8))
    assert (found.epochs, found.seconds) == (4, 420.0)
    assert "Budgets up to 4 epochs fit" in str(found)
    assert str(found).endswith("Left out: 8 epochs.")


def test_more_classes_need_more_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hours_room, "LEAST_STEPS", 400)
    job = unpruned(2)[0].job
    assert isinstance(job, Train)
    assert (steps_of(job), least_steps(job)) == (6, 400)
    many = tuple({**dict(job.data.model_arguments), "classes": 100}.items())
    assert least_steps(replace(job, data=replace(job.data, model_arguments=many))) == 4000


def test_networks_without_norms_need_more_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hours_room, "LEAST_WAY", 0.1)

    def needed(lr: float, **changes: Any) -> int:
        recipe = {**STUDY["recipe"], "lr": lr, **changes}
        (cell,) = Study.from_json(
            {**STUDY, "models": model, "recipe": recipe, "arms": ["unpruned"], "methods": []}
            | {"seeds": 1}
        ).cells()
        assert isinstance(cell.job, Train)
        return moving_steps(cell.job)

    deep = {"name": "vgg-conv", "plan": [8] * 12, "head": "linear"}
    model: dict[str, Any] = deep
    assert needed(0.01) > 10 * 400
    assert needed(0.01) == pytest.approx(10 * needed(0.1), rel=1e-3)
    assert needed(0.01, optimiser="adamw") == 0  # which divides gradients by their size
    model = {**deep, "conv_norm": True}
    assert needed(0.1) < 100


def test_a_network_that_does_not_move_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hours_room, "LEAST_WAY", 0.1)
    wide = WIDE["plan"]
    monkeypatch.setattr(
        hours_room, "first_gradient", lambda s: 1e-4 if s.model.arguments["plan"] == wide else 1.0
    )

    def cells(epochs: int) -> list[Cell]:
        return unpruned(epochs, models=[WIDE, NARROW], seeds=1)

    found = fit(cells, epochs=1000, hours=0.5, workers=1)
    assert [left.network[1] for left in found.left_out] == ["wide VGG"]
    assert "and it needs 1,500 to end clearly above chance" in str(found.left_out[0])


# Commands --------------------


def names_of(store: Path) -> list[str]:
    return [path.name for path in store.glob("hours-*.json")]


def test_a_stopped_run_goes_on_with_the_same_budget_at_another_speed(
    command: Command, tmp_path: Path, pace: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = write_study(tmp_path, recipe={**STUDY["recipe"], "epochs": 40})
    # 14 jobs of 2 seeds: parents, and twice fine-tune (a quarter) and scratch-e.
    run = ("run", study, "--workers", "0", "--hours", "0.75")

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("regrow.run.executors.execute", stop)
        assert command(*run).code != 0
    (name,) = names_of(tmp_path / "regrow-store")
    pace(1000 * SECONDS_A_STEP)  # nothing would fit now
    done = command(*run)
    assert done.code == 0, done.err
    store = Store.open(tmp_path / "regrow-store", create=False)
    found = Fit.from_json(store.decided(name.removesuffix(".json")))
    assert 1 < found.epochs < 40
    records = [store.record(key) for key in store.snapshot().done]
    trained = {record["epochs"] for record in records if record["kind"] == "train"}
    assert trained == {found.epochs}
    assert f"Budget: {found.epochs} of 40 epochs" in done.text
    assert f"Budget: {found.epochs} of 40 epochs" in (
        tmp_path / "regrow-report" / "tiny" / "report.md"
    ).read_text(encoding="utf-8")
    report = command("report", study, "--hours", "0.75")
    assert report.code == 0
    assert "not run" not in report.out
    row = ("--method", "l1-filter", "--arm", "fine-tune", "--seed", "0", "--to", tmp_path / "net")
    exported = command("export", study, *row, "--hours", "0.75")
    assert exported.code == 0, exported.err
    assert command("lint", study, "--hours", "0.75").code == 1
    unknown = (("report", study), ("export", study, *row), ("lint", study), ("track", study))
    for other in unknown:
        refused = command(*other, "--hours", "2")
        assert "No budget for 2 hours has been chosen" in refused.text


@pytest.mark.parametrize(
    "changes",
    [
        {"left_out": [{"network": ["a"]}]},
        {"left_out": [{"network": 1, "why": "w"}]},
        {"left_out": 3},
        {"axis": None},
        {"axis": ["2"]},
        {"epochs": 0},
        {"epochs": "3"},
        {"of": 0},
        {"hours": 10**400},
        {"more": 1},
    ],
)
def test_a_kept_budget_of_another_shape_is_refused(changes: dict[str, Any]) -> None:
    sound: dict[str, Any] = {"hours": 1.0, "epochs": 3, "of": 9, "seconds": 5.0, "workers": 1}
    sound |= {"left_out": [], "machine": "m", "date": "d", "axis": [3, 9]}
    assert Fit.from_json(sound).axis == (3, 9)
    with pytest.raises(StoreError, match=r"The store's decision on --hours .* Remove its hours"):
        Fit.from_json(sound | changes)


def test_a_plan_shows_the_budget_and_each_row_and_chooses_nothing(
    command: Command, tmp_path: Path
) -> None:
    study = write_study(tmp_path, recipe={**STUDY["recipe"], "epochs": 40})
    shown = command("plan", study, "--workers", "1", "--hours", "0.75")
    assert "of 40 epochs" in shown.text
    assert "tiny VGG / l1-filter / 0.5 / scratch-e" in shown.text
    for word in ("epochs", "hours", "FLOPs"):
        assert word in shown.out
    assert not (tmp_path / "regrow-store").exists()
    value = json.loads(command("plan", study, "--hours", "0.75", "--json").out)
    assert "of 40 epochs" in value["notes"][0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ("run", "study.yaml", "--hours", "0"),
            "--hours must be a finite number above 0. Got 0.0.",
        ),
        (("run", "study.yaml", "--hours", "nan"), "--hours must be a finite number above 0."),
        (("run", "study.yaml", "--hours", "inf"), "a finite number above 0. Got inf."),
        (("run", "study.yaml", "--hours", "1", "--device", "cuda"), "the device is 'cuda'"),
        (("reproduce", "all", "--scale", "smoke", "--hours", "1"), "works for one table or figure"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    command: Command, tmp_path: Path, arguments: tuple[str, ...], expected: str
) -> None:
    write_study(tmp_path)
    done = command(*arguments)
    assert done.code == 2
    assert expected in done.text
    assert not (tmp_path / "regrow-store").exists()


def test_a_study_with_budgets_leaves_the_longer_ones_out(command: Command, tmp_path: Path) -> None:
    study = write_study(tmp_path, arms=["unpruned"], methods=[], budgets=[1, 2, 4, 8], seeds=1)
    shown = command("plan", study, "--workers", "1", "--hours", str(4 / 60))
    assert "Budgets up to 4 epochs fit" in shown.text
    assert "2 jobs" in shown.text or " 3 " in shown.text


def test_a_plan_shows_what_each_training_budget_takes(command: Command, tmp_path: Path) -> None:
    study = write_study(tmp_path, arms=["unpruned"], methods=[], budgets=[4, 1], seeds=2)
    shown = command("plan", study, "--workers", "2")
    # Two seeds of 3 or 12 steps of 10 seconds, side by side.
    for words in ("1 epoch", "4 epochs", "30 seconds", "2 minutes", "with 2 workers"):
        assert words in shown.text
    found = json.loads(command("plan", study, "--workers", "2", "--json").out)["budgets"]
    assert [cost["budget"] for cost in found] == [1, 4]
    assert [cost["jobs"] for cost in found] == [2, 2]
    assert [cost["updates"] for cost in found] == [[3], [12]]
    assert [cost["seconds"] for cost in found] == [30.0, 120.0]
    flops = [cost["training_flops"] for cost in found]
    assert flops[1] == 4 * flops[0] > 0
    plain = json.loads(command("plan", write_study(tmp_path), "--workers", "1", "--json").out)
    assert "budgets" not in plain


@pytest.mark.parametrize(("rounding", "said"), [("epochs", True), ("updates", False)])
def test_budgets_that_whole_epochs_do_not_spend_are_said_before(
    command: Command, tmp_path: Path, rounding: str, said: bool
) -> None:
    arms = ["unpruned", "fine-tune", "scratch-b"]
    study = write_study(tmp_path, arms=arms, budgets=[1, 2], seeds=1, rounding=rounding)
    shown = command("plan", study, "--workers", "1")
    assert shown.code == 0, shown.text
    words = (
        "Note: fine-tune trains 1 of 1 and 1 of 2 epochs, not 25 %; scratch-b spends equal FLOPs"
    )
    assert (words in shown.text) is said
    assert ("Instead: rounding: updates" in shown.text) is said


def test_recipes_of_another_length_need_another_choice(command: Command, tmp_path: Path) -> None:
    write_study(tmp_path, arms=["unpruned"], methods=[], recipe={**STUDY["recipe"], "epochs": 3})
    run = ("run", "study.yaml", "--workers", "0", "--hours", "0.2")
    assert command(*run).code == 0
    write_study(tmp_path, arms=["unpruned"], methods=[], recipe={**STUDY["recipe"], "epochs": 4})
    done = command(*run)
    assert done.code == 2
    assert "was chosen for recipes of 3 epochs, and now they have 4. Remove hours-" in done.text


def test_another_command_may_have_chosen_first(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store", create=True)
    found = fit(unpruned, epochs=100, hours=1.0, workers=1)
    hours_room.keep(store, "hours-0", found)
    hours_room.keep(store, "hours-0", replace(found, seconds=1.0))
    with pytest.raises(StoreError, match="has just chosen 60 epochs for 1 hour"):
        hours_room.keep(store, "hours-0", replace(found, epochs=61))


def test_a_table_of_a_paper_says_its_share_and_names_what_it_leaves_out(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hours_room, "LEAST_STEPS", 5)
    slow = replace(SPEED, step=_Line(200.0, 0.0))
    monkeypatch.setattr(
        room, "_calibrate", lambda s: slow if s.model.name == "resnet-110" else SPEED
    )
    done = command(
        *("reproduce", "table-1", "--scale", "smoke", "--workers", "0", "--hours", "0.4"),
        *("--only", "VGG-16 / VGG-16-A / scratch-e", "--only", "ResNet-110 / ResNet-110-A / scra"),
    )
    assert done.code == 0, done.err
    page = (tmp_path / "regrow-paper" / "smoke-0.4-hours" / "table-1" / "report.md").read_text()
    assert "own epochs (the longest asked for has 2) fit into 0.4 hours" in page
    assert "ResNet-110 on digits for CIFAR-10 is left out: with it" in page
    assert page.count("<br>ours ") == 1

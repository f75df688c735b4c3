"""From a study and a store to runs: every cell a run, costs with all stages, failures once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from commands import STUDY
from regrow.data import load
from regrow.jobs.base import Job, all_jobs
from regrow.jobs.prune import Prune
from regrow.jobs.train import Train
from regrow.report.collect import Reader, below, collect
from regrow.report.files import write_study
from regrow.report.rows import Ending
from regrow.report.setups import setup
from regrow.store import Store
from regrow.studies.study import Study


@pytest.fixture
def study() -> Study:
    return Study.from_json(STUDY)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def finish(store: Store, job: Job, **changes: Any) -> None:
    """Store a record of one million FLOPs and a hundred images a training."""
    cost = {"parameters": 10, "macs": 20, "flops": 40}
    if isinstance(job, Prune):
        record: dict[str, Any] = {"guarded": ["a", "b"], "before": cost, "after": cost}
    else:
        measured = {"accuracy": 0.5, "loss": 1.0, "epochs": 1, "capped": False}
        record = {**measured, **cost, "samples": 100, "training_flops": 1e6}
    store.commit(job.key, {**record, "spec": job.spec, **changes})


def test_every_cell_is_a_run_in_the_order_of_the_study(study: Study, store: Store) -> None:
    runs, failures = collect(study, store)
    assert [(run.arm, run.seed) for run in runs] == [(c.arm.name, c.seed) for c in study.cells()]
    assert {run.status for run in runs} == {"missing"}
    assert failures == []


def test_cost_of_a_run_counts_each_stage_it_stands_on_once(study: Study, store: Store) -> None:
    for job in all_jobs(study.jobs()).values():
        finish(store, job)
    runs, _ = collect(study, store)
    stages_of = {run.arm: (run.training_flops, run.samples) for run in runs}
    # A cut that looks at the trained network costs its training, whatever the arm starts from.
    assert stages_of["unpruned"] == (1e6, 100)
    assert stages_of["fine-tune"] == (2e6, 200)
    assert stages_of["scratch-e"] == (2e6, 200)
    assert {run.score for run in runs} == {50.0}
    assert {run.emptied for run in runs if run.arm != "unpruned"} == {2}


def test_runs_know_their_test_set_and_the_network_that_was_pruned(
    study: Study, store: Store
) -> None:
    for job in all_jobs(study.jobs()).values():
        history = [{"lr": 0.1, "loss": 2.0}, {"lr": 0.1, "loss": 1.5}]
        finish(store, job, **({} if isinstance(job, Prune) else {"history": history}))
    runs, _ = collect(study, store)
    labels = load(study.experiments[0].data).test.labels.tolist()
    share = 100 * max(map(labels.count, labels)) / len(labels)
    ending = Ending(loss=1.5, fall=0.5)
    for run in runs:
        assert (run.num_test, run.chance, run.ending) == (len(labels), share, ending)
        parent = (None, None) if run.unpruned else (50.0, ending)
        assert (run.parent_score, run.parent_ending) == parent


def test_runs_carry_what_their_arms_are(store: Store) -> None:
    arms = ["unpruned", "pruned", "fine-tune", {"name": "x", "like": "scratch-b", "cap": 2}]
    study = Study.from_json({**STUDY, "arms": arms})
    runs, _ = collect(study, store)
    for run, cell in zip(runs, study.cells(), strict=True):
        arm, budget = cell.arm, cell.arm.budget
        assert (run.start, run.schedule) == (arm.start, arm.schedule)
        assert (run.budget, run.amount, run.cap) == (budget.kind, budget.amount, budget.cap)


def test_how_a_treated_parent_ended_is_not_its_convergence(store: Store) -> None:
    methods = {"name": "network-slimming", "sparsity": 0.5, "strength": 1e-4}
    study = Study.from_json({**STUDY, "methods": methods})
    for job in all_jobs(study.jobs()).values():
        finish(
            store, job, **({} if isinstance(job, Prune) else {"history": [{"lr": 1, "loss": 2}]})
        )
    runs, _ = collect(study, store)
    assert {(r.parent_score, r.parent_ending) for r in runs if not r.unpruned} == {(50.0, None)}


@pytest.mark.parametrize(
    ("method", "ended", "known"),
    [("magnitude", 0.5, None), ("magnitude", 0.7, 0.7), ("l1-filter", 0.5, 0.5)],
)
def test_masks_that_an_arms_treatment_changed_are_known(
    method: str, ended: float, known: float | None, store: Store
) -> None:
    moving = {"name": "moving", "start": "random", "treatment": "network-slimming", "strength": 2}
    methods = {"name": method, "sparsity": 0.5}
    study = Study.from_json({**STUDY, "methods": methods, "arms": ["fine-tune", moving]})
    for job in all_jobs(study.jobs()).values():
        changes = {"sparsity": 0.5} if job.pruning is job else {}
        finish(store, job, **({"sparsity": ended} if job.treated is not None else changes))
    runs, _ = collect(study, store)
    plain, moved = ([run for run in runs if run.arm == arm] for arm in ("fine-tune", "moving"))
    assert {(run.treatment, run.masked_at_end) for run in plain} == {("", None)}
    assert {(run.treatment, run.masked_at_end) for run in moved} == {
        ("network-slimming at strength 2", known)
    }


def test_failure_of_a_stage_fails_what_stands_on_it_and_is_listed_once(
    study: Study, store: Store
) -> None:
    parent = next(job for job in all_jobs(study.jobs()).values() if isinstance(job, Train))
    for job in all_jobs(study.jobs()).values():
        if parent.key != job.key and parent.key not in {stage.key for stage in below(job)}:
            finish(store, job)
    store.fail(parent.key, parent.spec, message="It diverged.")
    runs, failures = collect(study, store)
    assert [(f.label, f.message) for f in failures] == [(parent.label, "It diverged.")]
    assert {run.status for run in runs if run.seed == parent.seed} == {"failed"}
    assert {run.status for run in runs if run.seed != parent.seed} == {"done"}


def test_failure_that_was_mended_is_forgotten(study: Study, store: Store) -> None:
    for job in all_jobs(study.jobs()).values():
        store.fail(job.key, job.spec, message="once")
        finish(store, job)
    runs, failures = collect(study, store)
    assert failures == []
    assert {run.status for run in runs} == {"done"}


def test_record_of_another_job_counts_as_missing_and_is_named(study: Study, store: Store) -> None:
    odd = study.jobs()[0]
    finish(store, odd, spec={"seed": 99})
    runs, failures = collect(study, store)
    assert {run.status for run in runs} == {"missing"}
    assert [failure.label for failure in failures] == [odd.label]
    assert "belongs to another job" in failures[0].message


def test_what_stands_on_a_damaged_record_has_no_number(study: Study, store: Store) -> None:
    for job in all_jobs(study.jobs()).values():
        finish(store, job)
    prune = next(job for job in all_jobs(study.jobs()).values() if isinstance(job, Prune))
    file = store.root / "records" / prune.key[:2] / prune.key / "record.json"
    file.write_text(file.read_text().replace('"macs":20', '"macs":21'))
    runs, failures = collect(study, store)
    damaged = {c.place for c in study.cells() if prune.key in {each.key for each in below(c.job)}}
    assert damaged
    places = [cell.place for cell in study.cells()]
    for place, run in zip(places, runs, strict=True):
        assert run.status == ("missing" if place in damaged else "done")
        assert (run.score is None) == (place in damaged)
    assert [failure.label for failure in failures] == [prune.label]


def test_a_report_with_its_ledger_and_its_page_reads_each_record_once(
    study: Study, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = all_jobs(study.jobs())
    for job in jobs.values():
        finish(store, job)
    read: list[str] = []
    record = Store.record

    def noting(self: Store, key: str, **options: Any) -> dict[str, Any]:
        read.append(key)
        return record(self, key, **options)

    monkeypatch.setattr(Store, "record", noting)
    write_study(study, store, tmp_path / "out", command="regrow report", html=True, refresh=9)
    assert sorted(read) == sorted(jobs)


def test_stages_of_a_job_come_once_each(study: Study) -> None:
    tuned = next(c.job for c in study.cells() if c.arm.name == "fine-tune")
    assert [stage.kind for stage in below(tuned)].count("train") == 1
    assert {stage.kind for stage in below(tuned)} == {"train", "prune"}


def test_runs_know_what_they_descend_from_and_how_long_all_of_it_trained(store: Store) -> None:
    slimming = {"name": "network-slimming", "sparsity": 0.5}
    methods: list[dict[str, Any]] = [
        {"name": "l1-filter", "sparsity": 0.5},
        {"name": "width", "sparsity": 0.5},
        slimming,
        {**slimming, "label": "slimmed later", "pretrained": True},
    ]
    study = Study.from_json({**STUDY, "methods": methods, "arms": ["fine-tune", "scratch-e"]})
    for cell in study.cells():
        for job in (*below(cell.job), cell.job):
            finish(store, job, validation={"accuracy": 0.4})
    runs = {(run.method, run.arm): run for run in collect(study, store)[0] if run.seed == 0}
    first, later = runs["l1-filter", "fine-tune"], runs["slimmed later", "fine-tune"]
    assert first.base == later.base == runs["width", "fine-tune"].base != ""
    assert runs["network-slimming", "fine-tune"].base not in ("", first.base)
    assert (first.pruning_epochs, first.total_epochs) == (0, 2)
    assert (later.pruning_epochs, later.total_epochs) == (1, 3)
    assert runs["width", "scratch-e"].base == ""  # needs no trained network
    assert runs["width", "scratch-e"].total_epochs == 1
    assert runs["width", "scratch-e"].designed
    assert not first.designed
    assert first.validation == 40.0
    assert 0 < (first.arm_flops or 0) < (first.training_flops or 0)  # of what stands below it, too
    assert first.recipe == "learning rate 0.05"
    assert setup([first], [runs["width", "fine-tune"]]) == "S4.2, SX-A, SX-B"
    assert setup([first], [later]) == "S3.2"


def test_no_failure_is_hidden_by_one_of_another_job_with_its_label(
    study: Study, store: Store
) -> None:
    cells = [replace(cell, job=replace(cell.job, label="alike")) for cell in study.cells()[:2]]
    for cell in cells:
        store.fail(cell.job.key, cell.job.spec, message=f"no luck with seed {cell.seed}")
    assert {failure.label: failure.message for failure in Reader(store).failures(cells)} == {
        f"alike (job {cell.job.key[:12]})": f"no luck with seed {cell.seed}" for cell in cells
    }


def test_a_report_leaves_no_file_of_an_earlier_one_and_every_file_of_the_user(
    store: Store, tmp_path: Path
) -> None:
    def report(out: str, *, html: bool = False, epochs: bool = False, **changes: Any) -> set[str]:
        study = Study.from_json({**STUDY, "methods": STUDY["methods"][0], **changes})
        for job in all_jobs(study.jobs()).values():
            finish(store, job, history=[{"epoch": 0, "loss": 1.0}])
        write_study(study, store, tmp_path / out, command="regrow", html=html, epochs=epochs)
        return {file.name for file in (tmp_path / out).iterdir()}

    before = report("out", budgets=[1, 2], html=True, epochs=True)
    alone = report("alone")
    figure, *_ = sorted(name for name in before - alone if name.endswith(".png"))
    assert {"report.html", "epochs.csv", "budget-answers.csv", "budgets.csv"} < before - alone
    own = {"notes.md": b"mine", "my.png": b"mine", figure: b"drawn anew", "study.yaml": b"name: a"}
    for name, content in own.items():
        (tmp_path / "out" / name).write_bytes(content)
    assert report("out") == alone | {*own}
    assert {name: (tmp_path / "out" / name).read_bytes() for name in own} == own


@pytest.mark.parametrize("listed", [None, "[]", "{}", '{"files": 3}', '{"files": {"../a.md": ""}}'])
def test_a_folder_without_a_list_of_files_loses_nothing(
    study: Study, store: Store, tmp_path: Path, listed: str | None
) -> None:
    kept = [tmp_path / "a.md", tmp_path / "out" / "report.html", tmp_path / "out" / "budgets.csv"]
    (tmp_path / "out").mkdir()
    for file in kept:
        file.write_text("")
    if listed is not None:
        (tmp_path / "out" / "how.json").write_text(listed)
    write_study(study, store, tmp_path / "out", command="regrow report")
    assert all(file.exists() for file in kept)

"""Estimates: what is left, what depends on what, and how records and cuts inform a guess."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from commands import STUDY
from regrow.jobs.base import Job, all_jobs
from regrow.jobs.prune import Prune
from regrow.jobs.retrain import Retrain
from regrow.jobs.train import Train, model_cost
from regrow.run import estimate as room
from regrow.run.estimate import _Line, estimate
from regrow.run.schedule import Schedule
from regrow.store import Store
from regrow.studies.study import Study

START = 10.0  # what this process says that it computed before it planned


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "CALIBRATION_SECONDS", 0.02)
    monkeypatch.setattr(time, "process_time", lambda: START)


def make(**changes: Any) -> tuple[Job, ...]:
    return Study.from_json({**STUDY, **changes}).jobs()


def finish(store: Store, job: Job, seconds: float) -> None:
    cost = {"flops": 1000}
    record = {"timing": {"seconds": seconds}, "before": cost, "after": cost, "spec": job.spec}
    store.commit(job.key, record)


def test_counts_jobs_by_kind_and_what_is_done() -> None:
    jobs = make()
    keys = [key for key, job in all_jobs(jobs).items() if job.kind == "train"]
    found = estimate(jobs, set(keys), workers=1)
    # Two seeds; two methods with a cut and three arms after it each.
    assert found.by_kind == {"train": (2, 2), "prune": (4, 0), "retrain": (12, 0)}
    assert (found.jobs, found.done) == (18, 2)


def test_nothing_is_left_of_a_finished_study() -> None:
    jobs = make()
    found = estimate(jobs, set(all_jobs(jobs)), workers=2)
    assert (found.seconds, found.compute_seconds, found.training_flops) == (0.0, 0.0, 0.0)


def test_training_flops_of_the_unpruned_network_are_exact() -> None:
    jobs = make(arms=["unpruned"], seeds=3)
    job = jobs[0]
    assert isinstance(job, Train)
    cost = model_cost(job.model, job.data.shape)
    assert estimate(jobs, (), workers=1).training_flops == 3 * cost.training_flops(60)


def test_training_flops_of_a_uniform_cut_are_exact() -> None:
    """Scratch-E of a network cut by half: what measuring the cut network gives."""
    study = {"methods": {"name": "l1-filter", "sparsity": 0.5}, "arms": ["scratch-e"], "seeds": 1}
    jobs = make(**study)
    (retrain,) = jobs
    assert isinstance(retrain, Retrain)
    keys = all_jobs(jobs)
    done = {key for key, job in keys.items() if not isinstance(job, Retrain)}
    guessed = estimate(jobs, done, workers=1).training_flops
    # The plan [4, M, 4] on one 8x8 channel; narrow: two and two channels, ten classes.
    narrow = Study.from_json({**STUDY, "models": {"name": "vgg", "plan": [2, "M", 2]}})
    small = narrow.jobs()[0]
    assert isinstance(small, Train)
    assert guessed == pytest.approx(small.flops, rel=1e-6)


def test_recorded_cuts_replace_guesses(tmp_path: Path) -> None:
    jobs = make(arms=["scratch-e"], seeds=1, methods={"name": "network-slimming", "sparsity": 0.5})
    store = Store.open(tmp_path / "store")
    (retrain,) = jobs
    assert isinstance(retrain, Retrain)
    cost = model_cost(retrain.prune.model, retrain.prune.data.shape)
    done = [job for job in all_jobs(jobs).values() if isinstance(job, Prune | Train)]
    for job in done:
        finish(store, job, 1.0)
    found = estimate(jobs, {job.key for job in done}, workers=1, store=store)
    assert found.training_flops == cost.training_flops(60)  # as recorded: nothing was cut


def test_records_of_the_same_network_correct_the_calibration(tmp_path: Path) -> None:
    jobs = make(arms=["unpruned"], seeds=8)
    done = {job.key for job in jobs[:4]}
    alone = estimate(jobs, done, workers=1)
    slow, fast = Store.open(tmp_path / "slow"), Store.open(tmp_path / "fast")
    for job in jobs[:4]:
        finish(slow, job, 1.5)
        finish(fast, job, 1e-6)
    informed = estimate(jobs, done, workers=1, store=slow)
    assert not alone.from_records
    assert informed.from_records
    # Four are left. One and a half seconds each, less than what a first job in a worker would take.
    assert informed.seconds - 2 * START - room.REPORT_SECONDS == pytest.approx(6.0, rel=0.02)
    assert estimate(jobs, done, workers=1, store=fast).from_records


def test_first_jobs_of_workers_do_not_mislead(tmp_path: Path) -> None:
    """A job that imported libraries for ten seconds says nothing of the next one."""
    jobs = make(arms=["unpruned"], seeds=8)
    store = Store.open(tmp_path / "store")
    for job, seconds in zip(jobs, (14.0, 15.0, 1.0, 1.0, 1.0), strict=False):
        finish(store, job, seconds)
    found = estimate(jobs, {job.key for job in jobs[:5]}, workers=1, store=store)
    assert found.seconds - 2 * START - room.REPORT_SECONDS == pytest.approx(3.0)


def test_no_schedule_beats_its_longest_chain() -> None:
    jobs = make(arms=["fine-tune"], seeds=1, methods={"name": "magnitude", "sparsity": 0.5})
    seconds = dict.fromkeys(all_jobs(jobs), 2.0)
    assert len(seconds) == 3
    assert room._makespan(Schedule(jobs, ()), seconds, 8) == 6.0
    assert room._makespan(Schedule(jobs, [jobs[0].prune.parent.key]), seconds, 8) == 4.0  # type: ignore[attr-defined]


def test_workers_that_wait_for_the_last_job_count() -> None:
    """Three equal jobs take two workers twice the time of one, not one and a half times."""
    jobs = make(arms=["unpruned"], seeds=3)
    seconds = dict.fromkeys(all_jobs(jobs), 2.0)
    assert room._makespan(Schedule(jobs, ()), seconds, 2) == 4.0


def test_a_pruning_takes_its_proof_too(monkeypatch: pytest.MonkeyPatch) -> None:
    speed = replace(SPEED, cut_seconds=1.0, proof_seconds=5.0)
    monkeypatch.setattr(room, "_calibrate", lambda setting: speed)
    jobs = make(arms=["pruned"], seeds=1, methods={"name": "l1-filter", "sparsity": 0.5})
    rates = room.Rates()
    seconds = {job.kind: rates.of(job) for job in all_jobs(jobs).values()}
    assert seconds["prune"] == 6.0
    assert seconds["retrain"] == pytest.approx(1.0, abs=0.1)  # cut again, and scored


def test_line_rises_and_stays_above_zero() -> None:
    assert _Line.through((10.0, 5.0), (5.0, 3.0)).at(20.0) == pytest.approx(9.0)
    assert _Line.through((10.0, 5.0), (5.0, 6.0)) == _Line(5.0, 0.0)  # noise: narrower is slower
    assert _Line.through((10.0, 5.0), (5.0, 0.0)) == _Line(0.0, 0.5)
    assert _Line.through((10.0, 5.0), None).at(20.0) == 10.0


def test_calibration_leaves_threads_and_randomness_alone() -> None:
    jobs = make(arms=["unpruned"], seeds=1)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    estimate(jobs, (), workers=2)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_each_network_is_calibrated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def calibrate(setting: object) -> room._Speed:
        calls.append(setting)
        return SPEED

    monkeypatch.setattr(room, "_calibrate", calibrate)
    assert estimate(make(seeds=60), (), workers=2).jobs == 60 * 9
    assert len(calls) == 1


SPEED = room._Speed(step=_Line(0.0, 1e-9), image=_Line(0.0, 1e-10), cut_seconds=0.01)


def test_workers_share_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    speed = replace(SPEED, step=_Line(10.0, 0.0))
    monkeypatch.setattr(room, "_calibrate", lambda setting: speed)
    jobs = make(arms=["unpruned"], seeds=8)
    one, two = (estimate(jobs, (), workers=workers) for workers in (1, 2))
    work = 8 * 3 * 10.0  # eight seeds of three steps
    assert one.seconds == pytest.approx(2 * START + work + room.REPORT_SECONDS, rel=1e-3)
    assert two.seconds == pytest.approx(2 * START + work / 2 + room.REPORT_SECONDS, rel=1e-3)


def test_a_network_whose_channels_are_guessed_is_timed_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Narrow layers take more than their share of the time: no line through wider networks says."""
    monkeypatch.setattr(room, "_calibrate", lambda setting: SPEED)
    widths: list[int] = []

    def time_of(network: torch.nn.Module, *others: object) -> tuple[float, float]:
        widths.append(next(network.parameters()).shape[0])
        return 7.0, 0.0

    monkeypatch.setattr(room, "_time", time_of)
    study = {"methods": {"name": "l1-filter", "sparsity": 0.75}, "arms": ["scratch-e"], "seeds": 2}
    (first, second) = make(**study)
    assert isinstance(first, Retrain)
    rates = room.Rates()
    steps = first.recipe.length * -(-first.data.num_train // first.recipe.batch)
    assert rates.of(first) == rates.of(second) == pytest.approx(7.0 * steps + SPEED.cut_seconds)
    assert widths == [1]  # of four channels a quarter is left; timed once for both seeds

    # Once the cut is done, what is planned of a resumed run stays the same.
    prune, store = first.prune, Store.open(tmp_path, create=True)
    flops = model_cost(prune.model, prune.data.shape).flops
    cost = {"before": {"flops": flops}, "after": {"flops": flops / rates.ratio(prune)}}
    store.commit(prune.key, {"timing": {"seconds": 1.0}, **cost, "spec": prune.spec})
    resumed = room.Rates()
    resumed.learn([prune], store)
    assert resumed.of(first) == rates.of(first)
    assert widths == [1, 1]

    long = replace(SPEED, step=_Line(room.CALIBRATION_SECONDS, 0.0))
    monkeypatch.setattr(room, "_calibrate", lambda setting: long)
    assert room.Rates().of(first) < 7.0 * steps  # too long to try: by the line
    assert widths == [1, 1]

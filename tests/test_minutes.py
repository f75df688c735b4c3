"""The scale ``minutes``: every table and figure, with parents that end clearly above chance."""

from pathlib import Path

import pytest

from commands import Command
from regrow.jobs.base import all_jobs
from regrow.jobs.train import Train
from regrow.reproduce import scales
from regrow.reproduce.images import Request
from regrow.reproduce.paper import UNPRUNED, Entry, papers
from regrow.reproduce.plan import Plan, prepare
from regrow.reproduce.results import read_back
from regrow.run.hours import least_steps, steps_of
from regrow.store import Store

MINUTES = scales.named("minutes")
ENTRIES = {
    entry.full_name: entry for paper in papers().values() for entry in paper.entries.values()
}
QUICK = ("liu2019/table-2", "liu2019/table-12", "liu2019/figure-4", "wang2023/table-7")
# Its parents are pruned before they have converged, which is what it is about: after 2 to 90 of
# 120 epochs.
EARLY = "wang2023/table-4"


def plan_of(name: str) -> Plan:
    return prepare(ENTRIES[name], Request(scale=MINUTES))


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in ENTRIES]
)
def test_every_entry_has_it_with_enough_updates_and_two_seeds(name: str) -> None:
    plan = plan_of(name)
    assert not plan.skipped
    trained = [job for job in all_jobs(plan.jobs).values() if isinstance(job, Train)]
    networks = [job for job in trained if job.head is None]
    assert networks or trained
    if name != EARLY:
        assert all(steps_of(job) >= least_steps(job) for job in networks)
    for part in plan.parts:
        of_paper = max(len(e.seeds) for e in part.study.experiments)
        asked = ENTRIES[name].paper.study(part.name).get("seeds", 1)
        assert of_paper == min(2, asked)


def test_networks_without_norms_get_them() -> None:
    study = {"data": "imagenet", "models": ["imagenet-vgg-16", "resnet-56"]}
    plain, residual = scales.scaled(study, MINUTES)["models"]
    assert plain == {"name": "imagenet-vgg-16", "conv_norm": True, "width": 0.25}
    assert residual == {"name": "resnet-56", "width": 0.25}
    whole = scales.scaled(study, scales.named("small"))["models"]
    assert "conv_norm" not in whole[0]


def test_rounds_and_the_epochs_of_detectors_have_their_own_measure() -> None:
    method = {"name": "lottery", "rounds": 14, "sparsity": 0.2}
    assert scales.scaled({"methods": [method]}, MINUTES)["methods"][0]["rounds"] == 5
    study = {"backbone": {"recipe": "imagenet"}, "detector": "voc"}
    scaled = scales.scaled(study, MINUTES)
    assert (scaled["backbone"]["recipe"]["epochs"], scaled["recipe"]["epochs"]) == (9, 7)
    half = scales.scaled(study, scales.shortened(MINUTES, 0.5))
    assert (half["backbone"]["recipe"]["epochs"], half["recipe"]["epochs"]) == (4, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ENTRIES if name != EARLY])
def test_no_parent_is_at_chance(name: str, command: Command, tmp_path: Path) -> None:
    entry: Entry = ENTRIES[name]
    done = command("reproduce", entry.full_name, "--scale", "minutes")
    assert done.code == 0, done.err
    results = read_back(plan_of(name), Store.open(tmp_path / "regrow-store", create=False))
    for study in results:
        for run in study.runs:
            if run.arm == UNPRUNED and run.score is not None and run.chance is not None:
                assert run.score > 2 * run.chance, run

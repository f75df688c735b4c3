"""Energy: read from counters, shared among jobs, and said once where it cannot be read."""

import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from commands import Command, write_study
from regrow.core import energy
from regrow.core.energy import (
    Counters,
    Energy,
    EnergyMeter,
    ProcessorTime,
    counters,
    metered,
    rapl_zones,
)
from regrow.core.machine import machine
from regrow.report.ledger import StudyCost, joules
from regrow.run import executors, run
from regrow.store import Store
from test_run import Walk

FULL = 10_000_000_000  # microjoules: what the counters go up to, 20 s at the most power


def zone(folder: Path, place: str, name: str, *, at: int = 0, most: int = FULL) -> Path:
    """Write a zone as Linux shows it, and return its counter."""
    here = folder / place
    here.mkdir(parents=True)
    (here / "name").write_text(f"{name}\n")
    (here / "max_energy_range_uj").write_text(f"{most}\n")
    (here / "energy_uj").write_text(f"{at}\n")
    return here / "energy_uj"


@dataclass
class Bench:
    """A machine whose clock, counters and processor are moved by hand."""

    at: float = 0.0
    own: float = 0.0
    all: float = 0.0
    files: dict[Path, int] = field(default_factory=dict)

    def pass_by(self, seconds: float, *, own: float, all: float, **joules: float) -> None:
        self.at, self.own, self.all = self.at + seconds, self.own + own, self.all + all
        for file, taken in zip(self.files, joules.values(), strict=True):
            self.files[file] = (self.files[file] + int(taken * 1e6)) % FULL
            file.write_text(str(self.files[file]))

    def meter(self, known: Counters) -> EnergyMeter:
        return EnergyMeter(
            known, clock=lambda: self.at, used=lambda: ProcessorTime(self.own, self.all)
        )


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    files = [zone(tmp_path, "intel-rapl:0", "package-0"), zone(tmp_path, "intel-rapl:0:1", "dram")]
    zone(tmp_path, "intel-rapl:0:0", "core")
    zone(tmp_path, "intel-rapl:1", "psys")
    return Bench(files=dict.fromkeys(files, 0))


@pytest.fixture
def known(bench: Bench, tmp_path: Path) -> Counters:
    return Counters(found=rapl_zones(tmp_path))


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    counters.cache_clear()
    yield
    counters.cache_clear()


def test_packages_and_memory_are_read_and_what_lies_within_or_around_them_is_not(
    known: Counters,
) -> None:
    assert [counter.name for counter in known.found] == ["package-0", "dram of package-0"]


def test_a_job_gets_its_part_of_the_processors_time(bench: Bench, known: Counters) -> None:
    with metered(bench.meter(known)) as meter:
        bench.pass_by(10, own=5, all=20, package=100, dram=8)
    assert meter.total == Energy(
        joules=27.0, whole_joules=108.0, counters=("package-0", "dram of package-0")
    )


def test_jobs_at_once_in_a_process_share_evenly_and_add_up(bench: Bench, known: Counters) -> None:
    first, second = bench.meter(known), bench.meter(known)
    with metered(first):
        bench.pass_by(1, own=1, all=1, package=10, dram=0)
        with metered(second):
            bench.pass_by(1, own=2, all=4, package=40, dram=0)
        bench.pass_by(1, own=1, all=1, package=10, dram=0)
    assert (first.total.joules, second.total.joules) == (30.0, 10.0)
    assert first.total.whole_joules == 60.0


def test_a_counter_that_went_round_is_followed_and_twice_round_is_not_guessed(
    bench: Bench, known: Counters
) -> None:
    with metered(bench.meter(known)) as meter:
        for _ in range(3):
            bench.pass_by(1, own=1, all=1, package=6000, dram=0)
            meter.read()
        assert meter.total.joules == pytest.approx(18_000.0)
        bench.pass_by(60, own=1, all=1, package=1, dram=0)
    assert "wrapped around more than once in 60 s" in meter.total.unknown


def test_a_resumed_job_adds_what_it_took_before(bench: Bench, known: Counters) -> None:
    meter = bench.meter(known)
    meter.add(Energy.from_json({"joules": 7.0, "whole_joules": 9.0, "counters": ["package-0"]}))
    with metered(meter):
        bench.pass_by(1, own=1, all=2, package=4, dram=0)
    assert meter.total.joules == 9.0
    meter.add(Energy.from_json(None))  # resumed from a machine that did not measure
    assert meter.total.to_json() == {"unknown": "it was not measured"}


@pytest.mark.parametrize("counter", ["missing", "refused"])
def test_where_nothing_can_be_read_the_reason_is_kept(
    counter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    if counter == "refused":
        file = zone(tmp_path, "intel-rapl:0", "package-0")
        file.unlink()
        file.mkdir()  # as root reads any file, a folder stands for one that may not be read
    found = counters("cpu")
    assert not found.found
    expected = "has no energy counters" if counter == "missing" else "cannot be read"
    assert expected in found.unknown
    assert "no counter is known of the device mps" in counters("mps").unknown


class FakeNvml:
    """NVIDIA's library, with one GPU that counts."""

    class NVMLError(Exception):
        pass

    def __init__(self, *values: int) -> None:
        self.values = list(values)
        self.asked = ""

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetHandleByUUID(self, name: str) -> str:  # noqa: N802
        self.asked = name
        return name

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        if not self.values:
            raise self.NVMLError("Not Supported")
        return self.values.pop(0)


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    properties = SimpleNamespace(uuid="12-34", name="A GPU")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)


@pytest.mark.usefixtures("gpu")
def test_a_gpu_is_read_by_nvidias_library_and_not_divided_by_processor_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeNvml(1000, 1000, 61_000)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    bench = Bench()
    with metered(bench.meter(counters("cuda:0"))) as meter:
        bench.pass_by(100_000, own=1, all=50)
    assert meter.total == Energy(joules=60.0, whole_joules=60.0, counters=("A GPU",))
    assert fake.asked == "GPU-12-34"


@pytest.mark.usefixtures("gpu")
def test_a_gpu_without_a_counter_or_a_library_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    assert (
        counters("cuda").unknown
        == "NVIDIA's library cannot read the energy of A GPU: Not Supported"
    )
    counters.cache_clear()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install 'regrow[energy]'" in counters("cuda").unknown


def test_a_counter_that_fails_stops_no_training(bench: Bench, known: Counters) -> None:
    with metered(bench.meter(known)) as meter:
        for file in bench.files:
            file.unlink()
    assert meter.total.unknown.startswith("a counter failed")


def test_records_have_the_energy_beside_the_seconds_and_nothing_else_changes(
    bench: Bench, known: Counters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records: list[dict[str, Any]] = []
    for number, found in enumerate((known, Counters(unknown="no counters"))):
        monkeypatch.setattr(executors, "counters", lambda _, found=found: found)
        store = Store.open(tmp_path / f"store{number}")
        job = Walk(name="one")
        run([job], store, workers=0)
        records.append(store.record(job.key))
    (with_energy, without), timings = records, [record.pop("timing") for record in records]
    assert with_energy == without
    assert timings[0]["energy"]["counters"] == ["package-0", "dram of package-0"]
    assert timings[1]["energy"] == {"unknown": "no counters"}


def test_a_study_says_in_one_sentence_what_it_took() -> None:
    taken = Energy(joules=7200.0, whole_joules=9000.0, counters=("package-0",))
    words = StudyCost(
        jobs=3, energy=taken, num_measured=2, unknown=("it was not measured",)
    ).energy_words
    assert "by the counters of package-0: 7.20 kJ (2 Wh) for the jobs' share" in words
    assert "of 2 of 3 jobs alone, because of the others it was not measured" in words
    assert (
        "of computing on a GPU and a processor. Energy"
        in StudyCost(jobs=3, machines=("a GPU", "a processor"), unknown=("no counters",)).words
    )
    unread = StudyCost(jobs=3, unknown=("no counters",)).energy_words
    assert unread == "Energy was not measured: no counters."
    assert joules(0.5) == "0.5 J"


def test_the_ledger_of_a_command_has_every_row_and_says_the_energy_once(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unread = Counters(unknown="this machine shows no counters")
    monkeypatch.setattr(executors, "counters", lambda _: unread)
    study = write_study(tmp_path)
    out = tmp_path / "out"
    command("run", study, "--workers", "0", "--store", tmp_path / "s", "--out", out, "--html")
    with (out / "ledger.csv").open() as file:
        ledger = list(csv.DictReader(file))
    with (out / "rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["group"], row["arm"]) for row in ledger] == [
        (row["group"], row["arm"]) for row in rows
    ]
    for name in ("training_flops", "samples", "fairness", "epochs"):
        assert [row[name] for row in ledger] == [row[name] for row in rows]
    assert all(float(row["seconds"]) >= float(row["own_seconds"]) >= 0 for row in ledger)
    assert {row["joules"] for row in ledger} == {""}
    assert json.loads((out / "how.json").read_text())["cost"].count("Energy was not measured") == 1
    assert f"of computing on {machine()}. " in json.loads((out / "how.json").read_text())["cost"]
    page = (out / "report.html").read_text()
    assert page.count("Energy was not measured: this machine shows no counters.") <= 2
    assert "own energy" not in page

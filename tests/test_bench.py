"""The benchmarks measure what they say, on the smallest network and for a moment."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import pytest
import torch
from typer.testing import CliRunner

from commands import command_line, environment
from regrow.bench import processes, training
from regrow.bench.material import NETS, Subject, training_flops
from regrow.bench.measuring import matrix_products, our_steps, our_training, rate
from regrow.bench.plain import plain_steps
from regrow.bench.processes import TRAINING, Process
from regrow.bench.studies import measure_study
from regrow.bench.training import Row, foot, head, line
from regrow.cli.bench import app
from regrow.errors import ConfigError, Interrupted
from regrow.models import build
from regrow.run import precision
from regrow.run.precision import PrecisionSpeed
from regrow.train import Training

DIGITS = Subject(net="digits")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_unknown_net_offers_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Unknown net of the benchmark 'resnet-57'"):
        Subject(net="resnet-57")


@pytest.mark.parametrize("net", NETS)
def test_every_subject_has_images_that_fit_its_network(net: str) -> None:
    subject = Subject(net=net)
    dataset = subject.dataset()
    assert build(subject.model(dataset)) is not None
    assert dataset.size == (8 if net == "digits" else 32)


def test_training_flops_are_six_for_each_multiply_accumulate() -> None:
    # By hand: 3x3 convolutions on maps of 8, 4 and 2 pixels, and the head.
    macs = 9 * (64 * (1 * 16 + 16 * 16) + 16 * (16 * 32 + 32 * 32) + 4 * (32 * 64 + 64 * 64))
    assert training_flops(DIGITS) == 6 * (macs + 64 * 10)


def test_steps_count_every_image_once_an_epoch() -> None:
    steps = our_steps(our_training(DIGITS, "fp32"))
    assert sum(next(steps) for _ in range(23)) == 1438


def test_plain_loop_trains_the_same_images() -> None:
    dataset = DIGITS.dataset()
    model = build(DIGITS.model(dataset))
    before = [p.detach().clone() for p in model.parameters()]
    steps = plain_steps(model, dataset, loader_workers=0)
    assert [next(steps) for _ in range(2)] == [64, 64]
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_rate_is_what_was_done_a_second() -> None:
    assert rate(iter([1.0] * 10**7), seconds=0.05) > 100
    assert rate(matrix_products("fp32"), seconds=0.05) > 1e8


def test_a_study_tells_jobs_a_minute_and_what_is_not_training() -> None:
    step = Training.step
    speed = measure_study(num_jobs=1, workers=0)
    assert Training.step is step
    assert speed.jobs_per_minute == pytest.approx(60 / speed.seconds)
    assert 0 < speed.outside < 0.5
    assert "trainings a minute" in speed.text()


def row_of(net: str) -> Row:
    rates = {"plain": 10.0, "fp32": 20.0, "bf16": 30.0, "fp32 together": 40.0}
    return Row(
        net=net,
        num_together=2,
        rates={**rates, "bf16 together": 60.0},
        best="bf16 together",
        times_plain=6.0,
        flops_per_second=1e9,
        peak={"fp32": 2e9, "bf16": 4e9},
        of_peak=0.25,
        outside=0.03,
        left_out={},
    )


def test_rows_name_every_way_and_the_peak() -> None:
    row = row_of("digits")
    assert len(head(row)) == len(line(row))
    text = "\n".join([head(row), line(row), foot([row])])
    for part in ("bf16 together", "6.00x", "25.0%", "3.0%", "4 GFLOP/s in bf16"):
        assert part in text
    assert json.loads(json.dumps(row.to_json()))["num_together"] == 2


class Idle:
    """A process that says how fast it is, without being one."""

    def __init__(self, way: str, subject: Subject) -> None:
        self.way = way

    def wait(self) -> None:
        pass

    def begin(self, what: str, seconds: float) -> None:
        pass

    def result(self) -> float:
        return 100.0

    def close(self) -> None:
        pass


def test_precision_that_is_hopeless_here_is_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = PrecisionSpeed(0.02, 1.2)
    for module in (processes, precision):
        monkeypatch.setattr(module, "is_native", lambda: False)
        monkeypatch.setattr(module, "measured", lambda: slow)
    monkeypatch.setattr(processes, "Process", Idle)
    monkeypatch.setattr(training, "share_around_the_core", lambda subject, way: 0.0)
    row = training.measure_training(DIGITS, device="cpu", rounds=1, seconds=0.05)
    assert [*row.rates] == ["plain", "fp32", "fused", "fp32 together", "fused together"]
    assert [*row.peak] == ["fp32"]
    assert "bf16 is left out: a step of a small network took 20 ms in fp32" in foot([row])


@pytest.mark.parametrize("asked", ["fp32", "bf16"])
def test_another_precision_is_not_measured(
    asked: Literal["fp32", "bf16"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "Process", Idle)
    monkeypatch.setattr(training, "share_around_the_core", lambda subject, way: 0.0)
    row = training.measure_training(DIGITS, device="cpu", rounds=1, seconds=0.05, precision=asked)
    ways = {"fp32": ["fp32", "fused"], "bf16": ["bf16"]}[asked]
    assert [*row.rates] == ["plain", *ways, *(f"{way} together" for way in ways)]
    assert [*row.peak] == [asked]
    assert row.left_out == {}


@pytest.fixture
def measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[tuple[str, str]]:
    """Let measuring take no time, until Ctrl-C comes at vgg-16; what had been printed by then."""
    printed: list[tuple[str, str]] = []

    def measure(subject: Subject, **options: object) -> Row:
        out, err = capsys.readouterr()
        printed.append((out, err))
        if subject.net == "vgg-16":
            raise KeyboardInterrupt
        return row_of(subject.net)

    monkeypatch.setattr(training, "measure_training", measure)
    return printed


def test_each_row_is_printed_before_the_next_network_is_measured(
    measured: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    app(["train", "--nets", "digits,resnet-56"], standalone_mode=False)
    assert measured[0] == ("", "digits, 1 of 2 ...\n")
    row = row_of("digits")
    assert measured[1] == (f"{head(row)}\n{line(row)}\n", "resnet-56, 2 of 2 ...\n")
    last = capsys.readouterr().out
    assert last.startswith(f"{line(row_of('resnet-56'))}\n{foot([row])}\n\ndate ")


def test_json_is_one_document_at_the_end(
    measured: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    app(["train", "--nets", "digits,resnet-56", "--json"], standalone_mode=False)
    assert [out for out, _ in measured] == ["", ""]
    found = json.loads(capsys.readouterr().out)
    assert [row["net"] for row in found["rows"]] == ["digits", "resnet-56"]


def test_networks_may_be_named_by_several_options(
    measured: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    app(
        ["train", "--nets", "digits", "--nets", "resnet-56,digits", "--json"],
        standalone_mode=False,
    )
    assert json.loads(capsys.readouterr().out)["nets"] == ["digits", "resnet-56"]


def test_ctrl_c_keeps_the_rows_that_are_done(
    measured: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Interrupted, match="1 of 3 networks are measured"):
        app(["train", "--nets", "digits,vgg-16,resnet-56"], standalone_mode=False)
    assert measured[1][0].endswith(f"{line(row_of('digits'))}\n")
    assert foot([row_of("digits")]) in capsys.readouterr().out
    with pytest.raises(Interrupted):
        app(["train", "--nets", "digits,vgg-16,resnet-56", "--json"], standalone_mode=False)
    found = json.loads(capsys.readouterr().out)
    assert found["nets"] == ["digits", "vgg-16", "resnet-56"]
    assert [row["net"] for row in found["rows"]] == ["digits"]


def test_ctrl_c_before_the_first_row_prints_none(
    measured: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Interrupted, match="0 of 1 networks"):
        app(["train", "--nets", "vgg-16"], standalone_mode=False)
    assert measured == [("", "vgg-16, 1 of 1 ...\n")]
    assert capsys.readouterr().out == ""


def test_surgery_is_timed_and_told_as_json() -> None:
    result = CliRunner().invoke(app, ["surgery", "--quick", "--json"])
    assert result.exit_code == 0
    found = json.loads(result.output)
    assert [row["net"] for row in found["rows"]] == ["vgg-16", "resnet-56"]
    assert all(row["trace"] > 0 and row["shrink"] > 0 for row in found["rows"])
    assert found["machine"]["torch"] == torch.__version__


@pytest.mark.slow
def test_training_is_compared_with_the_plain_loop() -> None:
    command = ["train", "--nets", "digits", "--rounds", "1", "--seconds", "0.5", "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0
    (row,) = json.loads(result.stdout)["rows"]
    ways = ("fp32", "fused", "bf16")
    assert set(row["rates"]) == {"plain", *ways, *(f"{way} together" for way in ways)}
    assert all(value > 0 for value in row["rates"].values())
    assert row["times_plain"] > 1


@pytest.mark.slow
def test_a_process_that_has_its_turn_is_ended_at_once() -> None:
    process = Process("fp32", DIGITS)
    process.begin(TRAINING, 600.0)
    started = time.monotonic()
    process.close()
    assert time.monotonic() - started < 60


@pytest.mark.slow
def test_ctrl_c_ends_every_process_that_measures() -> None:
    process = subprocess.Popen(
        command_line("bench", "train", "--nets", "digits"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group of its own, all of which gets Ctrl-C, as from a terminal
    )
    try:
        deadline = time.monotonic() + 120
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while len(children.read_text().split()) < 4:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        out, told = process.communicate(timeout=60)  # also of those that have its streams
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode, out) == (130, "")
    assert "regrow: Stopped: 0 of 1 networks are measured" in told
    assert "Traceback" not in told

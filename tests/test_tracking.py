"""Results for tools that watch experiments: every point once, whatever was stopped in between."""

import errno
import json
import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from commands import STUDY, Command, write_study
from regrow.cli import track as cli_track
from regrow.errors import ConfigError
from regrow.jobs.base import Job
from regrow.report import trackers
from regrow.report.trackers import open_trackers
from regrow.report.tracking import Conclusion, TrackedRun, export
from regrow.run import JobDone, run
from regrow.store import Store
from regrow.studies.study import Study
from regrow.study_run import run_study

HOSTILE = "<b>\"x\" '/../..' \u202e\u4e2d"


@dataclass
class Notebook:
    """A tool that remembers what it was given."""

    place: str = "a notebook"
    runs: dict[str, TrackedRun] = field(default_factory=dict)
    points: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    said: list[Conclusion] = field(default_factory=list)

    def known(self) -> set[str]:
        return {*self.runs}

    def add(self, run: TrackedRun) -> None:
        self.runs[run.id] = run
        for epoch, values in run.epochs:
            self.points.update((run.name, name, epoch) for name in values)

    def conclude(self, conclusion: Conclusion) -> None:
        self.said.append(conclusion)


@pytest.fixture(scope="module")
def study() -> Study:
    recipe = {**STUDY["recipe"], "epochs": 3}
    return Study.from_json({**STUDY, "recipe": recipe, "methods": STUDY["methods"][:1]})


@pytest.fixture(scope="module")
def store(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Store:
    opened = Store.open(tmp_path_factory.mktemp("store"))
    run(study.jobs(), opened, workers=0)
    return opened


def test_each_finished_run_is_written_once_with_all_its_epochs(study: Study, store: Store) -> None:
    notebook = Notebook()
    cells = study.cells()
    assert export(study, store, [notebook]) == {"a notebook": len(cells)}
    assert export(study, store, [notebook]) == {"a notebook": 0}
    assert set(notebook.points.values()) == {1}
    run = next(run for run in notebook.runs.values() if "scratch-e / seed 1" in run.name)
    assert run.name == "digits (60 images) / tiny VGG / l1-filter 0.5 / scratch-e / seed 1"
    assert [epoch for epoch, _ in run.epochs] == [*range(run.epochs[0][0], run.epochs[0][0] + 3)]
    assert {"lr", "loss"} <= run.epochs[0][1].keys()
    record = json.loads(run.record.read_text())
    assert [values["loss"] for _, values in run.epochs] == [
        line["loss"] for line in record["history"]
    ]
    assert run.results["accuracy"] == pytest.approx(100 * record["accuracy"])
    assert run.results["seconds"] > 0
    assert run.settings["key"] == run.key == run.record.parent.name
    assert run.settings["arm"] == "scratch-e"
    (said,) = notebook.said
    assert any("scratch-e minus fine-tune" in verdict for verdict in said.verdicts)
    assert "scratch-e" in said.text


def test_while_a_study_runs_what_is_done_is_added_and_a_stop_repeats_nothing(
    study: Study, tmp_path: Path
) -> None:
    opened, notebook = Store.open(tmp_path), Notebook()
    jobs: tuple[Job, ...] = study.jobs()
    for number in range(len(jobs)):  # as after a run that was stopped there
        run(jobs[: number + 1], opened, workers=0)
        export(study, opened, [notebook])
    assert len(notebook.runs) == len(study.cells())
    assert set(notebook.points.values()) == {1}


def test_a_tool_that_fails_is_left_alone_and_the_study_goes_on(
    study: Study, store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Notebook):
        def add(self, run: TrackedRun) -> None:
            raise ConfigError("mlflow: its database is locked.")

    monkeypatch.setattr("regrow.run.refreshing.LEAST_SECONDS", 0.0)
    good = Notebook()
    seen: list[Any] = []
    show = cli_track.while_running(study, store, [Broken(), good], before=seen.append)
    for _ in range(2):
        show(JobDone(key="k", label="l", seconds=1.0, reused=False))
    assert len(seen) == 2
    assert good.runs
    said = capsys.readouterr().err
    assert said.count("The study goes on without it; `regrow track` can write it later.") == 1


def test_a_study_run_from_python_is_tracked_while_it_runs(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(Notebook):
        def add(self, run: TrackedRun) -> None:
            raise ConfigError("mlflow: its database is locked.")

    good, seen = Notebook(), Counter[str]()
    known = {"mlflow": lambda name, place: Broken(), "trackio": lambda name, place: good}
    monkeypatch.setattr("regrow.report.trackers.KNOWN", known)
    monkeypatch.setattr("regrow.run.refreshing.LEAST_SECONDS", 0.0)
    options: dict[str, Any] = {"workers": 0, "track": ["mlflow", "trackio"]}
    options["on_event"] = lambda event: seen.update([type(event).__name__])
    with pytest.warns(UserWarning, match="its database is locked. The study goes on without it"):
        found = run_study(study, store=tmp_path, **options)
    assert found.complete
    assert len(good.runs) == len(study.cells())
    assert len(good.said) > 1, "written while it ran, too"
    assert seen["JobDone"] == len(found.summary.done)


@pytest.mark.parametrize("tool", ["tensorboard:runs", "mlflow", "trackio"])
def test_a_missing_package_is_said_before_anything_runs(
    tool: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = tool.partition(":")[0]
    missing = {"tensorboard": "tensorboard.compat.proto.event_pb2"}.get(name, name)
    monkeypatch.setitem(sys.modules, missing, None)
    study = write_study(tmp_path)
    ended = command("run", study, "--store", tmp_path / "s", "--track", tool)
    assert ended.code == 2
    assert f"pip install 'regrow[{name}]'" in ended.text
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Name a tool: --tensorboard DIR"),
        (("--track", "mlflw"), "Did you mean 'mlflow'"),
        (("--track", "tensorboard"), "needs a folder: tensorboard:runs"),
    ],
)
def test_what_is_no_tool_is_refused(
    arguments: tuple[str, ...], message: str, command: Command, tmp_path: Path
) -> None:
    ended = command("track", write_study(tmp_path), "--store", tmp_path / "s", *arguments)
    assert ended.code == 2
    assert message in ended.text


@pytest.mark.filterwarnings("ignore")
def test_the_command_writes_events_that_tensorboard_reads(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra 'tensorboard'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    study = write_study(
        tmp_path, name="named", methods=None, arms=["unpruned"], seeds=1,
        models={**STUDY["models"], "label": HOSTILE}, recipe={**STUDY["recipe"], "epochs": 2},
    )  # fmt: skip
    arguments = (study, "--store", tmp_path / "s", "--tensorboard", tmp_path / "runs")
    ended = command("run", *arguments, "--workers", "0", "--out", tmp_path / "o")
    assert ended.code == 0, ended.text
    (folder,) = (mark.parent for mark in (tmp_path / "runs").rglob("regrow.json"))
    assert folder.parent == tmp_path / "runs" / "named"
    (folder / "events.out.tfevents.half").write_bytes(b"")
    (folder / "regrow.json").unlink()  # as a run that was killed while it was written
    assert "1 run written to" in command("track", *arguments).text
    assert "0 runs written to" in command("track", *arguments).text
    events = EventAccumulator(str(folder)).Reload()
    record = next((tmp_path / "s").rglob("record.json"))
    history = json.loads(record.read_text())["history"]
    assert [event.value for event in events.Scalars("epoch/loss")] == pytest.approx(
        [line["loss"] for line in history]
    )
    assert events.Tags()["tensors"] == ["settings/text_summary"]


@pytest.mark.filterwarnings("ignore")
def test_events_that_cannot_be_written_mark_nothing_as_complete(
    study: Study, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra 'tensorboard'")
    write = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.name.startswith("events."):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path, data)

    (tracker,) = open_trackers([f"tensorboard:{tmp_path / 'runs'}"], study)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(ConfigError, match=r"tensorboard: OSError.*No space left on device"):
            export(study, store, [tracker])
    assert tracker.known() == set()
    assert [*export(study, store, [tracker]).values()] == [len(study.cells())]


@pytest.mark.parametrize("content", [b"", b"[1]", b"{" * 100_000, b"\xff", None])
def test_marks_that_cannot_be_read_mark_nothing(content: bytes | None, tmp_path: Path) -> None:
    mark = tmp_path / "mark.json"
    if content is None:
        os.mkfifo(mark)
    else:
        mark.write_bytes(content)
    assert trackers._read(mark) == {}


@pytest.mark.filterwarnings("ignore")  # of what the libraries themselves import
@pytest.mark.parametrize("tool", ["mlflow", "trackio"])
def test_a_database_gets_every_run_once(
    tool: str, study: Study, store: Store, tmp_path: Path
) -> None:
    if find_spec(tool) is None:  # not imported here: Trackio reads then where it keeps its runs
        pytest.skip(f"needs the extra {tool!r}")
    (tracker,) = open_trackers([f"{tool}:{tmp_path / 'runs'}"], study)
    cells = len(study.cells())
    assert [*export(study, store, [tracker]).values()] == [cells]
    assert [*export(study, store, [tracker]).values()] == [0]
    assert len(tracker.known()) == cells
    (again,) = open_trackers([f"{tool}:{tmp_path / 'runs'}"], study)
    assert again.known() == tracker.known()
    assert_database(tool, again, cells)


def assert_database(tool: str, tracker: Any, cells: int) -> None:
    if tool == "mlflow":
        runs = tracker._runs("regrow.complete", "yes")
        run = next(run for run in runs if "scratch-e / seed 1" in run.info.run_name)
        points = tracker._client.get_metric_history(run.info.run_id, "epoch/loss")
        assert len(points) == 3
        assert run.data.tags["regrow.record"].endswith("record.json")
        return
    runs = tracker._trackio.Api().runs(tracker._project)
    assert sorted(run.name == "answer" for run in runs) == [False] * cells + [True]


def test_a_tool_that_two_options_name_is_opened_once() -> None:
    assert cli_track.names_of(["tensorboard:a", "mlflow"], Path("a")) == ["tensorboard:a", "mlflow"]

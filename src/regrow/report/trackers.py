"""TensorBoard, MLflow and Trackio, through their own libraries; by default in a local folder.

tensorboard:runs          event files below the folder `runs`
mlflow, mlflow:FOLDER     a SQLite file in a folder (`regrow-mlflow`); or any URI that MLflow takes
trackio, trackio:FOLDER   SQLite files in a folder (Trackio's own unless named)
"""

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

from regrow.core.digests import parsed, read_file
from regrow.errors import ConfigError, RegrowError, short, unknown
from regrow.report.tracking import Conclusion, TrackedRun, Tracker
from regrow.studies.study import Study

MARK = "regrow.json"  # in the folder of a completely written run
EVENTS = "brain.Event:2"  # the format version of event files
MOST_POINTS = 900  # in one request; MLflow's limit is 1,000 of all kinds
MOST_TEXT = 5000  # characters of an MLflow tag or parameter
SLUG = 80  # characters of a folder's name


def open_trackers(texts: Iterable[str], study: Study) -> list[Tracker]:
    """Open the trackers that texts such as ``mlflow:FOLDER`` name.

    Raises:
        ConfigError: a tracker is unknown, or its package or location is missing.
    """
    trackers = []
    for text in texts:
        name, _, place = text.partition(":")
        if name not in KNOWN:
            raise ConfigError(
                f"--track {text}: {unknown('tool', name, KNOWN)} A location can follow a colon."
            )
        trackers.append(KNOWN[name](study.name, place))
    return trackers


@contextmanager
def _needing(name: str) -> Iterator[None]:
    """Turn a missing package, and any failure of a tracker, into a ``ConfigError``."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"Tracking by {name} needs its package: pip install 'regrow[{name}]'. ({short(error)})"
        ) from error
    except RegrowError:
        raise
    except Exception as error:  # of a library, its database or the disk
        raise ConfigError(f"{name}: {type(error).__name__}: {short(error)}") from error


class TensorBoard:
    """Event files of TensorBoard: a folder for each run, below one for the study.

    PyTorch's ``SummaryWriter`` writes in a thread, whose errors are lost: a run would count as
    complete without its events. Here events are serialised in memory and written as one file.
    """

    def __init__(self, study: str, place: str) -> None:
        if not place:
            raise ConfigError("--track tensorboard needs a folder: tensorboard:runs.")
        with _needing("tensorboard"):
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.summary.writer.record_writer import RecordWriter
            from torch.utils.tensorboard import summary
        self._event: Callable[..., Any] = Event
        self._packed: Callable[..., Any] = RecordWriter
        self._summary: Any = summary
        self._root = Path(place) / _slug(study)
        self.place = f"{self._root} (tensorboard --logdir {place})"

    def known(self) -> set[str]:
        """Return the identifiers of runs whose folders are complete."""
        return {str(_read(mark).get("id")) for mark in self._root.glob(f"*/{MARK}")}

    def add(self, run: TrackedRun) -> None:
        """Write the events of one run into a fresh folder."""
        folder = self._root / f"{_slug(run.name)}-{run.id}"
        last = run.epochs[-1][0] if run.epochs else 0
        with _needing("tensorboard"):
            scalar, text = self._summary.scalar, self._summary.text
            events = [
                (scalar(f"epoch/{name}", value), epoch)
                for epoch, values in run.epochs
                for name, value in values.items()
            ]
            events += [(scalar(f"result/{name}", v), last) for name, v in run.results.items()]
            events.append((text("settings", _as_list(run.settings)), 0))
            self._write(folder, events)
            mark = {"id": run.id, "key": run.key, "name": run.name, "record": str(run.record)}
            (folder / MARK).write_text(json.dumps(mark, indent=1), encoding="utf-8")

    def conclude(self, conclusion: Conclusion) -> None:
        """Write the answer and the verdicts as texts."""
        with _needing("tensorboard"):
            answer = self._summary.text("answer", conclusion.text)
            self._write(self._root / "answer", [(answer, 0)])

    def _write(self, folder: Path, events: Iterable[tuple[Any, int]]) -> None:
        """Write events, each a summary with its step, into a fresh folder."""
        if folder.exists():  # from a killed attempt or an earlier answer: ours by its name
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        now = time.time()
        content = BytesIO()
        packed = self._packed(content)
        packed.write(self._event(wall_time=now, file_version=EVENTS).SerializeToString())
        for summary, step in events:
            event = self._event(wall_time=now, step=step, summary=summary)
            packed.write(event.SerializeToString())
        (folder / f"events.out.tfevents.{now:.0f}.regrow").write_bytes(content.getvalue())


class MLflow:
    """An MLflow experiment for a study, with an MLflow run for each of its runs."""

    def __init__(self, study: str, place: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        with _needing("mlflow"):
            from mlflow import entities
            from mlflow.tracking import MlflowClient

            uri = place if "://" in place else _sqlite(Path(place or "regrow-mlflow"))
            self._entities = entities
            self._client: Any = MlflowClient(tracking_uri=uri)
            found = self._client.get_experiment_by_name(study)
            self._experiment = (
                self._client.create_experiment(study) if found is None else found.experiment_id
            )
        self.place = f"{uri} (mlflow ui --backend-store-uri {uri})"

    def known(self) -> set[str]:
        """Return the identifiers of runs that are marked as complete."""
        with _needing("mlflow"):
            return {run.data.tags["regrow.id"] for run in self._runs("regrow.complete", "yes")}

    def add(self, run: TrackedRun) -> None:
        """Write one run: parameters, values of epochs, results, and the path of its record."""
        with _needing("mlflow"):
            for left in self._runs("regrow.id", run.id):
                self._client.delete_run(left.info.run_id)
            tags = {"regrow.id": run.id, "regrow.key": run.key, "regrow.record": str(run.record)}
            made = self._client.create_run(self._experiment, run_name=run.name, tags=tags)
            now = int(1000 * time.time())
            last = run.epochs[-1][0] if run.epochs else 0
            points = [
                self._entities.Metric(f"epoch/{name}", value, now, epoch)
                for epoch, values in run.epochs
                for name, value in values.items()
            ]
            points += [
                self._entities.Metric(f"result/{name}", value, now, last)
                for name, value in run.results.items()
            ]
            settings = [
                self._entities.Param(name, value[:MOST_TEXT])
                for name, value in run.settings.items()
            ]
            self._client.log_batch(made.info.run_id, params=settings)
            for first in range(0, len(points), MOST_POINTS):
                self._client.log_batch(
                    made.info.run_id, metrics=points[first : first + MOST_POINTS]
                )
            self._client.set_tag(made.info.run_id, "regrow.complete", "yes")
            self._client.set_terminated(made.info.run_id)

    def conclude(self, conclusion: Conclusion) -> None:
        """Write the answer and the verdicts as the experiment's description."""
        with _needing("mlflow"):
            self._client.set_experiment_tag(
                self._experiment, "mlflow.note.content", conclusion.text[:MOST_TEXT]
            )

    def _runs(self, tag: str, value: str) -> list[Any]:
        runs, token = [], None
        while True:
            page = self._client.search_runs(
                [self._experiment],
                filter_string=f"tags.`{tag}` = '{value}'",
                page_token=token,
            )
            runs += page
            token = page.token
            if not token:
                return runs


class Trackio:
    """A Trackio project for a study, with a Trackio run for each of its runs."""

    def __init__(self, study: str, place: str) -> None:
        if place:  # read only when the package is imported
            os.environ["TRACKIO_DIR"] = str(Path(place).absolute())
        with _needing("trackio"), redirect_stdout(StringIO()):
            import trackio
            from trackio.utils import TRACKIO_DIR
        if place and Path(TRACKIO_DIR) != Path(place).absolute():
            raise ConfigError(
                f"Trackio already keeps its runs in {TRACKIO_DIR} in this process, and one process "
                "has one such folder. Leave out the location, or start a new process."
            )
        self._trackio: Any = trackio
        self._project = study
        self._folder = Path(TRACKIO_DIR)
        self._marks = self._folder / f"{_slug(study)}-{MARK}"
        show = f'trackio show --project "{study}"'
        self.place = f"{self._folder} (TRACKIO_DIR={self._folder} {show})"

    def known(self) -> set[str]:
        """Return the identifiers of completely written runs that the project still has."""
        done = _read(self._marks)
        if not done:
            return set()
        with _needing("trackio"):
            there = {str(run.name) for run in self._runs()}
        return {id for id, name in done.items() if name in there}

    def add(self, run: TrackedRun) -> None:
        """Write one run: its settings, values of epochs, and results."""
        name = f"{run.name} / {run.id}"
        results = {f"result/{key}": value for key, value in run.results.items()}
        points = {
            epoch: {f"epoch/{key}": value for key, value in values.items()}
            for epoch, values in run.epochs
        }
        last = run.epochs[-1][0] if run.epochs else 0
        points[last] = {**points.get(last, {}), **results}
        self._write(name, config=dict(run.settings), points=points)
        done = _read(self._marks)
        fresh = self._marks.with_suffix(f".{os.getpid()}.new")
        fresh.write_text(json.dumps({**done, run.id: name}, indent=1), encoding="utf-8")
        fresh.replace(self._marks)

    def conclude(self, conclusion: Conclusion) -> None:
        """Write the answer and the verdicts as the settings of a run named ``answer``."""
        verdicts = {f"verdict {i}": text for i, text in enumerate(conclusion.verdicts, start=1)}
        self._write("answer", config={"answer": conclusion.answer, **verdicts}, points={0: {}})

    def _runs(self) -> list[Any]:
        try:
            return [*self._trackio.Api().runs(self._project)]
        except ValueError:  # nothing was written to the project yet
            return []

    def _write(
        self, name: str, *, config: dict[str, str], points: dict[int, dict[str, float]]
    ) -> None:
        with _needing("trackio"), redirect_stdout(StringIO()):
            for left in self._runs():
                if left.name == name:
                    left.delete()
            self._trackio.init(
                project=self._project,
                name=name,
                config=config,
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
            for step, values in points.items():
                self._trackio.log(values, step=step)
            self._trackio.finish()


KNOWN: dict[str, Callable[[str, str], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "trackio": Trackio,
}


def _read(mark: Path) -> dict[str, Any]:
    """Read a file that marks runs as complete; if unreadable, none is, and all are rewritten."""
    try:
        return parsed(read_file(mark))
    except (OSError, ValueError):
        return {}


def _sqlite(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder.absolute() / 'mlflow.db'}"


def _slug(text: str) -> str:
    """Turn a name into one that is valid on any file system.

    >>> _slug("digits / l1-filter 0.5 / <b>"), _slug("...")
    ('digits-l1-filter-0.5-b', 'study')
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:SLUG].replace("--", "-") or "study"


def _as_list(settings: Any) -> str:
    return "\n".join(f"- {name}: `{value}`" for name, value in settings.items())

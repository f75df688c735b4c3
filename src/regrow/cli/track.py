"""The command ``regrow track``: results for TensorBoard, MLflow and Trackio, from a store."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from regrow.cli.hours import HoursOption, load_within
from regrow.cli.inputs import load_extensions, open_store
from regrow.cli.options import (
    DEFAULT_STORE,
    DataOption,
    StoreOption,
    StudyFile,
    TensorboardOption,
    TrackOption,
    WithOption,
)
from regrow.cli.terminal import complain, count, say
from regrow.errors import ConfigError

if TYPE_CHECKING:
    from regrow.report.tracking import Tracker
    from regrow.run.events import Event
    from regrow.store import Store
    from regrow.studies.study import Study

LATER = "`regrow track` can write it later."


def track(
    study: StudyFile,
    store: StoreOption = DEFAULT_STORE,
    to: TrackOption = None,
    tensorboard: TensorboardOption = None,
    with_files: WithOption = None,
    data: DataOption = None,
    hours: HoursOption = None,
) -> None:
    """Send finished runs to TensorBoard, MLflow or Trackio; runs sent before are not repeated.

    Sends the values of every epoch, settings, results, verdicts and the location of each record.
    """
    load_extensions(with_files)
    loaded, _, _ = load_within(hours, study, store, data=data, measure=False)
    trackers = trackers_of(loaded, names_of(to, tensorboard))
    if not trackers:
        raise ConfigError("Name a tool: --tensorboard DIR, --track mlflow or --track trackio.")
    export_now(loaded, open_store(store, create=False), trackers)


def names_of(names: Sequence[str] | None, tensorboard: Path | None) -> list[str]:
    """Return the trackers that the options name, each once."""
    boards = [] if tensorboard is None else [f"tensorboard:{tensorboard}"]
    return [*dict.fromkeys((*boards, *(names or ())))]


def trackers_of(study: "Study", names: Sequence[str]) -> "list[Tracker]":
    """Open the trackers with these names, if any."""
    if not names:
        return []
    from regrow.report.trackers import open_trackers

    return open_trackers(names, study)


def export_now(study: "Study", store: "Store", trackers: "Sequence[Tracker]") -> None:
    """Write the runs that the trackers do not have yet, and print where."""
    from regrow.report.tracking import export

    for place, num in export(study, store, trackers).items():
        say(f"{count(num, 'run')} written to {place}.")


def export_at_end(study: "Study", store: "Store", trackers: "Sequence[Tracker]") -> None:
    """Write the runs that the trackers do not have yet; a failing tracker is only a warning."""
    for tracker in trackers:
        try:
            export_now(study, store, [tracker])
        except ConfigError as error:
            complain(f"{error} {LATER}")


def while_running(
    study: "Study",
    store: "Store",
    trackers: "Sequence[Tracker]",
    *,
    before: "Callable[[Event], None]",
) -> "Callable[[Event], None]":
    """Return a handler that writes runs as they finish, and passes events to ``before``.

    A tracker that fails is not used again, so that training continues.
    """
    from regrow.report.tracking import export
    from regrow.run.refreshing import Refreshing

    left = list(trackers)

    def write(_seconds: int) -> None:
        for tracker in tuple(left):
            try:
                export(study, store, [tracker])
            except ConfigError as error:
                left.remove(tracker)
                complain(
                    f"{error} The study goes on without it; `regrow track` can write it later."
                )

    return Refreshing(write, before=before)

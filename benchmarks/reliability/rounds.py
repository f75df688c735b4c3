"""Rounds of a small study: commands run in forks of a warm process, and are checked afterwards.

Most of a short run is spent importing torch, so commands run in forks of a process that has it.
"""

import argparse
import io
import json
import os
import platform
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import yaml

STUDY: dict[str, Any] = {
    "name": "tiny",
    "data": {"name": "digits", "subset": 60, "test_subset": 40},
    "models": {"name": "vgg", "plan": [4, "M", 4], "label": "tiny VGG"},
    "methods": {"name": "l1-filter", "sparsity": 0.5},
    "arms": ["unpruned", "fine-tune", "scratch-e"],
    "seeds": 1,
    # Not "auto", whose result is measured and may differ between stores.
    "recipe": {"name": "cifar", "epochs": 2, "batch": 20, "lr": 0.05, "precision": "fp32"},
}
_figures: Any = None
RESULTS = ("rows.csv", "runs.csv", "verdicts.csv", "rows.parquet")
PATIENCE = 300.0  # seconds, until a command counts as hung


@dataclass(frozen=True)
class Ended:
    """A command's exit code (negative: the signal that killed it), its output and duration."""

    code: int
    text: str
    seconds: float


@dataclass
class Tally:
    """A benchmark's counts and faults, printed in one line and written as JSON."""

    name: str
    rounds: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    faults: list[dict[str, Any]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def count(self, what: str, by: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + by

    def fault(self, where: str, what: str, text: str = "") -> None:
        self.faults.append({"where": where, "what": what, "text": text[-3000:]})
        print(f"FAULT {where}: {what}", file=sys.stderr, flush=True)

    def close(self, out: Path | None, **more: Any) -> int:
        """Print the summary and write it; 1 if there were faults."""
        seconds = time.monotonic() - self.started
        counts = ", ".join(f"{number} {what}" for what, number in self.counts.items())
        print(
            f"{self.name}: {self.rounds} rounds, {len(self.faults)} faults"
            f"{'; ' + counts if counts else ''}; {seconds:.0f} s"
        )
        if out is not None:
            value = {
                "benchmark": self.name,
                "rounds": self.rounds,
                "counts": self.counts,
                "faults": self.faults,
                "seconds": round(seconds, 1),
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "machine": f"{os.cpu_count()} cores, {platform.platform()}",
                **more,
            }
            out.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
        return int(bool(self.faults))


def options(about: str, *, rounds: int) -> argparse.ArgumentParser:
    """Make a parser with the options that the benchmarks of this folder share."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file for the results as JSON")
    parser.add_argument("--folder", type=Path, help="working folder (default: a temporary one)")
    return parser


def warm(*options: str) -> None:
    """Import and initialise all that a run needs, by running the study in this process once.

    From then on, jobs are retried at once, and checkpoints are written after every epoch.
    """
    import matplotlib

    matplotlib.use("Agg")
    import regrow.cli.main
    import regrow.run
    import regrow.run.troubles

    regrow.run.troubles.FIRST_WAIT = (
        0.01  # seconds before a retry: no trouble here passes with time
    )
    # A checkpoint after every epoch, however short; the command line's minimum is 0.1 seconds.
    regrow.run.run = partial(_run_saving_often, regrow.run.run)  # type: ignore[assignment]
    before = Path.cwd(), sys.argv
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("study.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
        for words in (("run", "--workers", "0", "--out", "out", *options), ("status",)):
            sys.argv = ["regrow", words[0], "study.yaml", "--store", "store", *words[1:]]
            with suppress(SystemExit), redirect_stdout(io.StringIO()):
                regrow.cli.main.main()
        os.chdir(before[0])
    sys.argv = before[1]


def without_figures(without: bool = True) -> None:
    """Leave figures out of all reports from now on, because they take most of the time."""
    import regrow.report

    global _figures
    _figures = _figures or regrow.report._figures
    regrow.report._figures = (lambda *_: ()) if without else _figures  # type: ignore[assignment]


def _run_saving_often(run: Any, *jobs: Any, **options: Any) -> Any:
    return run(*jobs, **{**options, "checkpoint_seconds": 0.0})


def start(*arguments: str | Path, cwd: Path, log: Path) -> int:
    """Start a command in a forked child with its own process group; return the child's id."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        os.chdir(cwd)
        words = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number, target in ((nothing, 0), (words, 1), (words, 2)):
            os.dup2(number, target)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        os.environ |= {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"}
        sys.argv = ["regrow", *map(str, arguments)]
        from regrow.cli.main import main

        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                traceback.print_exc()
        os._exit(code)


def finish(child: int, log: Path, *, patience: float = PATIENCE) -> Ended:
    """Wait for a command; if it hangs, kill its process group."""
    began = time.monotonic()
    pause = 0.005
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() - began > patience:
            kill(child)
            _, status = os.waitpid(child, 0)
            text = log.read_text(errors="replace") if log.exists() else ""
            return Ended(-999, f"{text}\nHUNG for {patience:.0f} s", patience)
        time.sleep(pause)
        pause = min(0.1, 1.2 * pause)
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return Ended(os.waitstatus_to_exitcode(status), text, time.monotonic() - began)


def kill(child: int) -> None:
    """Kill a command with all its processes."""
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        os.kill(child, signal.SIGKILL)


class Ground:
    """A folder with a study, the results of an undisturbed run of it, and one round's store."""

    def __init__(self, folder: Path, *, options: tuple[str, ...] = (), **changes: Any) -> None:
        self.folder = folder.resolve()
        self.options = options
        self.folder.mkdir(parents=True, exist_ok=True)
        study = {k: v for k, v in {**STUDY, **changes}.items() if v is not None}
        (self.folder / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
        self.round = self.folder / "round"
        self.clear()
        ended = self.run()
        assert ended.code == 0, ended.text
        self.results = {name: (self.round / "out" / name).read_bytes() for name in RESULTS}
        self.files = self._files()

    def clear(self) -> None:
        shutil.rmtree(self.round, ignore_errors=True)
        self.round.mkdir()

    def start(self, command: str = "run", *, log: str = "log", workers: int = 0) -> int:
        """Start a command on the round's store; return the child's id."""
        words = [command, "../study.yaml", "--store", "store"]
        if command == "run":
            words += ["--workers", str(workers)]
        if command != "status":
            words += ["--out", "out", *self.options[: 1 if command == "report" else None]]
        return start(*words, cwd=self.round, log=self.folder / log)

    def run(self, command: str = "run", *, log: str = "log", workers: int = 0) -> Ended:
        """Run a command on the round's store, and wait for it."""
        return finish(self.start(command, log=log, workers=workers), self.folder / log)

    def _files(self) -> list[str]:
        """List all files; those of TensorBoard without the times in their names."""
        files = (path.relative_to(self.round) for path in self.round.rglob("*") if path.is_file())
        return sorted(re.sub(r"tfevents\..*", "tfevents", str(file)) for file in files)

    def after(self, where: str, tally: Tally, *, status: bool = True) -> None:
        """Run the study again, and check results, files and status against an undisturbed run."""
        ended = self.run(log="after.log")
        if ended.code != 0:
            tally.fault(where, f"the next run ended with {ended.code}", ended.text)
            return
        if "Traceback" in ended.text:
            tally.fault(where, "the next run printed a traceback", ended.text)
        for name, content in self.results.items():
            if (self.round / "out" / name).read_bytes() != content:
                tally.fault(where, f"{name} differs", ended.text)
        files = self._files()
        if files != self.files:
            more, less = set(files) - set(self.files), set(self.files) - set(files)
            tally.fault(where, f"files left over: {sorted(more)}; missing: {sorted(less)}")
        left = [*(self.round / "store" / "running").glob("*")]
        if left:
            tally.fault(where, f"left in running/: {[path.name for path in left]}")
        if status:
            shown = self.run("status", log="status.log")
            number = len([name for name in self.files if name.endswith("record.json")])
            if shown.code != 0 or f"{number} of {number} jobs done" not in shown.text:
                tally.fault(where, "status does not agree", shown.text)

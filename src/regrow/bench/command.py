"""The commands ``regrow bench train``, ``bench study`` and ``bench surgery``."""

import json
import os
import platform
from contextlib import suppress
from datetime import date
from typing import Annotated, Any

import typer

from regrow.errors import Interrupted

app = typer.Typer(
    no_args_is_help=True,
    help="Measure how fast this machine is: training against a plain loop, a whole small study, "
    "surgery.",
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
QuickOption = Annotated[bool, typer.Option(help="Seconds rather than minutes, and less sure.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda or cuda:1.")]


@app.command("train")
def bench_train(
    device: DeviceOption = "cpu",
    data: Annotated[
        str, typer.Option(help="32x32 images such as hf:FOLDER; default random ones.")
    ] = "synthetic",
    nets: Annotated[
        list[str] | None, typer.Option(help="Which networks: with commas, or an option for each.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Medians are over so many.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each measurement.")] = 6.0,
    quick: QuickOption = False,
    as_json: JsonOption = False,
) -> None:
    """Count images a second: a plain PyTorch loop against ours, alone and together.

    A network's row is printed when it is measured. Ctrl-C keeps the rows that are done.
    """
    from regrow.bench.material import NETS, QUICK_NETS, Subject
    from regrow.bench.training import Row, foot, head, line, measure_training

    asked_for = [name.strip() for part in nets or () for name in part.split(",")]
    names = list(dict.fromkeys(asked_for)) or [*(QUICK_NETS if quick else NETS)]
    subjects = [Subject(net=name, data=data) for name in names]
    if quick:
        rounds, seconds = 1, 1.5
    rows: list[Row] = []
    # One line as soon as it is known: all of them take minutes. What is known when the user stops
    # the rest is kept.
    with suppress(KeyboardInterrupt):
        for number, subject in enumerate(subjects, start=1):
            typer.echo(f"{subject.net}, {number} of {len(subjects)} ...", err=True)
            row = measure_training(subject, device=device, rounds=rounds, seconds=seconds)
            rows.append(row)
            if not as_json:
                typer.echo(line(row) if len(rows) > 1 else f"{head(row)}\n{line(row)}")
    asked = {"device": device, "data": data, "batch": 64, "rounds": rounds, "seconds": seconds}
    found = {**asked, "nets": names, "rows": [row.to_json() for row in rows]}
    if rows or as_json:
        _show(found, foot(rows) if rows else "", as_json=as_json)
    if len(rows) < len(subjects):
        raise Interrupted(
            f"Stopped: {len(rows)} of {len(subjects)} networks are measured. The same command "
            "starts over; --nets names the networks to measure."
        )


@app.command("study")
def bench_study(
    device: DeviceOption = "cpu",
    jobs: Annotated[int, typer.Option(min=2, help="How many trainings.")] = 40,
    workers: Annotated[int | None, typer.Option(min=0, help="Default: as `regrow run`.")] = None,
    quick: QuickOption = False,
    as_json: JsonOption = False,
) -> None:
    """Count trainings of the quickstart a minute, with all that is around them."""
    from regrow.bench.studies import measure_study

    speed = measure_study(num_jobs=8 if quick else jobs, device=device, workers=workers)
    _show(speed.to_json(), speed.text(), as_json=as_json)


@app.command("surgery")
def bench_surgery(
    rounds: Annotated[int, typer.Option(min=1, help="Medians are over so many.")] = 5,
    quick: QuickOption = False,
    as_json: JsonOption = False,
) -> None:
    """Time tracing and shrinking networks."""
    from regrow.bench.cutting import NETWORKS, QUICK_NETWORKS, measure_surgery, table

    rows = [
        measure_surgery(net, rounds=1 if quick else rounds)
        for net in (QUICK_NETWORKS if quick else NETWORKS)
    ]
    _show({"rows": [row.to_json() for row in rows]}, table(rows), as_json=as_json)


def _show(found: dict[str, Any], text: str, *, as_json: bool) -> None:
    machine = _machine()
    if as_json:
        typer.echo(json.dumps({"machine": machine, **found}, indent=2))
    else:
        typer.echo(f"{text}\n\n" + ", ".join(f"{k} {v}" for k, v in machine.items()))


def _machine() -> dict[str, str]:
    import torch

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu_name(),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load": f"{load:.1f} afterwards",
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123  # not a path of the user's
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model n")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    app()

"""The commands ``regrow bench train``, ``bench study`` and ``bench surgery``."""

import json
import os
import platform
from contextlib import suppress
from datetime import date
from typing import Annotated, Any, Literal

import typer

from regrow.cli.options import DeviceOption, WorkersOption
from regrow.core.machine import processor
from regrow.errors import Interrupted

app = typer.Typer(
    no_args_is_help=True,
    help="Benchmark this machine: training against a plain PyTorch loop, a small study, surgery.",
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
QuickOption = Annotated[bool, typer.Option(help="Measure for seconds only; less precise.")]


@app.command("train")
def bench_train(
    device: DeviceOption = "cpu",
    data: Annotated[
        str, typer.Option(help="A set of 32x32 images such as hf:FOLDER; random ones by default.")
    ] = "synthetic",
    nets: Annotated[
        list[str] | None,
        typer.Option(help="Networks to measure, separated by commas or one per option."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Number of rounds to take medians over.")] = 3,
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds per measurement.")] = 6.0,
    precision: Annotated[
        Literal["fp32", "bf16"] | None,
        typer.Option(help="On a CPU, measure regrow in this precision only, instead of in both."),
    ] = None,
    quick: QuickOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure training throughput in images per second, against a plain PyTorch loop.

    Each network's row is printed once it is measured; Ctrl-C keeps the rows so far.
    """
    from regrow.bench.material import NETS, QUICK_NETS, Subject
    from regrow.bench.training import Row, foot, head, line, measure_training

    listed = [name.strip() for part in nets or () for name in part.split(",")]
    names = list(dict.fromkeys(listed)) or [*(QUICK_NETS if quick else NETS)]
    subjects = [Subject(net=name, data=data) for name in names]
    if quick:
        rounds, seconds = 1, 1.5
    rows: list[Row] = []
    # Each row is printed when it is measured, because all of them together take minutes.
    with suppress(KeyboardInterrupt):
        for number, subject in enumerate(subjects, start=1):
            typer.echo(f"{subject.net}, {number} of {len(subjects)} ...", err=True)
            row = measure_training(
                subject, device=device, rounds=rounds, seconds=seconds, precision=precision
            )
            rows.append(row)
            if not as_json:
                typer.echo(line(row) if len(rows) > 1 else f"{head(row)}\n{line(row)}")
    settings = {"device": device, "data": data, "batch": 64, "rounds": rounds, "seconds": seconds}
    value = {**settings, "nets": names, "rows": [row.to_json() for row in rows]}
    if rows or as_json:
        _show(value, foot(rows) if rows else "", as_json=as_json)
    if len(rows) < len(subjects):
        raise Interrupted(
            f"Stopped: {len(rows)} of {len(subjects)} networks are measured. Running it again "
            "starts over; --nets chooses the networks to measure."
        )


@app.command("study")
def bench_study(
    device: DeviceOption = "cpu",
    jobs: Annotated[int, typer.Option(min=2, help="Number of trainings.")] = 40,
    workers: WorkersOption = None,
    quick: QuickOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure how many trainings of the quickstart finish per minute, overhead included."""
    from regrow.bench.studies import measure_study

    speed = measure_study(num_jobs=8 if quick else jobs, device=device, workers=workers)
    _show(speed.to_json(), speed.text(), as_json=as_json)


@app.command("surgery")
def bench_surgery(
    rounds: Annotated[int, typer.Option(min=1, help="Number of rounds to take medians over.")] = 5,
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


def _show(value: dict[str, Any], text: str, *, as_json: bool) -> None:
    about = _machine()
    if as_json:
        typer.echo(json.dumps({"machine": about, **value}, indent=2))
    else:
        typer.echo(f"{text}\n\n" + ", ".join(f"{k} {v}" for k, v in about.items()))


def _machine() -> dict[str, str]:
    import torch

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load": f"{load:.1f} afterwards",
    }

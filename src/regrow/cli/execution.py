"""Options of every command that trains: machines, parallel jobs, time limits, retries.

    @takes_execution
    def run(study: StudyFile, execution: Execution = HERE) -> None: ...

The command then has an option for each field of ``Execution`` in place of the parameter.
"""

from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from inspect import Parameter, signature
from typing import Annotated, Any

import typer

from regrow.cli.options import WorkersOption
from regrow.core.durations import read_duration
from regrow.core.execution import Execution

HERE = Execution()
PARAMETER = "execution"
OPTIONS: dict[str, Any] = {
    "workers": WorkersOption,
    "device": Annotated[
        str,
        typer.Option(help="Where networks run: cpu, cuda, cuda:1, or several: cuda:0,cuda:1."),
    ],
    "devices": Annotated[
        str | None, typer.Option(metavar="all", help="all: every GPU of this machine.")
    ],
    "on": Annotated[
        str | None,
        typer.Option(
            "--on",
            metavar="ray",
            help="Run the jobs on the machines of a Ray cluster.",
            show_default="this machine",
        ),
    ],
    "address": Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Head node of the Ray cluster; local: start one on this machine for the run.",
            show_default="the cluster running here, or one started for the run",
        ),
    ],
    "checkpoint_seconds": Annotated[
        float, typer.Option(min=0.1, help="Seconds between checkpoints of a training.")
    ],
    "stop_after": Annotated[
        float | None,
        typer.Option(
            parser=read_duration,
            metavar="TIME",
            help="Save and stop after this time, such as 9m, 1h30m or 1:30:00; the same command "
            "resumes.",
            show_default="when everything is done",
        ),
    ],
    "retries": Annotated[
        int,
        typer.Option(
            min=0,
            help="Times that a job is retried after a temporary failure, such as a full disk.",
        ),
    ],
}


def takes_execution(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each field of the ``Execution`` that it takes."""
    own = signature(command)
    given = [field for field in fields(Execution) if field.init]

    @wraps(command)
    def called(**options: Any) -> None:
        execution = Execution(**{field.name: options.pop(field.name) for field in given})
        command(**options, **{PARAMETER: execution})

    kind = Parameter.POSITIONAL_OR_KEYWORD
    parameters: list[Parameter] = []
    for parameter in own.parameters.values():
        parameters += (
            [
                Parameter(field.name, kind, default=field.default, annotation=OPTIONS[field.name])
                for field in given
            ]
            if parameter.name == PARAMETER
            else [parameter]
        )
    called.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
    return called

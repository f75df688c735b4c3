"""Options that several commands share, with their help."""

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_STORE = Path("regrow-store")
DEFAULT_REPORT = Path("regrow-report")

StudyFile = Annotated[Path, typer.Argument(help="Study file (YAML).", show_default=False)]
StoreOption = Annotated[
    Path, typer.Option(help="Folder in which results are stored; several studies can share it.")
]
OutOption = Annotated[
    Path | None, typer.Option(help="Folder for the report.", show_default="regrow-report/<name>")
]
WithOption = Annotated[
    list[Path] | None,
    typer.Option("--with", help="Python file that registers methods, models, data sets or arms."),
]
DataOption = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="NAME=OTHER",
        help="Use other data in place of a data set of the study, e.g. cifar10=hf:PATH.",
    ),
]
BudgetsOption = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="Training lengths to compare at, separated by commas: numbers of epochs (2,4,8) "
        "or multiples of the unpruned network's training (0.5x,1x,2x).",
        show_default="one length",
    ),
]
ReferenceOption = Annotated[
    str | None,
    typer.Option(
        metavar="METHOD",
        help="Compare every other method with this one, at equal cost.",
        show_default="all pairs",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Number of worker processes; 0 trains in this process. With a GPU, the number of "
        "trainings that share it.",
        show_default="one per core; with a GPU, measured",
    ),
]
DeviceOption = Annotated[str, typer.Option(help="Where networks run: cpu, cuda or cuda:1.")]
OnnxOption = Annotated[bool, typer.Option("--onnx", help="Also write model.onnx.")]
Pt2Option = Annotated[
    bool, typer.Option("--pt2", help="Also write model.pt2, the format of torch.export.")
]
HtmlOption = Annotated[
    bool,
    typer.Option(
        "--html", help="Also write report.html: everything on one page, to read or to send."
    ),
]
TrackOption = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        metavar="TOOL",
        help="Send results to a tracker: mlflow, trackio or tensorboard:DIR. A location can "
        "follow a colon: mlflow:FOLDER.",
    ),
]
TensorboardOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Write TensorBoard events into this folder.")
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON, and nothing else on stdout.")
]


def wanted_exports(*, onnx: bool, pt2: bool) -> list[str]:
    """Return the requested formats; raise ``ConfigError`` if a package is missing for one."""
    formats = [name for name, wanted in (("onnx", onnx), ("pt2", pt2)) if wanted]
    if formats:
        from regrow.own.exports import check_packages

        check_packages(formats)
    return formats

"""The command ``regrow schema``: the JSON schema of study files, for editors."""

import json
from pathlib import Path
from typing import Annotated

import typer

from regrow.cli.inputs import load_extensions
from regrow.cli.options import WithOption
from regrow.cli.terminal import say_written
from regrow.core.disk import why
from regrow.core.texts import one_line
from regrow.errors import ConfigError

EDITOR_LINE = "# yaml-language-server: $schema="  # followed by the path relative to the study


def schema(
    out: Annotated[
        Path | None,
        typer.Option(help="File to write, instead of standard output.", show_default=False),
    ] = None,
    with_files: WithOption = None,
) -> None:
    """Print a JSON schema that lets editors complete and check study files.

    Write it next to your studies with --out, and begin each study with the line that is printed.
    Files given by --with add the methods and models that they register to the schema.
    """
    load_extensions(with_files)
    from regrow.studies.schema import schema as schema_of_studies

    text = json.dumps(schema_of_studies(), indent=1, ensure_ascii=True)
    if out is None:
        print(text)
        return
    try:
        out.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"Cannot write {out}: {why(error)}. Give another --out.") from error
    say_written(out, ". First line of a study beside it:")
    print(f"{EDITOR_LINE}{one_line(out.name)}")

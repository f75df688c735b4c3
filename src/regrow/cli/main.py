"""The command line: collects the commands, and turns errors into messages and exit codes.

Only this folder prints. Heavy imports are inside the commands, so that ``regrow --help`` is fast.
"""

import errno
import os
import sys
from typing import Annotated

import typer

from regrow.cli import (
    bench,
    claims,
    cluster,
    compare,
    compare_runs,
    export,
    hub,
    lint,
    own,
    plan,
    reproduce,
    run,
    schema,
    store,
    track,
    versus,
)
from regrow.cli.once import refuse_repeats
from regrow.cli.terminal import (
    EXIT_BAD_INPUT,
    EXIT_FAILED_JOBS,
    EXIT_INTERRUPTED,
    OF_SIGNALS,
    complain,
    how_to_resume,
)
from regrow.core.disk import ENVIRONMENT, why
from regrow.errors import Interrupted, RanksLost, RegrowError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Is a pruned network good because of the weights it inherits, or because of its "
    "architecture? Train, prune and retrain in several ways, and compare the results fairly.",
    epilog="Exit codes: 0 everything is done; 1 some jobs failed, see the report; 2 invalid input, "
    "no results were lost; 130 stopped by Ctrl-C or --stop-after, 143 by SIGTERM, 138 by SIGUSR1: "
    "the same command resumes.",
)
app.command()(run.quickstart)
app.command()(run.run)
app.command()(versus.versus)
app.command()(plan.plan)
app.command()(lint.lint)
app.command()(plan.status)
app.command()(run.report)
app.command()(track.track)
app.command()(export.export)
app.command()(own.inspect)
app.command()(own.shrink)
app.command()(compare.compare)
app.command()(compare_runs.compare_runs)
app.command()(hub.push)
app.command("list")(export.list_names)
app.command()(schema.schema)
app.command()(reproduce.reproduce)
app.command()(claims.claims)
app.add_typer(cluster.app, name="cluster")
app.add_typer(bench.app, name="bench")
app.add_typer(store.app, name="store")


def _print_version(show: bool) -> None:
    if show:
        from regrow.core.machine import version_of

        print(f"regrow {version_of('regrow')}")
        raise typer.Exit


@app.callback()
def _every_command(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


refuse_repeats(app)


def main() -> None:
    """Run the command line; a ``RegrowError`` ends in exit code 2 without a traceback."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        _main()
        return
    from regrow.run.torchrun import take_part

    take_part(_main, complain)


def _main() -> None:
    try:
        app()
    except SystemExit as end:
        if end.code == EXIT_INTERRUPTED:  # typer's exit code for Ctrl-C
            complain(how_to_resume())
        _flush()
        raise
    except RanksLost as error:
        complain(how_to_resume(f"{error}"))
        _flush()
        os._exit(OF_SIGNALS + error.by)  # a normal exit would wait for ranks that still wait
    except Interrupted as error:
        complain(how_to_resume(f"{error}"))
        sys.exit(OF_SIGNALS + error.by)
    except RegrowError as error:
        complain(f"{error}")
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        complain(how_to_resume())
        sys.exit(EXIT_INTERRUPTED)
    except MemoryError:
        complain(how_to_resume("Memory ran out. Finished jobs are kept. Free some memory first."))
        sys.exit(EXIT_BAD_INPUT)
    except OSError as error:
        if error.errno not in ENVIRONMENT:
            raise
        told = f"The operating system refused a file operation: {why(error)}."
        complain(how_to_resume(f"{told} Finished jobs are kept. Correct this first."))
        sys.exit(EXIT_BAD_INPUT)


def _flush() -> None:
    """Flush standard output, so that a closed pipe does not end in a traceback."""
    try:
        sys.stdout.flush()
    except OSError as error:
        if error.errno != errno.EPIPE:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED_JOBS)

"""The command line. Only this layer prints; torch is imported by the commands that need it."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import AbstractContextManager
from typing import Annotated

import typer

from fsl_core import __version__
from fsl_core.cli import (
    catalogue,
    embedding,
    predicting,
    recipes,
    runs,
    scaffolding,
    sweeps,
    tuning,
)
from fsl_core.data.work import Advance, report_to
from fsl_core.engine.environment import prepare_process
from fsl_core.errors import FslError, TrainingError
from fsl_core.text import printable

OF_THE_MACHINE = {
    errno.EACCES: "A file or folder that is yours, or permission from its owner",
    errno.EPERM: "A file or folder that is yours, or permission from its owner",
    errno.EROFS: "A folder that can be written to",
    errno.ENOSPC: "Room on its disk",
    errno.EDQUOT: "Room within your quota",
    errno.ENAMETOOLONG: "A shorter name",
    errno.EIO: "A disk that can be read",
}
"""What would fit, by the reason for which the operating system refuses a file."""

app = typer.Typer(
    name="fsl",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
catalogue.add_commands(app)
runs.add_commands(app)
recipes.add_commands(app)
tuning.add_commands(app)
sweeps.add_commands(app)
predicting.add_commands(app)
embedding.add_commands(app)
scaffolding.add_commands(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fsl-core {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="show the version"),
    ] = False,
) -> None:
    """Few-shot meta-learning from parts: any inner loop with any outer loop, in one YAML recipe."""


def main() -> None:
    """Entry point of `fsl` and `python -m fsl_core`.

    A user's mistake ends in one clear line and exit code 2, a training that failed in exit code 1.
    """
    if hasattr(sys.stdout, "reconfigure"):  # a file name that is not UTF-8 must not end a command
        sys.stdout.reconfigure(errors="backslashreplace")
    prepare_process()  # before anything imports torch, which reads the environment then
    try:
        with report_to(_report_work):
            app()
    except TrainingError as error:
        sys.exit(_fail(error, 1))
    except FslError as error:
        sys.exit(_fail(error, 2))
    except OSError as error:  # any command may be the first to look for a file
        told = _refused_by_machine(error)
        if not told:
            raise
        sys.exit(_fail(told, 2))


def _refused_by_machine(error: OSError) -> str:
    """What is said of a file that the system refuses; "" for an error of another kind."""
    if error.errno not in OF_THE_MACHINE or not isinstance(error.filename, str | bytes):
        return ""
    name = os.fsdecode(error.filename)
    if error.errno == errno.ENAMETOOLONG:
        name = f"{name[:60]}…: a name of {len(name)} characters"
    return f"{name}: {error.strerror}. {OF_THE_MACHINE[error.errno]}"


def _report_work(what: str, total: int | None) -> AbstractContextManager[Advance]:
    from fsl_core.reporting.progress import report_work  # rich is imported late

    return report_work(what, total)


def _fail(error: FslError | str, code: int) -> int:
    sys.stderr.write(f"{printable(str(error), lines=True)}\n")
    return code

"""The command line. Only this layer prints; torch is imported by the commands that need it."""

from __future__ import annotations

import atexit
import errno
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import (
    AbstractContextManager,
    contextmanager,
    redirect_stderr,
    redirect_stdout,
)
from typing import Annotated, NoReturn

import typer

from fsl_core import __version__
from fsl_core.cli import (
    benching,
    catalogue,
    comparing,
    diagnosing,
    embedding,
    keeping,
    predicting,
    recipes,
    runs,
    scaffolding,
    searching,
    sharing,
    sweeps,
    tuning,
    watching,
)
from fsl_core.cli.command import as_command
from fsl_core.cli.ranks import LOST
from fsl_core.data.work import Advance, report_to
from fsl_core.engine.environment import (
    STORE,
    die_with_parent,
    place_among_ranks,
    prepare_process,
)
from fsl_core.errors import FslError, LostRankError, RunError, TrainingError
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
watching.add_commands(app)
comparing.add_commands(app)
keeping.add_commands(app)
sharing.add_commands(app)
benching.add_commands(app)
recipes.add_commands(app)
tuning.add_commands(app)
sweeps.add_commands(app)
searching.add_commands(app)
predicting.add_commands(app)
embedding.add_commands(app)
diagnosing.add_commands(app)
scaffolding.add_commands(app)
for registered in app.registered_commands:
    registered.callback = registered.callback and as_command(registered.callback)


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
    atexit.register(gc.freeze)  # else Python looks through all there is, for most of a second
    try:
        with report_to(_report_work), _one_of_several():
            app()
    except LostRankError as error:
        _end_at_once(error)
    except TrainingError as error:
        _end(_fail(error, 1))
    except FslError as error:
        _end(_fail(error, 2))
    except OSError as error:  # any command may be the first to look for a file
        told = _refused_by_machine(error)
        if not told:
            raise
        _end(_fail(told, 2))


def _end(code: int) -> NoReturn:
    """End with this exit code, which one of several processes has lost before: a thread of torch
    aborted it while Python cleared up."""
    shared = sys.modules.get("torch.distributed")
    connected = shared is not None and shared.is_available() and shared.is_initialized()
    if connected or os.environ.get(STORE):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


SHARED = ("run", "resume", "eval", "reproduce")
"""Commands that several processes compute together."""


@contextmanager
def _one_of_several() -> Iterator[None]:
    """Of the processes that compute a run together, all but the first keep silent."""
    rank, count = place_among_ranks()
    if count == 1:
        yield
        return
    if os.environ.get(STORE):
        die_with_parent()
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    if command not in SHARED:
        raise RunError(
            f"fsl {command}: one process does this, and WORLD_SIZE={count} says that there are "
            f"several. Without torchrun; {', '.join(SHARED)} can share their work"
        )
    if rank == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _end_at_once(error: LostRankError) -> NoReturn:
    """End without a farewell to the others, which would wait for one that is no more."""
    watched = bool(os.environ.get(STORE))  # by the process that started it, which tells the cause
    living = next(rank for rank in range(error.rank + 1) if rank not in error.ended)
    if error.rank == living and not watched:
        _fail(error, LOST)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(LOST)


def _refused_by_machine(error: OSError) -> str:
    """What is said of a file that the system refuses; "" for an error of another kind."""
    if error.errno not in OF_THE_MACHINE or not isinstance(error.filename, str | bytes):
        return ""
    name = os.fsdecode(error.filename)
    if error.errno == errno.ENAMETOOLONG:
        name = f"{name[:60]}…: a name of {len(name)} characters"
    return f"{name}: {error.strerror}. {OF_THE_MACHINE[error.errno]}"


def _report_work(what: str, total: int | None) -> AbstractContextManager[Advance]:
    from fsl_core.reporting.progress import on_stderr  # rich is imported late

    return on_stderr().work(what, total)


def _fail(error: FslError | str, code: int) -> int:
    rank, _ = place_among_ranks()
    if rank > 0 and isinstance(error, FslError) and error.told:
        return code  # the first one says it
    sys.stderr.write(f"{printable(str(error), lines=True)}\n")
    return code

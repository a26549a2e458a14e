"""The command line. Only this layer prints; torch is imported by the commands that need it."""

from __future__ import annotations

import sys

import typer

from fsl_core.cli import catalogue, predicting, runs, scaffolding, sweeps, tuning
from fsl_core.engine.environment import prepare_process
from fsl_core.errors import FslError, TrainingError

app = typer.Typer(
    name="fsl",
    help="Few-shot meta-learning from parts: any inner loop with any outer loop, described by one YAML recipe.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
catalogue.add_commands(app)
runs.add_commands(app)
tuning.add_commands(app)
sweeps.add_commands(app)
predicting.add_commands(app)
scaffolding.add_commands(app)


def main() -> None:
    """Entry point of `fsl` and `python -m fsl_core`: a user's mistake ends in one clear line and exit code 2."""
    prepare_process()
    try:
        app()
    except TrainingError as error:
        sys.exit(_fail(error, 1))
    except FslError as error:
        sys.exit(_fail(error, 2))


def _fail(error: FslError, code: int) -> int:
    sys.stderr.write(f"{error}\n")
    return code

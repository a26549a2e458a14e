"""What every command has: `--quiet`, and an end by Ctrl-C that says how to go on."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Annotated, Any

import typer

from fsl_core.cli.interrupts import interruptible
from fsl_core.data.work import report_to, silent

Quiet = Annotated[
    bool,
    typer.Option("--quiet", help="no progress on stderr; results, warnings and errors stay"),
]
_KIND = inspect.Parameter.KEYWORD_ONLY
_OPTION = inspect.Parameter("quiet", _KIND, default=False, annotation=Quiet)


def as_command(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command with what every command has."""

    @functools.wraps(command)
    def call(*arguments: Any, quiet: bool, **options: Any) -> Any:
        with report_to(silent) if quiet else nullcontext(), interruptible():
            return command(*arguments, **options)

    signature = inspect.signature(command, eval_str=True)
    call.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*signature.parameters.values(), _OPTION]
    )
    call.__annotations__ = {**call.__annotations__, "quiet": Quiet}
    return call

"""`fsl push`: a finished run where others can fetch it."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from fsl_core.cli.arguments import NoPlugin, RunDirectory, load_plugins, say
from fsl_core.text import printable

BY_DEFAULT = "hf"
"""The store of an address that names none."""

Address = Annotated[
    str,
    typer.Argument(
        metavar="ADDRESS", help="user/name, or hf:user/name with the store", show_default=False
    ),
]
Licence = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="how others may use it, such as mit or cc-by-4.0"),
]
Private = Annotated[bool, typer.Option("--private", help="only you may fetch it")]


def add_commands(app: typer.Typer) -> None:
    app.command()(push)


def push(
    directory: RunDirectory,
    address: Address,
    licence: Licence = None,
    private: Private = False,
    no_plugin: NoPlugin = [],
) -> None:
    """Share a finished run: recipe, result, weights and a card that describes them.

    `fsl predict hf:user/name` and `start_from: hf:user/name` fetch it. No program is sent, no path
    of this machine and no name of a class.
    """
    from fsl_core.data.work import reported
    from fsl_core.errors import RunError
    from fsl_core.files.paths import store_and_address
    from fsl_core.reporting.scores import read_scores
    from fsl_core.runs.fetching import store_of
    from fsl_core.runs.sharing import share_run

    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence or ""):
        found = "absent" if licence is None else repr(licence)
        raise RunError(
            f"--licence: {found}. How others may use the run, such as mit, apache-2.0, cc-by-4.0 "
            "or other"
        )
    assert licence is not None
    read_scores(directory)
    name, rest = store_and_address(address)
    store = store_of(load_plugins(no_plugin, None).catalogue, name or BY_DEFAULT)
    with TemporaryDirectory() as folder:
        shared = share_run(directory, Path(folder) / "run")
        with reported(f"sending {printable(directory)}", None):
            where = store.push(shared, rest or address, licence, private)
    named = f"{name or BY_DEFAULT}:{rest or address}"
    say(f"{where}\nfsl predict {named} --support DIR --query DIR")

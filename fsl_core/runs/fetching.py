"""Runs that lie elsewhere: `hf:user/name` in place of a run directory."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fsl_core.errors import RunError
from fsl_core.files.paths import store_and_address
from fsl_core.hooks.catalogue import Catalogue
from fsl_core.hooks.loader import load
from fsl_core.store import Store


def store_of(catalogue: Catalogue, name: str) -> Store:
    """The store with this name. PluginError says what to install."""
    return catalogue.get("store", name).factory()


def here(run: Path, write: bool, no_plugin: Iterable[str]) -> Path:
    """The directory of a run, fetched if it lies in a store.

    write: it is to be written to, which is possible on this machine alone.
    """
    name, address = store_and_address(run)
    if not name:
        return run
    if write:
        raise RunError(f"{run}: a run that lies elsewhere. A directory of this machine")
    return store_of(load(no_plugin=no_plugin).catalogue, name).fetch(address)

"""learn2learn, imported when it is first used and without a word.

If it cannot be imported, one line says what to do.
"""

from __future__ import annotations

import contextlib
import warnings
from functools import cache
from importlib import import_module
from types import ModuleType

import fsl_core as fsl
from fsl_core.data import torchvision

COMMAND = "python -m fsl_learn2learn.install"


def import_quietly() -> ModuleType:
    """The package learn2learn, or ImportError.

    It imports torchvision plainly, which beside a CPU-only torch works after core's detour alone,
    and gym, which prints to the standard error stream that it is not maintained.
    """
    torchvision()
    with contextlib.suppress(ImportError):
        import_module("gym_notices.notices").notices.clear()
    with warnings.catch_warnings(action="ignore"):
        return import_module("learn2learn")


@cache
def learn2learn() -> ModuleType:
    """The package learn2learn. Raises PluginError if it is absent or was not built."""
    try:
        return import_quietly()
    except ImportError as error:
        raise fsl.PluginError(
            f"fsl-learn2learn: learn2learn cannot be imported ({error}). To install it: {COMMAND}"
        ) from error


def require_qpth() -> None:
    """Raise PluginError if the solver of MetaOptNet is absent.

    learn2learn looks for it when it is imported.
    """
    learn2learn()
    try:
        import_module("qpth.qp")
    except ImportError as error:
        raise fsl.PluginError(
            f"fsl-learn2learn: qpth, which MetaOptNet needs, cannot be imported ({error}). "
            f"To install it: {COMMAND} --metaoptnet"
        ) from error

"""Runs of a sweep in processes of this machine."""

from __future__ import annotations

import fsl_core as fsl
from fsl_core.sweeping.local import Local


@fsl.hookimpl
def fsl_register_launchers(register):
    register(Local)

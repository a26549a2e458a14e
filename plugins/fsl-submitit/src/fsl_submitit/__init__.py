"""Launcher slurm for fsl-core."""

import fsl_core as fsl
from fsl_submitit.launcher import Slurm

__all__ = ["Slurm"]


@fsl.hookimpl
def fsl_register_launchers(register):
    register(Slurm)

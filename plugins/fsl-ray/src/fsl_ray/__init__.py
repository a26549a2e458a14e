"""Launcher ray for fsl-core."""

import fsl_core as fsl
from fsl_ray.launcher import Ray

__all__ = ["Ray"]


@fsl.hookimpl
def fsl_register_launchers(register):
    register(Ray)

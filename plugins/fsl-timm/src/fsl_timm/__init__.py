"""timm's networks as backbones for fsl-core."""

import fsl_core as fsl
from fsl_timm.backbone import Timm

__all__ = ["Timm", "fsl_register_backbones"]


@fsl.hookimpl
def fsl_register_backbones(register):
    register(Timm)

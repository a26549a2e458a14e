"""learn2learn's data sets, backbones and algorithms for fsl-core.

learn2learn itself is imported when one of them is built.
"""

import fsl_core as fsl
from fsl_learn2learn.backbones import L2lCnn4, ResNet12, Wrn28
from fsl_learn2learn.datasets import SOURCES
from fsl_learn2learn.gradient import L2lAnil, L2lGbml, L2lMaml, L2lMetaCurvature, L2lMetaSgd
from fsl_learn2learn.metaoptnet import L2lMetaOptNet


@fsl.hookimpl
def fsl_register_episodes(register):
    for source in SOURCES:
        register(source)


@fsl.hookimpl
def fsl_register_backbones(register):
    for backbone in (L2lCnn4, ResNet12, Wrn28):
        register(backbone)


@fsl.hookimpl
def fsl_register_adapters(register):
    for adapter in (L2lMaml, L2lAnil, L2lMetaSgd, L2lGbml, L2lMetaCurvature, L2lMetaOptNet):
        register(adapter)

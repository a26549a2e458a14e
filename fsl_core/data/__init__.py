"""Data: pools, draws, pictures and their cache. Authors of episode sources need these names.

The rest of what they need, such as `EpisodeSource`, is in `fsl_core` itself.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fsl_core.data import omniglot
    from fsl_core.data.arrays import ArrayEpisodes
    from fsl_core.data.augment import Augmentation
    from fsl_core.data.cache import cached_tensors, content_key, data_root
    from fsl_core.data.decoding import (
        Decode,
        Standardised,
        decode_by_type,
        decode_levels,
        decode_numbers,
    )
    from fsl_core.data.downloads import download, extract, md5_of, once
    from fsl_core.data.folders import class_images, image_files
    from fsl_core.data.formats import open_picture
    from fsl_core.data.pool import LabelledPool
    from fsl_core.data.pooled import PooledEpisodes
    from fsl_core.data.shapes import EpisodesPerDraw, ItemsPerClass, Sampling, Shots, Ways
    from fsl_core.data.source import Sources
    from fsl_core.data.vision import (
        decode_image,
        decode_images,
        to_pixels,
        torchvision,
        torchvision_dataset,
    )
    from fsl_core.data.work import for_each, reported

_NAMES = {
    "arrays": "ArrayEpisodes",
    "augment": "Augmentation",
    "cache": "cached_tensors content_key data_root",
    "decoding": "Decode Standardised decode_by_type decode_levels decode_numbers",
    "downloads": "download extract md5_of once",
    "folders": "class_images image_files",
    "formats": "open_picture",
    "pool": "LabelledPool",
    "pooled": "PooledEpisodes",
    "shapes": "EpisodesPerDraw ItemsPerClass Sampling Shots Ways",
    "source": "Sources",
    "vision": "decode_image decode_images to_pixels torchvision torchvision_dataset",
    "work": "for_each reported",
}
"""The public names of each module."""
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = [
    "ArrayEpisodes",
    "Augmentation",
    "Decode",
    "EpisodesPerDraw",
    "ItemsPerClass",
    "LabelledPool",
    "PooledEpisodes",
    "Sampling",
    "Shots",
    "Sources",
    "Standardised",
    "Ways",
    "cached_tensors",
    "class_images",
    "content_key",
    "data_root",
    "decode_by_type",
    "decode_image",
    "decode_images",
    "decode_levels",
    "decode_numbers",
    "download",
    "extract",
    "for_each",
    "image_files",
    "md5_of",
    "omniglot",
    "once",
    "open_picture",
    "reported",
    "to_pixels",
    "torchvision",
    "torchvision_dataset",
]


def __getattr__(name: str) -> object:
    """Public names are imported when first used, as those of `fsl_core` are."""
    if name == "omniglot":
        return import_module("fsl_core.data.omniglot")
    if name not in _HOME:
        raise AttributeError(f"module 'fsl_core.data' has no attribute {name!r}")
    return getattr(import_module(f"fsl_core.data.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

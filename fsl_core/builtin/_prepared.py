"""What heads without training do to features first."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

import fsl_core as fsl

Power = Annotated[
    float | None,
    Field(
        gt=0,
        le=1,
        description="each feature first to this power, its sign kept, such as 0.5; null: as it is",
    ),
]
Centre = Annotated[
    Literal["none", "support", "train"],
    Field(
        description="take off the mean of the support set, or of training classes, which a frozen "
        "backbone knows"
    ),
]


class Prepared:
    """Features after `power`, `centre` and `unit_length`, in this order.

    Sources: power, Yang et al. 2021, arXiv:2101.06395 (Tukey's ladder of powers, 0.5); centre and
    unit_length, Wang et al. 2019, arXiv:1911.04623 (SimpleShot, CL2N: the mean of the training
    classes). Differs: that mean is of 20 items of each class at most.
    ValueError for centre `train` without a frozen backbone.
    """

    def __init__(self, backbone: nn.Module, power: float | None, centre: str, unit_length: bool):
        self.power, self.centre, self.unit_length = power, centre, unit_length
        if centre == "train":
            want_mean = getattr(backbone, "want_mean", None)
            if want_mean is None:
                raise ValueError(
                    "centre: train: only a frozen backbone knows the mean of the training classes. "
                    "frozen: true for the backbone, or centre: support"
                )
            want_mean(partial(powered, power=power))

    def of(
        self, backbone: nn.Module, support: fsl.LabelledSet, n_way: int
    ) -> tuple[Tensor, fsl.Predictor]:
        """The support set's features, and a function of other items.

        The mean of a support set is that of its class means, so that shots may be unequal.
        """
        raw = powered(backbone(support.x), self.power)
        origin = None
        if self.centre == "train":
            origin = backbone.get_buffer("training_mean").to(raw)
        elif self.centre == "support":
            origin = class_means(raw, support.y, n_way).mean(0)

        def finish(features: Tensor) -> Tensor:
            features = features if origin is None else features - origin
            return F.normalize(features, dim=1) if self.unit_length else features

        return finish(raw), lambda x: finish(powered(backbone(x), self.power))


def class_means(features: Tensor, y: Tensor, n_way: int) -> Tensor:
    """(n, d) features and (n,) labels -> (n_way, d)."""
    return F.normalize(fsl.one_hot(y, n_way).to(features), p=1, dim=0).mT @ features


def powered(features: Tensor, power: float | None) -> Tensor:
    """sign(f) |f|^power; None: the features themselves.

    The slope at 0 is infinite, so a feature that is exactly 0 gets no gradient.
    """
    if power is None:
        return features
    size = features.abs()
    lifted = torch.where(size > 0, size, torch.ones_like(size)).pow(power)
    return torch.where(size > 0, features.sign() * lifted, torch.zeros_like(size))

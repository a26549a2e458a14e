"""Nearest class mean in feature space, also known as prototypical networks."""

from __future__ import annotations

from math import log
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

import fsl_core as fsl


@fsl.validated
class NearestCentroid(fsl.Adapter):
    """logits[i, c] = -temperature * ||f(x_i) - mean_c||^2, or temperature * cos(f(x_i), mean_c).

    There are no inner steps. mean_c: mean feature vector of the support items of class c.

    What is done to features first, in this order: `power`, `centre`, `unit_length`. They need no
    training and no validation set, and help with features of a pretrained backbone.

    Sources: Snell et al. 2017, arXiv:1703.05175 (squared Euclidean, temperature 1); centre and
    unit_length, Wang et al. 2019, arXiv:1911.04623 (SimpleShot, CL2N); power, Yang et al. 2021,
    arXiv:2101.06395 (Tukey's ladder, exponent 0.5). Differs: the term that all classes of an item
    share, -temperature * ||f(x_i)||^2, is left out, which changes no probability; features are
    measured from the mean of the class means, so that float32 keeps its digits far from the origin.
    SimpleShot centres by the mean of the training classes, and so does `centre` where a frozen
    backbone knows it; elsewhere by that of the support set. `adapter_state` in the result says
    which.
    """

    name = "nearest-centroid"

    def __init__(
        self,
        task: fsl.TaskShape,
        temperature: Annotated[
            float, Field(gt=0, description="factor of the logits, or the start of a learned one")
        ] = 1.0,
        learn_temperature: Annotated[
            bool, Field(description="trained by the outer loop, as its logarithm")
        ] = False,
        distance: Annotated[
            Literal["euclidean", "cosine"],
            Field(description="squared Euclidean, or cosine similarity"),
        ] = "euclidean",
        power: Annotated[
            float | None,
            Field(gt=0, le=1, description="sign(f) |f|^power of each feature, such as 0.5; null"),
        ] = None,
        centre: Annotated[
            bool, Field(description="take off the mean of training classes, or of the support set")
        ] = False,
        unit_length: Annotated[bool, Field(description="scale features to length 1")] = False,
    ):
        super().__init__()
        self.power, self.centre, self.unit_length = power, centre, unit_length
        if task.kind != "classification":
            raise ValueError(
                f"nearest-centroid: a {task.kind} task. "
                "Classification: it compares items with class means"
            )
        self.n_way, self.distance, self.start = task.n_way, distance, temperature
        self.log_temperature = (
            nn.Parameter(torch.tensor(log(temperature))) if learn_temperature else None
        )

    def adapt(self, backbone: nn.Module, support: fsl.LabelledSet) -> fsl.Predictor:
        raw = self._powered(backbone(support.x))  # (n_way * n_shot, feature_dim)
        shares = normalize(fsl.one_hot(support.y, self.n_way).to(raw), p=1, dim=0)
        origin = (shares.T @ raw).mean(0) if self.centre else None

        def prepared(features: Tensor) -> Tensor:
            features = features if origin is None else features - origin
            return normalize(features, dim=1) if self.unit_length else features

        means = shares.T @ prepared(raw)  # (n_way, feature_dim)
        temperature = self.start if self.log_temperature is None else self.log_temperature.exp()
        similarities = _cosines(means) if self.distance == "cosine" else _negative_distances(means)
        return lambda x: temperature * similarities(prepared(self._powered(backbone(x))))

    def _powered(self, features: Tensor) -> Tensor:
        if self.power is None:
            return features
        # The slope at 0 is infinite: a feature that is exactly 0 gets none.
        size = features.abs()
        lifted = torch.where(size > 0, size, torch.ones_like(size)).pow(self.power)
        return torch.where(size > 0, features.sign() * lifted, torch.zeros_like(size))

    def extra_repr(self) -> str:
        return f"distance={self.distance}"


def _cosines(means: Tensor) -> fsl.Predictor:
    directions = normalize(means, dim=1).T
    return lambda features: normalize(features, dim=1) @ directions


def _negative_distances(means: Tensor) -> fsl.Predictor:
    """-||z - mean||^2 + ||z||^2 = 2 z . mean - ||mean||^2, measured from the mean of the means."""
    origin = means.mean(0)
    offsets = means - origin
    return lambda features: torch.addmm(
        -offsets.square().sum(1), features - origin, offsets.T, alpha=2
    )


@fsl.hookimpl
def fsl_register_adapters(register):
    register(NearestCentroid)

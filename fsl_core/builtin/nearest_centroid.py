"""Nearest class mean in feature space, also known as prototypical networks."""

from __future__ import annotations

from math import log
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

import fsl_core as fsl
from fsl_core.builtin._prepared import Centre, Power, Prepared, class_means


@fsl.validated
class NearestCentroid(fsl.Adapter):
    """logits[i, c] = -temperature * ||f(x_i) - mean_c||^2, or temperature * cos(f(x_i), mean_c).

    There are no inner steps. mean_c: mean feature vector of the support items of class c.

    `power`, `centre` and `unit_length`, in this order, are done to features first. They need no
    training and no validation set, and help with features of a pretrained network.

    Sources: Snell et al. 2017, arXiv:1703.05175 (squared Euclidean, temperature 1); centre and
    unit_length, Wang et al. 2019, arXiv:1911.04623 (SimpleShot); power, Yang et al. 2021,
    arXiv:2101.06395. Differs: the term that all classes of an item share,
    -temperature * ||f(x_i)||^2, is left out, which changes no probability; features are measured
    from the mean of the class means, so that float32 keeps its digits far from the origin.
    """

    name = "nearest-centroid"
    keeps_backbone = True
    unequal_shots = True
    training_free = (
        {"distance": "cosine", "temperature": 10.0},
        {"power": 0.5, "unit_length": True},
    )

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
        power: Power = None,
        centre: Centre = "none",
        unit_length: Annotated[bool, Field(description="features scaled to length 1")] = False,
        backbone: nn.Module | None = None,
    ):
        super().__init__()
        self.prepared = Prepared(backbone or nn.Identity(), power, centre, unit_length)
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
        features, prepare = self.prepared.of(backbone, support, self.n_way)
        means = class_means(features, support.y, self.n_way)
        temperature = self.start if self.log_temperature is None else self.log_temperature.exp()
        similarities = _cosines(means) if self.distance == "cosine" else _negative_distances(means)
        return lambda x: temperature * similarities(prepare(x))

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

"""Heads that a hypernetwork generates, (n, feature_dim) -> (n, output_dim).

No parameter belongs to one class.
"""

from __future__ import annotations

from math import prod
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fsl_core as fsl
from fsl_hypernet.encoder import EncodedSupport, SupportEncoder, perceptron

Base = Literal["prototype", "none"]
Kernel = Literal["cosine-distance", "cosine"]


class LinearHead(nn.Module):
    """weight, bias = base + generated, of a linear head.

    per: "class": row c = H(rows[c], embedding), one network H for all classes.
         "task":  all rows at once = H(embedding).
    base: "prototype": the head that is nearest class mean, and H starts at zero. With o the mean
          of the class means,
          weight[c] = 2 s (mean_c - o),  bias[c] = -s ||mean_c - o||^2 - weight[c] . o;
          s = exp(log_scale) is learned. Source: Snell et al. 2017, arXiv:1703.05175.
          "none": zero.
    """

    def __init__(
        self,
        per: Literal["class", "task"],
        base: Base,
        sizes: tuple[int, int],
        embedding: int,
        hidden: int,
    ):
        super().__init__()
        self.per, (feature_dim, output_dim) = per, sizes
        row = feature_dim + 1
        inputs, outputs = (2 * embedding, row) if per == "class" else (embedding, output_dim * row)
        self.hypernetwork = perceptron(inputs, hidden, outputs)
        self.log_scale = nn.Parameter(torch.zeros(())) if base == "prototype" else None
        if base == "prototype":
            last = cast("nn.Linear", self.hypernetwork[-1])
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, support: EncodedSupport, encoder: SupportEncoder) -> fsl.Predictor:
        weight, bias = self.generate(support, encoder)
        return lambda features: F.linear(features, weight, bias)

    def generate(self, support: EncodedSupport, encoder: SupportEncoder) -> tuple[Tensor, Tensor]:
        """(output_dim, feature_dim) and (output_dim,)."""
        rows, embedding = encoder(support)
        if self.per == "class":
            generated = self.hypernetwork(torch.cat([rows, embedding.expand_as(rows)], 1))
        else:
            generated = self.hypernetwork(embedding).unflatten(
                0, (-1, support.features.shape[1] + 1)
            )
        weight, bias = generated[:, :-1], generated[:, -1]
        if self.log_scale is None:
            return weight, bias
        base_weight, base_bias = _nearest_mean(support.means, self.log_scale.exp())
        return weight + base_weight, bias + base_bias


class KernelHead(nn.Module):
    """A target network generated from the support kernel, after HyperShot.

    K[a, b] = k(mean_a, mean_b), (n_way, n_way);   weights = H(K), all of them, from scratch
    logits  = W2 relu(W1 r + b1) + b2,   r[c] = k(feature, mean_c)

    kernel: "cosine-distance", k(a, b) = 1 - cos(a, b), as the authors' code has it under
            `--hn_use_cosine_distance`, which every one of its HyperShot commands sets.
            "cosine": k(a, b) = cos(a, b). Either can express what the other does, as K and r enter
            linear layers with a bias; training starts elsewhere.
    target: width of the hidden layer of the generated network.

    Source: Sendera et al. 2023, arXiv:2203.11378, and the authors' code,
    gmum/few-shot-hypernets-public, methods/hypernets/hypernet_kernel.py, with class-mean
    aggregation. Differs: one hypernetwork for all four tensors; the code has a neck and one network
    for each.
    """

    def __init__(self, n_way: int, target: int, hidden: int, kernel: Kernel):
        super().__init__()
        self.kernel = kernel
        self.shapes = [(target, n_way), (target,), (n_way, target), (n_way,)]
        self.hypernetwork = perceptron(n_way**2, hidden, sum(map(prod, self.shapes)))

    def forward(self, support: EncodedSupport, encoder: SupportEncoder | None) -> fsl.Predictor:
        directions = F.normalize(support.means, dim=1)

        def compare(features: Tensor) -> Tensor:
            """Kernel values with the class means, (n, n_way)."""
            cosines = F.normalize(features, dim=1) @ directions.T
            return 1 - cosines if self.kernel == "cosine-distance" else cosines

        generated = self.hypernetwork(compare(support.means).flatten()).split(
            [prod(shape) for shape in self.shapes]
        )
        w1, b1, w2, b2 = (
            part.view(shape) for part, shape in zip(generated, self.shapes, strict=True)
        )

        def predict(features: Tensor) -> Tensor:
            return F.linear(F.relu(F.linear(compare(features), w1, b1)), w2, b2)

        return predict


def _nearest_mean(means: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    origin = means.mean(0)
    offsets = means - origin
    weight = 2 * scale * offsets
    return weight, -scale * offsets.square().sum(1) - weight @ origin

"""Where a network is multiplied, by how many numbers, and how they begin."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

Location = Literal["output", "layers", "all"]
Granularity = Literal["scalar", "per-output"]
Weights = dict[str, Tensor]
"""Weights of backbone and head by name, such as `backbone.layers.0.0.weight` and `head.bias`."""


class Multipliers(nn.Module):
    """Factors on a network, all of them `initial` before adaptation.

    A network times 1 is the network itself.

    output  its predictions: one factor, or one for each of the output_dim predictions.
    layers  the weights of each layer, bias included: one factor a layer, or one for each row of
            its weights, that is for each of its units or channels. A layer is a module that has
            parameters of its own.
    all     all weights together: one factor.

    learned: the values before adaptation are parameters, trained by the outer loop.
    weights: those that may be multiplied; others stay as they are.
    Raises ValueError for factors that no gradient could move, and for layers without rows in
    common.

    After the abstract of arXiv 2212.14094. The update rule, defaults and tasks are this project's
    interpretation; the paper's text was not available.
    """

    def __init__(
        self,
        location: Location,
        granularity: Granularity,
        initial: float,
        learned: bool,
        weights: Weights,
        output_dim: int,
    ):
        super().__init__()
        self.location, self.granularity, self.initial = location, granularity, initial
        self.factor_of = _factor_of(location, list(weights))
        shapes = (
            {"output": (output_dim,)}
            if location == "output"
            else _rows_of(self.factor_of, weights, granularity)
        )
        self.shapes = {
            name: shape if granularity == "per-output" else () for name, shape in shapes.items()
        }
        _refuse_dead_start(location, initial)
        like = next(iter(weights.values()))
        learned_values = (
            [like.new_full(shape, initial) for shape in self.shapes.values()] if learned else []
        )
        self.learned = nn.ParameterList(learned_values)

    def start(self, like: Tensor) -> Weights:
        """The factors before adaptation, () or (rows,) each.

        like: gives them dtype and device, unless they are learned.
        """
        if len(self.learned):
            return dict(zip(self.shapes, self.learned, strict=True))
        return {name: like.new_full(shape, self.initial) for name, shape in self.shapes.items()}

    def on_weights(self, weights: Weights, factors: Weights) -> Weights:
        """The weights times their factors; as they are if the output is multiplied."""
        if self.location == "output":
            return weights
        return {
            name: _by_rows(factors[self.factor_of[name]], weight) * weight
            if name in self.factor_of
            else weight
            for name, weight in weights.items()
        }

    def on_output(self, prediction: Tensor, factors: Weights) -> Tensor:
        """Predictions, (n, output_dim), times their factors; as they are if weights are."""
        return factors["output"] * prediction if self.location == "output" else prediction

    def extra_repr(self) -> str:
        return f"{self.location}, {self.granularity}, initial={self.initial}"


def _factor_of(location: Location, names: list[str]) -> dict[str, str]:
    """The name of the factor for each weight that has one: its layer's, or `all`."""
    if location == "output":
        return {}
    return {name: "all" if location == "all" else name.rpartition(".")[0] for name in names}


def _rows_of(
    factor_of: dict[str, str], weights: Weights, granularity: Granularity
) -> dict[str, tuple[int, ...]]:
    """The number of rows that the weights under each factor have in common, as a shape.

    () for each factor with granularity `scalar`.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name, factor in factor_of.items():
        rows = tuple(weights[name].shape[:1]) if granularity == "per-output" else ()
        if shapes.setdefault(factor, rows) != rows or (granularity == "per-output" and not rows):
            raise ValueError(
                f"multipliers: 'per-output', but the weights under one factor, {factor!r}, differ "
                "in their rows. 'scalar', or multiplies: 'output'"
            )
    return shapes


def _refuse_dead_start(location: Location, initial: float) -> None:
    if location != "output" and initial == 0:
        raise ValueError(
            f"initial: 0 with multiplies: {location!r}, so the gradient of every layer is zero "
            "and stays zero. Another number, or multiplies: 'output'"
        )


def _by_rows(factor: Tensor, weight: Tensor) -> Tensor:
    """() as it is; (rows,) with as many axes as a weight of (rows, ...)."""
    return factor if factor.dim() == 0 else factor.reshape(-1, *[1] * (weight.dim() - 1))

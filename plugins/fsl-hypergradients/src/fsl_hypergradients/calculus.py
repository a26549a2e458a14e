"""Derivatives of an inner problem as constants: of first order, and products with the second."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

import fsl_core as fsl

Weights = dict[str, Tensor]
Function = Callable[..., tuple[Tensor, Tensor]]
"""Weights, one or several -> a scalar, and another tensor of the same pass."""


def cut(weights: Mapping[str, Tensor]) -> Weights:
    """The same values without a graph."""
    return {name: weight.detach() for name, weight in weights.items()}


def end(problem: fsl.InnerProblem) -> Weights:
    """phi_T, without a graph."""
    return deque(problem.points(tracked=False), maxlen=1).pop().phi


def seen_last(problem: fsl.InnerProblem, outer: Weights) -> Weights:
    """`outer` as predictions after the last step see it."""
    return problem.at(outer, max(problem.steps - 1, 0))


def query_loss(problem: fsl.InnerProblem, episode: fsl.Episode, loss: fsl.Loss) -> Function:
    """(phi, outer) -> query loss, and the prediction of the queries."""

    def function(phi: Weights, outer: Weights) -> tuple[Tensor, Tensor]:
        prediction = problem.predict(phi, seen_last(problem, outer), episode.query.x)
        return loss(prediction, episode.query.y), prediction

    return function


def slopes(
    problem: fsl.InnerProblem, function: Callable[..., Tensor], *points: Weights
) -> tuple[Weights, ...]:
    """The derivatives of a function by each of its arguments there, as constants.

    Zero where it does not depend on a weight.
    """

    def twice(*points: Weights) -> tuple[Tensor, Tensor]:
        value = function(*points)
        return value, value

    return derivatives(problem, twice, *points)[0]


def derivatives(
    problem: fsl.InnerProblem, function: Function, *points: Weights
) -> tuple[tuple[Weights, ...], Tensor, Tensor]:
    """`slopes`, the value, and the other tensor that a function returns; all of them constants."""
    points = tuple(map(cut, points))
    if problem.by_autograd:
        return _by_autograd(function, points)
    argnums = tuple(range(len(points)))
    found, (value, rest) = torch.func.grad_and_value(function, argnums, has_aux=True)(*points)
    return tuple(map(cut, found)), value.detach(), rest.detach()


def _by_autograd(
    function: Function, points: tuple[Weights, ...]
) -> tuple[tuple[Weights, ...], Tensor, Tensor]:
    leaves = [{n: w.requires_grad_() for n, w in point.items()} for point in points]
    with torch.enable_grad():
        value, rest = function(*leaves)
    flat = [weight for point in leaves for weight in point.values()]
    found = iter(_gradients([value], flat, None) if value.requires_grad else map(_zero, flat))
    by_point = tuple({name: next(found) for name in point} for point in leaves)
    return by_point, value.detach(), rest.detach()


def _zero(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight)


def _gradients(
    outputs: list[Tensor], inputs: list[Tensor], vectors: list[Tensor] | None
) -> tuple[Tensor, ...]:
    return torch.autograd.grad(
        outputs, inputs, vectors, retain_graph=True, allow_unused=True, materialize_grads=True
    )


def _gradient(problem: fsl.InnerProblem, phi: Weights, outer: Weights) -> Weights:
    """d loss / d phi of all of phi, which can be differentiated."""
    whole = replace(problem, schedule=())
    return whole.gradient(fsl.Point(phi, outer), 0, create_graph=True)


def hessian(problem: fsl.InnerProblem, phi: Weights) -> Callable[[Weights], Weights]:
    """v -> H v, the second derivative of the loss by phi; the gradient is computed once."""
    phi, outer = cut(phi), cut(problem.outer)
    if not problem.by_autograd:
        # H is symmetric: a product from the left is one from the right.
        pull = torch.func.vjp(lambda phi: _gradient(problem, phi, outer), phi)[1]
        return lambda vector: cut(pull(vector)[0])
    leaves = {name: weight.requires_grad_() for name, weight in phi.items()}
    with torch.enable_grad():
        gradient = _gradient(problem, leaves, outer)
    moved = {name: slope for name, slope in gradient.items() if slope.requires_grad}

    def product(vector: Weights) -> Weights:
        vectors = [vector[name] for name in moved]
        found = _gradients([*moved.values()], [*leaves.values()], vectors)
        return dict(zip(leaves, found, strict=True))

    return product


def mixed(problem: fsl.InnerProblem, phi: Weights, vector: Weights) -> Weights:
    """d/d outer < d loss / d phi (phi, outer), vector >."""

    def product(outer: Weights) -> Tensor:
        return inner(_gradient(problem, cut(phi), outer), vector)

    return slopes(problem, product, problem.outer)[0]


def inner(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> Tensor:
    """The inner product over the names of the left one; a scalar."""
    return torch.stack([(slope * right[name]).sum() for name, slope in left.items()]).sum()


def plus(left: Weights, right: Weights, scale: float | Tensor = 1.0) -> Weights:
    """left + scale * right, where right may lack names."""
    return left | {name: left[name] + scale * value for name, value in right.items()}


class Flat:
    """Named tensors as one vector and back. like: their names, shapes and order."""

    def __init__(self, like: Mapping[str, Tensor]):
        self.shapes = {name: weight.shape for name, weight in like.items()}
        self.sizes = [shape.numel() for shape in self.shapes.values()]
        self.size = sum(self.sizes)

    def pack(self, weights: Mapping[str, Tensor]) -> Tensor:
        """(size,)"""
        return torch.cat([weights[name].reshape(-1) for name in self.shapes])

    def unpack(self, vector: Tensor) -> Weights:
        pieces = zip(self.shapes.items(), vector.split(self.sizes), strict=True)
        return {name: piece.view(shape) for (name, shape), piece in pieces}

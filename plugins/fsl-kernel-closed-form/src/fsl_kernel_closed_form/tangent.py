"""The empirical neural tangent kernel J(x) J(x')^T of a network, by torch.func.

J = d f_theta(x) / d theta.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import jvp, vjp, vmap
from torch.nn.modules.batchnorm import _NormBase

import fsl_core as fsl
from fsl_kernel_closed_form.dual import Dual, Prediction

Outputs = Literal["shared", "full"]
Weights = dict[str, Tensor]


@cache
def prepare_forward_mode() -> None:
    """Let torch compile its forward-mode rules, which takes about a second.

    Without its warning on torch.jit.script: torch itself calls that.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        jvp(torch.sin, (torch.zeros(()),), (torch.ones(()),))


def tangent_names(
    backbone: nn.Module, head: nn.Module, parameters: str | list[str], adapt_frozen: bool = False
) -> list[str]:
    """The weights that a tangent kernel is taken over; called once, before any kernel.

    adapt_frozen: those that require no gradient as well.
    Raises ValueError for a pattern that matches no parameter, for frozen ones alone, and for
    torch's own batch normalisation in a backbone that is part of it: torch differentiates its
    Jacobian wrongly (beyond second derivatives it takes mean and variance for constants).
    """
    prepare_forward_mode()
    net = fsl.Functional(backbone, head)
    names = list(net.adapted(parameters, frozen=adapt_frozen, option="parameters"))
    inexact = {
        type(module).__name__ for module in backbone.modules() if isinstance(module, _NormBase)
    }
    if inexact and any(name.startswith("backbone.") for name in names):
        raise ValueError(
            f"parameters: a tangent kernel through {', '.join(sorted(inexact))}, whose third "
            "derivatives are wrong in torch. A backbone with fsl.Norm, or parameters: head"
        )
    return names


def tangent_dual(
    backbone: nn.Module,
    head: nn.Module,
    support_x: Tensor,
    names: list[str],
    outputs: Outputs = "shared",
) -> Dual:
    """The dual of the tangent kernel of head(backbone(x)) with respect to these weights.

    full:   J of all outputs: (n * output_dim, n * output_dim), as gradient flow on all outputs has
            it.
    shared: J of the sum of the outputs over sqrt(output_dim): (n, n), for every output alike. It
            approaches the full kernel as the layer before the head widens: Mohamadi, Bae and
            Sutherland 2023, arXiv:2206.12543.

    Normalisation by the batch is part of the network: J of an item then depends on the other items
    of its set. The kernel between queries and support set is never formed: its product with the
    dual weights is a directional derivative of f.
    """
    net = fsl.Functional(backbone, head)
    moved = {name: net.weights[name] for name in names}

    def f(moved: Weights, x: Tensor) -> Tensor:
        return net(net.weights | moved, x)

    values, pullback = vjp(  # type: ignore[misc]  # torch's type is that of has_aux too
        lambda moved: f(moved, support_x), moved
    )
    c = values.shape[1]
    jacobian = {
        k: rows.flatten(1).double()
        for k, rows in vmap(pullback)(_cotangents(values, outputs))[0].items()
    }
    gram = torch.stack([rows @ rows.mT for rows in jacobian.values()]).sum(0)

    def predict(dual: Tensor) -> Callable[[Tensor], Prediction]:
        directions = {
            k: (dual.mT @ jacobian[k]).to(w.dtype).view(-1, *w.shape) for k, w in moved.items()
        }

        def prediction(x: Tensor) -> Prediction:
            def derivative(direction: Weights) -> tuple[Tensor, Tensor]:
                return jvp(  # type: ignore[return-value]  # torch's type is that of has_aux too
                    lambda moved: f(moved, x), (moved,), (direction,)
                )

            with fsl.derivatives_of_any_order():
                values, slopes = vmap(derivative)(directions)  # (k, n, c); the k values are one
            correction = slopes[0] if outputs == "full" else slopes.sum(-1).mT / c**0.5
            return Prediction(values[0].double(), correction.double())

        return prediction

    return Dual(gram, values.double(), predict)


def _cotangents(values: Tensor, outputs: Outputs) -> Tensor:
    """(m, n, c): one row for each row of the kernel."""
    n, c = values.shape
    if outputs == "full":
        return torch.eye(n * c, dtype=values.dtype, device=values.device).view(n * c, n, c)
    identity = torch.eye(n, dtype=values.dtype, device=values.device)
    return identity[:, :, None].expand(n, n, c) / c**0.5

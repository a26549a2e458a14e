"""The exact meta-gradient, and the one without second derivatives."""

from __future__ import annotations

from torch import Tensor, nn

import fsl_core as fsl


class Unrolled(fsl.Hypergradient):
    """Automatic differentiation through whatever the adapter does: its own objective.

    The only one for adapters without an inner problem, such as closed forms. With inner steps it
    keeps the activations of all of them: memory grows with their number.

    Source: Finn et al. 2017, arXiv:1703.03400.
    """

    name = "unrolled"

    def unfit(self, adapter: fsl.Adapter) -> str:
        return ""

    def objective(
        self, adapter: fsl.Adapter, backbone: nn.Module, episode: fsl.Episode, loss: fsl.Loss
    ) -> tuple[Tensor, Tensor]:
        return adapter.objective(backbone, episode, loss)


class FirstOrder(fsl.Hypergradient):
    """The gradient of each inner step counts as a constant: d phi_{k+1} / d phi_k = 1.

        g = d L(phi_T) / d phi_T,    taken as the derivative by phi_0

    Memory does not depend on the number of inner steps. Learned rates keep their derivative. The
    same as the option `order: 1` of `maml`.

    Source: FOMAML, Finn et al. 2017, arXiv:1703.03400, section 5.2.
    """

    name = "first-order"

    def objective(
        self, adapter: fsl.Adapter, backbone: nn.Module, episode: fsl.Episode, loss: fsl.Loss
    ) -> tuple[Tensor, Tensor]:
        problem = fsl.inner_problem_of(adapter, backbone, episode)
        *_, last = problem.points(order=1)
        prediction = problem.predict(*last, episode.query.x)
        return loss(prediction, episode.query.y), prediction


@fsl.hookimpl
def fsl_register_hypergradients(register):
    register(Unrolled)
    register(FirstOrder)

"""The hypergradient `implicit`: the derivative of the inner loss's minimiser."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

import fsl_core as fsl
from fsl_hypergradients.calculus import (
    Flat,
    derivatives,
    end,
    hessian,
    mixed,
    plus,
    query_loss,
)
from fsl_hypergradients.estimate import Estimate
from fsl_hypergradients.solvers import conjugate_gradients, neumann


@fsl.validated
class Implicit(Estimate):
    """The implicit function theorem at the last inner step, as if it were the minimiser.

        solve H q = dL/dphi,    g = dL/dtheta - d/dtheta < dl/dphi(phi_T, theta), q >

    H is the second derivative of the inner loss by phi. Memory does not depend on the number of
    inner steps. It needs curvature: with maml, `proximal` above 0, or `adapted: head` and
    `weight_decay` above 0. The last step should be near the minimiser. The start phi_0 gets no
    gradient of its own.

    With a proximal term gamma / 2 ||phi - theta||^2 it is iMAML: g = (I + H_l / gamma)^-1 dL/dphi,
    with H_l of the loss without the term. Then A q = dL/dphi is solved, where

        A v = (1 + damping) v + H_l v / (gamma + curvature_offset)

    and else A v = H v + damping v. cg starts at q = dL/dphi: with iterations 0, iMAML is
    first-order. neumann sums rate * sum_{k <= iterations} (I - rate A)^k dL/dphi. Iterations after
    the tolerance is reached leave q as it is and are computed all the same, so that a meta-batch
    can share them. Linear conjugate gradients stand here for BOML's non-linear ones.

    The code of iMAML, aravindr93/imaml_dev, has damping 1 and adds 10 to gamma in A, which no
    equation of the paper has: `damping: 1.0, curvature_offset: 10.0`, with maml's `proximal: 2.0,
    proximal_steps: last, test_proximal: 0`.

    Sources: HOAG, Pedregosa 2016, arXiv:1602.02355; iMAML, Rajeswaran et al. 2019,
    arXiv:1909.04630; neumann, Lorraine et al. 2020, arXiv:1911.02590.
    """

    name = "implicit"
    solutions: Tensor
    met: Tensor

    def __init__(
        self,
        tasks: int | None = None,
        solver: Annotated[
            Literal["cg", "neumann"], Field(description="conjugate gradients, or a Neumann series")
        ] = "cg",
        iterations: Annotated[int, Field(ge=0, description="of the solver")] = 5,
        tolerance: Annotated[
            float, Field(ge=0, description="of cg: residual norm over that of dL/dphi; 0: none")
        ] = 0.0,
        tolerance_decay: Annotated[
            float, Field(gt=0, le=1, description="factor on the tolerance with each outer step")
        ] = 1.0,
        damping: Annotated[
            float, Field(ge=0, description="added to the diagonal; in units of gamma for iMAML")
        ] = 0.0,
        curvature_offset: Annotated[
            float, Field(ge=0, description="added to gamma in A; 10 in iMAML's code")
        ] = 0.0,
        rate: Annotated[float, Field(gt=0, description="of neumann")] = 1.0,
        warm_start: Annotated[
            bool, Field(description="begin with the q of the same task, of a finite set")
        ] = False,
        count_negative_curvature: Annotated[
            bool,
            Field(description="metric `negative_curvature`: tasks in which cg met it; takes loop"),
        ] = False,
    ):
        super().__init__()
        if warm_start and tasks is None:
            raise ValueError(
                "warm_start: true, and these episodes have no finite set of tasks to tell apart. "
                "Episodes that do, such as sinusoid with tasks: 25, or warm_start: false"
            )
        self.solver, self.iterations, self.rate = solver, iterations, rate
        self.tolerance, self.tolerance_decay = tolerance, tolerance_decay
        self.damping, self.curvature_offset = damping, curvature_offset
        self.warm_start, self.counting = warm_start, count_negative_curvature
        # What a task leaves behind is written in on_step: one task after another, in one thread.
        self.vectorizable = self.threadable = not (warm_start or count_negative_curvature)
        self._found: dict[int, tuple[Tensor, Tensor]] = {}
        self._negative = 0
        if warm_start:
            self.register_buffer("solutions", torch.zeros(tasks or 0, 0))
            self.register_buffer("met", torch.zeros(tasks or 0, dtype=torch.bool))

    def refusal(self, problem: fsl.InnerProblem) -> str:
        if problem.curvature == 0 or not problem.outer:
            return (
                "the inner loss has no curvature of its own that depends on what is trained. "
                "maml with proximal above 0, or with adapted: head and weight_decay above 0"
            )
        if self.curvature_offset and not problem.proximal:
            return "curvature_offset without a proximal term. curvature_offset: 0"
        return ""

    def objective(
        self, adapter: fsl.Adapter, backbone: nn.Module, episode: fsl.Episode, loss: fsl.Loss
    ) -> tuple[Tensor, Tensor]:
        problem = self.problem(adapter, backbone, episode)
        phi, flat = end(problem), Flat(problem.start)
        query = query_loss(problem, episode, loss)
        (slope, direct), value, prediction = derivatives(problem, query, phi, problem.outer)
        q = self._solved(problem, phi, flat, flat.pack(slope), episode.id)
        # g of a proximal term is gamma q there, and q is in units of gamma here.
        vector = flat.unpack(q / problem.proximal if problem.proximal else q)
        gradient = plus(direct, mixed(problem, phi, vector), -1.0)
        return fsl.with_gradient(value, problem.outer, gradient), prediction

    def _solved(
        self, problem: fsl.InnerProblem, phi: dict[str, Tensor], flat: Flat, b: Tensor, task: Tensor
    ) -> Tensor:
        product, gamma = hessian(problem, phi), problem.proximal

        def operator(vector: Tensor) -> Tensor:
            image = flat.pack(product(flat.unpack(vector)))
            if not gamma:
                return image + self.damping * vector
            of_loss = (image - gamma * vector) / (gamma + self.curvature_offset)
            return (1 + self.damping) * vector + of_loss

        if self.solver == "neumann":
            start = self._start(task, self.rate * b)
            q, negative = neumann(operator, b, start, self.iterations, self.rate), b[0] < b[0]
        else:
            tolerance = self.tolerance * self.tolerance_decay**self.steps_done
            start = self._start(task, b)
            q, negative = conjugate_gradients(operator, b, start, self.iterations, tolerance)
        if not self.threadable:
            self._found[int(task)] = (q, negative)
        return q

    def _start(self, task: Tensor, otherwise: Tensor) -> Tensor:
        if not self.warm_start:
            return otherwise
        count = len(self.met)
        if not 0 <= int(task) < count:
            raise fsl.DataError(
                f"implicit: task {int(task)}. A number in 0 .. {count - 1}: the episodes say that "
                f"they have {count} tasks"
            )
        known = bool(self.met[task]) and self.solutions.shape[1] == len(otherwise)
        return self.solutions[task].to(otherwise) if known else otherwise

    def on_step(self, ids: Tensor) -> None:
        super().on_step(ids)
        self._negative = sum(int(negative) for _, negative in self._found.values())
        if self.warm_start:
            for task, (q, _) in self._found.items():
                self._keep(task, q)
        self._found.clear()

    def _keep(self, task: int, q: Tensor) -> None:
        if self.solutions.shape[1] != len(q):
            self.solutions = self.solutions.new_zeros(len(self.met), len(q))
        self.solutions[task], self.met[task] = q.to(self.solutions), True

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        # The size of phi is known at the first step only; a checkpoint knows it.
        kept = state_dict.get(f"{prefix}solutions")
        if self.warm_start and kept is not None and kept.shape[0] == len(self.met):
            self.solutions = self.solutions.new_zeros(kept.shape)
        super()._load_from_state_dict(state_dict, prefix, *others)

    def metrics(self) -> dict[str, float]:
        return {"negative_curvature": float(self._negative)} if self.counting else {}

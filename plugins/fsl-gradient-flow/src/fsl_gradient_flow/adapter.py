"""The adapter `gradient-flow` (COMLN): the head follows the flow of the support loss."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Annotated, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

import fsl_core as fsl
from fsl_gradient_flow.flow import Flow, Integrate, State, Velocity, exact, forward, reverse
from fsl_gradient_flow.integrators import dormand_prince, rk4, steps_for, tell_if_few

Integrator = Literal["auto", "rk4", "dopri5", "exact"]
SHORTEST, LONGEST = 1e-3, 1e3
LARGEST = 10_000_000
"""Numbers that `gradient: forward` may keep for a task."""


@fsl.validated
class GradientFlow(fsl.Adapter):
    """A linear head without bias that follows dW/dt = -grad l(W) from W0 for a time `horizon`.

    l is the mean support loss, and the outer loop trains the backbone, W0 and the horizon: there is
    no inner learning rate and no number of inner steps. The flow is integrated in dual form, see
    `Flow`: M x N numbers for M support items and N outputs, whatever the features' size, in
    float64.

    A classification is integrated by RK4 in max(8, ceil(2 horizon lambda)) steps, where lambda, the
    largest eigenvalue of F F' over 2 M, bounds how fast the flow can decay; or by Dormand-Prince. A
    regression has a closed form. gradient: `reverse` differentiates through the integrator;
    `forward`, the paper's, integrates derivatives beside the state, in memory that does not depend
    on the horizon.

    How many steps are needed depends on the values of a task, so tasks are computed one after
    another, unless `steps` is given or the closed form is taken.

    Source: Deleu et al. 2022, arXiv:2203.01443 (COMLN), and the authors' code
    tristandeleu/jax-comln. Differs: reverse mode and RK4 are this project's; so are the bounds
    1e-3 and 1e3 of a learned horizon, and regression. The code adds a weight decay of 5e-4, which
    is an option of the outer optimizer here.
    """

    name = "gradient-flow"
    keeps_backbone = True
    unequal_shots = True

    def __init__(
        self,
        task: fsl.TaskShape,
        backbone: nn.Module,
        horizon: Annotated[
            float,
            Field(
                ge=SHORTEST,
                le=LONGEST,
                description="time of the flow, or where a learned one starts (code: 1)",
            ),
        ] = 1.0,
        learn_horizon: Annotated[
            bool,
            Field(description="trained by the outer loop, as its logarithm (code: true)"),
        ] = True,
        head_start: Annotated[
            Literal["learned", "zero"],
            Field(
                description="W0, from which every task starts (code: learned); zero: nothing to "
                "train, and any number of ways"
            ),
        ] = "learned",
        gradient: Annotated[
            Literal["reverse", "forward"],
            Field(
                description="through the integrator (this project), or integrated beside the "
                "state (paper), in memory that does not grow with the horizon"
            ),
        ] = "reverse",
        integrator: Annotated[
            Integrator,
            Field(
                description="rk4 (this project), dopri5 (code), or exact, of a regression alone; "
                "auto: exact if it can be, else rk4"
            ),
        ] = "auto",
        steps: Annotated[
            int | None,
            Field(
                gt=0,
                description="of rk4; null: as many as horizon and features ask for (this "
                "project). A number lets tasks share their computation",
            ),
        ] = None,
    ):
        super().__init__()
        if integrator == "auto":
            integrator = "rk4" if task.kind == "classification" else "exact"
        if integrator == "exact" and task.kind == "classification":
            raise ValueError(
                "gradient-flow: integrator: exact with a classification, whose flow has no closed "
                "form. rk4 or dopri5"
            )
        if steps is not None and integrator != "rk4":
            raise ValueError(
                f"gradient-flow: steps: {steps} with integrator: {integrator}. rk4, or null"
            )
        self.task, self.steps, self.integrator = task, steps, integrator
        self.gradient = gradient if integrator != "exact" else "reverse"
        if self.gradient == "forward":
            _check_size(task)
        self.vectorizable = integrator == "exact" or steps is not None
        value = torch.tensor(log(horizon))
        if learn_horizon:
            self.log_horizon = nn.Parameter(value)
        else:
            self.register_buffer("log_horizon", value, persistent=False)
        feature_dim = cast("int", backbone.feature_dim)  # nn.Module promises no attributes
        self.head = None
        if head_start == "learned":
            self.head = nn.Linear(feature_dim, task.output_dim, bias=False)
            nn.init.normal_(self.head.weight, std=feature_dim**-0.5)

    def adapt(self, backbone: nn.Module, support: fsl.LabelledSet) -> fsl.Predictor:
        return self.trajectory(backbone, support)[-1]

    def trajectory(  # type: ignore[override]  # it needs no queries and no id
        self, backbone: nn.Module, support: fsl.LabelledSet
    ) -> Sequence[fsl.Predictor]:
        """The predictors at time 0 and at the horizon."""
        features = backbone(support.x)
        start = self._start(features)
        flow = self._flow(features.double(), start.double(), support.y)
        end = start.double() - self._dual(flow).mT @ features.double()
        return [_linear(backbone, head.to(features.dtype)) for head in (start, end)]

    def _start(self, features: Tensor) -> Tensor:
        if self.head is not None:
            return self.head.weight
        return features.new_zeros(self.task.output_dim, features.shape[1])

    def _flow(self, features: Tensor, start: Tensor, y: Tensor) -> Flow:
        classes = self.task.kind == "classification"
        targets = fsl.one_hot(y, self.task.n_way) if classes else y
        gram = features @ features.mT
        return Flow(features @ start.mT, gram, targets.double(), self.task.kind)

    def _dual(self, flow: Flow) -> Tensor:
        """s at the horizon."""
        horizon = self.horizon().double()
        if self.integrator == "exact":
            return exact(flow, horizon)
        # Where no derivative is wanted, as in evaluation, none is integrated.
        beside = self.gradient == "forward" and torch.is_grad_enabled()
        return (forward if beside else reverse)(flow, horizon, self._integrate(flow))

    def _integrate(self, flow: Flow) -> Integrate:
        if self.integrator == "dopri5":
            return dormand_prince

        def integrate(velocity: Velocity, state: State, horizon: Tensor) -> State:
            steps = self.steps
            if steps is None:
                steps = steps_for(flow, horizon)
            else:
                tell_if_few(steps, flow, horizon)
            return rk4(velocity, state, horizon, steps)

        return integrate

    def horizon(self) -> Tensor:
        """The time of the flow, a scalar."""
        return self.log_horizon.exp().clamp(SHORTEST, LONGEST)

    def describe(self) -> dict[str, float]:
        return {"horizon": self.horizon().item()}

    def extra_repr(self) -> str:
        return f"integrator={self.integrator}, gradient={self.gradient}, steps={self.steps}"


def _linear(backbone: nn.Module, head: Tensor) -> fsl.Predictor:
    return lambda x: backbone(x) @ head.mT


def _check_size(task: fsl.TaskShape) -> None:
    """Raise ValueError where derivatives beside the state take too much memory."""
    items = task.n_shot * task.n_way
    numbers = items**2 * task.output_dim**2 + items**3 * task.output_dim
    if numbers > LARGEST:
        raise ValueError(
            f"gradient-flow: gradient: forward with {items} support items and {task.output_dim} "
            f"outputs, which keeps {numbers:,} numbers a task. gradient: reverse, up to "
            f"{LARGEST:,} otherwise"
        )

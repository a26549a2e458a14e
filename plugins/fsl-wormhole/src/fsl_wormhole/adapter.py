"""The adapter `wormhole`: gradient steps on weights and on factors that multiply the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, cast

from pydantic import Field
from torch import Tensor, nn

import fsl_core as fsl
from fsl_wormhole.multipliers import Granularity, Location, Multipliers, Weights


@fsl.validated
class Wormhole(fsl.Adapter):
    """MAML on the weights and on factors a that multiply the network.

    f(x) = a * h(x; theta), theta = (backbone, head). inner_steps times, from a_i = initial and
    theta_i = theta:

        a_i     <- a_i     - multiplier_lr * d L_support / d a_i
        theta_i <- theta_i - inner_lr      * d L_support / d theta_i

    After the abstract of arXiv 2212.14094. The update rule, defaults and tasks are this project's
    interpretation; the paper's text was not available. The abstract says that "an extra
    multiplicative parameter is introduced in the inner-loop adaptation", which "creates a shortcut
    in the parameter space".

    At a = 0 all weights give the same function, so that the way from h to -h leads through one
    point, and tasks that want opposite functions may have the same theta. With multiplier_lr 0 and
    initial 1 this is MAML (Finn et al. 2017, arXiv:1703.03400), with order 1 its first-order form.

    The head is linear, (n, feature_dim) -> (n, output_dim). In training mode `inner_steps` steps
    are made, in evaluation mode `test_steps`; there the predictor carries no graph. Weights that
    require no gradient when the adapter is built are frozen: they are neither adapted nor
    multiplied as layers. Nothing keeps a learned multiplier_lr above zero.
    """

    name = "wormhole"
    unequal_shots = True

    def __init__(
        self,
        task: fsl.TaskShape,
        backbone: nn.Module,
        multiplies: Annotated[
            Location,
            Field(
                description="what is multiplied: the output, the weights of each layer, or all "
                "weights by one factor"
            ),
        ] = "output",
        multipliers: Annotated[
            Granularity,
            Field(
                description="scalar: one (a layer); per-output: one for each prediction, or unit "
                "of a layer"
            ),
        ] = "scalar",
        initial: Annotated[
            float, Field(description="the factors before adaptation, or where learned ones start")
        ] = 1.0,
        learn_initial: Annotated[
            bool, Field(description="whether the outer loop trains the factors before adaptation")
        ] = False,
        multiplier_lr: Annotated[
            float | None,
            Field(
                ge=0,
                description="inner learning rate of the factors, or its start; null: that of the "
                "weights",
            ),
        ] = None,
        learn_multiplier_lr: Annotated[
            bool, Field(description="whether the outer loop trains multiplier_lr")
        ] = False,
        adapt_weights: Annotated[
            bool, Field(description="whether the weights are adapted too, or the factors alone")
        ] = True,
        adapt_frozen: Annotated[
            bool,
            Field(
                description="whether weights that require no gradient are adapted and multiplied"
            ),
        ] = False,
        inner_lr: Annotated[
            float, Field(gt=0, description="inner learning rate of the weights")
        ] = 0.1,
        inner_steps: Annotated[int, Field(ge=0, description="inner steps in training")] = 5,
        test_steps: Annotated[
            int | None, Field(ge=0, description="inner steps in evaluation; as in training if null")
        ] = None,
        order: Annotated[
            Literal[1, 2],
            Field(
                description="2: exact meta-gradient. 1: without second derivatives, which is faster"
            ),
        ] = 2,
    ):
        super().__init__()
        test_steps = inner_steps if test_steps is None else test_steps
        multiplier_lr = inner_lr if multiplier_lr is None else multiplier_lr
        if (multiplies, multipliers) == ("all", "per-output"):
            raise ValueError(
                "multipliers: 'per-output' with multiplies: 'all', which has one factor. 'scalar', "
                "or multiplies: 'layers'"
            )
        moved = multiplier_lr > 0 or learn_multiplier_lr
        if not (adapt_weights or moved):
            raise ValueError(
                "adapt_weights: false with multiplier_lr: 0, which adapts nothing. true, or "
                "another multiplier_lr"
            )

        self.task, self.order = task, order
        self.inner_lr, self.inner_steps, self.test_steps = inner_lr, inner_steps, test_steps
        feature_dim = cast("int", backbone.feature_dim)  # nn.Module promises no attributes
        self.head = nn.Linear(feature_dim, task.output_dim)
        net = fsl.Functional(backbone, self.head)
        weights = net.weights
        moving = {name: weights[name] for name in net.adapted(frozen=adapt_frozen)}
        self.multipliers = Multipliers(
            multiplies, multipliers, initial, learn_initial, moving, task.output_dim
        )
        like = next(iter(weights.values()))
        self.multiplier_lr = (
            nn.Parameter(like.new_tensor(multiplier_lr)) if learn_multiplier_lr else multiplier_lr
        )
        self.adapted = (
            *(moving if adapt_weights else ()),
            *(self.multipliers.shapes if moved else ()),
        )

    def inner_problem(self, backbone: nn.Module, support: fsl.LabelledSet) -> fsl.InnerProblem:
        net = _Multiplied(backbone, self.head, self.multipliers)
        weights = net.weights | self.multipliers.start(like=next(iter(net.weights.values())))
        start = {name: weights[name] for name in self.adapted}
        outer = {name: w for name, w in weights.items() if name not in start}
        if isinstance(self.multiplier_lr, Tensor):
            outer["multiplier_lr"] = self.multiplier_lr

        def loss(phi: Weights, outer: Weights) -> Tensor:
            return self.task.loss(net(outer | phi, support.x), support.y)

        return fsl.InnerProblem(
            start=start,
            outer=outer,
            steps=self.inner_steps if self.training else self.test_steps,
            loss=loss,
            step=self._step,
            predict=lambda phi, outer, x: net(outer | phi, x),
        )

    def _step(self, phi: Weights, gradient: Weights, k: int, outer: Weights) -> Weights:
        of_factors = outer.get("multiplier_lr", self.multiplier_lr)
        factors = self.multipliers.shapes
        rates = {name: of_factors if name in factors else self.inner_lr for name in gradient}
        return fsl.descend(phi, gradient, rates)


class _Multiplied(fsl.Functional):
    """Backbone, head and factors as a function of named tensors."""

    def __init__(self, backbone: nn.Module, head: nn.Module, multipliers: Multipliers):
        super().__init__(backbone, head)
        self.multipliers = multipliers

    def __call__(self, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        factors = {name: weights[name] for name in self.multipliers.shapes}
        plain = {name: weights[name] for name in self.weights}
        multiplied = self.multipliers.on_weights(plain, factors)
        return self.multipliers.on_output(super().__call__(multiplied, x), factors)

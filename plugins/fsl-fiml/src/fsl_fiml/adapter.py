"""The adapter `fiml`: a linear head by a few Gauss-Newton steps from a closed-form start."""

from __future__ import annotations

from collections import deque
from typing import Annotated, Literal, get_args

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import normalize

import fsl_core as fsl
from fsl_fiml.numbers import Learnable, Numbers
from fsl_fiml.objective import Curvature, Objective, step
from fsl_fiml.start import closed_form

HEAD, SUPPORT, QUERIES, NUMBER = "head", "features.support", "features.queries", "numbers."


@fsl.validated
class Fiml(fsl.Adapter):
    """A linear head without bias, scores = f(x) w': closed-form start, then `inner_steps` of

        g = grad F(w),    w <- w - g.g / (max(h, 1e-8) + step_regulariser g.g) g

    with h the Gauss-Newton curvature of F along g: the exact line search where F is a quadratic and
    step_regulariser is 0. `closed_form` has the start, which sees raw features, and `Objective` has
    F: residuals between scores and a target for the own class and one for others, and with
    `entropy_weight` the entropy of the unlabelled queries. Then predictions depend on the other
    queries, and results say so; with `entropy_weight: null`, the default, they do not.

    The outer loop trains the backbone and the numbers named in `learn`, through all steps. There is
    no head to learn: it takes any number of ways from two.

    Source: Tripathi, Danelljan, Timofte and Van Gool 2021, arXiv:2010.00511, by the authors' code
    4rdhendu/FIML. Differs: the code always takes the entropy, with weight 1000; the start is
    computed in float64; the weight of the entropy is trained as its logarithm; a regularisation of
    0 is not trained, because its derivative is 0 there (as in the code, where it therefore stays);
    no spatial weights for dense features, whose flag in the code acts the other way round; no dense
    classification loss.
    """

    name = "fiml"
    unequal_shots = True

    def __init__(
        self,
        task: fsl.TaskShape,
        inner_steps: Annotated[
            int, Field(ge=0, description="Gauss-Newton steps in training and evaluation (code: 5)")
        ] = 5,
        normalise: Annotated[
            bool,
            Field(description="features scaled to length 1 once the start is found (code: true)"),
        ] = True,
        own_start: Annotated[
            float, Field(description="score of the mean of its own class at the start (code: 5)")
        ] = 5.0,
        other_start: Annotated[
            float, Field(description="score of the mean of other classes at the start (code: -5)")
        ] = -5.0,
        own_target: Annotated[
            float, Field(description="score wanted for items of the class (code: 5)")
        ] = 5.0,
        other_target: Annotated[
            float, Field(description="score wanted for items of other classes (code: -5)")
        ] = -5.0,
        own_weight: Annotated[
            float, Field(description="factor of the residual of the own class (code: 1)")
        ] = 1.0,
        other_weight: Annotated[
            float, Field(description="factor of the residuals of other classes (code: 1)")
        ] = 1.0,
        own_slope: Annotated[
            float,
            Field(
                description="of the residual where the own score is above its target: 1 least "
                "squares, 0 squared hinge (code: 1)"
            ),
        ] = 1.0,
        other_slope: Annotated[
            float,
            Field(description="the same where the score of another class is below (code: 1)"),
        ] = 1.0,
        regularisation: Annotated[
            float, Field(ge=0, description="rho of 1/2 rho^2 ||w||^2 (code: 0)")
        ] = 0.0,
        entropy_weight: Annotated[
            float | None,
            Field(
                gt=0,
                description="of the mean entropy of the queries (code: 1000); null: none, and "
                "queries are predicted one by one (this project)",
            ),
        ] = None,
        temperature: Annotated[
            float, Field(description="factor of the scores in the entropy (code: 1)")
        ] = 1.0,
        entropy_curvature: Annotated[
            Curvature,
            Field(
                description="of the entropy in the step length: variance of the scores (code), or "
                "its second derivative where that is positive (this project)"
            ),
        ] = "covariance",
        step_regulariser: Annotated[
            float, Field(ge=0, description="shortens steps; 0: exact line search (code: 0.05)")
        ] = 0.05,
        learn: Annotated[
            Literal["all"] | list[Learnable],
            Field(
                description="which numbers the outer loop trains: all (code), or a list of starts, "
                "targets, weights, slopes, regularisation, entropy_weight, temperature"
            ),
        ] = "all",
    ):
        super().__init__()
        if task.kind != "classification" or task.n_way < 2:
            raise ValueError(
                f"fiml: a {task.kind} task with {task.n_way} way. Classification with two ways or "
                "more: a class is told from the others"
            )
        self.task, self.inner_steps, self.normalise = task, inner_steps, normalise
        self.step_regulariser, self.entropy_curvature = step_regulariser, entropy_curvature
        self.transductive = entropy_weight is not None
        starts = {
            "own_start": own_start,
            "other_start": other_start,
            "own_target": own_target,
            "other_target": other_target,
            "own_weight": own_weight,
            "other_weight": other_weight,
            "own_slope": own_slope,
            "other_slope": other_slope,
            "regularisation": regularisation,
        }
        if entropy_weight is not None:
            starts |= {"entropy_weight": entropy_weight, "temperature": temperature}
        self.numbers = Numbers(starts, get_args(Learnable) if learn == "all" else learn)

    def inner_problem(
        self, backbone: nn.Module, support: fsl.LabelledSet, query_x: Tensor | None = None
    ) -> fsl.InnerProblem:
        net = fsl.Functional(backbone, nn.Identity())
        raw = net.features(net.weights, support.x)
        members = fsl.one_hot(support.y, self.task.n_way).to(raw)
        numbers = self.numbers()
        start = closed_form(raw, members, numbers["own_start"], numbers["other_start"])
        outer = net.weights | {NUMBER + name: value for name, value in numbers.items()}
        outer[SUPPORT] = self._scaled(raw)
        if self.transductive and query_x is not None and len(query_x):
            outer[QUERIES] = self._scaled(net.features(net.weights, query_x))

        def objective(outer: dict[str, Tensor]) -> Objective:
            own = {n.removeprefix(NUMBER): v for n, v in outer.items() if n.startswith(NUMBER)}
            queries = outer.get(QUERIES)
            return Objective(members, outer[SUPPORT], queries, own, self.entropy_curvature)

        def next_of(
            phi: dict[str, Tensor], gradient: dict[str, Tensor], k: int, outer: dict[str, Tensor]
        ) -> dict[str, Tensor]:
            w, g = phi[HEAD], gradient[HEAD]
            h = objective(outer).curvature(w, g)
            return {HEAD: step(w, g, h, self.step_regulariser)}

        return fsl.InnerProblem(
            start={HEAD: start},
            outer=outer,
            steps=self.inner_steps,
            loss=lambda phi, outer: objective(outer)(phi[HEAD]),
            step=next_of,
            predict=lambda phi, outer, x: self._scaled(net.features(outer, x)) @ phi[HEAD].mT,
        )

    def adapt(
        self, backbone: nn.Module, support: fsl.LabelledSet, query_x: Tensor | None = None
    ) -> fsl.Predictor:
        problem = self.inner_problem(backbone, support, query_x)
        return deque(self.predictors(problem), maxlen=1).pop()

    def _scaled(self, features: Tensor) -> Tensor:
        return normalize(features, dim=1) if self.normalise else features

    def describe(self) -> dict[str, float]:
        return {name: value.item() for name, value in self.numbers().items()}

    def extra_repr(self) -> str:
        return f"inner_steps={self.inner_steps}, transductive={self.transductive}"

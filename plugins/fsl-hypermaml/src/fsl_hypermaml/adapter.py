"""The adapter `hypermaml`: the head is updated by a hypernetwork that reads the support set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

import fsl_core as fsl
from fsl_hypermaml.hypernetwork import ClassShared, Flat, Head
from fsl_hypermaml.warmup import ROUNDING, Weights, gradient_share, steps_from_start

Network = Literal["class-shared", "flat"]
Labels = Literal["one-hot", "index"]
Aggregation = Literal["mean", "concat"]
Operator = Literal["minus", "plus", "multiply"]
Detached = Literal["predictions", "none", "input"]
Predictions = Literal["universal", "stale"]
GradientTarget = Literal["fast", "universal"]
RepeatDelta = Literal["once", "each-step"]
EvaluateWith = Literal["current", "hypernetwork"]
Phase = Literal["gradient", "both", "hypernetwork"]
"""What makes the update: p = 1, between, or p = 0."""


@fsl.validated
class HyperMaml(fsl.Adapter):
    """head' = head - H(support embeddings, predictions of head, labels), in one forward pass.

    The backbone is not adapted. The head is linear, (n, feature_dim) -> (n, n_way). In the first
    part of training, head' comes from gradient steps on the support loss, then from a mixture whose
    share p of gradient steps falls to 0:

        warm-up, p = 1      head <- head - inner_lr * g, inner_steps times
        switch,  0 < p < 1  head <- head - p * inner_lr * g - (1 - p) * H(...) / inner_steps,
                            inner_steps times
        then,    p = 0      head <- head - H(...), once; no gradient of the support loss

    g: gradient of the support loss with respect to the head, at its present weights. Evaluation
    takes p = 0 whatever was trained, and only weights that were trained with p = 0 may be the best
    checkpoint; with `evaluate_with: current`, evaluation takes the p that the weights were last
    trained with. `warmup: 1` with it is ANIL.

    Source: Przewięźlikowski et al. 2022, arXiv:2205.15745, and its official code,
    gmum/few-shot-hypernets-public, methods/hypernets/hypermaml.py. Differs by default: labels enter
    one-hot, the official column of class indices is `labels: index`; H counts once in all during
    the switch, there it counts at each step (`repeat_delta: each-step`); predictions come from the
    universal head, there from the head of the task before (`predictions: stale`); gradients are
    those of MAML, there with respect to the universal head (`gradient_target: universal`). p falls
    with every outer step, there with every epoch. Validation takes p = 0, there the p of the epoch,
    and the best may be of any epoch. Left out: heads of several layers, fine-tuning of the updated
    head in evaluation, a warm-up that moves the backbone.
    """

    name = "hypermaml"
    keeps_backbone = True
    of_gradient: Tensor  # while both make the update: the factor of a step's gradient,
    of_update: Tensor  # and that of H's displacement
    previous_weight: Tensor  # with `predictions: stale`: the head of the task before
    previous_bias: Tensor

    def __init__(
        self,
        task: fsl.TaskShape,
        backbone: nn.Module,
        hidden_size: Annotated[
            int,
            Field(
                gt=0,
                description="width of the hypernetwork's hidden layers (official: 512 Omniglot, "
                "256 CUB)",
            ),
        ] = 256,
        layers: Annotated[
            int, Field(ge=1, description="linear layers of the hypernetwork (official: 3)")
        ] = 3,
        network: Annotated[
            Network,
            Field(
                description="one network that sees class by class (official commands), or all "
                "classes as one vector"
            ),
        ] = "class-shared",
        enhance: Annotated[
            bool,
            Field(
                description="H sees predictions and labels beside the embeddings (official "
                "commands)"
            ),
        ] = True,
        labels: Annotated[
            Labels,
            Field(
                description="labels as H sees them: one-hot, or the index as a number (official)"
            ),
        ] = "one-hot",
        aggregation: Annotated[
            Aggregation,
            Field(
                description="shots of a class: their mean (official 5-shot), or side by side "
                "(official 1-shot)"
            ),
        ] = "mean",
        operator: Annotated[
            Operator, Field(description="head - H (official commands), head + H, or head * H")
        ] = "minus",
        warmup: Annotated[
            float,
            Field(
                ge=0,
                le=1,
                description="share of training with gradient steps alone (official: 0.024 "
                "Omniglot, 0.025 CUB)",
            ),
        ] = 0.1,
        switch: Annotated[
            float,
            Field(
                ge=0,
                le=1,
                description="share after it in which H takes over (official: 0.244 Omniglot, "
                "0.25 CUB)",
            ),
        ] = 0.6,
        inner_steps: Annotated[
            int,
            Field(ge=1, description="gradient steps while they last (official: 1 Omniglot, 5 CUB)"),
        ] = 1,
        inner_lr: Annotated[
            float, Field(gt=0, description="their rate (official: 0.1 Omniglot, 0.01 CUB)")
        ] = 0.1,
        order: Annotated[
            Literal[1, 2],
            Field(
                description="2: gradient steps are differentiated (official commands). 1: they are "
                "not"
            ),
        ] = 2,
        support_loss: Annotated[
            bool,
            Field(
                description="the support set counts in the outer loss, once H has a part in the "
                "update (official option)"
            ),
        ] = False,
        update_penalty: Annotated[
            float,
            Field(
                ge=0, description="factor of ||H||^2 in the outer loss (official option hm_lambda)"
            ),
        ] = 0.0,
        detached: Annotated[
            Detached,
            Field(
                description="what of H's input passes no gradient on: the predictions (official), "
                "nothing, or all of it"
            ),
        ] = "predictions",
        evaluate_with: Annotated[
            EvaluateWith,
            Field(
                description="in evaluation: the hypernetwork alone, p = 0 (official final test), "
                "or the p that the weights were last trained with (official validation)"
            ),
        ] = "hypernetwork",
        gradient_target: Annotated[
            GradientTarget,
            Field(
                description="gradients with respect to the fast weights, or to the universal head "
                "(official)"
            ),
        ] = "fast",
        repeat_delta: Annotated[
            RepeatDelta,
            Field(
                description="during the switch, (1 - p) * H once in all, or at each gradient step "
                "(official)"
            ),
        ] = "once",
        predictions: Annotated[
            Predictions,
            Field(
                description="whose predictions H sees: those of the universal head, or of the head "
                "of the last training task (official), which makes training depend on the order of "
                "tasks"
            ),
        ] = "universal",
    ):
        super().__init__()
        _check_together(task, enhance, predictions, evaluate_with, warmup, switch)

        self.task, self.enhance, self.labels = task, enhance, labels
        self.aggregation, self.operator = aggregation, operator
        self.warmup, self.switch = warmup, switch
        self.inner_steps, self.inner_lr = inner_steps, inner_lr
        self.support_loss, self.update_penalty = support_loss, update_penalty
        self.detached, self.evaluate_with = detached, evaluate_with
        self.gradient_target, self.repeat_delta = gradient_target, repeat_delta
        self.first_order = order == 1
        # The hypernetwork, whose input may be a constant, is left out by `warmup: 1`.
        nothing_detached = (
            warmup == 1 or detached == "none" or (detached == "predictions" and not enhance)
        )
        self.order = 2 if order == 2 and nothing_detached else 1
        # With `stale`, a task sees what the one before it left.
        self.vectorizable = self.threadable = predictions == "universal"
        self.unequal_shots = aggregation == "mean"  # concat needs as many items of each class

        feature_dim = cast("int", backbone.feature_dim)  # nn.Module promises no attributes
        self.head = nn.Linear(feature_dim, task.n_way)
        nn.init.zeros_(self.head.bias)
        sizes = (self._width(), hidden_size, layers, feature_dim)
        self.hypernetwork = (
            ClassShared(*sizes) if network == "class-shared" else Flat(*sizes, task.n_way)
        )
        if predictions == "stale":
            self.register_buffer("previous_weight", self.head.weight.detach().clone())
            self.register_buffer("previous_bias", self.head.bias.detach().clone())
        # Tensors: a compiler would take numbers that move with training for constants.
        self.register_buffer("of_gradient", torch.zeros(()), persistent=False)
        self.register_buffer("of_update", torch.zeros(()), persistent=False)
        HyperMaml.on_progress(self, 0.0)  # not that of a class derived from it, which is unfinished

    def inner_problem(
        self, backbone: nn.Module, support: fsl.LabelledSet
    ) -> fsl.InnerProblem | None:
        """The gradient steps of the head, for as long as they alone make the update."""
        if self._phase() != "gradient" or self.gradient_target == "universal":
            return None
        net = fsl.Functional(backbone, self.head)
        outer = {name: w for name, w in net.weights.items() if name.startswith("backbone.")}
        head = Head(self.head.weight, self.head.bias)
        return self._descent(net.features, support, head, outer, None)

    def adapt(self, backbone: nn.Module, support: fsl.LabelledSet) -> fsl.Predictor:
        return self.trajectory(backbone, support)[-1]

    def trajectory(  # type: ignore[override]  # it declares the arguments that it needs, no others
        self, backbone: nn.Module, support: fsl.LabelledSet
    ) -> list[fsl.Predictor]:
        """Before and after the update; while there are gradient steps, after each of them."""
        heads, _ = self._adapted(backbone(support.x), support.y)
        return [_predictor(backbone, head) for head in heads]

    def objective(
        self, backbone: nn.Module, episode: fsl.Episode, loss: fsl.Loss
    ) -> tuple[Tensor, Tensor]:
        """The query loss; in training also of the support set and the update's norm, by option."""
        if not self.training:
            return super().objective(backbone, episode, loss)
        features = backbone(episode.support.x)
        heads, update = self._adapted(features, episode.support.y)
        prediction = heads[-1].logits(backbone(episode.query.x))
        logits, y = prediction, episode.query.y
        if self.support_loss and update is not None:
            logits, y = (
                torch.cat([heads[-1].logits(features), logits]),
                torch.cat([episode.support.y, y]),
            )
        value = loss(logits, y)
        if self.update_penalty and update is not None:
            value = value + self.update_penalty * (
                update.weight.square().sum() + update.bias.square().sum()
            )
        if not self.vectorizable:
            self._remember(heads[-1])
        return value, prediction

    def unrolled_only(self) -> str:
        """Nothing if gradient steps make the update to the end, which is `warmup: 1`."""
        if self.warmup < 1:
            return "the hypernetwork makes the update, or a part of it, as soon as the warm-up ends"
        if self.gradient_target == "universal":
            return "gradient_target: universal takes every gradient at the weights of the start"
        if not self.vectorizable:
            return "predictions: stale keeps the head of the task before"
        return ""

    def on_progress(self, progress: float) -> None:
        self._progress = progress
        p = self._trained_share()
        self._trained_phase = _phase_of(p)
        self.of_gradient.fill_(-p * self.inner_lr)
        self.of_update.fill_(
            (1 - p) / (1 if self.repeat_delta == "each-step" else self.inner_steps)
        )

    @property
    def settled(self) -> bool:
        """The warm-up is over, or is the method: the gradient steps of `warmup: 1`."""
        return self._trained_share() == 0 or self.warmup == 1

    def describe(self) -> dict[str, float]:
        """The share p of gradient steps in evaluation, and in the last training step."""
        return {
            "gradient_share": self._evaluated_share(),
            "gradient_share_trained": self._trained_share(),
        }

    def get_extra_state(self) -> Tensor:
        """The progress, so that a checkpoint is evaluated with the p that it was trained with."""
        return torch.tensor(self._progress, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        if float(state) != self._progress:
            self.on_progress(float(state))

    def extra_repr(self) -> str:
        method = f"labels={self.labels}, operator={self.operator}"
        return f"{method}, warmup={self.warmup:g}, switch={self.switch:g}"

    def _trained_share(self) -> float:
        return gradient_share(self._progress, self.warmup, self.switch)

    def _evaluated_share(self) -> float:
        return 0.0 if self.evaluate_with == "hypernetwork" else self._trained_share()

    def _phase(self) -> Phase:
        trained = self.training or self.evaluate_with == "current"
        return self._trained_phase if trained else "hypernetwork"

    def _adapted(self, features: Tensor, y: Tensor) -> tuple[list[Head], Head | None]:
        """The head before, between and after its steps, and H's output.

        None instead of H's output if gradient steps alone make the update.
        """
        head = Head(self.head.weight, self.head.bias)
        phase = self._phase()
        update = None if phase == "gradient" else self.hypernetwork(self._rows(head, features, y))
        displacement = None if update is None else self._displacement(head, update)
        if phase == "hypernetwork" and displacement is not None:
            return [head, _sum(head, displacement)], update
        known = fsl.LabelledSet(features, y)
        problem = self._descent(lambda outer, x: x, known, head, {}, displacement)
        if self.gradient_target == "universal" and not self.first_order:
            # With constant gradients it makes no difference which head they are taken at.
            steps = steps_from_start(
                lambda phi: problem.loss(phi, {}),
                problem.start,
                problem.steps,
                lambda phi, gradient: problem.step(phi, gradient, 0, {}),
            )
        else:
            steps = [point.phi for point in problem.points(order=1 if self.first_order else 2)]
        return [Head(**phi) for phi in steps], update

    def _descent(
        self,
        features: Callable[[Weights, Tensor], Tensor],
        support: fsl.LabelledSet,
        head: Head,
        outer: Weights,
        displacement: Head | None,
    ) -> fsl.InnerProblem:
        """The gradient steps of the head, each with its part of H's update.

        features: (outer, items) -> (n, feature_dim).
        """

        def predict(phi: Weights, outer: Weights, x: Tensor) -> Tensor:
            return Head(**phi).logits(features(outer, x))

        def step(phi: Weights, gradient: Weights, k: int, outer: Weights) -> Weights:
            if displacement is None:
                return _sum(Head(**phi), Head(**gradient), -self.inner_lr)._asdict()
            fast = _sum(Head(**phi), Head(**gradient), self.of_gradient)
            return _sum(fast, displacement, self.of_update)._asdict()

        return fsl.InnerProblem(
            start=head._asdict(),
            outer=outer,
            steps=self.inner_steps,
            loss=lambda phi, outer: self.task.loss(predict(phi, outer, support.x), support.y),
            step=step,
            predict=predict,
        )

    def _displacement(self, head: Head, update: Head) -> Head:
        """By how much H alone would move the head."""
        if self.operator == "multiply":
            return Head(*(old * factor - old for old, factor in zip(head, update, strict=True)))
        return update if self.operator == "plus" else Head(-update.weight, -update.bias)

    def _width(self) -> int:
        """Length of the row that H sees of a class."""
        n_way = self.task.n_way
        added = n_way + (n_way if self.labels == "one-hot" else 1) if self.enhance else 0
        shots = self.task.n_shot if self.aggregation == "concat" else 1
        return (self.head.in_features + added) * shots

    def _rows(self, head: Head, features: Tensor, y: Tensor) -> Tensor:
        """(n_way * n_shot, feature_dim) -> (n_way, width): what H sees of each class."""
        own_class = fsl.one_hot(y, self.task.n_way).to(features)
        if self.enhance:
            seen_by = head if self.vectorizable else Head(self.previous_weight, self.previous_bias)
            predictions = seen_by.logits(features).softmax(-1)
            predictions = predictions if self.detached == "none" else predictions.detach()
            labels = own_class if self.labels == "one-hot" else y[:, None].to(features)
            features = torch.cat([features, predictions, labels], dim=1)
        if self.detached == "input":
            features = features.detach()
        if self.aggregation == "mean":
            return (own_class / own_class.sum(0)).T @ features
        if len(features) != self.task.n_way * self.task.n_shot:
            raise fsl.ShapeError(
                f"hypermaml: aggregation 'concat': {len(features)} support items. "
                f"{self.task.n_way} x {self.task.n_shot} as in training, or aggregation 'mean', "
                "which takes any number"
            )
        return features.reshape(self.task.n_way, -1)

    @torch.no_grad()
    def _remember(self, head: Head) -> None:
        self.previous_weight.copy_(head.weight)
        self.previous_bias.copy_(head.bias)


def _phase_of(p: float) -> Phase:
    return "gradient" if p == 1 else "hypernetwork" if p == 0 else "both"


def _sum(head: Head, step: Head, factor: float | Tensor = 1.0) -> Head:
    return Head(head.weight + factor * step.weight, head.bias + factor * step.bias)


def _predictor(backbone: nn.Module, head: Head) -> fsl.Predictor:
    return lambda x: head.logits(backbone(x))


def _check_together(
    task: fsl.TaskShape,
    enhance: bool,
    predictions: Predictions,
    evaluate_with: EvaluateWith,
    warmup: float,
    switch: float,
) -> None:
    """Raise ValueError for options that do not go together."""
    fault = ""
    if task.kind != "classification":
        fault = f"a {task.kind} task. Classification: H sees one row for each class"
    elif warmup + switch > 1:
        fault = f"warmup + switch: {warmup} + {switch}. At most 1, all of training"
    elif evaluate_with != "current" and warmup + switch >= 1 - ROUNDING:
        fault = (
            f"warmup + switch: {warmup} + {switch}, so training ends inside the warm-up, while "
            "evaluation takes the hypernetwork alone. Below 1, or evaluate_with: current"
        )
    elif predictions == "stale" and not enhance:
        fault = "predictions: 'stale' without enhance, so H sees no predictions. 'universal'"
    if fault:
        raise ValueError(f"hypermaml: {fault}")

"""The adapter `maml`: a few optimizer steps on the support set, differentiated by the outer loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

import fsl_core as fsl
from fsl_maml.norms import StepNorms, norm_names
from fsl_maml.optimizers import (
    InnerOptimizer,
    OptimizerName,
    PlainSgd,
    check_optimizer,
    uses_functional,
)
from fsl_maml.patterns import Adapted, adapted_names
from fsl_maml.rates import InnerRates, RateKind

Weights = dict[str, Tensor]
"""All weights of backbone and head by name, such as `backbone.blocks.0.weight` and `head.bias`."""

SMALLEST_SHARE = (
    0.03  # of 1 / n: what the multi-step loss leaves to the steps before the last (MAML++ code)
)


class Maml(fsl.Adapter):
    """theta_i <- theta_i - inner_lr * grad L_support(theta_i), inner_steps times from theta_i = theta = (backbone, head).

    The head is linear, (n, feature_dim) -> (n, output_dim). In training mode `inner_steps` steps are made, in evaluation
    mode `test_steps`; there the predictor carries no graph. The caller's backbone is only read.
    Weights that require no gradient when the adapter is built are frozen: no step moves them.

    Sources: MAML and its first-order form, Finn et al. 2017, arXiv:1703.03400. ANIL (`adapted:
    head`), Raghu et al. 2020, arXiv:1909.09157. BOIL (`adapted: body`), Oh et al. 2021,
    arXiv:2008.08882. Steps that adapt different layers: after the abstract of Khabarlak 2022,
    arXiv:2206.05930, whose text was not available. Learned rates: see `InnerRates`. MAML++,
    Antoniou et al. 2019, arXiv:1810.09502: multi-step loss, norms that are not adapted
    (`adapt_norms: false`) or have a scale and shift for each step (`norms_per_step`, see
    `StepNorms`). Differs from it: the loss is annealed at every outer step, not every epoch; no
    annealing of the derivative's order; the test ensembles no checkpoints. MAML's own code adapts
    no norm either, and its support loss is n_way times the mean that is taken here: a rate there
    acts as n_way times that rate here.
    """

    name = "maml"

    def __init__(
        self,
        task: fsl.TaskShape,
        backbone: nn.Module,
        inner_lr: Annotated[
            float, Field(gt=0, description="inner learning rate, or where learned ones start")
        ] = 0.1,
        inner_steps: Annotated[int, Field(ge=0, description="inner steps in training")] = 5,
        test_steps: Annotated[
            int | None, Field(ge=0, description="inner steps in evaluation; as in training if null")
        ] = None,
        order: Annotated[
            Literal[1, 2],
            Field(
                description="2: exact meta-gradient. 1: without second derivatives (FOMAML), which is faster"
            ),
        ] = 2,
        adapted: Annotated[
            Adapted,
            Field(
                description="what the inner loop adapts: all, head (ANIL), body (BOIL), or shell patterns over parameter names; "
                "a list of lists gives each step its own, steps beyond it use the last"
            ),
        ] = "all",
        adapt_frozen: Annotated[
            bool, Field(description="whether steps also move weights that require no gradient")
        ] = False,
        learn_inner_lr: Annotated[
            RateKind,
            Field(
                description="fixed; or rates trained by the outer loop: scalar, per-parameter (tensor), "
                "per-parameter-and-step (LSLR of MAML++), elementwise (Meta-SGD)"
            ),
        ] = "fixed",
        inner_optimizer: Annotated[
            OptimizerName,
            Field(description="optimizer of the inner loop; all but sgd without options by higher"),
        ] = "sgd",
        inner_optimizer_options: Annotated[
            dict[str, Any] | None,
            Field(
                description="its further options by their torch.optim names, such as momentum: 0.9"
            ),
        ] = None,
        engine: Annotated[
            Literal["auto", "functional", "higher"],
            Field(
                description="functional: plain SGD steps by torch.func, which a meta-batch can share; higher: any optimizer, "
                "one task at a time; auto: functional for sgd without options"
            ),
        ] = "auto",
        clip_inner_grad: Annotated[
            float | None,
            Field(
                gt=0, description="greatest Euclidean norm of the inner gradient; null: not clipped"
            ),
        ] = None,
        multi_step_loss: Annotated[
            float | None,
            Field(
                gt=0,
                le=1,
                description="share of training in which the query loss counts after every step (MSL of MAML++)",
            ),
        ] = None,
        adapt_norms: Annotated[
            bool,
            Field(
                description="whether `adapted` may name scales and shifts of norm layers; "
                "false: as MAML's code and MAML++"
            ),
        ] = True,
        norms_per_step: Annotated[
            bool,
            Field(
                description="each inner step has scales and shifts of its own, trained by the "
                "outer loop (MAML++); needs adapt_norms: false"
            ),
        ] = False,
    ):
        super().__init__()
        test_steps = inner_steps if test_steps is None else test_steps
        options = inner_optimizer_options or {}
        _require(inner_lr > 0, f"inner_lr: {inner_lr}. A number above 0")
        _require(
            min(inner_steps, test_steps) >= 0,
            f"inner_steps, test_steps: {inner_steps}, {test_steps}. Whole numbers from 0",
        )
        _require(order in (1, 2), f"order: {order}. 1 or 2")
        _require(
            clip_inner_grad is None or clip_inner_grad > 0,
            f"clip_inner_grad: {clip_inner_grad}. A number above 0, or null",
        )
        _require(
            multi_step_loss is None or 0 < multi_step_loss <= 1,
            f"multi_step_loss: {multi_step_loss}. In (0, 1], or null",
        )
        _require(
            learn_inner_lr in get_args(RateKind),
            f"learn_inner_lr: {learn_inner_lr!r}. One of {', '.join(get_args(RateKind))}",
        )
        _require(
            not (norms_per_step and adapt_norms),
            "norms_per_step: true with adapt_norms: true, which would move what belongs to one "
            "step. adapt_norms: false",
        )
        check_optimizer(inner_optimizer, options, learned_rate=learn_inner_lr != "fixed")

        self.task, self.order = task, order
        self.inner_steps, self.test_steps = inner_steps, test_steps
        self.clip_inner_grad, self.multi_step_loss = clip_inner_grad, multi_step_loss
        self.head = nn.Linear(backbone.feature_dim, task.output_dim)
        weights = self._weights(backbone)
        frozen = {name for name, w in weights.items() if not (w.requires_grad or adapt_frozen)}
        norms = list(norm_names(backbone))
        named = [name for name in weights if adapt_norms or name not in norms]
        self.schedule = adapted_names(adapted, named, max(inner_steps, test_steps), frozen)
        self.fast_names = [
            name for name in weights if any(name in names for names in self.schedule)
        ]
        self.inner_lr = InnerRates(
            learn_inner_lr, inner_lr, [weights[name] for name in self.fast_names], inner_steps
        )
        self.step_norms = (
            StepNorms({name: weights[name] for name in norms}, inner_steps)
            if norms_per_step
            else None
        )
        groups = 1 if self.inner_lr.one_for_all else len(self.fast_names)
        self.vectorizable = uses_functional(engine, inner_optimizer, options, backbone)
        self.optimizer = (
            PlainSgd(inner_lr)
            if self.vectorizable
            else InnerOptimizer(inner_optimizer, inner_lr, options, len(self.fast_names), groups)
        )
        self._progress = 0.0

    def adapt(self, backbone: nn.Module, support: fsl.LabelledSet) -> fsl.Predictor:
        return deque(self._unroll(backbone, support), maxlen=1).pop()

    def trajectory(self, backbone: nn.Module, support: fsl.LabelledSet) -> list[fsl.Predictor]:
        return list(self._unroll(backbone, support))

    def objective(
        self, backbone: nn.Module, episode: fsl.Episode, loss: fsl.Loss
    ) -> tuple[Tensor, Tensor]:
        """The query loss after the last step; with `multi_step_loss`, while it lasts, a mean over all steps."""
        shares = self._loss_shares()
        if shares is None:
            return super().objective(backbone, episode, loss)
        predictions = [
            predict(episode.query.x) for predict in self.trajectory(backbone, episode.support)[1:]
        ]
        losses = torch.stack([loss(prediction, episode.query.y) for prediction in predictions])
        return losses @ losses.new_tensor(shares), predictions[-1]

    def on_progress(self, progress: float) -> None:
        self._progress = progress

    def _loss_shares(self) -> list[float] | None:
        """Weights of the query losses after each step, or None if only the last one counts."""
        steps = self.inner_steps
        if (
            self.multi_step_loss is None
            or not self.training
            or steps < 2
            or self._progress >= self.multi_step_loss
        ):
            return None
        early = max(1 - self._progress / self.multi_step_loss, SMALLEST_SHARE) / steps
        return [early] * (steps - 1) + [1 - early * (steps - 1)]

    def _weights(self, backbone: nn.Module) -> Weights:
        own = {f"head.{name}": weight for name, weight in self.head.named_parameters()}
        return {f"backbone.{name}": weight for name, weight in backbone.named_parameters()} | own

    def _unroll(self, backbone: nn.Module, support: fsl.LabelledSet) -> Iterator[fsl.Predictor]:
        """Predictors before the first and after each inner step.

        Features of the support set are computed once for as long as the steps adapt the head alone
        and see one norm.
        """
        tracked = self.training and torch.is_grad_enabled()
        second = tracked and self.order == 2
        net, optimizer = _Net(backbone), self.optimizer.start(tracked)
        weights = self._initial(backbone, tracked) | self._norms_of(0, tracked)
        features = None
        yield net.predictor(weights)
        for step in range(self.inner_steps if self.training else self.test_steps):
            names = self.schedule[min(step, len(self.schedule) - 1)]
            moves_body = names[0].startswith("backbone.")  # those of the backbone come first
            weights = weights | self._norms_of(step, tracked)
            source = weights if second else _cut(weights)
            if not moves_body and features is None:
                features = net.features(source, support.x, keep=second)

            def support_loss(
                weights: Weights, known: Tensor | None = None if moves_body else features
            ) -> Tensor:
                found = net.features(weights, support.x, keep=second) if known is None else known
                return self.task.loss(net.head(weights, found), support.y)

            gradients = self._gradients(support_loss, source, names, create_graph=second)
            with torch.set_grad_enabled(tracked):
                weights = self._update(optimizer, weights, gradients, step)
            features = None if moves_body or self.step_norms is not None else features
            yield net.predictor(weights)

    def _norms_of(self, step: int, tracked: bool) -> Weights:
        """Scales and shifts that belong to one step; none where all steps share them."""
        if self.step_norms is None:
            return {}
        return self.step_norms.at(step) if tracked else _cut(self.step_norms.at(step))

    def _initial(self, backbone: nn.Module, tracked: bool) -> Weights:
        """The meta-parameters as the first fast weights; frozen ones that are moved become leaves."""
        weights = self._weights(backbone)
        if not tracked:
            return _cut(weights)
        if self.vectorizable:
            return weights
        frozen = {
            name: weights[name].detach().requires_grad_()
            for name in self.fast_names
            if not weights[name].requires_grad
        }
        return weights | frozen

    def _gradients(
        self,
        support_loss: Callable[[Weights], Tensor],
        weights: Weights,
        names: tuple[str, ...],
        create_graph: bool,
    ) -> Weights:
        """The support loss differentiated by the weights of `names`, each as a node of its own.

        A weight that no step has moved yet is an ancestor of those that were moved; its gradient must not go through them.
        """
        if self.vectorizable:
            moved = {name: weights[name] for name in names}
            by_name = torch.func.grad(lambda moved: support_loss(weights | moved))(moved)
            gradients = [
                by_name[name] if create_graph else by_name[name].detach() for name in names
            ]
        else:
            with torch.enable_grad():
                source = _branched(weights, names) if create_graph else _cut(weights, names)
                nodes = [source[name] for name in names]
                gradients = torch.autograd.grad(
                    support_loss(source), nodes, create_graph=create_graph, allow_unused=True
                )
        if self.clip_inner_grad is not None:
            gradients = _clipped(gradients, self.clip_inner_grad)
        return dict(zip(names, gradients, strict=True))

    def _update(self, optimizer, weights: Weights, gradients: Weights, step: int) -> Weights:
        fast_params = [weights[name] for name in self.fast_names]
        updated = optimizer.update(
            fast_params, [gradients.get(name) for name in self.fast_names], self.inner_lr.at(step)
        )
        if not torch.is_grad_enabled():
            updated = [weight.detach() for weight in updated]
        return weights | dict(zip(self.fast_names, updated, strict=True))


class _Net:
    """Backbone and head as functions of named weights. Buffers are copied, so that no call changes the module."""

    def __init__(self, backbone: nn.Module):
        self.backbone = backbone
        self.buffers = {name: buffer.clone() for name, buffer in backbone.named_buffers()}

    def features(self, weights: Weights, x: Tensor, keep: bool = False) -> Tensor:
        own = {
            name.removeprefix("backbone."): weight
            for name, weight in weights.items()
            if name.startswith("backbone.")
        }
        return fsl.call_with(self.backbone, own | self.buffers, x, keep=keep)

    def head(self, weights: Weights, features: Tensor) -> Tensor:
        return F.linear(features, weights["head.weight"], weights["head.bias"])

    def predictor(self, weights: Weights) -> fsl.Predictor:
        return lambda x: self.head(weights, self.features(weights, x))


def _cut(weights: Weights, names: tuple[str, ...] = ()) -> Weights:
    """The same values without a graph; those of `names` are leaves that can be differentiated."""
    cut = {name: weight.detach() for name, weight in weights.items()}
    for name in names:
        cut[name].requires_grad_()
    return cut


def _branched(weights: Weights, names: tuple[str, ...]) -> Weights:
    """The same values and graph, with those of `names` as nodes of their own."""
    return weights | {name: weights[name].view_as(weights[name]) for name in names}


def _clipped(gradients: tuple[Tensor | None, ...], limit: float) -> list[Tensor | None]:
    """gradient * min(1, limit / norm over all tensors); differentiable, also at zero."""
    squares = torch.stack(
        [gradient.square().sum() for gradient in gradients if gradient is not None]
    ).sum()
    scale = limit * squares.clamp(min=limit**2).rsqrt()
    return [None if gradient is None else gradient * scale for gradient in gradients]


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)

"""learn2learn's gradient-based algorithms as adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Literal, Protocol, cast

import torch
from pydantic import Field
from torch import Tensor, nn

import fsl_core as fsl
from fsl_learn2learn.library import learn2learn

InnerLr = Annotated[
    float, Field(gt=0, description="inner learning rate, or where learned ones start")
]
InnerSteps = Annotated[int, Field(ge=0, description="inner steps in training")]
TestSteps = Annotated[
    int | None, Field(ge=0, description="inner steps in evaluation; as in training if null")
]
Order = Annotated[
    Literal[1, 2], Field(description="2: exact meta-gradient. 1: learn2learn's first_order")
]
Transform = Literal["meta-curvature", "kronecker", "scale"]


class InnerLearner(Protocol):
    """What is used of an object of learn2learn, a module that adapts. The package has no types."""

    module: nn.Module

    def __call__(self, x: Tensor) -> Tensor: ...
    def clone(self) -> InnerLearner: ...
    def adapt(self, loss: Tensor, first_order: bool) -> None: ...
    def modules(self) -> Iterator[nn.Module]: ...


class GradientAdapter(fsl.Adapter):
    """`inner_steps` calls of learn2learn's `adapt(loss)` on a `clone()` of backbone and head.

    A subclass says which object of learn2learn is cloned. Its clones share the buffers of the
    module they are taken from; here they get copies, so that no episode leaves a trace. In
    evaluation mode `test_steps` steps are made, and no graph is kept. Weights that require no
    gradient stay as they are.

    learn2learn replaces the tensors of a module in place, which torch.func.vmap cannot follow: one
    task at a time.
    """

    vectorizable = False
    unequal_shots = True

    def __init__(
        self,
        task: fsl.TaskShape,
        backbone: nn.Module,
        inner_steps: int,
        test_steps: int | None,
        order: Literal[1, 2],
    ):
        super().__init__()
        test_steps = inner_steps if test_steps is None else test_steps
        learn2learn()
        self.task, self.order = task, order
        self.inner_steps, self.test_steps = inner_steps, test_steps
        feature_dim = cast("int", backbone.feature_dim)  # nn.Module promises no attributes
        self.head = nn.Linear(feature_dim, task.output_dim)

    def learner(self, net: nn.Module) -> InnerLearner:
        """learn2learn's object around `net`, with `clone()` and `adapt(loss, first_order=...)`."""
        raise NotImplementedError(
            f"{type(self).__name__}.learner: not written. An algorithm of learn2learn around the "
            "module"
        )

    def net(self, backbone: nn.Module) -> tuple[nn.Module, nn.Module]:
        """What stays as it is and what is adapted; an item goes through one, then the other."""
        return nn.Identity(), nn.Sequential(backbone, self.head)

    def support_loss(self, learner: InnerLearner, x: Tensor, y: Tensor) -> Tensor:
        return self.task.loss(learner(x), y)

    def adapt(self, backbone: nn.Module, support: fsl.LabelledSet) -> fsl.Predictor:
        *_, (fixed, learner) = self._unroll(backbone, support)
        return _predictor(fixed, learner)

    def trajectory(  # type: ignore[override]  # core passes what a method declares
        self, backbone: nn.Module, support: fsl.LabelledSet
    ) -> list[fsl.Predictor]:
        steps = self._unroll(backbone, support)
        return [_predictor(fixed, _copy(learner)) for fixed, learner in steps]

    def unrolled_only(self) -> str:
        return "learn2learn takes the inner steps, and differentiates them itself"

    def _unroll(
        self, backbone: nn.Module, support: fsl.LabelledSet
    ) -> Iterator[tuple[nn.Module, InnerLearner]]:
        """The fixed part and learn2learn's clone, which is the same object after each step."""
        tracked = self.training and torch.is_grad_enabled()
        fixed, net = self.net(backbone)
        x = fixed(support.x)
        with torch.enable_grad():
            learner = _with_own_buffers(_without_frozen(self.learner(net).clone()))
        if not tracked:
            x = x.detach()
            _detach(learner)
        yield fixed, learner
        for _ in range(self.inner_steps if self.training else self.test_steps):
            with torch.enable_grad():
                loss = self.support_loss(learner, x, support.y)
                learner.adapt(loss, first_order=self._cheaper(tracked))
            if not tracked:
                _detach(learner)
            yield fixed, learner

    def _cheaper(self, tracked: bool) -> bool:
        """Whether learn2learn may take first-order steps.

        The updated weights are the same either way. Without a meta-gradient nobody needs a second
        derivative.
        """
        return self.order == 1 or not tracked


@fsl.validated
class L2lMaml(GradientAdapter):
    """learn2learn's MAML: theta_i <- theta_i - inner_lr * grad L_support(theta_i).

    For backbone and head. Parameters that do not require a gradient, or get none, stay as they are
    (its allow_nograd and allow_unused).
    Source: Finn et al. 2017, arXiv:1703.03400, as `learn2learn.algorithms.MAML`.
    """

    name = "l2l-maml"

    def __init__(
        self,
        task: fsl.TaskShape,
        backbone: nn.Module,
        inner_lr: InnerLr = 0.1,
        inner_steps: InnerSteps = 5,
        test_steps: TestSteps = None,
        order: Order = 2,
    ):
        super().__init__(task, backbone, inner_steps, test_steps, order)
        self.inner_lr = inner_lr

    def learner(self, net: nn.Module) -> InnerLearner:
        return learn2learn().algorithms.MAML(
            net, self.inner_lr, self.order == 1, allow_unused=True, allow_nograd=True
        )


class L2lAnil(L2lMaml):
    """learn2learn's ANIL: the steps of MAML for the head alone, on features computed once.

    Source: Raghu et al. 2020, arXiv:1909.09157, as in `learn2learn.algorithms.LightningANIL`.
    Differs: there one call of the backbone computes the features of support and queries together,
    here each is computed by itself; this matters if the backbone normalises by its batch.
    """

    name = "l2l-anil"

    def net(self, backbone: nn.Module) -> tuple[nn.Module, nn.Module]:
        return backbone, self.head


@fsl.validated
class L2lMetaSgd(GradientAdapter):
    """learn2learn's Meta-SGD: steps of MAML with a learned rate for each weight.

    The weights are those of backbone and head; all rates start at `inner_lr`.
    Source: Li et al. 2017, arXiv:1707.09835, as `learn2learn.algorithms.MetaSGD`.
    """

    name = "l2l-metasgd"

    def __init__(
        self,
        task: fsl.TaskShape,
        backbone: nn.Module,
        inner_lr: InnerLr = 0.1,
        inner_steps: InnerSteps = 1,
        test_steps: TestSteps = None,
        order: Order = 2,
    ):
        super().__init__(task, backbone, inner_steps, test_steps, order)
        weights = _trained(backbone, self.head)
        self.rates = nn.ParameterList([torch.full_like(weight, inner_lr) for weight in weights])

    def learner(self, net: nn.Module) -> InnerLearner:
        return learn2learn().algorithms.MetaSGD(net, first_order=self.order == 1, lrs=self.rates)

    def support_loss(self, learner: InnerLearner, x: Tensor, y: Tensor) -> Tensor:
        """The loss, with every weight in its graph.

        learn2learn's MetaSGD stops at a weight without a gradient, such as a bias before a
        normalisation. A sum of all weights times zero gives each of them one, which is zero.
        """
        every_weight = sum(weight.sum() for weight in learner.module.parameters())
        return super().support_loss(learner, x, y) + 0 * every_weight


@fsl.validated
class L2lGbml(GradientAdapter):
    """learn2learn's GBML: theta_i <- theta_i - inner_lr * T(grad L_support(theta_i)).

    T is a learned map, one for each weight tensor.

    transform meta-curvature: Park and Oliva 2019, arXiv:1902.03356; one matrix for each axis of a
    weight, from the identity.
    transform kronecker: Arnold et al. 2019, arXiv:1910.13603 (KFO); two factors, A^T A each, from
    the identity.
    transform scale: one factor for each weight, as Meta-SGD with inner_lr in front.
    adapt_transform: T itself takes gradient steps of `inner_lr` in the inner loop, from the second
    one on (Alpha-MAML, Behl et al. 2019, arXiv:1905.07435, where the transform is `scale`).
    Weights of one, two or four axes: biases, linear layers, two-dimensional convolutions.
    """

    name = "l2l-gbml"

    def __init__(
        self,
        task: fsl.TaskShape,
        backbone: nn.Module,
        transform: Annotated[
            Transform, Field(description="the learned map from gradients to updates")
        ] = "kronecker",
        adapt_transform: Annotated[
            bool, Field(description="the inner loop adapts the map, too; needs order 2")
        ] = False,
        inner_lr: InnerLr = 0.1,
        inner_steps: InnerSteps = 1,
        test_steps: TestSteps = None,
        order: Order = 2,
    ):
        super().__init__(task, backbone, inner_steps, test_steps, order)
        if adapt_transform and order == 1:
            raise ValueError(
                "adapt_transform: true with order: 1, which learn2learn cannot. order: 2"
            )
        self.inner_lr, self.adapt_transform = inner_lr, adapt_transform
        weights = _trained(backbone, self.head)
        for weight in weights:
            if weight.dim() not in (1, 2, 4):
                raise ValueError(
                    f"{self.name}: a weight of shape {tuple(weight.shape)}. One, two or four axes"
                )
        self.update = learn2learn().optim.ParameterUpdate(weights, _transforms(transform))

    def learner(self, net: nn.Module) -> InnerLearner:
        return learn2learn().algorithms.GBML(
            net,
            transform=None,
            lr=self.inner_lr,
            adapt_transform=self.adapt_transform,
            first_order=self.order == 1,
            allow_unused=True,
            allow_nograd=True,
            compute_update=self.update,
        )

    def _cheaper(self, tracked: bool) -> bool:
        # A map that is adapted differentiates one loss twice, and needs the graph of the first.
        return super()._cheaper(tracked) and not self.adapt_transform


@fsl.validated
class L2lMetaCurvature(L2lGbml):
    """learn2learn's Meta-Curvature: `l2l-gbml` with transform meta-curvature.

    Source: Park and Oliva 2019, arXiv:1902.03356.
    """

    name = "l2l-metacurvature"

    def __init__(
        self,
        task: fsl.TaskShape,
        backbone: nn.Module,
        inner_lr: InnerLr = 0.1,
        inner_steps: InnerSteps = 1,
        test_steps: TestSteps = None,
        order: Order = 2,
    ):
        super().__init__(
            task,
            backbone,
            "meta-curvature",
            inner_lr=inner_lr,
            inner_steps=inner_steps,
            test_steps=test_steps,
            order=order,
        )


class _Contiguous(nn.Module):
    """A transform of learn2learn behind a copy in row-major order, which its views ask for.

    The gradient of a convolution may come in another order.
    """

    def __init__(self, transform: nn.Module):
        super().__init__()
        self.transform = transform

    def forward(self, gradient: Tensor) -> Tensor:
        return self.transform(gradient.contiguous())


def _transforms(name: Transform) -> Callable[[Tensor], nn.Module]:
    """Makes the module for a weight, as learn2learn's ParameterUpdate asks for it."""
    l2l = learn2learn()
    kinds = {
        "meta-curvature": l2l.optim.MetaCurvatureTransform,
        "kronecker": l2l.optim.KroneckerTransform(l2l.nn.KroneckerLinear),
        "scale": lambda weight: l2l.nn.Scale(tuple(weight.shape)),
    }
    return lambda weight: _Contiguous(kinds[name](weight))


def _predictor(fixed: nn.Module, learner: InnerLearner) -> fsl.Predictor:
    return lambda x: learner(fixed(x))


def _copy(learner: InnerLearner) -> InnerLearner:
    """The same weights in modules of their own, which later steps do not change."""
    return _with_own_buffers(learn2learn().clone_module(learner))


def _trained(*modules: nn.Module) -> list[nn.Parameter]:
    return [p for module in modules for p in module.parameters() if p.requires_grad]


def _without_frozen(learner: InnerLearner) -> InnerLearner:
    """With frozen weights as buffers.

    learn2learn's algorithms adapt all that `parameters()` lists, whether it is trained or not.
    """
    for module in learner.modules():
        for name, weight in [*module._parameters.items()]:
            if weight is not None and not weight.requires_grad:
                del module._parameters[name]
                module._buffers[name] = weight
    return learner


def _with_own_buffers(learner: InnerLearner) -> InnerLearner:
    """With copies of its buffers, in tables of its own: clones share both with their module."""
    for module in learner.modules():
        buffers = module._buffers.items()
        module._buffers = {name: None if b is None else b.clone() for name, b in buffers}
    return learner


def _detach(learner: InnerLearner) -> None:
    """Cut the graph behind every weight and every learned rate."""
    learn2learn().detach_module(learner, keep_requires_grad=True)
    attributes = vars(learner)
    rates = attributes.get("lrs")
    if isinstance(rates, list):  # of a clone of MetaSGD: plain tensors
        attributes["lrs"] = [rate.detach() for rate in rates]

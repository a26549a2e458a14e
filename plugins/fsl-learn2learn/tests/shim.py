"""learn2learn's interface, `clone()` and `adapt(loss)`, over the adapter `maml`, so that tests of
the one judge the other.

`adapt` is given a loss, the value of a computation that is over, where the adapter wants a function
of the weights. Outputs and parameters of a clone are therefore tensors that remember how they were
computed, and the loss is computed again from other weights. The adapter gets it through a backbone
whose features are that loss, or else all of its weights in one column.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.func import functional_call

import fsl_core as fsl
from fsl_core.hooks.loader import load

Weights = dict[str, Tensor]
LOSS, WEIGHTS = torch.tensor([0.0]), torch.tensor([1.0])
"""What the backbone below is asked for."""


class Remembered(Tensor):
    """A tensor with `again`, which computes it from other weights."""

    again: Callable[[Weights], Tensor]

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        options = options or {}
        with torch._C.DisableTorchFunctionSubclass():
            value = function(*arguments, **options)
        if not isinstance(value, Tensor):
            return value
        return remembered(
            value,
            lambda weights: function(*(_again(part, weights) for part in arguments), **options),
        )


def remembered(value: Tensor, again: Callable[[Weights], Tensor]) -> Remembered:
    with torch._C.DisableTorchFunctionSubclass():
        tensor = value.as_subclass(Remembered)
    tensor.again = again
    return tensor


def _again(part: object, weights: Weights) -> object:
    return part.again(weights) if isinstance(part, Remembered) else part


class _Posed(nn.Module):
    """(1,) -> (n, 1): the loss, or all weights, as features of the adapter's regression task."""

    feature_dim = 1

    def __init__(self, weights: Weights, names: list[str]):
        super().__init__()
        self.names, self.loss = names, None
        self._parameters = {f"w{i}": weights[name] for i, name in enumerate(names)}

    def forward(self, x: Tensor) -> Tensor:
        weights = {name: self._parameters[f"w{i}"] for i, name in enumerate(self.names)}
        if x.item() == LOSS.item():
            return self.loss(weights).reshape(1, 1)
        return torch.cat([weight.flatten() for weight in weights.values()])[:, None]


class _LossItself(fsl.TaskShape):
    def loss(self, prediction: Tensor, y: Tensor) -> Tensor:
        return prediction.sum()


class MAML(nn.Module):
    """`learn2learn.algorithms.MAML` by the adapter `maml`; `adapter_options` are those of the
    recipe."""

    def __init__(
        self,
        model,
        lr,
        first_order=False,
        allow_unused=None,
        allow_nograd=False,
        adapter_options: dict | None = None,
    ):
        super().__init__()
        self.module = model
        self.options = {"inner_lr": lr, "inner_steps": 1, "order": 1 if first_order else 2} | (
            adapter_options or {}
        )
        self.allow_nograd = allow_nograd
        self.adapter, self.adapted = None, None

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)

    def clone(self) -> Clone:
        return Clone(self)

    def start(self, weights: Weights, names: list[str]) -> fsl.Adapter:
        """The adapter for these weights, made once, so that rates it learns are the same for every
        clone."""
        if self.adapted != names:
            backbone, task = _Posed(weights, names), _LossItself("regression", 1, 1, 1, (1,), 1)
            component = load().catalogue.get("adapter", "maml")
            options = component.options(name="maml", adapted="body", **self.options)
            self.adapted = names
            self.adapter = component.build(options, task=task, backbone=backbone).train()
            with torch.no_grad():
                self.adapter.head.weight.fill_(1)
                self.adapter.head.bias.fill_(0)
        return self.adapter


class Clone:
    """The model with weights of its own, which every `adapt` moves by one inner step."""

    def __init__(self, of: MAML):
        self.of, self.model = of, of.module
        self.weights: Weights = {
            name: weight.clone() for name, weight in self.model.named_parameters()
        }

    def __call__(self, x: Tensor) -> Tensor:
        buffers = dict(self.model.named_buffers())
        return remembered(
            self.compute(self.weights | buffers, x),
            lambda weights: self.compute(self.weights | weights | buffers, x),
        )

    def compute(self, tensors: Weights, x: Tensor) -> Tensor:
        return functional_call(self.model, tensors, (x,))

    def parameters(self) -> list[Tensor]:
        frozen = dict(self.weights)
        return [
            remembered(w, lambda weights, name=name: (frozen | weights)[name])
            for name, w in frozen.items()
        ]

    def adapt(self, loss: Remembered, allow_nograd: bool | None = None) -> None:
        trained = [name for name, weight in self.weights.items() if weight.requires_grad]
        if len(trained) < len(self.weights) and not (
            self.of.allow_nograd if allow_nograd is None else allow_nograd
        ):
            raise RuntimeError("a parameter that requires no gradient, and allow_nograd is False")
        adapter = self.of.start(self.weights, trained)
        backbone = _Posed(self.weights, trained)
        backbone.loss = loss.again
        predict = adapter.adapt(backbone, fsl.LabelledSet(LOSS, LOSS))
        moved = predict(WEIGHTS)[:, 0].split([self.weights[name].numel() for name in trained])
        self.weights |= {
            name: new.view_as(self.weights[name]) for name, new in zip(trained, moved, strict=True)
        }


class MetaSGD(MAML):
    """`learn2learn.algorithms.MetaSGD`: a rate for each weight."""

    def __init__(self, model, lr=1.0, first_order=False):
        super().__init__(model, lr, first_order, adapter_options={"learn_inner_lr": "elementwise"})
        weights = dict(model.named_parameters())
        self.start(weights, list(weights))

    @property
    def lrs(self) -> list[Tensor]:
        return list(self.adapter.inner_lr.parameters())

    def parameters(self, recurse: bool = True) -> list[Tensor]:
        return [*self.module.parameters(), *self.lrs]


class GBML(MetaSGD):
    """`learn2learn.algorithms.GBML` where the transform scales each weight's gradient: a rate for
    each weight, with lr within.

    One step, the most that the published tests take, adapts no transform.
    """

    def __init__(
        self,
        module,
        transform,
        lr=1.0,
        adapt_transform=False,
        first_order=False,
        allow_unused=False,
        allow_nograd=False,
    ):
        probe = transform(torch.ones(3))(torch.arange(3.0)[None])
        if not torch.equal(probe.flatten(), torch.arange(3.0)):
            raise NotImplementedError("a transform that does not start as a scale of one")
        MAML.__init__(
            self,
            module,
            lr,
            first_order,
            allow_unused,
            allow_nograd,
            {"learn_inner_lr": "elementwise"},
        )
        weights = {
            name: weight for name, weight in module.named_parameters() if weight.requires_grad
        }
        self.start(weights, list(weights))


algorithms = SimpleNamespace(MAML=MAML, MetaSGD=MetaSGD, GBML=GBML)

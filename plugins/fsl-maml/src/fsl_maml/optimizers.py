"""Inner optimizers: plain steps, and higher's differentiable versions of torch.optim."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

with warnings.catch_warnings():
    # higher compares with `is` and has invalid escapes: both warn when it is compiled.
    warnings.simplefilter("ignore")
    import higher  # type: ignore[import-untyped]  # it has no annotations

OptimizerName = Literal["sgd", "adam", "adamax", "adagrad", "adadelta", "rmsprop", "rprop", "asgd"]

_CLASSES: dict[str, type[torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "rmsprop": torch.optim.RMSprop,
    "rprop": torch.optim.Rprop,
    "asgd": torch.optim.ASGD,
}
# higher reads the rate as a number there, which would cut its gradient.
_FIXED_RATE_ONLY = ("rprop", "asgd")
_NOT_IN_HIGHER = {
    "maximize",
    "foreach",
    "capturable",
    "differentiable",
    "fused",
    "decoupled_weight_decay",
}


class StartedOptimizer(Protocol):
    """An optimizer of one episode."""

    def update(
        self, fast_params: list[Tensor], gradients: list[Tensor | None], rates: list[Tensor] | None
    ) -> list[Tensor]:
        """The updated fast_params; one without a gradient stays as it is.

        rates: one for all, one for each, or None.
        """


class PlainSgd:
    """weight - lr * gradient, without history; works under every transform of torch.func."""

    def __init__(self, lr: float):
        self.lr = lr

    def start(self, tracked: bool) -> StartedOptimizer:
        return self

    def update(
        self, fast_params: list[Tensor], gradients: list[Tensor | None], rates: list[Tensor] | None
    ) -> list[Tensor]:
        of_each: Sequence[float | Tensor] = [self.lr] if rates is None else rates
        if len(of_each) == 1:
            of_each = [of_each[0]] * len(fast_params)
        steps = zip(fast_params, gradients, of_each, strict=True)
        return [
            weight if gradient is None else weight - rate * gradient
            for weight, gradient, rate in steps
        ]


def uses_functional(
    engine: str, optimizer: str, options: dict[str, Any], backbone: nn.Module
) -> bool:
    """Whether inner steps are those of PlainSgd.

    torch.func refuses layers that write running statistics; with these, `auto` is higher.
    Raises ValueError if `functional` is asked for and cannot be.
    """
    writers = {
        type(m).__name__ for m in backbone.modules() if getattr(m, "track_running_stats", False)
    }
    faults = [optimizer] if optimizer != "sgd" else []
    faults += [f"inner_optimizer_options {', '.join(sorted(options))}"] if options else []
    faults += [f"running statistics of {', '.join(sorted(writers))}"] if writers else []
    if engine == "functional" and faults:
        raise ValueError(
            f"engine: functional, with {' and '.join(faults)}. sgd without options, on layers "
            "without running statistics, or engine: higher"
        )
    return engine != "higher" and not faults


class InnerOptimizer:
    """Makes a fresh differentiable optimizer for each episode.

    lr: fixed learning rate, or the one that learned rates replace at every step.
    options: further arguments of the torch.optim class, such as momentum or betas.
    tensors: how many parameter tensors it updates.
    groups:  1, or `tensors` if each has a learned rate.
    """

    def __init__(
        self, name: OptimizerName, lr: float, options: dict[str, Any], tensors: int, groups: int
    ):
        template = _template(name, lr, options, tensors, groups)
        self._started = {tracked: _differentiable(template, tracked) for tracked in (True, False)}

    def start(self, tracked: bool) -> StartedOptimizer:
        """An optimizer without history. tracked: its updates can be differentiated."""
        return _Started(copy.deepcopy(self._started[tracked]))


class _Started:
    def __init__(self, optimizer: higher.optim.DifferentiableOptimizer):
        self.optimizer = optimizer

    def update(
        self, fast_params: list[Tensor], gradients: list[Tensor | None], rates: list[Tensor] | None
    ) -> list[Tensor]:
        """One step with gradients that are already there.

        higher's `step` would differentiate a loss itself. It gets a constant loss and the finished
        gradients, so that the caller decides which tensors are differentiated and whether second
        derivatives are kept.
        """
        constant = torch.zeros((), requires_grad=True)
        override = None if rates is None else {"lr": rates}
        return self.optimizer.step(
            constant, params=fast_params, override=override, grad_callback=lambda _: gradients
        )


def check_optimizer(name: str, options: dict[str, Any], learned_rate: bool) -> None:
    """Raise ValueError for an option or a learned rate that higher cannot differentiate."""
    if learned_rate and name in _FIXED_RATE_ONLY:
        raise ValueError(
            f"learn_inner_lr: higher passes no gradient to the rate of {name!r}. 'fixed', or "
            "another optimizer"
        )
    known = set(inspect.signature(_CLASSES[name]).parameters) - {"params", "lr"} - _NOT_IN_HIGHER
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(
            f"inner_optimizer_options: {name!r} has no {', '.join(unknown)}. "
            f"Known: {', '.join(sorted(known))}"
        )


def _template(
    name: str, lr: float, options: dict[str, Any], tensors: int, groups: int
) -> torch.optim.Optimizer:
    """A torch optimizer over scalars, which only carries settings.

    Histories of tensors take their shapes from gradients.
    """
    scalars = [torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in range(tensors)]
    settings: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in options.items()
    }
    parameters = [{"params": [scalar]} for scalar in scalars] if groups > 1 else scalars
    make: Callable[..., torch.optim.Optimizer] = _CLASSES[name]
    try:
        template = make(parameters, lr=lr, **settings)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"inner_optimizer_options: {error}. "
            f"Values that torch.optim.{_CLASSES[name].__name__} takes"
        ) from error
    for history in template.state.values():
        # Adagrad counts in a float32 tensor, which would round the learning rate.
        history["step"] = 0
    return template


def _differentiable(
    template: torch.optim.Optimizer, tracked: bool
) -> higher.optim.DifferentiableOptimizer:
    scalars = [scalar for group in template.param_groups for scalar in group["params"]]
    with warnings.catch_warnings():
        # higher's notes on RMSprop and Rprop; the README repeats them.
        warnings.simplefilter("ignore")
        return higher.optim.get_diff_optim(template, scalars, track_higher_grads=tracked)

"""What `outer.optimizer.name` and `outer.schedule.name` stand for.

torch is imported when an optimizer is built: a command that only checks a recipe starts faster.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

Rate = Annotated[float, Field(gt=0, description="step size of the outer loop")]
Decay = Annotated[float, Field(ge=0, description="L2 penalty (decoupled for adamw)")]
Betas = Annotated[
    tuple[float, float], Field(description="decay of the running mean and of the running square")
]
Eps = Annotated[float, Field(description="added to the denominator")]
Momentum = Annotated[
    float, Field(ge=0, lt=1, description="share of the last step that is taken again")
]
Schedule = Callable[[int, int], float]
"""(steps done, steps in all) -> factor on the optimizer's step size."""


@cache
def _without_compiler(kind: type[Optimizer]) -> Callable[..., Optimizer]:
    """The same optimizer without torch's wrappers for code that compiles it, which ours never does.

    Its first one imports torch's compiler: a second of every process that trains.
    """
    from torch import no_grad

    wrapped = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    own = {name: inspect.unwrap(getattr(kind, name)) for name in wrapped}
    step = no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), {**own, "step": step, "__doc__": kind.__doc__})


def adam(
    parameters: Iterable[Tensor],
    lr: Rate = 0.001,
    betas: Betas = (0.9, 0.999),
    eps: Eps = 1e-8,
    weight_decay: Decay = 0.0,
) -> Optimizer:
    """Adam (Kingma and Ba 2015, arXiv:1412.6980)."""
    from torch.optim import Adam

    return _without_compiler(Adam)(
        parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay
    )


def adamw(
    parameters: Iterable[Tensor],
    lr: Rate = 0.001,
    betas: Betas = (0.9, 0.999),
    eps: Eps = 1e-8,
    weight_decay: Decay = 0.01,
) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101)."""
    from torch.optim import AdamW

    return _without_compiler(AdamW)(
        parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay
    )


def sgd(
    parameters: Iterable[Tensor],
    lr: Rate = 0.1,
    momentum: Momentum = 0.0,
    nesterov: Annotated[bool, Field(description="momentum looks one step ahead")] = False,
    weight_decay: Decay = 0.0,
    dampening: Annotated[
        float,
        Field(ge=0, le=1, description="share of a gradient, after the first, left out of momentum"),
    ] = 0.0,
) -> Optimizer:
    """Stochastic gradient descent, with (Nesterov) momentum by option."""
    from torch.optim import SGD

    return _without_compiler(SGD)(
        parameters,
        lr=lr,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        dampening=dampening,
    )


def rmsprop(
    parameters: Iterable[Tensor],
    lr: Rate = 0.001,
    alpha: Annotated[float, Field(ge=0, lt=1, description="decay of the running square")] = 0.99,
    momentum: Momentum = 0.0,
    weight_decay: Decay = 0.0,
) -> Optimizer:
    """RMSprop (Hinton's lecture 6e)."""
    from torch.optim import RMSprop

    return _without_compiler(RMSprop)(
        parameters, lr=lr, alpha=alpha, momentum=momentum, weight_decay=weight_decay
    )


def constant() -> Schedule:
    """The step size stays what it is."""
    return lambda step, total: 1.0


def cosine(
    final_factor: Annotated[
        float, Field(ge=0, le=1, description="share of the step size left at the end")
    ] = 0.0,
) -> Schedule:
    """Half a cosine from 1 to final_factor over the run.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983. Differs: no restarts.
    """
    from math import cos, pi

    return lambda step, total: (
        final_factor + (1 - final_factor) * (1 + cos(pi * step / max(1, total))) / 2
    )


def linear(
    final_factor: Annotated[
        float, Field(ge=0, le=1, description="share of the step size left at the end")
    ] = 0.0,
) -> Schedule:
    """A straight line from 1 to final_factor over the run."""
    return lambda step, total: 1 + (final_factor - 1) * step / max(1, total)


def multistep(
    milestones: Annotated[
        list[Annotated[int, Field(ge=0)]],
        Field(description="outer steps at which the step size drops"),
    ],
    gamma: Annotated[float, Field(gt=0, le=1, description="factor at each milestone")] = 0.1,
) -> Schedule:
    """The step size is multiplied by gamma at each milestone."""
    return lambda step, total: gamma ** sum(step >= milestone for milestone in milestones)


OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "adam": adam,
    "adamw": adamw,
    "rmsprop": rmsprop,
    "sgd": sgd,
}
SCHEDULES: dict[str, Callable[..., Any]] = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
    "multistep": multistep,
}

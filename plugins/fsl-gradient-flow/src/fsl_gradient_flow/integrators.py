"""Runge-Kutta of fixed steps, and Dormand-Prince by torchdiffeq."""

from __future__ import annotations

import warnings
from math import ceil

import torch
from torch import Tensor

import fsl_core as fsl
from fsl_gradient_flow.flow import Flow, State, Velocity

LEAST, MOST = 8, 10_000
"""Of steps; more are refused."""
TOLERANCE = 1.4e-8
"""Of Dormand-Prince, relative and absolute: that of the authors' code."""


class StepsWarning(UserWarning):
    """A fixed number of steps was given, and the flow asks for more."""


def rk4(velocity: Velocity, state: State, horizon: Tensor, steps: int) -> State:
    """The classical Runge-Kutta method of order 4, in equal steps."""
    h = horizon / steps

    def at(share: float, slope: State) -> State:
        moved = zip(state, slope, strict=True)
        return velocity(tuple(value + share * h * rate for value, rate in moved))

    for _ in range(steps):
        k1 = velocity(state)
        k2 = at(0.5, k1)
        k3 = at(0.5, k2)
        k4 = at(1.0, k3)
        slopes = zip(state, k1, k2, k3, k4, strict=True)
        state = tuple(y + h / 6 * (a + 2 * b + 2 * c + d) for y, a, b, c, d in slopes)
    return state


def dormand_prince(velocity: Velocity, state: State, horizon: Tensor) -> State:
    """Dormand-Prince 5(4) with steps of its own choice; NaN if the flow is not finite.

    Raises FslError beyond MOST steps.
    """
    # Here, because it imports scipy.integrate, and every command loads this package.
    from torchdiffeq import odeint  # type: ignore[import-untyped]  # it has no annotations

    ends = torch.tensor([0.0, 1.0], dtype=state[0].dtype, device=state[0].device)

    def in_units_of_horizon(_: Tensor, now: State) -> State:
        return tuple(horizon * rate for rate in velocity(now))

    if not all(rate.isfinite().all() for rate in velocity(state)):
        return tuple(torch.full_like(value, torch.nan) for value in state)
    try:
        found = odeint(
            in_units_of_horizon,
            state,
            ends,
            rtol=TOLERANCE,
            atol=TOLERANCE,
            method="dopri5",
            options={"max_num_steps": MOST},
        )
    except AssertionError as error:  # so torchdiffeq ends, with `max_num_steps exceeded`
        raise _too_many(f"more than {MOST:,} steps of Dormand-Prince", horizon) from error
    return tuple(values[-1] for values in found)


def steps_for(flow: Flow, horizon: Tensor) -> int:
    """max(8, ceil(2 horizon steepness)), which reads values. Raises FslError above MOST.

    RK4 is stable up to a step of 2.78 / steepness; these are of at most 0.5 / steepness.
    """
    wanted = (2 * horizon * flow.steepness()).item()
    steps = max(LEAST, ceil(wanted))
    if steps > MOST:
        raise _too_many(f"{steps:,} steps of RK4", horizon)
    return steps


def tell_if_few(steps: int, flow: Flow, horizon: Tensor) -> None:
    """StepsWarning if the rule asks for more steps, where a value can be read."""
    if torch.compiler.is_compiling():
        return
    try:
        flow.gram[0, 0].item()
    except RuntimeError:
        return  # under vmap no value can be read; evaluation, which is not vectorised, tells
    wanted = steps_for(flow, horizon)
    if wanted > max(steps, LEAST):
        warnings.warn(
            f"gradient-flow: steps: {steps}, where horizon {horizon.item():.3g} and the features "
            f"of a task ask for {wanted}. steps: null, or {wanted}",
            StepsWarning,
            stacklevel=3,
        )


def _too_many(found: str, horizon: Tensor) -> fsl.FslError:
    return fsl.FslError(
        f"gradient-flow: {found} to horizon {horizon.item():.3g}. At most {MOST:,}: a shorter "
        "horizon, or features of smaller length"
    )

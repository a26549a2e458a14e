"""Measurements that several contracts share."""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

import fsl_core as fsl
from fsl_core.blame import NO_SUPER, forgot_super
from fsl_core.data.seeding import set_seed
from fsl_core.engine import soundness
from fsl_core.engine.execution import Execution
from fsl_core.engine.fitting import Fitting, as_fitting
from fsl_core.engine.meta_gradient import MetaGradient
from fsl_core.engine.workers import draws_random_numbers
from fsl_core.testing.pretended import NAME as PRETENDED
from fsl_core.testing.pretended import can_be_pretended, pretended_gpu
from fsl_core.testing.randomness import fixed_randomness
from fsl_core.testing.tiny import Uneven, double_precision
from fsl_core.text import first_line

TOLERANCE = 1e-9
"""Of results that may differ in rounding only: float64 rounds at 1e-16, inner loops amplify it."""

SINGLE_TOLERANCE = 1e-2
"""Of float32 against float64: 1e-7, amplified by solves and inner loops."""

SLOPE_TOLERANCE = 1e-6
"""Of central differences."""

SLOPE_STEPS = (1e-5, 1e-6, 1e-4)
"""A large step may cross a kink, a small one loses digits. One of these agrees with the slope."""

DRAWS = "not claimed: it draws random numbers, which each execution draws in an order of its own"
NOT_COMPILED = "not run: --fsl-compiled was not given, because it takes a minute"
NO_CUDA = "not run: no CUDA"
OLD_TORCH = "not run: this torch takes no backend written in Python"


class Contract:
    """What the contracts share: a property is not run if one that it builds upon fails.

    foundations: properties in order; each builds upon those before it, all others upon all of them.
    further: what single properties build upon besides.
    only: for single properties, those of the foundations that they build upon.
    """

    foundations: ClassVar[tuple[str, ...]] = ("claims",)
    further: ClassVar[dict[str, tuple[str, ...]]] = {}
    only: ClassVar[dict[str, tuple[str, ...]]] = {}
    precision: ClassVar[torch.dtype] = torch.float64
    _failing: ClassVar[dict[str, bool]]  # of each class its own, once it has measured one

    @pytest.fixture(autouse=True)
    def _on_sound_ground(self, request: pytest.FixtureRequest) -> Iterator[None]:
        name = getattr(request.node, "originalname", request.node.name).removeprefix("test_")
        for required in self.builds_upon(name):
            if _fails(self, required):
                pytest.skip(f"not run: {required.replace('_', ' ')} failed")
        with double_precision(self.precision):
            yield

    @classmethod
    def builds_upon(cls, name: str) -> tuple[str, ...]:
        """Properties that must hold for this one to say something."""
        if name in cls.foundations:
            return cls.foundations[: cls.foundations.index(name)]
        return cls.only.get(name, cls.foundations) + cls.further.get(name, ())

    def values_of(self, parameter: str) -> Sequence[Any]:
        """The values that a property's parameter takes."""
        raise NotImplementedError(f"{type(self).__name__}: values of {parameter}")


def _fails(contract: Contract, name: str) -> bool:
    """Whether a property fails for any value of its parameters; measured once for each class."""
    known = vars(type(contract)).get("_failing")
    if known is None:
        known = type(contract)._failing = {}
    if name not in known:
        known[name] = _measure(contract, getattr(contract, f"test_{name}"))
    return known[name]


def _measure(contract: Contract, check: Callable[..., None]) -> bool:
    parameters = inspect.signature(check).parameters
    for values in itertools.product(*(contract.values_of(p) for p in parameters)):
        try:
            with double_precision(contract.precision):
                check(*values)
        except pytest.skip.Exception:
            continue
        except Exception:
            return True
    return False


def made(make: Callable[[], Any], kind: type[nn.Module]) -> Any:
    """What `make` returns, a whole module of this kind.

    ValueError and core's errors are let through.
    """
    try:
        module = make()
    except (ValueError, NotImplementedError, fsl.FslError):
        raise
    except Exception as error:
        told = NO_SUPER
        if not forgot_super(error):
            told = f"raised {type(error).__name__}: {first_line(error)}. A constructor that ends"
        raise AssertionError(f"make: {told}") from error
    wrong = soundness.wrong_module(module, kind)
    assert not wrong, f"make: {type(module).__name__}: {wrong}"
    return module


def parametrize(metafunc: pytest.Metafunc, values: dict[str, Any]) -> None:
    """Give a property of a contract the values of the parameters that it names.

    Every contract has `device` and `compiled` besides.
    """

    def told(value: Any) -> str | None:
        return "-".join(value) if isinstance(value, tuple) else None

    for name, choices in values.items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, choices, ids=told)
    if "device" in metafunc.fixturenames:
        absent = pytest.mark.skip(reason=NO_CUDA) if not torch.cuda.is_available() else ()
        old = pytest.mark.skip(reason=OLD_TORCH) if not can_be_pretended() else ()
        metafunc.parametrize(
            "device", [pytest.param("cuda", marks=absent), pytest.param(PRETENDED, marks=old)]
        )
    if "compiled" in metafunc.fixturenames:
        wanted = metafunc.config.getoption("--fsl-compiled", default=False)
        left_out = () if wanted else pytest.mark.skip(reason=NOT_COMPILED)
        metafunc.parametrize(
            "compiled", [pytest.param(True, marks=left_out)], ids=["torch.compile"]
        )


def close(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> bool:
    return soundness.close(found, expected, tolerance)


def seeded(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns after the generator of torch is seeded, always in the same way."""
    set_seed(2)
    return function(*arguments)


def modes(module: nn.Module) -> Iterator[str]:
    """Put a module in training mode and then in evaluation mode; yields the name of the mode."""
    yield "training" if module.train() else ""
    yield "evaluation" if module.eval() else ""


@torch.no_grad()
def leave_zeros(module: nn.Module) -> None:
    """Scale every number a little, which keeps its sign, and make zeros small numbers."""
    for parameter in module.parameters():
        noise = torch.randn_like(parameter)
        scaled = parameter * (1 + 0.05 * noise.tanh())
        parameter.copy_(torch.where(parameter == 0, 0.1 * noise, scaled))


def assert_unchanged(
    before: dict[str, Any], after: dict[str, Any], where: str, remedy: str
) -> None:
    for what, value in before.items():
        assert what in after, (
            f"{where}: {what} is gone afterwards. Modules and parameters stay in place"
        )
        now = after[what]
        same = torch.equal(now, value) if isinstance(value, Tensor) else now == value
        assert same, f"{where}: it changed {what}. {remedy}"
    added = sorted(set(after) - set(before))
    assert not added, (
        f"{where}: it added {', '.join(added)}. Task-specific values live in the predictor alone"
    )


@contextmanager
def watched(layer: nn.Module, seen: list[Tensor]) -> Iterator[None]:
    """Within this context, `seen` gets the weight that each call of the layer computes with."""

    def note(layer: nn.Module, _: Any) -> None:
        # Not get_parameter: a stateless call has put a plain tensor in the parameter's place.
        weight = layer.weight
        assert isinstance(weight, Tensor)
        seen.append(weight.detach().clone())

    handle = layer.register_forward_pre_hook(note)
    try:
        yield
    finally:
        handle.remove()


def through_a_checkpoint(module: nn.Module, fresh: nn.Module, what: str) -> None:
    """Write a module's state as checkpoints do, in safetensors, and load it into a fresh one."""
    state = module.state_dict()
    foreign = sorted(name for name, value in state.items() if not isinstance(value, Tensor))
    assert not foreign, (
        f"checkpoint: {', '.join(foreign)} is not a tensor. Checkpoints hold tensors alone: "
        "no get_extra_state"
    )
    written = {name: t.detach().cpu().contiguous().clone() for name, t in state.items()}
    try:
        fresh.load_state_dict(load(save(written)))
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise AssertionError(
            f"checkpoint: a fresh {what} refuses it: {reason}. The same parameters and buffers at "
            "every construction"
        ) from error


def slopes(value: Callable[[], float], parameter: Tensor, direction: Tensor) -> Iterator[float]:
    """Central differences of a value along a direction of one parameter, one for each step."""
    centre = parameter.detach().clone()
    for step in SLOPE_STEPS:
        values = []
        for move in (step, -step):
            with torch.no_grad():
                parameter.copy_(centre + move * direction)
            values.append(value())
        with torch.no_grad():
            parameter.copy_(centre)
        yield (values[0] - values[1]) / (2 * step)


def wrong_slopes(
    value: Callable[[], float], module: nn.Module, gradients: Mapping[str, Tensor | None]
) -> list[str]:
    """Parameters whose gradient is not the slope of the value, along one direction each."""
    wrong = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        own = torch.Generator().manual_seed(len(name))
        direction = torch.randn(parameter.shape, generator=own, dtype=parameter.dtype)
        direction /= direction.norm()
        gradient = gradients[name]
        if gradient is None:
            gradient = torch.zeros_like(parameter)
        claimed, found = (gradient * direction).sum().item(), []
        for slope in slopes(value, parameter, direction):
            found.append(slope)
            if abs(slope - claimed) <= SLOPE_TOLERANCE * abs(slope) + TOLERANCE:
                break
        else:
            wrong.append(f"{name}: {claimed:.9g} where it moves by {found[0]:.9g}")
    return wrong


def gradients_by_name(
    value: Tensor, trained: Mapping[str, nn.Parameter]
) -> dict[str, Tensor | None]:
    """The gradient of a value to each parameter; None for one that it does not depend on."""
    found = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
    return dict(zip(trained, found, strict=True))


def without_any(gradients: Mapping[str, Tensor | None]) -> set[str]:
    """The names of parameters whose gradient is absent or zero."""
    return {name for name, g in gradients.items() if g is None or not g.count_nonzero()}


def cast(episode: fsl.Episode, to: torch.dtype | str) -> fsl.Episode:
    """An episode in another floating-point type, or on another device."""

    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(to) if isinstance(to, str) or tensor.is_floating_point() else tensor

    (support_x, support_y), (query_x, query_y), ids = episode
    support = fsl.LabelledSet(moved(support_x), moved(support_y))
    query = fsl.LabelledSet(moved(query_x), moved(query_y))
    return fsl.Episode(support, query, moved(ids))


@contextmanager
def on_device(device: str) -> Iterator[None]:
    """Turn what torch says of tensors on two devices into an assertion."""
    try:
        with pretended_gpu() if device == PRETENDED else nullcontext(), warnings.catch_warnings():
            # Of the first product in a thread of gradients, which torch then sets up.
            warnings.filterwarnings("ignore", "Attempting to run cuBLAS", UserWarning)
            yield
    except NotImplementedError as error:
        pytest.skip(f"not run: {first_line(error)}")
    except RuntimeError as error:
        raise AssertionError(
            f"device {device}: {first_line(error)}. New tensors on the device of the data: "
            "torch.zeros(n, device=x.device), x.new_zeros(n), and constants of the constructor in "
            "register_buffer"
        ) from error


def meta_batch(
    learner: fsl.Learner | Fitting,
    loss: Any,
    execution: Execution,
    episodes: fsl.Episode | Sequence[fsl.Group],
    needs: frozenset[str] = frozenset(),
) -> dict[str, Tensor]:
    """A meta-batch by one execution: losses, predictions, one flat gradient of all parameters.

    needs: what the weighting claims to read; if it is not empty, gradients of the tasks as well.
    """
    compute = MetaGradient(learner, Uneven(needs), loss, execution)
    computed = compute(episodes, keep_gradients=bool(needs))
    gradients = []
    for parameter in as_fitting(learner).learner.parameters():
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        gradients.append(found.flatten())
        parameter.grad = None
    results = {
        "losses": computed.losses,
        "predictions": _in_one(computed.predictions),
        "meta-gradient": torch.cat(gradients),
    }
    if computed.gradients is not None:
        results["meta-gradients of the tasks"] = computed.gradients
    return results


def _in_one(predictions: Tensor | tuple[Tensor, ...]) -> Tensor:
    if isinstance(predictions, Tensor):
        return predictions
    return torch.cat([prediction.flatten() for prediction in predictions])


def differences(
    found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = TOLERANCE
) -> list[str]:
    """What two computations of a meta-batch disagree in."""
    return [
        f"{what}: {soundness.apart(found[what], e)}"
        for what, e in expected.items()
        if not close(found[what], e, tolerance)
    ]


@contextmanager
def alike_in_every_execution(
    learner: fsl.Learner, loss: Any, episodes: fsl.Episode
) -> Iterator[None]:
    """Within this context a task draws the same in every execution; skips what draws otherwise."""
    (episode, *_) = episodes.unbatch()

    def draws() -> bool:
        return draws_random_numbers(lambda: learner.objective(episode, loss))

    if not draws():
        yield
        return
    with fixed_randomness():
        if draws():
            pytest.skip(
                "not run: it draws random numbers other than by dropout, rand, randn or bernoulli, "
                "which each execution draws in an order of its own"
            )
        yield


def executions(part: fsl.Adapter | fsl.Learner) -> list[Execution]:
    """Those that an adapter or learner claims to allow, besides the loop.

    The compiled one is left out, because it takes minutes.
    """
    threads = [Execution(workers=2)] if part.threadable else []
    vmap = [Execution("vmap"), Execution("vmap", chunk=2)] if part.vectorizable else []
    return threads + vmap


def assert_equals_the_loop(
    learner: fsl.Learner | Fitting,
    loss: Any,
    episodes: fsl.Episode | Sequence[fsl.Group],
    remedies: Mapping[Execution, str],
) -> None:
    """Losses, predictions and meta-gradients of each execution are those of the loop.

    learner: or the rule that finds the one for each shape of episodes.
    remedies: what to do if they are not, by execution.
    """
    nothing: frozenset[str] = frozenset()
    for needs in (nothing, frozenset({"gradients"})):
        expected = meta_batch(learner, loss, Execution(), episodes, needs)
        for execution, remedy in remedies.items():
            try:
                found = meta_batch(learner, loss, execution, episodes, needs)
            except Exception as error:
                told = f"{execution}: refused: {first_line(error)}. {remedy}"
                raise AssertionError(told) from error
            wrong = "; ".join(differences(found, expected))
            assert not wrong, f"{execution}: not what the loop computes; {wrong}. {remedy}"

from contextlib import contextmanager

import pytest
import torch
from torch import nn

import fsl_core as fsl
from fsl_core.builtin.nearest_centroid import NearestCentroid
from fsl_core.data import features
from fsl_core.nn.arithmetic import _rounding, arithmetic, autocast_type
from fsl_core.testing import tiny_episodes
from fsl_core.training import outer_loop


def state() -> list[object]:
    return [
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.deterministic,
        torch.utils.deterministic.fill_uninitialized_memory,
        *(getattr(part, name) for part, name in _rounding()),
    ]


@pytest.mark.parametrize(("tf32", "rounding"), [(False, "ieee"), (True, "tf32")])
def test_a_gpu_computes_what_the_recipe_says_twice_the_same(tf32: bool, rounding: str):
    before = state()
    with arithmetic(torch.device("cuda"), tf32):
        *fixed_order, filled = state()[:3]
        assert fixed_order == [True, True]
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert not filled
        assert {getattr(part, name) for part, name in _rounding()} <= {rounding, tf32}
    assert state() == before


def with_an_error() -> None:
    with arithmetic(torch.device("cuda")):
        assert not torch.is_deterministic_algorithms_warn_only_enabled()  # as the user has it
        raise ZeroDivisionError


def test_what_the_user_has_set_comes_back_after_an_error():
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(ZeroDivisionError):
            with_an_error()
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_nothing_changes_for_a_cpu():
    before = state()
    with arithmetic(torch.device("cpu"), tf32=True):
        assert state() == before


@pytest.mark.parametrize("what", ["features", "averages"])
def test_a_backbone_is_computed_within_it_outside_of_a_learner_too(
    what: str, monkeypatch: pytest.MonkeyPatch
):
    """There is no GPU in most tests: it is looked at where the backbone is called."""
    within: list[bool] = []

    @contextmanager
    def watched(device: torch.device):
        within.append(True)
        yield
        within.pop()

    class Backbone(nn.Module):
        feature_dim = 2

        def __init__(self) -> None:
            super().__init__()
            self.normalise = fsl.Norm("running", 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert within
            return self.normalise(x.flatten(1))

    task = fsl.TaskShape("classification", 2, 2, 2, (2, 1), 2)
    for room in (features, outer_loop):
        monkeypatch.setattr(room, "arithmetic", watched)
    if what == "features":
        made = features.FrozenBackbone(Backbone(), (2, 1), "float32")
        assert made.embed(torch.rand(3, 2, 1)).shape == (3, 2)
    else:
        learner = fsl.Learner(Backbone(), NearestCentroid(task))
        group = fsl.Group(task, tiny_episodes(task, 2), (0, 1))
        outer_loop.move_running_statistics(learner, [group])
    assert not within


def untraceable(kind: str) -> bool:
    raise AssertionError("the compiler of torch 2.11 stops at torch.amp.is_autocast_available")


@pytest.mark.parametrize(("enabled", "expected"), [(True, torch.bfloat16), (False, None)])
def test_the_type_of_autocast_is_told_inside_what_is_compiled(monkeypatch, enabled, expected):
    monkeypatch.setattr(torch.amp, "is_autocast_available", untraceable)

    @torch.compile(backend="eager", fullgraph=True)
    def as_computed(x: torch.Tensor) -> torch.Tensor:
        return x.to(autocast_type(x.device) or x.dtype)

    with torch.autocast("cpu", torch.bfloat16, enabled):
        assert as_computed(torch.ones(2)).dtype == (expected or torch.float32)


def test_a_device_without_autocast_has_no_type_of_it():
    assert autocast_type(torch.device("meta")) is None

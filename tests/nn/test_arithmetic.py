import pytest
import torch

from fsl_core.nn.arithmetic import _rounding, arithmetic


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

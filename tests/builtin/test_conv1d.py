import pytest
import torch

from fsl_core.builtin.conv1d import Conv1d
from fsl_core.testing import BackboneContract, tiny_task


class TestTransductive(BackboneContract):
    input_shape = (8, 2)

    def make(self, task):
        return Conv1d(task, channels=4, blocks=2, width=3)


class TestWithoutNormalisation(BackboneContract):
    input_shape = (9, 3)

    def make(self, task):
        return Conv1d(task, channels=4, blocks=2, norm="none")


def test_a_shift_in_time_of_a_whole_pooling_moves_nothing_but_the_ends():
    backbone = Conv1d(tiny_task(input_shape=(64, 1)), channels=5, blocks=2, norm="none")
    bump = torch.zeros(1, 64, 1)
    bump[0, 20:30] = torch.randn(10, 1)
    torch.testing.assert_close(backbone(bump), backbone(bump.roll(8, 1)))


@pytest.mark.parametrize("shape", [(4,), (3, 2), (1, 8, 8)])
def test_what_it_refuses(shape):
    with pytest.raises(
        ValueError, match=r"conv1d: items of shape .* \(time, channels\), of 8 steps"
    ):
        Conv1d(tiny_task(input_shape=shape))

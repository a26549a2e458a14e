import torch

from fsl_core.builtin.identity import Identity
from fsl_core.testing import BackboneContract, tiny_task


class TestIdentity(BackboneContract):
    input_shape = (6,)

    def make(self, task):
        return Identity(task)


def test_features_are_the_items():
    x = torch.randn(5, 2, 3)
    backbone = Identity(tiny_task(input_shape=(2, 3)))
    assert torch.equal(backbone(x), x.flatten(1))
    assert backbone.feature_dim == 6

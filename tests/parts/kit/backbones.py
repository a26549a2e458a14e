"""A sound backbone and its faulty twins; FAULTS says which property of the kit shows each."""

import torch
from torch import nn


class Plain(nn.Module):
    """The sound backbone that each faulty one spoils: linear - tanh - linear - tanh, no
    normalisation."""

    def __init__(self, task):
        super().__init__()
        self.feature_dim = 5
        self.first, self.second = nn.Linear(task.input_shape[0], 6), nn.Linear(6, 5)

    def forward(self, x):
        return self.second(self.first(x).tanh()).tanh()


class NoFeatureDim(Plain):
    def __init__(self, task):
        super().__init__(task)
        del self.feature_dim


class NoSuperInABackbone(Plain):
    def __init__(self, task):
        self.feature_dim = 5


class ATuple(Plain):
    def forward(self, x):
        return super().forward(x), x


class OtherInput(Plain):
    def forward(self, x):
        return super().forward(x[:, :3])


class DropoutBesideLayerNorm(Plain):
    def __init__(self, task):
        super().__init__(task)
        self.second = nn.Sequential(nn.LayerNorm(6), nn.Dropout(0.1), nn.Linear(6, 5))


class OtherFeatureDim(Plain):
    def __init__(self, task):
        super().__init__(task)
        self.feature_dim = 6


class OneItemAlone(Plain):
    def forward(self, x):
        return super().forward(x) / (len(x) - 2)


class BatchStatistics(Plain):
    def forward(self, x):
        return super().forward(x - x.mean(0))


class TorchBatchNorm(Plain):
    def __init__(self, task):
        super().__init__(task)
        self.second = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 5))


class TorchLayerNorm(Plain):
    def __init__(self, task):
        super().__init__(task)
        self.second = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 5))


class ClaimsANorm(Plain):
    norm = "transductive"


class CountsCalls(Plain):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * self.calls


class AllTheSame(Plain):
    def forward(self, x):
        return super().forward(x * 0)


class DetachedLayer(Plain):
    def forward(self, x):
        return self.second(self.first(x).tanh().detach()).tanh()


class WrongBackward(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(context, inputs, output):
        context.save_for_backward(*inputs)

    @staticmethod
    def backward(context, gradient):
        return gradient * context.saved_tensors[0].cos() * 1.1


class OnceDifferentiable(WrongBackward):
    @staticmethod
    def backward(context, gradient):
        return gradient * context.saved_tensors[0].detach().cos()


class HalvedGradient(Plain):
    def forward(self, x):
        return WrongBackward.apply(super().forward(x))


class NoSecondDerivative(Plain):
    def forward(self, x):
        return OnceDifferentiable.apply(super().forward(x))


class UnusedLayer(Plain):
    def __init__(self, task):
        super().__init__(task)
        self.third = nn.Linear(2, 2)


class ReadsAValue(Plain):
    def forward(self, x):
        return super().forward(x) * (2 if x.sum() > 0 else 1)


class RandomConstants(Plain):
    def __init__(self, task):
        super().__init__(task)
        self.mixing = torch.randn(5, 5)

    def forward(self, x):
        return super().forward(x) @ self.mixing


class DoubleConstants(Plain):
    def forward(self, x):
        return super().forward(x) * torch.ones(5, dtype=torch.float64)


class CpuConstants(Plain):
    def forward(self, x):
        return super().forward(x) * torch.ones(5)


class AsksTheCompilerToo(Plain):
    def forward(self, x):
        return super().forward(x) * (1.01 if torch.compiler.is_compiling() else 1)


FAULTS = [
    (NoFeatureDim, "claims"),
    (NoSuperInABackbone, "claims"),
    (ATuple, "features_have_their_shape"),
    (OtherInput, "features_have_their_shape"),
    (OtherFeatureDim, "features_have_their_shape"),
    (OneItemAlone, "features_have_their_shape"),
    (BatchStatistics, "items_are_independent"),
    (TorchBatchNorm, "forward_changes_nothing"),
    (TorchLayerNorm, "every_execution_equals_the_loop"),
    (DropoutBesideLayerNorm, "every_execution_equals_the_loop"),
    (ClaimsANorm, "items_are_independent"),
    (CountsCalls, "forward_changes_nothing"),
    (AllTheSame, "features_depend_on_the_items"),
    (DetachedLayer, "gradient_reaches_every_parameter"),
    (HalvedGradient, "gradient_reaches_every_parameter"),
    (NoSecondDerivative, "second_derivatives"),
    (UnusedLayer, "gradient_reaches_every_parameter"),
    (ReadsAValue, "every_execution_equals_the_loop"),
    (RandomConstants, "checkpoint_is_the_whole_state"),
    (DoubleConstants, "single_precision"),
    (CpuConstants, "device"),
    (AsksTheCompilerToo, "compiled_equals_the_loop"),
]

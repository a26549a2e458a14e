"""A plugin of backbones: a sound one, its faulty twins, and norms of every kind."""

from __future__ import annotations

import torch
from torch import nn

import fsl_core as fsl


class Net(nn.Module):
    """The sound backbone that others spoil: (n, 2) -> (n, 4)."""

    name = "net"

    def __init__(self, task: fsl.TaskShape):
        super().__init__()
        self.feature_dim = 4
        self.map = nn.Linear(2, 4)

    def forward(self, x):
        return self.map(x).tanh()


class Embedded(nn.Module):
    """The sound backbone of token ids: (n, length) -> (n, 4)."""

    name = "embedded"

    def __init__(self, task: fsl.TaskShape, vocabulary: int = 20):
        super().__init__()
        self.feature_dim = 4
        self.table = nn.Embedding(vocabulary, 4)

    def forward(self, x):
        return self.table(x).mean(1)


class NoSuper(nn.Module):
    name = "no-super"

    def __init__(self, task: fsl.TaskShape):
        self.map = nn.Linear(2, 4)


class NoSuperEither(nn.Module):
    """Without layers of its own torch says nothing when it is built."""

    name = "no-super-either"

    def __init__(self, task: fsl.TaskShape):
        self.feature_dim = 2

    def forward(self, x):
        return x


class ConstructorRaises(Net):
    name = "constructor-raises"

    def __init__(self, task: fsl.TaskShape):
        super().__init__(task)
        self.width = {}["width"]


class NoModule:
    name = "no-module"

    def __init__(self, task: fsl.TaskShape):
        self.feature_dim = 4


class NoFeatureDim(Net):
    name = "no-feature-dim"

    def __init__(self, task: fsl.TaskShape):
        super().__init__(task)
        del self.feature_dim


class FeatureDimIsText(Net):
    name = "feature-dim-is-text"

    def __init__(self, task: fsl.TaskShape):
        super().__init__(task)
        self.feature_dim = "4"


class WrongFeatureDim(Net):
    name = "wrong-feature-dim"

    def __init__(self, task: fsl.TaskShape):
        super().__init__(task)
        self.feature_dim = 64


class Maps(Net):
    name = "maps"

    def forward(self, x):
        return super().forward(x)[..., None]


class Tuple(Net):
    name = "tuple"

    def forward(self, x):
        return super().forward(x), x


class InPlace(Net):
    name = "in-place"

    def forward(self, x):
        return super().forward(x.sub_(0.5))


class Raises(Net):
    name = "raises"

    def forward(self, x):
        return super().forward(x) / (1 / 0)


class Double(Net):
    name = "double"

    def __init__(self, task: fsl.TaskShape):
        super().__init__(task)
        self.map.double()


class DoubleButCasts(Double):
    name = "double-but-casts"

    def forward(self, x):
        return super().forward(x.double()).float()


class DoubleConstant(Net):
    name = "double-constant"

    def __init__(self, task: fsl.TaskShape):
        super().__init__(task)
        self.mixing = torch.eye(4, dtype=torch.float64)

    def forward(self, x):
        return super().forward(x) @ self.mixing


class Meta(Net):
    name = "meta"

    def __init__(self, task: fsl.TaskShape):
        super().__init__(task)
        self.map = nn.Linear(2, 4, device="meta")


class Lazy(Net):
    name = "lazy"

    def __init__(self, task: fsl.TaskShape):
        super().__init__(task)
        self.map = nn.LazyLinear(4)


class NotFinite(Net):
    name = "not-finite"

    def forward(self, x):
        return (super().forward(x) - 2).log()


class Counts(Net):
    name = "counts"
    calls = 0

    def __init__(self, task: fsl.TaskShape):
        super().__init__(task)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * self.calls


class HiddenAverage(Net):
    """A norm of its own, whose average is neither a buffer nor a parameter."""

    name = "hidden-average"

    def __init__(self, task: fsl.TaskShape):
        super().__init__(task)
        self.average = torch.zeros(4)

    def forward(self, x):
        z = super().forward(x)
        if not self.training:
            return z - 3 * self.average
        self.average = 0.9 * self.average + 0.1 * z.detach().mean(0)
        return z - z.mean(0)


class BatchNorm(Net):
    name = "batch-norm"

    def __init__(self, task: fsl.TaskShape):
        super().__init__(task)
        del self.map
        self.net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Tanh())

    def forward(self, x):
        return self.net(x)


class BatchNormReplaced(BatchNorm):
    name = "batch-norm-replaced"
    policy = "transductive"

    def __init__(self, task: fsl.TaskShape):
        super().__init__(task)
        fsl.replace_norms(self, self.policy)


class BatchNormRunning(BatchNormReplaced):
    name = "batch-norm-running"
    policy = "running"


class BatchNormWithoutStatistics(BatchNorm):
    name = "batch-norm-without-statistics"

    def __init__(self, task: fsl.TaskShape):
        super().__init__(task)
        self.net[1] = nn.BatchNorm1d(4, track_running_stats=False)


class SpectralNorm(BatchNorm):
    name = "spectral-norm"

    def __init__(self, task: fsl.TaskShape):
        super().__init__(task)
        self.net[1] = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))


class Averages(nn.Module):
    """A third party's norm layer, of no class of torch that one could look for."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        if not self.training:
            return x - self.mean
        self.mean.lerp_(x.detach().mean(0), 0.1)
        return x - x.mean(0)


class OwnStatistics(Net):
    name = "own-statistics"

    def __init__(self, task: fsl.TaskShape):
        super().__init__(task)
        self.norm = Averages()

    def forward(self, x):
        return self.norm(super().forward(x))


class Dropout(BatchNorm):
    name = "dropout"

    def __init__(self, task: fsl.TaskShape):
        super().__init__(task)
        self.net[1] = nn.Dropout(0.5)


@fsl.hookimpl
def fsl_register_backbones(register):
    for part in list(globals().values()):
        if isinstance(part, type) and "name" in vars(part):
            register(part)

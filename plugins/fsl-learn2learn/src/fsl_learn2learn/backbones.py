"""learn2learn's feature extractors as backbones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

import fsl_core as fsl
from fsl_learn2learn.library import learn2learn

Norm = Literal["transductive", "support", "running", "group", "none", "batchnorm"]
NormChoice = Annotated[
    Norm,
    Field(
        description="what a layer's mean and variance are taken over; batchnorm: learn2learn's own "
        "layers, the same numbers as transductive, one task at a time"
    ),
]


class L2lBackbone(fsl.NormedBackbone):
    """A feature extractor of learn2learn: its layers and start values.

    Its BatchNorm layers are replaced by `fsl_core.Norm`.

    norm transductive gives the numbers of learn2learn's own layers in training mode, which is how
    its examples of MAML, ANIL and Meta-Curvature run them in evaluation too. norm batchnorm keeps
    those layers and lets them always use the statistics of their batch: running averages would be
    moved inside a task. Their second derivatives are wrong under vmap, so the engine computes one
    task at a time and says so.
    """

    name: ClassVar[str]

    def __init__(self, task: fsl.TaskShape, norm: Norm, make: Callable[[], nn.Module], fits: str):
        """Build it.

        make: builds learn2learn's module, also on torch's meta device.
        fits: what pictures pass through it.
        """
        super().__init__(norm)  # type: ignore[arg-type]  # core names batchnorm, and computes none
        shape = tuple(task.input_shape)
        if len(shape) != 3:
            raise ValueError(
                f"{self.name}: items of shape {shape}. Expected pictures, (channels, height, width)"
            )
        learn2learn()
        try:
            with torch.device("meta"):  # shapes alone, in no time
                self.feature_dim = make()(torch.empty(2, *shape)).flatten(1).shape[1]
        except RuntimeError as error:
            raise ValueError(
                f"{self.name}: pictures of shape {shape} do not pass through it. {fits}"
            ) from error
        self.net = make()
        if norm == "batchnorm":
            _stop_tracking(self.net)
        else:
            fsl.replace_norms(self.net, norm, momentum=0.1)

    def features(self, x: Tensor) -> Tensor:
        return self.net(x)


class L2lCnn4(L2lBackbone):
    """learn2learn's CNN4: `layers` x [3x3 convolution - norm - ReLU - max-pooling].

    The last map is given as one vector: (n, channels, height, width) -> (n, feature_dim); 84x84
    gives 25 * channels features. Weights start by Xavier's rule, scales of the norms uniformly in
    0 .. 1. Each block divides height and width by 2, with 2 layers or 1 by 4 or 8.

    Source: Ravi and Larochelle 2017, "Optimization as a Model for Few-Shot Learning", as
    `learn2learn.vision.models.CNN4`.
    """

    name = "l2l-cnn4"

    def __init__(
        self,
        task: fsl.TaskShape,
        channels: Annotated[
            int, Field(gt=0, description="filters of each block (hidden_size)")
        ] = 64,
        layers: Annotated[int, Field(ge=1, le=4, description="number of blocks")] = 4,
        max_pool: Annotated[
            bool, Field(description="max-pooling, or else convolutions with a stride")
        ] = True,
        norm: NormChoice = "transductive",
    ):
        def make() -> nn.Module:
            models = learn2learn().vision.models
            return models.CNN4Backbone(
                channels, layers, channels=task.input_shape[0], max_pool=max_pool
            )

        super().__init__(task, norm, make, "At least 16x16 pixels, or fewer layers")


class ResNet12(L2lBackbone):
    """learn2learn's ResNet12: four residual blocks of three 3x3 convolutions.

    Each is followed by 2x2 max-pooling. (n, channels, height, width) -> (n, feature_dim); 84x84
    gives 640 features, 16,000 without avg_pool.

    Source: Mishra et al. 2017, arXiv:1707.03141, and Lee et al. 2019, arXiv:1904.03758, as
    `learn2learn.vision.models.ResNet12`.
    Differs: no DropBlock and no dropout. Their rate there follows a counter of forward passes
    outside of the weights, which neither a checkpoint nor a clone keeps.
    """

    name = "resnet12"

    def __init__(
        self,
        task: fsl.TaskShape,
        wider: Annotated[
            bool,
            Field(
                description="filters 64, 160, 320, 640 (MetaOptNet), or else 64, 128, 256, 512 "
                "(TADAM)"
            ),
        ] = True,
        avg_pool: Annotated[
            bool,
            Field(description="mean over 5x5 pixels of the last map; needs 80x80 pixels or more"),
        ] = True,
        norm: NormChoice = "transductive",
    ):
        def make() -> nn.Module:
            models = learn2learn().vision.models
            return models.ResNet12Backbone(
                avg_pool, wider, dropblock_dropout=0.0, channels=task.input_shape[0]
            )

        super().__init__(task, norm, make, "At least 80x80 pixels, or 16x16 with avg_pool: false")


class Wrn28(L2lBackbone):
    """learn2learn's WRN28: the wide residual network of depth 28 and width 10, 36 million weights.

    (n, 3, height, width) -> (n, feature_dim); 84x84 gives 640 features, a mean over 21x21 pixels.

    Source: Dhillon et al. 2020, arXiv:1909.02729, as `learn2learn.vision.models.WRN28`.
    """

    name = "wrn28"

    def __init__(self, task: fsl.TaskShape, norm: NormChoice = "transductive"):
        super().__init__(
            task,
            norm,
            learn2learn().vision.models.WRN28Backbone,
            "3 channels, at least 81x81 pixels",
        )


def _stop_tracking(net: nn.Module) -> None:
    """Let every BatchNorm layer use the statistics of its batch, in evaluation too."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None

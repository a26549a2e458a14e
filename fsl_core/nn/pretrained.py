"""Networks that were trained elsewhere, as backbones: their own preprocessing, norms held still."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsl_core.nn.norms import NormPolicy, replace_norms
from fsl_core.nn.weights import LoadedWeights
from fsl_core.text import suggest

PretrainedNorm = Literal["fixed", "running", "transductive"]


class Preprocessing(nn.Module):
    """Pictures of values 0 .. 1 as a network wants them: its size, its mean and deviation.

    (n, 1 or 3, height, width) -> (n, 3, size, size); grey becomes three equal channels.

    Resized by a bicubic filter that is widened where pictures shrink, as Pillow does it: a product
    with two constant matrices, so that every transform of torch.func sees through it.

    size: height and width in pixels.    mean, std: of each channel, on the scale 0 .. 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.size = size
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if (height, width) != (self.size, self.size):
            rows, columns = (_bicubic(side, self.size).to(x) for side in (height, width))
            x = rows @ x @ columns.mT
        return (x - self.mean) / self.std  # (3, 1, 1): one channel becomes three

    def extra_repr(self) -> str:
        mean, std = ([round(v, 6) for v in t.flatten().tolist()] for t in (self.mean, self.std))
        return f"bicubic to {self.size}x{self.size}, mean {mean}, std {std}"


@lru_cache(maxsize=8)
def _bicubic(side: int, size: int) -> Tensor:
    """(size, side): row i holds the weights of pixel i of the result."""
    unit = torch.eye(side)[None, None]
    return F.interpolate(unit, (size, side), mode="bicubic", antialias=True)[0, 0]


class PretrainedBackbone(nn.Module):
    """A network with weights from a file: (n, channels, height, width) in 0 .. 1 to features.

    A last map (n, channels, height, width) becomes its mean over height and width, and tokens
    (n, tokens, width) their mean. Everything lies below `net`, where patterns of names look.

    input_shape: of an item: a picture, grey or coloured.
    net:        without its classifier, weights loaded.
    preprocess: what it wants pictures to be.
    weights:    where they came from; None: start values.
    layer:      the name of a layer whose output is taken; None: the network's own. What is not
                computed on the way to it is dropped.
    train:      shell patterns over the names of its parameters, such as `layer4.*`; others require
                no gradient. None: all of them.
    norm:       of its batch norms: `fixed`, by the averages it came with, in training too;
                `running`, the same, moved by each outer step; `transductive`.
    frozen:     it is never trained, so its own layers stay, in evaluation mode.
    ValueError for a pattern that matches nothing, and for items that are not pictures.
    """

    feature_dim: int

    def __init__(
        self,
        input_shape: Sequence[int],
        net: nn.Module,
        preprocess: Preprocessing,
        *,
        weights: LoadedWeights | None = None,
        layer: str | None = None,
        train: Sequence[str] | None = None,
        norm: PretrainedNorm = "fixed",
        frozen: bool = False,
    ):
        super().__init__()
        shape = tuple(input_shape)
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise ValueError(
                f"items of shape {shape}. Pictures, (1 or 3, height, width), for a network that "
                "was trained on them"
            )
        self.preprocess, self.net, self.weights, self.norm = preprocess, net, weights, norm
        if not frozen:
            policy: NormPolicy = "transductive" if norm == "transductive" else "running"
            self.net = replace_norms(net, policy, momentum=0.0 if norm == "fixed" else None)
        self.layer, self.feature_dim = layer, _length_of_features(self, layer)
        if train is not None:
            _train_only(self.net, train)

    def forward(self, x: Tensor) -> Tensor:
        try:
            features = self.net(self.preprocess(x))
        except _ReachedError as reached:
            features = reached.output
        if features.dim() == 3:
            return features.mean(1)
        return features.mean((2, 3)) if features.dim() == 4 else features

    def extra_repr(self) -> str:
        return f"layer={self.layer}, norm={self.norm}"

    @property
    def notes(self) -> list[str]:
        """What a user should know of its weights."""
        return [str(self.weights)] if self.weights else []


class _ReachedError(Exception):
    """Ends a forward pass at the layer whose output is wanted: any network can be cut like this.

    torch.fx would rewrite the network instead, but cannot follow one that asks for sizes.
    """

    def __init__(self, output: Tensor):
        super().__init__()
        self.output = output


def _stop(layer: nn.Module, items: object, output: Tensor) -> None:
    raise _ReachedError(output)


@torch.no_grad()
def _length_of_features(backbone: PretrainedBackbone, layer: str | None) -> int:
    """Of one picture; the network is cut on the way."""
    size, training = backbone.preprocess.size, backbone.training
    pictures = torch.zeros(2, 3, size, size)
    if layer is not None:
        _layer(backbone.net, layer).register_forward_hook(_stop)
        with _called(backbone.net) as called:
            backbone.eval()(pictures)
        _drop_all_but(backbone.net, called)
    found = backbone.eval()(pictures)
    backbone.train(training)
    if found.dim() != 2:
        raise ValueError(
            f"features of shape {tuple(found.shape[1:])} for one picture. A layer that gives a "
            "vector, a map (channels, height, width), or tokens (number, width)"
        )
    return found.shape[1]


def _layer(net: nn.Module, name: str) -> nn.Module:
    layers = {known: part for known, part in net.named_modules() if known}
    if name not in layers:
        tops = [known for known in layers if known.count(".") < 2]
        raise ValueError(f"layer: there is no {name!r}. {suggest(name, tops)}")
    return layers[name]


@contextmanager
def _called(net: nn.Module) -> Iterator[set[nn.Module]]:
    """The parts of a network that are called within this context, and what they lie in."""
    called: set[nn.Module] = set()
    handles = [
        part.register_forward_pre_hook(lambda part, _: called.add(part)) for part in net.modules()
    ]
    yield called
    for handle in handles:
        handle.remove()


def _drop_all_but(net: nn.Module, called: set[nn.Module]) -> None:
    """Replace by the identity what was not called: it would be trained, and never get a gradient.

    Only children of the network itself and of its lists: a layer may use its own parts uncalled.
    """
    lists = [part for part in net.modules() if isinstance(part, nn.Sequential | nn.ModuleList)]
    for owner in [net, *lists]:
        for key, child in owner.named_children():
            if called.isdisjoint(child.modules()):
                setattr(owner, key, nn.Identity())


def _train_only(net: nn.Module, patterns: Sequence[str]) -> None:
    names = [name for name, _ in net.named_parameters()]
    idle = [p for p in patterns if not any(fnmatchcase(name, p) for name in names)]
    if idle:
        tops = dict.fromkeys(name.split(".")[0] + ".*" for name in names)
        raise ValueError(
            f"train: {', '.join(map(repr, idle))} matches no parameter. Patterns of names such as "
            f"{', '.join(tops)}"
        )
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(any(fnmatchcase(name, pattern) for pattern in patterns))

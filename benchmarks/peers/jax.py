"""JAX: `jit(grad(...))` of the mean over tasks, which `vmap` computes together.

Not a library for few-shot learning: what a user of JAX writes. With convolutions, maps are
channels-last and tasks are computed one after another (`lax.map`). So the published step takes 1.8
seconds; channels-first 3.6, and under `vmap`, where each task has filters of its own, 7.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax  # type: ignore[import-not-found]  # only in the environment of `make bench`
import torch
from jax import numpy as jnp  # type: ignore[import-not-found]
from torch import Tensor, nn

from benchmarks.race import LeftOut

Weights = list[Any]
Predict = Callable[[Weights, Any], Any]


def maml(
    model: nn.Module, episodes, loss, inner_lr: float, inner_steps: int
) -> Callable[[], list[Any]]:
    """The meta-gradient as JAX's own arrays, which `torch.from_dlpack` reads."""
    parameters = [p.detach() for p in model.parameters()]
    if parameters[0].is_cuda:
        raise LeftOut("installed for CPUs alone")
    if any(isinstance(m, nn.MaxPool2d) for m in model.modules()):
        raise LeftOut("16 tasks of convolutions of this size take half a minute here")
    predict, error = _predictor(model), _error(episodes.query.y)

    def loss_of(weights: Weights, x, y):
        return error(predict(weights, x), y)

    def query_loss(weights: Weights, support_x, support_y, query_x, query_y):
        for _ in range(inner_steps):
            gradient = jax.grad(loss_of)(weights, support_x, support_y)
            weights = [w - inner_lr * g for w, g in zip(weights, gradient, strict=True)]
        return loss_of(weights, query_x, query_y)

    def objective(weights: Weights, tasks):
        if any(isinstance(m, nn.Conv2d) for m in model.modules()):
            return jax.lax.map(lambda task: query_loss(weights, *task), tasks).mean()
        return jax.vmap(query_loss, (None, 0, 0, 0, 0))(weights, *tasks).mean()

    # Without it JAX rounds to float32; with it, float32 stays float32.
    jax.config.update("jax_enable_x64", parameters[0].dtype == torch.float64)
    weights = [jnp.asarray(p.numpy()) for p in parameters]
    tasks = tuple(jnp.asarray(_channels_last(t).numpy()) for part in episodes[:2] for t in part)
    meta_gradient = jax.jit(jax.grad(objective))
    return lambda: jax.block_until_ready(meta_gradient(weights, tasks))


def _channels_last(tensor: Tensor) -> Tensor:
    """Pictures of all tasks as (tasks, items, height, width, channels); all else as it is."""
    return tensor.movedim(2, -1).contiguous() if tensor.ndim == 5 else tensor


def _error(y: Tensor) -> Callable[[Any, Any], Any]:
    """Cross-entropy of labels, the squared error of values."""
    if y.is_floating_point():
        return lambda found, wanted: jnp.square(found - wanted).mean()

    def cross_entropy(logits, labels):
        logs = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(logs, labels[:, None], axis=1).mean()

    return cross_entropy


def _predictor(model: nn.Module) -> Predict:
    """The same network as a function of its weights, in the order of the model's parameters."""
    layers = [m for m in model.modules() if not isinstance(m, nn.Sequential)]

    def predict(weights: Weights, x):
        left = iter(weights)
        for layer in layers:
            x = _apply(layer, [next(left) for _ in layer.parameters()], x)
        return x

    return predict


def _apply(layer: nn.Module, weights: Weights, x):
    if isinstance(layer, nn.Linear):
        return x @ weights[0].T + weights[1]
    if isinstance(layer, nn.ReLU):
        return jax.nn.relu(x)
    if isinstance(layer, nn.Flatten):
        return x.reshape(len(x), -1)
    if isinstance(layer, nn.Conv2d):
        filters, order = weights[0].transpose(2, 3, 1, 0), ("NHWC", "HWIO", "NHWC")
        maps = jax.lax.conv_general_dilated(x, filters, layer.stride, "VALID", None, None, order)
        return maps + weights[1]
    if isinstance(layer, nn.ZeroPad2d):
        left, right, top, bottom = layer.padding
        return jnp.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        return _normalised(x, layer.eps, *weights)
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        return x.mean((1, 2))
    raise TypeError(f"no JAX form of {type(layer).__name__}")


def _normalised(x, eps: float, scale, shift):
    """By the statistics of the batch itself."""
    over = tuple(range(x.ndim - 1))
    centred = x - x.mean(over)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(over) + eps) * scale + shift

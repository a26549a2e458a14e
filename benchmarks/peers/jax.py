"""JAX: `jit(grad(...))` of the mean over tasks, which `vmap` computes together.

Not a library for few-shot learning: what a user of JAX writes. With convolutions, maps are
channels-last, and on a CPU tasks are computed one after another (`lax.map`). So the published step
takes 1.8 seconds; channels-first 3.6, and under `vmap`, where each task has filters of its own, 7.
On an H200 it takes 13 milliseconds under `vmap` and 72 one after another.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # it is not alone on a GPU

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
    on_gpu = parameters[0].is_cuda
    if on_gpu and jax.default_backend() != "gpu":
        raise LeftOut("installed for CPUs alone")
    convolves = any(isinstance(m, nn.Conv2d) for m in model.modules())
    if on_gpu and convolves and parameters[0].dtype == torch.float64:
        raise LeftOut("its convolutions in float64 are off by 2e-8 on a GPU")
    if any(isinstance(m, nn.MaxPool2d) for m in model.modules()):
        too_slow = "16 tasks of convolutions of this size take half a minute here"
        raise LeftOut("pooling is not written for it" if on_gpu else too_slow)
    predict, error = _predictor(model), _error(episodes.query.y.cpu())

    def loss_of(weights: Weights, x, y):
        return error(predict(weights, x), y)

    def query_loss(weights: Weights, support_x, support_y, query_x, query_y):
        for _ in range(inner_steps):
            gradient = jax.grad(loss_of)(weights, support_x, support_y)
            weights = [w - inner_lr * g for w, g in zip(weights, gradient, strict=True)]
        return loss_of(weights, query_x, query_y)

    def objective(weights: Weights, tasks):
        if convolves and not on_gpu:
            return jax.lax.map(lambda task: query_loss(weights, *task), tasks).mean()
        return jax.vmap(query_loss, (None, 0, 0, 0, 0))(weights, *tasks).mean()

    # Without it JAX rounds to float32; with it, float32 stays float32.
    jax.config.update("jax_enable_x64", parameters[0].dtype == torch.float64)
    jax.config.update("jax_default_matmul_precision", "highest")  # a GPU rounds products otherwise
    weights = [_array(p) for p in parameters]
    tasks = tuple(_array(_channels_last(t)) for part in episodes[:2] for t in part)
    meta_gradient = jax.jit(jax.grad(objective))
    return lambda: jax.block_until_ready(meta_gradient(weights, tasks))


def _array(tensor: Tensor) -> Any:
    """On the device that JAX computes on."""
    return jnp.asarray(tensor.cpu().numpy())


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

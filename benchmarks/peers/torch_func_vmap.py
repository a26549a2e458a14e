"""torch alone, all tasks at once: `grad` of the mean of `vmap`."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.func import grad, vmap

from benchmarks.peers.torch_func import query_loss
from benchmarks.race import LeftOut


def maml(
    model: nn.Module, episodes, loss, inner_lr: float, inner_steps: int
) -> Callable[[], list[Tensor]]:
    if any("BatchNorm" in type(m).__name__ for m in model.modules()):
        raise LeftOut("second-order gradients through affine BatchNorm are wrong under vmap")
    weights = {name: p.detach() for name, p in model.named_parameters()}
    objective = query_loss(model, loss, inner_lr, inner_steps)
    meta_gradient = grad(
        lambda w, support, query: vmap(objective, (None, 0, 0, 0, 0))(w, *support, *query).mean()
    )
    return lambda: list(meta_gradient(weights, episodes.support, episodes.query).values())

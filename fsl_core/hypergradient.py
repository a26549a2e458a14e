"""A hypergradient: how the meta-gradient of an inner optimisation is estimated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from fsl_core.adapter import Adapter, call_declared
from fsl_core.episode import Episode, Loss
from fsl_core.errors import FslError
from fsl_core.inner import InnerProblem


class Hypergradient(nn.Module):
    """How the derivative of the query loss by the meta-parameters is estimated.

    Subclasses set `name` and write `objective` for one task in plain torch. It is used in training
    alone: evaluation always runs the adapter, so an estimate changes a score through training only.
    What a hypergradient keeps between outer steps is in buffers, which a checkpoint holds. It has
    no parameters of its own.

    vectorizable: `objective` works under torch.func.vmap: no value is read, nothing is kept.
    threadable:   several threads may compute tasks at the same time.
    """

    name: ClassVar[str]
    vectorizable: bool = True
    threadable: bool = True

    def unfit(self, adapter: Adapter) -> str:
        """Why this adapter's meta-gradient cannot be estimated so, or "" if it can.

        Asked when a run is built, before anything is computed. Override it to refuse more, and ask
        super() first.
        """
        return adapter.unrolled_only()

    def objective(
        self, adapter: Adapter, backbone: nn.Module, episode: Episode, loss: Loss
    ) -> tuple[Tensor, Tensor]:
        """A scalar whose value is the query loss and whose gradient is the estimate.

        With it the prediction of the queries, (n_queries, output_dim). The contract is that of
        `Adapter.objective`. See `inner_problem_of` and `with_gradient`.
        """
        raise NotImplementedError(
            f"{type(self).__name__}.objective: not written. A function of (adapter, backbone, "
            "episode, loss) that returns loss and prediction"
        )

    def on_progress(self, progress: float) -> None:
        """Called before each outer step with the share of training done, from 0 to below 1."""

    def on_step(self, ids: Tensor) -> None:
        """Called once after each outer step, when the parameters have moved.

        ids: (meta_batch_size,) int64, `Episode.id` of its tasks.
        """

    def metrics(self) -> dict[str, float]:
        """Finite numbers of the last outer step by name, which metrics.jsonl holds.

        Asked after `on_step`.
        """
        return {}

    def advice(self, optimizer: str, schedule: str) -> str:
        """What a user should know of this estimate under a recipe's optimizer and schedule, or "".

        It becomes a note of the run.
        """
        return ""


def inner_problem_of(adapter: Adapter, backbone: nn.Module, episode: Episode) -> InnerProblem:
    """The inner problem of an adapter for one episode, in the adapter's present mode.

    Raises FslError if it has none at present.
    """
    query = episode.query if adapter.training else None
    problem: InnerProblem | None = call_declared(adapter.inner_problem, backbone, episode, query)
    if problem is None:
        raise FslError(
            f"adapter {adapter.name!r} gives no inner problem with these options. "
            "hypergradient: unrolled, or options with inner steps alone"
        )
    return problem


def with_gradient(
    value: Tensor, tensors: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
) -> Tensor:
    """A scalar equal to `value` whose derivative by each of the tensors is the gradient named so.

        value.detach() + (s - s.detach()),    s = sum_p <gradients[p].detach(), tensors[p]>

    Tensors without a gradient get none. The tensors may be functions of others, such as the `start`
    of an inner problem: the derivative goes on through them.

    >>> import torch
    >>> w = torch.ones(2, requires_grad=True)
    >>> scalar = with_gradient(torch.tensor(3.0), {"w": w}, {"w": torch.tensor([1.0, 2.0])})
    >>> scalar.backward()
    >>> scalar.item(), w.grad
    (3.0, tensor([1., 2.]))
    """
    products = [(slope.detach() * tensors[name]).sum() for name, slope in gradients.items()]
    direction = sum(products, start=value.new_zeros(()))
    return value.detach() + (direction - direction.detach())

"""An adapter: the inner loop that a plugin author writes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor, nn

from fsl_core.episode import Episode, LabelledSet, Loss, Predictor
from fsl_core.errors import FslError


class Adapter(nn.Module):
    """An inner loop: turns a support set into a predictor.

    Subclasses set `name` and write `adapt` for one task in plain torch. The head and every other
    meta-parameter (of a hypernetwork, a kernel, a learned step size) are parameters of the adapter;
    `adapt` changes none of them.

    vectorizable: `adapt` works under torch.func.vmap: no value is read, no module is patched.
    threadable:   several threads may compute tasks at the same time; False if `adapt`
                  differentiates in forward mode (jvp), whose levels torch keeps for the whole
                  process.
    transductive: predictions depend on the other unlabelled queries.
    order:        what the meta-gradient claims to be: 2 exact, 1 with the inner loop's second
                  derivatives left out.
    """

    name: ClassVar[str]
    vectorizable: bool = True
    threadable: bool = True
    transductive: bool = False
    order: int = 2

    def adapt(self, backbone: nn.Module, support: LabelledSet) -> Predictor:
        """Fit the support set. Two further arguments are passed to an adapter that declares them:

        query_x: (n, *input_shape), the unlabelled queries.    task_id: () int64, `Episode.id`.
        """
        raise NotImplementedError(
            f"{type(self).__name__}.adapt: not written. "
            "A function of (backbone, support) that returns a predictor"
        )

    def trajectory(
        self,
        backbone: nn.Module,
        support: LabelledSet,
        query_x: Tensor | None = None,
        task_id: Tensor | None = None,
    ) -> Sequence[Predictor]:
        """The predictors before adaptation and after each inner step.

        The last one is what `adapt` returns. Arguments are as for `adapt`; a method that overrides
        this one declares those it needs. Default: the last predictor alone.
        """
        offered = {"query_x": query_x, "task_id": task_id}
        return [self.adapt(backbone, support, **_declared(self.adapt, offered))]

    def objective(self, backbone: nn.Module, episode: Episode, loss: Loss) -> tuple[Tensor, Tensor]:
        """The scalar whose gradient the outer loop follows, and the prediction of the queries.

        The prediction is (n_queries, output_dim). Override it for update penalties, losses on the
        support set or after each step, or pseudo-gradients.
        """
        predict = require_predictor(call_declared(self.adapt, backbone, episode))
        prediction = predict(episode.query.x)
        return loss(prediction, episode.query.y), prediction

    def on_progress(self, progress: float) -> None:
        """Called before each outer step with the share of training done, from 0 to below 1.

        When weights are judged, in validation or from a checkpoint, the last call was that of the
        last step that made them.
        """

    @property
    def settled(self) -> bool:
        """Whether the present weights may become the best checkpoint; asked at each validation.

        False in a warm-up, when an evaluation would judge something else than what training is for:
        the validation is recorded, and a run that never settles is judged by its last checkpoint,
        which its result says.
        """
        return True

    def describe(self) -> dict[str, float]:
        """Finite numbers that belong beside the score, by name; `adapter_state` in result.json.

        Such as a share of a warm-up that the judged weights were trained with, or a learned step
        size.
        """
        return {}


def call_declared(method: Callable, backbone: nn.Module, episode: Episode):
    """Call `adapt` or `trajectory` of an adapter, with query_x and task_id if it declares them."""
    offered: dict[str, Tensor | None] = {"query_x": episode.query.x, "task_id": episode.id}
    return method(backbone, episode.support, **_declared(method, offered))


_ARGUMENTS: dict[Callable, frozenset[str]] = {}
"""Arguments of methods seen before: to inspect one takes longer than a small inner step."""


def _declared(method: Callable, offered: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    function = getattr(method, "__func__", method)
    if function not in _ARGUMENTS:
        _ARGUMENTS[function] = frozenset(inspect.signature(function).parameters)
    return {name: value for name, value in offered.items() if name in _ARGUMENTS[function]}


def require_predictor(predictor: Predictor) -> Predictor:
    """What `adapt` returned, if it is a function. Raises FslError otherwise."""
    if not callable(predictor):
        raise FslError(
            f"adapt returned a {type(predictor).__name__}. A predictor: a function of items"
        )
    return predictor

"""An adapter: the inner loop that a plugin author writes."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fsl_core.episode import Episode, LabelledSet, Loss, Predictor
from fsl_core.errors import FslError
from fsl_core.inner import InnerProblem


class Adapter(nn.Module):
    """An inner loop: turns a support set into a predictor.

    Subclasses set `name` and write `adapt` for one task in plain torch; those that take inner steps
    write `inner_problem` instead. The head and every other meta-parameter (of a hypernetwork, a
    kernel, a learned step size) are parameters of the adapter; `adapt` changes none of them.

    vectorizable: `adapt` works under torch.func.vmap: no value is read, no module is patched.
    threadable:   several threads may compute tasks at the same time; False if `adapt`
                  differentiates in forward mode (jvp), whose levels torch keeps for the whole
                  process.
    transductive: predictions depend on the other unlabelled queries.
    unequal_shots: the classes of a support set may differ in their number of items, which `adapt`
                  knows from the labels alone and not from `task.n_shot`.
    keeps_backbone: in training it computes the features of support and query set by the backbone as
                  it is, each once, and changes nothing of it in between. Under norm policy
                  `ordinary` one call then serves both, in half of the time.
    training_free: option sets with which it needs no training, such as on features of a pretrained
                  network; `fsl predict` without a run tries each.
    order:        what the meta-gradient claims to be: 2 exact, 1 with the inner loop's second
                  derivatives left out.
    """

    name: ClassVar[str]
    vectorizable: bool = True
    threadable: bool = True
    transductive: bool = False
    unequal_shots: bool = False
    keeps_backbone: bool = False
    training_free: ClassVar[Sequence[Mapping[str, Any]]] = ()
    order: int = 2

    def inner_problem(self, backbone: nn.Module, support: LabelledSet) -> InnerProblem | None:
        """The optimisation that adapting to this support set is, in the present mode.

        None, the default: there is none, and nothing but the adapter's own `objective` can be
        followed. An adapter may declare `query_x`, `task_id` and `query` too, as for `adapt`; it
        then hands them on in an `adapt` of its own.
        """
        return None

    def predictors(self, problem: InnerProblem) -> Iterator[Predictor]:
        """Those before the first and after each inner step; without a graph in evaluation mode."""
        tracked = self.training and torch.is_grad_enabled()
        for point in problem.points(1 if self.order == 1 else 2, tracked):
            yield problem.predictor(point)

    def adapt(self, backbone: nn.Module, support: LabelledSet) -> Predictor:
        """Fit the support set; by default, take the steps of `inner_problem`.

        Further arguments are passed to an adapter that declares them:

        query_x: (n, *input_shape), the unlabelled queries.    task_id: () int64, `Episode.id`.
        query:   the labelled queries where a meta-gradient is computed, in training mode; else
                 None.
        """
        problem = self.inner_problem(backbone, support)
        if problem is None:
            raise NotImplementedError(
                f"{type(self).__name__}.adapt: not written. A function of (backbone, support) that "
                "returns a predictor, or inner_problem"
            )
        return deque(self.predictors(problem), maxlen=1).pop()

    def trajectory(
        self,
        backbone: nn.Module,
        support: LabelledSet,
        query_x: Tensor | None = None,
        task_id: Tensor | None = None,
    ) -> Sequence[Predictor]:
        """The predictors before adaptation and after each inner step.

        The last one is what `adapt` returns. Arguments are as for `adapt`; a method that overrides
        this one declares those it needs. Default: the predictors of `inner_problem`, or the last
        predictor alone.
        """
        offered = {"query_x": query_x, "task_id": task_id}
        problem = self.inner_problem(backbone, support, **_declared(self.inner_problem, offered))
        if problem is not None:
            return list(self.predictors(problem))
        return [self.adapt(backbone, support, **_declared(self.adapt, offered))]

    def objective(self, backbone: nn.Module, episode: Episode, loss: Loss) -> tuple[Tensor, Tensor]:
        """The scalar whose gradient the outer loop follows, and the prediction of the queries.

        The prediction is (n_queries, output_dim). Override it for update penalties, losses on the
        support set or after each step, or pseudo-gradients.
        """
        query = episode.query if self.training else None
        predict = require_predictor(call_declared(self.adapt, backbone, episode, query))
        prediction = predict(episode.query.x)
        return loss(prediction, episode.query.y), prediction

    def unrolled_only(self) -> str:
        """Why only `unrolled` can give this adapter's meta-gradient, or "" if others can too.

        Others drive `inner_problem` themselves. Override it where options decide.
        """
        if type(self).inner_problem is Adapter.inner_problem:
            return f"adapter {self.name!r} has no inner problem"
        if type(self).objective is not Adapter.objective:
            return f"adapter {self.name!r} follows another objective than the query loss"
        return ""

    def advice(self) -> str:
        """What a user should know of these options, or "". `fsl check` prints it."""
        return ""

    def on_progress(self, progress: float) -> None:
        """Called before each outer step with the share of training done, from 0 to below 1.

        When weights are judged, in validation or from a checkpoint, the last call was that of the
        last step that made them. Numbers that change at every step belong into a buffer
        (`persistent=False`): compiled code takes those of an attribute for constants.
        """

    def on_step(self, ids: Tensor) -> None:
        """Called once after each outer step, when the parameters have moved.

        ids: (meta_batch_size,) int64, `Episode.id` of its tasks.
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


def call_declared(
    method: Callable, backbone: nn.Module, episode: Episode, query: LabelledSet | None = None
):
    """Call `adapt`, `trajectory` or `inner_problem` of an adapter, with what it declares.

    That is query_x, task_id and query, which a caller gives in training alone.
    """
    offered = {"query_x": episode.query.x, "task_id": episode.id, "query": query}
    return method(backbone, episode.support, **_declared(method, offered))


_ARGUMENTS: dict[Callable, frozenset[str]] = {}
"""Arguments of methods seen before: to inspect one takes longer than a small inner step."""


def _declared(method: Callable, offered: Mapping[str, Any]) -> dict[str, Any]:
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

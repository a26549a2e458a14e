"""The words of few-shot learning as types: episodes, and the two things a plugin author writes, adapters and weightings."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fsl_core.attention import plain_attention
from fsl_core.errors import FslError
from fsl_core.inner import InnerProblem
from fsl_core.norms import support_reference

Predictor = Callable[[Tensor], Tensor]
"""(n, *input_shape) -> (n, output_dim): logits of a classification task, values of a regression task."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""(prediction, labels) -> scalar."""


class LabelledSet(NamedTuple):
    """Items with their labels.

    x: (n, *input_shape), float.    y: (n,) class indices 0 .. n_way - 1, int64; or (n, output_dim) values, float.
    """

    x: Tensor
    y: Tensor


class Episode(NamedTuple):
    """One draw from a task. Rows are sorted by class, n_shot (n_query) rows each.

    id: () int64, the episode's index in its split, or the number of its task where a source has a finite set of tasks.

    A batch of episodes is the same tuple with a leading (meta_batch_size,) axis on every tensor.
    """

    support: LabelledSet
    query: LabelledSet
    id: Tensor

    def unbatch(self) -> list[Episode]:
        """The single episodes of a batch, as views."""
        (support_x, support_y), (query_x, query_y), ids = self
        rows = zip(support_x, support_y, query_x, query_y, ids, strict=True)
        return [Episode(LabelledSet(sx, sy), LabelledSet(qx, qy), i) for sx, sy, qx, qy, i in rows]


@dataclass(frozen=True)
class TaskShape:
    """What every episode of a split has in common.

    n_way:  classes per episode; 1 for regression.    n_shot, n_query: labelled and unlabelled items per class.
    input_shape: of one item, without the batch axis, such as (1, 28, 28).
    output_dim:  of a prediction: n_way for classification.
    """

    kind: Literal["classification", "regression"]
    n_way: int
    n_shot: int
    n_query: int
    input_shape: tuple[int, ...]
    output_dim: int

    def loss(self, prediction: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy of logits, or mean squared error of values; a scalar."""
        return (
            F.cross_entropy(prediction, y)
            if self.kind == "classification"
            else F.mse_loss(prediction, y)
        )

    @property
    def metric(self) -> Literal["accuracy", "mse"]:
        """What `score` computes; accuracy is better high, mse is better low."""
        return "accuracy" if self.kind == "classification" else "mse"

    def score(self, prediction: Tensor, y: Tensor) -> Tensor:
        """Share of right answers in 0 .. 1, or mean squared error in squared units of y; a scalar."""
        if self.kind == "classification":
            return (prediction.argmax(-1) == y).to(prediction.dtype).mean(-1)
        return F.mse_loss(prediction, y)


def one_hot(y: Tensor, n_way: int) -> Tensor:
    """Class indices (n,) -> (n, n_way) of zeros and ones, float; reads no value, so it works under any order of vmap and grad.

    >>> one_hot(torch.tensor([1, 0]), 3)
    tensor([[0., 1., 0.],
            [1., 0., 0.]])
    """
    return (y[..., None] == torch.arange(n_way, device=y.device)).to(torch.get_default_dtype())


class Adapter(nn.Module):
    """An inner loop: turns a support set into a predictor.

    Subclasses set `name` and write `adapt` for one task in plain torch; those that take inner steps
    write `inner_problem` instead. The head and every other meta-parameter (of a hypernetwork, a
    kernel, a learned step size) are parameters of the adapter; `adapt` changes none of them.

    vectorizable: `adapt` works under torch.func.vmap: no value is read, no module is patched.
    threadable:   tasks may be computed by several threads at once; False where `adapt` differentiates in forward mode (jvp),
                  whose levels torch keeps for the whole process.
    transductive: predictions depend on the other unlabelled queries.
    order:        what the meta-gradient claims to be: 2 exact, 1 with the inner loop's second derivatives left out.
    """

    name: ClassVar[str]
    vectorizable: bool = True
    threadable: bool = True
    transductive: bool = False
    order: int = 2

    def inner_problem(self, backbone: nn.Module, support: LabelledSet) -> InnerProblem | None:
        """The optimisation that adapting to this support set is, in the present mode.

        None, the default: there is none, and nothing but the adapter's own `objective` can be
        followed. An adapter may declare `query_x` and `task_id` too, as for `adapt`; it then hands
        them on in an `adapt` of its own.
        """
        return None

    def predictors(self, problem: InnerProblem) -> Iterator[Predictor]:
        """Those before the first and after each inner step; without a graph in evaluation mode."""
        tracked = self.training and torch.is_grad_enabled()
        for point in problem.points(1 if self.order == 1 else 2, tracked):
            yield problem.predictor(point)

    def adapt(self, backbone: nn.Module, support: LabelledSet) -> Predictor:
        """Fit the support set; by default, take the steps of `inner_problem`.

        Two further arguments are passed to an adapter that declares them:

        query_x: (n, *input_shape), the unlabelled queries.    task_id: () int64, `Episode.id`.
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
        """The predictors before adaptation and after each inner step; the last one is what `adapt` returns.

        Arguments as for `adapt`; one that overrides it declares those it needs. Default: those of
        `inner_problem`, or the last one alone.
        """
        offered = {"query_x": query_x, "task_id": task_id}
        problem = self.inner_problem(backbone, support, **_declared(self.inner_problem, offered))
        if problem is not None:
            return list(self.predictors(problem))
        return [self.adapt(backbone, support, **_declared(self.adapt, offered))]

    def objective(self, backbone: nn.Module, episode: Episode, loss: Loss) -> tuple[Tensor, Tensor]:
        """The scalar whose gradient the outer loop follows, and the prediction of the queries, (n_queries, output_dim).

        Override it for update penalties, losses on the support set or after each step, or pseudo-gradients.
        """
        predict = _callable(call_declared(self.adapt, backbone, episode))
        prediction = predict(episode.query.x)
        return loss(prediction, episode.query.y), prediction

    def on_progress(self, progress: float) -> None:
        """Called before each outer step with the share of training done, from 0 to below 1.

        Where weights are judged, in validation or from a checkpoint, the last call was that of the
        last step that made them.
        """

    @property
    def settled(self) -> bool:
        """Whether the present weights may become the best checkpoint; asked at each validation.

        False in a warm-up, where an evaluation would judge something else than what training is
        for: the validation is recorded, and a run that never settles is judged by its last
        checkpoint, which its result says.
        """
        return True

    def describe(self) -> dict[str, float]:
        """Finite numbers that belong beside the score, by name; `adapter_state` in result.json.

        Such as a share of a warm-up that the judged weights were trained with, or a learned step
        size.
        """
        return {}


def call_declared(method: Callable, backbone: nn.Module, episode: Episode):
    """Call `Adapter.adapt` or `Adapter.trajectory` with those of query_x and task_id that it declares."""
    offered = {"query_x": episode.query.x, "task_id": episode.id}
    return method(backbone, episode.support, **_declared(method, offered))


_ARGUMENTS: dict[
    Callable, frozenset[str]
] = {}  # of methods seen before: inspecting costs more than a small inner step


def _declared(method: Callable, offered: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    function = getattr(method, "__func__", method)
    if function not in _ARGUMENTS:
        _ARGUMENTS[function] = frozenset(inspect.signature(function).parameters)
    return {name: value for name, value in offered.items() if name in _ARGUMENTS[function]}


class Outcomes(NamedTuple):
    """What a task weighting may look at; all of it detached.

    losses:    (meta_batch_size,) values of the objective.
    gradients: (meta_batch_size, P) meta-gradients of the tasks, or None where the weighting does not ask for them; which
               parameter has which columns is what a weighting's constructor gets as `columns`.
    ids:       (meta_batch_size,) int64, `Episode.id` of each.
    """

    losses: Tensor
    gradients: Tensor | None = None
    ids: Tensor | None = None


class TaskWeighting(nn.Module):
    """An outer loop's weights: the meta-gradient is sum_i weights[i] * gradient of task i.

    needs: "losses" or "gradients" (or both): what `weigh` reads. An empty set: weights that depend on neither.
    total: what the weights sum to: "one", "tasks" for a sum over the meta-batch, or "any" where the sum carries meaning.
    """

    name: ClassVar[str]
    needs: frozenset[str] = frozenset({"losses"})
    total: Literal["one", "tasks", "any"] = "one"

    def weigh(self, outcomes: Outcomes) -> Tensor:
        """(meta_batch_size,) non-negative weights."""
        raise NotImplementedError(
            f"{type(self).__name__}.weigh: not written. A function of Outcomes that returns one weight a task"
        )

    def objective(self, weights: Tensor, outcomes: Outcomes) -> Tensor:
        """The scalar that the weighting's own parameters minimise, where it has any; `weights` as `weigh` returned them.

        Default: the weighted loss. Override it for a penalty: minimising weights that sum to one alone favours easy tasks.
        """
        return (weights * outcomes.losses).sum()


class Learner(nn.Module):
    """A backbone and an adapter: all that the outer loop optimises.

    Under torch.no_grad() an adapter is called without gradients. Where it raises because it wants
    them, as torch.autograd.grad does, it is called again with gradients enabled; predictions are
    detached.
    takes_gradients: this was found out of its `adapt`, which is then called with them at once.
    """

    def __init__(self, backbone: nn.Module, adapter: Adapter):
        super().__init__()
        self.backbone, self.adapter = backbone, adapter
        self.takes_gradients = False

    def forward(self, support: LabelledSet, query_x: Tensor) -> Tensor:
        """Logits or values of the queries, (n, output_dim)."""
        unlabelled = Episode(
            support, LabelledSet(query_x, query_x.new_zeros(len(query_x))), torch.tensor(0)
        )
        return self.adapt(unlabelled)(query_x)

    def objective(self, episode: Episode, loss: Loss) -> tuple[Tensor, Tensor]:
        """`Adapter.objective` of one episode."""
        with support_reference(episode.support.x), plain_attention():
            return self.adapter.objective(self.backbone, episode, loss)

    def adapt(self, episode: Episode) -> Predictor:
        """The predictor of one episode; of its query set only the unlabelled items are seen."""
        with support_reference(episode.support.x), plain_attention():
            return _within(episode.support.x, self._call(self.adapter.adapt, episode))

    def trajectory(self, episode: Episode) -> list[Predictor]:
        """The predictors before adaptation and after each inner step, the last one that of `adapt`."""
        with support_reference(episode.support.x), plain_attention():
            predictors: list[Predictor] = self._call(self.adapter.trajectory, episode, list)
        return [_within(episode.support.x, predictor) for predictor in predictors]

    def _call(
        self, method: Callable, episode: Episode, then: Callable = lambda found: found
    ) -> Any:
        """What a method of the adapter returns; then: makes a list of what may be a generator."""

        def call() -> Any:
            return then(call_declared(method, self.backbone, episode))

        found, again = _with_gradients_if_wanted(call, self.takes_gradients)
        self.takes_gradients |= again
        return found


_WANTED = "does not require grad"
"""What torch says, in several sentences, where gradients are asked for and there is no graph."""


def _with_gradients_if_wanted(call: Callable[[], Any], at_once: bool = False) -> tuple[Any, bool]:
    """call(), and whether gradients were enabled for it: it was told so, or it raised without them.

    Called a second time it draws the random numbers of the first, so that a run does not depend on
    what was found out before.
    """
    if torch.is_grad_enabled():
        return call(), False
    if not at_once:
        state = _random_state()
        try:
            return call(), False
        except RuntimeError as error:
            if _WANTED not in str(error):
                raise
        _set_random_state(*state)
    with torch.enable_grad():
        return call(), True


def _random_state() -> tuple[Tensor, list[Tensor]]:
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return torch.get_rng_state(), on_gpus


def _set_random_state(on_cpu: Tensor, on_gpus: list[Tensor]) -> None:
    torch.set_rng_state(on_cpu)
    if on_gpus:
        torch.cuda.set_rng_state_all(on_gpus)


def gradient_columns(learner: Learner) -> dict[str, slice]:
    """Where each trained parameter lies in a row of `Outcomes.gradients`, by names such as `adapter.head.weight`.

    >>> gradient_columns(Learner(nn.Linear(2, 3), Adapter()))
    {'backbone.weight': slice(0, 6, None), 'backbone.bias': slice(6, 9, None)}
    """
    sizes = {name: p.numel() for name, p in learner.named_parameters() if p.requires_grad}
    ends = accumulate(sizes.values())
    return {
        name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)
    }


def _callable(predictor: Predictor) -> Predictor:
    if not callable(predictor):
        raise FslError(
            f"adapt returned a {type(predictor).__name__}. A predictor: a function of items"
        )
    return predictor


def _within(support_x: Tensor, predictor: Predictor) -> Predictor:
    _callable(predictor)

    def predict(x: Tensor) -> Tensor:
        with support_reference(support_x), plain_attention():
            prediction, graded = _with_gradients_if_wanted(lambda: predictor(x))
        return prediction.detach() if graded else prediction

    return predict

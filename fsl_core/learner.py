"""A learner: a backbone and an adapter, all that the outer loop optimises."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from fsl_core.adapter import Adapter, call_declared, require_predictor
from fsl_core.episode import Episode, LabelledSet, Loss, Predictor
from fsl_core.errors import OptionError
from fsl_core.hypergradient import Hypergradient
from fsl_core.inner import InnerProblem
from fsl_core.nn.arithmetic import arithmetic
from fsl_core.nn.attention import plain_attention
from fsl_core.nn.norms import support_reference


class Learner(nn.Module):
    """A backbone and an adapter: all that the outer loop optimises.

    Under torch.no_grad() an adapter is called without gradients. If it raises because it wants
    them, as torch.autograd.grad does, it is called again with gradients enabled; predictions are
    detached.

    takes_gradients: this was found out about its `adapt`, which is then called with them at once.
    hypergradient:   how its meta-gradient is estimated in training; None: by the adapter's own
        objective. It is no submodule: evaluation, predictions and saved weights know nothing of it.
    """

    hypergradient: Hypergradient | None

    def __init__(
        self, backbone: nn.Module, adapter: Adapter, hypergradient: Hypergradient | None = None
    ):
        super().__init__()
        self.backbone, self.adapter = backbone, adapter
        self.takes_gradients = False
        self.__dict__["hypergradient"] = hypergradient  # as a module it would be a part

    @property
    def vectorizable(self) -> bool:
        """Whether its objective works under torch.func.vmap, as its parts claim."""
        estimate = self.hypergradient
        return self.adapter.vectorizable and (estimate is None or estimate.vectorizable)

    @property
    def threadable(self) -> bool:
        """Whether threads may compute its objective at the same time, as its parts claim."""
        estimate = self.hypergradient
        return self.adapter.threadable and (estimate is None or estimate.threadable)

    def forward(self, support: LabelledSet, query_x: Tensor) -> Tensor:
        """Logits or values of the queries, (n, output_dim)."""
        unlabelled = Episode(
            support, LabelledSet(query_x, query_x.new_zeros(len(query_x))), torch.tensor(0)
        )
        return self.adapt(unlabelled)(query_x)

    def objective(self, episode: Episode, loss: Loss) -> tuple[Tensor, Tensor]:
        """`Hypergradient.objective` of one episode, or `Adapter.objective` without one."""
        alone = self.hypergradient is None
        with (
            support_reference(
                episode.support.x,
                episode.query.x,
                shared=alone and self.adapter.keeps_backbone,
            ),
            plain_attention(),
        ):
            if self.hypergradient is None:
                return self.adapter.objective(self.backbone, episode, loss)
            return self.hypergradient.objective(self.adapter, self.backbone, episode, loss)

    def on_progress(self, progress: float) -> None:
        """Tell the parts the share of training done."""
        self.adapter.on_progress(progress)
        if self.hypergradient is not None:
            self.hypergradient.on_progress(progress)

    def on_step(self, ids: Tensor) -> None:
        """Tell the parts that an outer step was made, of these tasks."""
        self.adapter.on_step(ids)
        if self.hypergradient is not None:
            self.hypergradient.on_step(ids)

    def adapt(self, episode: Episode) -> Predictor:
        """The predictor of one episode; of its query set only the unlabelled items are seen."""
        with support_reference(episode.support.x, episode.query.x), plain_attention():
            return _within(episode.support.x, self._call(self.adapter.adapt, episode))

    def trajectory(self, episode: Episode) -> list[Predictor]:
        """The predictors before adaptation and after each inner step; `adapt` returns the last."""
        with support_reference(episode.support.x, episode.query.x), plain_attention():
            predictors: list[Predictor] = self._call(self.adapter.trajectory, episode, list)
        return [_within(episode.support.x, predictor) for predictor in predictors]

    def trajectory_of(
        self, episode: Episode, change: Callable[[InnerProblem], InnerProblem]
    ) -> list[Predictor]:
        """The predictors of another inner problem, which `change` makes of the adapter's own.

        Raises OptionError if it has none.
        """

        def then(problem: InnerProblem | None) -> list[Predictor]:
            if problem is None:
                raise OptionError(
                    f"adapter {self.adapter.name!r}: no inner problem to change. An adapter that "
                    "takes inner steps"
                )
            return list(self.adapter.predictors(change(problem)))

        with support_reference(episode.support.x, episode.query.x), plain_attention():
            predictors = self._call(self.adapter.inner_problem, episode, then)
        return [_within(episode.support.x, predictor) for predictor in predictors]

    def _call(
        self, method: Callable, episode: Episode, then: Callable = lambda found: found
    ) -> Any:
        """What a method of the adapter returns; then: makes a list of what may be a generator."""

        def call() -> Any:
            return then(call_declared(method, self.backbone, episode))

        with arithmetic(episode.support.x.device):
            found, again = _with_gradients_if_wanted(call, self.takes_gradients)
        self.takes_gradients |= again
        return found


_WANTED = "does not require grad"
"""What torch says, in several sentences, when gradients are asked for and there is no graph."""


def _with_gradients_if_wanted(call: Callable[[], Any], at_once: bool = False) -> tuple[Any, bool]:
    """call(), and whether gradients were enabled for it.

    They are if `at_once` says so, or if it raised without them. A second call draws the random
    numbers of the first, so that a run does not depend on what was found out before.
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
    """The columns of each trained parameter in a row of `Outcomes.gradients`, by its name.

    >>> gradient_columns(Learner(nn.Linear(2, 3), Adapter()))
    {'backbone.weight': slice(0, 6, None), 'backbone.bias': slice(6, 9, None)}
    """
    sizes = {name: p.numel() for name, p in learner.named_parameters() if p.requires_grad}
    ends = accumulate(sizes.values())
    return {
        name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)
    }


def _within(support_x: Tensor, predictor: Predictor) -> Predictor:
    require_predictor(predictor)

    def predict(x: Tensor) -> Tensor:
        with support_reference(support_x, x), plain_attention(), arithmetic(x.device):
            prediction, graded = _with_gradients_if_wanted(lambda: predictor(x))
        return prediction.detach() if graded else prediction

    return predict

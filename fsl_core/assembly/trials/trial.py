"""The parts of one experiment under made-up episodes: copies of them, calls and refusals."""

from __future__ import annotations

import copy
import os
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NoReturn, TypeVar

import torch
from torch import Tensor, nn

from fsl_core.assembly.experiment import Experiment
from fsl_core.assembly.trials.made_up import made_up_episodes
from fsl_core.blame import NO_SUPER, STRICT, belongs, forgot_super, raised
from fsl_core.config.document import KeyPath
from fsl_core.engine import soundness
from fsl_core.episode import Episode, LabelledSet
from fsl_core.errors import FslError, PluginError, ShapeError
from fsl_core.learner import Learner

TOLERANCE = 1e-4
"""Of numbers that should be equal; float32 sums on a GPU may differ in their order."""

Found = TypeVar("Found")


class Trial:
    """One experiment and the made-up episodes that its parts are tried on.

    The parts of a trial are functions in the other files of this folder. Each raises PluginError
    at the first fault.
    """

    def __init__(self, experiment: Experiment, n_query: int):
        self.experiment, self.device = experiment, experiment.device
        # Where numbers vary, the least of them, which are quick.
        source, test = experiment.source.task.least, experiment.test_task.least
        self.task = replace(source, n_query=n_query)
        self.test_task = replace(test, n_query=min(n_query, test.n_query))
        made_up = partial(
            made_up_episodes, device=self.device, vocabulary=experiment.source.vocabulary
        )
        self.episodes, self.test_episodes = made_up(self.task, 2), made_up(self.test_task, 2)

    # -- learners -------------------------------------------------------------------------------

    def copy(self) -> Learner:
        """The learner as it is, in modules and tensors of its own."""
        try:
            return copy.deepcopy(self.experiment.fitting(self.task))
        except ShapeError:
            raise
        except Exception:  # a module says in its own way that it cannot be copied
            return self.experiment.twin(self.task)

    @property
    def same_shape(self) -> bool:
        """Whether one learner serves training and test episodes."""
        task, test = self.task, self.test_task
        return (task.n_way, task.n_shot) == (test.n_way, test.n_shot)

    def beginner(self) -> Learner:
        """A learner for training episodes that nothing else uses, told that training begins."""
        learner = self.copy().train()
        learner.on_progress(0.0)
        return learner

    def judged(self) -> Learner:
        """A learner for test episodes that nothing else uses, told that training is over."""
        learner = self.copy() if self.same_shape else self.experiment.test_learner()
        learner.adapter.on_progress(1.0)
        return learner.eval()

    def module(self, part: str) -> nn.Module:
        if part == "weighting":
            return self.experiment.weighting
        if part == "hypergradient":
            assert self.experiment.learner.hypergradient is not None  # or it is not blamed
            return self.experiment.learner.hypergradient
        return self.experiment.learner.get_submodule(part)

    # -- calls ----------------------------------------------------------------------------------

    def call(self, part: str, what: str, call: Callable[[], Found]) -> Found:
        """What a part of the recipe returns. Its exceptions become one line, with its own place."""
        enabled = torch.is_grad_enabled()
        try:
            found = call()
        except FslError as error:
            if type(error) not in (FslError, ShapeError):
                raise
            self.refuse(part, f"{what}: {error}", error)
        except Exception as error:
            if os.environ.get("FSL_STRICT_PLUGINS"):
                raise
            self.refuse_raised(part, what, error)
        # A plugin that switches gradients off and not on again would stop all training after it,
        # with no error anywhere.
        if torch.is_grad_enabled() != enabled:
            torch.set_grad_enabled(enabled)
            self.refuse(
                part,
                f"{what} leaves gradients {'disabled' if enabled else 'enabled'} for all that "
                "follows. A context: with torch.no_grad()",
            )
        return found

    def require_untouched(
        self,
        episode: Episode,
        given: Episode,
        weights: dict[str, Tensor],
        learner: Learner,
        what: str,
    ) -> None:
        """Items and labels are those that were given, trained weights what they were."""
        for set_name, now, then in (
            ("support", episode.support, given.support),
            ("query", episode.query, given.query),
        ):
            for field, tensor in now._asdict().items():
                if not torch.equal(tensor, getattr(then, field)):
                    self.refuse(
                        "adapter",
                        f"{what} changes {set_name}.{field} in place. New tensors: the data "
                        "belongs to the episode",
                    )
        parameters = dict(learner.named_parameters())
        for name, value in weights.items():
            if name not in parameters or not torch.equal(parameters[name], value):
                self.refuse(
                    name.partition(".")[0],
                    f"{what} changes {name} in place. Copies: meta-parameters belong to the outer "
                    "loop",
                )

    # -- refusals -------------------------------------------------------------------------------

    def require(self, part: str, wrong: str) -> None:
        """Refuse the part if something is wrong; "" says that nothing is."""
        if wrong:
            self.refuse(part, wrong)

    def refuse(self, part: str, what: str, cause: BaseException | None = None) -> NoReturn:
        path: KeyPath = ("outer", part) if part in ("weighting", "hypergradient") else (part,)
        raise PluginError(f"{self.experiment.recipe.named(path)}: {what}") from cause

    def refuse_raised(self, part: str, what: str, error: Exception) -> NoReturn:
        part = self._blamed(part, error)
        module, items = self.module(part), self.episodes[0].support.x
        if forgot_super(error):
            self.refuse(part, NO_SUPER, error)
        # An id beyond a table is not a matter of types, and a table is never of the ids' type.
        beyond = isinstance(error, IndexError)
        others = "" if beyond else next(soundness.unlike(module, items), "")
        hint = f" {others}, and items are {items.dtype} on {items.device}." if others else ""
        told = raised(error, type(module).__module__)
        self.refuse(part, f"{what} raised {told}.{hint} {STRICT}", error)

    def _blamed(self, part: str, error: Exception) -> str:
        """The part whose code the error came from last: an adapter calls the backbone."""
        parts = (part, "adapter", "backbone") if part == "hypergradient" else (part, "backbone")
        homes = {p: type(self.module(p)).__module__ for p in parts}
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            for candidate, home in homes.items():
                if belongs(frame.filename, home):
                    return candidate
        return part


def cloned(episode: Episode) -> Episode:
    (sx, sy), (qx, qy), index = episode
    return Episode(LabelledSet(sx.clone(), sy.clone()), LabelledSet(qx.clone(), qy.clone()), index)

"""One made-up episode before a run: what would end in a wrong number or a traceback is one line.

The parts of a recipe are tried on copies, with items that nobody drew, so no data is read and
nothing is changed. What is measured, and not what a class is called, decides.
"""

from __future__ import annotations

import copy
import json
import os
import random
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fsl_core.adapter import Adapter
from fsl_core.assembly.experiment import Experiment
from fsl_core.blame import NO_SUPER, STRICT, belongs, forgot_super, raised
from fsl_core.data.seeding import seed_torch
from fsl_core.engine import soundness
from fsl_core.episode import Episode, LabelledSet, TaskShape
from fsl_core.errors import FslError, PluginError, ShapeError
from fsl_core.learner import Learner
from fsl_core.nn.norms import support_reference
from fsl_core.weighting import Outcomes

FEW = 2
"""Queries per class: enough to see a wrong shape, and quick."""

TOLERANCE = 1e-4
"""Of numbers that should be equal; float32 sums on a GPU may differ in their order."""


def preflight(experiment: Experiment) -> None:
    """Try a recipe's parts on made-up episodes as training and evaluation use them.

    PluginError, one line, for the first fault: the part, its class and where it comes from, what was
    found, what would fit. Random states are put back, and the experiment stays as it is.
    """
    wanted = experiment.source.task.n_query
    with _random_states_put_back(experiment.device):
        try:
            _Trial(experiment, min(FEW, wanted)).run()
        except PluginError:
            if wanted <= FEW:
                raise
            _Trial(experiment, wanted).run()  # a part may be made for this number of queries alone


def preflight_all(experiments: Iterable[Experiment]) -> None:
    """`preflight` of several recipes. Learners that are named alike are tried once."""
    tried = set()
    for experiment in experiments:
        sections = experiment.recipe.resolved()
        named = [sections[key] for key in ("episodes", "backbone", "adapter", "evaluate")]
        learner = json.dumps([named, sections["outer"]["steps"] > 0], sort_keys=True)
        if learner not in tried:
            preflight(experiment)
            tried.add(learner)
        else:
            with _random_states_put_back(experiment.device):
                _Trial(experiment, FEW).weighting()


def made_up_episodes(
    task: TaskShape, count: int, seed: int = 0, device: torch.device | str = "cpu"
) -> list[Episode]:
    """Episodes of random items, values 0 .. 1, that are alike within a class; labels as they are."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    def items(means: Tensor, per_class: int) -> LabelledSet:
        x = (means + uniform(task.n_way, per_class, *task.input_shape)).flatten(0, 1) / 2
        y = torch.arange(task.n_way).repeat_interleave(per_class)
        y = y if task.kind == "classification" else 2 * uniform(len(x), task.output_dim) - 1
        return LabelledSet(x.to(device), y.to(device))

    drawn = []
    for index in range(count):
        means = uniform(task.n_way, 1, *task.input_shape)
        support, query = items(means, task.n_shot), items(means, task.n_query)
        drawn.append(Episode(support, query, torch.tensor(index, device=device)))
    return drawn


class _Outcome(NamedTuple):
    """What one task came to."""

    loss: Tensor
    prediction: Tensor


class _Trial:
    """The parts of one experiment under made-up episodes; each method raises at the first fault."""

    def __init__(self, experiment: Experiment, n_query: int):
        self.experiment, self.device = experiment, experiment.device
        source, test = experiment.source.task, experiment.test_task
        self.task = _with_queries(source, n_query)
        self.test_task = _with_queries(test, min(n_query, test.n_query))
        self.episodes = made_up_episodes(self.task, 2, device=self.device)
        self.test_episodes = made_up_episodes(self.test_task, 2, device=self.device)

    def run(self) -> None:
        moved = self.forward()
        trains = self.experiment.recipe.sections.outer.steps > 0
        trained = self.training(moved) if trains else None
        self.evaluation()
        if trained is not None:
            self.statistics(*trained)
            self.weighting()

    # -- the backbone alone ---------------------------------------------------------------------

    def forward(self) -> set[str]:
        """One forward pass in training mode; the names of what it moved that a checkpoint keeps."""
        backbone, x = self.copy().train().backbone, self.episodes[0].support.x.clone()
        before = soundness.copied(soundness.kept(backbone))
        given = x.clone()

        def call() -> Any:
            with support_reference(x):
                return backbone(x)

        features = self.call("backbone", "forward", call)
        shape = (len(x), backbone.feature_dim)
        if isinstance(features, Tensor) and features.shape[:1] + features.shape[2:] == (len(x),):
            self.require_feature_dim(features.shape[1])
        self.require("backbone", soundness.wrong_output("forward: features", features, shape, None))
        if not torch.equal(x, given):
            self.refuse(
                "backbone",
                "forward changes the items it is given, which the other tasks and the evaluation "
                "share. A new tensor: no operation in place on the input",
            )
        return set(soundness.changed(before, soundness.kept(backbone)))

    def require_feature_dim(self, found: int) -> None:
        claimed = self.experiment.learner.backbone.feature_dim
        if found != claimed:
            self.refuse(
                "backbone",
                f"feature_dim is {claimed}, and forward returned features of length {found}. "
                f"feature_dim = {found}, or features of that length",
            )

    # -- training -------------------------------------------------------------------------------

    def training(self, moved: set[str]) -> tuple[set[str], set[str], Learner]:
        """Objective and meta-gradient, of one task and after another.

        Returns the names of what forward passes move and of that what the objective leaves as it
        was; the learner as training leaves it.
        """
        first, second = self.episodes
        learner = self.copy().train()
        learner.adapter.on_progress(0.0)
        moved = {f"backbone.{name}" for name in moved}
        with _watching(learner) as seen:
            before = soundness.copied(soundness.kept(learner))
            alone = self.objective(learner, first, moved=moved)
        moved |= seen
        lost = moved - set(soundness.changed(before, soundness.kept(learner)))
        after_another = self.copy().train()
        after_another.adapter.on_progress(0.0)
        self.objective(after_another, second, gradient=False)
        between = soundness.copied(soundness.hidden(after_another))
        again = self.objective(after_another, first, gradient=False)
        if not _alike(again, alone):
            self.refuse_memory(after_another, first, alone)
        drifting = soundness.changed(between, soundness.hidden(after_another))
        if type(learner.adapter).on_progress is not Adapter.on_progress:
            after_another.adapter.on_progress(1.0)  # what follows a warm-up
            self.objective(after_another, first, gradient=False)
        return lost, set(drifting), after_another

    def objective(
        self,
        learner: Learner,
        episode: Episode,
        gradient: bool = True,
        moved: Collection[str] = (),
    ) -> _Outcome:
        """The objective of a task; moved: what forward passes move, which torch.func refuses."""
        given, weights = _cloned(episode), _trained_values(learner)
        seed_torch("preflight")

        def call() -> Any:
            try:
                return learner.objective(episode, self.loss)
            except RuntimeError as error:
                if moved and "mutate a captured Tensor" in str(error):
                    self.refuse_lost(_first_float(learner, moved))
                raise

        found = self.call("adapter", "objective", call)
        if not (isinstance(found, tuple) and len(found) == 2):
            self.refuse(
                "adapter",
                f"objective returned a {type(found).__name__}. A pair: loss and prediction",
            )
        loss, prediction = found
        shape = (len(episode.query.x), self.task.output_dim)
        self.require("adapter", soundness.wrong_output("predictions", prediction, shape, None))
        self.require("adapter", soundness.wrong_loss(loss))
        self.require_untouched(episode, given, weights, learner, "objective")
        if gradient:
            self.meta_gradient(learner, loss)
        return _Outcome(loss.detach(), prediction.detach())

    def loss(self, prediction: Any, y: Tensor) -> Tensor:
        """The task's loss, with a shape in place of what torch says of one that it cannot take."""
        try:
            return self.task.loss(prediction, y)
        except Exception as error:
            shape = (len(y), self.task.output_dim)
            wrong = soundness.wrong_output("predictions", prediction, shape, None)
            if wrong:
                raise FslError(wrong) from error
            raise

    def meta_gradient(self, learner: Learner, loss: Tensor) -> None:
        """It reaches a parameter and is finite."""
        trained = {name: p for name, p in learner.named_parameters() if p.requires_grad}

        def call() -> Any:
            return torch.autograd.grad(loss, list(trained.values()), allow_unused=True)

        found = self.call("adapter", "meta-gradient", call) if loss.requires_grad else ()
        gradients = dict(zip(trained, found, strict=False))
        if not any(g is not None for g in gradients.values()):
            self.refuse(
                "adapter",
                "the loss depends on none of the parameters that training would move. Nothing "
                "detached and no torch.no_grad() on the way from the weights to the loss",
            )
        for name, gradient in gradients.items():
            if gradient is not None and not gradient.isfinite().all():
                self.refuse(
                    "adapter",
                    f"the meta-gradient of {name} is not finite. Safe square roots, logarithms and "
                    "divisions, or smaller inner steps",
                )

    def refuse_memory(self, learner: Learner, episode: Episode, alone: _Outcome) -> None:
        """A task changed what the next one gives. What a checkpoint holds may do so."""
        found = soundness.changed(
            soundness.hidden(self.experiment.learner), soundness.hidden(learner)
        )
        learner.load_state_dict(self.experiment.learner.state_dict())
        learner.adapter.on_progress(0.0)
        if _alike(self.objective(learner, episode, gradient=False), alone):
            return
        names = f" ({', '.join(found)})" if found else ""
        self.refuse(
            "adapter" if all(name.startswith("adapter.") for name in found) else "backbone",
            f"a task gives another loss once another task came before it: state is kept between "
            f"tasks{names}, and no checkpoint holds it. What is learned of a task in the predictor "
            "alone, or in a buffer (register_buffer)",
        )

    # -- evaluation -----------------------------------------------------------------------------

    def evaluation(self) -> None:
        """As `evaluate` does it: in evaluation mode, without gradients, every predictor."""
        first, second = self.test_episodes
        learner = self.judged()
        expected = self.predictions(learner, first, "trajectory")[-1]
        self.predictions(learner, second, "adapt")
        (found,) = self.predictions(learner, first, "adapt")
        if soundness.close(found, expected, TOLERANCE):
            return
        (alone,) = self.predictions(self.judged(), first, "adapt")
        if soundness.close(alone, expected, TOLERANCE):
            self.refuse(
                "adapter",
                "in evaluation a task gives other predictions once another task came before it. "
                "Nothing kept from one task to the next, randomness from torch's global generator",
            )
        self.refuse(
            "adapter",
            "the last predictor of trajectory is not that of adapt: validation would judge one and "
            "the test the other. Both overridden alike, or adapt alone",
        )

    def predictions(self, learner: Learner, episode: Episode, method: str) -> list[Tensor]:
        """Of the predictors of `adapt` or `trajectory`; nothing may change on the way."""
        before, given = soundness.snapshot(learner, "the learner"), _cloned(episode)
        seed_torch("preflight")
        found = self.predict(learner, episode, method)
        self.require_untouched(episode, given, {}, learner, "evaluation")
        changed = soundness.changed(before, soundness.snapshot(learner, "the learner"))
        if changed:
            self.refuse(
                "adapter",
                f"an evaluation changes {changed[0]}. Nothing: episodes are judged independently",
            )
        return found

    @torch.no_grad()
    def predict(self, learner: Learner, episode: Episode, method: str) -> list[Tensor]:
        adapt = getattr(learner, method)
        found = self.call("adapter", f"{method} in evaluation", lambda: adapt(episode))
        predictors = [found] if method == "adapt" else found
        if not predictors:
            self.refuse("adapter", "trajectory is empty. At least the predictor of adapt")
        shape, found = (len(episode.query.x), self.test_task.output_dim), []
        for predictor in predictors:
            prediction = self.call(
                "adapter",
                "predictor in evaluation",
                lambda predictor=predictor: predictor(episode.query.x),
            )
            wrong = soundness.wrong_output("predictions in evaluation", prediction, shape, None)
            self.require("adapter", wrong)
            found.append(prediction)
        return found

    # -- what layers keep -----------------------------------------------------------------------

    def statistics(self, lost: set[str], drifting: set[str], trained: Learner) -> None:
        """Refuse what evaluation reads and training does not move, or moves where nobody keeps it."""
        learner = (trained if self.same_shape else self.judged()).eval()
        for name in sorted(lost):
            if self.reads(learner, name):
                self.refuse_lost(name)
        for name in sorted(drifting):
            if self.reads(learner, name):
                part, _, attribute = name.partition(".")
                self.refuse(
                    part,
                    f"each task moves the attribute {attribute}, which predictions read and no "
                    "checkpoint holds. A buffer (register_buffer)",
                )

    def reads(self, learner: Learner, name: str) -> bool:
        """Whether predictions change with this buffer, frozen parameter or attribute."""
        episode = self.test_episodes[0]

        @torch.no_grad()
        def judge() -> Tensor:
            seed_torch("preflight")
            return learner.adapt(episode)(episode.query.x)

        expected = judge()
        try:
            with soundness.disturbed(learner, name):
                found = judge()
        except AttributeError:  # a twin for another shape lacks it
            return False
        return not torch.equal(found, expected)

    def refuse_lost(self, name: str) -> None:
        owner, _, buffer = name.rpartition(".")
        layer, part = self.experiment.learner.get_submodule(owner), name.partition(".")[0]
        adapter = self.experiment.recipe.chosen["adapter",].name
        place = owner.partition(".")[2] or "it"
        remedy = "A layer that keeps nothing"
        if isinstance(layer, _NormBase):
            remedy = "fsl.replace_norms(module, 'transductive') in its constructor"
        self.refuse(
            part,
            f"{place} ({type(layer).__name__}) moves its {buffer} in training, which adapter "
            f"{adapter!r} cannot keep: it computes with other weights than the layer's own. "
            f"Evaluation would read what never moved. {remedy}, or an adapter that calls the "
            "backbone as it is, such as nearest-centroid",
        )

    # -- the weighting --------------------------------------------------------------------------

    def weighting(self) -> None:
        """Weights of a made-up meta-batch."""
        weighting = copy.deepcopy(self.experiment.weighting).train()
        size = self.experiment.recipe.sections.outer.meta_batch_size
        columns = sum(p.numel() for p in self.experiment.learner.parameters() if p.requires_grad)
        generator = torch.Generator().manual_seed(0)
        losses = torch.rand(size, generator=generator).to(self.device)
        gradients = torch.randn(size, columns, generator=generator).to(self.device)
        ids = torch.arange(size, device=self.device) % (self.experiment.source.tasks or size)
        seen = gradients if "gradients" in weighting.needs else None
        outcomes = Outcomes(losses, seen, ids)
        seed_torch("preflight")
        weights = self.call("weighting", "weigh", lambda: weighting.weigh(outcomes))
        self.require("weighting", soundness.wrong_output("weights", weights, (size,), None))
        if weights.requires_grad:
            value = self.call(
                "weighting", "objective", lambda: weighting.objective(weights, outcomes)
            )
            self.require("weighting", soundness.wrong_loss(value))
            self.call("weighting", "gradient of its objective", value.backward)

    # -- copies, calls and words ----------------------------------------------------------------

    def copy(self) -> Learner:
        """The learner as it is, in modules and tensors of its own."""
        try:
            return copy.deepcopy(self.experiment.learner)
        except Exception:  # a module says in its own way that it cannot be copied
            return self.experiment.twin(self.experiment.source.task)

    @property
    def same_shape(self) -> bool:
        task, test = self.experiment.source.task, self.experiment.test_task
        return (task.n_way, task.n_shot) == (test.n_way, test.n_shot)

    def judged(self) -> Learner:
        """A learner for test episodes that nothing else uses, told that training is over."""
        learner = self.copy() if self.same_shape else self.experiment.test_learner()
        learner.adapter.on_progress(1.0)
        return learner.eval()

    def call(self, part: str, what: str, call: Callable[[], Any]) -> Any:
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
        if torch.is_grad_enabled() != enabled:
            torch.set_grad_enabled(enabled)
            self.refuse(
                part,
                f"{what} leaves gradients {'disabled' if enabled else 'enabled'} for all that "
                "follows. A context: with torch.no_grad()",
            )
        return found

    def refuse_raised(self, part: str, what: str, error: Exception) -> None:
        part = self.blamed(part, error)
        module, items = self.module(part), self.episodes[0].support.x
        if forgot_super(error):
            self.refuse(part, NO_SUPER, error)
        others = next(soundness.unlike(module, items), "")
        hint = f" {others}, and items are {items.dtype} on {items.device}." if others else ""
        told = raised(error, type(module).__module__)
        self.refuse(part, f"{what} raised {told}.{hint} {STRICT}", error)

    def blamed(self, part: str, error: Exception) -> str:
        """The part whose code the error came from last: an adapter calls the backbone."""
        homes = {p: type(self.module(p)).__module__ for p in (part, "backbone")}
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            for candidate, home in homes.items():
                if belongs(frame.filename, home):
                    return candidate
        return part

    def require(self, part: str, wrong: str) -> None:
        if wrong:
            self.refuse(part, wrong)

    def require_untouched(
        self,
        episode: Episode,
        given: Episode,
        weights: dict[str, Tensor],
        learner: Learner,
        what: str,
    ) -> None:
        """Items and labels are those that were given, trained weights what they were."""
        for set_name in ("support", "query"):
            for field, tensor in getattr(episode, set_name)._asdict().items():
                if not torch.equal(tensor, getattr(getattr(given, set_name), field)):
                    self.refuse(
                        "adapter",
                        f"{what} changes {set_name}.{field} in place. New tensors: the data belongs "
                        "to the episode",
                    )
        now = dict(learner.named_parameters())
        for name, value in weights.items():
            if name not in now or not torch.equal(now[name], value):
                self.refuse(
                    name.partition(".")[0],
                    f"{what} changes {name} in place. Copies: meta-parameters belong to the outer "
                    "loop",
                )

    def module(self, part: str) -> nn.Module:
        if part == "weighting":
            return self.experiment.weighting
        return getattr(self.experiment.learner, part)

    def refuse(self, part: str, what: str, cause: BaseException | None = None) -> None:
        path = ("outer", "weighting") if part == "weighting" else (part,)
        raise PluginError(f"{self.experiment.recipe.named(path)}: {what}") from cause


def _first_float(learner: Learner, names: Collection[str]) -> str:
    state = soundness.kept(learner)
    return min(names, key=lambda name: (not state[name].is_floating_point(), name))


def _with_queries(task: TaskShape, n_query: int) -> TaskShape:
    return replace(task, n_query=n_query)


def _cloned(episode: Episode) -> Episode:
    (sx, sy), (qx, qy), index = episode
    return Episode(LabelledSet(sx.clone(), sy.clone()), LabelledSet(qx.clone(), qy.clone()), index)


def _trained_values(learner: Learner) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in learner.named_parameters() if p.requires_grad}


def _alike(found: _Outcome, expected: _Outcome) -> bool:
    return soundness.close(found.loss, expected.loss, TOLERANCE) and soundness.close(
        found.prediction, expected.prediction, TOLERANCE
    )


@contextmanager
def _watching(learner: Learner) -> Iterator[set[str]]:
    """Within this context, the names of buffers of the adapter's layers that their calls move.

    Also while a stateless call has put copies in their place.
    """
    seen: set[str] = set()
    handles = []

    def watch(name: str, layer: nn.Module) -> None:
        before: list[dict[str, Tensor]] = []

        def enter(layer: nn.Module, _: Any) -> None:
            before.append({n: b.detach().clone() for n, b in layer.named_buffers(recurse=False)})

        def leave(layer: nn.Module, *_: Any) -> None:
            now, then = dict(layer.named_buffers(recurse=False)), before.pop()
            with suppress(RuntimeError):  # within torch.func.vmap no value is read
                seen.update(f"adapter.{name}.{n}" for n in soundness.changed(then, now))

        handles.append(layer.register_forward_pre_hook(enter))
        handles.append(layer.register_forward_hook(leave))

    for name, layer in learner.adapter.named_modules():
        if name and list(layer.buffers(recurse=False)):
            watch(name, layer)
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _random_states_put_back(device: torch.device) -> Iterator[None]:
    """Torch's, NumPy's and Python's own: plugins may draw from any of them."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)

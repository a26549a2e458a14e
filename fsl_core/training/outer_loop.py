"""The one outer loop: draw a meta-batch, compute its meta-gradient, step.

And validate, checkpoint, evaluate.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from fsl_core.assembly.experiment import check_data, splits_in_use
from fsl_core.data.groups import Group, ids_of, in_order
from fsl_core.data.seeding import seed_torch
from fsl_core.engine.choice import Choice
from fsl_core.engine.meta_gradient import MetaBatchResult, MetaGradient
from fsl_core.engine.modes import Tasks
from fsl_core.engine.ranks import ALONE, Ranks
from fsl_core.errors import DivergedError, Interrupted, TrainingError
from fsl_core.learner import Learner
from fsl_core.nn.arithmetic import arithmetic
from fsl_core.nn.norms import AVERAGED, Norm, collect_statistics
from fsl_core.runs.data_record import keep_data_record, refuse_other_data
from fsl_core.runs.run import Run
from fsl_core.runs.starting import keep_start
from fsl_core.training.conflict import gradient_conflict
from fsl_core.training.judging import evaluate_run, state_of
from fsl_core.training.memory import enough_memory
from fsl_core.training.mode_choice import choose_execution, why_not_shared

PROCESSES_PAY, MOST_PROCESSES = 120.0, 8
"""Seconds of training from which it repays to start processes, which takes some five; and how many
are started at most, each of which takes some hundred megabytes."""


def processes_of(run: Run) -> int:
    """How many processes would take less time than this one for what is left of a run.

    They share the workers, if that repays their start. Workers of one process wait for each other
    at every operation, because only one at a time has the interpreter. The bits are the same.
    """
    several = run.ranks.alone and run.directory is not None and dist.is_available()
    if not several or run.step >= run.steps:
        return 1
    choice = _chosen(run)
    execution, seconds = choice.execution, choice.seconds.get(str(choice.execution)) or 0.0
    repays = (run.steps - run.step) * seconds >= PROCESSES_PAY
    return min(execution.workers, MOST_PROCESSES) if repays else 1


def train(run: Run) -> None:
    """Train from `run.step` to the recipe's last step.

    Every random number is a function of (seed, step), so a run that continues from a checkpoint
    ends bit-identical to an uninterrupted one (CPU).
    Raises DataError if the data is not the data that training began with.
    Raises TrainingError on a loss, gradient or weight that is not finite; the last good checkpoint
    stays. Raises Interrupted if `run.stop` asks for it, with the steps done saved.

    Every rank of the run calls this. They end with the same weights.
    """
    source, splits = run.experiment.source, splits_in_use(run.experiment)
    learner = run.experiment.learner
    if run.directory is not None:  # before a change makes the data too small
        refuse_other_data(run.directory, source, splits, run.experiment.further)
    check_data(run.experiment)
    run.try_parts()
    state_of(learner.adapter)  # refused now rather than when training is done
    kept_in = run.directory if run.ranks.first else None
    run.notes += keep_data_record(kept_in, source, splits, run.step > 0, run.experiment.further)
    if kept_in is not None and run.started_from:
        keep_start(kept_in, run.started_from)
    run.ranks.equal_start(*run.modules.values())
    run.notes += [f"backbone: {note}" for note in getattr(learner.backbone, "notes", ())]
    run.notes += filter(None, [_advice_of_estimate(run)])
    if run.steps == 0:
        _keep_untrained(run)
        return
    compute, optimizer = _prepare(run), run.optimizer
    assert optimizer is not None  # a recipe with steps and nothing to train is refused
    for told in run.observers.unknown_trackers() if run.ranks.first else ():
        run.observers.warn(told)
    run.observers.tell("fsl_run_started", run=run.view())
    with run.stop.heeding():
        saved = time.monotonic()
        if run.unvalidated:
            run.experiment.fitting.on_progress(run.progress(run.step - 1))
            _validate(run)
            run.save("last")
        while True:
            batch = _draw(run, compute.ranks, saved)
            if batch.stop or batch.late:
                run.save("last")
                saved = time.monotonic()
            if batch.stop:
                raise Interrupted
            if run.step >= run.steps:
                return
            for group, rate in zip(optimizer.param_groups, run.base_rates, strict=True):
                group["lr"] = rate * run.schedule(run.step, run.steps)
            metrics = _outer_step(run, compute, optimizer, batch)
            run.step += 1
            run.record({"step": run.step, **metrics})
            run.observers.tell("fsl_step_finished", run=run.view(), step=run.step, metrics=metrics)
            if _due(run, run.recipe.sections.outer.validate_every):
                _validate(run)
            if _due(run, run.recipe.sections.outer.checkpoint_every):
                run.save("last")
                saved = time.monotonic()


class _Batch(NamedTuple):
    """What this rank computes of the next step, and what all ranks have agreed on before it.

    ids:  of all tasks of the step; empty after the last step.
    stop: somebody wants the run to stop.    late: the last checkpoint is old.
    """

    groups: Sequence[Group]
    ids: Tensor
    stop: bool
    late: bool


def _draw(run: Run, ranks: Ranks, saved: float) -> _Batch:
    """Draw this rank's part of the next meta-batch. saved: when the last checkpoint was written."""
    outer, groups = run.recipe.sections.outer, list[Group]()
    size = outer.meta_batch_size if run.step < run.steps else 0
    own, first = ranks.part(size), run.step * outer.meta_batch_size

    def draw() -> tuple[list[int], bool, bool]:
        if own:
            indices = range(first + own.start, first + own.stop)
            groups.extend(run.experiment.source.groups("train", indices, run.recipe.sections.seed))
        seconds = time.monotonic() - saved
        late = outer.checkpoint_seconds is not None and seconds >= outer.checkpoint_seconds
        return (ids_of(groups).tolist() if groups else []), run.stop.requested, late

    told = run.ranks.gather(draw)
    shared = told if ranks.count == len(told) else told[:1]
    ids = torch.tensor([i for of_rank, *_ in shared for i in of_rank], dtype=torch.int64)
    stops, lates = [stop for _, stop, _ in told], [late for *_, late in told]
    return _Batch(groups, ids.to(run.device), any(stops), run.step > 0 and lates[0])


def _advice_of_estimate(run: Run) -> str:
    chosen, estimate = run.recipe.chosen, run.experiment.learner.hypergradient
    if estimate is None:
        return ""
    # Parts that a program made by hand have no names.
    named = [chosen.get(("outer", part)) for part in ("optimizer", "schedule")]
    told = estimate.advice(*(part.name for part in named if part)) if all(named) else ""
    return f"hypergradient {estimate.name!r}: {told}" if told else ""


def _due(run: Run, every: int) -> bool:
    return bool(every) and (run.step % every == 0 or run.step == run.steps)


def _keep_untrained(run: Run) -> None:
    """Save what a run of no steps begins with: that is what is judged."""
    run.choice = choose_execution(run)
    run.observers.tell("fsl_run_started", run=run.view())
    run.save("last")


def _chosen(run: Run) -> Choice:
    with enough_memory(run, "the first meta-batch", TrainingError):
        run.choice = choose_execution(run)
    return run.choice


def _prepare(run: Run) -> MetaGradient:
    experiment, choice = run.experiment, _chosen(run)
    with enough_memory(run, "the first meta-batch", TrainingError):
        reason = why_not_shared(run)
    if reason:
        run.notes.append(f"every process computes all tasks of a step: {reason}")
    return MetaGradient(
        experiment.fitting,
        experiment.weighting,
        experiment.source.task.loss,
        choice.execution,
        ALONE if reason else run.ranks,
    )


def _outer_step(
    run: Run, compute: MetaGradient, optimizer: Optimizer, batch: _Batch
) -> dict[str, float]:
    experiment, outer = run.experiment, run.recipe.sections.outer
    learner, task = experiment.learner, experiment.source.task
    started = time.perf_counter()
    learner.train()
    experiment.fitting.on_progress(run.progress(run.step))
    groups = batch.groups

    def scores(tasks: Tasks) -> list[float]:
        found = tasks.predictions
        if isinstance(found, Tensor):  # all of one shape: small tasks take long one by one
            return task.score(found, groups[0].episodes.query.y).tolist()
        labels = in_order(groups, (group.episodes.query.y for group in groups))
        return [float(task.score(p, y)) for p, y in zip(found, labels, strict=True)]

    seed_torch(run.recipe.sections.seed, "step", run.step)
    watched = (
        bool(outer.log_conflict)
        and run.step % outer.log_conflict == 0
        and outer.meta_batch_size > 1
    )
    with enough_memory(run, f"outer step {run.step + 1}", TrainingError):
        outcome = compute(groups, watched, batch.ids, scores)
    _refuse_non_finite(run, batch.ids, outcome)
    norm = _clip(run, optimizer)
    optimizer.step()
    if keeps_statistics(learner):
        move_running_statistics(learner, _whole_batch(run, compute.ranks, groups))
    learner.on_step(batch.ids)
    estimate = learner.hypergradient
    score = sum(number for of_rank in outcome.said for number in of_rank)
    # Gradients are kept only if they are watched.
    conflict = {} if outcome.gradients is None else gradient_conflict(outcome.gradients)
    return {
        "loss": float(outcome.losses.mean()),
        task.metric: score / outer.meta_batch_size,
        "lr": optimizer.param_groups[0]["lr"],
        "gradient_norm": norm,
        **conflict,
        **({} if estimate is None else estimate.metrics()),
        "seconds": time.perf_counter() - started,
    }


def _clip(run: Run, optimizer: Optimizer) -> float:
    outer = run.recipe.sections.outer
    parameters = [
        p for group in optimizer.param_groups for p in group["params"] if p.grad is not None
    ]
    norm = float(torch.nn.utils.get_total_norm([p.grad for p in parameters]))
    if not norm < float("inf"):
        raise DivergedError(
            f"outer step {run.step + 1}: the meta-gradient is not finite. {_advice(run)}"
        )
    if outer.clip_gradient_value is not None:
        torch.nn.utils.clip_grad_value_(parameters, outer.clip_gradient_value)
    if outer.clip_gradient_norm is not None:
        torch.nn.utils.clip_grad_norm_(parameters, outer.clip_gradient_norm)
    return norm


def _whole_batch(run: Run, ranks: Ranks, own: Sequence[Group]) -> Sequence[Group]:
    """The meta-batch of this step, of which this rank has drawn its own part."""
    if ranks.alone:
        return own
    size, sections = run.recipe.sections.outer.meta_batch_size, run.recipe.sections
    indices = range(run.step * size, (run.step + 1) * size)
    return run.experiment.source.groups("train", indices, sections.seed)


def _refuse_non_finite(run: Run, ids: Tensor, outcome: MetaBatchResult) -> None:
    bad = (~torch.isfinite(outcome.losses)).nonzero().flatten().tolist()
    if bad:
        task, loss = int(ids[bad[0]]), float(outcome.losses[bad[0]])
        raise DivergedError(
            f"outer step {run.step + 1}, episode {task}: the loss is {loss}. {_advice(run)}"
        )


def _advice(run: Run) -> str:
    state = "No checkpoint was written yet"
    if run.records.has("last"):
        state = f"The last good checkpoint is {run.records.named('last')}"
    return f"A smaller step size or clipping may help. {state}"


def keeps_statistics(learner: Learner) -> bool:
    """Whether it has norm layers whose averages move with each outer step."""
    return not _policies(learner).isdisjoint(AVERAGED)


def _policies(learner: Learner) -> set[str]:
    norms = [m for m in learner.backbone.modules() if isinstance(m, Norm)]
    return {m.policy for m in norms if m.policy != "running" or m.momentum}


def move_running_statistics(learner: Learner, groups: Sequence[Group]) -> None:
    """One forward pass over the meta-batch, for norm layers that keep averages.

    It sees the support sets, and for policy `ordinary` the query sets, too. Without such layers
    there is none. Every rank makes it over all tasks: statistics of parts, put together, would
    be rounded otherwise.
    """
    policies = _policies(learner)
    if policies.isdisjoint(AVERAGED):
        return
    items = [group.episodes.support.x.flatten(0, 1) for group in groups]
    if "ordinary" in policies:
        items += [group.episodes.query.x.flatten(0, 1) for group in groups]
    with torch.no_grad(), collect_statistics(), arithmetic(items[0].device):
        learner.backbone(items[0] if len(items) == 1 else torch.cat(items))


def _validate(run: Run) -> None:
    outer = run.recipe.sections.outer
    try:
        evaluation = evaluate_run(
            run,
            "validation",
            outer.validate_episodes,
            each_step=False,
            on_episode=run.stop.check,
        )
    except Interrupted:  # the step is kept, and a resume begins with this validation
        run.unvalidated = True
        run.save("last")
        raise
    run.unvalidated = False
    summary = evaluation.summary()
    score = summary[evaluation.metric]
    run.record(
        {
            "step": run.step,
            "split": "validation",
            evaluation.metric: score,
            "interval": summary["interval"],
        }
    )
    run.flush_metrics()  # a search looks at them to end a trial early
    settled = run.experiment.learner.adapter.settled
    if settled and evaluation.better_than(run.best["score"] if run.best else None):
        run.best = {"step": run.step, "score": score}
        run.save("best")
    run.observers.tell("fsl_evaluated", run=run.view(), split="validation", result=summary)

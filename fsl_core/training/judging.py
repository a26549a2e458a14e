"""Judging a run: on frozen episodes, and what of it is written down."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from fsl_core.adapter import Adapter
from fsl_core.assembly.experiment import Experiment
from fsl_core.data.source import EpisodeSource, Split
from fsl_core.engine.confusion import per_class
from fsl_core.engine.evaluation import Evaluation, evaluate
from fsl_core.episode import TaskShape
from fsl_core.errors import PluginError, RunError
from fsl_core.runs.data_record import shared_classes
from fsl_core.runs.run import Run
from fsl_core.training.memory import enough_memory
from fsl_core.training.mode_choice import workers_of


def judge(run: Run, on_episode: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Evaluate a trained run on the frozen test episodes and write episodes.csv and result.json.

    On those of every further source, too.
    """
    wanted = run.recipe.sections.evaluate
    which = run.restore_for_evaluation()
    evaluation = evaluate_run(run, "test", wanted.episodes, on_episode=on_episode)
    further = {
        label: evaluate_run(run, "test", wanted.episodes, source, on_episode=on_episode)
        for label, source in run.experiment.further.items()
    }
    chosen = run.recipe.chosen
    result = {
        "recipe": run.name,
        **evaluation.summary(),
        "episodes_name": chosen["episodes",].name,
        "backbone": chosen["backbone",].name,
        "norm": run.experiment.norm,
        "transductive": run.experiment.transductive,
        "n_query": _queries(run.experiment.test_task),
        "adapter": chosen["adapter",].name,
        "hypergradient": chosen["outer", "hypergradient"].name,
        "weighting": chosen["outer", "weighting"].name,
        "seed": run.recipe.sections.seed,
        "checkpoint": which,
        "checkpoint_step": run.records.progress_of(which)["step"],
        "steps": run.steps,
        "parameters": sum(p.numel() for p in run.experiment.learner.parameters()),
        "adaptation_seconds": evaluation.adaptation_seconds,
        "training_seconds": sum(r["seconds"] for r in run.records.metrics() if "seconds" in r),
        "device": str(run.device),
        "execution": str(run.choice),
        **({} if run.ranks.alone else {"processes": run.ranks.count}),
        **run.experiment.weights,
        **state_of(run.experiment.learner.adapter),
        **({"shared_classes": shared} if (shared := shared_classes(run.directory)) else {}),
        **_shapes(run.experiment),
        **({"steps_changed": run.steps_changed} if run.steps_changed else {}),
        **({"start_from": run.started_from} if run.started_from else {}),
        **({"on": judged_on(run.experiment.further, further)} if further else {}),
        **({"per_class": per_class(found)} if (found := evaluation.confusion) else {}),
    }
    run.records.write_result(result, evaluation, further)
    run.observers.tell("fsl_evaluated", run=run.view(), split="test", result=result)
    return result


def _queries(task: TaskShape) -> int | list[int]:
    """Query items of a class; the least and the most, if they vary."""
    return list(task.varies.n_query) if task.varies.n_query else task.n_query


def _shapes(experiment: Experiment) -> dict[str, str]:
    """The shapes of episodes in words, if they vary in training or in the test."""
    trained, judged = experiment.source.task, experiment.test_task
    if not (trained.varies or judged.varies):
        return {}
    return {"trained_on": str(trained), "judged_on": str(judged)}


def judged_on(
    sources: Mapping[str, EpisodeSource], evaluations: Mapping[str, Evaluation]
) -> dict[str, dict[str, Any]]:
    """The row of each further source that a run was judged on, by its label."""
    rows = {}
    for label, evaluation in evaluations.items():
        source = sources[label]
        task = source.task
        rows[label] = {
            **evaluation.summary(),
            "episodes_name": source.name,
            "n_way": task.n_way,
            "n_shot": task.n_shot,
            "n_query": task.n_query,
            "adaptation_seconds": evaluation.adaptation_seconds,
        }
    return rows


def state_of(adapter: Adapter) -> dict[str, Any]:
    """What an adapter says of its weights: `settled`, if it is not, and any `adapter_state`.

    Raises PluginError if that is anything but a flag and finite numbers by name.
    """
    settled, state = adapter.settled, adapter.describe()
    where = f"adapter {adapter.name!r}"
    if not isinstance(settled, bool):
        raise PluginError(f"{where}: settled: {settled!r}. True or False")
    if not isinstance(state, dict):
        raise PluginError(f"{where}: describe() gave {state!r}. Finite numbers by name")
    for name, value in state.items():
        number = isinstance(value, int | float) and math.isfinite(value)
        if not (number and isinstance(name, str)):
            raise PluginError(f"{where}: describe() gave {name!r}: {value!r}. A finite number")
    kept = {} if settled else {"settled": False}
    return {**kept, "adapter_state": dict(state)} if state else kept


def evaluate_run(
    run: Run, split: Split, episodes: int, on: EpisodeSource | None = None, **options: Any
) -> Evaluation:
    """Evaluate the run's present weights on the first `episodes` frozen episodes of a split.

    on:      another source than that of training.
    options: as for `evaluate`.
    """
    experiment, seed = run.experiment, run.recipe.sections.evaluate.seed
    source, task = (experiment.source, experiment.test_task) if on is None else (on, on.task)
    learner, workers = experiment.fitting_for(task), workers_of(run)
    options = {"workers": workers, "ranks": run.ranks, **options}
    with enough_memory(run, f"evaluation on {split}", RunError):
        return evaluate(learner, source, split, episodes, seed, task, **options)

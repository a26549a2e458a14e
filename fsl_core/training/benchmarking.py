"""A run judged on a benchmark task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fsl_core.config.benchmarks import Benchmark
from fsl_core.engine.evaluation import Evaluation, evaluate
from fsl_core.errors import RunError
from fsl_core.runs.files import ENVIRONMENT, Environment, read_json
from fsl_core.runs.keeping import without_places
from fsl_core.runs.run import Run
from fsl_core.training.judging import state_of
from fsl_core.training.mode_choice import workers_of


def judge_on_benchmark(
    run: Run, benchmark: Benchmark, on_episode: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """What `fsl bench` writes: the scores of a run on a task, and all that tells of the run.

    run: opened with the task's episodes as its one further source.
    Raises RunError before anything is judged if the episodes are not those of the task.
    """
    ((_, source),) = run.experiment.further.items()
    source.check(benchmark.split)
    which = (benchmark.split, benchmark.episodes, benchmark.seed)
    found = source.hash_of_set(*which)
    if found != benchmark.episode_set:
        raise RunError(
            f"{benchmark.title}: its episode set is {benchmark.episode_set}, and here it is "
            f"{found}. The same data in the same preparation, or another version of the task"
        )
    checkpoint = run.restore_for_evaluation()
    evaluation = evaluate(
        run.experiment.fitting_for(source.task),
        source,
        *which,
        on_episode=on_episode,
        each_step=False,
        workers=workers_of(run),
        ranks=run.ranks,
    )
    return {**_of_task(benchmark, evaluation), **_of_run(run, checkpoint)}


def _of_task(benchmark: Benchmark, evaluation: Evaluation) -> dict[str, Any]:
    summary = evaluation.summary()
    return {
        "benchmark": benchmark.name,
        "version": benchmark.version,
        **summary,
        "adaptation_seconds": evaluation.adaptation_seconds,
        "scores": evaluation.scores,
    }


def _of_run(run: Run, checkpoint: str) -> dict[str, Any]:
    experiment, chosen = run.experiment, run.recipe.chosen
    ((_, source),) = experiment.further.items()
    recipe = without_places(run.recipe.resolved())
    recipe["evaluate"].pop("on", None)
    environment = {}
    if run.directory is not None:
        environment = without_places(read_json(run.directory / ENVIRONMENT, Environment))
        environment["platform"] = str(environment.get("platform", "")).partition("-")[0]
    seconds = sum(r["seconds"] for r in run.records.metrics() if "seconds" in r)
    return {
        "name": run.directory.name if run.directory else run.name,
        "adapter": chosen["adapter",].name,
        "backbone": chosen["backbone",].name,
        "hypergradient": chosen["outer", "hypergradient"].name,
        "weighting": chosen["outer", "weighting"].name,
        "norm": experiment.norm,
        "transductive": experiment.transductive,
        "n_query": source.task.n_query,
        "seed": run.recipe.sections.seed,
        "steps": run.steps,
        "checkpoint": checkpoint,
        "training_seconds": seconds,
        **experiment.weights,
        **state_of(experiment.learner.adapter),
        "recipe": recipe,
        "environment": environment,
    }

"""What one calls from Python: the same runs, trainings and comparisons as on the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsl_core.assembly import embedding
from fsl_core.assembly.by_hand import by_hand
from fsl_core.assembly.embedding import frozen_backbone
from fsl_core.config.document import Overrides
from fsl_core.config.matrix import read_matrix
from fsl_core.config.outer import adam
from fsl_core.config.recipe import Recipe, read_recipe
from fsl_core.config.shipped import find_recipe
from fsl_core.config.yaml_text import to_yaml
from fsl_core.data.source import SPLITS, EpisodeSource, Split
from fsl_core.data.work import is_reported, report_to, reported, silent
from fsl_core.diagnosing.layers import Maps
from fsl_core.diagnosing.reuse import FeatureReuse, measure_reuse
from fsl_core.engine import evaluation
from fsl_core.engine.devices import choose_device
from fsl_core.engine.environment import place_among_ranks, threads_of
from fsl_core.engine.evaluation import Evaluation
from fsl_core.engine.fitting import Fitting
from fsl_core.engine.ranks import ALONE, Ranks, join
from fsl_core.episode import TaskShape
from fsl_core.errors import DivergedError, OptionError, PluginError, RecipeError, RunError
from fsl_core.files.paths import AnyPath
from fsl_core.hooks.loader import Loaded, load
from fsl_core.hooks.observers import Observers
from fsl_core.hooks.trust import granting
from fsl_core.learner import Learner
from fsl_core.reporting.comparison import compare_runs
from fsl_core.reporting.progress import ProgressBar, format_score, on_stderr
from fsl_core.reporting.report import ReportWriter
from fsl_core.reporting.scores import read_scores
from fsl_core.reporting.statistics import PairedDifference
from fsl_core.reporting.sweep import SweepResult, collect, table, write_tables
from fsl_core.reporting.sweep_report import write_sweep_report
from fsl_core.runs.files import RECIPE, write_atomically
from fsl_core.runs.opening import new_run, open_run
from fsl_core.runs.records import InMemory
from fsl_core.runs.run import Run
from fsl_core.runs.trial import keep_failure, keep_validation, waits
from fsl_core.sweeping.jobs import make_jobs
from fsl_core.sweeping.plan import plan_sweep
from fsl_core.sweeping.prepare import prepare
from fsl_core.sweeping.schedule import only_writer
from fsl_core.sweeping.start import Settings, start
from fsl_core.training.judging import judge
from fsl_core.training.outer_loop import train as train_run
from fsl_core.weighting import TaskWeighting

EVALUATING = "evaluating episodes"
"""What is reported of a run that is judged."""

AnyRecipe = AnyPath | Mapping[str, Any] | Recipe
"""A recipe file, the name of a shipped recipe such as `glyphs/5w1s-maml`, its data, or itself."""


@dataclass(frozen=True)
class RunResult:
    """A run that is trained and evaluated.

    result:    what result.json holds, such as `result["accuracy"]` and `result["interval"]`.
    metrics:   one record for each outer step, and one for each validation.
    learner:   the trained learner, with the weights that were judged.
    directory: where its files are; None if nothing was written.
    notes:     what is worth knowing, such as what was passed over in the data.
    """

    result: dict[str, Any]
    metrics: list[dict[str, Any]] = field(repr=False)
    learner: Learner = field(repr=False)
    directory: Path | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def score(self) -> float:
        """The mean test score: accuracy in 0 .. 1, or mean squared error."""
        return self.result[self.result["metric"]]

    @property
    def interval(self) -> float:
        """Half the width of its 95 % interval over episodes."""
        return self.result["interval"]

    def __str__(self) -> str:
        return f"{self.result.get('split', 'test')} {format_score(self.result)}"


@dataclass(frozen=True)
class SweepTable:
    """A finished sweep.

    rows:      one mapping for each row of its table, as in sweep.csv.
    result:    scores of every run and paired differences.
    failed:    titles and reasons of the runs that did not finish.
    """

    rows: list[dict[str, Any]]
    result: SweepResult = field(repr=False)
    directory: Path
    failed: dict[str, str]


def load_recipe(
    recipe: AnyRecipe, overrides: Overrides = (), *, plugins: Sequence[AnyPath] = ()
) -> Recipe:
    """Read and check a recipe.

    recipe:    a file, the name of a shipped recipe such as `glyphs/5w1s-maml`, or its data.
    overrides: values by key path, such as `{"outer.steps": 100}`, or texts such as
               `outer.steps=100`.
    plugins:   one-file plugins to import, which the recipe may name.
    Raises RecipeError, with every fault, for a recipe that does not fit.
    """
    return _recipe(recipe, overrides, _load(plugins))


def run(
    recipe: AnyRecipe,
    overrides: Overrides = (),
    *,
    out: AnyPath | None = None,
    device: str | torch.device = "auto",
    plugins: Sequence[AnyPath] = (),
    progress: bool = True,
) -> RunResult:
    """Train and evaluate a recipe, as `fsl run` does.

    recipe, overrides, plugins: as for `load_recipe`.
    out:      directory of the run. None: no file is written, and what was learned is in the result.
    device:   auto, cpu, cuda, cuda:1.
    progress: show bars and validations, in a terminal and in a notebook.
    Raises RecipeError, DataError, TrainingError and their like, all of them `fsl.FslError`.
    """
    loaded = _load(plugins)
    checked = _recipe(recipe, overrides, loaded)
    directory = None if out is None else Path(out)
    files, ranks = map(Path, loaded.files), join()
    wanted = choose_device(device, ranks)
    with (
        _shown(progress, ranks),
        new_run(directory, checked, loaded, wanted, files, ranks) as started,
    ):
        return _finished(started, complete(started))


def resume(
    directory: AnyPath,
    *,
    steps: int | None = None,
    device: str | torch.device = "auto",
    plugins: Sequence[AnyPath] = (),
    trust_plugins: bool = False,
    progress: bool = True,
) -> RunResult:
    """Continue a run from its last checkpoint, exactly as if it had never stopped.

    A finished run is only read.
    steps: train for this many outer steps in all, instead of the recipe's.
    plugins, trust_plugins: as for `adapt_to_folder`.
    """
    ranks = join()
    opening = open_run(
        Path(directory),
        choose_device(device, ranks),
        write=True,
        steps=steps,
        plugins=[Path(file) for file in plugins],
        trust_plugins=trust_plugins,
        ranks=ranks,
    )
    with _shown(progress, ranks), opening as opened:
        result = ranks.told(opened.records.result)
        if result is None:
            opened.restore_last()
            return _finished(opened, complete(opened))
        opened.restore_for_evaluation()
        return _finished(opened, result)


def train(
    learner: Learner,
    source: EpisodeSource,
    *,
    steps: int,
    meta_batch_size: int = 4,
    optimizer: torch.optim.Optimizer | None = None,
    schedule: Callable[[int, int], float] = lambda step, steps: 1.0,
    weighting: TaskWeighting | None = None,
    seed: int = 0,
    validate_every: int = 0,
    validate_episodes: int = 100,
    clip_gradient_norm: float | None = None,
    clip_gradient_value: float | None = None,
    mode: str = "loop",
    workers: int = 1,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Train a learner in place, without a recipe and without a file.

    steps:      outer steps of meta_batch_size episodes each.
    optimizer:  over the learner's parameters and those of the weighting, if it has any. None: Adam
                with step size 0.001.
    schedule:   (steps done, steps in all) -> factor on the optimizer's step sizes.
    weighting:  of the tasks of a meta-batch; None: all count the same.
    seed:       of the training episodes and of every random number of a step.
    validate_every: outer steps between validations; with them, the learner ends with the weights
                that were best in validation instead of the last ones.
    mode, workers: how a meta-batch is computed: see the recipe's section `execution`. `auto` needs
                a recipe, which tells learners apart.
    Returns one record for each outer step and each validation: step, loss, score, seconds.
    Raises FslError and its like for parts that do not fit each other or a loss that is not finite.
    """
    _require_parts("fsl.train", learner, source)
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        found = f"fsl.train: optimizer: found {_kind(optimizer)}"
        raise OptionError(f"{found}. One of torch.optim over the learner's parameters")
    if mode == "auto":
        raise RunError("fsl.train: mode 'auto' needs a recipe. loop, vmap or compiled")
    loaded, ranks = _load(()), join()
    wanted = choose_device(device, ranks)
    chosen = (
        loaded.catalogue.get("weighting", "uniform").factory() if weighting is None else weighting
    )
    experiment = by_hand(
        learner,
        source,
        chosen,
        wanted,
        seed,
        {"mode": mode, "workers": workers},
        {
            "steps": steps,
            "meta_batch_size": meta_batch_size,
            "validate_every": validate_every,
            "validate_episodes": validate_episodes,
            "clip_gradient_norm": clip_gradient_norm,
            "clip_gradient_value": clip_gradient_value,
            "checkpoint_seconds": None,
        },
    )
    if learner.hypergradient is not None and (
        reason := learner.hypergradient.unfit(learner.adapter)
    ):
        name = learner.hypergradient.name
        raise OptionError(f"fsl.train: hypergradient {name!r}: {reason}. None, or one that fits")
    learned = [p for p in learner.parameters() if p.requires_grad]
    if not learned:
        raise RunError("fsl.train: nothing to train. A parameter that requires a gradient")
    learned += [p for p in chosen.parameters() if p.requires_grad]
    rule = optimizer or adam(learned, lr=0.001)
    begun = Run(
        InMemory(),
        "fsl.train",
        experiment.recipe,
        loaded.observers if ranks.first else Observers.nobody(),
        {},
        experiment,
        rule,
        schedule,
        wanted,
        ranks=ranks,
    )
    with begun.telling_if_stopped(), _shown(progress, ranks), _watched(begun):
        train_run(begun)
    if begun.records.has("best"):
        begun.restore_for_evaluation("best")
    return begun.records.metrics()


def evaluate(
    learner: Learner,
    source: EpisodeSource,
    *,
    episodes: int = 600,
    split: Split = "test",
    seed: int = 0,
    task: TaskShape | None = None,
    workers: int = 1,
    progress: bool = True,
) -> Evaluation:
    """Judge a learner on the first frozen episodes of a split.

    seed: of the episodes, which are the same for every learner.
    task: their shape, if it is not the one of training.    workers: episodes at a time.
    Raises DataError if the split cannot give such episodes.
    """
    _require_parts("fsl.evaluate", learner, source)
    _require_frozen("fsl.evaluate", episodes, split)
    source.check_splits({split: task or source.task})
    ranks = join()
    own = evaluation.share_of_episodes(ranks, episodes)
    with _shown(progress, ranks), reported(EVALUATING, own) as advance:
        return evaluation.evaluate(
            Fitting(learner, task or source.task),
            source,
            split,
            episodes,
            seed,
            task,
            on_episode=partial(advance, 1),
            workers=workers,
            ranks=ranks,
        )


def feature_reuse(
    learner: Learner,
    source: EpisodeSource,
    *,
    episodes: int = 100,
    split: Split = "test",
    seed: int = 0,
    task: TaskShape | None = None,
    layers: Sequence[str] = (),
    maps: Maps = "whole",
    progress: bool = True,
) -> FeatureReuse:
    """How far adaptation moves the features of each layer, and the score beside it.

    episodes, split, seed, task: as for `evaluate`. More queries let more measures be valid.
    layers: shell patterns over the modules of the backbone; none: its blocks.
    maps:   `whole`: a map of features is one item. `positions`: an item at each position.
    Raises OptionError for an adapter that has no predictor before adaptation.
    """
    _require_parts("fsl.feature_reuse", learner, source)
    _require_frozen("fsl.feature_reuse", episodes, split)
    source.check_splits({split: task or source.task})
    fitting = Fitting(learner, task or source.task)
    with _shown(progress):
        return measure_reuse(
            fitting,
            source,
            split,
            episodes,
            seed,
            task,
            layers=layers,
            maps=maps,
        )


def _require_frozen(where: str, episodes: object, split: object) -> None:
    if not isinstance(episodes, int) or episodes < 2:
        raise OptionError(f"{where}: episodes: found {episodes!r}. At least 2, for an interval")
    if split not in SPLITS:
        raise OptionError(f"{where}: split: found {split!r}. {', '.join(SPLITS)}")


def embed_files(
    files: Sequence[AnyPath],
    backbone: Mapping[str, Any],
    *,
    size: int | None = None,
    device: str = "auto",
    plugins: Sequence[AnyPath] = (),
) -> Tensor:
    """(n, feature_dim) features of picture files by a frozen backbone, float32, on the CPU.

    They are computed once and kept in the cache under the bytes of the files.

    backbone: as in a recipe, such as {"name": "torchvision", "model": "resnet18"}.
    size:     of the pictures; None: what a pretrained network wants, or else 84.
    Raises DataError, which names them, for files that cannot be read.
    """
    frozen = frozen_backbone(backbone, _load(plugins).catalogue, size, choose_device(device))
    return embedding.embed_files(frozen, [Path(file) for file in files])


def sweep(
    recipe: AnyPath | Mapping[str, Any],
    overrides: Overrides = (),
    *,
    out: AnyPath,
    jobs: int | None = None,
    launcher: str | None = None,
    device: str = "auto",
    plugins: Sequence[AnyPath] = (),
    progress: bool = True,
) -> SweepTable:
    """Run every combination of a recipe's `matrix:`, as `fsl sweep` does.

    The same call goes on where it was stopped.
    out:      directory of the sweep, with one run in each folder of `runs`.
    jobs:     runs at a time, for a launcher that has this option; cores are shared among them.
    launcher: the name of what starts the runs, in place of that of the recipe, or of `local`. Its
              options are overrides such as `{"launcher.partition": "gpu"}`.
    """
    if jobs is not None and jobs < 1:
        raise RunError(f"fsl.sweep: {jobs} jobs. One at a time or more")
    if place_among_ranks()[1] > 1:
        raise RunError("fsl.sweep: this is one of several processes. One, which starts the others")
    loaded = _load(plugins)
    choose_device(device)
    given = _given(recipe)
    plan = plan_sweep(read_matrix(given, loaded.catalogue, overrides, launcher, jobs))
    starter = plan.matrix.launcher.build()
    directory = Path(out)
    queue = make_jobs(plan.cells, directory / "runs")
    told = {id(job) for job in queue if job.state == "finished"}
    with granting(loaded.files), _shown(progress), reported("runs", len(queue)) as advance:

        def show() -> None:
            for job in queue:
                if id(job) not in told and job.state in ("finished", "failed"):
                    told.add(id(job))
                    advance(1)

        threads = threads_of(starter.at_once or 1)
        prepare(queue, loaded, str(device), threads, directory.absolute().name)
        start(queue, starter, Settings(str(device)), show)
    result = collect(plan, queue)
    with only_writer(directory):
        write_tables(result, directory)
        file = _file_of(given, directory)
        page = directory / "report.html"
        write_sweep_report(page, result, queue, file, _as_texts(overrides))
    failed = {job.cell.title: str(job.error) for job in queue if job.state == "failed"}
    return SweepTable(table(result), result, directory, failed)


def compare(first: AnyPath, second: AnyPath, *, on: str | None = None) -> PairedDifference:
    """The second run minus the first on the same frozen episodes, as `fsl compare` does.

    first, second: directories of finished runs. RunError if their episodes differ.
    on: the label of a further source that both were judged on.
    """
    return compare_runs(*(read_scores(Path(run)).on(on) for run in (first, second)))


def complete(started: Run, follow: Callable[[Run], object] = lambda run: None) -> dict[str, Any]:
    """Train and judge a run that has begun, and tell its observers; returns its result.

    A trial of a search that is not chosen is not judged: its result is that of validation.
    follow: is told of the run before it trains.
    """
    follow(started)
    if started.directory is not None and started.ranks.first:
        started.observers.add(ReportWriter())
    with started.telling_if_stopped():
        with _watched(started):
            if waits(started):
                return _validated(started)
            result = _trained_and_judged(started)
        started.observers.tell("fsl_run_finished", run=started.view(), result=result)
    return result


def _validated(started: Run) -> dict[str, Any]:
    """Train a trial of a search. Its score in validation is kept, and no test episode is seen."""
    try:
        train_run(started)
        return keep_validation(started)
    except DivergedError as error:
        keep_failure(started, error)
        raise
    finally:
        started.flush_metrics()


def _trained_and_judged(started: Run) -> dict[str, Any]:
    try:
        train_run(started)
        sets = 1 + len(started.experiment.further)
        wanted = started.recipe.sections.evaluate.episodes
        episodes = sets * evaluation.share_of_episodes(started.ranks, wanted)
        with reported(EVALUATING, episodes) as advance:
            return judge(started, partial(advance, 1))
    finally:
        started.flush_metrics()


def _shown(progress: bool, ranks: Ranks = ALONE) -> AbstractContextManager[None]:
    """Within this context, long work is shown if that is wanted; one of several ranks does it."""
    return report_to(on_stderr().work if progress and ranks.first else silent)


@contextmanager
def _watched(started: Run) -> Iterator[None]:
    """Within this context the training of a run is shown, where other long work is."""
    if not is_reported():
        yield
        return
    bar = ProgressBar(on_stderr())
    started.observers.warn = on_stderr().say
    started.observers.add(bar)
    try:
        yield
    finally:
        bar.stop()


def _finished(run: Run, result: dict[str, Any]) -> RunResult:
    metrics = run.records.metrics()
    return RunResult(result, metrics, run.experiment.learner.eval(), run.directory, run.notes)


def _load(plugins: Sequence[AnyPath]) -> Loaded:
    """PluginError for a file that was named and cannot be loaded; others may be absent."""
    files = [Path(file) for file in plugins]
    loaded = load(files=files)
    for plugin in loaded.plugins:
        named = any(plugin.distribution in (str(file), file.name) for file in files)
        if named and plugin.status == "failed":
            raise PluginError(f"{plugin.title}: {plugin.reason}")
    return loaded


def _require_parts(where: str, learner: object, source: object) -> None:
    for name, found, kind in (
        ("learner", learner, Learner),
        ("source", source, EpisodeSource),
    ):
        if not isinstance(found, kind):
            told = f"{where}: {name}: found {_kind(found)}"
            raise OptionError(f"{told}. An object of class fsl.{kind.__name__}")


def _kind(found: object) -> str:
    return "None" if found is None else f"an object of type {type(found).__name__}"


def _recipe(recipe: AnyRecipe, overrides: Overrides, loaded: Loaded) -> Recipe:
    if isinstance(recipe, Recipe):
        recipe = recipe.resolved()
    return read_recipe(_given(recipe), loaded.catalogue, overrides)


def _given(recipe: AnyPath | Mapping[str, Any]) -> Path | Mapping[str, Any]:
    """The data of a recipe, or its file."""
    if isinstance(recipe, Mapping):
        return recipe
    if not isinstance(recipe, str | Path):
        told = f"recipe: found {_kind(recipe)}"
        raise RecipeError(f"{told}. A file, the name of a shipped recipe, or a mapping")
    return find_recipe(Path(recipe))


def _file_of(recipe: Path | Mapping[str, Any], directory: Path) -> Path:
    """The recipe's file; one that was given as data is written beside the runs of its sweep."""
    if isinstance(recipe, Path):
        return recipe
    file = directory / RECIPE
    write_atomically(file, to_yaml(dict(recipe)))
    return file


def _as_texts(overrides: Overrides) -> list[str]:
    if isinstance(overrides, Mapping):
        return [f"{key}={value}" for key, value in overrides.items()]
    return list(overrides)

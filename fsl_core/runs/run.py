"""A run and its directory: one writer, plain files, nothing lost when the process dies."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from filelock import FileLock, Timeout
from pydantic import Field
from torch import Tensor

from fsl_core.adapter import Adapter
from fsl_core.assembly.experiment import Experiment, build_experiment, build_optimizer, check_data
from fsl_core.assembly.parts import build_part
from fsl_core.assembly.preflight import preflight
from fsl_core.config.document import read_document
from fsl_core.config.outer import Schedule
from fsl_core.config.recipe import Recipe, read_recipe
from fsl_core.engine.choice import Choice
from fsl_core.engine.evaluation import predict_episodes
from fsl_core.engine.execution import Mode
from fsl_core.episode import Episode
from fsl_core.errors import RunError, TrainingError
from fsl_core.files.writing import UNFINISHED, remove_unfinished
from fsl_core.hooks.loader import Loaded, load
from fsl_core.hooks.observers import Observers
from fsl_core.hooks.plugin import Plugin
from fsl_core.hooks.run_view import Best, RunView
from fsl_core.hooks.trust import RecordedPlugins
from fsl_core.runs import checkpoints
from fsl_core.runs.begun import (
    change_steps,
    changes_of_steps,
    differences,
    refuse_edited,
    write_recipe,
)
from fsl_core.runs.files import (
    BEGUN,
    ENVIRONMENT,
    EXECUTION,
    METRICS,
    RECIPE,
    RESULT,
    Environment,
    Record,
    Whole,
    by_path,
    check_record,
    is_file,
    parse_record,
    read_json,
    refuse_name,
    to_json,
    write_atomically,
    writing,
)
from fsl_core.runs.records import InDirectory, InMemory, Progress, Records
from fsl_core.runs.stopping import Stop
from fsl_core.text import name_of

CHECKPOINTS = ("last", "best")
IN_USE = "another process is writing to this run"

Some = Annotated[int, Field(gt=0, le=1024)]


class _Best(Record):
    step: Whole
    score: float


class _Progress(Record):
    """What a checkpoint of a run says of its progress."""

    step: Whole
    best: _Best | None
    unvalidated: bool = False


class _Chosen(Record):
    """What execution.json holds."""

    mode: Mode
    reason: str
    workers: Some = 1
    chunk: Annotated[int, Field(gt=0)] | None = None
    precision: Literal["float32", "bf16"] = "float32"
    checkpoint_gradients: bool = False
    seconds_measured: dict[str, float | None] = Field(default_factory=dict)  # null: it failed
    when: str = ""


@dataclass
class Run:
    """A recipe being trained, or trained. Observers receive views of it.

    records: what it keeps, in a directory or in memory.
    name: of the recipe's file, without `.yaml`.
    observers: told of what happens.
    plugin_files: sha256 of its one-file plugins, by path.
    optimizer: None if there is nothing to train.
    schedule: factor on its step sizes.
    step: outer steps done.
    resumed_from: the steps that were done when it was resumed.
    best: {"step", "score"} of the best validation so far, or None.
    choice: how its meta-batches are computed and why; None before training.
    unvalidated: the validation of this step was interrupted and is still to be done.
    stop: asks its training to stop.
    notes: what a user should know, such as what was passed over in the data.
    steps_changed: when the number of its steps changed, and from what to what.
    """

    records: Records
    name: str
    recipe: Recipe
    observers: Observers
    plugin_files: Mapping[str, str]
    experiment: Experiment
    optimizer: torch.optim.Optimizer | None
    schedule: Schedule
    device: torch.device
    step: int = 0
    resumed_from: int = 0
    best: dict[str, float] | None = None
    choice: Choice | None = None
    unvalidated: bool = False
    stop: Stop = field(default_factory=Stop)
    notes: list[str] = field(default_factory=list)
    steps_changed: list[dict[str, Any]] = field(default_factory=list)
    _pending: list[str] = field(default_factory=list)
    _tried: bool = False
    base_rates: list[float] = field(init=False)
    """The step size of each parameter group before any schedule."""

    def __post_init__(self) -> None:
        # Read before anything is restored: a restored optimizer holds the scheduled rates.
        groups = self.optimizer.param_groups if self.optimizer else []
        self.base_rates = [group["lr"] for group in groups]

    @property
    def directory(self) -> Path | None:
        """Where its files lie; None if it keeps nothing."""
        return self.records.directory

    @property
    def folder(self) -> Path:
        """The directory of a run that has one, as every run that is opened again does."""
        if self.directory is None:
            raise RunError(f"{self.name}: this run is in memory alone. A run with a directory")
        return self.directory

    @property
    def steps(self) -> int:
        return self.recipe.sections.outer.steps

    def view(self) -> RunView:
        """What observers are shown of it now."""
        return RunView(
            name=self.name,
            directory=self.directory,
            seed=self.recipe.sections.seed,
            steps=self.steps,
            step=self.step,
            resumed_from=self.resumed_from,
            best=Best(int(self.best["step"]), self.best["score"]) if self.best else None,
            execution=self.choice.in_full if self.choice else "",
            device=str(self.device),
            learner=self.experiment.learner,
            task=self.experiment.source.task,
            test_task=self.experiment.test_task,
            notes=tuple(self.notes),
            _run=self,
        )

    def resolved_recipe(self) -> dict[str, Any]:
        """The whole recipe as plain data, in a copy."""
        return deepcopy(self._resolved)

    @cached_property
    def _resolved(self) -> dict[str, Any]:
        return self.recipe.resolved()

    def predict_episodes(
        self, split: Literal["validation", "test"], indices: Sequence[int]
    ) -> Iterator[tuple[Episode, Tensor]]:
        """Frozen evaluation episodes with the predictions of the present weights."""
        experiment, seed = self.experiment, self.recipe.sections.evaluate.seed
        learner, task = experiment.test_learner(), experiment.test_task
        return predict_episodes(learner, experiment.source, split, indices, seed, task)

    def try_parts(self) -> None:
        """Try the recipe's parts on a made-up episode, once, before the first step."""
        if self.step == 0 and not self._tried:
            preflight(self.experiment)
            self._tried = True

    def progress(self, step: int) -> float:
        """The share of training that is done after this step; 1 if there are no steps."""
        return step / self.steps if self.steps else 1.0

    @property
    def modules(self) -> dict[str, torch.nn.Module]:
        return {"learner": self.experiment.learner, "weighting": self.experiment.weighting}

    def kept_checkpoints(self) -> dict[str, Path]:
        """The checkpoint files that there are, by name; none of a run in memory."""
        if self.directory is None:
            return {}
        kept = [which for which in CHECKPOINTS if self.records.has(which)]
        return {which: Path(self.records.named(which)) for which in kept}

    def read_metrics(self) -> list[dict[str, Any]]:
        """The records of training, with those that are not written yet."""
        return [*self.records.metrics(), *filter(None, map(parse_record, self._pending))]

    def save(self, which: str) -> None:
        """Write the checkpoint `last` or `best`, and the metrics up to it.

        Raises TrainingError, and keeps the earlier one, if a weight is not finite.
        """
        self.flush_metrics()
        if name := checkpoints.first_not_finite(self.modules):
            raise TrainingError(
                f"outer step {self.step}: {name} is not finite. "
                f"A smaller step size or clipping may help; an earlier {which} checkpoint is kept"
            )
        progress: Progress = {"step": self.step, "best": self.best}
        if self.unvalidated:
            progress["unvalidated"] = True
        self.records.save(which, self.modules, self.optimizer, progress)

    def restore_last(self) -> None:
        """Go back to the last checkpoint; to the best if that is lost; or to the start."""
        if which := self._kept():
            progress = self._restore(which, self.optimizer)
            self.step, self.best = progress["step"], progress["best"]
            self.unvalidated = progress.get("unvalidated", False)
            self.resumed_from = self.step
        kept = [record for record in self.records.metrics() if record["step"] <= self.step]
        self.records.replace_metrics([to_json(record, METRICS) for record in kept])

    def kept_step(self) -> int:
        """The step that a resume goes on from; 0 if there is no checkpoint."""
        which = self._kept()
        return self.records.progress_of(which)["step"] if which else 0

    def _kept(self) -> str | None:
        return next((which for which in CHECKPOINTS if self.records.has(which)), None)

    def change_steps(self) -> None:
        """Take the steps of its recipe, whatever the run began with; a note says what follows."""
        assert self.directory is not None  # only a run that is opened again changes its steps
        follows = type(self.experiment.learner.adapter).on_progress is not Adapter.on_progress
        if told := change_steps(self.directory, self.recipe, self.kept_step(), follows):
            self.notes.append(told)

    def restore_for_evaluation(self, which: str | None = None) -> str:
        """Load the weights to be judged; returns `best` or `last`.

        which: the checkpoint wanted. None: the one that the recipe asks for.
        """
        which = which or self.recipe.sections.evaluate.checkpoint
        if which == "best" and not self.records.has("best"):
            which = "last"  # never validated, or never settled
        progress = self._restore(which)
        told = max(progress["step"] - 1, 0)  # what the last step that made these weights was told
        self.experiment.learner.adapter.on_progress(self.progress(told))
        return which

    def _restore(self, which: str, optimizer: torch.optim.Optimizer | None = None) -> Progress:
        try:
            restored = self.records.restore(which, self.modules, optimizer)
            progress = check_record(restored, _Progress)
            if progress["step"] > self.steps:
                raise ValueError(f"step {progress['step']}, and the recipe has {self.steps}")
        except ValueError as error:
            where = self.records.named(which)
            raise RunError(f"{where}: {error}. A checkpoint of this run") from error
        return progress

    def record(self, metrics: dict[str, Any]) -> None:
        """Take the metrics of a step; they are written a hundred at a time."""
        self._pending.append(to_json(metrics, f"step {metrics['step']}"))
        if len(self._pending) >= 100:
            self.flush_metrics()

    def flush_metrics(self) -> None:
        """Append what is not written yet; if there is no room, nothing of it."""
        self.records.append_metrics(self._pending)
        self._pending.clear()


@contextmanager
def new_run(
    directory: Path | None,
    recipe: Recipe,
    loaded: Loaded,
    device: torch.device | str,
    plugins: Iterable[Path],
) -> Iterator[Run]:
    """Begin a run in an empty or absent directory, and hold its lock.

    directory: None for a run in memory.

    A faulty recipe and faulty data are refused before anything is written.
    """
    name = name_of(Path(recipe.document.source))
    files = [str(Path(file).resolve()) for file in plugins]
    for path in files:
        refuse_name(Path(path))
    records = InDirectory(directory) if directory else InMemory()
    run = _assemble(records, name, recipe, loaded, device)
    if directory:
        _refuse_used(directory, recipe)
    run.try_parts()
    check_data(run.experiment)
    if directory is None:
        yield run
        return
    environment = {
        "recipe": name,
        **describe_environment(loaded.plugins),
        "device": str(device),
        "plugin_files": {path: loaded.files.get(path, "") for path in files},
    }
    with _only_writer(directory):
        _refuse_used(directory, recipe)
        _write_beginning(directory, recipe, environment)
        yield run


def prepare_run(directory: Path, recipe: Recipe, environment: dict[str, Any]) -> None:
    """Make a run directory that `open_run` takes as a run with no step done yet.

    A run that is there already stays as it is.

    environment: what `describe_environment` tells, with `recipe` (the run's name), `device` and
                 `plugin_files`.
    """
    refuse_name(directory)
    with _only_writer(directory):
        if not is_file(directory / RECIPE):
            _write_beginning(directory, recipe, environment)


def _write_beginning(directory: Path, recipe: Recipe, environment: dict[str, Any]) -> None:
    write_atomically(directory / ENVIRONMENT, to_json(environment, ENVIRONMENT, indent=2) + "\n")
    write_recipe(directory, recipe, [])


@contextmanager
def open_run(
    directory: Path,
    device: torch.device | str,
    *,
    write: bool,
    no_plugin: Iterable[str] = (),
    plugins: Iterable[Path] = (),
    trust_plugins: bool = False,
    tell: Callable[[str], None] = lambda text: None,
    steps: int | None = None,
) -> Iterator[Run]:
    """An existing run, with its lock held if it is to be written to.

    plugins: one-file plugins to import; one with the name of a file that the run names replaces it.
    trust_plugins: import what the run names, known or not.
    tell: is told of each such import.
    steps: gives a run that is to be written to another number of outer steps.

    One-file plugins that the run names are imported if this user has run them before; else
    PluginError is raised. RunError if its recipe was edited since training began.
    """
    if not is_file(directory / RECIPE):
        inside = sorted(path.parent for path in directory.glob(f"*/{RECIPE}"))[:3]
        fitting = " or ".join(map(str, inside)) or "A directory that `fsl run` made"
        raise RunError(f"{directory}: no run here ({RECIPE} is absent). {fitting}")
    environment = read_json(directory / ENVIRONMENT, Environment)
    refuse_edited(directory, but_steps=steps is not None)
    recorded = RecordedPlugins(
        str(directory / ENVIRONMENT), by_path(environment["plugin_files"]), trust_plugins, tell
    )
    loaded = load(files=plugins, recorded=recorded, no_plugin=no_plugin)
    overrides = [] if steps is None else [f"outer.steps={steps}"]
    recipe = read_recipe(directory / RECIPE, loaded.catalogue, overrides)
    run = _assemble(InDirectory(directory), environment["recipe"], recipe, loaded, device)
    run.choice = read_choice(directory)
    with _only_writer(directory) if write else nullcontext():
        if write and steps is not None:
            run.change_steps()
        run.steps_changed = changes_of_steps(directory)
        yield run


def _assemble(
    records: Records, name: str, recipe: Recipe, loaded: Loaded, device: torch.device | str
) -> Run:
    if records.directory is not None:
        refuse_name(records.directory)
    experiment = build_experiment(recipe, device)
    optimizer = build_optimizer(recipe, experiment)
    return Run(
        records,
        name,
        recipe,
        loaded.observers,
        loaded.files,
        experiment,
        optimizer,
        build_part(recipe, ("outer", "schedule")),
        torch.device(device),
    )


def read_choice(directory: Path) -> Choice | None:
    """How the meta-batches of a run were computed so far, or None if nothing was trained."""
    path = directory / EXECUTION
    return Choice.from_dict(read_json(path, _Chosen)) if is_file(path) else None


@contextmanager
def _only_writer(directory: Path) -> Iterator[None]:
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(directory / ".lock", timeout=0).acquire()
        except Timeout as error:
            raise RunError(f"{directory}: {IN_USE}. Wait for it, or give another --out") from error
    with lock:
        for folder in (directory, directory / "checkpoints"):
            remove_unfinished(folder)
        yield


def _refuse_used(directory: Path, recipe: Recipe) -> None:
    wanted = recipe.resolved()
    found = directory.iterdir() if directory.is_dir() else ()
    beginning = (".lock", ENVIRONMENT, BEGUN, UNFINISHED)  # of a process that died at once
    used = [path for path in found if not path.name.startswith(beginning)]
    if not used:
        return
    stored = directory / RECIPE
    if not stored.is_file():
        raise RunError(f"{directory}: holds other files. An empty or new folder for --out")
    if changes := list(differences(read_document(stored).data, wanted)):
        told = ", ".join(f"{key}: {change}" for key, change in changes[:3])
        told += f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        raise RunError(f"{directory}: holds a run of another recipe ({told}). Another --out")
    if (directory / RESULT).is_file():
        raise RunError(
            f"{directory}: holds a finished run of this recipe. `fsl resume {directory}` shows its "
            "result, and another --out runs it again"
        )
    raise RunError(
        f"{directory}: holds an unfinished run of this recipe. `fsl resume {directory}` continues "
        "it, or give another --out"
    )


def describe_environment(plugins: Iterable[Plugin]) -> dict[str, Any]:
    """Versions, machine and plugins, for results and bug reports."""
    packages = ("fsl-core", "torch", "torchvision", "numpy", "pluggy", "pydantic", "safetensors")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in packages},
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "plugins": {
            p.name: p.origin for p in plugins if p.status == "ok" and p.distribution != "fsl-core"
        },
    }

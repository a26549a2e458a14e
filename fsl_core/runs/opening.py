"""Beginning a run and opening it again: one writer, and nothing of another run overwritten."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import torch
from filelock import Timeout
from pydantic import Field

from fsl_core.assembly.experiment import build_experiment, build_optimizer, check_data
from fsl_core.assembly.parts import build_part
from fsl_core.config.document import read_document
from fsl_core.config.further import judge_on
from fsl_core.config.matrix import recipe_digest
from fsl_core.config.recipe import Recipe, check_document
from fsl_core.config.sections import SECTIONS
from fsl_core.engine.choice import Choice
from fsl_core.engine.execution import Mode, Precision
from fsl_core.engine.ranks import ALONE, Ranks
from fsl_core.errors import RunError
from fsl_core.files.locks import only_one
from fsl_core.files.writing import UNFINISHED, remove_unfinished
from fsl_core.hooks.loader import Loaded, load
from fsl_core.hooks.observers import Observers
from fsl_core.hooks.trust import RecordedPlugins
from fsl_core.runs.begun import (
    changes_of_steps,
    differences,
    refuse_edited,
    write_recipe,
)
from fsl_core.runs.environment import describe_environment, keep_where_it_goes_on
from fsl_core.runs.fetching import here
from fsl_core.runs.files import (
    BEGUN,
    ENVIRONMENT,
    EXECUTION,
    IN_USE,
    LOCK,
    RECIPE,
    RESULT,
    Environment,
    Record,
    by_path,
    is_file,
    read_json,
    refuse_name,
    to_json,
    write_atomically,
    writing,
)
from fsl_core.runs.records import InDirectory, InMemory, OfFirstRank, Records
from fsl_core.runs.run import Run
from fsl_core.runs.starting import read_start
from fsl_core.text import name_of

Some = Annotated[int, Field(gt=0, le=1024)]


class _Chosen(Record):
    """What execution.json holds."""

    mode: Mode
    reason: str
    workers: Some = 1
    chunk: Annotated[int, Field(gt=0)] | None = None
    precision: Precision = "float32"
    checkpoint_gradients: bool = False
    seconds_measured: dict[str, float | None] = Field(default_factory=dict)  # null: it failed
    when: str = ""


@contextmanager
def new_run(
    directory: Path | None,
    recipe: Recipe,
    loaded: Loaded,
    device: torch.device | str,
    plugins: Iterable[Path],
    ranks: Ranks = ALONE,
) -> Iterator[Run]:
    """Begin a run in an empty or absent directory, and hold its lock.

    directory: None for a run in memory.
    ranks: the processes that compute it, all of which call this. The first one makes the directory.

    A faulty recipe and faulty data are refused before anything is written.
    """
    name = name_of(Path(recipe.document.source))
    files = [str(Path(file).resolve()) for file in plugins]
    for path in files:
        refuse_name(Path(path))

    def build() -> Run:
        run = _assemble(directory, name, recipe, loaded, device, ranks)
        if directory and ranks.first:
            _refuse_used(directory, recipe)
        run.take_start()
        run.try_parts()
        check_data(run.experiment)
        return run

    run = ranks.in_turn(build)
    _require_alike(ranks, recipe)
    if directory is None:
        yield run
        return
    environment = {
        "recipe": name,
        **describe_environment(loaded.plugins),
        "device": str(device),
        **run.experiment.weights,
        "plugin_files": {path: loaded.files.get(path, "") for path in files},
    }
    with ExitStack() as held:

        def begin() -> None:
            held.enter_context(_only_writer(directory))
            _refuse_used(directory, recipe)
            _write_beginning(directory, recipe, environment)

        ranks.told(begin)
        ranks.gather(lambda: _require_seen(directory))
        yield run


def _require_alike(ranks: Ranks, recipe: Recipe) -> None:
    """Raise RunError if another rank runs another recipe, or by other versions."""
    told = ranks.gather(lambda: _identity(recipe))
    for rank, other in enumerate(told):
        for what, first, found in zip(("recipe", "fsl-core", "torch"), told[0], other, strict=True):
            if first != found:
                raise RunError(
                    f"rank {rank}: {what} {found}, and rank 0 has {first}. The same command in the "
                    "same environment for every process"
                )


def _identity(recipe: Recipe) -> list[str]:
    return [recipe_digest(recipe.resolved()), metadata.version("fsl-core"), torch.__version__]


def _require_seen(directory: Path) -> None:
    if not is_file(directory / RECIPE):
        raise RunError(f"{directory}: not here. A folder that all machines of the run share")


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
    on: Sequence[str] = (),
    ranks: Ranks = ALONE,
) -> Iterator[Run]:
    """An existing run, with its lock held if it is to be written to.

    directory: or an address such as hf:user/name, of a run that is only read.
    plugins: one-file plugins to import; one with the name of a file that the run names replaces it.
    trust_plugins: import what the run names, known or not.
    tell: is told of each such import.
    steps: gives a run that is to be written to another number of outer steps.
    on: the source to judge on, in place of those of its recipe; as for `judge_on`.
    ranks: the processes that compute it, all of which call this.

    One-file plugins that the run names are imported if this user has run them before; else
    PluginError is raised. RunError if its recipe was edited since training began.
    """
    with ExitStack() as held:

        def opened() -> Run:
            nonlocal directory
            directory = here(directory, write, no_plugin)
            _require_run(directory)
            environment = read_json(directory / ENVIRONMENT, Environment)
            refuse_edited(directory, but_steps=steps is not None)
            recorded = RecordedPlugins(
                str(directory / ENVIRONMENT),
                by_path(environment["plugin_files"]),
                trust_plugins,
                tell,
            )
            loaded = load(files=plugins, recorded=recorded, no_plugin=no_plugin)
            recipe = _recipe_of(directory, loaded, steps, on)
            run = _assemble(
                directory, environment["recipe"], recipe, loaded, device, ranks, trains=write
            )
            run.choice, run.started_from = read_choice(directory), read_start(directory)
            run.sweep = environment.get("sweep", "")
            if write and ranks.first:
                held.enter_context(_only_writer(directory))
                if steps is not None:
                    run.change_steps()
                keep_where_it_goes_on(run, environment, loaded)
            run.steps_changed = changes_of_steps(directory)
            return run

        run = ranks.in_turn(opened)
        _require_alike(ranks, run.recipe)
        yield run


def _require_run(directory: Path) -> None:
    if not is_file(directory / RECIPE):
        inside = sorted(path.parent for path in directory.glob(f"*/{RECIPE}"))[:3]
        fitting = " or ".join(map(str, inside)) or "A directory that `fsl run` made"
        raise RunError(f"{directory}: no run here ({RECIPE} is absent). {fitting}")


def _recipe_of(directory: Path, loaded: Loaded, steps: int | None, on: Sequence[str]) -> Recipe:
    overrides = [] if steps is None else [f"outer.steps={steps}"]
    document = read_document(directory / RECIPE, overrides, SECTIONS)
    if on:
        judge_on(document, on)
    return check_document(document, loaded.catalogue)


def _assemble(
    directory: Path | None,
    name: str,
    recipe: Recipe,
    loaded: Loaded,
    device: torch.device | str,
    ranks: Ranks,
    trains: bool = True,
) -> Run:
    """A run of the recipe's parts, without an optimizer if it is opened to be judged or used."""
    records: Records = InMemory()
    if directory is not None:
        refuse_name(directory)
        records = InDirectory(directory) if ranks.first else OfFirstRank(directory)
    experiment = build_experiment(recipe, device)
    # Its first optimizer makes torch import its compiler, which takes a second.
    optimizer = build_optimizer(recipe, experiment) if trains else None
    return Run(
        records,
        name,
        recipe,
        loaded.observers if ranks.first else Observers.nobody(),
        loaded.files,
        experiment,
        optimizer,
        build_part(recipe, ("outer", "schedule")),
        torch.device(device),
        ranks=ranks,
    )


def read_choice(directory: Path) -> Choice | None:
    """How the meta-batches of a run were computed so far, or None if nothing was trained."""
    path = directory / EXECUTION
    return Choice.from_dict(read_json(path, _Chosen)) if is_file(path) else None


@contextmanager
def _only_writer(directory: Path) -> Iterator[None]:
    with ExitStack() as held:
        with writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(only_one(directory / LOCK))
            except Timeout as error:
                told = f"{directory}: {IN_USE}. Wait for it, or give another --out"
                raise RunError(told) from error
        for folder in (directory, directory / "checkpoints"):
            remove_unfinished(folder)
        yield


def _refuse_used(directory: Path, recipe: Recipe) -> None:
    wanted = recipe.resolved()
    found = directory.iterdir() if directory.is_dir() else ()
    beginning = (LOCK, ENVIRONMENT, BEGUN, UNFINISHED)  # of a process that died at once
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

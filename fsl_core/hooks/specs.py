"""The hooks of fsl-core.

A plugin is a module that implements some of them and names itself under the entry-point group
`fsl`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pluggy

if TYPE_CHECKING:  # it needs torch, which commands that build nothing do not wait for
    from fsl_core.hooks.run_view import RunView

Hook = TypeVar("Hook", bound=Callable[..., None])

HOOK_API = 1
"""Version of the hooks below.

A plugin that needs a newer one says so with a module-level `FSL_HOOK_API = 2`.
"""

hookimpl = pluggy.HookimplMarker("fsl")


class HookDeprecation(DeprecationWarning):
    """A plugin implements a hook, or asks for an argument, that a later hook API will not have."""


def hookspec(
    since: int, deprecated: str = "", arguments: Mapping[str, str] | None = None
) -> Callable[[Hook], Hook]:
    """Declare a hook: the hook API that brought it, and what of it is deprecated.

    deprecated: since when, until when and what to use, as docs/compatibility.md has it, such as
        `since hook API 2, gone in 4. fsl_evaluated`.
    arguments:  the same for single arguments, by name.
    """

    def mark(hook: Hook) -> Hook:
        vars(hook)["since"] = since
        whole = (
            HookDeprecation(f"{hook.__name__} is deprecated {deprecated}") if deprecated else None
        )
        single = {
            name: HookDeprecation(f"{hook.__name__}: argument {name!r} is deprecated {text}")
            for name, text in (arguments or {}).items()
        }
        return pluggy.HookspecMarker("fsl")(warn_on_impl=whole, warn_on_impl_args=single or None)(
            hook
        )

    return mark


class Register(Protocol):
    """What a registration hook receives.

    The factory's `name` attribute, or the argument, is what recipes write.
    """

    def __call__(self, factory: Any, name: str | None = None) -> None: ...


@hookspec(since=1)
def fsl_register_episodes(register: Register) -> None:
    """Called once while plugins load, before any recipe is read.

    Offer episodes by calling register(EpisodeSourceSubclass).

    :param register: takes a factory of `fsl_core.EpisodeSource`; its signature is the option schema
        of the recipe's `episodes` section. Nothing is built, read or downloaded here.
    Two factories under one name make the name unusable, with an error naming both distributions.
    Since hook API 1.
    Example: fsl_core/builtin/sinusoid.py.
    """


@hookspec(since=1)
def fsl_register_backbones(register: Register) -> None:
    """Called once while plugins load. Offer backbones by calling register(ModuleSubclass).

    :param register: takes a factory of a module (n, *input_shape) -> (n, feature_dim) with the
        attribute `feature_dim`. An argument called `task` receives the TaskShape, every other
        argument is a key of the recipe's `backbone` section.
    Duplicates as above. Since hook API 1. Example: fsl_core/builtin/conv4.py.
    """


@hookspec(since=1)
def fsl_register_adapters(register: Register) -> None:
    """Called once while plugins load. Offer inner loops by calling register(AdapterSubclass).

    :param register: takes a factory of `fsl_core.Adapter`. Arguments called `task` and `backbone`
        receive the TaskShape and the built backbone (to size a head; do not keep it as an
        attribute), `tasks` the number of training tasks or None; every other argument is a recipe
        key.
    Duplicates as above. Since hook API 1. Example: fsl_core/builtin/nearest_centroid.py.
    """


@hookspec(since=1)
def fsl_register_hypergradients(register: Register) -> None:
    """Called once while plugins load. Offer estimates of the meta-gradient by register(Subclass).

    :param register: takes a factory of `fsl_core.Hypergradient`. Arguments called `task`, `tasks`
        and `meta_batch_size` receive the TaskShape, the number of training tasks (None if it is not
        finite) and that of a step; every other argument is a key of the recipe's
        `outer.hypergradient` section.
    Duplicates as above. Since hook API 1. Example: fsl_core/builtin/hypergradients.py.
    """


@hookspec(since=1)
def fsl_register_weightings(register: Register) -> None:
    """Called once while plugins load. Offer weightings by calling register(TaskWeightingSubclass).

    :param register: takes a factory of `fsl_core.TaskWeighting`; its signature is the option schema
        of `outer.weighting`.
    Duplicates as above. Since hook API 1. Example: fsl_core/builtin/uniform.py.
    """


@hookspec(since=1)
def fsl_register_launchers(register: Register) -> None:
    """Called once while plugins load. Offer launchers by calling register(LauncherSubclass).

    :param register: takes a factory of `fsl_core.Launcher`. An argument called `no_plugin` receives
        the names of plugins that the sweep leaves out; every other argument is a key of the
        `launcher` section of a sweep. Nothing is started and no cluster is asked here.
    Duplicates as above. Since hook API 1. Example: fsl_core/builtin/local.py.
    """


@hookspec(since=1)
def fsl_register_searchers(register: Register) -> None:
    """Called once while plugins load. Offer searchers by calling register(SearcherSubclass).

    :param register: takes a factory of `fsl_core.Searcher`; its signature is the option schema of
        the section `search.searcher` of a recipe. Nothing is searched and no file is written here.
    Duplicates as above. Since hook API 1. Example: fsl_core/builtin/random_search.py.
    """


@hookspec(since=1)
def fsl_register_benchmarks(register: Register) -> None:
    """Called once while plugins load. Offer benchmark tasks by calling register(factory, "name").

    :param register: takes a callable without arguments that gives the path of a task's file.
    The file is read when the task is asked for. Duplicates as above. Since hook API 1.
    Example: fsl_core/builtin/benchmarks.py.
    """


@hookspec(since=1)
def fsl_register_stores(register: Register) -> None:
    """Called once while plugins load. Offer stores of runs by calling register(StoreSubclass).

    :param register: takes a factory of `fsl_core.Store`; its name stands before the colon of an
        address such as `hf:user/name`. Nothing is fetched here.
    Duplicates as above. Since hook API 1. Example: plugins/fsl-hub/src/fsl_hub/__init__.py.
    """


@hookspec(since=1)
def fsl_run_started(run: RunView) -> None:
    """Called when training starts or resumes, before the first outer step.

    :param run: a RunView: the run as it is now. Observers read it; they do not steer. One of a
        plugin that raises is left out for the rest of the run, with a warning that names it; the
        run goes on.
    Since hook API 1. Example: the progress bar of fsl_core/reporting/progress.py.
    """


@hookspec(since=1)
def fsl_step_finished(run: RunView, step: int, metrics: dict[str, float]) -> None:
    """Called after each outer step.

    :param run: as in fsl_run_started.
    :param step: number of outer steps done, from 1.
    :param metrics: `loss`, the score by its name (`accuracy` or `mse`), `lr`, `gradient_norm`,
        `seconds`.
    Since hook API 1. Example: fsl_core/reporting/progress.py.
    """


@hookspec(since=1)
def fsl_evaluated(run: RunView, split: str, result: dict[str, Any]) -> None:
    """Called after each evaluation, in training (`validation`) and at the end (`test`).

    :param run: as in fsl_run_started.
    :param split: `validation` or `test`.
    :param result: mean and 95 % interval of the score, number of episodes and hash of the episode
        set.
    Since hook API 1. Example: fsl_core/reporting/progress.py.
    """


@hookspec(since=1)
def fsl_run_stopped(run: RunView, interrupted: bool, reason: str) -> None:
    """Called if a run ends before it is complete, once at most; `fsl_run_finished` is not called.

    :param run: as in fsl_run_started, which may not have been called.
    :param interrupted: somebody asked it to stop. Otherwise it failed.
    :param reason: the error in one line.
    A process that is killed calls nothing.
    Since hook API 1. Example: plugins/fsl-tensorboard/src/fsl_tensorboard/__init__.py.
    """


@hookspec(since=1)
def fsl_run_finished(run: RunView, result: dict[str, Any]) -> None:
    """Called once a run is complete and its result.json is written.

    :param run: as in fsl_run_started.
    :param result: what result.json holds.
    Since hook API 1. Example: fsl_core/reporting/report.py.
    """

"""The sections of a recipe as pydantic models: what each may hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Protocol, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, create_model

from fsl_core.config.document import KeyPath
from fsl_core.config.options import ENTRY_KEYS, Component, Kind

SECTIONS: dict[KeyPath, Kind] = {
    ("episodes",): "episodes",
    ("backbone",): "backbone",
    ("adapter",): "adapter",
    ("outer", "hypergradient"): "hypergradient",
    ("outer", "weighting"): "weighting",
    ("outer", "optimizer"): "optimizer",
    ("outer", "schedule"): "schedule",
}
"""Where a recipe names a component, and of which kind."""


ON: KeyPath = ("evaluate", "on")
"""Where a recipe lists further sources to judge on."""


DEFAULT_NAMES: dict[KeyPath, str] = {
    ("outer", "hypergradient"): "unrolled",
    ("outer", "weighting"): "uniform",
    ("outer", "optimizer"): "adam",
    ("outer", "schedule"): "constant",
}


Count = Annotated[int, Field(gt=0)]


class Catalogue(Protocol):
    """What a recipe is checked against: `fsl_core.hooks.catalogue.Catalogue`."""

    def get(self, kind: Kind, name: str) -> Component:
        """The component with this name. Raises PluginError if there is none."""
        ...

    def components(self, kind: Kind) -> list[Component]:
        """All components of a kind."""
        ...


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Evaluate(_Section):
    """How the trained learner is judged, on episodes that are the same for every such run."""

    episodes: Annotated[int, Field(gt=1, description="number of test episodes")] = 600
    seed: Annotated[
        int, Field(ge=0, description="of the frozen evaluation episodes; not the seed of the run")
    ] = 0
    n_way: Annotated[
        int | None, Field(ge=2, description="classes per test episode, if not as in training")
    ] = None
    n_shot: Annotated[
        Count | None, Field(description="support items per class in test, if not as in training")
    ] = None
    n_query: Annotated[
        Count | None, Field(description="query items per class in test, if not as in training")
    ] = None
    checkpoint: Annotated[
        Literal["best", "last"], Field(description="best on validation, or the last")
    ] = "best"
    on: Annotated[
        list[dict[str, Any]],
        Field(
            description="further episodes to judge on: sections like `episodes`, each with a "
            "`label` if two have one name"
        ),
    ] = []


class StartFrom(_Section):
    """The run whose weights training starts from, in place of random ones."""

    run: Annotated[
        Path, Field(description="directory of a run, or an address such as hf:user/name")
    ]
    part: Annotated[
        Literal["all", "backbone"],
        Field(description="backbone: without the weights of the adapter"),
    ] = "all"
    checkpoint: Annotated[
        Literal["best", "last"] | None,
        Field(description="of that run; null: the best, or the last of one never validated"),
    ] = None


class ExecutionOptions(_Section):
    """How meta-batches are computed; every mode gives the same numbers, up to rounding."""

    mode: Annotated[
        Literal["auto", "loop", "vmap", "compiled"],
        Field(
            description="loop: task by task; vmap: one batch; compiled: that, by torch.compile; "
            "auto: measured once on a machine"
        ),
    ] = "auto"
    workers: Annotated[
        Count | None,
        Field(description="tasks at a time, on a core each, of a loop on a CPU; null: measured"),
    ] = None
    chunk: Annotated[
        Count | None,
        Field(
            description="tasks batched together at most by vmap and compiled; null: what half of "
            "the memory holds, and compiled code on a CPU parts that stay in its cache"
        ),
    ] = None
    precision: Annotated[
        Literal["float32", "tf32", "bf16"],
        Field(
            description="bf16: convolutions and maps in bfloat16; tf32: convolutions and products "
            "of a GPU round their inputs to 10 bits"
        ),
    ] = "float32"
    checkpoint_gradients: Annotated[
        bool,
        Field(
            description="query activations computed again in the backward pass: slower, in less "
            "memory; loop only"
        ),
    ] = False


class Expected(_Section):
    """A measured figure and how far a new run may be from it."""

    value: Annotated[float, Field(description="as it was measured")]
    tolerance: Annotated[float, Field(ge=0, description="greatest distance of a new run's figure")]


Seed = Annotated[int, Field(ge=0, description="of initial weights and training episodes")]
Requires = Annotated[
    list[str], Field(description="distributions the recipe needs, such as fsl-maml>=0.1")
]
Start = Annotated[
    StartFrom | None,
    Field(description="weights of another run to start from: its directory, or these keys"),
]
Expect = Annotated[
    dict[str, Expected], Field(description="measured results, held by `fsl reproduce`")
]


class MatrixSection(_Section):
    """Lists of values at key paths; `fsl sweep` runs every combination."""

    exclude: Annotated[
        list[dict[str, Any]], Field(description="combinations left out, such as {adapter: maml}")
    ] = []
    baseline: Annotated[
        dict[str, Any], Field(description="what the others are compared with; default: the first")
    ] = {}


Batch = Annotated[
    int,
    Field(
        gt=0,
        description="trials of a method that are proposed together; what is proposed next waits "
        "for all of them, so results do not depend on --jobs",
    ),
]


class SearchSection(_Section):
    """Values to search at key paths, by trials judged on validation; `fsl search` runs them."""

    trials: Annotated[Count, Field(description="of each method")] = 20
    batch: Batch = 4
    seed: Annotated[int, Field(ge=0, description="of what is proposed")] = 0
    space: Annotated[
        dict[str, Any],
        Field(
            description="by key path: {low: 0.01, high: 1, log: true}, with a `step` or without, "
            "or a list of values"
        ),
    ] = {}
    methods: Annotated[
        dict[str, dict[str, Any]],
        Field(
            description="methods to compare, by a name of your choice: key paths and their values, "
            "and a `space` of each method's own"
        ),
    ] = {}


def search_model() -> type[BaseModel]:
    """A recipe with the section `search` alone, its searcher taken out."""
    fields: dict[str, Any] = {"search": (SearchSection, ...)}
    return create_model("recipe", **fields)


def _choice_schema(catalogue: Catalogue, kind: Kind, description: str) -> dict[str, Any]:
    options = [component.options.model_json_schema() for component in catalogue.components(kind)]
    return {"description": description, "anyOf": [{"type": "string"}, *options]}


_AXIS = {
    "description": "values of this key path, or named mappings of key paths to values",
    "oneOf": [
        {"type": "array", "minItems": 1},
        {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {"type": "object", "minProperties": 1},
        },
    ],
}


class Outer(_Section):
    """The outer loop.

    Hypergradient, weighting, optimizer and schedule are added from what is installed.
    """

    meta_batch_size: Annotated[Count, Field(description="episodes per outer step")] = 4
    steps: Annotated[
        int, Field(ge=0, description="outer steps; 0: nothing is trained, and the run is evaluated")
    ]
    clip_gradient_norm: Annotated[
        float | None, Field(gt=0, description="longest meta-gradient followed")
    ] = None
    clip_gradient_value: Annotated[
        float | None, Field(gt=0, description="largest entry of the meta-gradient followed")
    ] = None
    log_conflict: Annotated[
        int,
        Field(
            ge=0,
            description="outer steps between measurements of how far tasks' meta-gradients "
            "conflict; 0: never",
        ),
    ] = 0
    validate_every: Annotated[
        int, Field(ge=0, description="outer steps between validations; 0: never")
    ] = 500
    validate_episodes: Annotated[int, Field(gt=1, description="episodes of one validation")] = 100
    checkpoint_every: Annotated[Count, Field(description="outer steps between checkpoints")] = 500
    checkpoint_seconds: Annotated[
        float | None, Field(gt=0, description="longest time between checkpoints; null: any")
    ] = 60.0


def recipe_model(
    catalogue: Catalogue, chosen: Mapping[KeyPath, Component | None] | None = None
) -> type[BaseModel]:
    """The pydantic model of a recipe.

    chosen: the components that one recipe names, None for a name that means nothing; None: any
        that is installed.
    """

    def section(path: KeyPath) -> Any:
        if chosen is not None:
            return _section_of(chosen, path)
        models = tuple(component.options for component in catalogue.components(SECTIONS[path]))
        if len(models) == 1:
            return models[0]
        return Annotated[Union[models], Field(discriminator="name")]  # noqa: UP007

    by_default: dict[str, Any] = {
        str(path[-1]): (section(path), Field(default={"name": name}, validate_default=True))
        for path, name in DEFAULT_NAMES.items()
    }
    outer = create_model("outer", __base__=Outer, **by_default)
    evaluate = Evaluate
    if chosen is not None and (judged := _listed(chosen, ON)):
        evaluate = create_model("evaluate", __base__=Evaluate, on=judged)
    fields: dict[str, Any] = {
        "seed": (Seed, 0),
        "requires": (Requires, []),
        "episodes": (section(("episodes",)), ...),
        "backbone": (section(("backbone",)), ...),
        "adapter": (section(("adapter",)), ...),
        "outer": (outer, ...),
        "execution": (ExecutionOptions, ExecutionOptions()),
        "evaluate": (evaluate, Evaluate()),
        "start_from": (Start, None),
        "expect": (Expect, {}),
    }
    return create_model("recipe", __base__=_Section, **fields)


def _section_of(chosen: Mapping[KeyPath, Component | None], path: KeyPath) -> Any:
    """The model of a section that names a component, with that of every source it lists."""
    component = chosen.get(path)
    if component is None:
        return Any
    lists = {name: _listed(chosen, (*path, name)) for name in component.lists}
    fields: dict[str, Any] = {name: field for name, field in lists.items() if field}
    if isinstance(path[-1], int):
        key = "label" if path[:-1] == ON else "weight"
        fields[key] = ENTRY_KEYS[key]
    if not fields:
        return component.options
    model = component.options
    return create_model(model.__name__, __base__=model, __doc__=model.__doc__, **fields)


def _listed(chosen: Mapping[KeyPath, Component | None], path: KeyPath) -> Any:
    """The field of a list of sources: each has a model of its own. None if there is no source."""
    models = [_section_of(chosen, key) for key in chosen if key[:-1] == path]
    list_of: Any = tuple  # as many entries as there are, so that each fault has its place
    return (list_of[tuple(models)], ...) if models else None


def section_model(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The model of a section, or None for an option, which has a plain type."""
    field = model.model_fields.get(name)
    return as_model(field.annotation) if field else None


def below(annotation: Any, part: str | int) -> Any:
    """The type of what a key or a place holds, in a section, mapping or list of this type."""
    if model := as_model(annotation):
        field = model.model_fields.get(str(part))
        return field.annotation if field else None
    arguments = get_args(annotation)
    if get_origin(annotation) is tuple and isinstance(part, int):
        return arguments[part] if part < len(arguments) else None
    return arguments[1] if get_origin(annotation) is dict else None


def as_model(annotation: object) -> type[BaseModel] | None:
    """The model that a type is, alone or beside None; None for a plain type."""
    if get_origin(annotation) in (Union, UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
        annotation = kinds[0] if len(kinds) == 1 else None
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return None


def recipe_schema(catalogue: Catalogue) -> dict[str, Any]:
    """JSON Schema of recipes made from everything installed, for completion in editors."""
    schema = recipe_model(catalogue).model_json_schema()
    # With a matrix or a search no section is required: its values may stand in for one.
    complete = {"required": schema.pop("required")}
    matrix = MatrixSection.model_json_schema()
    schema["properties"]["matrix"] = {
        **matrix,
        "additionalProperties": _AXIS,
        "description": MatrixSection.__doc__,
    }
    starts = "what starts the runs of a sweep or a search"
    schema["properties"]["launcher"] = _choice_schema(catalogue, "launcher", starts)
    search = SearchSection.model_json_schema()
    proposes = "what proposes parameters, and which trials to end early"
    search["properties"]["searcher"] = _choice_schema(catalogue, "searcher", proposes)
    schema["properties"]["search"] = search
    schema["properties"]["start_from"]["anyOf"].append({"type": "string"})
    many = {"anyOf": [{"required": ["matrix"]}, {"required": ["search"]}]}
    conditional = {"if": many, "else": complete}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        **conditional,
        "title": "fsl recipe",
    }

"""A recipe, checked: every option against the constructor it goes to, every fault in one report."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Union

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from fsl_core.blame import NO_SUPER, STRICT, forgot_super, raised
from fsl_core.config.document import Document, KeyPath, read_document
from fsl_core.config.options import Component, Kind
from fsl_core.errors import FslError, PluginError, RecipeError
from fsl_core.text import printable, suggest

SECTIONS: dict[KeyPath, Kind] = {
    ("episodes",): "episodes",
    ("backbone",): "backbone",
    ("adapter",): "adapter",
    ("outer", "weighting"): "weighting",
    ("outer", "optimizer"): "optimizer",
    ("outer", "schedule"): "schedule",
}
"""Where a recipe names a component, and of which kind."""

DEFAULT_NAMES: dict[KeyPath, str] = {
    ("outer", "weighting"): "uniform",
    ("outer", "optimizer"): "adam",
    ("outer", "schedule"): "constant",
}

Count = Annotated[int, Field(gt=0)]


class Catalogue(Protocol):
    """What a recipe is checked against: `fsl_core.hooks.catalogue.Catalogue`."""

    def get(self, kind: Kind, name: str) -> Component: ...
    def components(self, kind: Kind) -> list[Component]: ...


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Evaluate(_Section):
    """How the trained learner is judged, on episodes that are the same for every run with these settings."""

    episodes: Annotated[int, Field(gt=1, description="number of test episodes")] = 600
    seed: Annotated[
        int, Field(ge=0, description="of the frozen evaluation episodes; not the run's seed")
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
        Field(description="tasks at once, on a core each, of a loop on a CPU; null: measured"),
    ] = None
    chunk: Annotated[
        Count | None,
        Field(description="tasks batched together at most by vmap and compiled; null: all"),
    ] = None
    precision: Annotated[Literal["float32", "bf16"], Field(description="bf16: under autocast")] = (
        "float32"
    )
    checkpoint_gradients: Annotated[
        bool,
        Field(
            description="query activations computed again in the backward pass: slower, in less memory; loop only"
        ),
    ] = False


class Expected(_Section):
    """A measured figure and how far a new run may be from it."""

    value: Annotated[float, Field(description="as it was measured")]
    tolerance: Annotated[float, Field(ge=0, description="greatest distance of a new run's figure")]


class MatrixSection(_Section):
    """Lists of values at key paths; `fsl sweep` runs every combination."""

    exclude: Annotated[
        list[dict[str, Any]], Field(description="combinations left out, such as {adapter: maml}")
    ] = []
    baseline: Annotated[
        dict[str, Any], Field(description="what the others are compared with; default: the first")
    ] = {}


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


class _Outer(_Section):
    """The outer loop; weighting, optimizer and schedule are added from what is installed."""

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
            description="outer steps between measurements of how far tasks' meta-gradients conflict; 0: never",
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
    catalogue: Catalogue, chosen: Mapping[KeyPath, Component] | None = None
) -> type[BaseModel]:
    """The pydantic model of a recipe; chosen: the components one recipe names, where not every installed one may appear."""

    def section(path: KeyPath) -> Any:
        if chosen is not None:
            return chosen[path].options if path in chosen else Any
        models = tuple(component.options for component in catalogue.components(SECTIONS[path]))
        if len(models) == 1:
            return models[0]
        return Annotated[Union[models], Field(discriminator="name")]  # noqa: UP007

    by_default = {
        path[-1]: (section(path), Field(default={"name": name}, validate_default=True))
        for path, name in DEFAULT_NAMES.items()
    }
    outer = create_model("outer", __base__=_Outer, **by_default)
    return create_model(
        "recipe",
        __base__=_Section,
        seed=(
            Annotated[int, Field(ge=0, description="of initial weights and training episodes")],
            0,
        ),
        requires=(
            Annotated[
                list[str],
                Field(description="distributions the recipe needs, such as fsl-maml>=0.1"),
            ],
            [],
        ),
        episodes=(section(("episodes",)), ...),
        backbone=(section(("backbone",)), ...),
        adapter=(section(("adapter",)), ...),
        outer=(outer, ...),
        execution=(ExecutionOptions, ExecutionOptions()),
        evaluate=(Evaluate, Evaluate()),
        expect=(
            Annotated[
                dict[str, Expected], Field(description="measured results, held by `fsl reproduce`")
            ],
            {},
        ),
    )


@dataclass(frozen=True)
class Recipe:
    """A checked recipe.

    sections: the pydantic model; `sections.outer.steps`, `sections.evaluate.episodes` and so on are typed and complete.
    """

    document: Document
    sections: Any
    chosen: Mapping[KeyPath, Component]

    def build(self, path: KeyPath, **injected: Any) -> Any:
        """Build the component of a section; what its constructor refuses becomes a RecipeError at its line."""
        section = self.sections
        for part in path:
            section = getattr(section, str(part))
        try:
            return self.chosen[path].build(section, **injected)
        except ValueError as error:
            raise RecipeError(f"{self.document.where_built(path)}: {error}") from error
        except (
            RuntimeError,
            MemoryError,
        ) as error:  # torch's own, as for a layer larger than memory
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise RecipeError(
                f"{self.document.where_built(path)}: cannot be built: {reason}. "
                "Other or smaller options"
            ) from error
        except FslError:
            raise
        except Exception as error:  # a mistake of the plugin's author
            if os.environ.get("FSL_STRICT_PLUGINS"):
                raise
            home = self.chosen[path].factory.__module__
            told = _of_constructor(error, home)
            raise PluginError(f"{self.named(path)}: {told}") from error

    def named(self, path: KeyPath) -> str:
        """`<where>: <class> of <distribution or file>`, for messages about a component."""
        component = self.chosen[path]
        name = getattr(component.factory, "__name__", component.name)
        return f"{self.document.where_built(path)}: {name} of {component.origin}"

    def resolved(self) -> dict[str, Any]:
        """The whole recipe as plain data that means the same anywhere.

        Defaults are written out, paths are absolute, and `requires` lists what it needs. Keys keep
        the order in which they were written; defaults follow in the order of the schema.
        """
        data = _plain(self.sections.model_dump(mode="python"))
        data["requires"] = self._requirements()
        return _in_written_order(data, self.document.data)

    def _requirements(self) -> list[str]:
        """What the author requires, and the distributions of the plugins that the recipe names.

        One without a range gets that of the installed version: `fsl-maml` becomes `fsl-maml>=0.1`.
        """
        needed = {}
        for component in self.chosen.values():
            if distribution := _distribution(component.origin):
                needed[canonicalize_name(distribution)] = component.origin
        listed = []
        for text in self.sections.requires:
            requirement = Requirement(text)
            origin = needed.pop(canonicalize_name(requirement.name), "")
            bare = str(requirement) == requirement.name
            listed.append(_range_of(origin) if origin and bare else text)
        return [*listed, *map(_range_of, needed.values())]


def _distribution(origin: str) -> str:
    """The distribution in a component's origin, empty for core's own and for one-file plugins."""
    name, _, version = origin.rpartition(" ")
    try:
        installed = bool(name) and metadata.version(name) == version
    except (metadata.PackageNotFoundError, ValueError):
        return ""
    return name if installed and name != "fsl-core" else ""


def _range_of(origin: str) -> str:
    """`fsl-maml>=0.1` for `fsl-maml 0.1.3`; a version before a release is named in full."""
    name, _, text = origin.rpartition(" ")
    version = Version(text)
    least = version.public if version.is_prerelease else f"{version.major}.{version.minor}"
    return f"{name}>={least}"


def _in_written_order(data: Any, written: Any) -> Any:
    if isinstance(data, list) and isinstance(written, list) and len(data) == len(written):
        return [_in_written_order(*pair) for pair in zip(data, written, strict=True)]
    if not isinstance(data, dict) or not isinstance(written, dict):
        return data
    keys = [*(key for key in written if key in data), *(key for key in data if key not in written)]
    return {key: _in_written_order(data[key], written.get(key)) for key in keys}


def _of_constructor(error: Exception, home: str) -> str:
    if forgot_super(error):
        return NO_SUPER
    return f"its constructor raised {raised(error, home)}. {STRICT}"


def read_recipe(path: Path, catalogue: Catalogue, overrides: Iterable[str] = ()) -> Recipe:
    """Read and check a recipe of one run. RecipeError lists every fault with file, line and key."""
    document = read_document(path, overrides, SECTIONS)
    if document.data.get("matrix") is not None:
        where = document.where(("matrix",))
        raise RecipeError(
            f"{where}: a matrix of many runs. `fsl sweep {path}` runs them all, `-s matrix=null` leaves it out"
        )
    return check_document(document, catalogue)


def check_document(document: Document, catalogue: Catalogue) -> Recipe:
    """The checked recipe of one run. RecipeError lists every fault with file, line and key."""
    chosen, faults = _choose(document, catalogue)
    faults += _unmet_requirements(document)
    faults += _huge_numbers(document, document.data)
    if wrong := _not_utf8(document, document.data):  # which JSON cannot carry to the model
        raise RecipeError(in_file_order([*faults, *wrong]))
    model = recipe_model(catalogue, chosen)
    document.data = {
        key: value for key, value in document.data.items() if value is not None
    }  # `expect:` with nothing below
    try:
        sections = model.model_validate_json(json.dumps(document.data), strict=True)
    except ValidationError as error:
        faults += _validation_faults(document, error, model)
    if faults:
        raise RecipeError(in_file_order(faults))
    return Recipe(document, sections, chosen)


def recipe_schema(catalogue: Catalogue) -> dict[str, Any]:
    """JSON Schema of recipes made from everything installed, for completion in editors."""
    schema = recipe_model(catalogue).model_json_schema()
    complete = {
        "required": schema.pop("required")
    }  # the values of a matrix may stand in for a section
    matrix = MatrixSection.model_json_schema()
    schema["properties"]["matrix"] = {
        **matrix,
        "additionalProperties": _AXIS,
        "description": MatrixSection.__doc__,
    }
    conditional = {"if": {"required": ["matrix"]}, "else": complete}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        **conditional,
        "title": "fsl recipe",
    }


def _choose(document: Document, catalogue: Catalogue) -> tuple[dict[KeyPath, Component], list[str]]:
    chosen, faults = {}, []
    for path, kind in SECTIONS.items():
        section: Any = document.data
        for part in path:
            section = section.get(part) if isinstance(section, dict) else None
        if section is None and path in DEFAULT_NAMES:
            section = {"name": DEFAULT_NAMES[path]}
        if section is None:
            continue
        if not isinstance(section, dict) or not isinstance(section.get("name"), str):
            example = section if isinstance(section, str) else _example(catalogue, kind)
            faults.append(
                f"{document.where(path)}: no `name`. A mapping such as {{name: {example}}}"
            )
            continue
        try:
            chosen[path] = catalogue.get(kind, section["name"])
        except PluginError as error:
            faults.append(f"{document.where((*path, 'name'))}: {error}")
    return chosen, faults


def _example(catalogue: Catalogue, kind: Kind) -> str:
    return next((component.name for component in catalogue.components(kind)), "...")


def _unmet_requirements(document: Document) -> list[str]:
    listed = document.data.get("requires")
    return [
        f"{document.where(('requires', i))}: {unmet}"
        for i, text in enumerate(listed if isinstance(listed, list) else [])
        if isinstance(text, str) and (unmet := unmet_requirement(text))  # no text: its type's fault
    ]


def unmet_requirement(text: str) -> str:
    """Why a distribution with a version range is not met by what is installed; empty if it is."""
    try:
        requirement = Requirement(text)
        version = metadata.version(requirement.name)
    except InvalidRequirement:
        fitting = "A distribution with a version range, such as fsl-maml>=0.1"
        return f"{text!r} is not a requirement. {fitting}"
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed. pip install '{text}'"
    if requirement.specifier.contains(version, prereleases=True):
        return ""
    return f"{requirement.name} {version} is installed. pip install --upgrade '{text}'"


def _huge_numbers(document: Document, node: Any, path: KeyPath = ()) -> list[str]:
    if isinstance(node, dict | list):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        return [
            fault for key, value in items for fault in _huge_numbers(document, value, (*path, key))
        ]
    huge = isinstance(node, int) and abs(node) >= 2**63
    return [f"{document.where(path)}: found {node}. A number that 64 bits can hold"] if huge else []


def _not_utf8(document: Document, node: Any, path: KeyPath = ()) -> list[str]:
    if isinstance(node, dict | list):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        return [fault for key, value in items for fault in _not_utf8(document, value, (*path, key))]
    wrong = isinstance(node, str) and not _encodes(node)
    fit = "Text in UTF-8: another name for that file or folder"
    return [f"{document.where(path)}: found '{printable(node)}'. {fit}"] if wrong else []


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _validation_faults(
    document: Document, error: ValidationError, model: type[BaseModel]
) -> list[str]:
    expected: dict[KeyPath, list[str]] = {}
    faults = []
    for fault in error.errors(include_url=False):
        path = _written_path(document.data, fault)
        if fault["type"] == "extra_forbidden":
            faults.append(f"{document.where(path)}: {_unknown_key(document, path, model)}")
        elif fault["type"] == "missing":
            faults.append(f"{document.where(path)}: absent. It is required")
        else:
            expected.setdefault(path, []).append(
                re.sub(r"^(Input should be|\w+ should have|Value error,) ", "", fault["msg"])
            )
    for path, alternatives in expected.items():
        if any(other[: len(path)] == path for other in expected if other != path):
            continue  # the fault is further down: a wrong item also makes its list too short
        found = json.dumps(_at(document.data, path))
        fitting = ", or ".join(dict.fromkeys(alternatives))
        if document.place(path).startswith("-s ") and fitting == "a valid string":
            fitting += f", such as '{json.dumps(found)}'"
        faults.append(f"{document.where(path)}: found {found}. Expected {fitting}")
    return faults


def _written_path(data: Any, fault: Mapping[str, Any]) -> KeyPath:
    """The key path as the recipe has it: pydantic's names for the members of a union are left out."""
    path: KeyPath = ()
    for part in fault["loc"]:
        absent = not (
            part in data
            if isinstance(data, dict)
            else isinstance(data, list) and part in range(len(data))
        )
        if absent and fault["type"] != "missing":
            break
        path += (part,)
        data = None if absent else data[part]
    return path


def _unknown_key(document: Document, path: KeyPath, model: type[BaseModel]) -> str:
    owner, options = "the recipe", model
    for part in path[:-1]:
        options = options.model_fields[str(part)].annotation
        owner = (
            options.__name__.replace(".", " ", 1)
            if "." in options.__name__
            else f"section '{part}'"
        )
    kind, _, name = owner.partition(" ")
    owner = f"{kind} {name!r}" if kind in SECTIONS.values() else owner
    named = document.place((*path[:-1], "name"))
    if named.startswith("-s ") and named != document.place(path):
        owner += f" ({named})"
    key = str(path[-1])
    elsewhere = _sections_with(key, model) if len(path) == 1 else []
    if elsewhere:
        return f"{owner} has no such option. Did you mean {' or '.join(elsewhere)}?"
    return f"{owner} has no such option. {suggest(key, options.model_fields, label='Its options')}"


def _sections_with(key: str, model: type[BaseModel], above: str = "") -> list[str]:
    """Key paths of the sections of this recipe that have such an option: `outer.steps`."""
    found = []
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            if key in section.model_fields and key != "name":
                found.append(f"{above}{name}.{key}")
            found += _sections_with(key, section, f"{above}{name}.")
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return _absolute(value) if isinstance(value, Path) else value


def _absolute(path: Path) -> str:
    text = str(path.expanduser().absolute())
    if not _encodes(text):
        raise RecipeError(
            f"recipe: path '{printable(text)}' is not UTF-8, and no recipe can name it. "
            "Another name for that folder"
        )
    return text


def _at(data: Any, path: KeyPath) -> Any:
    for part in path:
        data = data[part]
    return data


def in_file_order(faults: list[str]) -> list[str]:
    """Faults by the line that each begins with."""

    def line(fault: str) -> int:
        place = fault.split(": ", 1)[0].rpartition(":")[2]
        return int(place) if place.isdigit() else 0

    return sorted(faults, key=line)

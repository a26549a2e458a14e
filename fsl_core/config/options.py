"""The signature of a constructor is the schema of its options, with types, bounds and defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import SimpleNamespace
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

Kind = Literal[
    "episodes",
    "backbone",
    "adapter",
    "hypergradient",
    "weighting",
    "optimizer",
    "schedule",
    "launcher",
    "searcher",
    "benchmark",
    "store",
]

INJECTED: dict[Kind, frozenset[str]] = {
    "episodes": frozenset(),
    "backbone": frozenset({"task", "frozen"}),
    "adapter": frozenset({"task", "backbone", "tasks"}),
    "hypergradient": frozenset({"task", "tasks", "meta_batch_size"}),
    "weighting": frozenset({"columns", "tasks"}),
    "optimizer": frozenset({"parameters"}),
    "schedule": frozenset(),
    "launcher": frozenset({"no_plugin"}),
    "searcher": frozenset(),
    "benchmark": frozenset(),
    "store": frozenset(),
}
"""Arguments that the framework passes by name; every other argument is a recipe key."""

Weight = Annotated[
    float, Field(gt=0, description="its share of the episodes, beside those of the other sources")
]
Label = Annotated[
    str,
    Field(pattern=r"^[\w.+-]*$", description="what results call this source; default: its name"),
]
ENTRY_KEYS: dict[str, Any] = {"weight": (Weight, 1.0), "label": (Label, "")}
"""Keys of a source in a list, beside its own options: `label` in `evaluate.on`, else `weight`."""


@dataclass(frozen=True)
class Sources:
    """Marks an option that lists episode sources.

    A recipe writes a section like `episodes` for each, with its `weight`. The constructor gets a
    list of pairs, (source, weight):

        sources: Annotated[list[tuple[fsl.EpisodeSource, float]], Sources()]
    """


SHARED: dict[Kind, dict[str, Any]] = {
    "backbone": {
        "frozen": (
            Annotated[
                bool,
                Field(
                    description="never trained: features of each item are computed once, kept on "
                    "disk, and all else works on them"
                ),
            ],
            False,
        ),
        "precision": (
            Annotated[
                Literal["float32", "half"],
                Field(
                    description="of frozen features; half: computed in bfloat16, kept in float16"
                ),
            ],
            "float32",
        ),
    }
}
"""Recipe keys of every component of a kind: (type, default). The framework heeds them itself."""


@dataclass(frozen=True)
class Component:
    """Something a recipe can name: a factory with its option schema and where it came from.

    origin: for messages and listings, such as `fsl-maml 0.1.0`.
    """

    kind: Kind
    name: str
    factory: Callable[..., Any]
    origin: str

    @cached_property
    def options(self) -> type[BaseModel]:
        """The pydantic model of a recipe section that names this component."""
        parts = (self.kind, self.name, self.factory)
        # A class may be changed in place, as IPython's autoreload does.
        signature = tuple(map(str, _parameters(self.factory)))
        try:
            return _options_model(*parts, signature)
        except TypeError:  # a factory without a hash; or no schema, and it is said again
            return _options_model.__wrapped__(*parts, signature)

    @cached_property
    def lists(self) -> tuple[str, ...]:
        """The options that list episode sources."""
        fields = self.options.model_fields.items()
        return tuple(name for name, field in fields if _is_sources(field.metadata))

    @property
    def doc(self) -> str:
        """The docstring of the factory."""
        return inspect.getdoc(self.factory) or ""

    def build(self, section: BaseModel, **injected: Any) -> Any:
        """Call the factory with a checked section and the injected arguments that it declares."""
        declared = {parameter.name for parameter in _parameters(self.factory)}
        shared = SHARED.get(self.kind, {})
        injected = {name: getattr(section, name) for name in shared} | injected
        given = {name: getattr(section, name) for name in type(section).model_fields}
        return self.factory(**{k: v for k, v in (given | injected).items() if k in declared})


def fields_of(factory: Callable[..., Any], injected: Collection[str], where: str) -> dict[str, Any]:
    """The options in a constructor's signature as pydantic takes them: (type, default) by name.

    injected: arguments that are no options.    where: for messages.
    TypeError for a signature that is no schema.
    """
    options = [p for p in _parameters(factory) if p.name not in injected]
    hints = _type_hints(factory, options)
    fields: dict[str, Any] = {}
    for parameter in options:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(
                f"{where}: argument *{parameter.name}. Every option as an argument of its own: "
                "the signature is the schema"
            )
        if parameter.name == "name":
            raise TypeError(
                f"{where}: argument 'name'. "
                "Another word: recipes use `name` to choose the component"
            )
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (_as_written(hints[parameter.name]), default)
    return fields


def _as_written(hint: Any) -> Any:
    """The type of an option in a recipe: sections, where the constructor gets sources."""
    metadata = getattr(hint, "__metadata__", ())
    return Annotated[list[dict[str, Any]], *metadata] if _is_sources(metadata) else hint


def _is_sources(metadata: Any) -> bool:
    return any(isinstance(mark, Sources) for mark in metadata)


@lru_cache(maxsize=1024)  # each command of a test or a notebook loads all plugins again
def _options_model(
    kind: Kind, name: str, factory: Callable[..., Any], signature: tuple[str, ...]
) -> type[BaseModel]:
    """signature: that of the factory, by which what is kept is found again."""
    where = f"{kind} {name!r}"
    fields: dict[str, Any] = {
        "name": (Literal[name], ...),
        **fields_of(factory, INJECTED[kind], where),
        **SHARED.get(kind, {}),
    }
    if kind == "episodes" and (taken := sorted(ENTRY_KEYS.keys() & fields.keys())):
        raise TypeError(
            f"{where}: argument {taken[0]!r}. Another word: in a list of sources it is a key of "
            "every source"
        )
    config = ConfigDict(
        extra="forbid", protected_namespaces=(), validate_default=False, allow_inf_nan=False
    )
    return create_model(
        f"{kind}.{name}",
        __config__=config,
        __doc__=inspect.getdoc(factory) or None,
        **fields,
    )


def _parameters(factory: Callable[..., Any]) -> list[inspect.Parameter]:
    if inspect.isclass(factory):
        home = next(base for base in factory.__mro__ if "__init__" in vars(base))
        # This asks the class for its module, not the function `__init__`: torch.compile puts a
        # function of its own in place of that of nn.Module. torch itself is not imported here.
        if home.__module__ == "torch.nn.modules.module":
            return []  # a module without a constructor of its own
    return list(inspect.signature(factory).parameters.values())


def _type_hints(factory: Callable[..., Any], options: list[inspect.Parameter]) -> dict[str, Any]:
    """Resolved annotations of the options alone.

    Those of injected arguments may be imported for type checkers only.
    """
    function = inspect.unwrap(factory.__init__ if inspect.isclass(factory) else factory)
    annotations = {p.name: Any if p.annotation is p.empty else p.annotation for p in options}
    return get_type_hints(
        SimpleNamespace(__annotations__=annotations),
        getattr(function, "__globals__", {}),
        include_extras=True,
    )

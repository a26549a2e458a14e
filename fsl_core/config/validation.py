"""Direct calls of a constructor, checked by the annotations that check recipes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache, wraps
from types import NoneType
from typing import Any, TypeVar, cast, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from fsl_core.config.options import INJECTED, Kind, fields_of
from fsl_core.errors import OptionError

T = TypeVar("T", bound=Callable[..., Any])

_PARTS: tuple[Kind, ...] = ("episodes", "backbone", "adapter", "hypergradient", "weighting")
_INJECTED = frozenset[str]().union(*(INJECTED[kind] for kind in _PARTS)) | {"self"}
"""Arguments that the framework passes to what plugins offer; no recipe holds them."""

_FITTING: dict[str, str] = {
    "greater_than": "A number above {gt}",
    "greater_than_equal": "A number from {ge}",
    "less_than": "A number below {lt}",
    "less_than_equal": "A number of at most {le}",
    "finite_number": "A finite number",
    "literal_error": "{expected}",
    "float_type": "A number",
    "float_parsing": "A number",
    "int_type": "A whole number",
    "int_parsing": "A whole number",
    "int_from_float": "A whole number",
    "bool_type": "True or False",
    "bool_parsing": "True or False",
    "string_type": "Text",
    "list_type": "A list",
    "dict_type": "A dict",
    "too_short": "{min_length} or more",
    "too_long": "At most {max_length}",
}
"""What would fit, by the kind of fault that pydantic finds; others keep pydantic's words."""


def validated(target: T) -> T:
    """A class, or a function, whose arguments are checked by their annotations when it is called.

    A recipe that names a component is checked by its signature. Decorate the class, and a direct
    call is checked by the same, so that its constructor says each bound once:

        @fsl.validated
        class Mine(fsl.Adapter):
            name = "mine"

            def __init__(self, task, rate: Annotated[float, Field(gt=0)] = 0.1): ...

        Mine(task, rate=0)      # OptionError: mine: rate: 0. A number above 0

    The constructor gets values of the annotated types: 1.0 for 1, a tuple for a list. What the
    framework passes, such as `task`, and defaults are taken as they are. Rules between arguments
    stay code. The signature, and with it the schema, stays that of the target.

    OptionError, a ValueError, for the first argument that does not fit.
    """
    if not inspect.isclass(target):
        return _checked(target)
    made: Any = target
    made.__init__ = _checked(made.__init__)
    return target


def _checked(function: T) -> T:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        signature, model = _schema(function)
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # which says in its own words what is wrong
        options = {k: v for k, v in bound.arguments.items() if k in model.model_fields}
        try:
            checked = model.model_validate(options)
        except ValidationError as error:
            raise OptionError(f"{_where(function, args)}: {_fault(error, model)}") from error
        bound.arguments.update((name, getattr(checked, name)) for name in options)
        return function(*bound.args, **bound.kwargs)

    return cast("T", call)


@cache
def _schema(function: Callable[..., Any]) -> tuple[inspect.Signature, type[BaseModel]]:
    """Made at the first call: annotations may name what comes later in their module."""
    where = getattr(function, "__qualname__", repr(function))
    fields = fields_of(function, _INJECTED, where)
    config = ConfigDict(
        arbitrary_types_allowed=True,
        protected_namespaces=(),
        validate_default=False,
        allow_inf_nan=False,
    )
    # Only what was given is looked at, so that nothing is required here.
    given: dict[str, Any] = {
        name: (hint, None if default is ... else default)
        for name, (hint, default) in fields.items()
    }
    return inspect.signature(function), create_model(where, __config__=config, **given)


def _where(function: Callable[..., Any], args: tuple[Any, ...]) -> str:
    """The word recipes use for a component, else the name of the class or function."""
    if function.__name__ != "__init__":
        return function.__name__
    owner = type(args[0])
    return getattr(owner, "name", None) or owner.__name__


def _fault(error: ValidationError, model: type[BaseModel]) -> str:
    """`<option>: <what was found>. <what would fit>` of the first option that is wrong."""
    faults = error.errors(include_url=False)
    option = faults[0]["loc"][0]
    of_option = [fault for fault in faults if fault["loc"][0] == option]
    deepest = max(map(_depth, of_option))  # a wrong item tells more than its list does
    told = [fault for fault in of_option if _depth(fault) == deepest]
    fitting = [_fitting(fault) for fault in told]
    if NoneType in get_args(model.model_fields[str(option)].annotation):
        fitting.append("None")
    return f"{option}: {told[0]['input']!r}. {', or '.join(dict.fromkeys(fitting))}"


def _depth(fault: Any) -> int:
    """How far inside of the option's value; names of a union's members do not count."""
    return sum(isinstance(part, int) for part in fault["loc"])


def _fitting(fault: Any) -> str:
    if fault["type"] not in _FITTING:
        return fault["msg"]
    bounds = fault.get("ctx", {}).items()
    plain = {name: f"{v:g}" if isinstance(v, float) else v for name, v in bounds}
    return _FITTING[fault["type"]].format(**plain)

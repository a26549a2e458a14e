"""Benchmark tasks: frozen test episodes under a name and a version, in a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fsl_core.config.document import read_document
from fsl_core.config.sections import Catalogue
from fsl_core.errors import RecipeError


class _Judged(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    split: Literal["test", "validation"] = "test"
    episodes: Annotated[int, Field(ge=2)]
    seed: Annotated[int, Field(ge=0)] = 0


class _File(BaseModel):
    """What the file of a task holds."""

    model_config = ConfigDict(extra="forbid", strict=True)

    benchmark: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    version: Annotated[int, Field(ge=1)]
    episodes: dict[str, Any]
    evaluate: _Judged
    episode_set: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


@dataclass(frozen=True)
class Benchmark:
    """A task that runs are judged on.

    version:     goes up with every change of its episodes.
    file:        its section `episodes` says where the episodes come from, and their shape.
    split, episodes, seed: which frozen episodes.
    episode_set: their hash. Other episodes are another task.
    """

    name: str
    version: int
    file: Path
    split: Literal["test", "validation"]
    episodes: int
    seed: int
    episode_set: str

    @property
    def title(self) -> str:
        return f"{self.name}, version {self.version}"


def read_benchmark(file: Path) -> Benchmark:
    """The task in a file. Raises RecipeError, which names the key, if it is none."""
    document = read_document(file)
    try:
        found = _File.model_validate(document.data)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
        told = f"{document.where(fault['loc'])}: {fault['msg'].lower()}"
        raise RecipeError(f"{told}. Keys of a task: {', '.join(_File.model_fields)}") from error
    judged = found.evaluate
    which = (judged.split, judged.episodes, judged.seed)
    return Benchmark(found.benchmark, found.version, file, *which, found.episode_set)


def find_benchmark(given: str, catalogue: Catalogue) -> Benchmark:
    """The task of a name that some plugin offers, or of a file.

    Raises PluginError, with the nearest name, if there is neither.
    """
    offered = {component.name for component in catalogue.components("benchmark")}
    if given not in offered and Path(given).is_file():
        return read_benchmark(Path(given))
    component = catalogue.get("benchmark", given)
    found = read_benchmark(Path(component.factory()))
    if found.name != given:
        raise RecipeError(f"{found.file}: benchmark {found.name!r}. {given!r}, as it is offered")
    return found

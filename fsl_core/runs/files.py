"""The files of a run directory: their names, and how they are read and written.

Messages name a damaged file and what is wrong with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from safetensors import SafetensorError

from fsl_core.errors import RunError
from fsl_core.files.writing import write_file
from fsl_core.text import printable

RECIPE, BEGUN, ENVIRONMENT, START, DATA, EXECUTION, METRICS, EPISODES, CONFUSION, RESULT = (
    "recipe.yaml",
    "begun.json",
    "environment.json",
    "start.json",
    "data.json",
    "execution.json",
    "metrics.jsonl",
    "episodes.csv",
    "confusion.csv",
    "result.json",
)
LOCK = ".lock"
"""Held by the process that writes to a run."""

IN_USE = "another process is writing to this run"

UNROLLED = "unrolled"
"""The hypergradient of every run before there was a choice."""

LARGEST, DEEPEST = 16 * 2**20, 64
"""Bytes of a JSON file, and objects within objects in it; ours have some thousand, and four."""

Whole = Annotated[int, Field(ge=0, lt=2**63)]
Figure = Annotated[float, Field(strict=True)]


def by_path(files: Any) -> Any:
    """The digests of one-file plugins by path. Earlier versions kept a list of paths alone."""
    plain = isinstance(files, list) and all(isinstance(file, str) for file in files)
    return dict.fromkeys(files, "") if plain else files


PluginFiles = Annotated[dict[str, str], BeforeValidator(by_path)]


class Record(BaseModel):
    """What a JSON file of ours must hold at least; types are not converted."""

    model_config = ConfigDict(extra="allow", strict=True)


class Environment(Record):
    """What environment.json holds at least.

    recipe:       the run's name.
    plugin_files: sha256 of each one-file plugin, by its path.
    sweep:        the name of the sweep that it belongs to, if any.
    went_on:      where the run was resumed in another environment: `at` which step, and what of it
                  had changed.
    """

    recipe: str
    plugin_files: PluginFiles
    sweep: str = ""
    went_on: list[dict[str, Any]] = Field(default_factory=list)


class StepsChange(Record):
    """When the number of a run's steps changed, and from what to what."""

    at: Whole
    before: Annotated[Whole, Field(alias="from")]
    to: Whole
    differs: list[str]


class JudgedOn(Record):
    """The row of a further source in a result; the score is under the metric's name."""

    metric: str
    interval: float
    loss: float
    episodes: Annotated[int, Field(gt=0, lt=2**63)]
    episode_set: str
    episodes_name: str
    n_query: Whole
    adaptation_seconds: float


class OfClass(Record):
    """How many queries of a class there were, and the share of them that were predicted right."""

    queries: Whole
    right: float


class Start(Record):
    """Which weights of which run a run started from.

    run: the directory.
    digest: of the names and values of the weights that were taken.
    """

    run: str
    part: str
    checkpoint: str
    step: Whole
    digest: str
    weights: Whole


class Result(Record):
    """What commands and reports read from a result; the score is under the metric's name.

    Earlier versions did not write what has a default.
    """

    recipe: str
    metric: str
    interval: float
    loss: float
    episodes: Annotated[int, Field(gt=0, lt=2**63)]
    episode_set: str
    norm: str
    checkpoint: str
    checkpoint_step: Whole
    adaptation_seconds: float
    training_seconds: float
    transductive: bool = False
    n_query: Whole | list[Whole] | None = None
    trained_on: str = ""
    judged_on: str = ""
    hypergradient: str = UNROLLED
    execution: str = ""
    settled: bool = True
    adapter_state: dict[str, Figure] = Field(default_factory=dict)
    steps_changed: list[StepsChange] = Field(default_factory=list)
    on: dict[str, JudgedOn] = Field(default_factory=dict)
    start_from: Start | None = None
    per_class: dict[str, OfClass] = Field(default_factory=dict)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within this context, a failure to write becomes a RunError that names path."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"{path}: {reason}. A folder with room that can be written to") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Within this context, a file that the user may not read becomes a RunError."""
    try:
        yield
    except PermissionError as error:
        raise RunError(
            f"{path}: not readable for you ({error.strerror}). "
            f"{_owner(path)} can let others read it and the folders above it"
        ) from error


def refuse_name(path: Path) -> None:
    """Raise RunError if the path is not UTF-8: safetensors could not read it again."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise RunError(f"{printable(path)}: a name that is not UTF-8. Another name") from error


def write_atomically(path: Path, text: str) -> None:
    """All of it or nothing, also when the process is killed."""
    with writing(path):
        # a name that is not UTF-8 must not end a run in which it is only mentioned
        write_file(path, text.encode(errors="backslashreplace"))


def is_file(path: Path) -> bool:
    """Whether path is a file. Raises RunError if that cannot be seen: it may well be there."""
    with reading(path):
        return path.is_file()


def to_json(data: Any, where: str | Path, **options: Any) -> str:
    """JSON that every reader takes; RunError, naming the key, if a number is not finite.

    options: as for `json.dumps`.
    """
    try:
        return json.dumps(data, allow_nan=False, **options)
    except ValueError as error:
        key, value = next(_not_finite(data))
        raise RunError(f"{where}: {key} is {value}. A finite number") from error


def _not_finite(data: Any, key: str = "it") -> Iterator[tuple[str, float]]:
    if isinstance(data, dict | list | tuple):
        items = data.items() if isinstance(data, dict) else enumerate(data)
        for name, value in items:
            yield from _not_finite(value, str(name) if key == "it" else f"{key}.{name}")
    elif isinstance(data, float) and not math.isfinite(data):
        yield key, data


def check_files(directory: Path) -> None:
    """Raise RunError, naming the file, if a file of a finished run is absent or damaged."""
    read_result(directory)
    read_json(directory / ENVIRONMENT, Environment)
    metrics, *_ = [_read(directory / name) for name in (METRICS, EPISODES, RECIPE)]
    for number, line in enumerate(metrics.splitlines(), start=1):
        if not parse_record(line):
            raise _damaged(directory / METRICS, f"line {number} is not a record of training")


def read_result(directory: Path) -> dict[str, Any]:
    """What result.json holds.

    Raises RunError if it is absent or damaged, or lacks what commands read.
    """
    path = directory / RESULT
    result = read_json(path, Result)
    for row in (result, *result.get("on", {}).values()):
        metric = row["metric"]
        if not _is_number(row.get(metric)):
            raise _damaged(path, f"no number {metric!r}, which is its metric")
        for key, value in row.items():
            if key.startswith(f"{metric}_after_") and not _is_number(value):
                raise _damaged(path, f"{key!r} holds {_kind(value)}")
    return result


def read_json(path: Path, model: type[Record]) -> dict[str, Any]:
    """The mapping in a JSON file of a run directory.

    Raises RunError if it is not what the model says.
    """
    try:
        return check_record(load_json(_read(path)), model)
    except ValueError as error:
        raise _damaged(path, str(error)) from error


def check_record(data: Any, model: type[Record]) -> dict[str, Any]:
    """The data itself. ValueError names the first thing that is wrong with it."""
    if not isinstance(data, dict):
        raise ValueError(f"{_kind(data)}, not a JSON object")
    try:
        model.model_validate(data)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
        key = ".".join(map(str, fault["loc"]))
        if fault["type"] == "missing":
            raise ValueError(f"no {key!r}") from None
        raise ValueError(f"{key!r} holds {_kind(fault['input'])}") from None
    return data


def load_json(text: str | bytes) -> Any:
    """JSON. ValueError if a key is there twice, or a text cannot be shown."""
    try:
        data = json.loads(text, object_pairs_hook=_without_duplicates)
        # bytes of a file name that are not UTF-8 are kept as Python keeps them, as surrogates
        json.dumps(data, ensure_ascii=False).encode(errors="surrogateescape")
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} (line {error.lineno})") from error
    except UnicodeError as error:
        raise ValueError("not JSON of ours: text that is not Unicode") from error
    except RecursionError as error:
        raise ValueError("not JSON of ours: too many brackets within brackets") from error
    except ValueError as error:  # a key twice, or a number of thousands of digits
        raise ValueError(f"not JSON of ours: {str(error).partition(';')[0]}") from error
    if _nests_deeper(data, DEEPEST):
        raise ValueError("not JSON of ours: too many brackets within brackets")
    return data


def parse_record(text: str) -> dict[str, Any]:
    """The record of training in a line of metrics.jsonl; empty if the line holds none."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(data, dict) or type(data.get("step")) is not int:
        return {}
    return data if all(map(_is_figure, data.items())) else {}


def _is_figure(item: tuple[str, Any]) -> bool:
    key, value = item
    return isinstance(value, str) if key == "split" else _is_number(value)


def _is_number(value: Any) -> bool:
    """One that arithmetic takes: not true or false, and no whole number beyond 64 bits."""
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in names if names.count(key) > 1)!r} twice")
    return found


def _nests_deeper(data: Any, levels: int) -> bool:
    layer = [data]
    for _ in range(levels):
        containers = [item for item in layer if isinstance(item, dict | list)]
        layer = [v for c in containers for v in (c.values() if isinstance(c, dict) else c)]
    return any(isinstance(item, dict | list) for item in layer)


def _kind(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _read(path: Path) -> str:
    try:
        with reading(path), path.open("rb") as file:
            content = file.read(LARGEST + 1 if path.suffix == ".json" else -1)
        if path.suffix == ".json" and len(content) > LARGEST:
            raise _damaged(path, f"more than {LARGEST} bytes")
        return content.decode("utf-8")
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise _damaged(path, "not UTF-8 text") from error


def _damaged(path: Path, reason: str) -> RunError:
    directory = path.parent
    as_it_was = "The file as it was, or a new run"
    remedies = {
        **dict.fromkeys((RECIPE, BEGUN, ENVIRONMENT, START, DATA), as_it_was),
        EXECUTION: f"The file as it was; without it, `fsl resume {directory}` chooses again",
    }
    again = f"Delete {directory / RESULT}: `fsl resume {directory}` writes all results again"
    return RunError(f"{path}: {reason}. {remedies.get(path.name, again)}")


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except (OSError, KeyError, NotImplementedError, ImportError):  # hidden, or without a name
        return "Its owner"

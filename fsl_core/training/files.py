"""The files of a run directory: their names, and reading and writing them so that nothing is lost and damage is named."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fsl_core.data.folders import shown
from fsl_core.errors import RunError

RECIPE, BEGUN, ENVIRONMENT, DATA, EXECUTION, METRICS, EPISODES, RESULT = (
    "recipe.yaml",
    "begun.json",
    "environment.json",
    "data.json",
    "execution.json",
    "metrics.jsonl",
    "episodes.csv",
    "result.json",
)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within this context, an operation that cannot be written becomes a RunError naming path."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunError(f"{path}: {reason}. A folder with room that can be written to") from error


def refuse_name(path: Path) -> None:
    """Raise RunError where safetensors could write to a path and not read it again: it wants UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise RunError(f"{shown(path)}: a name that is not UTF-8. Another name") from error


def write_atomically(path: Path, text: str) -> None:
    """All of it or nothing, also when the process is killed."""
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        # a name that is not UTF-8 must not end a run in which it is only mentioned
        with partial.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


def to_json(data: Any, where: str | Path, **options: Any) -> str:
    """JSON that every reader takes. RunError, naming the key, for a number that is not finite.

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
    """Raise RunError, naming the file, where one that a finished run consists of is absent or damaged."""
    read_json(directory / RESULT, "metric")
    read_json(directory / ENVIRONMENT)
    metrics, *_ = [_read(directory / name) for name in (METRICS, EPISODES, RECIPE)]
    for number, line in enumerate(metrics.splitlines(), start=1):
        if "step" not in parse_record(line):
            raise _damaged(directory / METRICS, f"line {number} is no record")


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """The mapping in a JSON file of a run directory. RunError if the file is absent or damaged, or lacks one of the keys."""
    data = parse_record(_read(path))
    if not data or any(key not in data for key in keys):
        raise _damaged(path, "no JSON with what a run needs")
    return data


def parse_record(text: str) -> dict[str, Any]:
    """The mapping that the text stands for, empty where it is none."""
    try:
        data = json.loads(text)
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(
            path, error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        ) from error


def _damaged(path: Path, reason: str) -> RunError:
    directory = path.parent
    anew = f"Delete {directory / RESULT}: `fsl resume {directory}` writes all results anew"
    return RunError(
        f"{path}: {reason}. {'The file as it was, or a new run' if path.name in (RECIPE, BEGUN, ENVIRONMENT, DATA) else anew}"
    )

"""Finished runs kept as evidence: all that tells of them, in little room and without weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path, PurePath
from statistics import fmean
from typing import Any

from fsl_core.config.document import read_document
from fsl_core.config.yaml_text import to_yaml
from fsl_core.errors import RunError
from fsl_core.runs.begun import refuse_edited
from fsl_core.runs.files import (
    ENVIRONMENT,
    EPISODES,
    METRICS,
    RECIPE,
    RESULT,
    Environment,
    check_files,
    parse_record,
    read_json,
    read_result,
    to_json,
    write_atomically,
    writing,
)

LINES = 100
"""Of training in the metrics of a kept run."""


def keep_run(directory: Path, out: Path) -> Path:
    """Copy recipe, environment, metrics, episodes and result of a finished run; returns `out`.

    What is kept is a run directory that has no weights: it can be compared, reported and
    reproduced. Metrics are means over about a hundredth of the steps each; all validations stay. Of
    a path on this machine its last name alone is kept, of the system its name, of classes nothing.

    out: an empty or absent folder.
    Raises RunError if the run is unfinished, damaged or edited, or if `out` holds anything.
    """
    read_result(directory)
    check_files(directory)
    refuse_edited(directory)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out}: not empty. A new folder for --out, or remove what was kept there")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    result = {k: v for k, v in read_result(directory).items() if k != "per_class"}
    environment = read_json(directory / ENVIRONMENT, Environment)
    for part in (environment, *environment.get("went_on", [])):
        if "platform" in part:
            part["platform"] = str(part["platform"]).partition("-")[0]
    recipe = without_places(read_document(directory / RECIPE).data)
    metrics = (directory / METRICS).read_text(encoding="utf-8").splitlines()
    thinned = thin([record for line in metrics if (record := parse_record(line))])
    write_atomically(out / RECIPE, to_yaml(recipe))
    write_atomically(out / ENVIRONMENT, _to_json(environment, ENVIRONMENT))
    write_atomically(out / METRICS, "".join(f"{json.dumps(record)}\n" for record in thinned))
    write_atomically(out / EPISODES, (directory / EPISODES).read_text(encoding="utf-8"))
    write_atomically(out / RESULT, _to_json(result, RESULT))
    return out


def thin(records: Sequence[dict[str, Any]], lines: int = LINES) -> list[dict[str, Any]]:
    """Records of training as about this many means, in their order with all validations.

    A mean has the last step that it is over; numbers are rounded to six digits.

    >>> thin([{"step": s, "loss": 2.0 * s} for s in range(1, 5)], lines=2)
    [{'step': 2, 'loss': 3.0}, {'step': 4, 'loss': 7.0}]
    """
    training = [record for record in records if "split" not in record]
    size = max(1, -(-len(training) // lines))
    position = {id(record): i for i, record in enumerate(training)}
    parts = groupby(
        records, lambda r: ("split", id(r)) if "split" in r else ("part", position[id(r)] // size)
    )
    return [record for _, part in parts for record in _joined(list(part))]


def _joined(part: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    if "split" in part[0]:
        yield from part
        return
    shared = [key for key in part[-1] if all(key in record for record in part)]
    means = {key: float(f"{fmean(record[key] for record in part):.6g}") for key in shared}
    yield {**means, "step": part[-1]["step"]}


def _to_json(data: dict[str, Any], where: str) -> str:
    return to_json(without_places(data), where, indent=2) + "\n"


def without_places(value: Any) -> Any:
    """Plain data in which a path from the root is its last name: the rest tells of one machine."""
    if isinstance(value, dict):
        return {without_places(key): without_places(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_places(item) for item in value]
    absolute = isinstance(value, str) and PurePath(value).is_absolute()
    return PurePath(value).name if absolute else value

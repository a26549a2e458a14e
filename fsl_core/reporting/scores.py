"""What a finished run scored on each of its frozen test episodes, read from its directory."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fsl_core.errors import RunError
from fsl_core.training.files import EPISODES, RESULT, is_file, read_result, reading


@dataclass(frozen=True)
class RunScores:
    """result: what result.json holds.    scores: (n_episodes,), in the order of the frozen episodes."""

    directory: Path
    result: dict[str, Any]
    scores: np.ndarray

    @property
    def metric(self) -> str:
        return self.result["metric"]

    @property
    def higher_is_better(self) -> bool:
        return self.metric != "mse"


def read_scores(directory: Path) -> RunScores:
    """Scores of a finished run. RunError where it is unfinished, or its table is not that of its result."""
    if not is_file(directory / RESULT):
        raise RunError(f"{directory}: no {RESULT} here. A finished run; `fsl resume` finishes one")
    result = read_result(directory)
    path, metric = directory / EPISODES, result["metric"]
    remedy = f"Delete {directory / RESULT}: `fsl resume {directory}` writes all results again"
    try:
        with reading(path):
            text = path.read_text(encoding="utf-8")
        rows = list(csv.DictReader(io.StringIO(text)))
        scores = np.array([float(row[metric]) for row in rows])
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise RunError(f"{path}: no table of episodes with a column {metric}. {remedy}") from error
    if len(scores) != result["episodes"] or not np.isclose(
        scores.mean(), result[metric], rtol=1e-9, atol=1e-12
    ):
        raise RunError(
            f"{path}: {len(scores)} episodes, whose mean is not that of {RESULT}. {remedy}"
        )
    return RunScores(directory, result, scores)

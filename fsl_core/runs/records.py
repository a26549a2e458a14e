"""What a run keeps: in its directory, or in memory alone."""

from __future__ import annotations

import csv
import io
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from fsl_core.engine.choice import Choice
from fsl_core.engine.confusion import Counts
from fsl_core.engine.evaluation import Evaluation
from fsl_core.errors import RunError
from fsl_core.files.spreadsheets import CsvWriter
from fsl_core.files.writing import append_file
from fsl_core.runs import checkpoints
from fsl_core.runs.files import (
    CONFUSION,
    EPISODES,
    EXECUTION,
    METRICS,
    RESULT,
    is_file,
    parse_record,
    read_result,
    reading,
    to_json,
    write_atomically,
    writing,
)

Progress = dict[str, Any]
"""What a checkpoint says of a run: its step, the best validation so far."""


class Records(ABC):
    """Checkpoints by name (`last`, `best`), metrics, and the result of one run."""

    directory: Path | None = None

    @abstractmethod
    def named(self, which: str) -> str:
        """What messages call a checkpoint: its file."""

    @abstractmethod
    def has(self, which: str) -> bool: ...

    @abstractmethod
    def save(
        self,
        which: str,
        modules: Mapping[str, nn.Module],
        optimizer: Optimizer | None,
        progress: Progress,
    ) -> None: ...

    @abstractmethod
    def restore(
        self, which: str, modules: Mapping[str, nn.Module], optimizer: Optimizer | None
    ) -> Progress:
        """Load a checkpoint into modules and optimizer; returns what it says of progress."""

    @abstractmethod
    def progress_of(self, which: str) -> Progress: ...

    @abstractmethod
    def append_metrics(self, lines: list[str]) -> None:
        """Add lines of JSON; if there is no room, none of them."""

    @abstractmethod
    def metric_lines(self) -> list[str]: ...

    @abstractmethod
    def replace_metrics(self, lines: list[str]) -> None: ...

    @abstractmethod
    def keep_choice(self, choice: Choice) -> None:
        """Keep how meta-batches are computed, for a resume."""

    @abstractmethod
    def write_result(
        self, result: dict[str, Any], evaluation: Evaluation, further: Mapping[str, Evaluation]
    ) -> None:
        """Keep a result, with the scores of its test episodes and of those of further sources."""

    @abstractmethod
    def result(self) -> dict[str, Any] | None:
        """None before the run is complete."""

    def metrics(self) -> list[dict[str, Any]]:
        """The records of training, without lines that a dying process left incomplete."""
        return [record for line in self.metric_lines() if (record := parse_record(line))]


class InDirectory(Records):
    """Files of a run directory, each written whole or not at all."""

    def __init__(self, directory: Path) -> None:
        self.directory: Path = directory

    def path(self, which: str) -> Path:
        return self.directory / "checkpoints" / f"{which}.safetensors"

    def named(self, which: str) -> str:
        return str(self.path(which))

    def has(self, which: str) -> bool:
        return is_file(self.path(which))

    def save(
        self,
        which: str,
        modules: Mapping[str, nn.Module],
        optimizer: Optimizer | None,
        progress: Progress,
    ) -> None:
        with writing(self.path(which)):
            checkpoints.save(self.path(which), modules, optimizer, progress)

    def restore(
        self, which: str, modules: Mapping[str, nn.Module], optimizer: Optimizer | None
    ) -> Progress:
        return checkpoints.restore(self.path(which), modules, optimizer)

    def progress_of(self, which: str) -> Progress:
        return checkpoints.progress_of(self.path(which))

    def append_metrics(self, lines: list[str]) -> None:
        path = self.directory / METRICS
        with writing(path):
            append_file(path, "".join(f"{line}\n" for line in lines).encode())

    def metric_lines(self) -> list[str]:
        path = self.directory / METRICS
        if not is_file(path):
            return []
        with reading(path):
            return path.read_text(encoding="utf-8", errors="replace").splitlines()

    def replace_metrics(self, lines: list[str]) -> None:
        write_atomically(self.directory / METRICS, "".join(f"{line}\n" for line in lines))

    def keep_choice(self, choice: Choice) -> None:
        text = to_json(choice.as_dict(), EXECUTION, indent=2) + "\n"
        write_atomically(self.directory / EXECUTION, text)

    def write_result(
        self, result: dict[str, Any], evaluation: Evaluation, further: Mapping[str, Evaluation]
    ) -> None:
        # The result comes last: a directory that has one is a finished run.
        write_atomically(self.directory / EPISODES, _table(evaluation, further))
        if evaluation.confusion:
            write_atomically(self.directory / CONFUSION, _taken_for(evaluation.confusion))
        write_atomically(self.directory / RESULT, to_json(result, RESULT, indent=2) + "\n")

    def result(self) -> dict[str, Any] | None:
        return read_result(self.directory) if is_file(self.directory / RESULT) else None


class OfFirstRank(InDirectory):
    """The files of a run that another rank writes: here they are read alone."""

    def save(
        self,
        which: str,
        modules: Mapping[str, nn.Module],
        optimizer: Optimizer | None,
        progress: Progress,
    ) -> None:
        pass

    def append_metrics(self, lines: list[str]) -> None:
        pass

    def replace_metrics(self, lines: list[str]) -> None:
        pass

    def keep_choice(self, choice: Choice) -> None:
        pass

    def write_result(
        self, result: dict[str, Any], evaluation: Evaluation, further: Mapping[str, Evaluation]
    ) -> None:
        pass


class InMemory(Records):
    """Nothing is written: checkpoints are copies of the weights, and end with the run."""

    def __init__(self) -> None:
        self._checkpoints: dict[str, tuple[dict[str, Any], Any, Progress]] = {}
        self._lines: list[str] = []
        self._result: dict[str, Any] | None = None

    def named(self, which: str) -> str:
        return f"the {which} one in memory"

    def has(self, which: str) -> bool:
        return which in self._checkpoints

    def save(
        self,
        which: str,
        modules: Mapping[str, nn.Module],
        optimizer: Optimizer | None,
        progress: Progress,
    ) -> None:
        weights = {label: deepcopy(module.state_dict()) for label, module in modules.items()}
        state = deepcopy(optimizer.state_dict()) if optimizer else None
        self._checkpoints[which] = (weights, state, deepcopy(progress))

    def restore(
        self, which: str, modules: Mapping[str, nn.Module], optimizer: Optimizer | None
    ) -> Progress:
        if which not in self._checkpoints:
            raise RunError("no checkpoint in memory. A run that has been trained")
        weights, state, progress = self._checkpoints[which]
        for label, module in modules.items():
            module.load_state_dict(weights[label])
        if optimizer is not None and state is not None:
            optimizer.load_state_dict(deepcopy(state))
        return deepcopy(progress)

    def progress_of(self, which: str) -> Progress:
        return deepcopy(self._checkpoints[which][2])

    def append_metrics(self, lines: list[str]) -> None:
        self._lines += lines

    def metric_lines(self) -> list[str]:
        return list(self._lines)

    def replace_metrics(self, lines: list[str]) -> None:
        self._lines = list(lines)

    def keep_choice(self, choice: Choice) -> None:
        """The run itself holds its choice."""

    def write_result(
        self, result: dict[str, Any], evaluation: Evaluation, further: Mapping[str, Evaluation]
    ) -> None:
        self._result = dict(result)

    def result(self) -> dict[str, Any] | None:
        return self._result


def _table(evaluation: Evaluation, further: Mapping[str, Evaluation]) -> str:
    """episodes.csv: score and loss of each episode, and its score after each inner step.

    Then its sizes, where they vary, and score and loss of the episode with the same number of each
    further source.
    """
    steps = [f"{evaluation.metric}_after_{k}" for k in range(len(evaluation.after_steps))]
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    more = [f"{name} on {label}" for label in further for name in (evaluation.metric, "loss")]
    writer.writerow(["episode", evaluation.metric, "loss", *steps, *evaluation.sizes, *more])
    scores = [evaluation.scores, evaluation.losses, *evaluation.after_steps]
    columns: list[Sequence[float]] = [*scores, *evaluation.sizes.values()]
    columns += [column for other in further.values() for column in (other.scores, other.losses)]
    writer.writerows([i, *row] for i, row in enumerate(zip(*columns, strict=True)))
    return table.getvalue()


def _taken_for(confusion: Counts) -> str:
    """confusion.csv: how many queries of a class were predicted as which class, where any were."""
    table = io.StringIO()
    writer = CsvWriter(table)
    writer.writerow(["class", "predicted", "count"])
    writer.writerows((*pair, count) for pair, count in confusion.items())
    return table.getvalue()

"""One run of MLflow, written from the calling thread in batches."""

from __future__ import annotations

import json
import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from filelock import FileLock

import fsl_core as fsl

if TYPE_CHECKING:
    from mlflow import MlflowClient

STATE = "mlflow.json"
"""In the run directory: which run of MLflow it is."""

FILES = ("recipe.yaml", "environment.json", "episodes.csv", "confusion.csv", "result.json")
PAGE = "report.html"
FLUSHED_EVERY, MOST = 10.0, 900
"""Seconds between two batches; metrics in one, of the thousand that a server takes."""

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
}
"""A run tells nobody but its server, and does not wait long for it. The environment goes first."""


class TrackedRun:
    """The run of MLflow of a run directory: the one it had before, or a new one."""

    def __init__(self, run: fsl.RunView, directory: Path):
        self._pending: list[tuple[str, float, int, int]] = []
        self._flushed = time.monotonic()
        self._client = _client()
        known = self._known(directory)
        self._id = known or self._begin(run, directory)
        self._last = {split: self._last_step(f"{split}/loss") for split in ("train", "validation")}
        if known:
            self._client.update_run(self._id, status="RUNNING")

    def log(self, group: str, values: Mapping[str, float], step: int) -> None:
        """Take a value for each of `<group>/<key>`; a step that is there already is passed over."""
        if step <= self._last.get(group, -1):
            return
        now = int(1000 * time.time())
        self._pending += [(f"{group}/{key}", float(v), now, step) for key, v in values.items()]
        if len(self._pending) > MOST or time.monotonic() - self._flushed > FLUSHED_EVERY:
            self.flush()

    def flush(self) -> None:
        from mlflow.entities import Metric

        while self._pending:
            batch, self._pending = self._pending[:MOST], self._pending[MOST:]
            self._client.log_batch(self._id, metrics=[Metric(*values) for values in batch])
        self._flushed = time.monotonic()

    def say(self, tag: str, text: str) -> None:
        self._client.set_tag(self._id, tag, text)

    def keep_figures(self, figures: Mapping[str, bytes]) -> None:
        with TemporaryDirectory() as folder:
            for name, png in figures.items():
                (Path(folder) / f"{name}.png").write_bytes(png)
            self._client.log_artifacts(self._id, folder, "figures")

    def keep_files(self, directory: Path) -> None:
        for file in (directory / name for name in (*FILES, PAGE)):
            if file.is_file():
                self._client.log_artifact(self._id, str(file))

    def end(self, status: str) -> None:
        """status: FINISHED, FAILED or KILLED."""
        self.flush()
        self._client.set_terminated(self._id, status)

    def _known(self, directory: Path) -> str:
        """The run of MLflow that a run had before, if its store still has it."""
        from mlflow.exceptions import MlflowException

        try:
            found = str(json.loads((directory / STATE).read_text(encoding="utf-8"))["run_id"])
            return found if self._client.get_run(found).info.lifecycle_stage == "active" else ""
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return ""
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return ""  # another store than before
            raise

    def _begin(self, run: fsl.RunView, directory: Path) -> str:
        from mlflow.entities import Param

        experiment = run.sweep or os.environ.get("MLFLOW_EXPERIMENT_NAME", "fsl")
        tags = {"device": run.device, "execution": run.execution, "sweep": run.sweep}
        begun = self._client.create_run(
            _experiment(self._client, experiment),
            tags={key: text for key, text in tags.items() if text},
            run_name=run.name,
        ).info.run_id
        options = [Param(key, str(value)[:6000]) for key, value in run.options.items()]
        for first in range(0, len(options), 100):  # as many as a server takes
            self._client.log_batch(begun, params=options[first : first + 100])
        self._client.log_artifact(begun, str(directory / "recipe.yaml"))
        (directory / STATE).write_text(json.dumps({"run_id": begun}) + "\n", encoding="utf-8")
        return begun

    def _last_step(self, key: str) -> int:
        history = self._client.get_metric_history(self._id, key)
        return max((metric.step for metric in history), default=-1)


def _client() -> MlflowClient:
    """A client of MLFLOW_TRACKING_URI, or else of mlflow.db in the working directory."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic"):  # they tell at length how a store is made
        logging.getLogger(name).setLevel(logging.WARNING)
    where = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').absolute()}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own dependencies
        # Imported here, so that commands that run nothing need not wait.
        from mlflow import MlflowClient

        with _alone(where):
            client = MlflowClient(where)
            client.search_experiments(max_results=1)
    return client


@contextmanager
def _alone(where: str) -> Iterator[None]:
    """Within this context no other process makes the same sqlite store."""
    prefix = "sqlite:///"
    if not where.startswith(prefix):
        yield
        return
    with FileLock(f"{where.removeprefix(prefix)}.lock", timeout=300):
        yield


def _experiment(client: MlflowClient, name: str) -> str:
    from mlflow.exceptions import MlflowException

    if (found := client.get_experiment_by_name(name)) is None:
        try:
            return client.create_experiment(name)
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return found.experiment_id  # made by this process or by another run of the sweep

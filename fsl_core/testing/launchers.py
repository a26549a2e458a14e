"""What every launcher has to keep, wherever its runs are computed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, ClassVar

import pytest

import fsl_core as fsl
from fsl_core.config.document import Document
from fsl_core.config.recipe import check_document
from fsl_core.hooks.loader import load
from fsl_core.runs.environment import describe_environment
from fsl_core.runs.opening import prepare_run

RECIPE: dict[str, Any] = {
    "episodes": {"name": "glyphs", "n_way": 2, "n_shot": 1, "n_query": 1},
    "backbone": {"name": "mlp", "hidden": [4]},
    "adapter": {"name": "nearest-centroid"},
    "outer": {"steps": 0, "validate_every": 0},
    "execution": {"mode": "loop"},
    "evaluate": {"episodes": 2},
}
FOREVER = {"steps": 10**9, "validate_every": 0, "checkpoint_every": 10**9}
POLLED_EVERY = 0.1


class LauncherContract:
    """Inherit as `class TestMine(LauncherContract)` and write `make`.

    It starts runs of a few seconds, polls them to their ends, and stops one. That the folder of
    the test can be seen where runs are computed is for the launcher's options to see to.

    patience: seconds for a run to begin, to end, and to be stopped.
    """

    patience: ClassVar[float] = 300.0

    def make(self) -> fsl.Launcher:
        """A fresh launcher."""
        raise NotImplementedError(
            f"{type(self).__name__}.make: not written. A method make(self) -> Launcher"
        )

    def test_claims(self) -> None:
        launcher = self.make()
        assert isinstance(launcher, fsl.Launcher), (
            f"make: {type(launcher).__name__}. A subclass of fsl_core.Launcher"
        )
        name = getattr(launcher, "name", None)
        assert isinstance(name, str), (
            f"name: {name!r}. A class attribute, the word recipes write under `launcher.name`"
        )
        assert launcher.at_once is None or launcher.at_once > 0, (
            f"at_once: {launcher.at_once}. A number above 0, or None for a queue"
        )
        assert launcher.outlives or launcher.at_once is not None, (
            "at_once: None. A number: what ends with the sweep has no queue of its own"
        )

    def test_runs_are_started_polled_and_stopped(self, tmp_path: Path) -> None:
        """One by one: a run that ends well, one that fails, and one that is stopped."""
        launcher = self.make()
        try:
            self._ends_well(launcher, prepared(tmp_path / "short", RECIPE["outer"]))
            self._fails(launcher, tmp_path / "empty")
            self._is_stopped(launcher, prepared(tmp_path / "long", FOREVER))
        finally:
            launcher.close()

    def _ends_well(self, launcher: fsl.Launcher, run: Path) -> None:
        launcher.start([work(run)])
        ended = self._ended(launcher, run)
        assert (run / "result.json").is_file(), f"start: ended as {ended} without a result.json"
        assert ended.code == 0, f"poll: {ended} of a run that has its result. Ended(0)"
        assert "test accuracy" in work(run).output.read_text(), (
            f"start: {work(run).output.name} lacks what the process printed. Its output"
        )

    def _fails(self, launcher: fsl.Launcher, run: Path) -> None:
        run.mkdir()
        launcher.start([work(run)])
        ended = self._ended(launcher, run)
        assert ended.code != 0, f"poll: {ended} of a process that failed. Its exit code"

    def _is_stopped(self, launcher: fsl.Launcher, run: Path) -> None:
        launcher.start([work(run)])
        self._wait(
            lambda: (run / "execution.json").is_file() or launcher.poll(run), "start: to begin"
        )
        assert launcher.poll(run) is None, f"poll: {launcher.poll(run)} of a run at work. None"
        launcher.stop([run])
        ended = self._ended(launcher, run)
        assert ended.code != 0, f"stop: {ended}. A code other than 0, since it was stopped"
        assert not (run / "result.json").exists(), "stop: the run has a result. It is stopped"

    def _ended(self, launcher: fsl.Launcher, run: Path) -> fsl.Ended:
        return self._wait(lambda: launcher.poll(run), "poll: for an end")

    def _wait(self, look: Any, what: str) -> Any:
        deadline = time.monotonic() + self.patience
        while not (found := look()):
            if time.monotonic() > deadline:
                pytest.fail(f"{what}: waited {self.patience:g} s in vain")
            time.sleep(POLLED_EVERY)
        return found


def prepared(run: Path, outer: dict[str, Any]) -> Path:
    """The directory of a run of a tiny recipe that nobody has begun."""
    loaded = load(entry_points=False)
    recipe = check_document(Document("tiny", {**RECIPE, "outer": dict(outer)}), loaded.catalogue)
    environment = describe_environment(loaded.plugins)
    prepare_run(run, recipe, {**environment, "recipe": "tiny", "device": "cpu", "plugin_files": {}})
    return run


def work(run: Path) -> fsl.Work:
    """What a sweep would have a launcher start for this run."""
    return fsl.Work(run, ("resume", str(run), "--device", "cpu"))

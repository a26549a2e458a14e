"""One run in Weights & Biases or Trackio, which take the same calls."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fsl_core as fsl

LIBRARIES = ("trackio", "wandb")

FILES = ("recipe.yaml", "environment.json", "episodes.csv", "result.json", "report.html")


class TrackedRun:
    """What follows one run directory, in one library; begun, or gone on with.

    library: `wandb` or `trackio`.
    `<library>.json` in the directory says which tracked run it is, and which steps it has.
    """

    def __init__(self, library: str, run: fsl.RunView, directory: Path):
        self._library = _imported(library)
        self._directory, self._state = directory, directory / f"{library}.json"
        known = self._known()
        self._id = known.get("id") or secrets.token_hex(4)
        self._last: dict[str, int] = dict(known.get("last") or {})
        project = os.environ.get(f"{library.upper()}_PROJECT", "fsl")
        begin = _begin_wandb if library == "wandb" else _begin_trackio
        with redirect_stdout(sys.stderr):
            self._run = begin(self._library, run, directory, self._id, project)
        self.note()

    def log(self, group: str, values: Mapping[str, float], step: int) -> None:
        """A value for each of `<group>/<key>`; a step that is there already is passed over."""
        if step > self._last.get(group, -1):
            self._run.log({f"{group}/{key}": value for key, value in values.items()}, step=step)
            self._last[group] = step

    def note(self) -> None:
        """Write down which steps are there, for a resume."""
        text = json.dumps({"id": self._id, "last": self._last})
        self._state.write_text(f"{text}\n", encoding="utf-8")

    def keep_figures(self, figures: Mapping[str, bytes], step: int) -> None:
        with TemporaryDirectory() as folder:
            images = {}
            for name, png in figures.items():
                file = Path(folder) / f"{name}.png"
                file.write_bytes(png)
                images[f"figures/{name}"] = self._library.Image(str(file))
            self._run.log(images, step=step)

    def keep_files(self) -> None:
        """As an artifact of the kind `run`."""
        artifact = self._library.Artifact(f"run-{self._id}", type="run")
        for file in (self._directory / name for name in FILES):
            if file.is_file():
                artifact.add_file(str(file))
        self._run.log_artifact(artifact)

    def end(self, code: int) -> None:
        """code: 0 if the run is complete; a Trackio run has no such code."""
        self.note()
        with redirect_stdout(sys.stderr):
            if self._library.__name__ == "wandb":
                self._run.finish(exit_code=code)
            else:
                self._run.finish()

    def _known(self) -> dict[str, Any]:
        try:
            found = json.loads(self._state.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def _imported(library: str) -> Any:
    try:
        # Imported here, so that commands that run nothing need not wait.
        return import_module(library)
    except ModuleNotFoundError as error:
        raise fsl.PluginError(
            f"FSL_TRACKER={library}: {error.name} is not installed. "
            f"pip install 'fsl-wandb[{library}]'"
        ) from error


def _begin_wandb(library: Any, run: fsl.RunView, directory: Path, id_: str, project: str) -> Any:
    """A run that never asks for a key: without one it is kept on this machine."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    settings = library.Settings(
        silent=True, console="off", disable_git=True, disable_code=True, x_disable_stats=True
    )
    mode = os.environ.get("WANDB_MODE")
    return library.init(
        id=id_,
        project=project,
        name=run.name,
        group=run.sweep or None,
        config=run.options,
        dir=str(directory),
        resume="allow",
        mode=mode or ("online" if library.login(prompt=False) else "offline"),
        settings=settings,
    )


def _begin_trackio(library: Any, run: fsl.RunView, directory: Path, id_: str, project: str) -> Any:
    """Its runs are known by name alone."""
    return library.init(
        project=project,
        name=f"{run.name} {id_}",
        group=run.sweep or None,
        config=run.options,
        resume="allow",
        embed=False,
    )

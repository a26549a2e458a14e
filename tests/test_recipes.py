"""Every recipe of the repository is valid and trains: two outer steps, on synthetic episodes where
it names real data; of a matrix every combination is
built, of a search the ends of every range, and the last one trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import pytest
import torch

from fsl_core.config.document import read_document
from fsl_core.config.matrix import has_matrix, read_matrix
from fsl_core.config.recipe import Recipe, command_of, read_recipe
from fsl_core.config.search import has_search, read_search
from fsl_core.config.sections import Catalogue
from fsl_core.errors import PluginError
from fsl_core.hooks.loader import load
from fsl_core.runs.opening import new_run
from fsl_core.sweeping.plan import plan_sweep
from fsl_core.sweeping.search import checked_metric
from fsl_core.training.judging import judge
from fsl_core.training.outer_loop import train
from tests.parts import own_data

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
SYNTHETIC = {"glyphs", "random-networks", "sinusoid", "threshold-comparison", "wavelet-transform"}
SHORT = [
    "outer.steps=2",
    "outer.meta_batch_size=2",
    "outer.validate_every=2",
    "outer.validate_episodes=2",
    "evaluate.episodes=2",
    "execution.mode=loop",
]


def test_there_are_recipes():
    assert len(RECIPES) >= 4


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "recipes")))
def test_recipe_trains(path: Path, tmp_path: Path):
    loaded = load()
    for package in _required(path):
        if package not in {d.name for d in metadata.distributions()}:
            pytest.skip(f"{package} is not installed")
    with skipped_without_its_library():
        recipe = _to_train(path, loaded.catalogue, tmp_path)
    with (
        skipped_without_its_library(),
        new_run(tmp_path / "run", recipe, loaded, torch.device("cpu"), []) as run,
    ):
        train(run)
        result = judge(run)
        assert result["episodes"] == 2
        assert list(result.get("on", {})) == list(run.experiment.further)


def _to_train(path: Path, catalogue: Catalogue, folder: Path) -> Recipe:
    """The recipe made short; of a matrix the last one, and every combination is built."""
    overrides = [*SHORT, *_synthetic(path, folder)]
    if has_search(path):
        search = read_search(path, catalogue, overrides)
        assert checked_metric(search, with_data=False) in ("accuracy", "mse")
        return search.ends[-1].recipe
    if has_matrix(path):
        return plan_sweep(read_matrix(path, catalogue, overrides), with_data=False).cells[-1].recipe
    return read_recipe(path, catalogue, [*_short(path), *_synthetic(path, folder)])


@contextmanager
def skipped_without_its_library() -> Iterator[None]:
    """Some plugins need a library that pip does not install with them, and that could not be built
    here."""
    try:
        yield
    except PluginError as error:
        pytest.skip(str(error))


def test_a_recipe_says_how_to_run_it():
    for path in RECIPES:
        command = command_of(read_document(path).data)
        assert path.read_text().startswith(f"# fsl {command} {path.relative_to(ROOT)}"), path


def _short(path: Path) -> list[str]:
    """Overrides for two outer steps, or none if the recipe trains nothing."""
    untrained = read_document(path).data["outer"].get("steps") == 0
    return [*SHORT, "outer.steps=0"] if untrained else SHORT


def _required(path: Path) -> list[str]:
    return [text.split(">")[0] for text in read_document(path).data.get("requires", [])]


def _synthetic(path: Path, folder: Path) -> list[str]:
    """Overrides that put glyphs in the place of real data, or a file that the pages make."""
    task = read_document(path).data["episodes"]
    if task["name"] == "arrays":
        return [f"episodes.file={own_data.make(task['file'], folder)}"]
    if task["name"] in SYNTHETIC:
        return []
    further = (read_document(path).data.get("evaluate") or {}).get("on", [])
    labels = [source.get("label", source["name"]) for source in further]
    drawn = ", ".join(f"{{name: glyphs, alphabet: 1, label: {label}}}" for label in labels)
    return [
        *_without_weights(path),
        f"episodes={{name: glyphs, n_way: {task['n_way']}, n_shot: {task['n_shot']}, n_query: 2}}",
        "evaluate.n_query=2",
        f"evaluate.on=[{drawn}]",
    ]


def _without_weights(path: Path) -> list[str]:
    """Overrides for a frozen backbone: start values in place of its file, and nothing is trained;
    small pictures.

    Glyphs are drawn again each time, so no pool of them can be mapped once.
    """
    data = read_document(path).data
    if not data.get("backbone", {}).get("frozen"):
        return []
    centred = ["adapter.centre=support"] if data["adapter"].get("centre") == "train" else []
    small = ["backbone.frozen=false", "backbone.weights=null", "backbone.size=64"]
    return [*small, "outer.steps=0", *centred]

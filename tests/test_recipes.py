"""Every recipe of the repository is valid and trains: two outer steps, on synthetic episodes where it names real data."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
import torch

from fsl_core.config.recipe import read_recipe
from fsl_core.hooks.registry import load
from fsl_core.training.outer_loop import judge, train
from fsl_core.training.run import new_run

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
SYNTHETIC = {"glyphs", "sinusoid"}
SHORT = ["outer.steps=2", "outer.meta_batch_size=2", "outer.validate_every=2", "outer.validate_episodes=2", "evaluate.episodes=2"]


def test_there_are_recipes():
    assert len(RECIPES) >= 4


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "recipes")))
def test_recipe_trains(path: Path, tmp_path: Path):
    registry = load()
    for package in _required(path):
        if package not in {d.name for d in metadata.distributions()}:
            pytest.skip(f"{package} is not installed")
    recipe = read_recipe(path, registry, SHORT)
    if recipe.chosen["episodes",].name not in SYNTHETIC:
        task = recipe.sections.episodes
        episodes = f"{{name: glyphs, n_way: {task.n_way}, n_shot: {task.n_shot}, n_query: 2}}"
        recipe = read_recipe(path, registry, [*SHORT, f"episodes={episodes}", "evaluate.n_query=2"])
    with new_run(tmp_path / "run", recipe, registry, torch.device("cpu"), []) as run:
        train(run)
        assert judge(run)["episodes"] == 2


def test_a_recipe_says_how_to_run_it():
    for path in RECIPES:
        assert path.read_text().startswith(f"# fsl run {path.relative_to(ROOT)}"), path


def _required(path: Path) -> list[str]:
    from ruamel.yaml import YAML

    return [text.split(">")[0] for text in YAML(typ="safe", pure=True).load(path).get("requires", [])]

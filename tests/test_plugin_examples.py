"""The examples of docs/plugins.md: each is a plugin that trains, is judged, and passes the kit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import fsl_core as fsl
from fsl_core.config.recipe import read_recipe
from fsl_core.hooks.loader import load
from fsl_core.runs.opening import new_run
from fsl_core.testing import (
    AdapterContract,
    EpisodesContract,
    HypergradientContract,
    WeightingContract,
)
from fsl_core.training.judging import judge
from fsl_core.training.outer_loop import train

PAGE = Path(__file__).parent.parent / "docs" / "plugins.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
NAMES = ["centroid", "steps", "small_net", "unit_length", "hard_first", "stripes", "observer"]
RECIPE = """\
episodes: {name: stripes, n_way: 3, n_query: 2}
backbone: {name: small-net, width: 4, norm: NORM}
adapter: {name: ADAPTER}
outer:
  hypergradient: {name: HYPERGRADIENT}
  weighting: {name: hard-first}
  optimizer: {name: adam, lr: 0.01}
  meta_batch_size: 2
  steps: 2
  validate_every: 1
  validate_episodes: 2
execution: {mode: loop, workers: 1}
evaluate: {episodes: 3}
"""


def example(name: str) -> type:
    """The class that an example registers."""
    namespace: dict[str, object] = {"__name__": name}
    exec(EXAMPLES[NAMES.index(name)], namespace)
    (found,) = (
        value
        for value in namespace.values()
        if isinstance(value, type) and value.__module__ == name
    )
    return found


def test_there_is_one_of_each_kind():
    hooks = [re.findall(r"def (fsl_\w+)", text) for text in EXAMPLES]
    assert [name for (name,) in hooks] == [
        "fsl_register_adapters",
        "fsl_register_adapters",
        "fsl_register_backbones",
        "fsl_register_hypergradients",
        "fsl_register_weightings",
        "fsl_register_episodes",
        "fsl_evaluated",
    ]


@pytest.mark.parametrize(
    ("adapter", "norm", "hypergradient"),
    [
        ("steps", "transductive", "unrolled"),
        ("steps", "running", "unit-length"),
        ("centroid", "group", "unrolled"),
    ],
)
def test_they_work_together(tmp_path: Path, adapter: str, norm: str, hypergradient: str):
    files = [tmp_path / f"{name}.py" for name in NAMES]
    for file, text in zip(files, EXAMPLES, strict=True):
        file.write_text(text, encoding="utf-8")
    text = RECIPE.replace("NORM", norm).replace("ADAPTER", adapter)
    (tmp_path / "r.yaml").write_text(text.replace("HYPERGRADIENT", hypergradient))
    loaded = load(entry_points=False, files=files)
    assert not [plugin.reason for plugin in loaded.plugins if plugin.reason]
    recipe = read_recipe(tmp_path / "r.yaml", loaded.catalogue)
    with new_run(tmp_path / "run", recipe, loaded, torch.device("cpu"), files) as run:
        train(run)
        result = judge(run)
    assert (result["norm"], result["episodes"]) == (norm, 3)
    assert result["hypergradient"] == hypergradient
    validations = (tmp_path / "run" / "validations.txt").read_text().splitlines()
    assert [line.split()[0] for line in validations] == ["1", "2"]


class TestSteps(AdapterContract):
    kinds = ("classification", "regression")

    def make(self, task: fsl.TaskShape, backbone: torch.nn.Module) -> fsl.Adapter:
        return example("steps")(task, backbone)

    def permute_classes(self, adapter, permutation):
        for rows in adapter.head.parameters():
            rows[permutation] = rows.clone()


class TestUnitLength(HypergradientContract):
    exact, reaches_outer = "no", False

    def make(self) -> fsl.Hypergradient:
        return example("unit_length")()


class TestHardFirst(WeightingContract):
    def make(self) -> fsl.TaskWeighting:
        return example("hard_first")()


class TestStripes(EpisodesContract):
    def make(self) -> fsl.EpisodeSource:
        return example("stripes")(n_way=3, n_query=2)

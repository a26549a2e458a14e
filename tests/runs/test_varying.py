"""Whole runs whose episodes differ in ways and shots: what they write, and what is refused."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import torch

import fsl_core as fsl
from fsl_core.builtin.mlp import Mlp
from fsl_core.builtin.nearest_centroid import NearestCentroid
from fsl_core.reporting.comparison import compare_runs, judging_told
from fsl_core.reporting.scores import read_scores

ADAPTERS = """
import torch

import fsl_core as fsl


class Equal(fsl.Adapter):
    \"\"\"Class means of rows that are sorted, as many of each class.\"\"\"

    name = "equal"

    def __init__(self, task):
        super().__init__()
        self.n_way = task.n_way

    def adapt(self, backbone, support):
        means = backbone(support.x).unflatten(0, (self.n_way, -1)).mean(1)
        return lambda x: -(backbone(x)[:, None] - means).square().sum(-1)


class Headed(Equal):
    \"\"\"With a head of as many rows as there are ways.\"\"\"

    name = "headed"

    def __init__(self, task, backbone):
        super().__init__(task)
        self.head = torch.nn.Linear(backbone.feature_dim, task.output_dim)


class OneShape(Equal):
    \"\"\"It says by itself what it does not take.\"\"\"

    name = "one-shape"

    def __init__(self, task):
        super().__init__(task)
        if task.varies:
            raise ValueError(f"one-shape: episodes of {task}. Numbers that do not vary")


@fsl.hookimpl
def fsl_register_adapters(register):
    for adapter in (Equal, Headed, OneShape):
        register(adapter)
"""


@pytest.fixture(autouse=True)
def _few_glyphs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from fsl_core.builtin import glyphs

    few = {"train": slice(0, 12), "validation": slice(12, 20), "test": slice(20, 30)}
    monkeypatch.setattr(glyphs, "CLASSES", few)
    monkeypatch.setenv("FSL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def adapters(tmp_path: Path) -> Path:
    file = tmp_path / "adapters.py"
    file.write_text(ADAPTERS)
    return file


def recipe(mode: str = "loop", adapter: str = "nearest-centroid", **changes) -> dict:
    episodes = {"n_way": [3, 6], "n_shot": [1, 3], "n_query": 2}
    return {
        "episodes": {"name": "glyphs", **episodes, **changes.pop("episodes", {})},
        "backbone": {"name": "mlp", "hidden": [8]},
        "adapter": {"name": adapter},
        "outer": {"steps": 3, "meta_batch_size": 5, "validate_every": 2, "validate_episodes": 4},
        "execution": {"mode": mode, "workers": 2 if changes.pop("workers", False) else 1},
        "evaluate": {"episodes": 12, **changes},
    }


def run(directory: Path, *arguments, plugins=(), **options) -> tuple[dict, list[dict]]:
    made = recipe(*arguments, **options)
    result = fsl.run(made, out=directory, device="cpu", plugins=plugins, progress=False).result
    table = (directory / "episodes.csv").read_text()
    return result, list(csv.DictReader(io.StringIO(table)))


def test_every_mode_trains_and_judges_alike(tmp_path: Path):
    found = {
        "loop": run(tmp_path / "loop"),
        "vmap": run(tmp_path / "vmap", "vmap"),
        "workers": run(tmp_path / "workers", workers=True),
    }
    expected, rows = found["loop"]
    assert {row["n_way"] for row in rows} == {"3", "4", "5", "6"}
    assert {row["n_shot"] for row in rows} == {"1", "2", "3"}
    for result, own in found.values():
        assert result["episode_set"] == expected["episode_set"]
        assert result["trained_on"] == result["judged_on"] == "3..6-way 1..3-shot 2-query"
        assert list(own[0]) == ["episode", "accuracy", "loss", "n_way", "n_shot"]
        for row, other in zip(own, rows, strict=True):
            assert float(row["loss"]) == pytest.approx(float(other["loss"]), abs=1e-4)
    page = (tmp_path / "loop" / "report.html").read_text()
    assert "2 queries a class, in episodes of 3..6-way 1..3-shot 2-query" in page


def test_the_same_recipe_gives_the_same_bits(tmp_path: Path):
    for name in ("one", "two"):
        run(tmp_path / name, "vmap", episodes={"sampling": "class", "n_shot": [1, 4]})
    one, two = (tmp_path / name / "checkpoints" / "last.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_a_resumed_run_ends_as_one_never_stopped(tmp_path: Path):
    run(tmp_path / "whole")
    made = recipe()
    made["outer"]["steps"] = 2
    fsl.run(made, out=tmp_path / "parts", device="cpu", progress=False)
    fsl.resume(tmp_path / "parts", steps=3, device="cpu", progress=False)
    whole, parts = (
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "parts")
    )
    assert whole["accuracy"] == parts["accuracy"]
    assert whole["loss"] == parts["loss"]


def test_unequal_shots_are_told_by_the_items_of_all_classes(tmp_path: Path):
    result, rows = run(tmp_path / "r", episodes={"sampling": "class", "items_per_class": 6})
    assert list(rows[0]) == ["episode", "accuracy", "loss", "n_way", "n_support", "n_query"]
    assert result["n_query"] == [3, 5]
    for row in rows:
        assert int(row["n_way"]) <= int(row["n_support"]) <= 3 * int(row["n_way"])
        assert 3 <= int(row["n_query"]) <= 5
    assert result["judged_on"].endswith("3..5-query, shots differ between classes")
    scores = read_scores(tmp_path / "r")
    assert compare_runs(scores, scores).difference == 0
    assert "3..5 queries a class, in episodes of 3..6-way" in judging_told(scores, scores)[0]


def test_meta_dataset_sampling_trains(tmp_path: Path):
    sampled = {"n_way": [5, 50], "n_shot": [1, 100], "n_query": 10, "sampling": "meta-dataset"}
    result, rows = run(tmp_path / "r", episodes=sampled)
    assert {row["n_query"] for row in rows} == {"10"}  # half of 20 drawings
    assert all(5 <= int(row["n_way"]) <= 10 for row in rows)
    assert 0 <= result["accuracy"] <= 1


def test_an_evaluation_of_one_shape(tmp_path: Path):
    """R2-D2's protocol: shots vary in training, and the test has one number of them."""
    episodes = {"n_way": 4, "n_shot": [1, 9], "items_per_class": 12, "episodes_per_draw": 5}
    result, rows = run(tmp_path / "r", episodes=episodes, n_shot=1, n_query=5)
    assert list(rows[0]) == ["episode", "accuracy", "loss"]
    assert result["trained_on"] == "4-way 1..9-shot 3..11-query"
    assert result["judged_on"] == "4-way 1-shot 5-query"
    assert result["n_query"] == 5


def refused(adapters: Path, **options) -> str:
    with pytest.raises(fsl.RecipeError) as error:
        fsl.run(recipe(**options), device="cpu", plugins=[adapters], progress=False)
    return str(error.value)


def test_who_takes_no_other_ways_is_refused_by_name(adapters: Path, tmp_path: Path):
    told = refused(adapters, adapter="headed")
    assert "episodes.n_way: adapter.head.weight of adapter 'headed' has a size fixed by" in told
    result, _ = run(tmp_path / "r", "loop", "headed", episodes={"n_way": 4}, plugins=[adapters])
    assert result["judged_on"] == "4-way 1..3-shot 2-query"


def test_who_takes_no_unequal_shots_is_refused_by_name(adapters: Path, tmp_path: Path):
    told = refused(adapters, adapter="equal", episodes={"sampling": "class"})
    assert "episodes.sampling: adapter 'equal' takes as many shots of each class" in told
    result, _ = run(tmp_path / "r", "vmap", "equal", plugins=[adapters])
    assert result["judged_on"] == "3..6-way 1..3-shot 2-query"


def test_a_constructor_may_refuse_what_varies(adapters: Path):
    told = refused(adapters, adapter="one-shape")
    assert "adapter: one-shape: episodes of 3..6-way 1..3-shot 2-query." in told


@pytest.mark.parametrize(
    ("episodes", "message"),
    [
        (
            {"n_way": [6, 3]},
            r"episodes\.n_way: found \[6, 3\]\. Expected the least first: \[3, 6\]",
        ),
        (
            {"n_way": [1, 3]},
            r"episodes\.n_way: found \[1, 3\]\. Expected greater than or equal to 2",
        ),
        ({"n_way": 1}, r"episodes\.n_way: found 1\. Expected greater than or equal to 2"),
        ({"n_shot": "few"}, r'episodes\.n_shot: found "few"\. Expected a valid integer'),
        ({"n_shot": 1, "sampling": "class"}, r"episodes: sampling: 'class' with n_shot: 1"),
        ({"items_per_class": 3}, r"items_per_class: 3 with n_shot: 3, which leaves no query"),
    ],
)
def test_numbers_that_do_not_fit(episodes: dict, message: str):
    with pytest.raises(fsl.RecipeError, match=message):
        fsl.run(recipe(episodes=episodes), device="cpu", progress=False)


def test_further_episodes_may_vary_too(adapters: Path, tmp_path: Path):
    other = {"name": "glyphs", "alphabet": 1, "n_way": [2, 4], "n_shot": [1, 2], "n_query": 3}
    fixed = {"n_way": 4, "n_shot": 2}
    result, _ = run(tmp_path / "r", episodes=fixed, on=[{**other, "sampling": "class"}])
    assert 0 <= result["on"]["glyphs"]["accuracy"] <= 1
    told = refused(adapters, adapter="equal", episodes=fixed, on=[{**other, "sampling": "class"}])
    assert "evaluate.on.0.sampling: adapter 'equal' takes as many shots" in told
    told = refused(adapters, adapter="headed", episodes=fixed, on=[other])
    assert "evaluate.on" in told
    assert "adapter 'headed' has a size fixed by" in told


class Drawn(fsl.PooledEpisodes):
    name = "drawn"

    def __init__(self, n_way, n_shot):
        super().__init__(n_way, n_shot, 2, input_shape=(1, 4, 4))

    def load(self, split):
        draw = torch.Generator().manual_seed(len(split))
        images = torch.randint(0, 256, (8, 9, 1, 4, 4), generator=draw, dtype=torch.uint8)
        return fsl.LabelledPool.from_classes((f"{c}", images[c]) for c in range(8))


def by_hand(source: fsl.EpisodeSource) -> fsl.Learner:
    return fsl.Learner(Mlp(source.task, hidden=[8]), NearestCentroid(source.task))


def test_parts_made_by_hand_take_other_shots_and_no_other_ways():
    source = Drawn(4, (1, 5))
    learner = by_hand(source)
    fsl.train(learner, source, steps=2, progress=False)
    found = fsl.evaluate(learner, source, episodes=10, progress=False)
    assert set(found.sizes) == {"n_shot"}
    source = Drawn((3, 5), 1)
    learner = by_hand(source)
    with pytest.raises(fsl.ShapeError, match="cannot be made again for 3-way 1-shot"):
        fsl.train(learner, source, steps=2, progress=False)
    with pytest.raises(fsl.ShapeError, match="made for 3..5-way 1-shot 2-query, and cannot"):
        fsl.evaluate(learner, source, episodes=10, progress=False)

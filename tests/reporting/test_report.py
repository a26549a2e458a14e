"""A run's page: its worst episodes are those of the table, predicted again to the same scores; it
fetches nothing."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from fsl_core.config.recipe import read_recipe
from fsl_core.errors import RunError
from fsl_core.hooks.loader import Loaded, load
from fsl_core.reporting.figures import running_mean
from fsl_core.reporting.mosaics import show_episodes
from fsl_core.reporting.report import write_report
from fsl_core.reporting.scores import chance_of
from fsl_core.runs.opening import new_run, open_run
from fsl_core.training.judging import judge
from fsl_core.training.outer_loop import train

CPU = torch.device("cpu")
GLYPHS = [
    "episodes={name: glyphs, n_way: 3, n_shot: 1, n_query: 2}",
    "backbone={name: conv4, channels: 4}",
    "evaluate.n_query=10",
]
SINUSOID = ["episodes={name: sinusoid, n_shot: 5}", "adapter={name: line}"]
LINE = '''
import torch

import fsl_core as fsl


class Line(fsl.Adapter):
    """Predicts the mean of the support labels."""

    name = "line"

    def __init__(self, task: fsl.TaskShape):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(task.output_dim))

    def adapt(self, backbone, support):
        return lambda x: (support.y.mean(0) + self.shift).expand(len(x), -1)


@fsl.hookimpl
def fsl_register_adapters(register):
    register(Line)
'''


def trained(recipe: Path, out: Path, *overrides: str) -> Path:
    plugin = recipe.parent / "line.py"
    plugin.write_text(LINE)
    files = [recipe.parent / "fslplugin.py", plugin]
    loaded = load(entry_points=False, files=files)
    changes = ["outer.steps=4", "outer.validate_every=2", "evaluate.episodes=12", *overrides]
    with new_run(out, read_recipe(recipe, loaded.catalogue, changes), loaded, CPU, files) as run:
        train(run)
        judge(run)
        write_report(out, run.view())
    return out


def worst(directory: Path, metric: str) -> list[tuple[int, float]]:
    with (directory / "episodes.csv").open() as file:
        rows = [(int(row["episode"]), float(row[metric])) for row in csv.DictReader(file)]
    return sorted(rows, key=lambda row: row[1] if metric == "accuracy" else -row[1])[:6]


@pytest.mark.parametrize(("overrides", "metric"), [(GLYPHS, "accuracy"), (SINUSOID, "mse")])
def test_the_worst_episodes_with_the_scores_they_had(
    toy_recipe: Path, tmp_path: Path, overrides: list[str], metric: str
):
    out = trained(toy_recipe, tmp_path / "out", *overrides)
    with open_run(out, CPU, write=False) as run:
        run.restore_for_evaluation()
        with (out / "episodes.csv").open() as file:
            shown, why = show_episodes(
                run.view(), [float(row[metric]) for row in csv.DictReader(file)]
            )
    assert not why
    assert [episode.index for episode in shown] == [index for index, _ in worst(out, metric)]
    assert [episode.score for episode in shown] == pytest.approx(
        [score for _, score in worst(out, metric)], abs=1e-7
    )


def test_a_mosaic_shows_what_was_mistaken(toy_recipe: Path, tmp_path: Path):
    out = trained(toy_recipe, tmp_path / "out", *GLYPHS)
    with open_run(out, CPU, write=False) as run:
        run.restore_for_evaluation()
        (episode, *_), _ = show_episodes(run.view(), np.linspace(1, 0, 12).tolist())
    assert episode.index == 11
    mistakes = 0
    with open_run(out, CPU, write=False) as run:
        names = run.experiment.source.classes_of("test", [11], 0, run.experiment.test_task)[0]
    for label, row in enumerate(episode.rows):
        assert row.name == f"class {label}: {names[label]}"
        assert [picture.text for picture in row.support] == [f"support of {row.name}"]
        assert (len(row.queries), row.left_out) == (8, 2)
        wrong = [picture.predicted is not None for picture in row.queries]
        assert wrong == sorted(wrong, reverse=True)
        assert all(picture.predicted != label for picture in row.queries)
        for picture in row.queries:
            found = label if picture.predicted is None else picture.predicted
            told = f"predicted {episode.rows[found].name}"
            assert picture.text == f"query of {row.name}, {told}"
        mistakes += sum(wrong)
    assert mistakes <= round(30 * (1 - episode.score))
    page = (out / "report.html").read_text()
    assert page.count('<img src="data:image/png;base64,') == 6 * 3 * (1 + 8)
    assert page.count('class="picture wrong"') > 0
    assert not re.search(r"(src|href)=\"?http|url\(http|@import|<script", page)


def test_conflict_of_meta_gradients_is_drawn_where_it_was_recorded(
    toy_recipe: Path, tmp_path: Path
):
    out = trained(toy_recipe, tmp_path / "out")
    page = (out / "report.html").read_text()
    assert "between the meta-gradients" not in page
    assert "Norm none: predictions do not depend on the other queries; 4 queries a class." in page
    assert "interval over 12 test episodes of this trained run)" in page
    assert "tells of this trained run on new episodes, not of other trainings." in page
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    changed = [{**r, "gradient_cosine": 0.3} if "split" not in r else r for r in records]
    (out / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in changed))
    page = write_report(out, why_no_episodes="left out here").read_text()
    assert "Cosine between the meta-gradients of the tasks" in page
    assert "Not shown: left out here." in page


def test_what_is_no_picture_is_said(fsl, toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path):
    out = trained(toy_recipe, tmp_path / "out")
    assert "Not shown: items of shape (2,) are not pictures." in (out / "report.html").read_text()
    (tmp_path / "fslplugin.py").unlink()
    ended = fsl("report", "out")
    assert ended.stdout == "report: out/report.html\n"
    assert "without episodes: " in ended.stderr
    assert "fslplugin.py&#39; is missing. --plugins-dir" in (out / "report.html").read_text()


def test_classes_and_what_they_were_taken_for(toy_recipe: Path, tmp_path: Path):
    out = trained(toy_recipe, tmp_path / "out", *GLYPHS)
    with (out / "confusion.csv").open() as file:
        rows = list(csv.DictReader(file))
    total = sum(int(row["count"]) for row in rows)
    right = sum(int(row["count"]) for row in rows if row["class"] == row["predicted"])
    result = json.loads((out / "result.json").read_text())
    assert total == sum(row["queries"] for row in result["per_class"].values()) == 12 * 3 * 10
    assert right / total == pytest.approx(result["accuracy"])
    page = (out / "report.html").read_text()
    lowest = min(result["per_class"].items(), key=lambda item: (item[1]["right"], item[0]))
    assert f'<td class="name">{lowest[0]}</td>' in page
    assert "<th>per_class<" not in page
    (out / "confusion.csv").write_text("class,predicted,count\na,a,many\n")
    with pytest.raises(RunError, match=r"out/confusion\.csv: no table of classes\. Delete out/"):
        write_report(Path("out"), why_no_episodes="left out here")


def test_a_run_without_training_says_so(toy_recipe: Path, tmp_path: Path):
    untrained = trained(toy_recipe, tmp_path / "untrained", "outer.steps=0")
    page = (untrained / "report.html").read_text()
    assert "test episodes of this run, which is not trained)" in page
    assert "Not trained: outer.steps is 0, and the learner was judged as it is." in page
    assert "trained run" not in page
    assert "<figcaption>Loss of" not in page
    page = (trained(toy_recipe, tmp_path / "trained") / "report.html").read_text()
    assert "test episodes of this trained run)" in page
    assert "ot trained" not in page
    assert "<figcaption>Loss of" in page


def test_names_of_classes_steer_no_page_and_many_are_no_matrix(toy_recipe: Path, tmp_path: Path):
    out = trained(toy_recipe, tmp_path / "out")
    assert not (out / "confusion.csv").exists()  # blobs have no names
    page = (out / "report.html").read_text()
    assert "<h2>Classes</h2>" not in page
    for number, whole in ((30, True), (31, False)):
        names = ["<script>", *(f"c{i:02}" for i in range(number - 1))]
        lines = [f"{name},{name},{i}" for i, name in enumerate(names, start=1)]
        table = "\n".join(["class,predicted,count", *lines, "<script>,c00,7", "c03,c05,9", ""])
        (out / "confusion.csv").write_text(table)
        page = write_report(out, why_no_episodes="left out here").read_text()
        assert "<script" not in page
        assert '<td class="name">&lt;script&gt;</td><td class="number">8</td>' in page
        pairs = page.partition("Mistaken most often")[2]
        assert pairs.index(">c05<") < pairs.index(">&lt;script&gt;<")
        assert ('id="confusion"' in page) == whole


def test_a_page_is_of_its_run_in_rounded_numbers(toy_recipe: Path, tmp_path: Path):
    out = trained(toy_recipe, tmp_path / "a-run", *GLYPHS)
    page = (out / "report.html").read_text()
    assert "<h1>a-run</h1>" in page
    assert "<th>recipe</th><td>toy</td>" in page
    assert "<title>a-run: accuracy 0." in page
    assert page.count(">chance 0.33</text>") == 2
    shown = page.partition("<h2>Result</h2>")[2].partition("<h2>Recipe</h2>")[0]
    assert "<th>training_seconds</th><td>" in shown
    numbers = re.findall(r"\d+\.\d+", shown)
    assert max(len(number.replace(".", "").lstrip("0")) for number in numbers) <= 4
    assert "None" not in page


def test_chance_is_of_one_number_of_ways(tmp_path: Path):
    for recipe, metric, chance in (
        ("episodes: {n_way: 4}\nevaluate: {n_way: null}", "accuracy", 1 / 4),
        ("episodes: {n_way: 4}\nevaluate: {n_way: 2}", "accuracy", 1 / 2),
        ("episodes: {n_way: [2, 5]}", "accuracy", None),
        ("episodes: {name: mixture}", "accuracy", None),
        ("episodes: {n_way: 4}", "mse", None),
    ):
        (tmp_path / "recipe.yaml").write_text(recipe)
        assert chance_of(tmp_path, {"metric": metric}) == chance


def test_running_mean():
    values = np.random.default_rng(0).random(50)
    expected = [values[max(0, i - 6) : i + 1].mean() for i in range(50)]
    assert running_mean(values, 7) == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (420, False)])
def test_the_page_in_a_browser(look, toy_recipe: Path, tmp_path: Path, width: int, dark: bool):
    seen = look(
        trained(toy_recipe, tmp_path / "out", *GLYPHS) / "report.html",
        tmp_path / "profile",
        width,
        dark,
    )
    assert (seen.svgs, seen.images, seen.broken, seen.unseen) == (3, 162, 0, 0)
    assert not seen.fetched
    assert seen.overflow <= 0
    assert (
        sum(map(int, re.findall(r"\d+", seen.colour)[:3])) > 600
        if dark
        else seen.colour == "rgb(0, 0, 0)"
    )

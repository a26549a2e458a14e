"""From Python: the same figures as from the command line, with files or without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from torch import nn

import fsl_core as fsl
from fsl_core.assembly.experiment import build_experiment
from fsl_core.builtin.glyphs import Glyphs
from fsl_core.builtin.hypergradients import FirstOrder
from fsl_core.builtin.mlp import Mlp
from fsl_core.builtin.nearest_centroid import NearestCentroid
from fsl_core.training import outer_loop

SHORT = {"outer.steps": 6, "outer.validate_every": 3, "evaluate.episodes": 8}


@pytest.fixture
def plugin(toy_recipe: Path) -> list[Path]:
    return [toy_recipe.parent / "fslplugin.py"]


@pytest.fixture
def data(toy_recipe: Path) -> dict[str, Any]:
    return YAML(typ="safe").load(toy_recipe)


def quiet(recipe: Any, plugin: list[Path], overrides: Any = SHORT, **options: Any) -> fsl.RunResult:
    return fsl.run(recipe, overrides, plugins=plugin, progress=False, device="cpu", **options)


def test_a_run_in_memory_writes_nothing_and_scores_as_one_with_files(
    toy_recipe: Path, plugin: list[Path], data: dict[str, Any], tmp_path: Path
):
    before = sorted(tmp_path.rglob("*"))
    alone = quiet(data, plugin)
    assert sorted(tmp_path.rglob("*")) == before
    kept = quiet(str(toy_recipe), plugin, [f"{k}={v}" for k, v in SHORT.items()], out="run")
    assert alone.directory is None
    assert kept.directory == Path("run")
    assert (tmp_path / "run" / "report.html").is_file()
    taken = ("accuracy", "interval", "loss", "episode_set", "checkpoint", "checkpoint_step")
    assert [alone.result[key] for key in taken] == [kept.result[key] for key in taken]
    assert alone.score == alone.result["accuracy"]
    losses = [[m["loss"] for m in run.metrics if "lr" in m] for run in (alone, kept)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6
    assert str(alone) == str(kept)
    assert str(alone).startswith("test accuracy ")


def test_the_learner_of_a_result_has_the_weights_that_were_judged(
    data: dict[str, Any], plugin: list[Path]
):
    run = quiet(data, plugin)
    source = build_experiment(fsl.load_recipe(data, SHORT, plugins=plugin)).source
    judged = fsl.evaluate(run.learner, source, episodes=8, progress=False)
    assert judged.summary()["accuracy"] == run.score
    assert judged.episode_set == run.result["episode_set"]


def test_resume_reads_a_finished_run_and_ends_an_unfinished_one(
    data: dict[str, Any], plugin: list[Path], tmp_path: Path
):
    whole = quiet(data, plugin, out=tmp_path / "whole")
    again = fsl.resume("whole", progress=False, device="cpu")
    assert again.result == whole.result
    (tmp_path / "whole" / "result.json").unlink()
    ended = fsl.resume(tmp_path / "whole", progress=False, device="cpu")
    assert ended.score == whole.score


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"adapter.temprature": 1.0}, "overrides: adapter.temprature: .* has no such option"),
        ({"outer.steps": -1}, "overrides: outer.steps: found -1. Expected greater than or equal"),
        ({"outer.steps": torch.tensor(1)}, "overrides: outer.steps: .* a Tensor. A number, a text"),
        ({"outer..steps": 1}, "overrides: 'outer..steps': not a key path. Such as"),
        (["outer.steps"], "-s outer.steps: not an override"),
    ],
)
def test_overrides_that_do_not_fit_are_named(
    data: dict[str, Any], plugin: list[Path], overrides: Any, told: str
):
    with pytest.raises(fsl.RecipeError, match=told):
        fsl.load_recipe(data, overrides, plugins=plugin)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"outer": {"steps": "many"}}, 'recipe: outer.steps: found "many"'),
        ({3: 4}, "recipe: key 3. Keys are texts"),
        ({"adapter": nn.Linear(1, 1)}, "recipe: adapter: a Linear. A number, a text, a list"),
    ],
)
def test_faults_of_a_recipe_from_data_name_their_key(
    data: dict[str, Any], plugin: list[Path], change: dict[Any, Any], told: str
):
    with pytest.raises(fsl.RecipeError, match=told):
        fsl.load_recipe(data | change, plugins=plugin)


def test_an_override_may_name_a_component_alone(data: dict[str, Any], plugin: list[Path]):
    recipe = fsl.load_recipe(data, {"outer.optimizer": "sgd"}, plugins=plugin)
    assert recipe.sections.outer.optimizer.name == "sgd"


def test_an_unknown_recipe_is_told_what_is_near():
    with pytest.raises(fsl.RecipeError, match="glyphs/5w1s-mamal: .* glyphs/5w1s-maml"):
        fsl.load_recipe("glyphs/5w1s-mamal")


def by_hand(data: dict[str, Any], plugin: list[Path]) -> tuple[fsl.Learner, fsl.EpisodeSource]:
    experiment = build_experiment(fsl.load_recipe(data, plugins=plugin))
    return experiment.learner, experiment.source


def test_training_by_hand_gives_the_bits_of_the_recipe(data: dict[str, Any], plugin: list[Path]):
    expected = quiet(data, plugin, {**SHORT, "evaluate.checkpoint": "last"})
    learner, source = by_hand(data, plugin)
    rule = torch.optim.Adam(learner.parameters(), lr=0.01)
    records = fsl.train(learner, source, steps=6, meta_batch_size=2, optimizer=rule, progress=False)
    assert [r["loss"] for r in records] == [m["loss"] for m in expected.metrics if "lr" in m]
    for name, value in expected.learner.state_dict().items():
        assert torch.equal(learner.state_dict()[name], value), name


def test_training_by_hand_can_end_with_the_best_weights(data: dict[str, Any], plugin: list[Path]):
    expected = quiet(data, plugin)
    learner, source = by_hand(data, plugin)
    fsl.train(
        learner,
        source,
        steps=6,
        meta_batch_size=2,
        optimizer=torch.optim.Adam(learner.parameters(), lr=0.01),
        validate_every=3,
        validate_episodes=4,
        progress=False,
    )
    for name, value in expected.learner.state_dict().items():
        assert torch.equal(learner.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"steps": -1}, "fsl.train: steps: found -1"),
        ({"steps": 1, "meta_batch_size": 0}, "fsl.train: meta_batch_size: found 0"),
        ({"steps": 1, "mode": "auto"}, "fsl.train: mode 'auto' needs a recipe"),
        ({"steps": 1, "mode": "fast"}, "fsl.train: mode: found 'fast'"),
        ({"steps": 1, "device": "abacus"}, "abacus: not available here"),
    ],
)
def test_options_of_training_that_do_not_fit_are_named(
    data: dict[str, Any], plugin: list[Path], options: dict[str, Any], told: str
):
    learner, source = by_hand(data, plugin)
    with pytest.raises(fsl.FslError, match=told):
        fsl.train(learner, source, progress=False, **options)


def test_a_weighting_of_its_own_parameters_is_trained_too(data: dict[str, Any], plugin: list[Path]):
    class Scaled(fsl.TaskWeighting):
        """Its parameter is pulled to zero by the weighted loss."""

        name = "scaled"
        total = "any"

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.0))

        def weigh(self, outcomes: fsl.Outcomes) -> torch.Tensor:
            return self.scale.expand(len(outcomes.losses)) / len(outcomes.losses)

    learner, source = by_hand(data, plugin)
    weighting = Scaled()
    fsl.train(learner, source, steps=3, weighting=weighting, progress=False)
    assert weighting.scale < 1


def test_no_steps_change_nothing(data: dict[str, Any], plugin: list[Path]):
    learner, source = by_hand(data, plugin)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    assert fsl.train(learner, source, steps=0, progress=False) == []
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())


def test_nothing_to_train_is_refused(data: dict[str, Any], plugin: list[Path]):
    learner, source = by_hand(data, plugin)
    with pytest.raises(fsl.FslError, match="nothing to train. A parameter that requires"):
        fsl.train(learner.requires_grad_(False), source, steps=1, progress=False)


def test_a_part_that_is_wrong_is_refused_before_the_first_step(
    data: dict[str, Any], plugin: list[Path]
):
    class Forgetful(fsl.Adapter):
        name = "forgetful"

        def adapt(self, backbone: nn.Module, support: fsl.LabelledSet) -> fsl.Predictor:
            return None  # type: ignore[return-value]  # the mistake

    _, source = by_hand(data, plugin)
    backbone = nn.Linear(2, 3)
    backbone.feature_dim = 3  # type: ignore[assignment]  # a module takes any attribute
    learner = fsl.Learner(backbone, Forgetful())
    with pytest.raises(
        fsl.FslError, match=r"fsl\.train: adapter: Forgetful of .*adapt returned a NoneType"
    ):
        fsl.train(learner, source, steps=1, progress=False)


def test_one_episode_has_no_interval(data: dict[str, Any], plugin: list[Path]):
    learner, source = by_hand(data, plugin)
    with pytest.raises(fsl.FslError, match=r"fsl\.evaluate: episodes: found 1\. At least 2"):
        fsl.evaluate(learner, source, episodes=1)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda d, p, lr, s: fsl.load_recipe(5), "recipe: found an object of type int. A file, "),
        (lambda d, p, lr, s: fsl.run(None), "recipe: found None. A file, the name of a shipped"),
        (lambda d, p, lr, s: fsl.sweep(5, out="x"), "recipe: found an object of type int"),
        (lambda d, p, lr, s: fsl.load_recipe(d, 5, plugins=p), "overrides: found 5. Values by"),
        (lambda d, p, lr, s: fsl.load_recipe(d, plugins=["no.py"]), r"no\.py\): FileNotFound"),
        (lambda d, p, lr, s: fsl.train(None, s, steps=1), "fsl.train: learner: found None. An obj"),
        (lambda d, p, lr, s: fsl.train(lr, lr, steps=1), "source: found an object of type Learner"),
        (
            lambda d, p, lr, s: fsl.train(lr, s, steps=1, optimizer="adam"),
            "fsl.train: optimizer: found an object of type str. One of torch.optim",
        ),
        (lambda d, p, lr, s: fsl.evaluate(s, s), "fsl.evaluate: learner: found an object of"),
        (lambda d, p, lr, s: fsl.evaluate(lr, s, split="dev"), "split: found 'dev'. train, valid"),
        (lambda d, p, lr, s: fsl.evaluate(lr, s, episodes="many"), "episodes: found 'many'. At"),
        (lambda d, p, lr, s: fsl.compare("a", "b"), "a: no result.json here. A finished run"),
        (lambda d, p, lr, s: fsl.resume("a"), "a: no run here"),
    ],
)
def test_what_is_no_part_is_named(data: dict[str, Any], plugin: list[Path], call: Any, told: str):
    with pytest.raises(fsl.FslError, match=told):
        call(data, plugin, *by_hand(data, plugin))


def test_one_text_is_one_override(data: dict[str, Any], plugin: list[Path]):
    assert fsl.load_recipe(data, "outer.steps=3", plugins=plugin).sections.outer.steps == 3


def test_an_interrupted_run_resumes_to_the_same_bits(
    data: dict[str, Any], plugin: list[Path], monkeypatch: pytest.MonkeyPatch
):
    changes = {**SHORT, "outer.checkpoint_every": 2, "outer.steps": 8}
    whole = quiet(data, plugin, changes, out="whole")
    step = outer_loop._outer_step

    def interrupted(run: Any, *arguments: Any) -> Any:
        if run.step == 5:
            raise KeyboardInterrupt
        return step(run, *arguments)

    monkeypatch.setattr(outer_loop, "_outer_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quiet(data, plugin, changes, out="cut")
    monkeypatch.setattr(outer_loop, "_outer_step", step)
    ended = fsl.resume("cut", progress=False, device="cpu")
    assert [m["step"] for m in ended.metrics if "lr" in m] == list(range(1, 9))
    weights = [
        (Path(run) / "checkpoints" / "last.safetensors").read_bytes() for run in ("whole", "cut")
    ]
    assert weights[0] == weights[1]
    assert ended.score == whole.score


def test_progress_is_shown_unless_it_is_not_wanted(
    data: dict[str, Any], plugin: list[Path], capsys: pytest.CaptureFixture[str]
):
    quiet(data, plugin)
    assert capsys.readouterr() == ("", "")
    fsl.run(data, SHORT, plugins=plugin, device="cpu")
    out, err = capsys.readouterr()
    assert out == ""
    assert "step 3: validation accuracy" in err


def test_a_sweep_and_its_runs_can_be_compared(
    data: dict[str, Any], plugin: list[Path], tmp_path: Path
):
    data["matrix"] = {"outer.meta_batch_size": [1, 2]}
    done = fsl.sweep(data, SHORT, out="sweep", plugins=plugin, device="cpu", progress=False)
    assert [row["outer.meta_batch_size"] for row in done.rows] == ["1", "2"]
    assert done.failed == {}
    assert (tmp_path / "sweep" / "report.html").is_file()
    runs = sorted((tmp_path / "sweep" / "runs").glob("*/result.json"))
    paired = fsl.compare(*(str(run.parent) for run in runs))
    assert paired.episodes == 8


def test_a_hypergradient_that_cannot_drive_the_adapter_is_refused():
    source = Glyphs(n_way=3, n_shot=1, n_query=2)
    backbone = Mlp(source.task, hidden=[4])
    learner = fsl.Learner(backbone, NearestCentroid(source.task), FirstOrder())
    message = (
        r"^fsl\.train: hypergradient 'first-order': adapter 'nearest-centroid' has no inner "
        r"problem\. None, or one that fits$"
    )
    with pytest.raises(fsl.FslError, match=message):
        fsl.train(learner, source, steps=2, progress=False)

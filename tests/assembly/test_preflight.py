"""The made-up episode before a run: each mistake of a plugin's author is one line, sound parts
pass."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fsl_core.assembly.experiment import Experiment, build_experiment
from fsl_core.assembly.preflight import preflight, preflight_all
from fsl_core.assembly.trials.made_up import made_up_episodes
from fsl_core.cli import app
from fsl_core.config.recipe import Recipe, read_recipe
from fsl_core.errors import PluginError
from fsl_core.hooks.loader import Loaded, load
from fsl_core.runs.opening import new_run, open_run, prepare_run
from fsl_core.training.judging import judge
from fsl_core.training.outer_loop import train

PARTS = Path(__file__).parents[1] / "parts" / "preflight"
PLUGINS = sorted(PARTS.glob("[!_]*.py"))
RECIPE = """\
episodes: {name: points, n_way: 3, n_shot: 2, n_query: 4}
backbone: {name: net}
adapter: {name: nearest-centroid}
outer: {optimizer: {name: adam}, meta_batch_size: 2, steps: 2, validate_every: 0}
execution: {mode: loop}
evaluate: {episodes: 4}
"""


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load(entry_points=False, files=PLUGINS)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "r.yaml").write_text(RECIPE)
    return tmp_path / "r.yaml"


@pytest.fixture
def built(recipe: Path, loaded: Loaded):
    def build(*overrides: str) -> Experiment:
        return build_experiment(read_recipe(recipe, loaded.catalogue, overrides))

    return build


BACKBONES = {
    "no-super": r"NoSuper of .*backbones\.py: its constructor does not call that of torch\.nn\.Mod"
    r"ule\. super\(\)\.__init__\(\) in its first line$",
    "no-super-either": r"its constructor does not call that of torch\.nn\.Module\. super\(\)",
    "constructor-raises": r"its constructor raised KeyError: 'width' \(backbones\.py:\d+\)\. FSL_S",
    "no-module": r"not a Module of torch\. A class derived from it$",
    "no-feature-dim": r"no attribute feature_dim\. self\.feature_dim = the length of an item's",
    "feature-dim-is-text": r"feature_dim is '4'\. self\.feature_dim = ",
    "wrong-feature-dim": r"feature_dim is 64, and forward returned features of length 4\. feature_d"
    r"im = 4, or features of that length$",
    "maps": r"forward: features of shape \(6, 4, 1\)\. Expected \(6, 4\)$",
    "tuple": r"forward: features: a tuple\. A tensor of shape \(6, 4\)$",
    "in-place": r"forward changes the items it is given, .*\. A new tensor: no operation in place",
    "raises": r"forward raised ZeroDivisionError: division by zero \(backbones\.py:\d+\)\. FSL_ST",
    "double": r"forward raised RuntimeError: .*\(backbones\.py:\d+\)\. map\.weight is torch\.flo"
    r"at64 on cpu, and items are torch\.float32 on cpu\. FSL_STRICT_PLUGINS=1 shows the traceback",
    "double-constant": r"forward raised RuntimeError: .* mixing is torch\.float64 on cpu, and items",
    "meta": r"map\.weight is on the meta device, without values\. A constructor that makes them$",
    "lazy": r"map\.weight has no size yet\. Layers with sizes, from task\.input_shape$",
    "not-finite": r"forward: features not finite\. Finite numbers for items of unit size$",
    "counts": r"a task gives another loss once another task came before it: state is kept between "
    r"tasks \(backbone\.calls\), and no checkpoint holds it\. What is learned of a task",
    "hidden-average": r"each task moves the attribute average, which predictions read and no checkp"
    r"oint holds\. A buffer \(register_buffer\)$",
}


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones(built, name: str):
    with pytest.raises(PluginError, match=rf"^-s backbone: .*{BACKBONES[name]}") as told:
        preflight(built(f"backbone={{name: {name}}}"))
    assert "\n" not in str(told.value)


ADAPTERS = {
    "no-super-adapter": r"NoSuperAdapter of .*: its constructor does not call that of torch\.nn\.Mod",
    "plain-module": r"not a Adapter of fsl_core\. A class derived from it$",
    "wrong-shape": r"objective: predictions of shape \(3, 12\)\. Expected \(12, 3\)$",
    "transposed": r"predictions of shape \(12, 3, 1\)\. Expected \(12, 3\)$",
    "not-callable": r"objective: adapt returned a Tensor\. A predictor: a function of items$",
    "changes-items": r"objective changes support\.x in place\. New tensors: the data belongs to the",
    "changes-weights": r"objective changes adapter\.scale in place\. Copies: meta-parameters belong",
    "remembers": r"a task gives another loss once another task came before it: state is kept between"
    r" tasks \(adapter\.memory\), and no checkpoint holds it",
    "first-task-for-ever": r"state is kept between tasks \(adapter\.means\)",
    "loss-per-item": r"loss of shape \(12,\)\. A scalar$",
    "loss-alone": r"objective returned a Tensor\. A pair: loss and prediction$",
    "nan": r"predictions not finite\. Finite numbers for items of unit size$",
    "detached": r"the loss depends on none of the parameters that training would move\. Nothing det",
    "gradient-not-finite": r"the meta-gradient of adapter\.scale is not finite\. Safe square roots",
    "disables-gradients": r"objective leaves gradients disabled for all that follows\. A context",
    "raises-in-adapt": r"objective raised IndexError: .* \(adapters\.py:\d+\)\. FSL_STRICT_PLU",
    "other-in-evaluation": r"predictions in evaluation of shape \(12, 2\)\. Expected \(12, 3\)$",
    "trains-in-evaluation": r"an evaluation changes the value of adapter\.seen\. Nothing: episodes",
    "other-trajectory": r"the last predictor of trajectory is not that of adapt: validation would ju",
    "empty-trajectory": r"trajectory is empty\. At least the predictor of adapt$",
    "fails-after-its-warm-up": r"predictions of shape \(12, 1\)\. Expected \(12, 3\)$",
    "remembers-in-evaluation": r"in evaluation a task gives other predictions once another task cam",
    "functional-norm-head": r"norm \(BatchNorm1d\) moves its running_mean in training, which adapte"
    r"r 'functional-norm-head' cannot keep: .* Evaluation would read what never moved\. fsl\.repla",
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters(built, name: str):
    with pytest.raises(PluginError, match=rf"^-s adapter: .*{ADAPTERS[name]}") as told:
        preflight(built(f"adapter={{name: {name}}}"))
    assert "\n" not in str(told.value)
    assert "adapters.py: " in str(told.value)


LOST = "moves its {} in training, which adapter {} cannot keep: it computes with other weights"
REPLACED = r"fsl\.replace_norms\(module, 'transductive'\) in its constructor"
NOTHING = "A layer that keeps nothing"
STATISTICS = [
    ("batch-norm", "functional-steps", r"net\.1 \(BatchNorm1d\)", "running_mean", REPLACED),
    ("batch-norm", "functional-grad", r"net\.1 \(BatchNorm1d\)", "running_mean", REPLACED),
    ("spectral-norm", "functional-steps", r"net\..* \(_SpectralNorm\)", "_u", NOTHING),
    ("own-statistics", "functional-steps", r"norm \(Averages\)", "mean", NOTHING),
    ("own-statistics", "functional-grad", r"norm \(Averages\)", "mean", NOTHING),
]


@pytest.mark.parametrize(("name", "adapter", "layer", "buffer", "fits"), STATISTICS)
def test_statistics_that_training_does_not_move(
    built, name: str, adapter: str, layer: str, buffer: str, fits: str
):
    found = LOST.format(buffer, f"'{adapter}'")
    message = rf"^-s backbone: .*backbones\.py: {layer} {found} .*\. {fits}, or an adapter that"
    with pytest.raises(PluginError, match=message):
        preflight(built(f"backbone={{name: {name}}}", f"adapter={{name: {adapter}}}"))


SOUND = [
    ("batch-norm", "nearest-centroid"),
    ("spectral-norm", "nearest-centroid"),
    ("own-statistics", "nearest-centroid"),
    ("batch-norm-replaced", "functional-steps"),
    ("batch-norm-running", "functional-steps"),
    ("batch-norm-without-statistics", "functional-steps"),
    ("dropout", "functional-steps"),
    ("net", "autograd-steps"),
    ("net", "autograd-in-the-predictor"),
    ("net", "buffered"),
    ("net", "momentum-weights"),
    ("net", "caches-a-constant"),
    ("net", "cannot-be-copied"),
    ("double-but-casts", "nearest-centroid"),
    ("net", "for-these-queries"),
]


@pytest.mark.parametrize(("backbone", "adapter"), SOUND)
def test_sound_parts_pass(built, backbone: str, adapter: str):
    preflight(built(f"backbone={{name: {backbone}}}", f"adapter={{name: {adapter}}}"))


WEIGHTINGS = {
    "scalar-weight": r"weights of shape \(\)\. Expected \(2,\)$",
    "infinite-weight": r"weights not finite\. Finite numbers for items of unit size$",
    "raising-weighting": r"weigh raised TypeError: .* \(weightings\.py:\d+\)\. FSL_STRICT",
    "vector-objective": r"loss of shape \(2,\)\. A scalar$",
    "no-weighting": r"not a TaskWeighting of fsl_core\. A class derived from it$",
}


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weightings(built, name: str):
    message = rf"^-s outer\.weighting: .*weightings\.py: {WEIGHTINGS[name]}"
    with pytest.raises(PluginError, match=message):
        preflight(built(f"outer.weighting={{name: {name}}}"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-source", r"not an EpisodeSource of fsl_core\. A class derived from it$"),
        ("no-task", r"no attribute task\. self\.task = fsl_core\.TaskShape\(\.\.\.\) in its"),
    ],
)
def test_episodes(built, name: str, message: str):
    with pytest.raises(PluginError, match=rf"^-s episodes: .*episodes\.py: {message}"):
        built(f"episodes={{name: {name}}}")


def test_nothing_is_changed_and_no_random_number_is_used_up(built):
    experiment = built("adapter={name: buffered}")
    before = {k: v.clone() for k, v in experiment.learner.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    preflight(experiment)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]
    assert all(torch.equal(v, before[k]) for k, v in experiment.learner.state_dict().items())
    assert all(p.grad is None for p in experiment.learner.parameters())


def test_no_data_is_read(built, monkeypatch: pytest.MonkeyPatch):
    experiment = built()
    for method in ("batch", "check"):
        monkeypatch.setattr(type(experiment.source), method, None)
    preflight(experiment)


def test_other_ways_and_shots_in_the_test(built):
    other = ["evaluate.n_way=4", "evaluate.n_shot=3"]
    preflight(built(*other))
    with pytest.raises(PluginError, match="predictions in evaluation of shape"):
        preflight(built(*other, "adapter={name: three-ways-in-evaluation}"))


def test_without_steps_evaluation_alone_is_tried(built):
    preflight(built("adapter={name: detached}", "outer.steps=0"))
    with pytest.raises(PluginError, match="predictions in evaluation of shape"):
        preflight(built("adapter={name: other-in-evaluation}", "outer.steps=0"))


def test_episodes_are_made_up_alike_every_time(built):
    task = built().source.task
    (first, other), (again, _) = made_up_episodes(task, 2), made_up_episodes(task, 2)
    assert torch.equal(first.support.x, again.support.x)
    assert not torch.equal(first.support.x, other.support.x)
    assert first.support.y.tolist() == [0, 0, 1, 1, 2, 2]
    assert 0 <= first.query.x.min() < first.query.x.max() <= 1


def test_token_ids_are_made_up_for_a_source_of_them(built):
    task = built("episodes={name: words}", "backbone={name: embedded}").source.task
    (episode,) = made_up_episodes(task, 1, vocabulary=20)
    assert episode.support.x.dtype == torch.int64
    assert episode.support.x.min() >= 0
    assert episode.support.x.max() == 19
    preflight(built("episodes={name: words}", "backbone={name: embedded}"))
    with pytest.raises(PluginError, match=r"Embedded.* raised IndexError: index out of range"):
        preflight(built("episodes={name: words}", "backbone={name: embedded, vocabulary: 19}"))
    with pytest.raises(PluginError, match=r"and items are torch\.int64 on cpu"):
        preflight(built("episodes={name: words}", "backbone={name: mlp}"))


def test_a_traceback_is_there_for_who_asks(built, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FSL_STRICT_PLUGINS", "1")
    with pytest.raises(ZeroDivisionError):
        preflight(built("backbone={name: raises}"))
    with pytest.raises(KeyError):
        built("backbone={name: constructor-raises}")


def test_a_run_is_refused_before_anything_is_written(recipe: Path, loaded: Loaded, tmp_path: Path):
    faulty = read_recipe(recipe, loaded.catalogue, ["backbone={name: wrong-feature-dim}"])
    cpu, run = torch.device("cpu"), tmp_path / "run"
    with (
        pytest.raises(PluginError, match="feature_dim is 64"),
        new_run(run, faulty, loaded, cpu, []),
    ):
        pass
    assert not run.exists()


def test_a_prepared_run_is_tried_when_it_begins_and_not_again(
    recipe: Path, loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tried, cpu, run = [], torch.device("cpu"), tmp_path / "run"
    monkeypatch.setattr("fsl_core.runs.run.preflight", tried.append)
    monkeypatch.setenv("FSL_LOAD_PLUGINS", "none")
    environment = {"recipe": "r", "plugin_files": [str(file) for file in PLUGINS]}
    prepare_run(run, read_recipe(recipe, loaded.catalogue), environment)
    for steps in (1, 1):
        with open_run(run, cpu, write=True) as opened:
            opened.restore_last()
            train(opened)
            judge(opened)
        assert len(tried) == steps


def test_check_says_it_in_one_line_and_run_says_nothing_when_all_is_well(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FSL_LOAD_PLUGINS", "none")
    folder = str(shutil.copytree(PARTS, tmp_path / "parts"))
    ended = CliRunner().invoke(
        app, ["check", str(recipe), "--plugins-dir", folder, "-s", "backbone={name: tuple}"]
    )
    assert isinstance(ended.exception, PluginError)
    ran = CliRunner().invoke(app, ["run", str(recipe), "--plugins-dir", folder, "--out", "r"])
    assert ran.exit_code == 0, ran.output
    assert ran.stdout.startswith("test accuracy ")


def _with_estimate(recipe: Recipe, name: str) -> Recipe:
    """The recipe with another hypergradient, which nothing builds."""
    sections = recipe.sections.model_copy(deep=True)
    sections.outer.hypergradient.name = name
    return replace(recipe, sections=sections)


def test_rows_of_a_matrix_share_what_is_alike(
    built, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
):
    whole = []
    monkeypatch.setattr("fsl_core.assembly.preflight.preflight", whole.append)
    rows = [built(), built("outer.weighting={name: scalar-weight}"), built("evaluate.n_shot=3")]
    with pytest.raises(PluginError, match=r"outer\.weighting: .*: weights of shape \(\)"):
        preflight_all(rows)
    assert whole == rows[:1]
    preflight_all([rows[0], rows[2]])
    assert whole == [rows[0], rows[0], rows[2]]
    other = replace(rows[0], recipe=_with_estimate(rows[0].recipe, "first-order"))
    preflight_all([rows[0], other])
    assert whole[-1] is other


def test_a_matrix_is_tried_by_check(recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("FSL_LOAD_PLUGINS", "")
    folder = str(shutil.copytree(PARTS, tmp_path / "parts"))
    matrix = "matrix={adapter: [nearest-centroid, {name: transposed}]}"
    ended = CliRunner().invoke(app, ["check", str(recipe), "--plugins-dir", folder, "-s", matrix])
    assert isinstance(ended.exception, PluginError)
    assert "predictions of shape (12, 3, 1). Expected (12, 3)" in str(ended.exception)

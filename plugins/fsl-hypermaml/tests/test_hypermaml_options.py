"""What the options mean, the schedule at its corners, the size of the networks, and what is
refused."""

import json
from math import inf

import pytest
import torch
from typer.testing import CliRunner

import fsl_core as fsl
from fsl_core.builtin.conv4 import Conv4
from fsl_core.builtin.hypergradients import FirstOrder
from fsl_core.cli import app
from fsl_core.config.recipe import read_recipe
from fsl_core.hooks.loader import load
from fsl_core.runs.opening import new_run
from fsl_core.testing import TinyBackbone, double_precision, tiny_episodes, tiny_task
from fsl_core.training.judging import judge
from fsl_core.training.outer_loop import train
from fsl_hypermaml import HyperMaml
from fsl_hypermaml.warmup import gradient_share

TASK = tiny_task()  # 3-way 2-shot
REGRESSION = tiny_task("regression")


@pytest.fixture(autouse=True)
def _double_precision():
    with double_precision():
        yield


@pytest.fixture
def episodes():
    return tiny_episodes(TASK, 3).unbatch()


def make(progress=1.0, task=TASK, **options):
    torch.manual_seed(1)
    backbone = TinyBackbone()
    adapter = HyperMaml(
        task, backbone, **{"hidden_size": 7, "warmup": 0.2, "switch": 0.2} | options
    )
    adapter.on_progress(progress)
    return fsl.Learner(backbone, adapter)


def predict(learner, episode):
    return learner.adapt(episode)(episode.query.x).detach()


@pytest.mark.parametrize(
    ("warmup", "switch", "progress", "share"),
    [
        (0.25, 0.5, 0.0, 1.0),
        (0.25, 0.5, 0.2499, 1.0),
        (0.25, 0.5, 0.25, 1.0),
        (0.25, 0.5, 0.375, 0.75),
        (0.25, 0.5, 0.5, 0.5),
        (0.25, 0.5, 0.75 - 0.5 / 64, 1 / 64),
        (0.25, 0.5, 0.75, 0.0),
        (0.25, 0.5, 1.0, 0.0),
        (0.0, 0.5, 0.0, 1.0),
        (0.0, 0.5, 0.25, 0.5),
        (0.25, 0.0, 0.2499, 1.0),
        (0.25, 0.0, 0.25, 0.0),
        (0.0, 0.0, 0.0, 0.0),
        (1.0, 0.0, 0.9999, 1.0),
        (0.1, 0.2, 0.3, 0.0),
        (0.0, 1.0, 0.875, 0.125),
    ],
)
def test_share_of_gradient_steps(warmup, switch, progress, share):
    assert gradient_share(progress, warmup, switch) == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize("warmup", [0.1, 0.3, 0.7])
def test_phases_end_at_their_steps(warmup):
    """Of 10 outer steps, step / 10 reaches warmup + switch at a whole step, and rounding keeps no
    rest of a phase."""
    shares = [gradient_share(step / 10, warmup, 0.2) for step in range(10)]
    start, end = round(10 * warmup), round(10 * (warmup + 0.2))
    assert shares[: start + 1] == [1.0] * (start + 1)
    assert shares[start + 1] == pytest.approx(0.5)
    assert shares[end:] == [0.0] * (10 - end)


def test_hypernetwork_is_not_called_in_the_warm_up(episodes):
    learner = make(progress=0.1)
    learner.adapter.hypernetwork.forward = None  # a call would fail
    assert predict(learner, episodes[0]).shape == (9, 3)
    learner.adapter.on_progress(0.3)
    with pytest.raises(TypeError):
        predict(learner, episodes[0])


def test_update_is_continuous_where_the_phases_meet(episodes):
    """By default; the official code drops from inner_steps * H to H when p reaches 0."""
    gaps = {}
    for repeat_delta in ("once", "each-step"):
        learner = make(inner_steps=5, inner_lr=0.01, repeat_delta=repeat_delta)
        values = []
        for progress in (0.2, 0.2 + 1e-7, 0.4 - 1e-7, 0.4):
            learner.adapter.on_progress(progress)
            values.append(predict(learner, episodes[0]))
        gaps[repeat_delta] = [
            (b - a).abs().max().item() for a, b in ((values[0], values[1]), (values[2], values[3]))
        ]
    assert max(gaps["once"]) < 1e-5
    assert gaps["each-step"][0] < 1e-5
    assert gaps["each-step"][1] > 1e-2


def test_trajectory_has_a_predictor_for_each_step():
    episode = tiny_episodes(TASK, 1).unbatch()[0]
    learner = make(inner_steps=3)
    lengths = []
    for progress in (0.0, 0.3, 0.5):
        learner.adapter.on_progress(progress)
        lengths.append(len(learner.trajectory(episode)))
    assert lengths == [4, 4, 2]


def test_evaluation_with_the_hypernetwork_alone(episodes):
    """`hypernetwork` ignores the progress in evaluation mode only; `current` in neither."""
    for progress in (0.0, 0.3):
        current, alone = (
            make(progress, evaluate_with=word, inner_steps=2)
            for word in ("current", "hypernetwork")
        )
        trained = make(progress=1.0, inner_steps=2)
        assert torch.equal(predict(current, episodes[0]), predict(alone, episodes[0]))
        in_training = predict(current, episodes[0])
        for learner in (current, alone, trained):
            learner.eval()
        assert torch.equal(predict(current, episodes[0]), in_training)
        assert torch.equal(predict(alone, episodes[0]), predict(trained, episodes[0]))
        assert not torch.allclose(predict(alone, episodes[0]), in_training)


def test_evaluation_takes_the_hypernetwork_alone_by_default(episodes):
    """In a warm-up too, where `current` would judge gradient steps under the same name."""
    by_default, alone = make(0.1), make(0.1, evaluate_with="hypernetwork")
    assert make().adapter.evaluate_with == "hypernetwork"
    for learner in (by_default, alone):
        learner.eval()
    assert torch.equal(predict(by_default, episodes[0]), predict(alone, episodes[0]))
    by_default.adapter.hypernetwork.forward = None  # a call would fail
    with pytest.raises(TypeError):
        predict(by_default, episodes[0])


@pytest.mark.parametrize("evaluate_with", ["hypernetwork", "current"])
@pytest.mark.parametrize(
    ("progress", "share"), [(0.0, 1.0), (0.19, 1.0), (0.3, 0.5), (0.399, 0.005), (0.4, 0.0), (1, 0)]
)
def test_it_settles_when_the_hypernetwork_alone_is_trained(progress, share, evaluate_with):
    """Whatever evaluation takes; results hold both shares."""
    adapter = make(progress, evaluate_with=evaluate_with).adapter
    assert adapter.settled is (share == 0)
    evaluated = share if evaluate_with == "current" else 0
    expected = {"gradient_share": evaluated, "gradient_share_trained": share}
    for mode in (True, False):
        assert adapter.train(mode).describe() == pytest.approx(expected, abs=1e-12)


def test_gradient_steps_all_along_are_settled(episodes):
    """`warmup: 1` with `evaluate_with: current` is ANIL, to the last step and in its evaluation."""
    anil = make(599 / 600, warmup=1.0, switch=0.0, evaluate_with="current")
    assert anil.adapter.settled
    assert anil.adapter.describe() == {"gradient_share": 1.0, "gradient_share_trained": 1.0}
    in_training = predict(anil, episodes[0])
    assert torch.equal(predict(anil.eval(), episodes[0]), in_training)


RECIPE = """\
seed: 0
episodes: {name: glyphs, n_way: 2, n_shot: 1, n_query: 1}
backbone: {name: conv4, channels: 4, norm: transductive}
adapter: {name: hypermaml, hidden_size: 8, warmup: 0.25, switch: 0.25}
outer:
  optimizer: {name: adam, lr: 0.001}
  meta_batch_size: 1
  steps: 8
  validate_every: 2
  validate_episodes: 2
execution: {mode: loop}
evaluate: {episodes: 2}
"""


def finished(path, text, *overrides):
    """The result of a run and the steps that were validated."""
    path.mkdir()
    (path / "tiny.yaml").write_text(text)
    loaded = load()
    recipe = read_recipe(path / "tiny.yaml", loaded.catalogue, overrides)
    with new_run(path / "run", recipe, loaded, torch.device("cpu"), []) as run:
        train(run)
        judge(run)
        records = [r for r in run.records.metrics() if r.get("split") == "validation"]
        return run.records.result(), [record["step"] for record in records]


def test_a_run_is_never_judged_by_its_warm_up(tmp_path):
    """Only the validations at steps 6 and 8 may be the best: steps 5 and on have p = 0."""
    torch.set_default_dtype(torch.float32)
    result, validated = finished(tmp_path / "whole", RECIPE)
    assert validated == [2, 4, 6, 8]
    assert result["checkpoint"] == "best"
    assert result["checkpoint_step"] in (6, 8)
    assert result["adapter_state"] == {"gradient_share": 0.0, "gradient_share_trained": 0.0}


def test_a_run_that_ends_inside_its_warm_up_says_so(tmp_path):
    """The last of two steps has a share of a half; H alone is judged all the same."""
    torch.set_default_dtype(torch.float32)
    result, _ = finished(
        tmp_path / "cut", RECIPE.replace("0.25, switch: 0.25", "0.4, switch: 0.2"), "outer.steps=2"
    )
    assert (result["checkpoint"], result["settled"]) == ("last", False)
    assert result["adapter_state"]["gradient_share"] == 0.0
    assert result["adapter_state"]["gradient_share_trained"] == pytest.approx(0.5)


def test_a_checkpoint_keeps_its_progress(episodes):
    trained, fresh = make(progress=0.3), make(progress=0.0)
    assert not torch.allclose(predict(trained, episodes[0]), predict(fresh, episodes[0]))
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(predict(trained, episodes[0]), predict(fresh, episodes[0]))


@pytest.mark.parametrize("progress", [0.1, 0.3, 1.0])
def test_objective(progress, episodes):
    """Query loss; with options the mean loss over support and queries, and the squared norm of H;
    in training alone."""
    episode = episodes[0]
    plain, rich = make(progress), make(progress, support_loss=True, update_penalty=0.5)
    predictor = plain.adapt(episode)
    query = TASK.loss(predictor(episode.query.x), episode.query.y)
    value, prediction = rich.objective(episode, TASK.loss)
    assert torch.equal(prediction, predictor(episode.query.x))
    assert plain.objective(episode, TASK.loss)[0].item() == pytest.approx(query.item(), abs=1e-12)
    if progress == 0.1:
        assert value.item() == pytest.approx(query.item(), abs=1e-12)
    else:
        support = TASK.loss(predictor(episode.support.x), episode.support.y)
        norm = _squared_update(plain, episode)
        expected = (6 * support + 9 * query) / 15 + 0.5 * norm
        assert value.item() == pytest.approx(expected.item(), abs=1e-12)
    judged = TASK.loss(predict(plain.eval(), episode), episode.query.y)
    value, _ = rich.eval().objective(episode, TASK.loss)
    assert value.item() == pytest.approx(judged.item(), abs=1e-12)


def _squared_update(learner, episode):
    """||H||^2 from what the update does to the logits of the unit vectors and of zero, where H acts
    alone."""
    adapter = HyperMaml(TASK, learner.backbone, hidden_size=7, warmup=0, switch=0)
    adapter.load_state_dict(learner.adapter.state_dict())
    adapter.on_progress(1.0)
    features = learner.backbone(episode.support.x)

    class Identity(torch.nn.Identity):
        feature_dim = 5

    support = fsl.LabelledSet(features, episode.support.y)
    before, after = (
        predict(torch.cat([torch.eye(5), torch.zeros(1, 5)]))
        for predict in adapter.trajectory(Identity(), support)
    )
    change = before - after  # rows: weight column + bias, and the bias
    return (change[:5] - change[5]).square().sum() + change[5].square().sum()


def test_stale_predictions_are_those_of_the_task_before(episodes):
    """The head of one training task is what H sees in the next; adapting and evaluating leave it in
    place."""
    learner = make(predictions="stale")
    fresh = make()
    assert torch.equal(
        predict(learner, episodes[1]), predict(fresh, episodes[1])
    )  # before the first task: the universal head
    learner.eval()
    learner.objective(episodes[0], TASK.loss)
    assert torch.equal(predict(learner, episodes[1]), predict(fresh, episodes[1]))
    learner.train()
    learner.objective(episodes[0], TASK.loss)
    assert not torch.allclose(predict(learner, episodes[1]), predict(fresh, episodes[1]))
    logits = fresh.adapt(episodes[0])(episodes[2].query.x).detach()
    z = learner.backbone(episodes[2].query.x)
    left = torch.nn.functional.linear(
        z, learner.adapter.previous_weight, learner.adapter.previous_bias
    )
    torch.testing.assert_close(left, logits, rtol=0, atol=1e-12)
    other = make(predictions="stale")
    other.load_state_dict(learner.state_dict())
    assert torch.equal(predict(other, episodes[1]), predict(learner, episodes[1]))


def test_concat_refuses_another_number_of_shots():
    learner, wide = make(aggregation="concat"), tiny_episodes(tiny_task(n_shot=3), 1).unbatch()[0]
    message = (
        r"hypermaml: aggregation 'concat': 9 support items\. 3 x 2 as in training, or aggregation "
        r"'mean', which takes any"
    )
    with pytest.raises(fsl.ShapeError, match=message):
        learner.adapt(wide)
    assert predict(make(), wide).shape == (9, 3)


def test_concat_sees_the_order_of_shots_and_mean_does_not(episodes):
    (x, y), episode = episodes[0].support, episodes[0]
    swapped = episode._replace(
        support=fsl.LabelledSet(x.view(3, 2, *x.shape[1:]).flip(1).flatten(0, 1), y)
    )
    for aggregation, same in (("mean", True), ("concat", False)):
        learner = make(aggregation=aggregation)
        assert (
            torch.allclose(predict(learner, episode), predict(learner, swapped), rtol=0, atol=1e-12)
            is same
        )


def rename_classes(episode):
    """Class c becomes c + 1, the last one 0; (episode, columns of the logits in the old order)."""
    to = (torch.arange(3) + 1) % 3
    y = to[episode.support.y]
    order = y.argsort(stable=True)
    return episode._replace(support=fsl.LabelledSet(episode.support.x[order], y[order])), to


def tied(learner):
    """The same learner with equal rows in the universal head, so that nothing but H can tell
    classes apart."""
    with torch.no_grad():
        head = learner.adapter.head
        head.weight.copy_(head.weight[:1].expand_as(head.weight))
        head.bias.zero_()
    return learner


@pytest.mark.parametrize(
    ("options", "equivariant"),
    [
        ({"enhance": False}, True),
        ({"enhance": True}, False),
        ({"labels": "index"}, False),
        ({"enhance": False, "network": "flat"}, False),
        ({"network": "flat"}, False),
    ],
    ids=str,
)
def test_label_equivariance_of_fixed_weights(options, equivariant, episodes):
    """With equal rows in the universal head. What per-class weights allow beyond it is in
    test_hypermaml_contract.py."""
    learner = tied(make(**options))
    renamed, to = rename_classes(episodes[0])
    found, expected = predict(learner, renamed)[:, to], predict(learner, episodes[0])
    assert torch.allclose(found, expected, rtol=0, atol=1e-12) is equivariant
    if not equivariant:
        assert (found - expected).abs().max() > 1e-6


@pytest.mark.parametrize(("hidden_size", "parameters"), [(512, 445_766), (256, 214_086)])
def test_number_of_parameters(hidden_size, parameters):
    """Of the official code, 5-way on RGB of 28 x 28: backbone 113,088, head 325, the rest the
    hypernetwork."""
    task = fsl.TaskShape("classification", 5, 1, 16, (3, 28, 28), 5)
    backbone = Conv4(task)
    assert sum(p.numel() for p in backbone.parameters()) == 113_088
    learner = fsl.Learner(
        backbone,
        HyperMaml(task, backbone, hidden_size=hidden_size, labels="index", aggregation="concat"),
    )
    assert sum(p.numel() for p in learner.adapter.head.parameters()) == 325
    assert sum(p.numel() for p in learner.parameters()) == parameters


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"task": REGRESSION},
            r"a regression task\. Classification: H sees one row for each class",
        ),
        ({"hidden_size": 0}, r"hidden_size: 0\. A number above 0"),
        ({"layers": 0}, r"layers: 0\. A number from 1"),
        ({"inner_steps": 0}, r"inner_steps: 0\. A number from 1"),
        ({"inner_lr": 0.0}, r"inner_lr: 0\.0\. A number above 0"),
        ({"order": 3}, r"order: 3\. 1 or 2"),
        ({"update_penalty": -1.0}, r"update_penalty: -1\.0\. A number from 0"),
        ({"warmup": -0.1}, r"warmup: -0\.1\. A number from 0"),
        ({"warmup": 0.9}, r"warmup \+ switch: 0\.9 \+ 0\.2\. At most 1, all of training"),
        (
            {"warmup": 0.4, "switch": 0.6},
            r"warmup \+ switch: 0\.4 \+ 0\.6, so training ends inside the warm-up, while "
            r"evaluation takes the hypernetwork alone\. Below 1, or evaluate_with: current",
        ),
        (
            {"warmup": 1.0, "switch": 0.0},
            r"warmup \+ switch: 1\.0 \+ 0\.0, so training ends inside",
        ),
        ({"network": "shared"}, r"network: 'shared'\. 'class-shared' or 'flat'"),
        ({"labels": "onehot"}, r"labels: 'onehot'\. 'one-hot' or 'index'"),
        ({"operator": "times"}, r"operator: 'times'\. 'minus', 'plus' or 'multiply'"),
        (
            {"predictions": "stale", "enhance": False},
            r"predictions: 'stale' without enhance, so H sees no predictions\. 'universal'",
        ),
        ({"warmup": inf}, r"warmup: inf\. A finite number"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=f"hypermaml: {message}"):
        make(**options)


def test_show_explains_every_option():
    shown = CliRunner().invoke(app, ["show", "adapter", "hypermaml"])
    assert shown.exit_code == 0
    assert "arXiv:2205.15745" in shown.output
    described = json.loads(
        CliRunner().invoke(app, ["show", "adapter", "hypermaml", "--json"]).output
    )
    options = {
        name: spec for name, spec in described["schema"]["properties"].items() if name != "name"
    }
    assert len(options) == 19
    unexplained = [name for name, spec in options.items() if "official" not in spec["description"]]
    assert not unexplained


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_no_weight_of_the_backbone_is_a_fast_weight(episodes, progress):
    learner, seen = make(progress).eval(), []
    learner.backbone.requires_grad_(False)
    own = {name: w.clone() for name, w in learner.backbone.named_parameters()}
    learner.backbone.register_forward_pre_hook(
        lambda net, _: seen.append({name: w.clone() for name, w in net.named_parameters()})
    )
    predict(learner, episodes[0])
    assert len(seen) == 2
    assert all(torch.equal(now[name], w) for now in seen for name, w in own.items())


STEPS_ALONE = {"warmup": 1.0, "switch": 0.0, "evaluate_with": "current", "inner_steps": 2}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "the hypernetwork makes the update, or a part of it"),
        (STEPS_ALONE | {"gradient_target": "universal"}, "gradient_target: universal takes every"),
        (STEPS_ALONE | {"predictions": "stale"}, "predictions: stale keeps the head"),
    ],
)
def test_what_only_unrolled_can_differentiate(options, reason):
    assert FirstOrder().unfit(make(**options).adapter).startswith(reason)


def test_gradient_steps_alone_take_other_hypergradients(episodes):
    def gradients(order, hypergradient):
        learner = make(0.5, **STEPS_ALONE, order=order)
        if hypergradient is not None:
            assert not hypergradient.unfit(learner.adapter)
        learner = fsl.Learner(learner.backbone, learner.adapter, hypergradient)
        trained = [p for n, p in learner.named_parameters() if "hypernetwork" not in n]
        return torch.autograd.grad(learner.objective(episodes[0], TASK.loss)[0], trained)

    expected = gradients(1, None)
    for found, other in zip(gradients(2, FirstOrder()), expected, strict=True):
        torch.testing.assert_close(found, other, rtol=0, atol=1e-12)
    exact = gradients(2, None)
    assert not all(torch.allclose(a, b) for a, b in zip(exact, expected, strict=True))

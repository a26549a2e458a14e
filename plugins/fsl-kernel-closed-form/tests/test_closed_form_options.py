"""What the options mean, what is refused, and whole runs through core: other ways and shots, NaN
pixels, compilation."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

import fsl_core as fsl
import fsl_kernel_closed_form
from fsl_core.builtin.hypergradients import FirstOrder
from fsl_core.config.recipe import read_recipe
from fsl_core.errors import TrainingError
from fsl_core.hooks.loader import load
from fsl_core.runs.opening import new_run
from fsl_core.testing import double_precision, tiny_episodes, tiny_task
from fsl_core.testing.tiny import TinyBackbone
from fsl_core.training.judging import judge
from fsl_core.training.outer_loop import train
from fsl_kernel_closed_form import KernelClosedForm, MetaRkhsI, MetaRkhsII, Ridge

RECIPE = """\
seed: 0
requires: [fsl-kernel-closed-form]
episodes: {{name: glyphs, n_way: 3, n_shot: 1, n_query: 2}}
backbone: {{name: conv4, channels: 4}}
adapter: {adapter}
outer:
  optimizer: {{name: adam, lr: 0.001}}
  meta_batch_size: 2
  steps: 2
evaluate: {{episodes: 3}}
"""


def make(adapter, **options):
    task = tiny_task()
    backbone = TinyBackbone()
    return fsl.Learner(backbone, adapter(task, backbone, **options))


FROZEN = {"backbone.linear.weight", "backbone.linear.bias"}


def frozen_in_part(adapter, **options):
    """A learner whose last layer of the backbone requires no gradient."""
    task, backbone = tiny_task(), TinyBackbone()
    backbone.linear.requires_grad_(False)
    return fsl.Learner(backbone, adapter(task, backbone, **options))


@pytest.mark.parametrize(
    ("adapter", "options"),
    [(KernelClosedForm, {"kernel": "ntk"}), (MetaRkhsI, {}), (MetaRkhsII, {})],
)
def test_frozen_weights_are_no_part_of_what_adapts(adapter, options):
    free, kept, moved = (
        set(learner.adapter.names)
        for learner in (
            make(adapter, **options),
            frozen_in_part(adapter, **options),
            frozen_in_part(adapter, **options, adapt_frozen=True),
        )
    )
    assert free - kept == FROZEN
    assert moved == free


def test_fine_tuning_leaves_frozen_weights_alone():
    learner = frozen_in_part(MetaRkhsI, inner_steps=2, inner_lr=0.5).eval()
    episode, own, seen = (
        tiny_episodes(tiny_task(), 1).unbatch()[0],
        learner.backbone.linear.weight,
        [],
    )
    learner.backbone.linear.register_forward_pre_hook(lambda layer, _: seen.append(layer.weight))
    predict = learner.adapt(episode)
    seen.clear()
    predict(episode.query.x)
    assert torch.equal(seen[0], own)
    before, after = learner.trajectory(episode)[0], predict
    assert not torch.equal(before(episode.query.x), after(episode.query.x))  # the others moved


def test_the_norm_of_the_gradient_leaves_frozen_weights_out():
    learner = frozen_in_part(MetaRkhsI, alpha=0.5)
    episode, task = tiny_episodes(tiny_task(), 1).unbatch()[0], tiny_task()
    value, prediction = learner.objective(episode, task.loss)
    trained = [p for p in learner.parameters() if p.requires_grad]
    plain = task.loss(prediction, episode.query.y)
    gradients = torch.autograd.grad(plain, trained)
    expected = plain - 0.5 * sum(g.square().sum() for g in gradients)
    torch.testing.assert_close(value, expected)


def test_a_tangent_kernel_over_frozen_weights_alone_is_refused():
    message = (
        r"parameters: 'backbone\.linear\.\*' matches frozen parameters alone, "
        r"backbone\.linear\.weight, backbone\.linear\.bias\. adapt_frozen: true, or patterns"
    )
    with pytest.raises(ValueError, match=message):
        frozen_in_part(MetaRkhsII, parameters="backbone.linear.*")


@pytest.mark.parametrize(
    ("adapter", "options", "message"),
    [
        (
            KernelClosedForm,
            {"kernel": "poly"},
            r"kernel-closed-form: kernel: 'poly'\. 'linear', 'rbf', 'cosine' or 'ntk'",
        ),
        (
            KernelClosedForm,
            {"targets": "hot"},
            r"kernel-closed-form: targets: 'hot'\. 'one-hot', 'centred' or 'plus-minus'",
        ),
        (
            KernelClosedForm,
            {"outputs": "one"},
            r"kernel-closed-form: outputs: 'one'\. 'shared' or 'full'",
        ),
        (
            KernelClosedForm,
            {"regularisation": -1.0},
            r"regularisation: -1\.0\. A number from 0",
        ),
        (
            KernelClosedForm,
            {"regularisation": 0.0, "learn_regularisation": True},
            r"regularisation: 0 with learn_regularisation: true, which trains its logarithm\. A "
            r"number",
        ),
        (
            KernelClosedForm,
            {"scale": -2.0},
            r"kernel-closed-form: scale: -2\.0\. A number above 0, or None",
        ),
        (
            KernelClosedForm,
            {"width": 0.0},
            r"kernel-closed-form: width: 0\.0\. A number above 0, or 'median'",
        ),
        (
            KernelClosedForm,
            {"jitter": -1.0},
            r"kernel-closed-form: jitter: -1\.0\. A number from 0",
        ),
        (
            KernelClosedForm,
            {"kernel": "ntk", "parameters": ["head.*", "layer4.*"]},
            r"parameters: 'layer4\.\*' matches no parameter\. all, head, body, or patterns over "
            r"backbone\.conv\.weight, .*bias",
        ),
        (
            KernelClosedForm,
            {"kernel": "ntk", "parameters": []},
            r"parameters: an empty list\. all, head, body, or ",
        ),
        (Ridge, {"regularisation": 0.0}, r"ridge: regularisation: 0\.0\. A number above 0"),
        (Ridge, {"scale": 0.0}, r"ridge: scale: 0\.0\. A number above 0, or None"),
        (Ridge, {"form": "dual"}, r"ridge: form: 'dual'\. 'smaller', 'primal' or 'woodbury'"),
        (
            Ridge,
            {"targets": "hot"},
            r"ridge: targets: 'hot'\. 'one-hot', 'centred' or 'plus-minus'",
        ),
        (MetaRkhsI, {"alpha": -1.0}, r"meta-rkhs-i: alpha: -1\.0\. A number from 0"),
        (MetaRkhsI, {"inner_lr": 0.0}, r"meta-rkhs-i: inner_lr: 0\.0\. A number above 0"),
        (MetaRkhsI, {"inner_steps": -1}, r"meta-rkhs-i: inner_steps: -1\. A number from 0"),
        (
            MetaRkhsI,
            {"estimator": "one"},
            r"meta-rkhs-i: estimator: 'one'\. 'squared-norm' or 'two-batch'",
        ),
        (MetaRkhsII, {"time": 0.0}, r"meta-rkhs-ii: time: 0\.0\. A number above 0, or 'infinite'"),
        (
            MetaRkhsII,
            {"exponential": "pade33"},
            r"meta-rkhs-ii: exponential: 'pade33'\. 'exact', 'pade11' or 'pade22'",
        ),
        (MetaRkhsII, {"outputs": "one"}, r"meta-rkhs-ii: outputs: 'one'\. 'shared' or 'full'"),
        (
            MetaRkhsII,
            {"targets": "hot"},
            r"meta-rkhs-ii: targets: 'hot'\. 'one-hot', 'centred' or 'plus-minus'",
        ),
        (MetaRkhsII, {"scale": 0.0}, r"meta-rkhs-ii: scale: 0\.0\. A number above 0, or None"),
        (MetaRkhsII, {"jitter": -1.0}, r"meta-rkhs-ii: jitter: -1\.0\. A number from 0"),
    ],
)
def test_refused_options(adapter, options, message):
    with pytest.raises(ValueError, match=message):
        make(adapter, **options)


class Foreign(nn.Sequential):
    feature_dim = 4

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(50, 4), nn.BatchNorm1d(4))


def test_tangents_through_batch_norm_of_torch_are_refused():
    message = (
        r"parameters: a tangent kernel through BatchNorm1d, whose third derivatives are wrong "
        r"in torch\. A backbone with fsl.Norm"
    )
    with pytest.raises(ValueError, match=message):
        MetaRkhsII(tiny_task(), Foreign())
    assert MetaRkhsII(tiny_task(), Foreign(), parameters="head").names == [
        "head.weight",
        "head.bias",
    ]


def test_are_registered():
    found = []
    fsl_kernel_closed_form.fsl_register_adapters(found.append)
    assert [adapter.name for adapter in found] == [
        "kernel-closed-form",
        "ridge",
        "meta-rkhs-i",
        "meta-rkhs-ii",
    ]
    assert all(adapter.vectorizable and adapter.order == 2 for adapter in found)


def test_learned_numbers_are_parameters_and_start_where_they_are_told():
    options = {
        "learn_regularisation": True,
        "learn_width": True,
        "width": 2.0,
        "scale": 5.0,
        "regularisation": 0.3,
    }
    learned = make(KernelClosedForm, residual=False, **options).adapter
    assert set(learned.state_dict()) == {"rbf.factor.log", "regularisation.log", "scale.log"}
    found = [
        number().item() for number in (learned.rbf.factor, learned.regularisation, learned.scale)
    ]
    assert found == pytest.approx([2.0, 0.3, 5.0])
    fixed = make(KernelClosedForm, residual=False, learn_width=False, learn_scale=False).adapter
    assert not fixed.state_dict()


def test_scale_starts_at_ten_for_logits_and_at_one_for_values():
    for adapter in (KernelClosedForm, Ridge, MetaRkhsII):
        assert adapter(tiny_task(), TinyBackbone()).scale.start == 10.0
        assert adapter(tiny_task("regression"), TinyBackbone()).scale.start == 1.0


@pytest.mark.parametrize(
    ("adapter", "options", "kernel_rows"),
    [(MetaRkhsII, {"outputs": "shared"}, 6), (MetaRkhsII, {"outputs": "full"}, 18)],
)
def test_size_of_the_tangent_kernel(adapter, options, kernel_rows, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        "fsl_kernel_closed_form.meta_rkhs_ii.finite_time",
        lambda g, r, *_: sizes.append(len(g)) or 0 * r,
    )
    learner = make(adapter, **options)
    learner.adapt(tiny_episodes(tiny_task(), 1).unbatch()[0])
    assert sizes == [kernel_rows]


@pytest.mark.parametrize(
    "options",
    [
        {"kernel": "linear"},
        {"kernel": "cosine"},
        {"residual": True},
        {"kernel": "ntk", "residual": True},
    ],
    ids=["linear", "cosine", "rbf", "ntk"],
)
@pytest.mark.slow
def test_compiled_is_the_loop(options):
    """Graph capture, which is where transforms and reads of values would fail."""
    with double_precision():
        learner, task = make(KernelClosedForm, **options), tiny_task()
        episodes, weights = (
            tiny_episodes(task, 2),
            {k: v.detach() for k, v in learner.named_parameters()},
        )

        def loss(weights, support, query):
            logits = functional_call(learner, weights, (support, query.x))
            return task.loss(logits, query.y)

        def total(weights, support, query):
            return vmap(loss, (None, 0, 0))(weights, support, query).sum()

        expected = grad(total)(weights, *episodes[:2])
        torch._dynamo.reset()  # what earlier tests compiled counts against a limit of variants
        found = torch.compile(grad(total), backend="eager", fullgraph=True)(weights, *episodes[:2])
        for name in weights:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-11)


@pytest.fixture
def run(tmp_path):
    def start(adapter, *overrides):
        path = tmp_path / "recipe.yaml"
        path.write_text(RECIPE.format(adapter=adapter))
        loaded = load()
        recipe = read_recipe(path, loaded.catalogue, overrides)
        return new_run(tmp_path / "run", recipe, loaded, torch.device("cpu"), [])

    return start


@pytest.mark.parametrize("adapter", ["{name: ridge}", "{name: kernel-closed-form}"])
def test_adapters_without_a_head_are_judged_on_other_ways_and_shots(adapter, run):
    with run(adapter, "evaluate.n_way=5", "evaluate.n_shot=2") as started:
        train(started)
        assert judge(started)["episodes"] == 3


def test_a_head_fixes_the_ways(run):
    message = (
        r"evaluate\.n_way: adapter\.head\.weight of adapter 'meta-rkhs-ii' has a size fixed by "
        r"n_way 3"
    )
    with (
        pytest.raises(fsl.RecipeError, match=message),
        run("{name: meta-rkhs-ii}", "evaluate.n_way=5"),
    ):
        pass


@pytest.mark.parametrize(
    "adapter",
    [
        "{name: ridge}",
        "{name: kernel-closed-form, residual: true}",
        "{name: kernel-closed-form, kernel: ntk, regularisation: 0}",
        "{name: meta-rkhs-ii}",
        "{name: meta-rkhs-ii, time: infinite}",
    ],
)
def test_a_nan_pixel_stops_training_and_names_the_episode(adapter, run, monkeypatch):
    from fsl_core.builtin.glyphs import Glyphs

    original = Glyphs.batch

    def damaged(self, split, indices, *rest):
        batch = original(self, split, indices, *rest)
        batch.support.x[1, 0, 0, 3, 3] = torch.nan  # one pixel of one picture of the second episode
        return batch

    monkeypatch.setattr(Glyphs, "batch", damaged)
    with (
        run(adapter, "backbone.norm=group") as started,
        pytest.raises(TrainingError, match=r"outer step 1, episode 1: the loss is nan"),
    ):
        train(started)


@pytest.mark.parametrize(
    ("adapter", "reason"),
    [
        (MetaRkhsI, "training takes no inner steps: it follows a regularised loss"),
        (MetaRkhsII, "adapter 'meta-rkhs-ii' has no inner problem"),
        (Ridge, "adapter 'ridge' has no inner problem"),
    ],
)
def test_only_unrolled_can_differentiate_them(adapter, reason):
    assert FirstOrder().unfit(make(adapter).adapter) == reason

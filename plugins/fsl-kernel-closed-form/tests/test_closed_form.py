"""The adapters against dense float64 computations of their own, against each other, and at their
limits."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, vmap

import fsl_core as fsl
from fsl_core.testing import double_precision, tiny_episodes, tiny_task
from fsl_core.testing.tiny import TinyBackbone
from fsl_kernel_closed_form import KernelClosedForm, MetaRkhsI, MetaRkhsII, Ridge

KINDS = ("classification", "regression")
UNSCALED = {"scale": 1.0, "learn_scale": False}
"""Options of meta-rkhs-ii that give the equations as published."""


@pytest.fixture(autouse=True)
def _float64():
    with double_precision():
        yield


def make(adapter, kind="classification", norm="none", n_shot=None, **options):
    task = tiny_task(kind, n_shot)
    torch.manual_seed(1)
    backbone = TinyBackbone(norm)
    return fsl.Learner(backbone, adapter(task, backbone, **options)), tiny_episodes(
        task, 1
    ).unbatch()[0]


def predict(learner, episode):
    with torch.no_grad():
        return learner.adapt(episode)(episode.query.x)


def labels(learner, episode, targets="centred"):
    """By NumPy, from class indices."""
    if learner.adapter.task.kind == "regression":
        return episode.support.y.numpy()
    hot = np.eye(3)[episode.support.y.numpy()]
    return {"one-hot": hot, "centred": hot - 1 / 3, "plus-minus": 2 * hot - 1}[targets]


def features(learner, episode):
    with torch.no_grad():
        return learner.backbone(episode.support.x).numpy(), learner.backbone(
            episode.query.x
        ).numpy()


def head_of(learner, z):
    with torch.no_grad():
        return learner.adapter.head(torch.as_tensor(z)).numpy()


def same(found, expected, tolerance=1e-9):
    found, expected = np.asarray(found), np.asarray(expected)
    np.testing.assert_allclose(
        found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max()
    )


def lower_median_distance(z):
    distances = sorted(np.linalg.norm(z[i] - z[j]) for i in range(len(z)) for j in range(i))
    return distances[(len(distances) - 1) // 2]


DENSE = {
    "linear": lambda a, b, z: a @ b.T,
    "cosine": lambda a, b, z: (
        (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    ),
    "rbf": lambda a, b, z: np.exp(
        -((a[:, None] - b) ** 2).sum(-1) / (2 * lower_median_distance(z) ** 2)
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets", ["one-hot", "centred", "plus-minus"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("kernel", DENSE)
def test_feature_kernels_are_those_of_numpy(kernel, residual, targets, kind):
    options = {"kernel": kernel, "residual": residual, "targets": targets}
    learner, episode = make(
        KernelClosedForm, kind, regularisation=0.2, jitter=1e-3, scale=3.0, **options
    )
    support, query = features(learner, episode)
    gram = DENSE[kernel](support, support, support)
    y = labels(learner, episode, targets) - (head_of(learner, support) if residual else 0)
    ridge = (0.2 + 1e-3 * np.diag(gram).mean()) * np.eye(len(gram))
    expected = DENSE[kernel](query, support, support) @ np.linalg.solve(gram + ridge, y)
    same(predict(learner, episode), 3.0 * (expected + (head_of(learner, query) if residual else 0)))


def test_width_in_units_of_features():
    learner, episode = make(
        KernelClosedForm, residual=False, width=0.5, regularisation=0.2, jitter=0.0, scale=1.0
    )
    support, query = features(learner, episode)

    def kernel(a, b):
        return np.exp(-((a[:, None] - b) ** 2).sum(-1) / (2 * 0.5**2))

    weights = np.linalg.solve(kernel(support, support) + 0.2 * np.eye(6), labels(learner, episode))
    same(predict(learner, episode), kernel(query, support) @ weights)


def dense_tangents(learner, x, outputs):
    """Rows of the Jacobian by jacrev, (n * output_dim, P); of the sum over sqrt(output_dim), (n,
    P), where shared."""
    backbone, head = learner.backbone, learner.adapter.head
    net = fsl.Functional(backbone, head)
    weights = {k: v.detach() for k, v in net.weights.items()}
    blocks = jacrev(lambda w: net(w, x))(weights)
    n, c = len(x), learner.adapter.task.output_dim
    jacobian = torch.cat([block.reshape(n, c, -1) for block in blocks.values()], -1)
    return (jacobian.reshape(n * c, -1) if outputs == "full" else jacobian.sum(1) / c**0.5).numpy()


def dense_flow(learner, episode, outputs, weights_of):
    """f(q) + H_qS weights_of(H_SS, Y - f(S)) by NumPy."""
    support, query = features(learner, episode)
    js, jq = (dense_tangents(learner, x, outputs) for x in (episode.support.x, episode.query.x))
    missing = labels(learner, episode) - head_of(learner, support)
    correction = jq @ js.T @ weights_of(js @ js.T, missing.reshape(len(js), -1))
    return head_of(learner, query) + correction.reshape(len(query), -1)


@pytest.mark.parametrize("outputs", ["shared", "full"])
@pytest.mark.parametrize("norm", ["none", "transductive"])
@pytest.mark.parametrize("kind", KINDS)
def test_meta_rkhs_ii_is_the_dense_gradient_flow(kind, norm, outputs):
    learner, episode = make(MetaRkhsII, kind, norm, time=0.5, outputs=outputs, **UNSCALED)

    def flow(gram, missing):
        values, vectors = np.linalg.eigh(gram)
        return vectors @ (-np.expm1(-0.5 * values) / values * (vectors.T @ missing).T).T

    same(predict(learner, episode), dense_flow(learner, episode, outputs, flow))


@pytest.mark.parametrize("outputs", ["shared", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_sourced_limit_of_the_kernel_closed_form(kind, outputs):
    """Tangent kernel, residual, no regularisation, scale 1: equation (C), which is meta-rkhs-ii at
    time infinite."""
    options = {
        "kernel": "ntk",
        "residual": True,
        "regularisation": 0.0,
        "scale": 1.0,
        "learn_scale": False,
    }
    ours, episode = make(KernelClosedForm, kind, outputs=outputs, jitter=1e-8, **options)
    theirs, _ = make(MetaRkhsII, kind, time="infinite", outputs=outputs, jitter=1e-8, **UNSCALED)
    theirs.load_state_dict(ours.state_dict())

    def limit(gram, missing):
        return np.linalg.solve(gram + 1e-8 * np.diag(gram).mean() * np.eye(len(gram)), missing)

    same(predict(ours, episode), predict(theirs, episode), 1e-12)
    same(predict(ours, episode), dense_flow(ours, episode, outputs, limit))
    late, _ = make(MetaRkhsII, kind, time=1e5, outputs=outputs, **UNSCALED)
    late.load_state_dict(ours.state_dict())
    same(
        predict(late, episode), predict(theirs, episode), 1e-4
    )  # as near as the jitter lets them be


def test_tangent_kernel_of_the_head_is_the_linear_kernel_with_a_bias():
    learner, episode = make(
        KernelClosedForm,
        kernel="ntk",
        residual=True,
        parameters="head",
        regularisation=0.3,
        jitter=0.0,
        scale=1.0,
    )
    support, query = features(learner, episode)
    missing = labels(learner, episode) - head_of(learner, support)
    weights = np.linalg.solve(support @ support.T + 1 + 0.3 * np.eye(6), missing)
    same(predict(learner, episode), head_of(learner, query) + (query @ support.T + 1) @ weights)


class WithOnes(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.feature_dim = backbone, backbone.feature_dim + 1

    def forward(self, x):
        z = self.backbone(x)
        return torch.cat([z, torch.ones_like(z[:, :1])], 1)


def test_linear_kernel_without_f_is_ridge():
    """Up to the column of ones, given here by the backbone, and the 1 / n of the squares:
    regularisation n times as large."""
    ridge, episode = make(Ridge, regularisation=0.2, scale=4.0)
    backbone, task = WithOnes(ridge.backbone), ridge.adapter.task
    options = {
        "kernel": "linear",
        "residual": False,
        "targets": "one-hot",
        "jitter": 0.0,
        "scale": 4.0,
    }
    kernel = fsl.Learner(
        backbone, KernelClosedForm(task, backbone, regularisation=0.2 * 6, **options)
    )
    same(predict(kernel, episode), predict(ridge, episode))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_shot", [1, 7])
def test_ridge_is_that_of_numpy_in_both_forms(n_shot, kind):
    """feature_dim + 1 is 6: fewer and more support items than that."""
    for form in ("smaller", "primal", "woodbury"):
        learner, episode = make(
            Ridge, kind, n_shot=n_shot, regularisation=0.1, scale=2.0, form=form
        )
        support, query = (np.hstack([z, np.ones((len(z), 1))]) for z in features(learner, episode))
        y, n = labels(learner, episode, "one-hot"), len(support)
        weights = np.linalg.solve(support.T @ support / n + 0.1 * np.eye(6), support.T @ y / n)
        same(predict(learner, episode), 2.0 * query @ weights)


def test_the_smaller_system_is_solved(monkeypatch):
    sizes = []
    monkeypatch.setattr(
        "fsl_kernel_closed_form.ridge.solve",
        lambda g, y, r: sizes.append(len(g)) or torch.zeros_like(y),
    )
    for n_shot in (1, 2, 7):
        learner, episode = make(Ridge, n_shot=n_shot)
        predict(learner, episode)
    assert sizes == [3, 6, 6]


@pytest.mark.parametrize("estimator", ["squared-norm", "two-batch"])
def test_meta_rkhs_i_rewards_the_gradient(estimator):
    learner, episode = make(MetaRkhsI, alpha=0.3, estimator=estimator)
    task, weights = learner.adapter.task, list(learner.parameters())

    def gradient(items):
        loss = task.loss(learner.adapter.head(learner.backbone(items.x)), items.y)
        return loss, torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])

    loss, of_query = gradient(episode.query)
    other = of_query if estimator == "squared-norm" else gradient(episode.support)[1]
    found, prediction = learner.train().objective(episode, task.loss)
    same(found.detach(), (loss - 0.3 * of_query @ other).detach())
    same(prediction.detach(), learner.adapter.head(learner.backbone(episode.query.x)).detach())


def test_two_batches_are_the_first_order_of_a_maml_step():
    """L_Q(theta - alpha * grad L_S) = L_Q - alpha * <grad L_S, grad L_Q> + O(alpha^2)."""
    gaps = []
    for alpha in (1e-2, 1e-3):
        options = {"alpha": alpha, "inner_lr": alpha, "inner_steps": 1, "estimator": "two-batch"}
        learner, episode = make(MetaRkhsI, **options)
        loss = learner.adapter.task.loss
        gaps.append(
            abs(
                learner.train().objective(episode, loss)[0]
                - learner.eval().objective(episode, loss)[0]
            ).item()
        )
    assert gaps[1] < gaps[0] / 90


def test_meta_rkhs_i_fine_tunes_by_gradient_steps():
    learner, episode = make(MetaRkhsI, inner_lr=0.2, inner_steps=3)
    weights = {k: v.detach().clone().requires_grad_() for k, v in learner.named_parameters()}
    for _ in range(3):
        own = {
            k.removeprefix("backbone."): v for k, v in weights.items() if k.startswith("backbone.")
        }
        logits = functional_call(learner.backbone, own, (episode.support.x,))
        logits = logits @ weights["adapter.head.weight"].T + weights["adapter.head.bias"]
        loss = nn.functional.cross_entropy(logits, episode.support.y)
        steps = torch.autograd.grad(loss, list(weights.values()))
        weights = {
            k: (v - 0.2 * g).detach().requires_grad_()
            for (k, v), g in zip(weights.items(), steps, strict=True)
        }
    own = {k.removeprefix("backbone."): v for k, v in weights.items() if k.startswith("backbone.")}
    expected = (
        functional_call(learner.backbone, own, (episode.query.x,))
        @ weights["adapter.head.weight"].T
    )
    same(predict(learner, episode), (expected + weights["adapter.head.bias"]).detach())
    assert len(learner.trajectory(episode)) == 4


ADAPTERS = {
    "linear": (KernelClosedForm, {"kernel": "linear", "residual": False}),
    "rbf": (KernelClosedForm, {"residual": True}),
    "rbf-plain": (KernelClosedForm, {"width": 1.0}),
    "cosine": (KernelClosedForm, {"kernel": "cosine", "residual": True}),
    "ntk": (KernelClosedForm, {"kernel": "ntk", "residual": True, "regularisation": 0.0}),
    "ntk-full": (KernelClosedForm, {"kernel": "ntk", "outputs": "full"}),
    "ridge": (Ridge, {}),
    "meta-rkhs-i": (MetaRkhsI, {"inner_steps": 2}),
    "meta-rkhs-ii": (MetaRkhsII, {}),
    "meta-rkhs-ii-full": (MetaRkhsII, {"outputs": "full"}),
    "meta-rkhs-ii-infinite": (MetaRkhsII, {"time": "infinite"}),
    "meta-rkhs-ii-pade": (MetaRkhsII, {"exponential": "pade22"}),
}
EACH_ADAPTER = pytest.mark.parametrize(("adapter", "options"), ADAPTERS.values(), ids=ADAPTERS)


@EACH_ADAPTER
@pytest.mark.parametrize(
    "damage", ["equal images", "black images", "one class", "every image twice"]
)
@pytest.mark.parametrize("norm", ["none", "transductive"])
def test_degenerate_support_sets_give_finite_answers_and_gradients(adapter, options, damage, norm):
    learner, episode = make(adapter, norm=norm, **options)
    x, y = episode.support
    if damage == "equal images":
        x = x[:1].expand_as(x)
    elif damage == "black images":
        x = torch.zeros_like(x)
    elif damage == "one class":
        y = torch.zeros_like(y)
    else:
        x = x[::2].repeat_interleave(2, 0)
    episode = episode._replace(support=fsl.LabelledSet(x, y))
    loss, prediction = learner.train().objective(episode, learner.adapter.task.loss)
    gradients = torch.autograd.grad(loss, list(learner.parameters()), allow_unused=True)
    assert prediction.isfinite().all()
    assert all(g.isfinite().all() for g in gradients if g is not None)
    assert predict(learner, episode).isfinite().all()


@EACH_ADAPTER
def test_a_pixel_that_is_nan_reaches_the_loss_alone_and_under_vmap(adapter, options):
    learner, episode = make(adapter, **options)
    damaged = episode.support.x.clone()
    damaged[0, 0, 2, 2] = torch.nan
    episode = episode._replace(support=episode.support._replace(x=damaged))
    learner.eval()  # meta-rkhs-i looks at the support set there only
    assert learner.objective(episode, learner.adapter.task.loss)[0].isnan()
    batch = fsl.Episode(
        *(torch.utils._pytree.tree_map(lambda t: t[None], part) for part in episode)
    )
    assert vmap(lambda e: learner.objective(e, learner.adapter.task.loss)[0])(batch).isnan().all()


@EACH_ADAPTER
def test_float32_in_float32_out(adapter, options):
    learner, episode = make(adapter, **options)
    learner.float()
    single = torch.utils._pytree.tree_map(
        lambda t: t.float() if t.is_floating_point() else t, episode
    )
    found = predict(learner, single)
    assert found.dtype == torch.float32
    learner.double()
    same(found.double(), predict(learner, episode), 2e-3)


@pytest.mark.parametrize("adapter", [KernelClosedForm, MetaRkhsII])
@pytest.mark.parametrize("policy", ["support", "running", "group"])
def test_other_norm_policies_under_both_orders_of_vmap(policy, adapter):
    learner, _ = make(adapter, norm=policy)
    task = learner.adapter.task
    episodes = tiny_episodes(task, 2)
    weights = {k: v.detach() for k, v in learner.named_parameters()}
    objective = _Objective(learner, task.loss)

    def loss(weights, episode):
        return functional_call(
            objective, {f"learner.{k}": v for k, v in weights.items()}, (episode,)
        )

    looped = [grad(loss)(weights, episode) for episode in episodes.unbatch()]
    mapped = vmap(grad(loss), (None, 0))(weights, episodes)
    summed = grad(lambda weights: vmap(loss, (None, 0))(weights, episodes).sum())(weights)
    for k in weights:
        same(mapped[k], torch.stack([g[k] for g in looped]))
        same(summed[k], looped[0][k] + looped[1][k])


class _Objective(nn.Module):
    def __init__(self, learner, loss):
        super().__init__()
        self.learner, self.loss = learner, loss

    def forward(self, episode):
        return self.learner.objective(episode, self.loss)[0]

"""Generated weights against NumPy, and identities that the forms must keep.

Tolerance 1e-9 in float64: both routes compute the same real number, in another order of operations.
"""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

import fsl_core as fsl
from fsl_core.testing import TinyBackbone, double_precision, tiny_episodes, tiny_task
from fsl_hypernet import Hypernet
from fsl_hypernet.encoder import encode_labels

SIZES = {"embedding": 4, "hidden": 6, "target": 5}
FORMS = {
    "class": {},
    "scratch": {"base": "none", "support_loss": True},
    "task": {"head": "task"},
    "kernel": {"head": "kernel"},
    "cosine kernel": {"head": "kernel", "kernel": "cosine"},
    "film": {"modulate": "film"},
    "low-rank": {"modulate": "low-rank", "rank": 2},
    "task and film": {"head": "task", "modulate": "film"},
    "kernel and low-rank": {"head": "kernel", "modulate": "low-rank"},
    "checkpoint": {"modulate": "film", "checkpoint": True},
}


@pytest.fixture(autouse=True)
def float64():
    with double_precision():
        yield


class Blocks(fsl.NormedBackbone):
    """Two blocks of conv, norm and tanh, (n, 2, 5, 5) -> (n, 36): smooth, and with segments to
    compute again."""

    feature_dim = 36

    def __init__(self, norm="transductive"):
        super().__init__(norm)
        self.blocks = nn.Sequential(
            nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), fsl.Norm(norm, 3), nn.Tanh()),
            nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), fsl.Norm(norm, 4), nn.Tanh()),
            nn.Flatten(),
        )

    def features(self, x):
        return self.blocks(x)


def make(form="class", backbone=None, kind="classification", fresh=False, **shape):
    """A learner whose parameters are off their zeros, unless fresh."""
    backbone = backbone or TinyBackbone()
    learner = fsl.Learner(
        backbone, Hypernet(tiny_task(kind, **shape), backbone, **SIZES, **FORMS[form])
    )
    if not fresh:
        for parameter in learner.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return learner


def one_episode(kind="classification", **shape):
    return tiny_episodes(tiny_task(kind, **shape), 1).unbatch()[0]


def arrays(module):
    return {name: value.detach().numpy() for name, value in module.named_parameters()}


def perceptron(weights, prefix, x):
    hidden = np.maximum(weights[f"{prefix}.0.weight"] @ x + weights[f"{prefix}.0.bias"], 0)
    return weights[f"{prefix}.2.weight"] @ hidden + weights[f"{prefix}.2.bias"]


def class_rows(weights, z, y, labels):
    items = [
        perceptron(weights, "encoder.item", np.concatenate([z[j], labels[j]]))
        for j in range(len(z))
    ]
    return [
        np.mean([items[j] for j in range(len(z)) if y[j] == c], axis=0) for c in range(y.max() + 1)
    ]


def task_embedding(weights, rows):
    return np.mean([perceptron(weights, "encoder.whole", row) for row in rows], axis=0)


def nearest_mean(z, y, scale, query):
    """Log-odds of being nearest to a class mean, up to a constant of the item."""
    means = [z[y == c].mean(0) for c in range(3)]
    return np.array([[-scale * ((q - mean) ** 2).sum() for mean in means] for q in query])


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def dense_class(weights, z, y, query, base):
    rows = class_rows(weights, z, y, np.empty((len(z), 0)))
    embedding = task_embedding(weights, rows)
    head = np.array(
        [perceptron(weights, "head.hypernetwork", np.concatenate([row, embedding])) for row in rows]
    )
    logits = query @ head[:, :-1].T + head[:, -1]
    return logits + (nearest_mean(z, y, np.exp(weights["head.log_scale"]), query) if base else 0)


def dense_task(weights, z, y, query):
    rows = class_rows(weights, z, y, np.eye(3)[y])
    head = perceptron(weights, "head.hypernetwork", task_embedding(weights, rows)).reshape(3, -1)
    return (
        query @ head[:, :-1].T
        + head[:, -1]
        + nearest_mean(z, y, np.exp(weights["head.log_scale"]), query)
    )


def cosine(a, b):
    return a @ b / np.sqrt((a @ a) * (b @ b))


def cosine_distance(a, b):
    """As the authors' code has it: minus the product of the directions, plus one."""
    return -(a / np.linalg.norm(a)) @ (b / np.linalg.norm(b)) + 1


def dense_kernel(weights, z, y, query, kernel):
    means = [z[y == c].mean(0) for c in range(3)]
    generated = perceptron(
        weights, "head.hypernetwork", np.array([kernel(a, b) for a in means for b in means])
    )
    w1, b1, w2, b2 = np.split(generated, [15, 20, 35])
    logits = []
    for q in query:
        hidden = np.maximum(
            w1.reshape(5, 3) @ np.array([kernel(q, mean) for mean in means]) + b1, 0
        )
        logits.append(w2.reshape(3, 5) @ hidden + b2)
    return np.array(logits)


@pytest.mark.parametrize("form", ["class", "scratch", "task", "kernel", "cosine kernel"])
def test_head_is_that_of_a_dense_computation(form):
    learner, episode = make(form), one_episode()
    z, query = (
        learner.backbone(items.x).detach().numpy() for items in (episode.support, episode.query)
    )
    weights, y = arrays(learner.adapter), episode.support.y.numpy()
    dense = {
        "class": lambda: dense_class(weights, z, y, query, base=True),
        "scratch": lambda: dense_class(weights, z, y, query, base=False),
        "task": lambda: dense_task(weights, z, y, query),
        "kernel": lambda: dense_kernel(weights, z, y, query, cosine_distance),
        "cosine kernel": lambda: dense_kernel(weights, z, y, query, cosine),
    }[form]()
    found = learner(episode.support, episode.query.x).detach().numpy()
    if form in ("scratch", "kernel", "cosine kernel"):
        np.testing.assert_allclose(found, dense, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(log_softmax(found), log_softmax(dense), rtol=1e-9, atol=1e-9)


def test_either_kernel_expresses_the_other():
    """1 - K and 1 - r enter linear layers: minus their weights, whose sum goes into the bias."""
    distance, episode = make("kernel"), one_episode()
    similarity = make("cosine kernel", distance.backbone)
    similarity.load_state_dict(distance.state_dict())
    first, _, last = similarity.adapter.head.hypernetwork
    with torch.no_grad():
        first.bias += first.weight.sum(1)
        first.weight.neg_()
        for values in (last.weight, last.bias):  # of W1 (5, 3), b1 (5), W2, b2
            w1 = values[:15].unflatten(0, (5, 3))
            values[15:20] += w1.sum(1)
            values[:15] *= -1
    expected = distance(episode.support, episode.query.x)
    torch.testing.assert_close(
        similarity(episode.support, episode.query.x), expected, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize(
    ("options", "n_rows"),
    [
        ({"head": "kernel"}, 3),
        ({"head": "kernel", "support_rows": "items"}, 6),
        ({}, 6),
        ({"support_rows": "class-means", "modulate": "film"}, 3),
    ],
    ids=str,
)
def test_support_loss_counts_class_means_or_items(options, n_rows):
    """By hand on fixed features. HyperShot's code has one support row for each class mean."""
    episode, backbone = one_episode(), TinyBackbone()
    adapter = Hypernet(tiny_task(), backbone, support_loss=True, **SIZES, **options)
    learner = fsl.Learner(backbone, adapter)
    loss, prediction = learner.objective(episode, F.cross_entropy)
    z = backbone(episode.support.x)

    class Features(nn.Identity):
        feature_dim = backbone.feature_dim

    rows = z if n_rows == 6 else torch.stack([z[episode.support.y == c].mean(0) for c in range(3)])
    labels = episode.support.y if n_rows == 6 else torch.arange(3)
    on_features = copy.deepcopy(adapter)
    on_features.modulation = None  # a fresh one changes nothing
    head = on_features.adapt(Features(), fsl.LabelledSet(z, episode.support.y))
    value = -log_softmax(head(rows).detach().numpy())[np.arange(n_rows), labels]
    of_queries = -log_softmax(prediction.detach().numpy())[np.arange(9), episode.query.y]
    expected = (value.sum() + of_queries.sum()) / (n_rows + 9)
    assert loss.item() == pytest.approx(expected, abs=1e-9)


def test_regression_head_is_that_of_a_dense_computation():
    learner, episode = make("task", kind="regression"), one_episode("regression")
    z, query = (
        learner.backbone(items.x).detach().numpy() for items in (episode.support, episode.query)
    )
    weights, values = arrays(learner.adapter), episode.support.y.numpy()
    embedding = task_embedding(weights, class_rows(weights, z, np.zeros(len(z), int), values))
    head = perceptron(weights, "head.hypernetwork", embedding).reshape(2, -1)
    found = learner(episode.support, episode.query.x).detach().numpy()
    np.testing.assert_allclose(found, query @ head[:, :-1].T + head[:, -1], rtol=1e-9, atol=1e-9)


def embedding_of(learner, support):
    encoded = encode_labels(learner.backbone(support.x), support.y, learner.adapter.task)
    return learner.adapter.encoder(encoded)[1]


@pytest.mark.parametrize("norm", ["none", "transductive"])
def test_film_scales_and_shifts_outputs(norm):
    """Hooks on the modulated layers, in place of folded weights."""
    learner, episode = make("film", Blocks(norm)), one_episode()
    embedding = embedding_of(learner, episode.support)
    parts = iter(
        learner.adapter.modulation.generate(embedding).split(learner.adapter.modulation.sizes)
    )
    kind = fsl.Norm if norm == "transductive" else nn.Conv2d
    hooked = copy.deepcopy(learner.backbone)
    for layer in [module for module in hooked.modules() if isinstance(module, kind)]:
        gamma = next(parts).view(1, -1, 1, 1)
        beta = 0 if getattr(layer, "bias", True) is None else next(parts).view(1, -1, 1, 1)
        layer.register_forward_hook(
            lambda _, inputs, out, gamma=gamma, beta=beta: out * (1 + gamma) + beta
        )
    assert next(parts, None) is None
    z, query = hooked(episode.support.x), hooked(episode.query.x)
    head = learner.adapter.head(
        encode_labels(z, episode.support.y, tiny_task()), learner.adapter.encoder
    )
    torch.testing.assert_close(
        learner(episode.support, episode.query.x), head(query), rtol=1e-9, atol=1e-9
    )
    plain = learner.adapter.head(
        encode_labels(learner.backbone(episode.support.x), episode.support.y, tiny_task()),
        learner.adapter.encoder,
    )
    assert not torch.allclose(head(query), plain(learner.backbone(episode.query.x)))


def test_low_rank_adds_a_product_of_its_rank():
    learner, episode = make("low-rank", Blocks()), one_episode()
    modulation, backbone = learner.adapter.modulation, learner.backbone
    embedding = embedding_of(learner, episode.support)
    changed = modulation(embedding, dict(backbone.named_parameters()))
    assert list(changed) == ["blocks.0.0.weight", "blocks.1.0.weight"]
    update = (changed["blocks.1.0.weight"] - backbone.blocks[1][0].weight).detach()
    u = modulation.left(embedding).detach().numpy()[2 * 3 :].reshape(4, 2)
    v = modulation.right(embedding).detach().numpy()[2 * 18 :].reshape(2, 27)
    np.testing.assert_allclose(update.numpy().reshape(4, 27), u @ v, rtol=1e-9, atol=1e-12)
    assert torch.linalg.matrix_rank(update.flatten(1)) == 2


@pytest.mark.parametrize("head", ["class", "task", "kernel"])
@pytest.mark.parametrize("modulate", ["film", "low-rank"])
@pytest.mark.parametrize("norm", ["none", "transductive", "support", "group"])
def test_fresh_modulation_changes_nothing(head, modulate, norm):
    episode, backbone = one_episode(), Blocks(norm)
    plain = Hypernet(tiny_task(), backbone, head=head, **SIZES)
    modulated = Hypernet(tiny_task(), backbone, head=head, modulate=modulate, **SIZES)
    modulated.load_state_dict(plain.state_dict(), strict=False)
    expected, found = (
        fsl.Learner(backbone, adapter)(episode.support, episode.query.x)
        for adapter in (plain, modulated)
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("head", ["class", "task"])
def test_fresh_head_is_nearest_centroid(head):
    learner, episode = make(head, fresh=True), one_episode()
    z, query = (
        learner.backbone(items.x).detach().numpy() for items in (episode.support, episode.query)
    )
    found = log_softmax(learner(episode.support, episode.query.x).detach().numpy())
    np.testing.assert_allclose(
        found, log_softmax(nearest_mean(z, episode.support.y.numpy(), 1.0, query)), rtol=1e-9
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_the_support_set(form, seed):
    learner, episode = make(form, Blocks()), one_episode(n_shot=4)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    shuffled = fsl.LabelledSet(episode.support.x[order], episode.support.y[order])
    expected = learner(episode.support, episode.query.x)
    torch.testing.assert_close(learner(shuffled, episode.query.x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_label_equivariance_is_as_the_readme_says(form):
    """Classes a, b, c called 1, 2, 0: with the heads `task` and `kernel` the logits are others, not
    just permuted."""
    learner, episode = make(form), one_episode()
    called = (episode.support.y + 1) % 3
    expected = learner(episode.support, episode.query.x)
    found = learner(fsl.LabelledSet(episode.support.x, called), episode.query.x)[:, [1, 2, 0]]
    equivariant = FORMS[form].get("head", "class") == "class"
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9) == equivariant
    if not equivariant:
        assert (found - expected).abs().max() > 1e-3


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("norm", ["none", "transductive", "group"])
def test_both_orders_of_vmap_equal_the_loop(form, norm):
    learner, task = make(form, Blocks(norm)), tiny_task()
    episodes = tiny_episodes(task, 3)
    weights = {name: parameter.detach() for name, parameter in learner.named_parameters()}

    class Objective(nn.Module):
        def __init__(self):
            super().__init__()
            self.learner = learner

        def forward(self, episode):
            return self.learner.objective(episode, task.loss)[0]

    module = Objective()

    def objective(weights, episode):
        return functional_call(
            module, {f"learner.{name}": weight for name, weight in weights.items()}, (episode,)
        )

    per_task = vmap(grad(objective), (None, 0))(weights, episodes)
    summed = grad(lambda weights: vmap(objective, (None, 0))(weights, episodes).sum())(weights)
    losses = [learner.objective(episode, task.loss)[0] for episode in episodes.unbatch()]
    loop = [torch.autograd.grad(loss, list(learner.parameters())) for loss in losses]
    for i, name in enumerate(weights):
        expected = torch.stack([gradients[i] for gradients in loop])
        torch.testing.assert_close(per_task[name], expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(summed[name], expected.sum(0), rtol=1e-9, atol=1e-9)


def saved_by_backward(learner, episode):
    """Numbers that the graph keeps, each storage once."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = learner.objective(episode, F.cross_entropy)[0]
    return sum(kept.values()), loss


@pytest.mark.parametrize("modulate", ["none", "film"])
def test_checkpointing_keeps_less_and_gives_the_same_gradient(modulate):
    backbone, episode = Blocks(), one_episode(n_query=20)
    found = []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        learner = fsl.Learner(
            backbone,
            Hypernet(tiny_task(), backbone, modulate=modulate, checkpoint=checkpoint, **SIZES),
        )
        kept, loss = saved_by_backward(learner, episode)
        found.append(
            (
                kept,
                loss.item(),
                torch.autograd.grad(loss, list(learner.parameters()), materialize_grads=True),
            )
        )
    (much, plain_loss, plain), (little, loss, gradients) = found
    assert little < 0.6 * much
    assert loss == plain_loss
    for gradient, expected in zip(gradients, plain, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


def test_norm_policy_support_sees_the_modulated_weights():
    learner, episode = make("film", Blocks("support")), one_episode()
    alone = torch.cat([learner(episode.support, x[None]) for x in episode.query.x])
    torch.testing.assert_close(
        learner(episode.support, episode.query.x), alone, rtol=1e-9, atol=1e-9
    )

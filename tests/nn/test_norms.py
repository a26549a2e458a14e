import warnings
from weakref import WeakSet

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional as F

from fsl_core.errors import FslError, ShapeError
from fsl_core.nn.norms import (
    NORM_POLICIES,
    Norm,
    NormedBackbone,
    collect_statistics,
    derivatives_of_any_order,
    normalise_over_batch,
    support_reference,
)


class SmoothNet(NormedBackbone):
    """Norms after convolutions and after a linear layer; smooth, so that finite differences
    exist."""

    def __init__(self, norm):
        super().__init__(norm)
        self.conv1, self.norm1 = nn.Conv2d(2, 4, 3, padding=1), Norm(norm, 4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1), Norm(norm, 4)
        self.linear, self.norm3 = nn.Linear(4 * 9, 6), Norm(norm, 6)
        self.head = nn.Linear(6, 3)

    def features(self, x):
        x = F.avg_pool2d(self.norm1(self.conv1(x)).tanh(), 2)
        x = self.norm2(self.conv2(x)).tanh().flatten(1)
        return self.head(self.norm3(self.linear(x)).tanh())


pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def make_net(norm) -> SmoothNet:
    net = SmoothNet(norm)
    with torch.no_grad():
        for tensor in net.parameters():
            tensor.add_(0.1 * torch.randn_like(tensor))
        for name, buffer in net.named_buffers():
            buffer.add_(
                0.3 * torch.rand_like(buffer) if "var" in name else 0.3 * torch.randn_like(buffer)
            )
    return net


def make_tasks(count, generator):
    x = torch.randn(count, 15, 2, 6, 6, generator=generator)
    return (
        x[:, :6],
        torch.arange(3).repeat_interleave(2),
        x[:, 6:],
        torch.arange(3).repeat_interleave(3),
    )


def make_objective(net, support_y, query_y):
    """Query loss after two SGD steps on all weights."""

    def objective(weights, support_x, query_x):
        def loss(weights, x, y):
            return F.cross_entropy(functional_call(net, weights, (x,)), y)

        with support_reference(support_x, query_x):
            fast = weights
            for _ in range(2):
                slope = grad(loss)(fast, support_x, support_y)
                fast = {name: w - 0.3 * slope[name] for name, w in fast.items()}
            return loss(fast, query_x, query_y)

    return objective


def flat(gradients) -> torch.Tensor:
    return torch.cat([g.flatten() for g in gradients.values()])


@pytest.mark.parametrize("norm", NORM_POLICIES)
def test_meta_gradient_under_vmap_is_that_of_a_loop_and_of_finite_differences(norm, generator):
    net = make_net(norm)
    support_x, support_y, query_x, query_y = make_tasks(3, generator)
    objective = make_objective(net, support_y, query_y)
    weights = {name: p.detach() for name, p in net.named_parameters()}

    loop = torch.stack(
        [flat(grad(objective)(weights, s, q)) for s, q in zip(support_x, query_x, strict=True)]
    )
    per_task = vmap(grad(objective), (None, 0, 0))(weights, support_x, query_x)
    summed = grad(lambda weights: vmap(objective, (None, 0, 0))(weights, support_x, query_x).sum())(
        weights
    )
    scale = loop.abs().max()
    assert (
        torch.cat([g.flatten(1) for g in per_task.values()], 1) - loop
    ).abs().max() < 1e-9 * scale
    assert (flat(summed) - loop.sum(0)).abs().max() < 1e-9 * scale

    direction = {name: torch.randn(w.shape, generator=generator) for name, w in weights.items()}
    unit = flat(direction).norm()
    moved = [
        objective(
            {name: w + h * direction[name] / unit for name, w in weights.items()},
            support_x[0],
            query_x[0],
        )
        for h in (1e-5, -1e-5)
    ]
    measured = (moved[0] - moved[1]) / 2e-5
    assert measured.item() == pytest.approx((loop[0] @ flat(direction) / unit).item(), rel=1e-6)


def test_affine_layers_of_torch_are_what_this_avoids(generator):
    """Should torch be right one day, `Norm` may become thinner."""

    class Affine(SmoothNet):
        def __init__(self):
            super().__init__("transductive")
            self.norm1 = nn.BatchNorm2d(4, track_running_stats=False)

    net = Affine()
    support_x, support_y, query_x, query_y = make_tasks(2, generator)
    objective = make_objective(net, support_y, query_y)
    weights = {name: p.detach() for name, p in net.named_parameters()}
    loop = sum(
        flat(grad(objective)(weights, s, q)) for s, q in zip(support_x, query_x, strict=True)
    )
    mapped = flat(
        grad(lambda weights: vmap(objective, (None, 0, 0))(weights, support_x, query_x).sum())(
            weights
        )
    )
    assert (loop - mapped).abs().max() > 1e-4 * loop.abs().max()


@pytest.mark.parametrize("norm", NORM_POLICIES)
def test_traces_without_a_graph_break(norm, generator):
    support_x, support_y, query_x, query_y = make_tasks(2, generator)
    net = make_net(norm)
    meta_gradient = vmap(grad(make_objective(net, support_y, query_y)), (None, 0, 0))
    weights = {name: p.detach() for name, p in net.named_parameters()}
    torch._dynamo.reset()
    compiled = torch.compile(meta_gradient, backend="eager", fullgraph=True)(
        weights, support_x, query_x
    )
    torch.testing.assert_close(
        compiled, meta_gradient(weights, support_x, query_x), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("shape", [(5, 8), (5, 8, 3, 3)])
def test_values_are_those_of_torch(shape, generator):
    x = torch.randn(shape, generator=generator)
    batch_norm = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
    torch.testing.assert_close(Norm("transductive", 8)(x), batch_norm(8)(x))
    torch.testing.assert_close(Norm("group", 8, groups=2)(x), nn.GroupNorm(2, 8)(x))
    assert Norm("none", 8)(x) is x

    ours, theirs = Norm("running", 8), batch_norm(8)
    with collect_statistics():
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours(x), theirs.eval()(x))
    torch.testing.assert_close(ours.running_var, theirs.running_var)


@pytest.mark.parametrize("norm", ["support", "running", "ordinary", "group", "none"])
def test_a_query_alone_is_computed_as_among_others(norm, generator):
    net = make_net(norm).eval()
    (support_x,), _, (query_x,), _ = make_tasks(1, generator)
    with support_reference(support_x, query_x):
        torch.testing.assert_close(net(query_x[:1]), net(query_x)[:1], rtol=1e-12, atol=1e-12)


class TorchNet(nn.Sequential):
    """`SmoothNet` with BatchNorm of torch, and the weights and averages of one."""

    def __init__(self, net: SmoothNet):
        bn1, bn2, bn3 = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm1d(6)
        for theirs, ours in ((bn1, net.norm1), (bn2, net.norm2), (bn3, net.norm3)):
            state = {"weight": ours.scale, "bias": ours.shift, "num_batches_tracked": 0}
            averages = dict(ours.named_buffers())
            theirs.load_state_dict(
                {k: torch.as_tensor(v).detach().clone() for k, v in (state | averages).items()}
            )
        body = (net.conv1, bn1, nn.Tanh(), nn.AvgPool2d(2), net.conv2, bn2, nn.Tanh())
        super().__init__(*body, nn.Flatten(), net.linear, bn3, nn.Tanh(), net.head)


def test_ordinary_is_batch_norm_of_torch_in_training_and_evaluation(generator):
    """One call over support and query set there; here each is asked for by itself."""
    net = make_net("ordinary")
    theirs = TorchNet(net)
    (support_x,), _, (query_x,), _ = make_tasks(1, generator)
    both = torch.cat([support_x, query_x])
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    with support_reference(support_x, query_x):
        found = torch.cat([net(support_x), net(query_x)])
        # items in other company are normalised by the same statistics
        torch.testing.assert_close(net(query_x[2:5]), found[8:11], rtol=1e-11, atol=1e-12)
    expected = theirs(both)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(net(both), expected, rtol=1e-11, atol=1e-12)
    cubed = [
        torch.autograd.grad(out.pow(3).sum(), [net.conv1.weight, net.linear.weight])
        for out in (found, expected)
    ]
    torch.testing.assert_close(*cubed, rtol=1e-9, atol=1e-10)
    assert all(torch.equal(b, before[name]) for name, b in net.named_buffers())

    with torch.no_grad(), collect_statistics():
        net(both)
    for ours, kept in ((net.norm1, theirs[1]), (net.norm3, theirs[9])):
        torch.testing.assert_close(ours.running_mean, kept.running_mean, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(ours.running_var, kept.running_var, rtol=1e-12, atol=1e-13)
    net.eval()
    theirs.eval()
    with support_reference(support_x, query_x):
        torch.testing.assert_close(net(query_x), theirs(query_x), rtol=1e-11, atol=1e-12)


def test_ordinary_takes_one_call_for_both_sets_where_it_may(generator, monkeypatch):
    net, rows = make_net("ordinary"), []
    features = net.features
    monkeypatch.setattr(net, "features", lambda x: (rows.append(len(x)), features(x))[1])
    (support_x,), _, (query_x,), _ = make_tasks(1, generator)

    def calls(*between, shared: bool = True) -> int:
        """Calls for the support and then the query set, with these steps in between."""
        rows.clear()
        with support_reference(support_x, query_x, shared=shared):
            support = net(support_x)
            for step in between:
                step(support)
            query = net(query_x)
            query.sum().backward()  # the graph is there
        assert set(rows) == {15}
        with support_reference(support_x.clone(), query_x):
            torch.testing.assert_close(query, net(query_x), rtol=1e-12, atol=1e-12)
        return len(rows) - 1

    def moves(support):
        with torch.no_grad():
            net.conv1.weight *= 1.5

    assert calls(shared=False) == 2
    assert calls() == 1
    assert calls(lambda support: support.detach().zero_()) == 1  # the numbers are the caller's own
    assert calls(lambda support: support.sum().backward()) == 2  # and leaves no graph
    assert calls(moves) == 2
    assert calls(lambda support: setattr(net, "head", nn.Linear(6, 3))) == 2
    assert calls(lambda support: net.norm1.eval()) == 2
    with torch.no_grad(), support_reference(support_x, query_x, shared=True):
        net(support_x)
        with torch.enable_grad():
            assert net(query_x).requires_grad
    rows.clear()
    other = torch.randn(query_x.shape, generator=generator)
    for query in (query_x, other):  # of one task no other one hears
        with support_reference(support_x, query, shared=True):
            net(query)
    assert rows == [15, 15]


def test_no_graph_of_both_sets_outlives_its_task(generator):
    class Saved:
        def __init__(self, tensor):
            self.tensor = tensor.detach()  # an output would hold its own graph
            saved.add(self)

    net, saved = make_net("ordinary"), WeakSet()
    (support_x,), _, (query_x,), _ = make_tasks(1, generator)
    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        with support_reference(support_x, query_x, shared=True):
            net(support_x)
            assert len(saved) > 0
        assert len(saved) == 0


def test_transductive_queries_depend_on_each_other(generator):
    net, x = make_net("transductive"), torch.randn(4, 2, 6, 6, generator=generator)
    assert (net(x[:2]) - net(x)[:2]).abs().max() > 1e-3


def test_support_policy_takes_its_statistics_from_the_support_set_under_the_same_weights(generator):
    net = make_net("support")
    (support_x,), _, (query_x,), _ = make_tasks(1, generator)
    seen = {}

    def watch(name):
        def hook(module, inputs, output):
            x = inputs[0]
            mean, var = (
                x[:6].mean((0, 2, 3), keepdim=True),
                x[:6].var((0, 2, 3), correction=0, keepdim=True),
            )
            normal = (x - mean) / (var + module.eps).sqrt()
            expected = normal * module.scale.view(1, -1, 1, 1) + module.shift.view(1, -1, 1, 1)
            torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
            seen[name] = len(x)

        return hook

    for name in ("norm1", "norm2"):
        getattr(net, name).register_forward_hook(watch(name))
    with support_reference(support_x):
        of_query = net(query_x)
        assert of_query.shape == (9, 3)
        assert seen == {"norm1": 15, "norm2": 15}
        of_support = net(support_x)
        assert seen == {"norm1": 6, "norm2": 6}
        torch.testing.assert_close(net(support_x.clone()), of_support, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(net(support_x[2:3]), of_support[2:3], rtol=1e-12, atol=1e-12)
    with support_reference(2 * support_x):
        assert (net(query_x) - of_query).abs().max() > 1e-3


def test_support_policy_without_a_support_set_is_refused(generator):
    x = torch.randn(4, 2, 6, 6, generator=generator)
    with pytest.raises(
        FslError,
        match=r"norm: policy 'support' without a support set\. Call the backbone through a Learner",
    ):
        make_net("support")(x)
    with (
        support_reference(x),
        pytest.raises(
            FslError, match=r"'support' in a layer outside of a NormedBackbone\. A subclass"
        ),
    ):
        Norm("support", 2)(x)


@pytest.mark.parametrize("norm", ["running", "ordinary"])
def test_running_averages_move_only_where_statistics_are_collected(norm, generator):
    net, x = make_net(norm), torch.randn(4, 2, 6, 6, generator=generator)
    before = {name: b.clone() for name, b in net.named_buffers()}
    for mode in (True, False):
        net.train(mode)(x)
    assert all(torch.equal(b, before[name]) for name, b in net.named_buffers())
    with collect_statistics():
        net(x)
    assert all(not torch.equal(b, before[name]) for name, b in net.named_buffers())


@pytest.mark.parametrize(
    ("norm", "shape"),
    [("transductive", (1, 8)), ("running", (1, 8)), ("transductive", (1, 8, 1, 1))],
)
def test_one_value_per_channel_is_refused(norm, shape):
    layer = Norm(norm, 8)
    with (
        collect_statistics(),
        pytest.raises(ShapeError, match=r"one value per channel in .*\. A batch of two or more"),
    ):
        layer(torch.ones(shape))
    assert all(b.isfinite().all() for b in layer.buffers())


def test_a_support_set_of_one_vector_is_refused():
    class Vectors(NormedBackbone):
        def __init__(self):
            super().__init__("support")
            self.norm1 = Norm("support", 3)

        def features(self, x):
            return self.norm1(x)

    with (
        support_reference(torch.ones(1, 3)),
        pytest.raises(ShapeError, match="one value per channel"),
    ):
        Vectors()(torch.ones(5, 3))


def test_groups_hold_four_channels_or_more():
    assert [Norm("group", channels).groups for channels in (1, 4, 7, 8, 40, 64)] == [
        1,
        1,
        1,
        2,
        8,
        8,
    ]
    with pytest.raises(
        ShapeError,
        match=r"one value per group in an input of shape \(5, 1\)\. Two channels or more",
    ):
        Norm("group", 1)(torch.ones(5, 1))


def test_parameters_are_scale_and_shift():
    assert {norm: sum(p.numel() for p in Norm(norm, 8).parameters()) for norm in NORM_POLICIES} == {
        "transductive": 16,
        "support": 16,
        "running": 16,
        "ordinary": 16,
        "group": 16,
        "none": 0,
    }


def test_unknown_policies_are_refused():
    with pytest.raises(
        ValueError, match=r"norm: 'batch' is not a policy\. Expected one of transductive, support"
    ):
        Norm("batch", 8)


def test_features_have_to_be_written():
    with pytest.raises(NotImplementedError, match=r"NormedBackbone\.features: not written\. A map"):
        NormedBackbone("none")(torch.ones(2, 2))


@pytest.mark.parametrize("policy", ["transductive", "group"])
def test_derivatives_of_any_order_differentiate_a_directional_derivative(policy, generator):
    x = torch.randn(6, 4, 2, 2, generator=generator, dtype=torch.float64)
    weight, direction = torch.randn(2, 4, 4, 1, 1, generator=generator, dtype=torch.float64)
    norm = Norm(policy, 4).double()

    def slope(weight: torch.Tensor) -> torch.Tensor:
        with derivatives_of_any_order(), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # torch's own: its forward-mode rules use torch.jit.script
            return (
                jvp(lambda w: norm(F.conv2d(x, w)).tanh(), (weight,), (direction,))[1]
                .square()
                .sum()
            )

    step = 1e-6 * torch.ones_like(weight)
    expected = (slope(weight + step) - slope(weight - step)) / 2e-6
    torch.testing.assert_close(grad(slope)(weight).sum(), expected, rtol=1e-6, atol=1e-8)


def test_large_channels_last_batches_lose_no_digits(generator):
    maps = torch.rand(75, 4, 28, 28, generator=generator) ** 8 + 3  # a mean far above the deviation
    expected = F.batch_norm(maps, None, None, training=True, eps=1e-5)
    single = maps.float().contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(
        normalise_over_batch(single, 1e-5).double(), expected, rtol=2e-5, atol=2e-5
    )
    theirs = F.batch_norm(single, None, None, training=True, eps=1e-5).double()
    assert (theirs - expected).abs().max() > 1e-4


def test_large_batches_have_exact_second_derivatives(generator):
    x = torch.randn(3, 2, 60, 60, generator=generator, requires_grad=True)
    assert x.numel() / 2 > 8192
    for function in (
        normalise_over_batch,
        lambda x, eps: F.batch_norm(x, None, None, training=True, eps=eps),
    ):
        (slope,) = torch.autograd.grad(function(x, 1e-5).pow(3).sum(), x, create_graph=True)
        (curve,) = torch.autograd.grad(slope.square().sum(), x)
        if function is normalise_over_batch:
            found = (slope.detach(), curve)
    torch.testing.assert_close(found, (slope.detach(), curve), rtol=1e-9, atol=1e-9)

"""The convolution block against its four layers one after another, and against torch's own
modules."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

import fsl_core as fsl
from fsl_core.nn import blocks, passes
from fsl_core.nn.norms import NORM_POLICIES, collect_statistics

pytestmark = pytest.mark.usefixtures("float64")


class Blocks(fsl.NormedBackbone):
    """One block after a first one, (n, channels, 9, 10) -> (n, 4 * 2 * 2)."""

    def __init__(self, norm, channels, **options):
        super().__init__(norm)
        self.first = fsl.ConvBlock(channels, 8, norm, **options)
        self.second = fsl.ConvBlock(8, 8, norm, **options)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(0.7 * torch.randn_like(parameter))  # scales of both signs

    def features(self, x):
        return self.second(self.first(x)).flatten(1)


def plain(net: Blocks):
    """The same layers one after another, channels first, and always with the bias."""

    def features(weights, x):
        for name in ("first", "second"):
            block = getattr(net, name)
            mine = {
                key.removeprefix(f"{name}."): value
                for key, value in weights.items()
                if key.startswith(name)
            }
            maps = F.conv2d(x, mine["conv.weight"], mine["conv.bias"], padding=1).contiguous()
            norms = {
                key.removeprefix("norm."): value
                for key, value in mine.items()
                if key.startswith("norm.")
            }
            stride, slope = block.after
            x = functional_call(block.norm, norms, (maps,))
            x = F.max_pool2d(F.leaky_relu(x, slope), 2, stride)
        return x.flatten(1)

    return features


def meta_gradients(features, weights, support_x, query_x):
    """Of a random read-out of the features after one gradient step on another."""

    def loss(weights, x):
        found = features(weights, x)
        readout = torch.linspace(-1, 1, found.shape[1]).to(x)
        return (found @ readout / readout.norm()).square().mean()

    inner = torch.autograd.grad(
        loss(weights, support_x), list(weights.values()), create_graph=True, allow_unused=True
    )
    fast = {
        name: w if g is None else w - 0.1 * g
        for (name, w), g in zip(weights.items(), inner, strict=True)
    }
    value = loss(fast, query_x)
    return value, torch.autograd.grad(
        value, list(weights.values()), allow_unused=True, materialize_grads=True
    )


@pytest.mark.parametrize("channels", [1, 3, 5], ids="{} channels".format)
@pytest.mark.parametrize("norm", ["transductive", "running", "ordinary", "group", "none"])
def test_a_block_is_its_four_layers_with_second_derivatives(norm, channels):
    net = Blocks(norm, channels)
    weights = dict(net.named_parameters())
    support_x, query_x = torch.randn(4, channels, 9, 10), torch.randn(6, channels, 9, 10)
    found = meta_gradients(lambda w, x: functional_call(net, w, (x,)), weights, support_x, query_x)
    expected = meta_gradients(plain(net), weights, support_x, query_x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("options", [{"slope": 0.1}, {"pool_stride": 1}], ids=str)
@pytest.mark.parametrize("channels", [1, 5], ids="{} channels".format)
@pytest.mark.parametrize("norm", ["transductive", "ordinary", "none"])
def test_a_block_may_leak_and_its_poolings_overlap(norm, channels, options):
    net = Blocks(norm, channels, **options)
    weights = dict(net.named_parameters())
    support_x, query_x = torch.randn(4, channels, 9, 10), torch.randn(6, channels, 9, 10)
    found = meta_gradients(lambda w, x: functional_call(net, w, (x,)), weights, support_x, query_x)
    expected = meta_gradients(plain(net), weights, support_x, query_x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


def test_a_negative_slope_is_refused():
    with pytest.raises(ValueError, match=r"^slope: -0\.1\. Zero or more$"):
        fsl.ConvBlock(1, 4, "none", slope=-0.1)


def test_many_values_are_added_up_exactly_enough():
    """In float32; torch's kernel alone is off by 1e-5 and more."""
    maps = (2 + torch.randn(40, 8, 64, 64)).to(torch.float32, memory_format=torch.channels_last)
    scale = torch.ones(8, dtype=torch.float32)
    exact = torch.var_mean(maps.double(), (0, 2, 3), correction=0)
    mean, var = passes._moments(maps, scale)
    torch.testing.assert_close((var.double(), mean.double()), exact, rtol=4e-6, atol=1e-6)
    _, alone = torch.batch_norm_update_stats(maps, scale, scale, 0.0)
    assert (alone / exact[0] - 1).abs().max() > 1e-5


@pytest.mark.parametrize("norm", ["running", "ordinary"])
@pytest.mark.parametrize("channels", [1, 5], ids="{} channels".format)
def test_averages_of_a_block_are_those_of_torch(channels, norm):
    """They move by maps that have the bias, which training leaves out."""
    net, x = Blocks(norm, channels), torch.randn(4, channels, 9, 10)
    layers = nn.Sequential()
    for block in (net.first, net.second):
        layer = nn.BatchNorm2d(8)
        layer.load_state_dict({"weight": block.norm.scale, "bias": block.norm.shift}, strict=False)
        layers.extend([block.conv, layer, nn.ReLU(), nn.MaxPool2d(2)])
    with torch.no_grad(), collect_statistics():
        torch.testing.assert_close(net(x), layers(x).flatten(1))
    for block, layer in zip((net.first, net.second), layers[1::4], strict=True):
        torch.testing.assert_close(block.norm.running_mean, layer.running_mean)
        torch.testing.assert_close(block.norm.running_var, layer.running_var)
    torch.testing.assert_close(net.eval()(x), layers.eval()(x).flatten(1))


@pytest.mark.parametrize("parts", [(), (2,), (4,)], ids="{} parts".format)
def test_a_block_that_adds_up_in_parts_or_passes_of_its_own_is_the_same(monkeypatch, parts):
    net = Blocks("transductive", 5)
    weights = dict(net.named_parameters())
    support_x, query_x = torch.randn(4, 5, 9, 10), torch.randn(6, 5, 9, 10)
    monkeypatch.setattr(passes, "_PARTS", parts)
    monkeypatch.setattr(passes, "few_values", lambda maps: False)
    found = meta_gradients(lambda w, x: functional_call(net, w, (x,)), weights, support_x, query_x)
    expected = meta_gradients(plain(net), weights, support_x, query_x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Blocks compute as they do where they are compiled for a GPU."""
    monkeypatch.setattr(blocks, "_is_gpu", lambda x: True)
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(
    "options", [{}, {"slope": 0.1, "pool_stride": 1}, {"downsample": "stride"}]
)
@pytest.mark.parametrize("norm", ["transductive", "group", "running"])
def test_patches_and_comparisons_are_convolutions_and_pooling(monkeypatch, norm, options):
    net = Blocks(norm, 5, **options).train(norm != "running")  # by averages, if it has some
    weights = dict(net.named_parameters())
    support_x, query_x = torch.randn(4, 5, 9, 10), torch.randn(6, 5, 9, 10)

    def of_the_net():
        return meta_gradients(
            lambda w, x: functional_call(net, w, (x,)), weights, support_x, query_x
        )

    found = of_the_net()
    monkeypatch.setattr(blocks, "_is_gpu", lambda x: False)
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: False)
    torch.testing.assert_close(found, of_the_net(), rtol=1e-9, atol=1e-11)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(("side", "by_rows"), [(16, True), (64, False)])
def test_patches_that_would_fill_a_gpu_are_not_made(monkeypatch, side, by_rows):
    block, taken = fsl.ConvBlock(8, 4, "transductive"), []
    ordinary = blocks._rows
    monkeypatch.setattr(blocks, "_rows", lambda *given: taken.append(given) or ordinary(*given))
    block(torch.randn(2, 8, side, side))
    assert bool(taken) == by_rows


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(7, 6), (2, 3)])
def test_the_largest_of_four_is_that_of_torch_also_of_equals_and_nan(stride, size):
    maps = torch.randint(3, (2, 3, *size)).double()
    maps[0, 1, 1, 1] = torch.nan
    maps.requires_grad_()
    found, expected = blocks._largest_of_four(maps, stride), F.max_pool2d(maps, 2, stride)
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=0, atol=0)
    of = torch.randn_like(found)
    slopes = [torch.autograd.grad(pooled, maps, of)[0] for pooled in (found, expected)]
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("channels", [1, 5], ids="{} channels".format)
def test_pictures_get_their_gradient(channels):
    net, x = Blocks("transductive", channels), torch.randn(4, channels, 9, 10, requires_grad=True)
    weights = dict(net.named_parameters())
    slopes = [
        torch.autograd.grad(features.square().sum(), x)
        for features in (net(x), plain(net)(weights, x))
    ]
    torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-11)


def in_bfloat16(net):
    def features(weights, x):
        with torch.autocast("cpu", torch.bfloat16):
            found = functional_call(net, weights, (x,))
        assert found.dtype == torch.float32
        return found

    return features


@pytest.mark.parametrize("channels", [1, 5], ids="{} channels".format)
@pytest.mark.parametrize("norm", ["transductive", "group"])
def test_a_block_in_bfloat16_is_near_and_gives_gradients_in_float32(norm, channels):
    net = Blocks(norm, channels).float()
    weights = dict(net.named_parameters())
    support_x, query_x = torch.randn(8, channels, 9, 10), torch.randn(30, channels, 9, 10)
    found, expected = (
        meta_gradients(features, weights, support_x.float(), query_x.float())
        for features in (in_bfloat16(net), plain(net))
    )
    together, exact = (
        torch.cat([g.flatten() for g in gradients]) for _, gradients in (found, expected)
    )
    assert together.dtype == torch.float32
    assert 0 < (together - exact).norm() < 0.1 * exact.norm()


def test_under_vmap_bfloat16_reaches_convolutions():
    net = Blocks("transductive", 1).float()
    weights, x = dict(net.named_parameters()), torch.randn(3, 8, 1, 9, 10).float()
    features = in_bfloat16(net)
    together = vmap(lambda x: features(weights, x))(x)
    assert not torch.equal(together, vmap(lambda x: functional_call(net, weights, (x,)))(x))
    alone = torch.stack([features(weights, item) for item in x])
    assert (together - alone).norm() < 0.05 * alone.norm()


def test_a_block_is_torchs_modules():
    net = Blocks("transductive", 1)
    layers = []
    for block in (net.first, net.second):
        conv, norm = (
            nn.Conv2d(block.conv.in_channels, 8, 3, padding=1),
            nn.BatchNorm2d(8, track_running_stats=False),
        )
        conv.load_state_dict(block.conv.state_dict())
        norm.load_state_dict({"weight": block.norm.scale, "bias": block.norm.shift})
        layers += [conv, norm, nn.ReLU(), nn.MaxPool2d(2)]
    theirs = nn.Sequential(*layers, nn.Flatten())
    x = torch.randn(6, 1, 9, 10)
    torch.testing.assert_close(net(x), theirs(x), rtol=1e-12, atol=1e-12)
    net(x).square().sum().backward()
    theirs(x).square().sum().backward()
    torch.testing.assert_close(
        net.first.norm.scale.grad, theirs[1].weight.grad, rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(
        net.first.conv.weight.grad, theirs[0].weight.grad, rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(
        net.second.norm.shift.grad, theirs[5].bias.grad, rtol=1e-10, atol=1e-10
    )


def test_the_bias_that_a_norm_cancels_gets_no_gradient():
    block = fsl.ConvBlock(2, 4, "transductive")
    block(torch.randn(3, 2, 4, 4)).sum().backward()
    assert block.conv.bias.grad is None
    kept = fsl.ConvBlock(2, 4, "group")
    kept(torch.randn(3, 2, 4, 4)).sum().backward()
    assert kept.conv.bias.grad is not None


@pytest.mark.parametrize("norm", [policy for policy in NORM_POLICIES if policy != "support"])
def test_under_vmap_a_block_is_that_of_a_loop(norm):
    net = Blocks(norm, 1)
    weights, x = dict(net.named_parameters()), torch.randn(3, 5, 1, 9, 10)

    def task(weights, x):
        def loss(weights):
            return functional_call(net, weights, (x,)).square().mean()

        inner = grad(loss)(weights)
        return loss({name: w - 0.1 * inner[name] for name, w in weights.items()})

    looped = [grad(task)(weights, item) for item in x]
    stacked = {name: torch.stack([gradient[name] for gradient in looped]) for name in weights}
    torch.testing.assert_close(
        vmap(grad(task), (None, 0))(weights, x), stacked, rtol=1e-9, atol=1e-11
    )
    total = grad(lambda weights: vmap(task, (None, 0))(weights, x).sum())(weights)
    torch.testing.assert_close(
        total, {name: g.sum(0) for name, g in stacked.items()}, rtol=1e-9, atol=1e-11
    )


def test_a_single_value_per_channel_is_refused():
    with pytest.raises(fsl.ShapeError, match="norm: one value per channel"):
        fsl.ConvBlock(1, 4, "transductive")(torch.randn(1, 1, 1, 1))


def strided_by_hand(block, x):
    """TensorFlow's SAME: as much frame as ceil(size / 2) windows need, the odd pixel at the end."""
    frame = []
    for size in (x.shape[3], x.shape[2]):
        total = 2 * (-(-size // 2) - 1) + 3 - size
        frame += [total // 2, total - total // 2]
    maps = F.conv2d(F.pad(x, frame), block.conv.weight, block.conv.bias, stride=2)
    normed = F.batch_norm(maps, None, None, None, block.norm.shift, training=True, eps=1e-3)
    return F.relu(normed)


@pytest.mark.parametrize("channels", [1, 5], ids="{} channels".format)
@pytest.mark.parametrize("size", [(28, 28), (7, 7), (14, 9), (3, 4)], ids="{0[0]}x{0[1]}".format)
def test_a_strided_block_has_the_frame_of_tensorflow(size, channels):
    block = fsl.ConvBlock(
        channels, 6, "transductive", downsample="stride", norm_scale=False, norm_eps=1e-3
    )
    nn.init.normal_(block.norm.shift)
    assert [name for name, _ in block.norm.named_parameters()] == ["shift"]
    x = torch.randn(4, channels, *size)
    found, expected = block(x), strided_by_hand(block, x)
    assert found.shape == (4, 6, -(-size[0] // 2), -(-size[1] // 2))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)
    weights = [block.conv.weight, block.norm.shift]
    for theirs, ours in zip(
        torch.autograd.grad(expected.square().sum(), weights),
        torch.autograd.grad(found.square().sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("norm", [policy for policy in NORM_POLICIES if policy != "support"])
def test_under_vmap_a_strided_block_is_that_of_a_loop(norm):
    block = fsl.ConvBlock(1, 4, norm, downsample="stride", norm_scale=False)
    weights, x = dict(block.named_parameters()), torch.randn(3, 5, 1, 9, 10)

    def task(weights, x):
        def loss(weights):
            return functional_call(block, weights, (x,)).square().mean()

        inner = grad(loss)(weights)
        return loss({name: w - 0.1 * inner[name] for name, w in weights.items()})

    looped = [grad(task)(weights, item) for item in x]
    stacked = {name: torch.stack([gradient[name] for gradient in looped]) for name in weights}
    torch.testing.assert_close(
        vmap(grad(task), (None, 0))(weights, x), stacked, rtol=1e-9, atol=1e-11
    )


def test_xavier_filters_are_uniform_with_the_variance_of_both_sides():
    torch.manual_seed(0)
    block = fsl.ConvBlock(48, 64, "none", init="xavier")
    variance = 2 / (9 * (48 + 64))
    assert block.conv.weight.var().item() == pytest.approx(variance, rel=0.02)
    bound = (3 * variance) ** 0.5
    assert bound * 0.99 < block.conv.weight.abs().max().item() <= bound
    assert not block.conv.bias.any()

"""Frozen backbones: pools mapped once, the same episodes, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import fsl_core as fsl
from fsl_core.data import features
from fsl_core.data.features import FeatureEpisodes, FrozenBackbone, embed_pool

SHAPE = (3, 8, 8)


class Net(nn.Module):
    """conv - BatchNorm - mean; it counts the items that it is given."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.norm.running_mean.normal_()
        self.feature_dim, self.seen = 6, []

    def forward(self, x):
        self.seen.append(len(x))
        return self.norm(self.conv(x)).relu().mean((2, 3))


class Pictures(fsl.PooledEpisodes):
    name = "pictures"

    def __init__(self, n_way=3, n_shot=2, n_query=2, augment="none", seed=0):
        super().__init__(n_way, n_shot, n_query, input_shape=SHAPE, augment=augment)
        self.seed = seed

    def load(self, split):
        generator = np.random.default_rng([self.seed, len(split)])
        return fsl.LabelledPool.from_classes(
            (f"{split}{c}", generator.integers(0, 255, (17 + c, *SHAPE), np.uint8))
            for c in range(5)
        )


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FSL_CACHE", str(tmp_path / "cache"))


def frozen(seed: int = 0, precision="float32"):
    backbone = FrozenBackbone(Net(seed), SHAPE, precision)
    backbone.backbone.seen.clear()
    return backbone


def test_episodes_are_those_of_the_source_with_features_for_items():
    backbone, source = frozen(), Pictures()
    mapped = FeatureEpisodes(source, backbone)
    assert mapped.task.input_shape == (6,)
    assert mapped.item_task.input_shape == SHAPE
    pictures, found = (s.batch("test", range(3), seed=4) for s in (source, mapped))
    for part in ("support", "query"):
        x, y = getattr(pictures, part)
        expected = backbone.embed(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        torch.testing.assert_close(getattr(found, part).x, expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(getattr(found, part).y, y)
    assert mapped.known_set("test", 30, 4) == source.hash_of_set("test", 30, 4)


def test_a_pool_is_mapped_once_by_any_number_of_processes():
    first = frozen()
    FeatureEpisodes(Pictures(), first).batch("test", range(2), 0)
    assert sum(first.backbone.seen) == sum(range(17, 22))
    second = frozen()
    again = FeatureEpisodes(Pictures(), second)
    again.batch("test", range(2), 0)
    assert second.backbone.seen == []
    again.batch("train", range(2), 0)
    assert sum(second.backbone.seen) == sum(range(17, 22))


@pytest.mark.parametrize(
    ("source", "backbone"),
    [(Pictures(seed=1), {}), (Pictures(), {"seed": 1}), (Pictures(), {"precision": "half"})],
)
def test_other_pictures_weights_or_precision_are_mapped_again(source, backbone):
    FeatureEpisodes(Pictures(), frozen()).pool("test")
    other = frozen(**backbone)
    pool = FeatureEpisodes(source, other).pool("test")
    assert other.backbone.seen
    assert pool.digest != FeatureEpisodes(Pictures(), frozen()).pool("test").digest


def test_preprocessing_is_part_of_what_features_are_kept_under():
    nets = [Net(), Net()]
    still = [0.0] * 3, [1.0] * 3
    brighter = [0.0] * 3, [0.5] * 3
    digests = {
        FrozenBackbone(
            fsl.PretrainedBackbone(SHAPE, net, fsl.Preprocessing(8, *numbers), frozen=True),
            SHAPE,
            "float32",
        ).digest
        for net, numbers in zip(nets, (still, brighter), strict=True)
    }
    assert len(digests) == 2


def test_the_split_is_known_by_its_items_and_weights():
    """Not by the features, which are rounded otherwise on another machine."""
    contents = FeatureEpisodes(Pictures(), frozen()).inspect("test")
    assert contents.classes == Pictures().inspect("test").classes
    assert contents.digest == FeatureEpisodes(Pictures(), frozen()).inspect("test").digest
    assert contents.digest != Pictures().inspect("test").digest


def test_half_precision_is_near_and_takes_half_the_room():
    pool = Pictures().pool("test")
    exact, half = (embed_pool(pool, frozen(precision=p), "x", p) for p in ("float32", "half"))
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), exact, rtol=0.05, atol=0.02)


def test_features_that_are_not_finite_are_refused():
    backbone = frozen()
    backbone.backbone.conv.weight.fill_(torch.inf)
    with pytest.raises(fsl.DataError, match=r"features of split 'test': not finite, at item 0"):
        FeatureEpisodes(Pictures(), backbone).pool("test")


def test_it_is_in_evaluation_mode_and_in_no_checkpoint():
    backbone = frozen().train()
    assert not backbone.backbone.training
    assert not list(backbone.parameters())
    assert list(backbone.state_dict()) == ["weights_digest"]
    assert copy.deepcopy(backbone).backbone is backbone.backbone
    assert backbone.double().backbone.conv.weight.dtype == torch.float64


def test_weights_of_another_backbone_are_refused():
    frozen().load_state_dict(frozen().state_dict())
    with pytest.raises(RuntimeError, match=r"made with other weights of the frozen backbone \("):
        frozen(1).load_state_dict(frozen().state_dict())


@pytest.mark.parametrize(
    "norm", [fsl.Norm("transductive", 6), nn.BatchNorm2d(6, track_running_stats=False)]
)
def test_a_batch_norm_in_training_mode_is_refused(norm):
    net = Net()
    net.norm = norm
    with pytest.raises(ValueError, match=r"frozen: features of an item depend on the items beside"):
        FrozenBackbone(net, SHAPE, "float32")


def test_items_that_cannot_be_told_from_features_are_refused():
    net = nn.Linear(4, 4)
    net.feature_dim = 4
    with pytest.raises(ValueError, match=r"frozen: items and features both of length 4"):
        FrozenBackbone(net, (4,), "float32")


def test_augmentation_and_sources_without_pools_are_refused(toy_plugins):
    with pytest.raises(ValueError, match=r"frozen: .* `augment` changes it .*\. augment: none"):
        FeatureEpisodes(Pictures(augment="flip"), frozen())
    blobs = toy_plugins.catalogue.get("episodes", "blobs").factory(n_way=3)
    with pytest.raises(ValueError, match=r"frozen: episodes 'blobs' draw new items each time"):
        FeatureEpisodes(blobs, frozen())


def test_a_process_that_is_stopped_loses_one_part_at_most(monkeypatch, tmp_path):
    monkeypatch.setattr(features, "PART", 32)
    stopped = frozen()
    own, calls = stopped.embed, []

    def embed(x):
        calls.append(len(x))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return own(x)

    stopped.embed = embed
    with pytest.raises(KeyboardInterrupt):
        FeatureEpisodes(Pictures(), stopped).pool("test")
    after = frozen()
    found = FeatureEpisodes(Pictures(), after).pool("test")
    assert sum(after.backbone.seen) == sum(range(17, 22)) - 64
    whole = after.embed(Pictures().pool("test").inputs(np.arange(len(found))))
    torch.testing.assert_close(found.items, whole, rtol=1e-5, atol=1e-6)
    assert not list((tmp_path / "cache").rglob("*part*"))


def test_items_are_mapped_in_batches_of_one_size(monkeypatch):
    monkeypatch.setattr(features, "TOGETHER", 16)
    backbone = frozen()
    embed_pool(Pictures().pool("test"), backbone, "x", "key")
    assert backbone.backbone.seen == [16] * 5 + [15]


def test_an_item_may_be_told_by_its_file(tmp_path):
    file = Path(tmp_path) / "one.png"
    Image.new("RGB", (20, 10), (255, 0, 0)).save(file)
    picture = FeatureEpisodes(Pictures(), frozen()).decode(file)
    assert picture.shape == SHAPE


def test_the_mean_of_the_training_classes_is_in_the_checkpoint_and_of_no_further_source():
    backbone = frozen()
    backbone.want_mean(lambda features: 2 * features)
    source = Pictures()
    mapped = FeatureEpisodes(source, backbone)
    assert not backbone.training_mean.any()
    mapped.check_splits({"test": mapped.task})
    pool = source.pool("train")
    places = np.concatenate([o + np.arange(17 + c) for c, o in enumerate(pool.offsets)])
    classes = np.repeat(range(5), pool.counts)
    few = [p for p, c in zip(places, classes, strict=True) if p - pool.offsets[c] < 20]
    expected = 2 * backbone.embed(pool.inputs(np.array(few))).mean(0)
    torch.testing.assert_close(backbone.training_mean, expected, rtol=1e-5, atol=1e-6)
    FeatureEpisodes(Pictures(seed=5), backbone, further=True).check_splits({"test": mapped.task})
    torch.testing.assert_close(backbone.training_mean, expected, rtol=1e-5, atol=1e-6)
    other = frozen()
    other.want_mean(lambda features: features)
    other.load_state_dict(backbone.state_dict())
    assert torch.equal(other.training_mean, backbone.training_mean)

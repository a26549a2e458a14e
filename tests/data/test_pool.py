from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

import fsl_core as fsl
from fsl_core.data.cache import cached_tensors, tensors_digest
from fsl_core.errors import DataError, ShapeError

SIZES = {"train": [9] * 30, "validation": [5, 8, 20, 300, 7], "test": [6] * 4}


def numbered(sizes: list[int]) -> fsl.LabelledPool:
    """Images whose pixels say which they are: (class, item // 256, item % 256, 255)."""

    def images(c: int, n: int) -> np.ndarray:
        item = np.arange(n)
        return (
            np.stack([np.full(n, c), item // 256, item % 256, np.full(n, 255)], 1)
            .astype(np.uint8)
            .reshape(n, 1, 2, 2)
        )

    return fsl.LabelledPool.from_classes((f"class{c}", images(c, n)) for c, n in enumerate(sizes))


class Numbered(fsl.PooledEpisodes):
    name = "numbered"

    def __init__(self, n_way: int = 5, n_shot: int = 2, n_query: int = 3):
        super().__init__(n_way, n_shot, n_query, input_shape=(1, 2, 2))
        self.loaded: list[str] = []

    def load(self, split: fsl.Split) -> fsl.LabelledPool:
        self.loaded.append(split)
        return numbered(SIZES[split])


def identities(x: torch.Tensor) -> list[tuple[int, int]]:
    """(class, item) of each image of one episode."""
    c, high, low, white = (x * 255).round().long().flatten(1).T
    assert (white == 255).all()
    return list(zip(c.tolist(), (256 * high + low).tolist(), strict=True))


@pytest.fixture
def source() -> Numbered:
    return Numbered()


def equal(a: fsl.Episode, b: fsl.Episode) -> bool:
    return all(
        torch.equal(s, t)
        for s, t in zip([*a.support, *a.query, a.id], [*b.support, *b.query, b.id], strict=True)
    )


def test_shapes_types_and_range(source: Numbered):
    batch = source.batch("train", [4, 9], seed=0)
    assert batch.support.x.shape == (2, 10, 1, 2, 2)
    assert batch.query.x.shape == (2, 15, 1, 2, 2)
    assert batch.support.x.dtype == batch.query.x.dtype == torch.float32
    assert batch.support.y.dtype == batch.id.dtype == torch.int64
    assert batch.id.tolist() == [4, 9]
    assert batch.support.x.min() >= 0
    assert batch.query.x.max() == 1
    assert source.task == fsl.TaskShape("classification", 5, 2, 3, (1, 2, 2), 5)


@pytest.mark.parametrize("split", SIZES)
def test_an_episode_is_sorted_by_label_with_different_classes_and_images(split: fsl.Split):
    source = Numbered(n_way=4)
    for episode in source.batch(split, range(40), seed=1).unbatch():
        support, query = identities(episode.support.x), identities(episode.query.x)
        assert episode.support.y.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
        assert episode.query.y.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
        class_of_label = [c for c, _ in support[::2]]
        assert len(set(class_of_label)) == 4
        assert [c for c, _ in support] == np.repeat(class_of_label, 2).tolist()
        assert [c for c, _ in query] == np.repeat(class_of_label, 3).tolist()
        assert len({*support, *query}) == 20
        assert all(item < SIZES[split][c] for c, item in [*support, *query])


def test_an_episode_is_the_same_in_any_batch_and_order(source: Numbered):
    one_by_one = [source.batch("train", [i], seed=5).unbatch()[0] for i in range(12)]
    assert all(map(equal, source.batch("train", range(12), seed=5).unbatch(), one_by_one))
    assert all(
        map(
            equal,
            source.batch("train", [7, 3, 7], seed=5).unbatch(),
            [one_by_one[i] for i in (7, 3, 7)],
        )
    )


def test_an_episode_does_not_depend_on_global_random_state(source: Numbered):
    torch.manual_seed(0)
    first = source.batch("train", range(3), seed=5)
    torch.manual_seed(1)
    np.random.seed(2)
    assert equal(first, Numbered().batch("train", range(3), seed=5))
    assert torch.initial_seed() == 1


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_an_episode_is_the_same_in_another_process(source: Numbered, hash_seed: str):
    code = (
        f"import importlib.util as u; s = u.spec_from_file_location('t', {__file__!r}); m = u.module_from_spec(s); "
        "s.loader.exec_module(m); x = m.Numbered(); print(x.fingerprint(x.batch('validation', range(20), 3)).hex())"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert found == source.fingerprint(source.batch("validation", range(20), seed=3)).hex()


def test_the_episodes_of_a_seed_are_pinned(source: Numbered):
    """A change here changes every frozen evaluation set: results of before and after cannot be
    compared."""
    episode = source.batch("validation", [17], seed=3).unbatch()[0]
    assert identities(episode.support.x) == [
        (4, 1),
        (4, 6),
        (3, 111),
        (3, 82),
        (0, 4),
        (0, 1),
        (2, 12),
        (2, 9),
        (1, 6),
        (1, 4),
    ]
    assert identities(episode.query.x)[:3] == [(4, 3), (4, 2), (4, 5)]


def test_other_seeds_splits_and_indices_give_other_episodes(source: Numbered):
    seen = Counter(
        str(identities(e.support.x))
        for s in range(5)
        for e in source.batch("train", range(50), seed=s).unbatch()
    )
    assert max(seen.values()) == 1
    swapped = Numbered()
    swapped.load = lambda split: numbered(SIZES["train"])  # the same pool for every split
    assert not equal(swapped.batch("train", [0], 0), swapped.batch("test", [0], 0))


def test_more_queries_leave_the_support_set_as_it_was(source: Numbered):
    wide = source.batch("train", range(4), seed=0, task=replace(source.task, n_query=7))
    narrow = source.batch("train", range(4), seed=0)
    assert torch.equal(wide.support.x, narrow.support.x)
    assert wide.query.x.shape[1] == 35


def test_another_shape_on_request(source: Numbered):
    batch = source.batch(
        "train",
        [0],
        seed=0,
        task=replace(source.task, n_way=20, n_shot=1, n_query=1, output_dim=20),
    )
    assert batch.support.y.tolist() == batch.query.y.tolist() == [list(range(20))]


def test_classes_and_images_are_drawn_evenly():
    source = Numbered(n_way=3, n_shot=1, n_query=1)
    drawn = [identities(e.support.x) for e in source.batch("train", range(3000), seed=0).unbatch()]
    for column in range(3):  # as label 0, 1 and 2
        times = Counter(c for c, _ in (episode[column] for episode in drawn))
        assert len(times) == 30
        assert max(abs(n - 100) for n in times.values()) < 5 * 10
    items = Counter(item for episode in drawn for _, item in episode)
    assert max(abs(n - 1000) for n in items.values()) < 5 * np.sqrt(1000)


def test_a_split_is_loaded_once_and_only_when_needed(source: Numbered):
    assert source.loaded == []
    source.check("train")
    source.batch("train", [0], 0)
    source.batch("test", [0], 0, replace(source.task, n_way=2))
    assert source.loaded == ["train", "test"]


def test_what_a_split_is_made_of(source: Numbered):
    found, pool = source.inspect("test"), source.pool("test")
    assert found.classes == dict(zip(pool.classes, pool.counts, strict=True))
    assert found.digest == pool.digest
    assert (found.files, found.passed_over) == ({}, ())
    assert source.inspect("test", digest=False).digest is None


def test_all_splits_are_checked_together(source: Numbered):
    wide = replace(source.task, n_way=40)
    with pytest.raises(DataError) as caught:
        source.check_splits({"train": wide, "validation": source.task, "test": wide})
    told = [line.partition(" has ")[0] for line in str(caught.value).splitlines()]
    assert told == [f"episodes 'numbered': split {split!r}" for split in ("train", "test")]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            PermissionError(13, "Permission denied", "x/\x1b.png"),
            r"x/\\x1b\.png: Permission denied\. ",
        ),
        (OSError("a disk that fails"), r"a disk that fails\. Files and folders that can be read"),
    ],
)
def test_what_the_system_refuses_is_named(source: Numbered, monkeypatch, error, message: str):
    def refuse(self, split):
        raise error

    monkeypatch.setattr(Numbered, "load", refuse)
    with pytest.raises(DataError, match=rf"^episodes 'numbered': {message}"):
        source.check("train")


def test_too_few_classes(source: Numbered):
    message = r"^episodes 'numbered': split 'test' has 4 classes\. n_way: 5 needs at least 5$"
    with pytest.raises(DataError, match=message):
        source.check("test")
    with pytest.raises(DataError, match=message):
        source.batch("test", [0], 0)


def test_too_few_images_names_the_class():
    source = Numbered(n_shot=2, n_query=4)
    message = r"split 'validation', class 'class0' has 5 images\. n_shot: 2 and n_query: 4 need at least 6$"
    with pytest.raises(DataError, match=message):
        source.check("validation")
    with pytest.raises(DataError, match=message):
        source.batch("validation", [0], 0)
    source.check("validation", replace(source.task, n_query=3))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_episodes_are_the_same_on_the_gpu(source: Numbered):
    there = Numbered().to("cuda").batch("train", range(8), 0)
    assert there.support.x.is_cuda
    assert there.query.y.is_cuda
    assert source.fingerprint(there) == source.fingerprint(source.batch("train", range(8), 0))


def test_to_moves_what_is_loaded_and_what_comes_later(source: Numbered):
    source.check("train")
    assert source.to("meta").pool("train").images.is_meta
    assert source.pool("test").images.is_meta


def text(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


class TestLabelledPool:
    def test_class_names_of_any_bytes_are_kept(self, tmp_path, monkeypatch):
        monkeypatch.setenv("FSL_CACHE", str(tmp_path))
        images = torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
        names = ("caf\udce9", "caf\u00e9", "\ud800")
        made = fsl.LabelledPool.from_classes((name, images) for name in names)
        for _ in range(2):
            kept = fsl.LabelledPool.cached("names", lambda: made)
            assert kept.classes == names
            assert kept.digest == made.digest

    def test_offsets_items_and_selection(self):
        pool = numbered([2, 3, 4])
        assert pool.offsets.tolist() == [0, 2, 5]
        assert [(name, len(images)) for name, images in pool.items()] == [
            ("class0", 2),
            ("class1", 3),
            ("class2", 4),
        ]
        chosen = pool.select(["class2", "class0"])
        assert chosen.classes == ("class2", "class0")
        assert chosen.counts == (4, 2)
        assert torch.equal(chosen.images, torch.cat([pool.images[5:], pool.images[:2]]))
        with pytest.raises(KeyError, match="class7"):
            pool.select(["class7"])

    def test_digest_sees_images_names_and_counts(self):
        pool = numbered([2, 3])
        others = [
            replace(pool, images=pool.images + 1),
            replace(pool, classes=("class0", "other")),
            replace(pool, counts=(3, 2)),
        ]
        assert len({p.digest for p in (pool, *others)}) == 4
        assert numbered([2, 3]).digest == pool.digest

    def test_cached_is_the_same_pool_without_building_it_again(
        self, tmp_path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("FSL_CACHE", str(tmp_path))
        pool = replace(numbered([2, 3]), classes=("one\nline", "zwei/ü"))
        assert fsl.LabelledPool.cached("k", lambda: pool).digest == pool.digest
        again = fsl.LabelledPool.cached("k", lambda: pytest.fail("built again"))
        assert again.digest == pool.digest
        assert again.classes == pool.classes

    @pytest.mark.parametrize(
        "change",
        [
            {"images": None},
            {"counts": None},
            {"classes": None},
            {"more": torch.zeros(1)},
            {"images": torch.zeros(5, 1, 2, 2)},
            {"images": torch.zeros(5, 4, dtype=torch.uint8)},
            {"images": torch.zeros(6, 1, 2, 2, dtype=torch.uint8)},
            {"counts": torch.tensor([2.0, 3.0])},
            {"counts": torch.tensor([2, 3], dtype=torch.int32)},
            {"counts": torch.tensor([-1, 6])},
            {"counts": torch.tensor([[2, 3]])},
            {"counts": torch.tensor([2, 2, 1])},
            {"classes": text(b'["a", "a"]')},
            {"classes": text(b'["a", "b"')},
            {"classes": text(b'["a", 2]')},
            {"classes": text(b'{"a": 2, "b": 3}')},
            {"classes": text(b"a\0b\0")},
            {"classes": text(b'["\xff", "b"]')},
            {"classes": text(b'["a", "b"]').float()},
        ],
    )
    def test_a_kept_pool_of_wrong_parts_is_built_again(
        self, tmp_path, monkeypatch: pytest.MonkeyPatch, caplog, change: dict
    ):
        monkeypatch.setenv("FSL_CACHE", str(tmp_path))
        pool = numbered([2, 3])
        parts = {n: t for n, t in {**pool._tensors, **change}.items() if t is not None}
        cached_tensors("pool-k", lambda: parts)
        assert fsl.LabelledPool.cached("k", lambda: pool).digest == pool.digest
        (line,) = (record.getMessage() for record in caplog.records)
        assert line.startswith(f"{tmp_path / 'decoded' / 'pool-k.safetensors'}: not used (")
        again = fsl.LabelledPool.cached("k", lambda: pytest.fail("built again"))
        assert again.digest == pool.digest == tensors_digest(again._tensors)

    def test_from_classes_joins_them_in_order(self):
        items = [
            ("a", torch.ones(2, 1, 2, 2, dtype=torch.uint8)),
            ("b", np.zeros((1, 1, 2, 2), "u1")),
        ]
        pool = fsl.LabelledPool.from_classes(items)
        assert pool.counts == (2, 1)
        assert pool.images[:, 0, 0, 0].tolist() == [1, 1, 0]
        assert fsl.LabelledPool.from_classes([]).classes == ()

    def test_wrong_parts_are_refused(self):
        pool = numbered([2, 3])
        with pytest.raises(
            ShapeError,
            match=r"shape \(5, 1, 2, 2\), torch.float32\. Expected \(n, channels, height, width\)",
        ):
            replace(pool, images=pool.images.float())
        with pytest.raises(ShapeError, match="5 images, 2 classes, 2 counts with sum 4"):
            replace(pool, counts=(2, 2))
        with pytest.raises(DataError, match="class 'a' is there twice"):
            replace(pool, classes=("a", "a"))

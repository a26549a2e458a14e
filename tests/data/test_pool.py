from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

import fsl_core as fsl
from fsl_core.data.cache import cached_tensors, tensors_digest
from fsl_core.data.decoding import Standardised, decode_numbers
from fsl_core.data.mapped import MappedArray
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
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
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
    message = r"split 'validation', class 'class0' has 5 items\. n_shot: 2 and n_query: 4 need at least 6$"
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
    assert source.to("meta").pool("train").items.is_meta
    assert source.pool("test").items.is_meta


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
        assert [(name, len(images)) for name, images in pool.by_class()] == [
            ("class0", 2),
            ("class1", 3),
            ("class2", 4),
        ]
        chosen = pool.select(["class2", "class0"])
        assert chosen.classes == ("class2", "class0")
        assert chosen.counts == (4, 2)
        assert torch.equal(chosen.items, torch.cat([pool.items[5:], pool.items[:2]]))
        with pytest.raises(KeyError, match="class7"):
            pool.select(["class7"])

    def test_digest_sees_images_names_and_counts(self):
        pool = numbered([2, 3])
        others = [
            replace(pool, items=pool.items + 1),
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
        assert pool.items[:, 0, 0, 0].tolist() == [1, 1, 0]
        assert fsl.LabelledPool.from_classes([]).classes == ()

    def test_wrong_parts_are_refused(self):
        pool = numbered([2, 3])
        with pytest.raises(ShapeError, match="items of torch.complex64. uint8 levels, whole num"):
            replace(pool, items=pool.items.to(torch.complex64))
        with pytest.raises(ShapeError, match=r"a single number. Expected \(n, \*item_shape\)"):
            replace(pool, items=torch.tensor(5))
        with pytest.raises(ShapeError, match="5 items, 2 classes, 2 counts with sum 4"):
            replace(pool, counts=(2, 2))
        with pytest.raises(DataError, match="class 'a' is there twice"):
            replace(pool, classes=("a", "a"))


class Kinds(fsl.PooledEpisodes):
    """Items of any kind: those of a class are all 10 * class + item, in the type that is asked."""

    name = "kinds"

    def __init__(self, dtype: torch.dtype, shape: tuple[int, ...], **options):
        super().__init__(3, 1, 2, input_shape=shape, **options)
        self.dtype, self.shape = dtype, shape

    def load(self, split: fsl.Split) -> fsl.LabelledPool:
        def items(c: int) -> torch.Tensor:
            numbers = 10 * c + torch.arange(4.0)
            return numbers.view(-1, *[1] * len(self.shape)).expand(4, *self.shape).to(self.dtype)

        return fsl.LabelledPool.from_classes((f"class{c}", items(c)) for c in range(5))


class TestItemsOfAnyKind:
    @pytest.mark.parametrize("shape", [(), (7,), (5, 3), (2, 3, 3, 3)])
    @pytest.mark.parametrize(
        ("dtype", "decoded"),
        [
            (torch.float32, torch.float32),
            (torch.float64, torch.float32),
            (torch.float16, torch.float32),
            (torch.bfloat16, torch.float32),
            (torch.int64, torch.int64),
            (torch.int16, torch.int64),
            (torch.uint8, torch.float32),
        ],
    )
    def test_they_are_drawn_as_they_were_given(self, dtype, decoded, shape):
        source = Kinds(dtype, shape)
        batch = source.batch("train", range(6), 0)
        assert batch.support.x.shape == (6, 3, *shape)
        assert batch.query.x.shape == (6, 6, *shape)
        assert batch.support.x.dtype == decoded
        values = torch.cat([batch.support.x, batch.query.x], 1).reshape(6, 9, -1)
        if dtype == torch.uint8:
            values = values * 255
        assert (values == values[..., :1]).all()
        classes = (values[..., 0].double() / 10 + 1e-3).long()
        assert torch.equal(classes[:, 3:], classes[:, :3].repeat_interleave(2, 1))
        items = (values[..., 0].double() - 10 * classes).round()
        assert items.min() >= 0
        assert items.max() == 3

    def test_rows_in_another_order_are_the_same_items(self):
        sorted_pool = Kinds(torch.float32, (2,)).pool("train")
        order = np.random.default_rng(0).permutation(20)
        scattered = torch.empty(20, 2)
        scattered[torch.from_numpy(order)] = sorted_pool.items
        pool = replace(sorted_pool, items=scattered, order=order)
        assert len(pool) == 20
        assert torch.equal(pool.inputs(np.arange(20)), sorted_pool.items)
        assert pool.digest == sorted_pool.digest
        for (name, found), (wanted, expected) in zip(
            pool.by_class(), sorted_pool.by_class(), strict=True
        ):
            assert name == wanted
            assert torch.equal(found, expected)
        chosen = pool.select(["class3", "class1"])
        assert chosen.items[:, 0].tolist() == [30, 31, 32, 33, 10, 11, 12, 13]

    def test_another_decoding_is_another_digest(self):
        pool = Kinds(torch.float32, (2,)).pool("train")
        twice = Standardised(torch.zeros(2), torch.full((2,), 0.5))
        decoded = replace(pool, decode=twice)
        assert torch.equal(decoded.inputs(np.arange(20)), 2 * pool.items)
        others = [decoded, replace(pool, decode=decode_numbers), pool]
        assert len({p.digest for p in others}) == 3
        assert torch.equal(
            decoded.select(["class4"]).inputs(np.arange(1)), torch.full((1, 2), 80.0)
        )

    def test_a_list_of_items_becomes_one_array(self):
        rows = [np.full(3, i, np.float32) for i in range(4)]
        pool = fsl.LabelledPool.from_classes([("a", rows), ("b", np.stack(rows))])
        assert torch.equal(pool.items[:4], pool.items[4:])

    @pytest.mark.parametrize(
        ("items", "message"),
        [
            (
                [torch.zeros(3), torch.zeros(4)],
                r"class 'b', item 1: shape \(4,\), and item 0 of \(3,",
            ),
            (
                torch.tensor([[0.0] * 3, [1, float("nan"), 0]]),
                "class 'b', item 1: not a finite num",
            ),
            (np.array([[1, 2, 3], [1, 2, np.inf]], "f4"), "class 'b', item 1: not a finite number"),
            (
                np.zeros((2, 4), "f4"),
                r"class 'b': items of \(4,\) torch.float32. \(3,\) torch.float",
            ),
            (
                np.zeros((2, 3)),
                r"items of \(3,\) torch.float64. \(3,\) torch.float32, as in the cla",
            ),
            (np.array([["a", "b", "c"]]), "class 'b': items of type <U1. Whole numbers or floats"),
            ([], r"class 'b': an empty list. An array \(0, \*item_shape\)"),
        ],
    )
    def test_a_wrong_item_is_named(self, items, message):
        with pytest.raises(DataError if "finite" in message else ShapeError, match=message):
            fsl.LabelledPool.from_classes([("a", np.zeros((2, 3), "f4")), ("b", items)])

    def test_another_shape_than_the_task_says_is_refused(self):
        source = Kinds(torch.float32, (7,))
        source.shape = (8,)
        with pytest.raises(
            ShapeError, match=r"split 'train': items of shape \(8,\). \(7,\), as its"
        ):
            source.check("train")

    def test_pictures_alone_are_augmented(self):
        with pytest.raises(
            ValueError, match=r"augment: 'flip' for items of shape \(7,\). Pictures"
        ):
            Kinds(torch.float32, (7,), augment="flip")


def on_disk(path, array: np.ndarray) -> MappedArray:
    path.write_bytes(b"head" * 4 + array.tobytes())
    return MappedArray(path, torch.from_numpy(array[:0]).dtype, array.shape, 16)


class TestMappedPools:
    def test_episodes_are_those_of_the_pool_in_memory(self, tmp_path, monkeypatch):
        source = Kinds(torch.float32, (6,))
        pool = source.pool("train")
        mapped = on_disk(tmp_path / "items", pool.items.numpy())
        there = Kinds(torch.float32, (6,))
        monkeypatch.setattr(
            there, "load", lambda split: replace(pool, items=mapped.tensor, mapped=mapped)
        )
        here, found = (s.batch("train", range(9), 2) for s in (source, there))
        assert equal(here, found)
        assert there.pool("train").digest == pool.digest

    def test_items_stay_in_the_file_when_the_source_moves(self, tmp_path):
        mapped = on_disk(tmp_path / "items", np.ones((4, 2), np.float32))
        pool = fsl.LabelledPool(mapped.tensor, ("a", "b"), (2, 2), mapped=mapped)
        assert pool.to("meta") is pool

    @pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no /proc")
    def test_what_is_read_is_not_kept(self, tmp_path):
        """Reading all of 256 MiB, in pieces, takes hardly more memory than a piece."""
        rows = 1 << 12
        with (tmp_path / "items").open("wb") as file:
            file.truncate(rows << 16)
        mapped = MappedArray(tmp_path / "items", torch.uint8, (rows, 1 << 16), 0)
        pool = fsl.LabelledPool(mapped.tensor, ("a",), (rows,), mapped=mapped)
        before, most = resident(), 0
        for places in np.arange(rows).reshape(-1, 64):
            pool.take(places)
            most = max(most, resident() - before)
        assert most < 40 << 20

    def test_a_file_that_shrinks_is_an_error_and_not_a_crash(self, tmp_path):
        mapped = on_disk(tmp_path / "items", np.ones((400, 20), np.float32))
        os.truncate(tmp_path / "items", 1000)
        message = r"items: row 300 cannot be read any more\. A file that does not change during"
        with pytest.raises(DataError, match=message):
            mapped.take(np.array([3, 300]))


def resident() -> int:
    """Bytes of this process in memory, those of files included."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

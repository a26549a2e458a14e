from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits, load_wine
from sklearn.preprocessing import StandardScaler

import fsl_core as fsl
from fsl_core.builtin.arrays import Arrays
from fsl_core.data.arrays import ArrayEpisodes
from fsl_core.data.sharing import split_by_name
from fsl_core.testing import EpisodesContract


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSL_CACHE", str(tmp_path / "cache"))


N = 360
SPLITS: tuple[fsl.Split, ...] = ("train", "validation", "test")


def numbered(dtype: str = "f4", shape: tuple[int, ...] = (6,)) -> tuple[np.ndarray, np.ndarray]:
    """Items that all differ, scattered over 12 classes."""
    random = np.random.default_rng(0)
    x = random.permutation(N * 5)[:N].astype(dtype)
    noise = random.integers(0, 9, (N, *shape)).astype(dtype)
    noise.reshape(N, -1)[:, 0] = x
    return noise, random.permutation(np.arange(N) % 12)


def saved(folder: Path, kind: str, **arrays: np.ndarray) -> Path:
    """The arrays in a file of one kind."""
    folder.mkdir(exist_ok=True)
    if kind == "safetensors":
        tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        save_file(tensors, folder / "a.safetensors")
    elif kind == "npy":
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        return folder / "x.npy"
    else:
        save = np.savez_compressed if kind == "compressed" else np.savez
        save(folder / "a.npz", **arrays)
        return folder / "a.npz"
    return folder / "a.safetensors"


def small(file: Path, **options) -> Arrays:
    if file.suffix == ".npy":
        options = {"labels": file.parent / "y.npy", **options}
        if (file.parent / "split.npy").exists():
            options["splits"] = file.parent / "split.npy"
    return Arrays(file, **{"n_way": 2, "n_shot": 1, "n_query": 2, "split_seed": 8, **options})


class InMemory(EpisodesContract):
    options: dict

    def make(self):
        x, y = numbered(*self.of)
        sizes = {"n_way": 2, "n_shot": 1, "n_query": 2, "split_seed": 8}
        return ArrayEpisodes(x, y, **sizes, **self.options)


class TestVectors(InMemory):
    of, options = ("f4", (6,)), {}


class TestStandardisedSignals(InMemory):
    of, options = ("f8", (5, 3)), {"standardise": True}


class TestTokenIds(InMemory):
    of, options = ("i8", (6,)), {"split_by": "items", "fractions": (1, 1, 1)}


class TestSingleNumbers(InMemory):
    of, options = ("f4", ()), {"split_by": "items", "fractions": (1, 1, 1)}


class TestPictures(InMemory):
    of, options = ("u1", (3, 4, 4)), {"split_by": "items", "fractions": (1, 1, 1)}


class TestMappedFile(EpisodesContract):
    @pytest.fixture(autouse=True)
    def _file(self, tmp_path_factory):
        type(self).folder = tmp_path_factory.mktemp("mapped")

    def make(self):
        x, y = numbered("f4", (4, 2))
        return small(saved(self.folder, "npz", x=x, y=y), map_above=0)


@pytest.mark.parametrize("map_above", [2, 0])
@pytest.mark.parametrize("kind", ["npz", "npy", "safetensors"])
@pytest.mark.parametrize("dtype", ["f4", "f2", "i8", "u1", "i4"])
def test_every_kind_of_file_gives_the_episodes_of_its_arrays(tmp_path, kind, dtype, map_above):
    x, y = numbered(dtype, (3, 2))
    split = np.random.default_rng(1).integers(0, 3, N)
    source = small(saved(tmp_path / kind, kind, x=x, y=y, split=split), map_above=map_above)
    here = ArrayEpisodes(x, y, split, n_way=2, n_shot=1, n_query=2)
    assert (source.pool("train").mapped is not None) == (map_above == 0)
    for name in SPLITS:
        found, expected = (s.batch(name, range(4), 0) for s in (source, here))
        assert source.fingerprint(found) == here.fingerprint(expected)
        assert source.pool(name).classes == here.pool(name).classes
        rows = np.flatnonzero(split == SPLITS.index(name))
        assert source.inspect(name).classes == {
            str(c): int((y[rows] == c).sum()) for c in np.unique(y[rows])
        }
    assert source.vocabulary == here.vocabulary == (int(x.max()) + 1 if dtype[0] == "i" else None)


def test_names_of_splits_and_classes(tmp_path):
    x, y = numbered()
    names = np.array([f"kind {c}" for c in range(12)])
    split = np.array(["val", "Train", "meta-test"])[np.arange(N) % 3]
    file = saved(tmp_path / "n", "npz", x=x, y=names[y], split=split)
    numbers = saved(tmp_path / "m", "npz", x=x, y=y, split=split, classes=names)
    for source in (small(file), small(numbers)):
        assert set(source.pool("train").classes) == set(names)
        assert len(source.pool("validation")) == 120
    again = small(file), small(numbers)
    batches = [s.batch("train", range(3), 0) for s in again]
    assert small(numbers).pool("train").classes == tuple(names)  # by number
    assert small(file).pool("train").classes == tuple(sorted(names))
    assert all(batch.support.x.shape == (3, 2, 6) for batch in batches)


def test_classes_or_items_are_shared_out(tmp_path):
    x, y = numbered()
    file = saved(tmp_path / "a", "npz", x=x, y=y)
    by_class = small(file, split_seed=0)
    for split in SPLITS:
        expected = {str(c) for c in range(12) if split_by_name(str(c), (6, 2, 2), 0) == split}
        assert set(by_class.pool(split).classes) == expected
    by_item = small(file, split_by="items")
    assert all(len(by_item.pool(split).classes) == 12 for split in SPLITS)
    assert sum(len(by_item.pool(split)) for split in SPLITS) == N
    numbers = [set(by_item.pool(split).inputs(np.arange(20))[:, 0].tolist()) for split in SPLITS]
    assert not numbers[0] & numbers[1] | numbers[0] & numbers[2] | numbers[1] & numbers[2]
    sizes = [len(by_item.pool(split)) for split in SPLITS]
    assert all(abs(n - share * N) < 40 for n, share in zip(sizes, (0.6, 0.2, 0.2), strict=True))


def test_too_few_classes_to_share_out_says_what_would_do(tmp_path):
    x, y = numbered()
    source = small(saved(tmp_path / "a", "npz", x=x, y=y), n_way=5)
    with pytest.raises(
        fsl.DataError,
        match=r"a\.npz: x: fractions .*\. At least 15 classes, fewer ways, or `split_",
    ):
        source.check_splits(dict.fromkeys(SPLITS, source.task))
    items = small(
        saved(tmp_path / "a", "npz", x=x, y=y), n_way=5, split_by="items", fractions=(1, 1, 1)
    )
    items.check_splits({"train": items.task, "test": items.task})


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize(
    ("shape", "axes"), [((6,), 0), ((5, 3), (0, 1)), ((3, 4, 2), (0, 2, 3)), ((), 0)]
)
def test_standardisation_is_that_of_the_training_split(tmp_path, shape, axes, mapped):
    x, y = numbered("f8", shape)
    x = 1e6 + x  # far from zero
    x.reshape(N, -1)[:, -1] = 1e6 if shape == (6,) else x.reshape(N, -1)[:, -1]
    split = np.arange(N) % 3
    file = saved(tmp_path / "a", "npz", x=x, y=y, split=split)
    source = small(file, standardise=True, map_above=0 if mapped else 2)
    train = x[split == 0]
    mean, deviation = train.mean(axes, keepdims=True), train.std(axes, keepdims=True)
    for k, name in enumerate(SPLITS):
        own = x[split == k]
        expected = (own - mean) / np.where(deviation > 0, deviation, 1)
        order = np.argsort(y[split == k], kind="stable")
        found = source.pool(name).inputs(np.arange(120))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, torch.from_numpy(expected[order]).float())
    again = small(file, standardise=True, map_above=0 if mapped else 2)  # from the cache
    assert torch.equal(again.pool("test").inputs(np.arange(120)), found)


def test_standardised_wine_is_that_of_scikit_learn():
    x, y = load_wine(return_X_y=True)
    source = ArrayEpisodes(x, y, n_way=3, split_by="items", standardise=True)
    rows = source.pool("train").order
    scaler = StandardScaler().fit(x[rows])
    found = source.pool("train").inputs(np.arange(len(rows)))
    torch.testing.assert_close(found, torch.from_numpy(scaler.transform(x[rows])).float())


def test_digits_as_they_are():
    x, y = load_digits(return_X_y=True)
    batch = ArrayEpisodes(x, y, n_way=5, split_by="items").batch("test", [0], 0)
    rows = {row.tobytes() for row in x.astype(np.float32)}
    assert all(item.numpy().tobytes() in rows for item in batch.query.x[0])


BAD = [
    ({"x": (17, np.nan)}, r"a\.npz: x, row 17: not a finite number\. Finite numbers"),
    ({"y": (5, -2)}, r"a\.npz: y, row 5: -2\. Class numbers from 0"),
    ({"split": (9, 3)}, r"a\.npz: split, row 9: 3\. train, validation or test, or 0, 1 or 2"),
]


@pytest.mark.parametrize("map_above", [2, 0])
@pytest.mark.parametrize(("change", "message"), BAD)
def test_a_bad_row_is_named(tmp_path, change, message, map_above):
    x, y = numbered("f4", (4, 2))
    arrays = {"x": x, "y": y, "split": np.arange(N) % 3}
    for name, (row, value) in change.items():
        arrays[name][row] = value
    source = small(saved(tmp_path / "a", "npz", **arrays), map_above=map_above)
    with pytest.raises(fsl.DataError, match=message):
        source.check("train")
    with pytest.raises(fsl.DataError, match=message):  # mapped: what is remembered
        small(saved(tmp_path / "a", "npz", **arrays), map_above=map_above).check("train")


def test_more_bad_arrays_are_named(tmp_path):
    x, y = numbered()
    ids = x.astype(np.int64)
    ids[33, 2] = -1
    names = np.array(["a", "b"])
    wrong = [
        ({"x": x, "y": y, "classes": names}, r"a\.npz: y, row \d+: \d+\. Numbers 0 \.\. 1, as the"),
        ({"x": ids, "y": y}, r"a\.npz: x, row 33: a token id below 0\. Ids from 0; or items: num"),
        ({"x": x, "y": y[:-1]}, r"a\.npz: y: shape \(359,\)\. Expected \(360,\), one for each row"),
        ({"x": x, "y": y[:, None]}, r"a\.npz: y: shape \(360, 1\)\. Expected \(360,\)"),
        ({"x": x, "y": y.astype(float)}, r"a\.npz: y: of type float64\. Whole numbers, or texts"),
        ({"x": x, "y": y, "split": y / 2}, r"a\.npz: split: of type float64\. train, validation"),
        (
            {"x": x, "y": y, "split": np.array(["train", "tset"])[np.arange(N) % 2]},
            r"a\.npz: split, row 1: tset\. train, validation or test, or 0, 1 or 2 for these",
        ),
        ({"x": x[:0], "y": y[:0]}, r"a\.npz: x: no rows\. At least one"),
        (
            {"x": x.astype("c8"), "y": y},
            r"a\.npz: x: items of type complex64\. Whole numbers or fl",
        ),
    ]
    for i, (arrays, message) in enumerate(wrong):
        source = small(saved(tmp_path / str(i), "npz", **arrays))
        with pytest.raises(fsl.FslError, match=message):
            source.check("train")


def test_a_file_that_is_none_is_refused_when_the_source_is_made(tmp_path):
    x, y = numbered()
    ragged = np.array([x[0], x[1, :3]], dtype=object)
    np.savez(tmp_path / "ragged.npz", x=ragged, y=y[:2], allow_pickle=True)
    np.savez(tmp_path / "other.npz", features=x)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    np.savez(tmp_path / "number.npz", x=np.float32(3), y=y)
    (tmp_path / "damaged.npz").write_bytes(b"PK\3\4" + bytes(40))
    (tmp_path / "damaged.npy").write_bytes(b"\x93NUMPY\1\0")
    (tmp_path / "damaged.safetensors").write_bytes(b"\xff" * 20)
    (tmp_path / "x.csv").write_text("1,2")
    wrong = {
        "absent.npz": r"absent\.npz: No such file or directory\. A file that this user may read",
        "x.csv": r"x\.csv: not one of \.npz, \.npy, \.safetensors by its ending",
        "ragged.npz": r"ragged\.npz: x: Python objects, such as rows of different lengths\. One arr",
        "other.npz": r"other\.npz: holds features, not x and y\. Arrays x and y; the option `labels",
        "x.npy": r"x\.npy: holds x, not y\. Arrays x and y; the option `labels` names y",
        "number.npz": r"number\.npz: x: a single number\. Expected \(n, \*item_shape\)",
        "damaged.npz": r"damaged\.npz: cannot be read \(.*\)\. A whole npz file",
        "damaged.npy": r"damaged\.npy: cannot be read \(.*\)\. A whole npy file",
        "damaged.safetensors": r"damaged\.safetensors: cannot be read \(.*\)\. A whole safetensors",
    }
    for name, message in wrong.items():
        with pytest.raises(fsl.FslError, match=message):
            Arrays(tmp_path / name)
    with pytest.raises(
        fsl.DataError, match=r"other\.npz: beside other\.npz\. A \.npy file, with \.npy"
    ):
        Arrays(tmp_path / "other.npz", labels=tmp_path / "other.npz")


def test_what_is_compressed_or_turned_is_read_into_memory_or_refused(tmp_path):
    x, y = numbered("f4", (4, 2))
    file = saved(tmp_path / "a", "compressed", x=x, y=y)
    turned = saved(tmp_path / "b", "npz", x=np.asfortranarray(x), y=y)
    other = saved(tmp_path / "c", "npz", x=x.astype(">f4"), y=y)
    expected = small(saved(tmp_path / "d", "npz", x=x, y=y)).batch("train", range(3), 0)
    for path in (file, turned, other):
        assert torch.equal(small(path).batch("train", range(3), 0).query.x, expected.query.x)
        with pytest.raises(
            fsl.DataError, match=r"a\.npz: x: 0\.0 GiB, and cannot stay in its file"
        ):
            small(path, map_above=0).check("train")


def test_nothing_is_unpickled(tmp_path):
    """A member that claims to be numbers and holds a pickle is damaged, not run."""
    x, y = numbered()
    file = saved(tmp_path / "a", "npz", x=x, y=y)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("notes.txt", "not an array")
    small(file).check("train")


def test_changed_files_and_options_are_another_digest(tmp_path):
    x, y = numbered()
    file = saved(tmp_path / "a", "npz", x=x, y=y)
    digests = {small(file).inspect("train").digest, small(file).inspect("test").digest}
    for options in ({"standardise": True}, {"split_by": "items"}, {"split_seed": 4}):
        digests.add(small(file, **options).inspect("train").digest)
    x[0, 0] += 1
    digests.add(small(saved(tmp_path / "b", "npz", x=x, y=y)).inspect("train").digest)
    assert len(digests) == 6
    assert json.dumps(small(file).inspect("train").classes)


def test_kinds_of_items(tmp_path):
    x, y = numbered("u1")
    file = saved(tmp_path / "a", "npz", x=x, y=y)

    def row(**options) -> torch.Tensor:
        return small(file, **options).pool("train").inputs(np.arange(1))[0]

    levels, numbers, tokens = row(), row(items="numbers"), row(items="tokens")
    assert torch.equal(levels, numbers / torch.tensor(255.0))
    assert torch.equal(numbers.long(), tokens)
    assert tokens.dtype == torch.int64
    floats = saved(tmp_path / "b", "npz", x=x.astype("f4"), y=y)
    for kind, message in [
        ("tokens", r"of torch\.float32, and items: tokens\. Whole numbers"),
        ("levels", r"of torch\.float32, and items: levels\. uint8, or items: numbers"),
    ]:
        with pytest.raises(fsl.DataError, match=message):
            small(floats, items=kind).check("train")
    ids = saved(tmp_path / "c", "npz", x=x.astype("i8"), y=y)
    with pytest.raises(fsl.DataError, match=r"token ids, and standardise: true\. Numbers"):
        small(ids, standardise=True).check("train")
    with pytest.raises(ValueError, match=r"standardise: true, and items: tokens\. Numbers or lev"):
        small(ids, standardise=True, items="tokens")


def test_numbers_are_not_read_to_try_a_recipe(tmp_path, monkeypatch):
    x, y = numbered()
    source = small(saved(tmp_path / "a", "npz", x=x, y=y))
    monkeypatch.setattr(Arrays, "read", lambda self: pytest.fail("read"))
    assert source.vocabulary is None

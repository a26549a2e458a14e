from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fsl_core.data.cache import cached_tensors, content_key, data_root, tensors_digest
from fsl_core.errors import DataError
from fsl_core.private import cache_dir

TENSORS = {"a": torch.arange(6, dtype=torch.uint8).reshape(2, 3), "b": torch.zeros(0, 4)}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FSL_DATA", raising=False)
    return tmp_path / "cache"


def never():
    raise AssertionError("built again")


def test_tensors_are_built_once_and_leave_one_file(folder: Path):
    first = cached_tensors("k", lambda: TENSORS)
    again = cached_tensors("k", never)
    assert first.keys() == again.keys() == TENSORS.keys()
    assert all(torch.equal(again[name], TENSORS[name]) for name in TENSORS)
    assert [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()] == [
        "decoded/k.safetensors"
    ]
    assert not [p for p in (folder / "decoded").iterdir() if p.is_dir()]


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b"",
        lambda b: b[: len(b) // 2],
        lambda b: b[:-1] + bytes([b[-1] ^ 1]),
        lambda b: b"\xff" * 40,
        lambda b: b + b"x",
    ],
    ids=["empty", "truncated", "one bit", "not a cache file", "longer"],
)
def test_a_damaged_file_is_built_again(folder: Path, damage):
    cached_tensors("k", lambda: TENSORS)
    path = folder / "decoded" / "k.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert torch.equal(cached_tensors("k", lambda: TENSORS)["a"], TENSORS["a"])
    assert torch.equal(cached_tensors("k", never)["a"], TENSORS["a"])


def test_a_cache_that_cannot_be_written_costs_time_only(folder: Path):
    folder.write_text("a file where the folder should be")
    assert torch.equal(cached_tensors("k", lambda: TENSORS)["a"], TENSORS["a"])


def test_an_error_while_building_leaves_nothing(folder: Path):
    with pytest.raises(AssertionError):
        cached_tensors("k", never)
    assert not list(folder.rglob("*"))


def test_key_follows_contents_and_not_names(tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"x")
    two.write_bytes(b"x")
    assert content_key(28, one) == content_key(28, two)
    assert content_key(28, one) != content_key(29, one)
    assert content_key("ab", "c") != content_key("a", "bc")
    two.write_bytes(b"y")
    assert content_key(28, one) != content_key(28, two)


def test_digest_sees_names_shapes_types_and_values():
    x = torch.arange(4)
    digests = {
        tensors_digest(t)
        for t in ({"x": x}, {"y": x}, {"x": x.int()}, {"x": x.reshape(2, 2)}, {"x": x + 1})
    }
    assert len(digests) == 5
    assert tensors_digest({"x": x.reshape(2, 2).T}) == tensors_digest(
        {"x": x.reshape(2, 2).T.contiguous()}
    )


def test_data_root_is_option_then_environment_then_cache(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    assert cache_dir() == folder
    assert data_root() == folder / "datasets"
    monkeypatch.setenv("FSL_DATA", str(tmp_path))
    assert data_root() == tmp_path
    (tmp_path / "own").mkdir()
    assert data_root(tmp_path / "own") == tmp_path / "own"


def test_a_data_root_that_does_not_exist_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(
        DataError, match=r"nowhere: named by option root, but no such folder\. An existing folder"
    ):
        data_root(tmp_path / "nowhere")
    monkeypatch.setenv("FSL_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="named by environment variable FSL_DATA"):
        data_root()

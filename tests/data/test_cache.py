from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from fsl_core.data.cache import cached_tensors, content_key, data_root, tensors_digest
from fsl_core.errors import DataError
from fsl_core.files.private import cache_dir

TENSORS = {"a": torch.arange(6, dtype=torch.uint8).reshape(2, 3), "b": torch.zeros(0, 4)}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FSL_DATA", raising=False)
    return tmp_path / "cache"


def never():
    raise AssertionError("built again")


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was logged since it was last asked for."""

    def lines() -> list[str]:
        found = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return found

    caplog.set_level(logging.WARNING)
    return lines


def test_tensors_are_built_once_and_leave_one_file(folder: Path):
    first, digest = cached_tensors("k", lambda: TENSORS)
    again, same = cached_tensors("k", never)
    assert digest == same == tensors_digest(TENSORS)
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
def test_a_damaged_file_is_built_again(folder: Path, damage, said: Callable):
    cached_tensors("k", lambda: TENSORS)
    path = folder / "decoded" / "k.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    assert torch.equal(cached_tensors("k", lambda: TENSORS)[0]["a"], TENSORS["a"])
    (line,) = said()
    assert line.startswith(f"{path}: not used (")
    assert line.endswith("). It is built again")
    assert torch.equal(cached_tensors("k", never)[0]["a"], TENSORS["a"])
    assert not said()


def kept(tensors: dict[str, torch.Tensor], **metadata: str) -> Callable[[Path], None]:
    return lambda path: save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize(
    ("plant", "reason"),
    [
        (kept(TENSORS), "kept for other data, or by an earlier version"),
        (kept(TENSORS, digest=tensors_digest(TENSORS)), "kept for other data"),
        (kept(TENSORS, key="other", digest=tensors_digest(TENSORS)), "kept for other data"),
        (kept(TENSORS, key="k"), "its bytes have changed"),
        (kept({"a": TENSORS["a"] + 1}, key="k", digest=tensors_digest(TENSORS)), "its bytes have"),
        (lambda path: path.mkdir(), "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: os.mkfifo(path, 0o600), "not a regular file"),
    ],
    ids=["plain", "no key", "other key", "no digest", "changed", "folder", "link", "pipe"],
)
def test_a_planted_file_is_not_used(folder: Path, plant, reason: str, said: Callable):
    path = folder / "decoded" / "k.safetensors"
    path.parent.mkdir(parents=True, mode=0o700)
    plant(path)
    assert torch.equal(cached_tensors("k", lambda: TENSORS)[0]["a"], TENSORS["a"])
    assert reason in said()[0]


def test_a_pool_renamed_to_another_key_is_not_used(folder: Path, said: Callable):
    cached_tensors("one", lambda: TENSORS)
    (folder / "decoded" / "one.safetensors").rename(folder / "decoded" / "two.safetensors")
    other = {"a": TENSORS["a"] + 1}
    assert torch.equal(cached_tensors("two", lambda: other)[0]["a"], other["a"])
    assert "two.safetensors: not used (kept for other data" in said()[0]


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX owners")
class TestOwners:
    @pytest.fixture(autouse=True)
    def _pool(self, folder: Path):
        cached_tensors("k", lambda: TENSORS)

    def test_folder_and_file(self, folder: Path):
        before = os.umask(0o027)
        try:
            cached_tensors("another", lambda: TENSORS)
        finally:
            os.umask(before)
        assert (folder / "decoded").stat().st_mode & 0o777 == 0o700
        assert (folder / "decoded" / "another.safetensors").stat().st_mode & 0o777 == 0o640

    def test_a_file_of_another_user(
        self, folder: Path, said: Callable, monkeypatch: pytest.MonkeyPatch
    ):
        path = folder / "decoded" / "k.safetensors"
        if os.geteuid() != 0:
            pytest.skip("only root can give a file away")
        os.chown(path, 12345, -1)
        monkeypatch.setenv("FSL_CACHE_SHARED", "1")
        cached_tensors("k", never)
        monkeypatch.setenv("FSL_CACHE_SHARED", "0")
        assert torch.equal(cached_tensors("k", lambda: TENSORS)[0]["a"], TENSORS["a"])
        assert said()[0].startswith(
            f"{path}: not used, as it belongs to user 12345. A file of yours"
        )
        cached_tensors("k", never)  # now it is ours

    @pytest.mark.parametrize("mode", [0o777, 0o770])
    def test_a_folder_that_others_can_write_to(
        self, folder: Path, mode: int, said: Callable, monkeypatch: pytest.MonkeyPatch
    ):
        (folder / "decoded").chmod(mode)
        for _ in range(3):  # as for three splits
            cached_tensors("k", lambda: TENSORS)
        (line,) = said()
        assert line.startswith(f"{folder / 'decoded'}: other users can write to it (mode ")
        assert line.endswith("Pictures are decoded each time")
        assert "or FSL_CACHE_SHARED=1 to trust them" in line
        monkeypatch.setenv("FSL_CACHE_SHARED", "1")
        cached_tensors("k", never)

    def test_a_cache_shared_on_purpose_follows_the_umask(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("FSL_CACHE", str(folder / "shared"))
        monkeypatch.setenv("FSL_CACHE_SHARED", "1")
        before = os.umask(0o002)
        try:
            cached_tensors("k", lambda: TENSORS)
        finally:
            os.umask(before)
        assert (folder / "shared" / "decoded").stat().st_mode & 0o777 == 0o775
        file = folder / "shared" / "decoded" / "k.safetensors"
        assert file.stat().st_mode & 0o777 == 0o664


class TestNotKept:
    def test_a_file_where_the_folder_should_be(self, folder: Path, said: Callable):
        folder.write_text("a file")
        assert torch.equal(cached_tensors("k", lambda: TENSORS)[0]["a"], TENSORS["a"])
        (line,) = said()
        assert line.startswith(f"{folder / 'decoded' / 'k.safetensors'}: not kept (")
        assert line.endswith("). It is made again each time")

    @pytest.mark.parametrize(
        "error",
        [
            OSError(errno.ENOSPC, "No space left on device"),
            SafetensorError("Error while serializing: I/O error: No space left on device"),
        ],
        ids=["of the system", "of safetensors"],
    )
    def test_a_full_disk(
        self, folder: Path, error: Exception, said: Callable, monkeypatch: pytest.MonkeyPatch
    ):
        def full(tensors: dict, path: Path, metadata: dict) -> None:
            path.write_bytes(b"half")
            raise error

        monkeypatch.setattr("fsl_core.data.cache.save_file", full)
        assert torch.equal(cached_tensors("k", lambda: TENSORS)[0]["a"], TENSORS["a"])
        (line,) = said()
        assert "k.safetensors: not kept (" in line
        assert "No space left on device" in line
        assert not list((folder / "decoded").iterdir())

    def test_a_disk_that_is_really_full(
        self, folder: Path, said: Callable, monkeypatch: pytest.MonkeyPatch
    ):
        with small_disk(folder.parent / "disk") as disk:
            monkeypatch.setenv("FSL_CACHE", str(disk))
            large = {"a": torch.zeros(1 << 20, dtype=torch.uint8)}
            assert torch.equal(cached_tensors("k", lambda: large)[0]["a"], large["a"])
            assert "No space left on device" in said()[0]
            assert not list((disk / "decoded").iterdir())

    def test_a_disk_that_is_read_only(
        self, folder: Path, said: Callable, monkeypatch: pytest.MonkeyPatch
    ):
        with small_disk(folder.parent / "disk", "ro") as disk:
            monkeypatch.setenv("FSL_CACHE", str(disk))
            assert torch.equal(cached_tensors("k", lambda: TENSORS)[0]["a"], TENSORS["a"])
            assert "not kept (Read-only file system)" in said()[0]


@contextmanager
def small_disk(place: Path, *options: str) -> Iterator[Path]:
    place.mkdir()
    how = ",".join(["size=64k", "mode=700", *options])
    mount = ["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(place)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk can be mounted here ({error})")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


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


def test_key_of_a_name_of_any_bytes_and_of_a_file_that_cannot_be_read(tmp_path: Path):
    assert content_key("caf\udce9") != content_key("caf\udce8")
    with pytest.raises(
        DataError, match=r"gone: No such file or directory\. A file that this user may read"
    ):
        content_key(tmp_path / "gone")


class TestSeal:
    """Of a large file it is noted that it was read to the end."""

    @pytest.fixture(autouse=True)
    def _large(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("fsl_core.data.cache.SEALED", 0)
        monkeypatch.setattr("fsl_core.data.cache.JUST_NOW", -1)
        cached_tensors("k", lambda: TENSORS)

    @pytest.fixture
    def digested(self, monkeypatch: pytest.MonkeyPatch) -> list:
        found: list = []
        monkeypatch.setattr(
            "fsl_core.data.cache.tensors_digest", lambda t: (found.append(t), tensors_digest(t))[1]
        )
        return found

    def test_it_is_not_read_to_the_end_again(self, digested: list):
        tensors, digest = cached_tensors("k", never)
        assert torch.equal(tensors["a"], TENSORS["a"])
        assert digest == tensors_digest(TENSORS)
        assert not digested

    def test_unless_that_is_asked_for(self, digested: list, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("FSL_HASH_ALL", "1")
        cached_tensors("k", never)
        assert len(digested) == 1

    def test_a_change_is_seen_although_the_time_was_set_back(self, folder: Path, said: Callable):
        path = folder / "decoded" / "k.safetensors"
        content, state = path.read_bytes(), path.stat()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
        assert torch.equal(cached_tensors("k", lambda: TENSORS)[0]["a"], TENSORS["a"])
        assert said() == [f"{path}: not used (its bytes have changed). It is built again"]

    @pytest.mark.parametrize("damage", [b"", b"null", b'{"digest": "x"}', b"\xff"])
    def test_a_damaged_seal(self, folder: Path, digested: list, damage: bytes):
        (folder / "decoded" / "k.json").write_bytes(damage)
        cached_tensors("k", never)
        assert len(digested) == 1
        cached_tensors("k", never)
        assert len(digested) == 1

    def test_what_was_changed_just_now_is_not_sealed(
        self, folder: Path, digested: list, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr("fsl_core.data.cache.JUST_NOW", 60 * 10**9)
        (folder / "decoded" / "k.json").unlink()
        for _ in range(2):
            cached_tensors("k", never)
        assert len(digested) == 2


class TestIndex:
    @pytest.fixture
    def files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        """Files that were not written just now."""
        monkeypatch.setattr("fsl_core.data.cache.JUST_NOW", -1)
        (tmp_path / "data" / "a").mkdir(parents=True)
        for i in range(5):
            (tmp_path / "data" / "a" / f"{i}.png").write_text(f"content {i}")
        return sorted((tmp_path / "data" / "a").iterdir())

    @pytest.fixture
    def read(self, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        """The files whose content is read."""
        from fsl_core.data import cache

        found, original = [], cache._read_digest
        monkeypatch.setattr(cache, "_read_digest", lambda f: (found.append(f), original(f))[1])
        return found

    @staticmethod
    def key(files: list[Path]) -> str:
        return content_key("k", *files, under=files[0].parents[1])

    @staticmethod
    def index(folder: Path) -> Path:
        (found,) = (folder / "decoded").glob("files-*.json")
        return found

    def test_unchanged_files_are_read_once(self, files: list[Path], read: list[Path]):
        plain = content_key("k", *files)
        assert self.key(files) == plain
        del read[:]
        assert self.key(files) == plain
        assert not read

    def test_a_changed_file_is_read_again(self, files: list[Path], read: list[Path]):
        first = self.key(files)
        del read[:]
        files[2].write_text("other text")
        second = self.key(files)
        assert second == content_key("k", *files) != first
        assert read[0] == files[2]

    def test_setting_back_the_time_does_not_hide_a_change(self, files: list[Path]):
        first, state = self.key(files), files[2].stat()
        files[2].write_text("CONTENT 2")
        os.utime(files[2], ns=(state.st_atime_ns, state.st_mtime_ns))
        assert files[2].stat().st_mtime_ns == state.st_mtime_ns
        assert self.key(files) == content_key("k", *files) != first

    def test_what_was_changed_just_now_is_not_remembered(
        self, files: list[Path], read: list[Path], monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr("fsl_core.data.cache.JUST_NOW", 60 * 10**9)
        self.key(files)
        del read[:]
        self.key(files)
        assert read == files

    def test_all_are_read_where_that_is_asked_for(
        self, files: list[Path], read: list[Path], monkeypatch: pytest.MonkeyPatch
    ):
        self.key(files)
        del read[:]
        monkeypatch.setenv("FSL_HASH_ALL", "1")
        self.key(files)
        assert read == files

    def test_files_of_other_splits_stay_and_those_that_are_gone_do_not(
        self, folder: Path, files: list[Path], read: list[Path]
    ):
        self.key(files[:2])
        self.key(files[2:])
        assert len(json.loads(self.index(folder).read_text())["files"]) == 5
        files[0].unlink()
        files[3].write_text("changed")
        self.key(files[1:])
        assert sorted(json.loads(self.index(folder).read_text())["files"]) == [
            f"a/{i}.png" for i in (1, 2, 3, 4)
        ]

    @pytest.mark.parametrize(
        "damage",
        [
            lambda record: "",
            lambda record: "null",
            lambda record: "[" * 100_000,
            lambda record: json.dumps({**record, "folder": "/elsewhere"}),
            lambda record: json.dumps({**record, "files": []}),
            lambda record: json.dumps({**record, "files": {"a/0.png": None}}),
            lambda record: json.dumps({**record, "files": {"a/0.png": [1, 2, 3, "zz"]}}),
            lambda record: json.dumps({**record, "files": {"a/0.png": [1, 2, 3, "zz" * 32]}}),
            lambda record: json.dumps({**record, "files": {"a/0.png": [1, 2, 3, 4]}}),
            lambda record: json.dumps({"folder": record["folder"]}),
        ],
    )
    def test_a_damaged_index(
        self, folder: Path, files: list[Path], read: list[Path], damage, said: Callable
    ):
        first = self.key(files)
        index = self.index(folder)
        index.write_text(damage(json.loads(index.read_text())))
        del read[:]
        assert self.key(files) == first
        assert read == files
        (line,) = said()
        assert line.startswith(f"{index}: not used (")
        assert line.endswith("). Files are read again")

    def test_of_a_file_that_cannot_be_read_the_reason_counts(
        self, folder: Path, files: list[Path], read: list[Path]
    ):
        whole = self.key(files)
        files[1].unlink()
        with pytest.raises(DataError, match=r"1\.png: No such file or directory"):
            self.key(files)
        torn = content_key("k", *files, under=files[0].parents[1], tolerant=True)
        assert torn != whole
        assert "a/1.png" not in json.loads(self.index(folder).read_text())["files"]
        files[1].mkdir()
        del read[:]
        assert content_key("k", *files, under=files[0].parents[1], tolerant=True) not in (
            whole,
            torn,
        )
        assert read == [files[1]]

    def test_names_of_any_bytes(self, tmp_path: Path, files: list[Path], read: list[Path]):
        odd = files[0].with_name("\udcff.png")
        try:
            odd.write_text("x")
        except OSError:
            pytest.skip("a file system of Unicode names alone")
        first = self.key([odd])
        del read[:]
        assert self.key([odd]) == first
        assert not read


def test_a_file_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(
        DataError, match=r"absent: No such file or directory\. A file that this user"
    ):
        content_key(tmp_path / "absent")
    with pytest.raises(
        DataError, match=r"absent: No such file or directory\. A file that can be re"
    ):
        content_key(tmp_path / "absent", under=tmp_path)


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

"""A download is whole and as its checksum says, or it is not there."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from hashlib import md5
from http.client import IncompleteRead
from pathlib import Path
from typing import get_args

import pytest

import fsl_core as fsl
from fsl_core.builtin.cifar_fs import CifarFs
from fsl_core.builtin.mnist import Mnist
from fsl_core.builtin.omniglot import Omniglot
from fsl_core.data.downloads import MEGABYTE, download, extract, once

CONTENT = b"content" * 1000
MD5 = md5(CONTENT).hexdigest()


class Served(io.BytesIO):
    """What urlopen answers; fails after `good` bytes."""

    def __init__(self, content: bytes, good: int | None = None):
        super().__init__(content)
        self.good = good

    def read(self, n: int = -1) -> bytes:
        if self.good is not None and self.tell() >= self.good:
            raise IncompleteRead(b"", 7)
        return super().read(n if self.good is None else self.good)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Served | Exception]:
    """What each address gives."""
    found: dict[str, Served | Exception] = {}

    def urlopen(request, timeout):
        assert timeout > 0
        answer = found[request.full_url]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    return found


def test_a_file_follows_the_umask_and_leaves_nothing_else(tmp_path: Path, answers: dict):
    answers["https://one/x.zip"] = Served(CONTENT)
    target = tmp_path / "folder" / "x.zip"
    before = os.umask(0o027)
    try:
        download(["https://one/x.zip"], target, MD5, megabytes=1)
    finally:
        os.umask(before)
    assert target.read_bytes() == CONTENT
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (OSError("network is unreachable"), "network is unreachable"),
        (Served(CONTENT[:-1]), rf"md5 {md5(CONTENT[:-1]).hexdigest()}, not {MD5}"),
        (Served(CONTENT, good=100), "IncompleteRead"),
        (Served(bytes(MEGABYTE + 1)), "more than 1 MB"),
        (Served(b"<html>Please log in</html>"), f"not {MD5}"),
    ],
    ids=["no network", "cut", "broken off", "endless", "another page"],
)
def test_what_fails_leaves_nothing(tmp_path: Path, answers: dict, answer, reason: str):
    answers["https://one/x.zip"] = answer
    target = tmp_path / "x.zip"
    match = rf"x\.zip: download failed \(.*{reason}.*\)\. A network connection, or the file in"
    with pytest.raises(fsl.DataError, match=match) as caught:
        download(["https://one/x.zip"], target, MD5, megabytes=1)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_the_next_address_is_tried(tmp_path: Path, answers: dict):
    answers["https://one/x"] = Served(b"wrong")
    answers["https://two/x"] = Served(CONTENT)
    download(["https://one/x", "https://two/x"], tmp_path / "x", MD5, megabytes=1)
    assert (tmp_path / "x").read_bytes() == CONTENT


def test_a_file_that_is_there_stays_where_the_download_fails(tmp_path: Path, answers: dict):
    (tmp_path / "x").write_text("before")
    answers["https://one/x"] = OSError("no")
    with pytest.raises(fsl.DataError):
        download(["https://one/x"], tmp_path / "x", MD5, megabytes=1)
    assert (tmp_path / "x").read_text() == "before"


def packed(path: Path, members: dict[str, bytes | str]) -> Path:
    """A tar file of files (bytes) and links (str: where to)."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.size, member.mode = len(content), 0o4777
                tar.addfile(member, io.BytesIO(content))
    return path


class TestExtract:
    def test_only_what_is_named_and_only_into_the_folder(self, tmp_path: Path):
        members = {"d/one": b"1", "d/two": b"2", "../../out": b"!", "/abs": b"!", "d/x": b"!"}
        archive = packed(tmp_path / "a.tar.gz", members)
        extract(archive, ["d/one", "d/two"], tmp_path / "to" / "d")
        found = {path.name: path.read_bytes() for path in (tmp_path / "to" / "d").iterdir()}
        assert found == {"one": b"1", "two": b"2"}
        assert not (tmp_path / "to" / "d" / "one").stat().st_mode & 0o4111
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz", "to"]

    @pytest.mark.parametrize("name", ["../../out", "/abs", "d/../../../out"])
    def test_a_name_that_leads_outside_leads_nowhere(self, tmp_path: Path, name: str):
        archive = packed(tmp_path / "a.tar.gz", {name: b"!"})
        extract(archive, [name], tmp_path / "a" / "b" / "to")
        (file,) = (path for path in tmp_path.rglob("*") if path.is_file() and path != archive)
        assert file.parent == tmp_path / "a" / "b" / "to"

    @pytest.mark.parametrize("to", ["/etc/passwd", "../../secret", "d/loop"])
    def test_a_link_is_not_followed(self, tmp_path: Path, to: str):
        archive = packed(tmp_path / "a.tar.gz", {"d/one": to, "d/loop": "loop"})
        with pytest.raises(
            fsl.DataError, match=r"a\.tar\.gz: cannot be unpacked \(.*The archive as"
        ):
            extract(archive, ["d/one"], tmp_path / "to")
        assert not list(tmp_path.rglob("one"))

    def test_a_link_that_lies_there_is_replaced_and_not_followed(self, tmp_path: Path):
        (tmp_path / "to").mkdir()
        (tmp_path / "precious").write_text("precious")
        (tmp_path / "to" / "one").symlink_to(tmp_path / "precious")
        extract(packed(tmp_path / "a.tar.gz", {"d/one": b"1"}), ["d/one"], tmp_path / "to")
        assert (tmp_path / "precious").read_text() == "precious"
        assert (tmp_path / "to" / "one").read_bytes() == b"1"

    @pytest.mark.parametrize("content", [b"", b"junk", b"\x1f\x8b\x08\x00junk"])
    def test_what_is_no_archive(self, tmp_path: Path, content: bytes):
        (tmp_path / "a.tar.gz").write_bytes(content)
        with pytest.raises(fsl.DataError, match=r"a\.tar\.gz: cannot be unpacked \("):
            extract(tmp_path / "a.tar.gz", ["d/one"], tmp_path / "to")

    def test_cut_in_the_middle_leaves_no_half_file(self, tmp_path: Path):
        archive = packed(tmp_path / "a.tar.gz", {"d/one": os.urandom(100_000)})
        archive.write_bytes(archive.read_bytes()[:50_000])
        with pytest.raises(fsl.DataError, match="cannot be unpacked"):
            extract(archive, ["d/one"], tmp_path / "to")
        assert not list(tmp_path.rglob("one"))


def test_once_for_each_object():
    class Tries:
        def __init__(self):
            self.calls = 0

        @once
        def attempt(self) -> int:
            self.calls += 1
            if self.calls > 1:
                return self.calls
            raise fsl.DataError("no")

    first, second = Tries(), Tries()
    for tries in (first, first, second):
        with pytest.raises(fsl.DataError, match="no"):
            tries.attempt()
    assert (first.calls, second.calls) == (1, 1)


@pytest.mark.parametrize("source", [Omniglot, CifarFs, Mnist])
def test_a_failing_download_is_tried_and_told_of_once(
    source: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """For three splits: one attempt, one line."""
    monkeypatch.setenv("FSL_CACHE", str(tmp_path))
    monkeypatch.delenv("FSL_DATA", raising=False)
    asked: list[str] = []

    def unreachable(request, **_):
        asked.append(request.full_url)
        raise OSError("network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    episodes = source(n_way=2)
    with pytest.raises(
        fsl.DataError, match=r"download failed \(network is unreachable\)"
    ) as caught:
        episodes.check_splits(dict.fromkeys(get_args(fsl.Split), episodes.task))
    assert len(str(caught.value).splitlines()) == 1
    assert len(asked) == len(set(asked)) <= 2  # MNIST has two mirrors

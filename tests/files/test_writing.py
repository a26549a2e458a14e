"""Files written all or nothing, in new places that nobody could have prepared."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from fsl_core.files.writing import (
    UNFINISHED,
    append_file,
    open_to_fill,
    remove_unfinished,
    replacing,
    write_file,
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def test_a_file_is_replaced_whole(tmp_path: Path):
    write_file(tmp_path / "a", b"one")
    write_file(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(("mask", "expected"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_permissions_follow_the_umask(tmp_path: Path, umask, mask: int, expected: int):
    umask(mask)
    write_file(tmp_path / "a", b"")
    append_file(tmp_path / "b", b"")
    with replacing(tmp_path / "c") as new:  # as safetensors does: a file of its own, for the owner
        new.unlink()
        os.close(os.open(new, os.O_CREAT | os.O_WRONLY, 0o600))
    assert {mode(tmp_path / name) for name in "abc"} == {expected}


def test_nobody_else_can_enter_where_a_file_is_being_written(tmp_path: Path, umask):
    umask(0)
    with replacing(tmp_path / "a") as new:
        assert mode(new.parent) == 0o700
        new.write_bytes(b"")


def half(file: Path) -> None:
    file.write_bytes(b"tw")
    raise OSError("no room")


def test_what_fails_leaves_the_earlier_file_and_nothing_else(tmp_path: Path):
    write_file(tmp_path / "a", b"one")
    with pytest.raises(OSError, match="no room"), replacing(tmp_path / "a") as new:
        half(new)
    assert (tmp_path / "a").read_bytes() == b"one"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_symlinks_are_replaced_and_never_followed(tmp_path: Path):
    (tmp_path / "target").write_bytes(b"precious")
    for name in ("a", "a.partial", ".a.partial"):
        (tmp_path / name).symlink_to(tmp_path / "target")
    write_file(tmp_path / "a", b"new")
    assert not (tmp_path / "a").is_symlink()
    (tmp_path / "b").symlink_to(tmp_path / "target")
    for write in (lambda path: append_file(path, b"x"), open_to_fill):
        with pytest.raises(OSError, match="a symlink, which is not followed"):
            write(tmp_path / "b")
    assert (tmp_path / "target").read_bytes() == b"precious"


def test_devices_pipes_and_folders_are_no_files(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "link"):
        with pytest.raises(OSError, match="a device or a pipe, not a file"):
            write_file(tmp_path / name, b"x")
    with pytest.raises(OSError, match="Is a directory"):
        write_file(tmp_path / "folder", b"x")
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "link", "folder"}


def test_a_line_for_which_there_is_no_room_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    append_file(tmp_path / "a", b"one\n")
    write = os.write

    def short(descriptor: int, content: bytes) -> int:
        if len(content) < 3:
            raise OSError(28, "No space left on device")
        return write(descriptor, content[:2])

    monkeypatch.setattr(os, "write", short)
    with pytest.raises(OSError, match="No space left"):
        append_file(tmp_path / "a", b"two\n")
    assert (tmp_path / "a").read_bytes() == b"one\n"
    monkeypatch.undo()
    append_file(tmp_path / "a", b"two\n")
    assert (tmp_path / "a").read_bytes() == b"one\ntwo\n"


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path):
    (tmp_path / f"{UNFINISHED}x1").mkdir()
    (tmp_path / f"{UNFINISHED}x1" / "file").write_bytes(b"half")
    (tmp_path / "metrics.jsonl.partial").write_bytes(b"half")
    (tmp_path / "mine.partial").mkdir()
    (tmp_path / "mine.partial" / "thesis.tex").touch()
    (tmp_path / f"{UNFINISHED}link").symlink_to(tmp_path / "mine.partial")
    (tmp_path / "kept").touch()
    remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"mine.partial", "kept"}
    assert (tmp_path / "mine.partial" / "thesis.tex").exists()
    remove_unfinished(tmp_path / "absent")

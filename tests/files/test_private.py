"""A folder is used for trusted files only where nobody else can put files into it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fsl_core.errors import CacheError
from fsl_core.files import private
from fsl_core.files.private import private_folder

pytestmark = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX modes")
REMEDY = "A folder that you alone can write to: delete this one, or name another cache folder"


@pytest.fixture(autouse=True)
def _group_writes_by_default():
    before = os.umask(0o002)  # as where every user has a group of his own
    yield
    os.umask(before)


def test_a_new_folder_is_for_its_owner_alone(tmp_path: Path):
    folder = private_folder(tmp_path / "cache" / "compiled")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert private_folder(folder) == folder


def test_a_folder_that_others_can_only_read_is_fine(tmp_path: Path):
    (tmp_path / "compiled").mkdir(mode=0o755)
    assert private_folder(tmp_path / "compiled").is_dir()


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777], ids=oct)
def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path, mode: int):
    folder = tmp_path / "compiled"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(CacheError) as caught:
        private_folder(folder)
    assert str(caught.value).startswith(
        f"{folder}: other users can write to it (mode {mode:04o}). {REMEDY}"
    )


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    own, other = os.geteuid(), os.geteuid() + 1
    folder = private_folder(tmp_path / "compiled")
    monkeypatch.setattr(private.os, "geteuid", lambda: other)
    with pytest.raises(CacheError, match=f"belongs to user {own}, and you are user {other}"):
        private_folder(folder)


def test_a_link_is_refused_wherever_it_leads(tmp_path: Path):
    real = private_folder(tmp_path / "real")
    (tmp_path / "compiled").symlink_to(real)
    with pytest.raises(CacheError, match=r"compiled: a link\. "):
        private_folder(tmp_path / "compiled")


def test_the_cache_may_lie_behind_a_link(tmp_path: Path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "disk")
    assert private_folder(tmp_path / "cache" / "compiled").is_dir()


def test_a_parent_in_which_anybody_can_rename_is_refused(tmp_path: Path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(CacheError, match=f"any user can replace it: {shared} is open to all"):
        private_folder(shared / "cache" / "compiled")
    shared.chmod(0o1777)  # as a system's temporary folder: only owners rename
    assert private_folder(shared / "cache" / "compiled").is_dir()


def test_what_cannot_be_made_is_an_os_error(tmp_path: Path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="cache"):
        private_folder(tmp_path / "cache" / "compiled")

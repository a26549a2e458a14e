"""The kit's contract of stores: a right one keeps it, and faults are named."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

import fsl_core as fsl
from fsl_core.testing import StoreContract


class Shelf(fsl.Store):
    name = "shelf"
    leaves = ("*.py", "*.pt", "*.pkl")

    def __init__(self, folder: Path):
        self.folder = folder

    def fetch(self, address):
        if not (self.folder / address).is_dir():
            raise fsl.RunError(f"shelf:{address}: no run there. One of {self.folder}")
        return self.folder / address

    def push(self, folder, address, licence, private=False):
        left = shutil.ignore_patterns(*self.leaves)
        shutil.copytree(folder, self.folder / address, dirs_exist_ok=True, ignore=left)
        return str(self.folder / address)


class TestShelf(StoreContract):
    address, absent = "glyphs", "nothing"

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path):
        self.made = Shelf(tmp_path / "shelf")

    def make(self):
        return self.made


class Careless(Shelf):
    leaves = ()


class Forgetful(Shelf):
    def push(self, folder, address, licence, private=False):
        if (self.folder / address).is_dir():
            return address
        return super().push(folder, address, licence, private)


class Silent(Shelf):
    def fetch(self, address):
        if not (self.folder / address).is_dir():
            raise fsl.RunError("no run there")
        return self.folder / address


@pytest.mark.parametrize(
    ("store", "property", "told"),
    [
        (Careless, "programs_are_not_fetched", r"fetch: \[.*fslplugin.py.*\]. Data alone"),
        (Forgetful, "what_is_pushed_is_fetched", "fetch: metrics.jsonl. As it was pushed"),
        (Silent, "what_is_absent_is_told_in_one_line", "fetch: no run there. The address in it"),
    ],
)
def test_a_fault_is_named(tmp_path: Path, store: type[Shelf], property: str, told: str):
    class Checked(StoreContract):
        address, absent = "glyphs", "nothing"

        def make(self):
            return store(tmp_path / "shelf")

    check = getattr(Checked(), f"test_{property}")
    with pytest.raises(AssertionError) as error:
        check(tmp_path) if property != "what_is_absent_is_told_in_one_line" else check()
    assert re.search(told, str(error.value))


def test_a_store_without_its_methods_says_which():
    with pytest.raises(NotImplementedError, match=r"^Store.fetch: not written. A method fetch\("):
        fsl.Store().fetch("x")
    with pytest.raises(NotImplementedError, match=r"^Store.push: not written. A method push\("):
        fsl.Store().push(Path(), "x", "mit")

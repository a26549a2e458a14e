"""What every store of runs has to keep, wherever it is."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pytest

import fsl_core as fsl
from fsl_core.errors import FslError

FILES = {
    "recipe.yaml": b"seed: 0\nepisodes: {name: glyphs, n_way: 5}\n",
    "environment.json": b'{"recipe": "tiny", "plugin_files": {}}\n',
    "result.json": b'{"recipe": "tiny", "metric": "accuracy", "accuracy": 0.5, "interval": 0.1,'
    b' "episodes": 10, "episodes_name": "glyphs", "adapter": "nearest-centroid"}\n',
    "checkpoints/best.safetensors": b"\x02\x00\x00\x00\x00\x00\x00\x00{}",
}


class StoreContract:
    """Inherit as `class TestMine(StoreContract)` and write `make`.

    address: where the test may push a run.    absent: where there is none.
    """

    address: ClassVar[str]
    absent: ClassVar[str]

    def make(self) -> fsl.Store:
        """A fresh store."""
        raise NotImplementedError(
            f"{type(self).__name__}.make: not written. A method make(self) -> Store"
        )

    def test_claims(self) -> None:
        store = self.make()
        assert isinstance(store, fsl.Store), (
            f"make: {type(store).__name__}. A subclass of fsl_core.Store"
        )
        name = getattr(store, "name", None)
        assert isinstance(name, str), (
            f"name: {name!r}. A class attribute, the word before the colon of an address"
        )

    def test_what_is_pushed_is_fetched(self, tmp_path: Path) -> None:
        """Also after another push to the same address, which takes the place of the first."""
        for steps in (b"1", b"22"):
            folder = self._filled(tmp_path / steps.decode(), steps)
            where = self.make().push(folder, self.address, "mit")
            assert isinstance(where, str), f"push: {where!r}. A text that says where to see the run"
            assert where, "push: an empty text. Where to see the run"
            fetched = self.make().fetch(self.address)
            for name, content in {**FILES, "metrics.jsonl": steps}.items():
                assert (fetched / name).read_bytes() == content, f"fetch: {name}. As it was pushed"

    def test_programs_are_not_fetched(self, tmp_path: Path) -> None:
        """Whoever put one there: a file of Python, or a pickle."""
        folder = self._filled(tmp_path / "run", b"1")
        for name in ("fslplugin.py", "weights.pt", "model.pkl"):
            (folder / name).write_bytes(b"print('run')")
        self.make().push(folder, self.address, "mit")
        found = [path for path in self.make().fetch(self.address).rglob("*") if path.is_file()]
        programs = [path.name for path in found if path.suffix in (".py", ".pt", ".pkl")]
        assert not programs, f"fetch: {programs}. Data alone"

    def test_what_is_absent_is_told_in_one_line(self) -> None:
        with pytest.raises(FslError) as told:
            self.make().fetch(self.absent)
        assert "\n" not in str(told.value), f"fetch: {told.value}. One line"
        assert self.absent in str(told.value), f"fetch: {told.value}. The address in it"

    def _filled(self, folder: Path, metrics: bytes) -> Path:
        for name, content in {**FILES, "metrics.jsonl": metrics}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder

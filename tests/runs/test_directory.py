"""Permissions, symlinks and leftovers in a run directory."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from fsl_core.config.recipe import read_recipe
from fsl_core.errors import RunError
from fsl_core.files.writing import UNFINISHED
from fsl_core.hooks.loader import Loaded
from fsl_core.runs.files import check_files, is_file
from fsl_core.runs.opening import new_run, open_run
from fsl_core.training.judging import judge
from fsl_core.training.outer_loop import train

CPU = torch.device("cpu")
SHORT = ["outer.steps=2", "outer.validate_every=2", "evaluate.episodes=4"]


@pytest.fixture
def run(toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path) -> Path:
    recipe, plugins = (
        read_recipe(toy_recipe, toy_plugins.catalogue, SHORT),
        [tmp_path / "fslplugin.py"],
    )
    with new_run(tmp_path / "run", recipe, toy_plugins, CPU, plugins) as made:
        train(made)
        judge(made)
    return tmp_path / "run"


@contextmanager
def forbidden(place: Path, *, write_only: bool = False) -> Iterator[None]:
    """Within this context, what is at or below a place may not be read, or only not written.

    Whoever runs the tests may be allowed everything, so that taking a permission away shows
    nothing.
    """

    def hidden(path: object) -> bool:
        return isinstance(path, str | os.PathLike) and Path(path).absolute().is_relative_to(place)

    def refuse(path: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    real = {name: getattr(os, name) for name in ("open", "stat", "mkdir", "scandir")}
    real_open = Path.open

    def guard(name: str):
        def call(path, *arguments, **options):
            writes = name == "mkdir" or (
                name == "open" and arguments[0] & (os.O_WRONLY | os.O_RDWR)
            )
            seen = name == "stat" and path in (place, str(place))  # from the folder that it is in
            if hidden(path) and (writes or not write_only) and not seen:
                refuse(path)
            return real[name](path, *arguments, **options)

        return call

    def path_open(self, mode="r", *arguments, **options):
        if hidden(self) and (not write_only or set(mode) & set("wax+")):
            refuse(self)
        return real_open(self, mode, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        for name in real:
            patch.setattr(os, name, guard(name))
        patch.setattr(Path, "open", path_open)
        yield


def test_everything_is_as_readable_as_the_umask_says(run: Path):
    modes = {stat.S_IMODE(p.stat().st_mode) for p in run.rglob("*") if p.is_file()}
    before = os.umask(0)
    os.umask(before)
    assert modes == {0o666 & ~before}


@pytest.mark.parametrize(
    "name", ["result.json", "environment.json", "metrics.jsonl", "checkpoints/best.safetensors"]
)
def test_what_may_not_be_read_is_not_called_damaged(run: Path, name: str):
    with forbidden(run / name), pytest.raises(RunError) as raised:
        use(run)
    assert str(raised.value).endswith(
        f"run/{name}: not readable for you (Permission denied). "
        f"{(run / name).owner()} can let others read it and the folders above it"
    )


def use(directory: Path) -> None:
    check_files(directory)
    with open_run(directory, CPU, write=False) as opened:
        opened.restore_for_evaluation()


def test_a_folder_that_may_not_be_entered_is_not_called_empty(run: Path, call):
    with forbidden(run):
        for command in (["eval", "run"], ["resume", "run"], ["report", "run"]):
            ended = call(*command)
            assert (ended.code, ended.out) == (2, "")
            assert "not readable for you (Permission denied)" in ended.err
            assert len(ended.err.splitlines()) == 1
        with pytest.raises(RunError, match="checkpoints/best.safetensors: not readable for you"):
            is_file(run / "checkpoints" / "best.safetensors")
    assert not is_file(run / "absent")
    assert not is_file(run / "result.json" / "below")


def test_a_run_that_may_only_be_read(run: Path, call, tmp_path: Path):
    (run / "report.html").write_text("earlier")
    with forbidden(run, write_only=True):
        assert call("eval", "run").code == 0
        assert call("compare", "run", "run").code == 0
        assert call("report", "run", "--out", "elsewhere.html").out == "report: elsewhere.html\n"
        ended = call("report", "run")
        assert (ended.code, ended.out) == (2, "")
        assert [x for x in ended.err.splitlines() if not x.startswith("imported ")] == [
            "run/report.html: Permission denied. A folder with room that can be written to: "
            "--out FILE"
        ]
        ended = call("resume", "run")
        assert ended.code == 2
        assert "run: Permission denied. A folder with room that can be written to" in ended.err
    assert (run / "report.html").read_text() == "earlier"
    assert "<svg" in (tmp_path / "elsewhere.html").read_text()


def test_what_a_killed_process_left_is_gone_at_the_next_start(run: Path):
    left = [run / f"{UNFINISHED}a", run / "checkpoints" / f"{UNFINISHED}b"]
    for folder in left:
        folder.mkdir()
        (folder / "file").write_bytes(b"half")
    (run / "metrics.jsonl.partial").touch()  # of an earlier version
    with open_run(run, CPU, write=False):
        assert all(folder.exists() for folder in left)
    with open_run(run, CPU, write=True):
        assert not any(folder.exists() for folder in left)
        assert not (run / "metrics.jsonl.partial").exists()


def test_a_folder_where_a_run_was_killed_at_once_can_be_used(
    run: Path, toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path
):
    fresh = tmp_path / "fresh"
    (fresh / f"{UNFINISHED}a").mkdir(parents=True)
    shutil.copy(run / "environment.json", fresh)
    recipe = read_recipe(toy_recipe, toy_plugins.catalogue, SHORT)
    with new_run(fresh, recipe, toy_plugins, CPU, []):
        assert not (fresh / f"{UNFINISHED}a").exists()
        assert (fresh / "recipe.yaml").exists()


LINKED = [
    *("metrics.jsonl", "result.json", "episodes.csv", "report.html", ".lock"),
    *("metrics.jsonl.partial", "result.json.partial", "checkpoints/last.partial"),
    "checkpoints/last.safetensors",
]


@pytest.mark.parametrize("name", LINKED)
def test_no_symlink_in_a_received_run_is_written_through(
    run: Path, tmp_path: Path, call, name: str
):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (run / "result.json").unlink()
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(precious)
    ended = call("resume", "run")
    assert ended.code in (0, 2)
    assert "Traceback" not in ended.err
    assert precious.read_text() == "mine"

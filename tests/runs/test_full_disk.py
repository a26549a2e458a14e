"""A full disk ends each command in one line, keeps what was there, and costs no bit of the
result."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from fsl_core.config.matrix import read_matrix
from fsl_core.config.recipe import read_recipe
from fsl_core.errors import RunError
from fsl_core.files.writing import UNFINISHED
from fsl_core.hooks.loader import Loaded
from fsl_core.reporting.comparison import write_comparison
from fsl_core.reporting.scores import read_scores
from fsl_core.runs import checkpoints
from fsl_core.runs.files import writing
from fsl_core.runs.opening import new_run, open_run
from fsl_core.runs.run import Run
from fsl_core.sweeping.jobs import make_jobs
from fsl_core.training.judging import judge
from fsl_core.training.outer_loop import train

CPU = torch.device("cpu")
SHORT = [
    *("outer.steps=6", "outer.validate_every=3", "outer.checkpoint_every=2"),
    "evaluate.episodes=4",
]
WRITTEN = [
    *("recipe.yaml", "environment.json", "execution.json", "metrics.jsonl"),
    *("best.safetensors", "last.safetensors", "episodes.csv", "result.json"),
]


@contextmanager
def full(name: str, after: int = 0) -> Iterator[None]:
    """Within this context, there is no room for files of this name, after so many of them."""
    replace, write, left = Path.replace, os.write, after

    def no_room(file: str) -> None:
        nonlocal left
        left -= file == name
        if file == name and left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file)

    def replace_or_not(self: Path, target: Path) -> Path:
        no_room(target.name)
        return replace(self, target)

    def write_or_not(descriptor: int, content: bytes) -> int:
        if name == "metrics.jsonl" and bytes(content).startswith(b'{"step"'):
            if left <= 0 and len(content) > 10:
                write(descriptor, content[:10])  # what a disk does: it takes what it has room for
            no_room(name)
        return write(descriptor, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", replace_or_not)
        patch.setattr(os, "write", write_or_not)
        yield


def lines(err: str) -> list[str]:
    """What was written to stderr beside the progress of training and what was imported."""
    return [x for x in err.splitlines() if not x.startswith(("step ", "imported "))]


def outcome(directory: Path) -> dict[str, bytes]:
    """Files of a run that do not tell the time."""
    names = ("episodes.csv", "checkpoints/last.safetensors", "checkpoints/best.safetensors")
    return {name: (directory / name).read_bytes() for name in names}


WHOLE: dict[str, bytes] = {}


@pytest.fixture
def whole(toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path) -> dict[str, bytes]:
    """The outcome of a run that had room."""
    if not WHOLE:
        begin(toy_recipe, toy_plugins, tmp_path / "whole")
        WHOLE.update(outcome(tmp_path / "whole"))
    return WHOLE


def begin(recipe: Path, loaded: Loaded, out: Path) -> None:
    plugins = [recipe.parent / "fslplugin.py"]
    with new_run(out, read_recipe(recipe, loaded.catalogue, SHORT), loaded, CPU, plugins) as run:
        complete(run)


def go_on(directory: Path) -> None:
    with open_run(directory, CPU, write=True) as run:
        run.restore_last()
        complete(run)


def complete(run: Run) -> None:
    try:
        train(run)
        judge(run)
    finally:
        run.flush_metrics()  # as the command line does


@pytest.mark.parametrize(
    ("name", "after"), [*((name, 0) for name in WRITTEN), ("last.safetensors", 1)]
)
def test_every_file_of_a_run(
    toy_recipe: Path, toy_plugins: Loaded, whole, tmp_path: Path, name: str, after: int
):
    out = tmp_path / "run"
    with full(name, after), pytest.raises(RunError) as raised:
        begin(toy_recipe, toy_plugins, out)
    assert str(raised.value).endswith(
        f"/{name}: No space left on device. A folder with room that can be written to"
    )
    assert not [*out.rglob(f"{UNFINISHED}*")]
    if name in ("recipe.yaml", "environment.json"):
        begin(toy_recipe, toy_plugins, out)
    else:
        go_on(out)
    assert outcome(out) == whole
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 6 + 2


def test_a_disk_that_stays_full_keeps_what_was_there(
    toy_recipe: Path, toy_plugins: Loaded, whole, tmp_path: Path
):
    path = tmp_path / "run" / "checkpoints" / "last.safetensors"
    with full("last.safetensors", after=1):
        with pytest.raises(RunError, match="last.safetensors: No space left on device"):
            begin(toy_recipe, toy_plugins, tmp_path / "run")
        kept = path.read_bytes()
        with pytest.raises(RunError, match="last.safetensors: No space left on device"):
            go_on(tmp_path / "run")
    assert path.read_bytes() == kept
    go_on(tmp_path / "run")
    assert outcome(tmp_path / "run") == whole


def test_the_programs_own_observer_says_one_line(call, tmp_path: Path):
    options = [word for setting in SHORT for word in ("-s", setting)]
    with full("report.html"):
        ended = call("run", "toy.yaml", *options, "--out", "run")
    assert (ended.code, ended.out) == (2, "")
    assert lines(ended.err) == [
        "run/report.html: No space left on device. A folder with room that can be written to"
    ]
    assert call("report", "run").code == 0


@pytest.mark.parametrize("name", ["report.html", "sweep.csv", "differences.csv"])
def test_every_file_of_a_finished_sweep(
    call, toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path, name: str
):
    """Of runs that are there already: the tables of a sweep are made again whenever it is
    called."""
    recipe = toy_recipe.read_text().replace("steps: 12", "steps: 1")
    toy_recipe.write_text(f"{recipe}matrix: {{seed: [0, 1]}}\n")
    for job in make_jobs(
        read_matrix(toy_recipe, toy_plugins.catalogue).cells, tmp_path / "out" / "runs"
    ):
        with new_run(job.directory, job.cell.recipe, toy_plugins, CPU, []) as run:
            complete(run)
    with full(name):
        ended = call("sweep", "toy.yaml", "--out", "out")
    assert (ended.code, ended.out) == (2, "")
    assert lines(ended.err) == [
        "2 of 2 runs are finished already and kept",
        f"out/{name}: No space left on device. A folder with room that can be written to",
    ]


def test_the_page_of_a_comparison(toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path):
    begin(toy_recipe, toy_plugins, tmp_path / "run")
    scores, page = read_scores(tmp_path / "run"), tmp_path / "page.html"
    page.write_text("earlier")
    with full("page.html"), pytest.raises(RunError, match="page.html: No space left on device"):
        write_comparison(page, scores, scores)
    assert page.read_text() == "earlier"


def test_an_error_of_safetensors_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_room(*arguments: object, **options: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoints, "save_file", no_room)
    path = tmp_path / "kept"
    with pytest.raises(RunError, match=r"kept: I/O error: No space left on device"), writing(path):
        checkpoints.save_tensors(path, {}, {})
    assert not [*tmp_path.iterdir()]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not shutil.which("mount") or os.name != "posix":
        pytest.skip("no mount here")
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small disk")
    yield disk
    # Lazily: an observer of an interrupted run may hold a file of it until it is collected.
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_disk_that_is_full(toy_recipe: Path, toy_plugins: Loaded, whole, small_disk: Path):
    """The same on a real one, with less room each time, so that it is full at different files."""
    for room in (0, 8192, 12288, 16384):
        out, filler = small_disk / f"run{room}", small_disk / "filler"
        filler.write_bytes(bytes(60 * 1024 - room))
        with pytest.raises(RunError, match="No space left on device"):
            begin(toy_recipe, toy_plugins, out)
        filler.unlink()
        begun = (out / "recipe.yaml").exists()
        go_on(out) if begun else begin(toy_recipe, toy_plugins, out)
        assert outcome(out) == whole
        shutil.rmtree(out)

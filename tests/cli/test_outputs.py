"""Files that a command would write are refused before its work, each with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from fsl_core.cli.outputs import Output, check_outputs, page, table
from fsl_core.errors import RunError


def saved(path: Path) -> Output:
    return Output("--save", path, (".safetensors", ""), "A predictor")


def program(path: Path) -> Output:
    return Output("--export", path, (".pt2",), "A program")


@pytest.fixture
def used(tmp_path: Path) -> Path:
    """A run, pictures, and a file of `--save`."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for name in ("recipe.yaml", "episodes.csv", "report.html", "checkpoints/last.safetensors"):
        (tmp_path / "run" / name).write_text("kept")
    (tmp_path / "labelled" / "cup").mkdir(parents=True)
    Image.new("L", (4, 4)).save(tmp_path / "labelled" / "cup" / "1.png")
    (tmp_path / "old").write_text("kept")
    (tmp_path / "out.html").symlink_to(tmp_path / "labelled" / "cup" / "1.png")
    return tmp_path


@pytest.mark.parametrize(
    ("make", "path", "fault"),
    [
        (table, "x.html", "--out x.html: ends in .html. A table in CSV, in a file such as x.csv"),
        (page, "x.csv", "--out x.csv: ends in .csv. A page in HTML, in a file such as x.html"),
        (saved, "x.csv", "--save x.csv: ends in .csv. A predictor, in a file such as x.safe"),
        (program, "m.onnx", "--export m.onnx: ends in .onnx. A program, in a file such as m.pt2"),
        (program, "m", "--export m: has no ending. A program, in a file such as m.pt2"),
        (table, "labelled", "--out labelled: a folder. A file, such as labelled/predictions.csv"),
        (table, ".", "--out .: a folder. A file, such as predictions.csv"),
        (table, "old/x.csv", "--out old/x.csv: {here}/old is not a folder. A file in a folder"),
        (table, "run/episodes.csv", "--out run/episodes.csv: a file of the run run. Another name"),
        (page, "run/report.html", "--out run/report.html: a file of the run run. Another name"),
        (saved, "run/checkpoints/last.safetensors", ": a file of the run run. Another name"),
        (saved, "old", "--save old: the command reads it. Another name: the file would be over"),
        (page, "out.html", "--out out.html: a picture of labelled. Another name"),
        (table, "/dev/null", "--out /dev/null: a device. A file, such as null.csv"),
    ],
)
def test_what_is_refused(used: Path, make, path: str, fault: str):
    output = make("--out", Path(path)) if make in (table, page) else make(Path(path))
    with pytest.raises(RunError) as caught:
        check_outputs([output], [Path("run"), Path("labelled"), Path("old")])
    assert fault.format(here=used) in str(caught.value)
    assert (used / "old").read_text() == "kept"


def test_what_is_taken(used: Path):
    names = ("run/predictions.csv", "labelled/mine.csv", "new folder/deep/x.csv", "x", "x.CSV")
    for name in names:
        output = table("--out", Path(name))
        check_outputs([output], [Path("run"), Path("labelled")])
        output.make_folder()
        output.path.write_text("a table")
        check_outputs([output], [Path("run"), Path("labelled")])  # it may be written again


def test_all_faults_come_together(used: Path):
    outputs = [table("--out", Path("x")), saved(Path("./x")), program(Path("m.onnx"))]
    with pytest.raises(RunError) as caught:
        check_outputs(outputs)
    assert str(caught.value).splitlines() == [
        "--export m.onnx: ends in .onnx. A program, in a file such as m.pt2",
        "--out x: --save too. Two files",
        "--save x: --out too. Two files",
    ]

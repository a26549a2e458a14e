"""One rule for what a walk of folders reads and passes over, at every depth."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from fsl_core.data import folders
from fsl_core.data.folders import (
    AGAIN,
    DANGLING,
    ENDING,
    HIDDEN,
    OUTSIDE,
    SPECIAL,
    SYSTEM,
    UNREADABLE,
    PassedOver,
    as_unreadable,
    class_images,
    counted,
    find_class_folders,
    find_pictures,
    image_files,
    refuse_unreadable,
)
from fsl_core.data.vision import decode_image, decode_images
from fsl_core.errors import DataError
from fsl_core.text import printable

BYTES = os.fsdecode(b"caf\xe9")
COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def paint(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(file)


def found(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in find_pictures(folder).paths]


def left(folder: Path) -> dict[str, str]:
    """What is passed over, and why."""
    items = find_pictures(folder).passed_over
    return {item.path.relative_to(folder).as_posix(): item.reason for item in items}


@pytest.fixture
def lock(monkeypatch: pytest.MonkeyPatch):
    """Refuse to list folders and to open files, as permissions do to anybody but root."""
    locked: set[str] = set()
    scandir, path_open, descriptor = os.scandir, Path.open, os.open

    def refuse(path: object) -> None:
        if str(path) in locked:
            raise PermissionError(13, "Permission denied", str(path))

    def scan(path="."):
        refuse(path)
        return scandir(path)

    def open_file(self: Path, *arguments, **options):
        refuse(self)
        return path_open(self, *arguments, **options)

    def open_descriptor(path, *arguments, **options):
        refuse(path)
        return descriptor(path, *arguments, **options)

    monkeypatch.setattr(os, "open", open_descriptor)
    monkeypatch.setattr(os, "scandir", scan)
    monkeypatch.setattr(Path, "open", open_file)
    return lambda path: locked.add(str(path))


def test_pictures_are_found_at_every_depth_in_the_order_of_their_names(tmp_path: Path):
    paint(*(tmp_path / name for name in ("b.png", "a/z.jpg", "a/b/1.PNG", "a.png", "ab/1.bmp")))
    assert found(tmp_path) == ["a/b/1.PNG", "a/z.jpg", "a.png", "ab/1.bmp", "b.png"]


@pytest.mark.parametrize("depth", ["", "more/", "more/and/more/"])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (".ipynb_checkpoints/1-checkpoint.png", HIDDEN),
        (".hidden.png", HIDDEN),
        ("._1.png", HIDDEN),
        ("__MACOSX/1.png", SYSTEM),
        ("@eaDir/1.png/SYNOPHOTO_THUMB_M.png", SYSTEM),
        ("$RECYCLE.BIN/1.png", SYSTEM),
        ("lost+found/1.png", SYSTEM),
        ("Thumbs.db", SYSTEM),
        ("notes.txt", ENDING),
        ("no-ending", ENDING),
    ],
)
def test_passed_over_at_every_depth(tmp_path: Path, depth: str, name: str, reason: str):
    paint(tmp_path / depth / "kept.png")
    extra = tmp_path / depth / name
    if extra.suffix == ".png":
        paint(extra)
    else:
        extra.write_text("")
    assert found(tmp_path) == [f"{depth}kept.png"]
    assert left(tmp_path) == {depth + name.partition("/")[0]: reason}


def test_links_to_files_and_folders_are_followed(tmp_path: Path):
    paint(tmp_path / "disk" / "sub" / "1.png", tmp_path / "disk" / "2.png", tmp_path / "3.png")
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "more").symlink_to(tmp_path / "disk")
    (tmp_path / "class" / "one.png").symlink_to("../3.png")
    assert found(tmp_path / "class") == ["more/2.png", "more/sub/1.png", "one.png"]
    assert left(tmp_path / "class") == {}


def test_a_folder_or_file_reached_twice_counts_once_and_by_its_own_name(tmp_path: Path):
    paint(tmp_path / "z" / "1.png", tmp_path / "y.png")
    (tmp_path / "a").symlink_to("z")
    (tmp_path / "b.png").symlink_to("y.png")
    assert found(tmp_path) == ["y.png", "z/1.png"]
    assert left(tmp_path) == {"a": AGAIN, "b.png": AGAIN}
    same = {str(item.path.name): item.detail for item in find_pictures(tmp_path).passed_over}
    assert same == {
        "a": f"the same as {tmp_path / 'z'}",
        "b.png": f"the same as {tmp_path / 'y.png'}",
    }


def test_of_two_links_to_one_folder_the_first_counts(tmp_path: Path):
    paint(tmp_path / "disk" / "sub" / "1.png")
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "a").symlink_to(tmp_path / "disk" / "sub")
    (tmp_path / "class" / "b").symlink_to(tmp_path / "disk")
    assert found(tmp_path / "class") == ["a/1.png"]
    assert left(tmp_path / "class") == {"b/sub": AGAIN}


def test_loops_end(tmp_path: Path):
    """A link to a folder above would bring in the pictures of other classes."""
    paint(tmp_path / "data" / "a" / "1.png", tmp_path / "data" / "b" / "2.png")
    (tmp_path / "data" / "a" / "self").symlink_to(".")
    (tmp_path / "data" / "a" / "up").symlink_to("..")
    (tmp_path / "data" / "a" / "round").symlink_to("round")
    (tmp_path / "data" / "linked").symlink_to("a")
    expected = {"self": AGAIN, "up": AGAIN, "round": DANGLING}
    for name in ("a", "linked"):
        assert found(tmp_path / "data" / name) == ["1.png"]
        assert left(tmp_path / "data" / name) == expected


def test_links_to_nothing_and_pipes(tmp_path: Path):
    paint(tmp_path / "1.png")
    (tmp_path / "2.png").symlink_to("nowhere.png")
    (tmp_path / "more").symlink_to(tmp_path / "unmounted")
    os.mkfifo(tmp_path / "pipe.png")
    assert found(tmp_path) == ["1.png"]
    assert left(tmp_path) == {"2.png": DANGLING, "more": DANGLING, "pipe.png": SPECIAL}


def test_hard_links_are_files_of_their_own(tmp_path: Path):
    """A copy of the folder on another disk must give the same pictures."""
    paint(tmp_path / "1.png")
    os.link(tmp_path / "1.png", tmp_path / "2.png")
    assert found(tmp_path) == ["1.png", "2.png"]


def test_the_order_is_that_of_composed_names_then_of_bytes(tmp_path: Path):
    names = ["cafz", COMPOSED, "cafe", DECOMPOSED, BYTES]
    paint(*(tmp_path / f"{name}.png" for name in names))
    assert found(tmp_path) == [f"{n}.png" for n in ("cafe", "cafz", DECOMPOSED, COMPOSED, BYTES)]


def test_an_unreadable_folder_is_named(tmp_path: Path, lock):
    paint(*(tmp_path / name / "1.png" for name in ("a", "b", "c")))
    lock(tmp_path / "a")
    assert left(tmp_path) == {"a": UNREADABLE}
    with pytest.raises(DataError, match=r"^\S+/a: Permission denied\. Files and folders that can"):
        image_files(tmp_path)
    lock(tmp_path / "c")
    with pytest.raises(DataError, match=r"^\S+/a: Permission denied\n\S+/c: Permission denied\n2 "):
        image_files(tmp_path)
    with pytest.raises(DataError, match=r"a: Permission denied\. A folder that can be read$"):
        find_class_folders(tmp_path / "a")


def test_a_folder_that_is_not_there_or_a_file(tmp_path: Path):
    paint(tmp_path / "x.png")
    for name, why in {"x.png": "Not a directory", "absent": "No such file or directory"}.items():
        with pytest.raises(DataError, match=rf"{name}: {why}\. "):
            image_files(tmp_path / name)
        with pytest.raises(DataError, match=rf"{name}: {why}\. "):
            find_class_folders(tmp_path / name)


@pytest.mark.parametrize("folder_is_there", [True, False])
def test_a_folder_below_one_that_nobody_may_enter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder_is_there: bool
):
    def refuse(self: Path, **_: object):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(os.path, "isdir", lambda _: folder_is_there)
    monkeypatch.setattr(Path, "stat", refuse)
    if folder_is_there:
        folders.require_folder(tmp_path, "here", "A folder")
        return
    with pytest.raises(DataError, match=r"^here cannot be read \(Permission denied\)\. A folder$"):
        folders.require_folder(tmp_path, "here", "A folder")


def test_class_folders_and_what_lies_beside_them(tmp_path: Path):
    paint(tmp_path / "b" / "1.png", tmp_path / "a" / "1.png", tmp_path / "loose.png")
    (tmp_path / "README.md").write_text("")
    (tmp_path / ".git").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "again").symlink_to("b")
    (tmp_path / "up").symlink_to("..")
    found = find_class_folders(tmp_path)
    assert [path.name for path in found.paths] == ["a", "b"]
    assert {item.path.name: item.reason for item in found.passed_over} == {
        ".git": HIDDEN,
        "README.md": ENDING,
        "__MACOSX": SYSTEM,
        "again": AGAIN,
        "gone": DANGLING,
        "loose.png": OUTSIDE,
        "up": AGAIN,
    }
    twice = find_class_folders(tmp_path, once=False).paths
    assert [path.name for path in twice] == ["a", "again", "b"]


def test_two_class_folders_of_one_name(tmp_path: Path):
    for name in (COMPOSED, DECOMPOSED):
        (tmp_path / name).mkdir()
    message = (
        r"folders 'cafe\\u0301' and 'caf\\xe9' have one name, 'café', in two Unicode forms\. One"
    )
    with pytest.raises(DataError, match=message):
        find_class_folders(tmp_path)


def test_a_class_without_pictures(tmp_path: Path):
    (tmp_path / "a.heic").write_text("")
    (tmp_path / ".b.png").write_text("")
    message = (
        r"no images in this class folder\. At least one file such as \.jpg or \.png, or no folder"
    )
    with pytest.raises(DataError, match=message):
        class_images(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plain é 中.png", "plain é 中.png"),
        ("\x1b[31mred\x07\n", "\\x1b[31mred\\x07\\n"),
        (BYTES, "caf\\xe9"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
    ],
)
def test_names_are_shown_without_harm(name: str, text: str):
    assert printable(name) == text
    printable(name).encode()


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, lock):
    paint(tmp_path / "1.png", tmp_path / "2.png")
    (tmp_path / "3.png").write_text("junk")
    lock(tmp_path / "2.png")

    files = [tmp_path / name for name in ("1.png", "2.png", "3.png", "gone.png")]
    _, faults = decode_images(files, lambda file: decode_image(file, 8), (3, 8, 8))
    reasons = {i: as_unreadable(files[i], error).detail for i, error in faults.items()}
    assert reasons[1] == "Permission denied. A file that this user may read"
    assert reasons[2].startswith("not a readable image (")
    assert reasons[3] == "No such file or directory. A file that this user may read"
    assert list(reasons) == [1, 2, 3]


def test_many_unreadable_files_are_told_in_one_message(tmp_path: Path):
    items = [PassedOver(Path(f"{i:02d}.png"), UNREADABLE, "torn") for i in range(25)]
    with pytest.raises(DataError) as caught:
        refuse_unreadable(items, of=90, fit="Whole files")
    lines = str(caught.value).splitlines()
    assert lines[:20] == [f"{i:02d}.png: torn" for i in range(20)]
    assert lines[20:] == [
        "25 of 90 pictures and folders cannot be read, of which 20 are named here. Whole files"
    ]
    refuse_unreadable([])


def test_what_is_passed_over_is_counted_by_reason():
    items = [
        PassedOver(Path(name), reason)
        for name, reason in [("a", HIDDEN), ("b", DANGLING), ("c", HIDDEN)]
    ]
    assert counted(items) == "2 hidden (the name begins with a dot), 1 link to nothing"
    assert counted([]) == ""

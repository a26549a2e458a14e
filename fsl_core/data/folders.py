"""Folders of image files."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from fsl_core.errors import DataError


def subfolders(parent: Path) -> list[Path]:
    """The folders in a folder, sorted by name, without those whose name starts with a dot."""
    return sorted(
        folder for folder in parent.iterdir() if folder.is_dir() and not folder.name.startswith(".")
    )


def image_files(folder: Path) -> list[Path]:
    """The images in a folder and its subfolders, sorted; files starting with a dot or of another ending are passed over."""
    readable = {
        ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN
    }
    return sorted(
        f
        for f in folder.rglob("*")
        if f.suffix.lower() in readable and not f.name.startswith(".") and f.is_file()
    )


def class_images(folder: Path) -> list[Path]:
    """The images of a class. Raises DataError if there are none."""
    found = image_files(folder)
    if not found:
        raise DataError(
            f"{folder}: no images in this class folder. At least one file such as .jpg or .png, or no folder"
        )
    return found

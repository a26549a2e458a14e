"""Files from the network: whole and as their checksum says, or not there at all."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import tarfile
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal, TypeVar

from fsl_core.data.work import reported
from fsl_core.errors import DataError
from fsl_core.files.reading import open_regular
from fsl_core.files.writing import replacing

T = TypeVar("T")
MEGABYTE = 1 << 20
PATIENCE = 60.0
"""Seconds without a byte after which a download has failed."""


def md5_of(file: Path) -> str:
    """The md5 of a file, as published beside data sets; it finds damage, not an attack."""
    with open_regular(file) as opened:
        return hashlib.file_digest(opened, _md5).hexdigest()


def download(
    urls: Sequence[str],
    target: Path,
    checksum: str,
    megabytes: int,
    kind: Literal["md5", "sha256"] = "md5",
) -> None:
    """Fetch `target` from the first of these addresses that gives the file of this checksum.

    It lies under another name until its checksum has been compared.

    checksum:  in hexadecimal, or how it begins.
    megabytes: its size, rounded up. No more than that is taken.
    Raises DataError with the reasons of all addresses.
    """
    reasons = []
    for url in urls:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as new:
                found = _receive(url, new, megabytes, kind)
                if not found.startswith(checksum):
                    raise ValueError(f"{kind} {found}, not {checksum}")
            return
        except (OSError, HTTPException, ValueError) as error:
            reasons.append(" ".join(str(error).split()) or type(error).__name__)
    raise DataError(
        f"{target}: download failed ({'; '.join(dict.fromkeys(reasons))}). "
        "A network connection, or the file in place"
    )


def extract(archive: Path, names: Iterable[str], folder: Path) -> None:
    """Write these members of a tar file into a folder, under the last part of their names.

    Nothing else is read from it: not the place that a member asks for, no link, no permissions.
    Raises DataError if one is absent or not a regular file.
    """
    try:
        with tarfile.open(archive) as tar:
            for name in names:
                content = tar.extractfile(tar.getmember(name))
                if content is None:
                    raise ValueError(f"{name} is not a file")
                folder.mkdir(parents=True, exist_ok=True)
                with replacing(folder / Path(name).name) as new, new.open("wb") as file:
                    shutil.copyfileobj(content, file, MEGABYTE)
    except (OSError, KeyError, ValueError, EOFError, tarfile.TarError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{archive}: cannot be unpacked ({reason}). The archive as published"
        ) from error


def once(method: Callable[[Any], T]) -> Callable[[Any], T]:
    """A method that is called once for each object.

    Later calls give the same result, or raise the same DataError. So a download that fails is not
    tried again, and not reported again, for every split.
    """
    place = f"_once_{method.__name__}"

    @functools.wraps(method)
    def call(self: Any) -> T:
        if place not in self.__dict__:
            try:
                self.__dict__[place] = method(self), None
            except DataError as error:
                self.__dict__[place] = None, error
        result, failure = self.__dict__[place]
        if failure is not None:
            raise failure
        return result

    return call


def _receive(url: str, target: Path, megabytes: int, kind: str) -> str:
    """Write what an address gives to a file, and return its checksum."""
    request = urllib.request.Request(url, headers={"User-Agent": "fsl-core"})
    digest, received = hashlib.new(kind, usedforsecurity=False), 0
    what = f"downloading {os.path.basename(url)} (MB)"
    with (
        urllib.request.urlopen(request, timeout=PATIENCE) as response,
        target.open("wb") as file,
        reported(what, megabytes) as advance,
    ):
        while block := response.read(MEGABYTE):
            whole, received = received // MEGABYTE, received + len(block)
            if received > megabytes * MEGABYTE:
                raise ValueError(f"more than {megabytes} MB")
            file.write(block)
            digest.update(block)
            advance(received // MEGABYTE - whole)
    return digest.hexdigest()


def _md5() -> Any:
    return hashlib.md5(usedforsecurity=False)

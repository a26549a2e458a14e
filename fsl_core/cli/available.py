"""`fsl plugins --available`: plugins that a package index offers."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from dataclasses import asdict, dataclass
from http.client import HTTPException
from importlib import metadata
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import typer

from fsl_core.cli.arguments import warn
from fsl_core.data.work import Advance, for_each, reported
from fsl_core.errors import PluginError
from fsl_core.text import printable

BY_DEFAULT = "https://pypi.org/simple"
PREFIX, KEYWORD = "fsl-", "fsl-plugin"
OWN = "fsl-core"
"""Not a plugin of itself, whatever its keywords."""
JSON = "application/vnd.pypi.simple.v1+json"
LARGEST = 128 * 2**20
"""Bytes of an answer that are taken. The list of all names of PyPI has some thirty million."""
MOST = 300
"""Packages that are asked about."""
PATIENCE, AT_MOST, AT_ONCE, MEGABYTE = 10.0, 60.0, 8, 2**20
"""Seconds without a byte, and seconds in all; requests at a time."""


@dataclass(frozen=True)
class Available:
    """A plugin on an index. installed: its version here, or ""."""

    name: str
    version: str
    summary: str
    installed: str


@dataclass(frozen=True)
class Index:
    """A package index: url has no user name; authorization is the header that took its place."""

    url: str
    authorization: str = ""

    @classmethod
    def of(cls, url: str) -> Index:
        """From an address as pip takes it, with a user name and a password or without."""
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        bare = urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
        if parts.scheme not in ("http", "https") or not host:
            raise PluginError(f"--available: index {printable(bare)!r}. An address with https://")
        if parts.username is None:
            return cls(bare)
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        return cls(bare, f"Basic {base64.b64encode(pair.encode()).decode()}")

    @property
    def base(self) -> str:
        """Where the JSON of single packages is."""
        return self.url.removesuffix("/simple")

    def read(
        self, path: str, deadline: float, kind: str, advance: Advance = lambda megabytes: None
    ) -> Any:
        """The JSON there. OSError, ValueError and their like if there is none."""
        headers = {"Accept": kind, "User-Agent": OWN}
        if self.authorization:
            headers["Authorization"] = self.authorization
        request = urllib.request.Request(path, headers=headers)
        content = bytearray()
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            while block := response.read(MEGABYTE):
                content += block
                advance(1)
                if len(content) > LARGEST:
                    raise ValueError(f"more than {LARGEST // MEGABYTE} MB")
                _check(deadline)
        return json.loads(content)


def list_available(as_json: bool) -> None:
    """Print what the index of pip has."""
    from fsl_core.cli.tables import print_table
    from fsl_core.runs.files import to_json

    found, silent = find_available()
    if silent:
        more = f" and {len(silent) - 5} more" if len(silent) > 5 else ""
        warn(f"note: the index says nothing of {', '.join(silent[:5])}{more}")
    if as_json:
        typer.echo(to_json([asdict(one) for one in found], "rows", indent=2))
    elif found:
        rows = [[one.name, one.version, one.installed or "-", one.summary] for one in found]
        print_table(["package", "version", "installed", "what"], rows)
    else:
        typer.echo(f"none: no package fsl-… of the index has the keyword {KEYWORD}")


def find_available(url: str | None = None) -> tuple[list[Available], list[str]]:
    """Packages on the index with the prefix `fsl-` and the keyword `fsl-plugin`.

    And the names of those that gave no answer. An index cannot be searched for a keyword, so the
    names are filtered, and those that fit are asked for their metadata.

    url: of the index; None: that of pip.
    Raises PluginError, in one line, where the index cannot be read.
    """
    index, deadline = Index.of(url or index_of_pip()), time.monotonic() + AT_MOST
    try:
        with reported("reading the names of all packages (MB)", None) as advance:
            listed = index.read(f"{index.url}/", deadline, JSON, advance)
        names = {_normal(project["name"]) for project in listed["projects"]}
    except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
        raise PluginError(
            f"--available: {printable(index.url)}: {_reason(error)}. A network connection, or an "
            "index that speaks JSON, with PIP_INDEX_URL"
        ) from error
    ours = sorted(name for name in names if name.startswith(PREFIX) and name != OWN)
    found: dict[str, Available] = {}
    silent = ours[MOST:]

    def ask(i: int) -> None:
        try:
            _check(deadline)
            path = f"{index.base}/pypi/{ours[i]}/json"
            info = index.read(path, deadline, "application/json")["info"]
            if KEYWORD in re.split(r"[,\s]+", info.get("keywords") or ""):
                found[ours[i]] = _described(ours[i], info)
        except (OSError, HTTPException, ValueError, KeyError, TypeError, AttributeError):
            silent.append(ours[i])

    for_each(ask, len(ours[:MOST]), "asking about packages", AT_ONCE, size=1)
    return [found[name] for name in sorted(found)], sorted(silent)


def index_of_pip() -> str:
    """The index that pip installs from: of PIP_INDEX_URL, of its configuration, or PyPI."""
    if url := os.environ.get("PIP_INDEX_URL"):
        return url
    command = [sys.executable, "-m", "pip", "config", "list"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return BY_DEFAULT
    found = re.findall(r"^(?:global|install)\.index-url='(.*)'$", done.stdout, re.MULTILINE)
    return found[-1] if found else BY_DEFAULT


def _described(name: str, info: dict[str, Any]) -> Available:
    version, summary = (printable(info.get(key) or "") for key in ("version", "summary"))
    return Available(name, version, summary, _installed(name))


def _check(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise TimeoutError(f"not read within {AT_MOST:.0f} s")


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return "no JSON"
    if isinstance(error, KeyError | TypeError):
        return "not a list of projects"
    return " ".join(str(error).split()).strip("<>") or type(error).__name__
